"""Learning rules and reference policies of the communication game.

Learning rules are functions that return a :class:`Trace`; they run on NumPy, batched over private
information. The exact profiles are p2penv's own policies. All rules play the analytic game with V at its
least value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.uniform import UniformPolicy
from p2penv.communication import equilibrium, rules
from p2penv.communication.env import Communication, State
from p2penv.communication.params import Params, as_params
from p2penv.communication.scenario import Scenario
from p2penv.core import validation
from p2penv.core.arrays import Array, clip
from p2penv.core.contract import Draw, Noise, Policy

Floats = NDArray[Any]

# Rounding of a report total, in its own units of precision: changes below it are none.
ROUNDING = 8.0


class Trace(NamedTuple):
    """Recorded iterations of a learning rule; the first is the start."""

    iteration: NDArray[np.int64]  # (K,)
    shift: Floats  # (K, ..., N) x [MWh]
    price: Floats  # (K, ...) expected λ [$/MWh]
    converged: NDArray[np.bool_]  # (...) the last step moved nobody by more than the tolerance


def best_response_dynamics(
    scenario: Scenario | Params,
    start: Array | None = None,
    sweeps: int = 100,
    tolerance: float = 1e-9,
    shared: equilibrium.Shared = "constraint",
    penalty: float = 0.0,
    private_information: Array | None = None,
) -> Trace:
    """Sequential best responses: one agent after another, node 0 first, a sweep is everybody once.

    Every step lowers the potential, so it converges: to the variational equilibrium where the shared bounds
    are slack, otherwise to a generalised equilibrium that depends on the start. On ``ieee14`` the 4th sweep
    moves nobody; with A = 0.2 the 14th is the first to move nobody by more than 1e-5 MWh, the 23rd by more
    than 1e-9.

    Args:
        scenario: the scenario.
        start: ``(..., N)`` first shifts, truthful (0) if not given [MWh]. A start outside the shared interval
            is only kept from getting worse (``p2penv.communication.equilibrium.best_response``).
        sweeps: most sweeps, ≥ 1.
        tolerance: stop once a sweep moves nobody by more [MWh]; rounding is allowed for.
        shared: notion of the shared bounds, as in ``best_response``.
        penalty: R with ``shared="penalty"``, as in ``best_response``.
        private_information: ``(..., N)`` y [MWh].

    Raises:
        ValueError: an argument out of range.
    """
    params, y, shift = _begin(scenario, start, private_information)
    sweeps = validation.count("sweeps", sweeps)
    alone = [_one_agent(params, agent) for agent in range(y.shape[-1])]

    def sweep(shift: Floats) -> Floats:
        moved = shift.copy()
        total = (y + shift).sum(-1, keepdims=True)
        for agent, view in enumerate(alone):
            own = moved[..., agent : agent + 1]
            others = total - own
            best = equilibrium.best_response(view, own, shared, penalty, others)
            total = others + best
            moved[..., agent : agent + 1] = best
        return moved

    return _iterate(params, y, shift, sweep, sweeps, tolerance)


def damped_best_response_dynamics(
    scenario: Scenario | Params,
    start: Array | None = None,
    damping: float | None = None,
    sweeps: int = 20_000,
    tolerance: float = 1e-9,
    shared: equilibrium.Shared = "constraint",
    penalty: float = 0.0,
    private_information: Array | None = None,
) -> Trace:
    """Simultaneous best responses: x ← x + damping·(BR(x) − x).

    All agents push the same total, so undamped (``damping=1``) they overshoot together and end in a 2-cycle;
    up to 2/(N + 1) it converges, and up to 1/N it never leaves the shared interval.

    Args:
        scenario: the scenario.
        start: ``(..., N)`` first shifts, truthful (0) if not given [MWh].
        damping: in (0, 1], 1/N if not given.
        sweeps: most steps, ≥ 1.
        tolerance: stop once the undamped step moves nobody by more [MWh]; rounding is allowed for.
        shared: as in :func:`best_response_dynamics`.
        penalty: as in :func:`best_response_dynamics`.
        private_information: ``(..., N)`` y [MWh].

    Raises:
        ValueError: an argument out of range.
    """
    params, y, shift = _begin(scenario, start, private_information)
    sweeps = validation.count("sweeps", sweeps)
    share = validation.number("damping", 1.0 / y.shape[-1] if damping is None else damping, 0.0, 1.0, open_low=True)

    def move(shift: Floats) -> Floats:
        return shift + share * (equilibrium.best_response(params, shift, shared, penalty, y) - shift)

    return _iterate(params, y, shift, move, sweeps, share * validation.number("tolerance", tolerance, 0.0))


def diffusion(
    scenario: Scenario | Params,
    iterations: int = 10_000,
    step: float | None = None,
    penalty: float | None = None,
    preconditioned: bool = False,
    seed: int | None = None,
    start: Array | None = None,
    record_every: int | None = None,
    private_information: Array | None = None,
) -> Trace:
    """Diffusion Adapt-then-Penalise, the paper's learning rule (section 4.1), with V eliminated.

    ψ = x − μ F(x), then x = ψ − μ R ∇θ(ψ), where θ sums ½·violation² over (8d) and all of (8b), (8c). With
    the paper's μ and R it is very slow, because ∂F_n/∂S = B_n/B² is about 2e-3: on ``ieee14`` from x = 0 the
    price is still off by 0.19 $/MWh after 10⁴ iterations and by 0.03 after 2·10⁵.

    With ``preconditioned`` both steps are scaled by B²/B_n, which turns F_n into MWh, and (8d) is projected
    onto at once: 1000 iterations then leave 4e-5 $/MWh. Where the shared bounds bind, a stable penalty is so
    soft that they stay violated by about θ·μ·ΣB²/B_n (0.05 $/MWh of the price on ``ieee14-bound``): a smaller
    step comes closer.

    Args:
        scenario: the scenario.
        iterations: ≥ 1.
        step: μ > 0; 0.003 as in the paper, or with ``preconditioned`` 0.1/(N + largest 1/(2A)), a twentieth
            of what is stable.
        penalty: R > 0; 700 as in the paper, or with ``preconditioned`` the stable value, per unit of B²/B_n.
        preconditioned: scale as above.
        seed: of the noise of stochastic gradients (the realised total of noisy reports in place of the
            expected one); None: exact gradients.
        start: ``(..., N)`` first shifts, truthful (0) if not given [MWh].
        record_every: iterations between two records, about 1000 records if not given.
        private_information: ``(..., N)`` y [MWh].

    Raises:
        ValueError: an argument out of range, or steps too large, with which shifts grow without end.
    """
    params, y, shift = _begin(scenario, start, private_information)
    iterations = validation.count("iterations", iterations)
    every = max(1, iterations // 1000) if record_every is None else validation.count("record_every", record_every)
    size, reach = y.shape[-1], params.max_shift
    # ∂F_n/∂S is 2·weight_n = B_n/B².
    scale = 0.5 / params.weight if preconditioned else np.ones(size)
    default = 0.1 / (size + float(params.variance_slope.max())) if preconditioned else 0.003
    step = validation.number("step", default if step is None else step, 0.0, open_low=True)
    # How fast expected generation and demand cut move with the report total.
    rates = 1.0 / params.generation_curvature, 0.5 / params.discomfort
    rates = rates[0] / params.total_slope, rates[1] / params.total_slope
    if preconditioned and penalty is None:
        penalty = 1.0 / (step * float(scale.sum()) * float((rates[0] ** 2 + rates[1] ** 2).sum()))
    strength = validation.number("penalty", 700.0 if penalty is None else penalty, 0.0, open_low=True)
    generator = None if seed is None else np.random.default_rng(seed)
    low = params.generation_min + params.margin, params.nominal_demand - params.demand_max + params.margin
    high = params.generation_max - params.margin, params.nominal_demand - params.demand_min - params.margin
    load = y.sum(-1, keepdims=True)
    box = 1.0 if preconditioned else step * strength

    def move(shift: Floats) -> Floats:
        total = load + shift.sum(-1, keepdims=True)
        if generator is not None:
            deviation = np.sqrt(rules.least_variance(params, shift))
            total = total + (deviation * generator.standard_normal(shift.shape)).sum(-1, keepdims=True)
        gradient = 2.0 * params.weight * (total + params.variance_slope * shift - params.target)
        adapted = shift - step * scale * gradient
        price = rules.price_at(params, load[..., 0] + adapted.sum(-1), bounded=False)
        pull = np.zeros_like(price)
        for value, rate, least, most in zip(rules.dispatch(params, price), rates, low, high, strict=True):
            pull += (rate * (value - clip(value, least, most))).sum(-1)
        outside = adapted - clip(adapted, -reach, reach)
        return adapted - step * strength * scale * pull[..., None] - box * outside

    return _iterate(params, y, shift, move, iterations, None, every)


def _begin(
    scenario: Scenario | Params, start: Array | None, private_information: Array | None
) -> tuple[Params, Floats, Floats]:
    """Params, y and first shifts of one common shape ``(..., N)``."""
    params = as_params(scenario)
    y = np.asarray(rules.private(params, private_information))
    first = np.zeros_like(y) if start is None else np.asarray(start, dtype=y.dtype)
    if first.shape[-1:] != y.shape[-1:]:
        raise ValueError(f"start must have shape (..., {y.shape[-1]}), got {first.shape}")
    rules.check_reach(params, "start", first)
    y, first = np.broadcast_arrays(y, first)
    return params, y, first.copy()


def _one_agent(params: Params, agent: int) -> Params:
    """Params of one agent; with the others' total as its y, its best response is the game's."""
    size = params.slope.shape[-1]

    def own(field: Any) -> Any:
        return field[agent : agent + 1] if getattr(field, "shape", None) == (size,) else field

    return Params(*(own(field) for field in params))


def _iterate(
    params: Params,
    y: Floats,
    shift: Floats,
    move: Callable[[Floats], Floats],
    iterations: int,
    tolerance: float | None,
    every: int = 1,
) -> Trace:
    """Record start, every so many iterations and the last; stop early once ``tolerance`` is met."""
    load = y.sum(-1)
    still = 0.0 if tolerance is None else validation.number("tolerance", tolerance, 0.0)
    # In float32 nothing settles closer than the rounding of the total.
    still = max(still, ROUNDING * float(np.finfo(y.dtype).eps) * float(np.abs(load).max(initial=1.0)))
    at, shifts = [0], [shift]
    moved = np.full(load.shape, np.inf)
    for iteration in range(1, iterations + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            new = move(shift)
        if not np.isfinite(new).all():
            raise ValueError(f"the rule diverged: shifts of iteration {iteration} are not finite; take smaller steps")
        moved, shift = np.abs(new - shift).max(-1), new
        stop = iteration == iterations or (tolerance is not None and bool((moved <= still).all()))
        if stop or iteration % every == 0:
            at.append(iteration)
            shifts.append(shift)
        if stop:
            break
    recorded = np.stack(shifts)
    price = rules.price_at(params, load + recorded.sum(-1), bounded=False)
    return Trace(np.array(at), recorded, price, moved <= still)


class LearnedProfile:
    """Plays where a learning rule ends, run anew on the stage game of every state.

    Args:
        env: the environment whose action encoding to use.
        rule: ``rule(params, private_information=y)``, one of this module's.
    """

    full_information = True

    def __init__(self, env: Communication, rule: Callable[..., Trace]) -> None:
        self.env = env
        self.rule = rule
        self.noise: Mapping[str, Draw] = {}

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, N, 2)`` in the states."""
        del observations, noise
        return self.env.encode(params, self.rule(params, private_information=state.private_information).shift[-1])


def _learned(rule: Callable[..., Trace], env: Communication, **options: Any) -> Policy:
    # Options are checked here, on the scenario's own state, not at the first act.
    rule(env.params, **options)
    return LearnedProfile(env, partial(rule, **options))


def _best_response(rule: Callable[..., Trace], env: Communication, **options: Any) -> Policy:
    """Best responses of the game the environment is: penalised if it charges the shared violation."""
    if env.shared_penalty:
        options = {"shared": "penalty", "penalty": env.shared_penalty} | options
    return _learned(rule, env, **options)


def _exact(name: str, env: Communication) -> Policy:
    return env.policy(name)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    "truthful": partial(_exact, "truthful"),
    "ve": partial(_exact, "ve"),
    "coordinated": partial(_exact, "coordinated"),
    "best_response": partial(_best_response, best_response_dynamics),
    "best_response_damped": partial(_best_response, damped_best_response_dynamics),
    "diffusion": partial(_learned, diffusion),
    "diffusion_preconditioned": partial(_learned, partial(diffusion, preconditioned=True, iterations=5000)),
    "random": UniformPolicy,
}
