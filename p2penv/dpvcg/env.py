"""The differentially private VCG market as a functional environment."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from p2penv.core import validation
from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.core.contract import Draw, Noise, Policy, Role, Step
from p2penv.core.params import cast, freeze
from p2penv.dpvcg import continuous, finite, mechanisms, rules, sampling
from p2penv.dpvcg.equilibrium import gains
from p2penv.dpvcg.mechanisms import Calibration, ExponentialMechanism, LaplaceMechanism, Mechanism, VCGMechanism
from p2penv.dpvcg.policies import TruthfulPolicy
from p2penv.dpvcg.rules import Bids, Bounds
from p2penv.dpvcg.scenario import Scenario, load_scenario
from p2penv.dpvcg.typespace import TypeSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What else the constructor takes.
FIELDS = {field.name for field in dataclasses.fields(Scenario)}
PARAMETERS = {"scale": ("scale",), "coefficients": ("quadratic", "linear")}


class Params(NamedTuple):
    """Arrays of a market under a mechanism."""

    base: Bids  # (n,) valuations of the case
    bounds: Bounds  # (n,)
    low: Array  # (n, k) declared type space
    high: Array  # (n, k)
    beta: Array  # () of the exponential mechanism
    table: Any  # finite.Range, continuous.Quadrature, or ()
    noise_scale: Array  # (n, k) of Laplace noise
    draws: Array  # (S, n, k) fixed unit Laplace draws that expectations average over


class State(NamedTuple):
    """State of E episodes."""

    types: Array  # (E, n, k) true parameters of this round
    quantity: Array  # (E, n) last signed quantity [kWh]
    payment: Array  # (E, n) last payment [$]
    time: Array  # (E,) rounds played


class Outcome(NamedTuple):
    """What a joint report leads to."""

    quantity: Array  # (E, n), expected or drawn [kWh]
    payment: Array  # (E, n) [$]
    value: Array  # (E, n) at the true valuation, expected or drawn [$]


class DPVCG:
    """Reports to a local electricity market that is cleared by VCG, as it is or made differentially private.

    ## Description
    Consumers and producers value their own quantity y (demand, or minus generation) by concave quadratic functions
    they alone know. Each reports one; the operator chooses quantities within public limits that balance, and
    payments. Under VCG truth is a dominant strategy and nothing is private. The exponential mechanism draws the
    allocation with density ∝ exp(βW), W the reported welfare: what one agent reports changes the law of the draw by a
    factor e^ε at most, and lies gain little. Source: Hoseinpour et al.; the rules module lists the corrections to it.

    ## Agents
    ``consumer_0 …``, ``producer_0 …``.

    ## Actions
    ``Box(-1, 1, (k,))`` spans the declared type space. ``report="scale"``, k = 1: a scaling α of the case's valuation.
    ``report="coefficients"``, k = 2: its (a, b). True types lie in the same space, so truth is always an action.

    ## Observations
    ``Box(-1, 1)``: role, own limits and the case's own coefficients (each over the largest), public constants v as
    v/(1 + |v|) (ε, n, ω), then the own type in the type space (the truthful action), last quantity within its limits
    and last payment; zeros before the first round. Never another agent's type.

    ## Rewards
    The payoff [$], value of the quantity at the true valuation less payment. ``reward="expected"``: exact expectation
    over the draw. ``"realised"``: of the drawn quantity; payments of the exponential mechanism are expectations still.
    Under Laplace noise ``"expected"`` averages over ``laplace_samples`` fixed draws: an estimate.

    ## Equilibrium
    Truthful play: dominant under ``mechanism="vcg"``; optimal in expectation under ``payments="entropy"``; under
    ``"algorithm3"`` nobody gains more than osc(W)·tanh(βω/4) by lying. ``p2penv.dpvcg.equilibrium`` has the gains.

    ## Episode end
    ``horizon=1`` terminates. Longer episodes repeat the market with new types and truncate.

    ## Infos
    ``welfare`` true, expected or drawn [$]; ``budget`` sum of payments, < 0 where the operator pays [$];
    ``epsilon_spent`` sum of the ε of all draws so far, infinite under VCG; ``negative_payoffs`` number of agents who
    would rather not have taken part: minimum demands keep them in; for each agent ``quantity`` (signed) [kWh],
    ``payment`` [$], and per parameter ``report_*`` and ``true_*``.

    ## Arguments
    Args:
        scenario: name, TOML path or ``Scenario``.
        horizon: rounds an episode.
        mechanism: ``"exponential"``, ``"vcg"`` or ``"laplace"`` (noise on reports, then VCG).
        payments: ``"algorithm3"`` or ``"entropy"`` with the exponential mechanism, ``"vcg"`` with the others; the first
            that fits if not given.
        support: ``"continuous"`` or ``"finite"``, of the exponential mechanism.
        epsilon: ε > 0 asked for; nothing is hidden under VCG, which takes none.
        calibration: ``"declared"`` (ε holds) or ``"paper"`` (β = ε/2).
        report: ``"scale"`` or ``"coefficients"``.
        scale_range: lowest and highest scaling, 0 < low ≤ 1 ≤ high.
        spread: coefficients lie within 1 ± spread of the case's, 0 < spread < 1.
        types: ``"uniform"`` over the type space each round, or ``"fixed"`` at the case's.
        reward: ``"expected"`` or ``"realised"``.
        range_size: points of a finite range.
        range_seed: of the range.
        laplace_samples: draws an expectation under Laplace noise averages over.
        infos: ``"full"`` or ``"none"``.
        **overrides: fields of the scenario.

    Raises:
        ValueError: an option outside its range or without effect beside the others, payments that do not go with the
            mechanism, or a market that does not clear without one of its agents; the message names it.
        TypeError: unknown option.

    ## Version history
    * v0: first version.
    """

    name = "dpvcg_v0"
    discount = 0.0
    policies: tuple[str, ...] = ("truthful",)
    reference = "truthful"
    money = "$"
    episodic = False
    metadata: Mapping[str, Any] = {"name": name, "render_modes": ["human", "rgb_array"], "render_fps": 2}

    def __init__(
        self,
        scenario: str | Path | Scenario = "community6",
        *,
        horizon: int = 1,
        mechanism: Literal["exponential", "vcg", "laplace"] = "exponential",
        payments: rules.Payments | None = None,
        support: mechanisms.Support = "continuous",
        epsilon: float = 1.0,
        calibration: Calibration = "declared",
        report: Literal["scale", "coefficients"] = "scale",
        scale_range: tuple[float, float] = (0.5, 1.5),
        spread: float = 0.5,
        types: Literal["uniform", "fixed"] = "uniform",
        reward: Literal["expected", "realised"] = "expected",
        range_size: int = 100,
        range_seed: int = 0,
        laplace_samples: int = 256,
        infos: Literal["full", "none"] = "full",
        **overrides: Any,
    ) -> None:
        if unknown := overrides.keys() - FIELDS:
            options = sorted(name for name in inspect.signature(DPVCG).parameters if name != "overrides")
            raise TypeError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; options: {', '.join(options)}; "
                f"scenario fields: {', '.join(sorted(FIELDS))}"
            )
        if isinstance(scenario, Scenario):
            scenario = scenario.replace(**overrides) if overrides else scenario
        else:
            scenario = load_scenario(scenario, **overrides)
        self.scenario = scenario
        self.horizon = validation.count("horizon", horizon)
        kind = validation.choice("mechanism", mechanism, mechanisms.PAYMENTS)
        self.payments = mechanisms.check_payments(kind, payments)
        validation.choice("support", support, ("continuous", "finite"))
        validation.choice("calibration", calibration, ("declared", "paper"))
        validation.seed("range_seed", range_seed)
        validation.count("range_size", range_size)
        validation.count("laplace_samples", laplace_samples)
        self.report = validation.choice("report", report, PARAMETERS)
        drawn, ranged = kind == "exponential", kind == "exponential" and support == "finite"
        validation.refuse_idle(
            DPVCG,
            epsilon=(epsilon, kind != "vcg", "mechanism='exponential' or 'laplace'"),
            support=(support, drawn, "mechanism='exponential'"),
            calibration=(calibration, drawn, "mechanism='exponential'"),
            range_size=(range_size, ranged, "mechanism='exponential' and support='finite'"),
            range_seed=(range_seed, ranged, "mechanism='exponential' and support='finite'"),
            laplace_samples=(laplace_samples, kind == "laplace", "mechanism='laplace'"),
            scale_range=(scale_range, report == "scale", "report='scale'"),
            spread=(spread, report == "coefficients", "report='coefficients'"),
        )
        self.types = validation.choice("types", types, ("uniform", "fixed"))
        self.reward = validation.choice("reward", reward, ("expected", "realised"))
        self.infos = validation.choice("infos", infos, ("full", "none"))
        if report == "scale":
            if not isinstance(scale_range, tuple | list) or len(scale_range) != 2:
                raise ValueError(f"scale_range must be a pair (low, high), got {scale_range!r}")
            self.space = TypeSpace.scalings(scenario, *scale_range)
        else:
            self.space = TypeSpace.around(scenario, spread)
        self.mechanism: Mechanism
        size, parameters = scenario.size, self.space.statistics
        table: Any = ()
        beta, scale, draws = 0.0, np.zeros((size, parameters)), np.zeros((0, size, parameters))
        self.noise: Mapping[str, Draw] = {}
        # Laplace noise makes valuations nearly flat: clearing them would lose all digits of single precision.
        self.dtypes: tuple[str, ...] = ("float64",) if kind == "laplace" else ("float64", "float32")
        if kind == "vcg":
            self.mechanism = VCGMechanism(scenario, space=self.space)
        elif kind == "laplace":
            self.mechanism = laplace = LaplaceMechanism(scenario, epsilon, space=self.space, samples=laplace_samples)
            scale, draws = laplace.scale, laplace.draws
            if reward == "realised":
                self.noise = {"report": Draw("uniform", (size, parameters))}
        else:
            self.mechanism = exponential = ExponentialMechanism(
                scenario, epsilon, support, calibration, space=self.space, range_size=range_size, seed=range_seed
            )
            table, beta = exponential.table, exponential.beta
            if reward == "realised" and support == "finite":
                self.noise = {"draw": Draw("uniform", ())}
            elif reward == "realised":
                tries = sampling.proposals_needed(self.space.spread(), scenario.bounds, beta)
                self.noise = {"draw": Draw("uniform", (tries, size))}
        self.equilibrium = {
            "vcg": "truthful play (dominant)",
            "entropy": "truthful play (optimal in expectation)",
            "algorithm3": "truthful play (approximate)",
        }[self.payments if kind != "laplace" else "algorithm3"]
        self.params = freeze(
            Params(scenario.bids, scenario.bounds, self.space.low, self.space.high, np.array(beta), table, scale, draws)
        )
        self.action_names = PARAMETERS[report]
        self.roles: tuple[Role, ...] = (
            Role("consumer", scenario.consumers, parameters),
            Role("producer", scenario.producers, parameters),
        )
        fresh = {"types": Draw("uniform", (size, parameters))} if types == "uniform" else {}
        self.initial_noise: Mapping[str, Draw] = fresh
        if self.horizon > 1:
            self.noise = {**self.noise, **fresh}
        market = ("welfare", "budget", "epsilon_spent", "negative_payoffs")
        reported = (f"{what}_{name}" for what in ("report", "true") for name in self.action_names)
        agent = ("quantity", "payment", *reported)
        self.info_axes: Mapping[str, Literal["env", "agent"]] = (
            {} if infos == "none" else dict.fromkeys(market, "env") | dict.fromkeys(agent, "agent")  # type: ignore[assignment]
        )
        self._set_scales()

    def _set_scales(self) -> None:
        """Constant features and the ranges of the changing ones, all public."""
        case, bounds, size = self.scenario.bids, self.scenario.bounds, self.scenario.size
        stakes = rules.scale_sensitivity(case, bounds, 1.0)
        self.reward_scale: Array = stakes / stakes.mean()
        own = {
            "quantity_low": bounds.low,
            "quantity_high": bounds.high,
            "case_quadratic": case.quadratic,
            "case_linear": case.linear,
        }
        # Nothing is hidden by VCG: its ε is infinite, and shown as 1.
        epsilon = self.mechanism.nominal_epsilon
        public = {"epsilon": 1.0 if np.isinf(epsilon) else epsilon / (1.0 + epsilon)}
        public |= {"agents": size / (1.0 + size), "sensitivity": (w := float(self.space.sensitivity.max())) / (1.0 + w)}
        columns = [self.scenario.sign, *(safe_divide(value, np.abs(value).max()) for value in own.values())]
        self.context: Array = np.stack([*columns, *(np.full(size, value) for value in public.values())], axis=1)
        types = tuple(f"type_{name}" for name in self.action_names)
        self.features = ("role", *own, *public, *types, "last_quantity", "last_payment")
        # No payment of the case exceeds what all the others could gain or lose.
        self._payment_scale = 1.0 / float(rules.oscillation(case, bounds))

    def parameters(self, xp: ModuleType = np, dtype: Any = None) -> Params:
        """``params`` in a namespace and dtype, float64 by default."""
        return self.params if xp is np and dtype in (None, np.float64) else cast(self.params, xp, dtype)

    def initial(self, params: Params, noise: Noise, num_envs: int) -> State:
        """State of ``num_envs`` fresh episodes: types drawn, nothing traded."""
        xp = namespace(params.low)
        types = self._types(params, noise, xp.zeros((num_envs, 1, 1), dtype=params.low.dtype))
        nothing = 0.0 * types[..., 0]
        return State(types, nothing, nothing, xp.astype(nothing[:, 0], xp.int32))

    def _types(self, params: Params, noise: Noise, like: Array) -> Array:
        if self.types == "uniform":
            return params.low + noise["types"] * (params.high - params.low)
        return like + self._truth(params)

    def _truth(self, params: Params) -> Array:
        """(n, k) parameters of the case."""
        xp = namespace(params.low)
        if self.report == "scale":
            return xp.ones_like(params.low)
        return xp.stack([params.base.quadratic, params.base.linear], axis=-1)

    def decode(self, params: Params, actions: Array) -> Array:
        """Report parameters ``(..., n, k)`` of actions ``(..., n, k)``."""
        return params.low + 0.5 * (actions + 1.0) * (params.high - params.low)

    def encode(self, params: Params, parameters: Array) -> Array:
        """Actions ``(..., n, k)`` of report parameters ``(..., n, k)``."""
        # The middle where the space has no width.
        return clip(safe_divide(2.0 * (parameters - params.low), params.high - params.low, 1.0) - 1.0, -1.0, 1.0)

    def play(self, params: Params, true: Bids, reports: Array, noise: Noise | None = None) -> Outcome:
        """Outcome ``(E, n)`` of report parameters ``(E, n, k)``, expected, or drawn with the noise of a step."""
        bids, bounds = rules.report_bids(params.base, reports), params.bounds
        kind = self.mechanism.kind
        if kind == "vcg":
            cleared = rules.pivots(bids, bounds)
            allocation = cleared.clearing.allocation
            return Outcome(allocation, cleared.payment, rules.value(true, allocation))
        if kind == "laplace":
            return self._play_noisy(params, true, reports, noise)
        law = self._law(params, bids, true)
        payment = mechanisms.payments(law, self.payments)
        if not noise:
            return Outcome(law.quantity, payment, law.true_value)
        if isinstance(params.table, finite.Range):
            chances = finite.probabilities(params.table.points, bids, params.beta)
            drawn = params.table.points[finite.choose(chances, noise["draw"])]
        else:
            drawn = sampling.from_uniforms(bids, bounds, params.beta, noise["draw"])
        return Outcome(drawn, payment, rules.value(true, drawn))

    def _law(self, params: Params, bids: Bids, true: Bids) -> rules.Law:
        if isinstance(params.table, finite.Range):
            return finite.law(params.table, bids, params.beta, true)
        return continuous.law(params.table, bids, params.beta, true)

    def _play_noisy(self, params: Params, true: Bids, reports: Array, noise: Noise | None) -> Outcome:
        xp = namespace(reports)
        if noise:
            centred = noise["report"] - 0.5
            # A uniform that is exactly zero would be infinite noise; single precision draws them.
            most = xp.full_like(centred, 1.0 - 0.5 * float(xp.finfo(centred.dtype).eps))
            tail = xp.minimum(2.0 * xp.abs(centred), most)
            unit = -xp.sign(centred) * xp.log1p(-tail)
            bids = mechanisms.perturb(params.base, reports, params.noise_scale * unit)
            cleared = rules.pivots(bids, params.bounds)
            allocation = cleared.clearing.allocation
            return Outcome(allocation, cleared.payment, rules.value(true, allocation))
        bids = mechanisms.perturb(params.base, reports, params.noise_scale * params.draws[:, None])  # (S, E, n)
        cleared = rules.pivots(bids, params.bounds)
        allocation = cleared.clearing.allocation
        value = rules.value(true, allocation)
        return Outcome(*(xp.mean(part, axis=0) for part in (allocation, cleared.payment, value)))

    def step(self, params: Params, state: State, actions: Array, noise: Noise) -> Step:
        """Play actions ``(E, n, k)``; pure, neither validates nor resets."""
        reports = self.decode(params, actions)
        true = rules.report_bids(params.base, state.types)
        outcome = self.play(params, true, reports, noise if self.reward == "realised" else None)
        time = state.time + 1
        info = self._info(state.types, reports, outcome, time) if self.infos == "full" else {}
        reward = outcome.value - outcome.payment
        ended = time >= self.horizon
        never = time < 0
        types = self._types(params, noise, 0.0 * state.types) if self.horizon > 1 else state.types
        after = State(types, outcome.quantity, outcome.payment, time)
        return Step(after, reward, ended if self.horizon == 1 else never, never if self.horizon == 1 else ended, info)

    def _info(self, types: Array, reports: Array, outcome: Outcome, time: Array) -> dict[str, Array]:
        xp = namespace(reports)
        spent = xp.astype(time, reports.dtype)
        if np.isinf(self.mechanism.epsilon):
            spent = xp.where(time > 0, float("inf"), spent)
        else:
            spent = spent * self.mechanism.epsilon
        info = {
            "welfare": row_sum(outcome.value),
            "budget": row_sum(outcome.payment),
            "epsilon_spent": spent,
            "negative_payoffs": xp.sum(xp.astype(outcome.value < outcome.payment, reports.dtype), axis=-1),
            "quantity": outcome.quantity,
            "payment": outcome.payment,
        }
        for what, parameters in (("report", reports), ("true", types)):
            info |= {f"{what}_{name}": parameters[..., index] for index, name in enumerate(self.action_names)}
        return info

    def initial_info(self, params: Params, state: State) -> dict[str, Array]:
        """What ``step`` reports, for fresh episodes: nothing traded, truth reported."""
        del params
        if self.infos == "none":
            return {}
        nothing = 0.0 * state.quantity
        return self._info(state.types, state.types, Outcome(nothing, nothing, nothing), state.time)

    def observe(self, params: Params, state: State) -> tuple[Array, ...]:
        """Own type in the type space, last quantity within its limits, last payment; all in [−1, 1]."""
        place = self.encode(params, state.types)
        low, high = params.bounds
        traded = namespace(state.time).astype(state.time > 0, low.dtype)[:, None]
        quantity = clip(traded * (2.0 * (state.quantity - low) / (high - low) - 1.0), -1.0, 1.0)
        payment = clip(state.payment * self._payment_scale, -1.0, 1.0)
        return *(place[..., index] for index in range(place.shape[-1])), quantity, payment

    def policy(self, name: str) -> Policy:
        """``"truthful"``: everybody reports the own type."""
        validation.choice("policy", name, self.policies)
        return TruthfulPolicy(self)

    def assess(self, params: Params, state: State, actions: Array) -> dict[str, Array]:
        """Exact stage-game measures of a joint action [$]; costs are negative expected payoffs.

        Exploitability is exact under VCG and entropy payments, certified to 1e-8 under Algorithm 3, a lower bound on
        the fixed draws under Laplace noise. The equilibrium is truthful play, the planner's outcome is VCG's at the
        true types. Social cost is minus true welfare: payments stay among agents and operator.
        """
        true, reports = rules.report_bids(params.base, state.types), self.decode(params, actions)
        played, truthful = self.play(params, true, reports), self.play(params, true, state.types)
        best = rules.pivots(true, params.bounds)
        planned = Outcome(best.clearing.allocation, best.payment, rules.value(true, best.clearing.allocation))
        outcomes = {"": played, "_truthful": truthful, "_equilibrium": truthful, "_coordinated": planned}
        costs = {f"cost{name}": outcome.payment - outcome.value for name, outcome in outcomes.items()}
        social = {f"social_cost{name}": -row_sum(outcome.value) for name, outcome in outcomes.items()}
        bids = rules.report_bids(params.base, reports)
        found = gains(self.mechanism, bids, true, self.payments)
        measures = costs | social | {"exploitability": found.gain, "nearest": np.zeros(len(reports), bool)}
        if isinstance(self.mechanism, LaplaceMechanism):
            measures["regret_bound"] = found.bound
        elif isinstance(self.mechanism, ExponentialMechanism) and self.payments == "algorithm3":
            measures["regret_bound"] = self.mechanism.regret_bound_of(bids, true)
        return measures

    def render(self, state: State, info: Mapping[str, Array]) -> Figure:
        """Picture of environment 0; needs the ``render`` extra."""
        from p2penv.dpvcg.render import draw

        return draw(self, state, info)
