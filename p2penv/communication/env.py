"""The communication game as a functional environment."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from p2penv.communication import equilibrium, physical, rules
from p2penv.communication.params import Params
from p2penv.communication.policies import ProfilePolicy
from p2penv.communication.scenario import Scenario, load_scenario
from p2penv.core import validation
from p2penv.core.arrays import Array, clip, column, namespace, row_sum, row_sums, safe_divide, scalar, vector
from p2penv.core.contract import Draw, Noise, Policy, Role, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What else the constructor takes.
FIELDS = {field.name for field in dataclasses.fields(Scenario)} | {"net_load", "trading_price"}
# Range of the moving renewable generation an observation can show, in stationary standard deviations.
SPREAD = 5.0


def _inverse(width: float) -> float:
    """1 / width; 0 for a range too small to tell from rounding, whose inverse float32 might not hold."""
    return 1.0 / width if width > 1e-9 else 0.0


class State(NamedTuple):
    """State of E episodes."""

    private_information: Array  # (E, N) y [MWh]
    price: Array  # (E,) last clearing price [$/MWh]
    imbalance: Array  # (E,) last ΣQ [MWh]
    time: Array  # (E,) steps played


def _info(
    params: Params,
    expected: Array,
    price: Array,
    imbalance: Array,
    shift: Array,
    variance: Array,
    privacy_loss: Array,
    privacy_price: Array,
) -> dict[str, Array]:
    return {
        "price": price,
        "imbalance": imbalance,
        "slack": vector(rules.slack(params, expected)),
        "shift": shift,
        "variance": variance,
        "privacy_loss": privacy_loss,
        "privacy_price": privacy_price,
    }


class Communication:
    """Strategic, noisy reports in a peer-to-peer electricity market.

    ## Description
    N prosumers each hold private information y_n, nominal demand minus renewable generation. The market clears on
    what they report, ỹ_n = y_n + x_n + ε_n with ε_n ~ N(0, V_n). A shift x_n moves the price in one's favour; the
    operator buys the imbalance this causes at p0 and splits the bill, and noise, which makes reports private, costs
    everybody. Source: Shilov, Le Cadre, Bušić; the rules module lists the corrections to it.

    ## Agents
    ``prosumer_0 … prosumer_{N-1}``; node 0 is the root of the network.

    ## Actions
    ``Box(-1, 1, (2,))``: shift x_n = α_n·a_0 and variance V_n = least·(1 + variance_max·(a_1 + 1)/2), where least is
    x_n²/(2A_n): (8d) and (8e) hold by construction. With ``privacy="floor"`` the least variance is α_n²/(2A_n)
    whatever the shift. Without it a truthful report (x = 0, so V = 0) discloses y_n exactly: (8e) alone allows that.

    ## Observations
    ``Box(-1, 1)``: the own cost parameters, bounds and base y (each over the largest of all agents), public
    constants v as v/(1 + |v|), then the own y relative to its base, the last price and the last imbalance, clipped.
    Never another agent's y. The first observation shows the truthful price and no imbalance.

    ## Rewards
    The paper's utility gap: cost at truthful play minus cost [$], so 0 is truthful. ``reward="expected"`` uses the
    exact expectation over the noise, ``"realised"`` the drawn reports.

    ## Equilibrium
    ``p2penv.communication.equilibrium`` has the exact variational equilibrium and exploitability of the analytic
    settlement. Under ``settlement="physical"`` that profile is no equilibrium; exploitability is then found by
    certified search.

    ## Shared constraints
    (8b) and (8c) bound the total of all reports, so no single action can be projected onto them. They are reported
    in ``slack``; ``shared_penalty`` R > 0 charges every agent R/2·violation². A common penalty means a common
    multiplier, so the penalised equilibrium tends to the variational one as R grows.

    ## Episode end
    ``horizon=1`` is the one-shot game and terminates. Longer games truncate; between steps renewable generation
    moves as an AR(1) around its base, independently for each agent (a negative value is inflexible demand), while
    nominal demand and bounds stay.

    ## Infos
    ``price`` [$/MWh], ``imbalance`` ΣQ [MWh], ``slack`` of the shared interval [MWh, < 0 if violated] for the
    market; ``shift``, ``variance``, ``privacy_loss`` η [nat] (its law is N(η, 2η)), ``privacy_price`` [$/MWh] for
    each agent.

    ## Arguments
    Args:
        scenario: name, TOML path or ``Scenario``.
        horizon: steps an episode.
        reward: ``"expected"`` or ``"realised"``.
        settlement: ``"analytic"`` (the paper's interior price) or ``"physical"`` (cleared within all bounds).
        shared_penalty: R ≥ 0 [$/MWh²]; analytic settlement only.
        variance_max: most extra variance, relative to the least, ≥ 0.
        autoregression: ρ in [0, 1) of the renewable deviation.
        renewable_sd: stationary standard deviation of it, ≥ 0 [MWh].
        infos: ``"full"`` or ``"none"``.
        **overrides: what ``load_scenario`` takes (``net_load``, ``max_shift``, ``privacy``, …).

    Raises:
        ValueError: an option outside its range; the message names it. Under analytic settlement also a scenario whose
            joint feasible set is empty (in longer games the sets of later states may be: ``assess`` flags them).
        TypeError: unknown option.

    ## Version history
    * v0: first version.
    """

    name = "communication_v0"
    discount = 0.0
    dtypes: tuple[str, ...] = ("float64", "float32")
    policies: tuple[str, ...] = ("ve", "truthful", "coordinated")
    reference = "truthful"
    money = "$"
    episodic = False
    action_names = ("shift", "variance")
    metadata: Mapping[str, Any] = {"name": name, "render_modes": ["human", "rgb_array"], "render_fps": 2}

    def __init__(
        self,
        scenario: str | Path | Scenario = "ieee14",
        *,
        horizon: int = 1,
        reward: Literal["expected", "realised"] = "expected",
        settlement: rules.Settlement = "analytic",
        shared_penalty: float = 0.0,
        variance_max: float = 1.0,
        autoregression: float = 0.9,
        renewable_sd: float = 3.0,
        infos: Literal["full", "none"] = "full",
        **overrides: Any,
    ) -> None:
        if unknown := overrides.keys() - FIELDS:
            options = sorted(name for name in inspect.signature(Communication).parameters if name != "overrides")
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
        self.reward = validation.choice("reward", reward, ("expected", "realised"))
        self.settlement = validation.choice("settlement", settlement, ("analytic", "physical"))
        self.shared_penalty = validation.number("shared_penalty", shared_penalty, 0.0)
        if self.shared_penalty and settlement == "physical":
            raise ValueError("shared_penalty charges expected violations: physical settlement has none, use 0")
        self.variance_max = validation.number("variance_max", variance_max, 0.0)
        self.autoregression = validation.number("autoregression", autoregression, 0.0, 1.0 - 1e-6)
        self.renewable_sd = validation.number("renewable_sd", renewable_sd, 0.0)
        self.infos = validation.choice("infos", infos, ("full", "none"))
        if settlement == "analytic":
            equilibrium.variational_equilibrium(scenario)  # refuses an empty joint set before anything is played
        other = "" if settlement == "analytic" and not self.shared_penalty else " of the analytic, unpenalised game"
        self.equilibrium = f"variational equilibrium{other}"
        size = scenario.size
        self.roles = (Role("prosumer", size, len(self.action_names)),)
        self.params = scenario.params()
        moving = {"renewable": Draw("normal", (size,))} if self.horizon > 1 else {}
        self.initial_noise: Mapping[str, Draw] = moving
        self.noise: Mapping[str, Draw] = ({"report": Draw("normal", (size,))} if reward == "realised" else {}) | moving
        market, agent = ("price", "imbalance", "slack"), ("shift", "variance", "privacy_loss", "privacy_price")
        self.info_axes: Mapping[str, Literal["env", "agent"]] = (
            {} if infos == "none" else dict.fromkeys(market, "env") | dict.fromkeys(agent, "agent")  # type: ignore[assignment]
        )
        # The weights of the exact potential: divided by them, all agents climb the same function.
        self.reward_scale: Array = self.params.slope / self.params.slope.mean()
        self._half = 0.5 * self.variance_max
        self._middle = 1.0 + self._half
        self._innovation = self.renewable_sd * float(np.sqrt(1.0 - self.autoregression**2))
        self._set_scales()

    def _set_scales(self) -> None:
        """Constant features and the ranges of the changing ones, all public."""
        p, size = self.params, self.scenario.size
        private = {
            "base_load": p.nominal_demand - p.renewable_generation,
            "generation_curvature": p.generation_curvature,
            "generation_price": p.generation_price,
            "discomfort": p.discomfort,
            "max_shift": p.max_shift,
            "privacy_budget": p.privacy_budget,
            "demand_min": p.demand_min,
            "demand_max": p.demand_max,
            "generation_min": p.generation_min,
            "generation_max": p.generation_max,
        }
        public = {
            "trading_price": p.root_price,
            "wholesale_price": p.wholesale_price,
            "agents": float(size),
            "total_slope": p.total_slope,
            "intercept": p.intercept,
        }
        columns = [np.asarray(safe_divide(value, np.abs(value).max())) for value in private.values()]
        columns += [
            np.broadcast_to(value / (1.0 + np.abs(value)), (size,)) for value in map(np.asarray, public.values())
        ]
        if self.horizon == 1:  # y stays at its base
            columns.append(np.zeros(size))
        self.context: Array = np.stack(columns, axis=1)
        self.features = (*private, *public, "load_change", "last_price", "last_imbalance")
        moving = SPREAD * self.renewable_sd if self.horizon > 1 else 0.0
        noise = float(np.sqrt(np.sum(p.max_shift**2 / (2.0 * p.privacy_budget)))) if self.reward == "realised" else 0.0
        self._load_scale = _inverse(moving)
        reach = float(p.max_shift.sum()) + 3.0 * noise
        self._imbalance_scale = _inverse(reach)
        swing = reach + moving * float(np.sqrt(size))
        self._price_scale = float(p.total_slope) * _inverse(swing)
        self._base_price = float(rules.price_at(p, p.base_load, self.settlement == "physical"))

    def parameters(self, xp: ModuleType = np, dtype: Any = None) -> Params:
        """``params`` in a namespace and dtype, float64 by default."""
        return self.scenario.params(xp, dtype)

    def initial(self, params: Params, noise: Noise, num_envs: int) -> State:
        """State of ``num_envs`` fresh episodes: stationary renewable generation, truthful price, no imbalance."""
        xp = namespace(params.slope)
        base = rules.private(params, None)
        if self.horizon > 1:
            load = base - self.renewable_sd * noise["renewable"]
        else:
            # In memory the environments lie side by side, as in the noise.
            load = xp.repeat(base[:, None], num_envs, axis=1).T
        price = rules.price_at(params, row_sum(load), self.settlement == "physical")
        zero = 0.0 * price
        return State(load, price, zero, xp.astype(zero, xp.int32))

    def initial_info(self, params: Params, state: State) -> dict[str, Array]:
        """What ``step`` reports, for fresh episodes: as if everybody had just been truthful."""
        if self.infos == "none":
            return {}
        y = state.private_information
        shift, variance = 0.0 * y, params.variance_floor + 0.0 * y
        loss, charge = 0.0 * y, 0.0 * y  # without a shift privacy is neither lost nor paid for
        return _info(params, row_sum(y), state.price, state.imbalance, shift, variance, loss, charge)

    def decode(self, params: Params, actions: Array) -> tuple[Array, Array]:
        """Shift x and variance V ``(..., N)`` of actions ``(..., N, 2)``."""
        shift = params.max_shift * actions[..., 0]
        least = rules.least_variance_at(params, shift)
        return shift, least * (self._half * actions[..., 1] + self._middle)

    def encode(self, params: Params, shift: Array, variance: Array | None = None) -> Array:
        """Actions ``(..., N, 2)`` of shifts and variances (the least ones if not given) ``(..., N)``."""
        xp = namespace(shift, params.slope)
        extra = 0.0 * shift
        if variance is not None and self.variance_max > 0:
            least = rules.least_variance_at(params, shift)
            extra = safe_divide(variance - least, least * self.variance_max)
        return xp.stack(
            [clip(safe_divide(shift, params.max_shift), -1.0, 1.0), clip(2.0 * extra - 1.0, -1.0, 1.0)], axis=-1
        )

    def step(self, params: Params, state: State, actions: Array, noise: Noise) -> Step:
        """Play actions ``(E, N, 2)``; pure, neither validates nor resets."""
        shift, variance = self.decode(params, actions)
        realised = self.reward == "realised"
        spread = namespace(variance).sqrt(variance) * noise["report"] if realised else variance
        rows = (state.private_information, shift, spread)
        # Numbers for one environment whose parameters are ``(1, N)`` too, else ``(E,)``.
        load, shifted, spread = row_sums(*rows) if params.slope.ndim > 1 else map(row_sum, rows)
        if realised:
            reward, price, imbalance = self._settle(params, load, shifted + spread, None)
        else:
            reward, price, imbalance = self._settle(params, load, shifted, spread)
        if self.shared_penalty:
            before = rules.violation(params, load)
            after = rules.violation(params, load + shifted)
            reward = reward + column(0.5 * self.shared_penalty * (before - after) * (before + after), reward)
        info = {}
        if self.infos == "full":
            loss, charge = rules.privacy_loss_at(shift, variance), rules.privacy_price_at(params, shift)
            info = _info(params, load + shifted, price, imbalance, shift, variance, loss, charge)
        time = state.time + 1
        always = time > state.time  # True for each environment
        if self.horizon == 1:
            return Step(State(state.private_information, price, imbalance, time), reward, always, ~always, info)
        # y is base minus the renewable deviation, which decays by ρ and is stirred by the innovation.
        rho = self.autoregression
        moved = rho * state.private_information + (
            (1.0 - rho) * rules.private(params, None) - self._innovation * noise["renewable"]
        )
        return Step(State(moved, price, imbalance, time), reward, ~always, time >= self.horizon, info)

    def _settle(
        self, params: Params, load: Array, deviation: Array, variance: Array | None
    ) -> tuple[Array, Array, Array]:
        """Reward ``(E, N)``, price and imbalance ``(E,)``; ``variance`` ΣV for an expectation, None for a draw."""
        if self.settlement == "analytic":
            # Truthful play pays for the floor's noise in expectation; a draw has its own noise in the deviation.
            extra = (0.0 if variance is None else variance) - params.truthful_variance
            gap = rules.utility_gap(params, load, deviation, extra)
            return gap, vector(rules.price_at(params, load + deviation, False)), vector(-deviation)
        load, reported = vector(load), vector(load + deviation)
        if variance is None:
            moments = physical.realised_moments(params, reported)
        else:
            moments = physical.expected_moments(params, reported, vector(variance))
        if self.scenario.privacy == "floor":
            truthful = physical.expected_moments(params, load, 0.0 * load + params.truthful_variance)
        else:
            truthful = physical.realised_moments(params, load)
        imbalance = load - row_sum(moments.generation + moments.cut)
        return physical.utility_gap(params, moments, truthful), rules.price_at(params, reported, True), imbalance

    def observe(self, params: Params, state: State) -> tuple[Array, ...]:
        """Own y against its base, last price against the base one, last imbalance; all in [−1, 1]."""
        y = state.private_information
        price = column(clip((scalar(state.price) - self._base_price) * self._price_scale, -1.0, 1.0), y)
        imbalance = column(clip(scalar(state.imbalance) * self._imbalance_scale, -1.0, 1.0), y)
        if self.horizon == 1:
            return price, imbalance
        return clip((y - rules.private(params, None)) * self._load_scale, -1.0, 1.0), price, imbalance

    def policy(self, name: str) -> Policy:
        """``"truthful"``, ``"ve"`` (variational equilibrium) or ``"coordinated"``, each with full information."""
        return ProfilePolicy(self, validation.choice("policy", name, self.policies))

    def assess(self, params: Params, state: State, actions: Array) -> dict[str, Array]:
        """Exact stage-game measures ``(E, N)`` of a joint action: costs and exploitability [$].

        Exploitability is that of the game as played: the generalised game's, the penalised one's with a
        ``shared_penalty`` (costs then include the penalty), or by certified search (a bound within 1e-4) under
        physical settlement. ``cost_equilibrium`` is that of the profile ``equilibrium`` names. ``posterior_variance``
        [MWh²] is what reports and price leave unknown of each y, for a prior of standard deviation ``renewable_sd``.
        """
        y = state.private_information
        shift, variance = self.decode(params, actions)
        if self.settlement == "physical":
            gain = physical.best_response(params, shift, variance, y).gain
        else:
            shared: equilibrium.Shared = "penalty" if self.shared_penalty else "constraint"
            gain = equilibrium.exploitability(params, shift, variance, shared, self.shared_penalty, y)
        exact = equilibrium.variational_equilibrium(params, private_information=y, infeasible="nearest")
        planned = equilibrium.coordinated(params, private_information=y, infeasible="nearest")
        zero = 0.0 * shift
        costs = {
            "cost": self._cost(params, y, shift, variance),
            "cost_truthful": self._cost(params, y, zero, rules.least_variance_at(params, zero)),
            "cost_equilibrium": self._cost(params, y, exact.shift, exact.variance),
            "cost_coordinated": self._cost(params, y, planned.shift, planned.variance),
        }
        # The operator's bill is split among the agents, so theirs is all the cost there is.
        social = {f"social_{name}": row_sum(cost) for name, cost in costs.items()}
        hidden = rules.posterior_variance(self.renewable_sd**2, variance)
        return costs | social | {"exploitability": gain, "nearest": exact.nearest, "posterior_variance": hidden}

    def _cost(self, params: Params, y: Array, shift: Array, variance: Array) -> Array:
        cost = rules.expected_cost(params, shift, variance, self.settlement, y)
        excess = rules.violation(params, namespace(y).sum(y + shift, axis=-1))
        return cost + (0.5 * self.shared_penalty * excess * excess)[..., None]

    def render(self, state: State, info: Mapping[str, Array]) -> Figure:
        """Picture of environment 0; needs the ``render`` extra."""
        from p2penv.communication.render import draw

        return draw(self, state, info)
