"""Reference policies of the private energy market: truth with and without battery, liars, hindsight, random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from baselines.uniform import UniformPolicy
from p2penv.core import validation
from p2penv.core.arrays import Array, clip, namespace, safe_divide
from p2penv.core.contract import Policy
from p2penv.pem import rules, settlement
from p2penv.pem.env import PEM, Params, State, Window
from p2penv.pem.equilibrium import FIELDS, best_misreport
from p2penv.pem.policies import StackelbergPolicy, TruthfulPolicy
from p2penv.pem.rules import NO_MARKET
from p2penv.pem.settlement import Homes, Reports

Floats = NDArray[np.float64]
# Evenly spaced powers at which the linear program knows what charging pays; kinks are added.
KNOTS = 33


class PaperRulePolicy(StackelbergPolicy):
    """True reports, batteries at rest, and sellers' loads that answer the paper's price, (13) and (14).

    Where the environment itself lets loads answer, base loads: the paper's case is taken from them.
    """

    pricing = "paper"

    def loads(self, params: Params, state: State) -> Array:
        """Loads ``(E, n)`` [kW]."""
        if self.env.response == "best":
            return TruthfulPolicy.loads(self, params, state)
        return super().loads(params, state)


class GridOnlyPolicy(TruthfulPolicy):
    """True reports, batteries at rest, and loads as if there were no market: they answer buyback and retail prices."""

    def loads(self, params: Params, state: State) -> Array:
        """Loads ``(E, n)`` [kW]."""
        return answer(self.env, params, state, params.prices.buyback, params.prices.retail)


class BatteryPolicy(TruthfulPolicy):
    """True reports; batteries charge what their home has left over and discharge into what it lacks.

    Args:
        env: the environment.
        loads: ``"base"``, or ``"best"``: they answer what a kWh brings or costs if everybody played the base load.
    """

    def __init__(self, env: PEM, loads: Literal["base", "best"] = "base") -> None:
        super().__init__(env)
        self.answers = validation.choice("loads", loads, ("base", "best")) == "best"

    def loads(self, params: Params, state: State) -> Array:
        """Loads ``(E, n)`` [kW]."""
        if not self.answers:
            return super().loads(params, state)
        sell, buy = average_prices(self.env, params, state)
        return answer(self.env, params, state, sell[:, None], buy[:, None])

    def joint(self, params: Params, state: State) -> Array:
        """Actions ``(E, N, 5)``; the environment keeps batteries within what their charge allows."""
        actions = self.env.encode(params, state, self.loads(params, state))
        homes, _, _ = self.env.decode(params, state, actions)
        return _with_battery(actions, safe_divide(homes.nominal, params.power + 0.0 * homes.nominal))


def answer(env: PEM, params: Params, state: State, sell: Array, buy: Array) -> Array:
    """Best loads ``(E, n)`` of homes that sell at ``sell`` and buy at ``buy`` ≥ ``sell``, batteries at rest [kW].

    That is k/p − 1 at the price of the side they end up on, and all their generation where neither pays. How far loads
    can be moved is left to the encoding.
    """
    k, generation = env._row(params.preference, state.time), env._row(params.generation, state.time)
    return clip(generation, k / buy - 1.0, safe_divide(k, sell, np.inf) - 1.0)


def average_prices(env: PEM, params: Params, state: State) -> tuple[Array, Array]:
    """What sellers get and buyers pay for a kWh on average ``(E,)`` each in truthful play, batteries at rest."""
    policy = TruthfulPolicy(env)
    homes, reports, charging = env.decode(params, state, policy.joint(params, state))
    return paid_on_average(params, env.play(params, homes, reports, charging, None))


def paid_on_average(params: Params, window: Window) -> tuple[Array, Array]:
    """What sellers get and buyers pay for a kWh on average ``(E,)`` each in a window."""
    xp, price, prices = namespace(window.net), window.terms.price, params.prices
    fill, share = window.settled.fill, window.settled.share
    sell = share * price + (1.0 - share) * prices.buyback
    sell = xp.where(window.terms.case == NO_MARKET, window.terms.answered, sell)
    return sell, fill * price + (1.0 - fill) * prices.retail


def _with_battery(actions: Array, power: Array) -> Array:
    """Actions ``(E, N, 5)`` of homes and maybe a leader, with battery powers ``(E, n)`` cut to [−1, 1]."""
    xp = namespace(actions, power)
    one = 1.0 + 0.0 * power
    column = clip(power, -one, one)
    if actions.shape[1] > power.shape[1]:
        column = xp.concat([column, 0.0 * column[:, :1]], axis=1)
    return xp.concat([column[..., None], actions[..., 1:]], axis=-1)


class Trace(NamedTuple):
    """Recorded sweeps of best misreports; the first is truth."""

    scale: Floats  # (K, E, n, 3) reported preference, capacity and demand as multiples of the truth
    gain: Floats  # (K, E) largest gain a home found in the sweep [cents]; the first is NaN
    converged: NDArray[np.bool_]  # (E,) nobody gained more than the tolerance in the last sweep


def best_misreport_dynamics(
    env: PEM, state: State | None = None, sweeps: int = 5, tolerance: float = 1e-3, loads: Array | None = None
) -> Trace:
    """Sequential best misreports from truthful play in a window: one home after another, home 0 first.

    A best misreport is certified by branch and bound, about 10 ms to a second a home: for small markets. Nothing
    guarantees that sweeps converge: where the payoff jumps, liars chase each other.

    Args:
        env: the environment, whose pricing, response and caps are used.
        state: of E windows, the first window of a fresh day if not given.
        sweeps: most sweeps, ≥ 1.
        tolerance: > 0, a sweep in which nobody gains more ends it [cents].
        loads: ``(E, n)`` [kW], base loads if not given.

    Raises:
        ValueError: an argument out of range.
    """
    sweeps = validation.count("sweeps", sweeps)
    tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)
    params = env.params
    if state is None:
        state = env.initial(params, {name: np.zeros((1, *draw.shape)) for name, draw in env.initial_noise.items()}, 1)
    base = TruthfulPolicy(env).loads(params, state) if loads is None else loads
    homes, truth, _ = env.decode(params, state, env.encode(params, state, base))
    everybody = [np.broadcast_to(each, homes.nominal.shape) for each in homes]
    hours = float(params.hours)
    scale = np.ones((*homes.nominal.shape, len(Reports._fields)))
    recorded, found = [scale], [np.full(len(scale), np.nan)]
    for _ in range(sweeps):
        scale, largest = scale.copy(), np.zeros(len(scale))
        for window, agent in np.ndindex(*homes.nominal.shape):
            own = Homes(*(each[window] for each in everybody))
            told = Reports(*(scale[window, :, index] * each[window] for index, each in enumerate(truth)))
            found_scale, gain = _best(env, own, agent, told, tolerance / hours)
            gain *= hours
            largest[window] = max(float(largest[window]), gain)
            if gain > tolerance:
                for field, value in found_scale.items():
                    scale[window, agent, Reports._fields.index(field)] = value
        recorded.append(scale)
        found.append(largest)
        if (largest <= tolerance).all():
            break
    return Trace(np.stack(recorded), np.stack(found), found[-1] <= tolerance)


def _best(env: PEM, homes: Homes, agent: int, reports: Reports, tolerance: float) -> tuple[dict[str, float], float]:
    """Best report of a home as multiples of the truth, field by field, and its gain [cents/h]."""
    caps = dict(zip(Reports._fields, env.caps, strict=True))
    nominal = float(homes.nominal[agent])
    fields = tuple(field for field in FIELDS[nominal > 0.0] if caps[field] > 0.0)
    if nominal == 0.0 or not fields:
        return {}, 0.0
    cap = tuple(caps[field] for field in fields)
    best = best_misreport(homes, agent, reports, env.params.prices, fields, env.pricing, env.response, cap, tolerance)
    return dict(zip(fields, map(float, best.scale), strict=True)), best.gain


class LiarsPolicy(TruthfulPolicy):
    """Plays where best misreports end, worked out anew for every window; base loads, batteries at rest.

    With all caps 0 there is nothing to lie about. For small markets (:func:`best_misreport_dynamics`).

    Args:
        env: the environment.
        sweeps: most sweeps, ≥ 1.
        tolerance: > 0, of a gain worth a change [cents].
    """

    def __init__(self, env: PEM, sweeps: int = 2, tolerance: float = 1e-3) -> None:
        super().__init__(env)
        self.sweeps = validation.count("sweeps", sweeps)
        self.tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)

    def joint(self, params: Params, state: State) -> Array:
        """Actions ``(E, N, 5)``."""
        actions = np.array(super().joint(params, state))
        trace = best_misreport_dynamics(self.env, state, self.sweeps, self.tolerance)
        caps = np.array(self.env.caps)
        told = safe_divide(np.log(trace.scale[-1]), caps + 0.0 * trace.scale[-1])
        actions[:, : told.shape[1], 2:] = np.clip(told, -1.0, 1.0)
        return actions


class Path(NamedTuple):
    """What a kWh is worth to a home that takes prices as they are, ``(T,)`` each [cents/kWh]."""

    sell: Floats
    buy: Floats  # ≥ sell


class Schedule(NamedTuple):
    """One home's day by the linear program."""

    charging: Floats  # (T,) b [kW]
    load: Floats  # (T,) base load or, where the home sells, its answer [kW]
    charge: Floats  # (T + 1,) in the battery [kWh]
    value: float  # optimum of the program: reward of the day, what is left in the battery included [cents]


def price_path(env: PEM) -> Path:
    """Prices that truthful play gives in every window, batteries at rest: what sellers get, buyers pay on average."""
    times = np.arange(env.horizon, dtype=np.int32)
    noise = {name: np.zeros((env.horizon, *draw.shape)) for name, draw in env.initial_noise.items()}
    state = env.initial(env.params, noise, env.horizon)._replace(time=times)
    return Path(*map(np.asarray, average_prices(env, env.params, state)))


def payoff(env: PEM, agent: int, path: Path, charging: Floats, loads: Floats | None = None) -> tuple[Floats, Floats]:
    """Reward [cents] and load [kW] of a home in every window at fixed prices, ``(T, m)`` each; concave in b.

    Args:
        env: the environment.
        agent: home.
        path: the prices.
        charging: ``(T, m)`` b [kW].
        loads: ``(T, 1)`` or ``(T, m)``; the best within the home's flexibility if not given. Where the environment lets
            loads answer the price, a home that sells may use up all it has either way.
    """
    p, rows = env.params, slice(0, env.horizon)
    k, generation, base = (each[rows, agent, None] for each in (p.preference, p.generation, p.load))
    loss, flexibility = p.loss[agent], p.flexibility[agent]
    free = generation - charging
    at_sell, at_buy = (safe_divide(k, price[:, None], np.inf) - 1.0 - loss * charging for price in path)
    least, most = (1.0 - flexibility) * base, (1.0 + flexibility) * base
    best = env.response == "best"
    if loads is None:
        ceiling = np.maximum(most, free) if best else most
        load = np.clip(np.clip(free, at_buy, at_sell), least, ceiling)
    else:
        answered = np.clip(at_sell, np.minimum(least, free), free)
        load = np.where(best & (free > loads), answered, loads + 0.0 * charging)
    net = free - load
    traded = np.where(net > 0.0, path.sell[:, None], path.buy[:, None]) * net
    return float(p.hours) * settlement.reward(k, load + loss * charging, -traded), load


def hindsight(env: PEM, agent: int, path: Path | None = None, knots: int = KNOTS) -> Schedule:
    """Best battery powers of one home that knows the day and takes its prices as given: a linear program.

    What charging at b pays is concave in b; the program joins its values at so many powers, and at the kinks, by
    straight lines, and so falls short of the optimum by no more than these do. Solved by HiGHS.

    Args:
        env: the environment.
        agent: home; without battery there is nothing to plan.
        path: prices, those of truthful play if not given.
        knots: powers in [−power, power], ≥ 2.

    Raises:
        ValueError: no such home, or too few knots.
    """
    if isinstance(agent, bool) or not isinstance(agent, int | np.integer) or not 0 <= agent < env.scenario.size:
        raise ValueError(f"agent must be in 0..{env.scenario.size - 1}, got {agent!r}")
    if validation.count("knots", knots) < 2:
        raise ValueError(f"knots must be at least 2, got {knots!r}")
    path = price_path(env) if path is None else path
    p, horizon, hours = env.params, env.horizon, float(env.params.hours)
    powers = _powers(env, agent, path, knots)
    pays, _ = payoff(env, agent, path, powers)
    stored = rules.charge_change(powers, p.charge_efficiency[agent], p.discharge_efficiency[agent], hours)
    many = powers.shape[1]
    # Variables: the weight of every knot in every window, then the charge after every window.
    window = np.repeat(np.arange(horizon), many)
    weights = sparse.csr_array((np.ones(window.size), (window, np.arange(window.size))))
    flow = sparse.csr_array((-stored.ravel(), (window, np.arange(window.size))))
    steps = sparse.eye_array(horizon) - sparse.eye_array(horizon, k=-1)
    equal: Any = sparse.block_array([[weights, None], [flow, steps]], format="csr")
    start = float(p.initial_charge[agent] * p.capacity[agent])
    right = np.concatenate([np.ones(horizon), [start], np.zeros(horizon - 1)])
    value = np.zeros(horizon)
    value[-1] = p.charge_value
    bounds: Any = np.zeros((window.size + horizon, 2))
    bounds[: window.size, 1] = 1.0
    bounds[window.size :, 1] = p.capacity[agent]
    found: Any = optimize.linprog(
        -np.concatenate([pays.ravel(), value]), A_eq=equal, b_eq=right, bounds=bounds, method="highs"
    )
    if not found.success:
        raise RuntimeError(f"linear program of home_{agent} failed: {found.message}")
    charging = (found.x[: window.size].reshape(powers.shape) * powers).sum(axis=1)
    _, load = payoff(env, agent, path, charging[:, None])
    return Schedule(charging, load[:, 0], np.append(start, found.x[window.size :]), -float(found.fun))


def _powers(env: PEM, agent: int, path: Path, knots: int) -> Floats:
    """Powers ``(T, m)`` the program knows: evenly spaced ones, rest, and where the payoff has a kink."""
    p, rows = env.params, slice(0, env.horizon)
    k, generation, base = (each[rows, agent, None] for each in (p.preference, p.generation, p.load))
    least, most = ((1.0 + sign * p.flexibility[agent]) * base for sign in (-1.0, 1.0))
    power, loss = p.power[agent], p.loss[agent]
    even = np.broadcast_to(np.append(np.linspace(-power, power, knots), 0.0), (env.horizon, knots + 1))
    # The home's best load leaves it balanced between these, and meets the ends of its flexibility at those.
    sides = [(generation + 1.0 - safe_divide(k, price[:, None], np.inf)) / (1.0 - loss) for price in path]
    every = np.concatenate([even, *sides, generation - least, generation - most], axis=1)
    return np.sort(np.clip(every, -rules.discharge_limit(power, least, loss), power), axis=1)


def day_of_actions(env: PEM, schedules: Sequence[Schedule]) -> Floats:
    """Actions ``(T, N, 5)``, true reports, in which every home follows the schedule of its number."""
    times = np.arange(env.horizon, dtype=np.int32)
    noise = {name: np.zeros((env.horizon, *draw.shape)) for name, draw in env.initial_noise.items()}
    state = env.initial(env.params, noise, env.horizon)._replace(time=times)
    charging, load = (np.stack([getattr(each, name) for each in schedules], axis=1) for name in ("charging", "load"))
    actions = env.encode(env.params, state, load)
    return np.asarray(_with_battery(actions, safe_divide(charging, env.params.power + 0.0 * charging)))


class HindsightPolicy(TruthfulPolicy):
    """One home's battery and load by :func:`hindsight`; the others play base loads, batteries at rest.

    Args:
        env: the environment.
        agent: the home; the one with the largest battery if not given.
        knots: of the program.
    """

    def __init__(self, env: PEM, agent: int | None = None, knots: int = KNOTS) -> None:
        super().__init__(env)
        self.agent = int(env.params.capacity.argmax()) if agent is None else agent
        self.schedule = hindsight(env, self.agent, knots=knots)

    def joint(self, params: Params, state: State) -> Array:
        """Actions ``(E, N, 5)``."""
        xp, base = namespace(state.charge), self.loads(params, state)
        own = xp.asarray(np.arange(base.shape[1]) == self.agent)
        time = clip(state.time, 0 * state.time, 0 * state.time + self.env.horizon - 1)
        charging, load = (
            xp.take(xp.asarray(each, dtype=base.dtype), time, axis=0)[:, None] + 0.0 * base
            for each in (self.schedule.charging, self.schedule.load)
        )
        actions = self.env.encode(params, state, xp.where(own, load, base))
        return _with_battery(actions, xp.where(own, safe_divide(charging, params.power + 0.0 * base), 0.0 * base))


def _exact(name: str, env: PEM) -> Policy:
    return env.policy(name)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    "truthful": partial(_exact, "truthful"),
    "stackelberg": partial(_exact, "stackelberg"),
    "paper_rule": PaperRulePolicy,
    "grid_only": GridOnlyPolicy,
    "battery": BatteryPolicy,
    "battery_best_loads": partial(BatteryPolicy, loads="best"),
    "liars": LiarsPolicy,
    "hindsight": HindsightPolicy,
    "random": UniformPolicy,
}
