"""Reference policies of the grid market: exact schedules of the day, played hour by hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from p2penv.core.arrays import Array, clip, namespace
from p2penv.core.contract import Draw, Noise
from p2penv.grid.rules import Schedules

if TYPE_CHECKING:
    from p2penv.grid.env import Grid
    from p2penv.grid.equilibrium import Kind
    from p2penv.grid.hours import Params, State

# Kinds of the solver by name of the policy.
KINDS: Mapping[str, Kind] = {"vgne": "nash", "wardrop": "wardrop", "social_optimum": "social", "no_trade": "no_trade"}


class SchedulePolicy:
    """Everybody follows a schedule of the day; an operator that plays leaves tariff and fees as they are.

    With ``trade_price="bilateral"`` prosumers ask and bid the mean of their contract prices, so that trades settle at
    contract prices where these are all the same.

    Args:
        env: the environment.
        schedules: flows ``(H, n)`` and trades ``(H, n, K)`` of the day [kW].
    """

    full_information = True

    def __init__(self, env: Grid, schedules: Schedules) -> None:
        self.env = env
        self.noise: Mapping[str, Draw] = {}
        market = env.params.market
        partners = np.maximum(market.slots.sum(axis=-1), 1.0)
        limit = (market.slots * market.trade_cost).sum(axis=-1) / partners + 0.0 * schedules.grid
        self.plan: NDArray[np.float64] = env.encode(env.params, np.arange(env.horizon), schedules, limit)
        """(H, N, A) actions hour by hour"""

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, N, A)`` of the hour."""
        del params, observations, noise
        xp = namespace(state.charge)
        plan = xp.asarray(self.plan, dtype=state.charge.dtype)
        last = 0 * state.time + (len(self.plan) - 1)
        return xp.take(plan, clip(state.time, 0 * state.time, last), axis=0)
