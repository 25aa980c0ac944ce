"""Reference policies of the grid market: exact schedules, those of the distributed algorithm, a greedy rule, random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from baselines.grid_algorithm import TOLERANCE, algorithm1
from baselines.uniform import UniformPolicy
from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.core.contract import Draw, Noise, Policy
from p2penv.grid.env import Grid
from p2penv.grid.hours import Params, State, row_at
from p2penv.grid.rules import Schedules


class GreedyPolicy:
    """What a prosumer without foresight does: own power first, storage evens out, partners are asked before the grid.

    Storage takes what solar power is left over and gives what is lacking. A dispatchable unit covers what is lacking
    still as long as that is cheaper than the grid in the hour before, and produces for sale up to what contracts pay.
    What is left over is offered to all partners, and what is lacking asked of them, in equal parts. In a bilateral
    market buyers bid the last grid price, sellers ask their marginal cost.

    Args:
        env: the environment whose action encoding to use.
    """

    full_information = True

    def __init__(self, env: Grid) -> None:
        self.env = env
        self.noise: Mapping[str, Draw] = {}

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, N, A)``."""
        del observations, noise
        xp, market = namespace(state.charge), params.market
        none = 0.0 * state.charge
        hour = row_at(state.time, self.env.horizon)
        lacking = none + market.demand[hour] - market.solar[hour]
        charge, discharge = self.env.storage(params, state, clip(-lacking, -market.storage_power, market.storage_power))
        lacking = lacking + charge - discharge
        paid = row_sum(market.slots * market.trade_cost) / xp.maximum(row_sum(market.slots), none[0] + 1.0)
        price = state.price[:, None] + none
        sale = self._output(market, paid - market.tariff + none)
        dispatch = xp.maximum(clip(lacking, none, self._output(market, price)), sale)
        lacking = lacking - dispatch
        share = lacking / xp.maximum(row_sum(market.slots), none[0] + 1.0)
        trade = share[..., None] * market.slots
        marginal = market.dispatch_linear + 2.0 * market.dispatch_quadratic * dispatch
        limit = xp.where(lacking > 0.0, price, xp.where(dispatch > 0.0, marginal, none))
        flows = Schedules(dispatch, charge, discharge, none, none, trade)
        return self.env.encode(params, state.time, flows, limit)

    def _output(self, market: object, price: Array) -> Array:
        """Dispatch whose marginal cost, c + 2Q·p from (2), is a price."""
        rise = 2.0 * market.dispatch_quadratic + 0.0 * price  # type: ignore[attr-defined]
        wanted = safe_divide(price - market.dispatch_linear, rise)  # type: ignore[attr-defined]
        flat = namespace(price).where(price > market.dispatch_linear, market.dispatch_max + 0.0 * price, 0.0 * price)  # type: ignore[attr-defined]
        wanted = namespace(price).where(rise > 0.0, wanted, flat)
        return clip(wanted, 0.0 * price, market.dispatch_max + 0.0 * price)  # type: ignore[attr-defined]


def exact(env: Grid, name: str) -> Policy:
    """p2penv's own policy of that name."""
    return env.policy(name)


def distributed(env: Grid, tolerance: float = TOLERANCE, most: int = 20_000) -> Policy:
    """Schedules that the paper's Algorithm 1 ends with.

    Args:
        env: the environment.
        tolerance: as of ``algorithm1`` [cents/kWh, kW].
        most: iterations at most.

    Raises:
        RuntimeError: it has not converged.
    """
    run = algorithm1(env.scenario, tolerance, most)
    if not run.converged:
        raise RuntimeError(f"Algorithm 1 has not converged to {tolerance:g} after {run.iterations} iterations")
    return env.follow(run.schedules)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    **{name: partial(exact, name=name) for name in Grid.policies},
    "vgne_distributed": distributed,
    "greedy": GreedyPolicy,
    "random": UniformPolicy,
}
