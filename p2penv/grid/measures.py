"""Measures of whole days of the grid market beside its exact schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from p2penv.core.arrays import Array
from p2penv.grid.policies import KINDS
from p2penv.grid.rules import Schedules

if TYPE_CHECKING:
    from p2penv.grid.env import Grid
    from p2penv.grid.equilibrium import Equilibrium
    from p2penv.grid.hours import Hour, Params, State

Floats = NDArray[np.float64]
# What a measure compares with, by the ending of its name.
BESIDE = {"_truthful": "no_trade", "_equilibrium": "vgne", "_coordinated": "social_optimum"}
# Limits that nothing reaches.
WIDE = {
    "line_limit": np.inf, "import_min": -1e12, "import_max": np.inf, "voltage_min": 1e-6, "voltage_max": 1e6,
    "angle_limit": 1e6,
}  # fmt: skip


class Measures:
    """Measures of an environment; what they compare with is worked out once.

    Args:
        env: the environment.
    """

    def __init__(self, env: Grid) -> None:
        self.env = env
        self._loose: dict[str, Equilibrium] = {}
        self._days: dict[str, dict[str, Floats]] = {}

    def assess(self, params: Params, state: State, actions: Array) -> dict[str, Array]:
        """Costs and gains ``(E, N)``, social costs ``(E,)``; see ``Grid.assess`` [€]."""
        from p2penv.grid.equilibrium import competitive_gain, exploitability

        env = self.env
        hours = [
            env.play(params, type(state)(*(leaf[hour] for leaf in state)), each) for hour, each in enumerate(actions)
        ]
        envs, size = actions.shape[1], env.scenario.size
        measures = self._costs(hours)
        for ending, name in BESIDE.items():
            measures |= {field + ending: np.repeat(cost, envs, axis=0) for field, cost in self._day(name).items()}
        names = ("exploitability", "competitive_gain", "grid_distance", "trade_distance")
        gain, competitive, grid, trade = (np.zeros((envs, size)) for _ in names)
        found = self._nearest("vgne")
        exact = found.schedules
        leaves = [np.stack(leaf, axis=1) for leaf in zip(*(hour.planned for hour in hours), strict=True)]
        for each in range(envs):
            day = Schedules(*(np.asarray(leaf[each], np.float64) for leaf in leaves))
            gain[each] = np.maximum(exploitability(env.scenario, day), 0.0)
            competitive[each] = competitive_gain(env.scenario, day, found.multipliers)
            grid[each] = abs(day.grid - exact.grid).mean(axis=0)
            trade[each] = abs(day.trade.sum(axis=-1) - exact.trade.sum(axis=-1)).mean(axis=0)
        columns = [gain, competitive, grid, trade]
        if env.led:
            more = [
                (env.tariff_max - hour.tariff) * env.scenario.step_hours * abs(hour.flows.trade).sum(axis=(1, 2))
                + (env.fee_max - hour.factor) * hour.push.sum(axis=1)
                for hour in hours
            ]
            last = [np.sum(more, axis=0), *(np.zeros(envs) for _ in columns[1:])]
            columns = [np.concatenate([own, more[:, None]], axis=1) for own, more in zip(columns, last, strict=True)]
        return measures | dict(zip(names, columns, strict=True)) | {"nearest": np.full(envs, bool(self._loose))}

    def _costs(self, hours: list[Hour]) -> dict[str, Array]:
        """Costs of days given hour by hour."""
        cost = np.sum([hour.cost for hour in hours], axis=0)
        social = cost.sum(axis=1)
        if self.env.led:
            cost = np.concatenate([cost, -np.sum([hour.operator for hour in hours], axis=0)[:, None]], axis=1)
        return {"cost": cost, "social_cost": social}

    def _day(self, name: str) -> dict[str, Floats]:
        """Costs ``(1, N)`` of a policy's day, worked out once."""
        if name not in self._days:
            env = self.env
            policy, hours = env.follow(self._nearest(name).schedules), []
            noise = {key: np.zeros((1, *draw.shape)) for key, draw in env.noise.items()}
            state = env.initial(env.params, noise, 1)
            for _ in range(env.horizon):
                actions = policy.act(env.params, None, state, {})
                hours.append(env.play(env.params, state, actions))
                state = env.step(env.params, state, actions, noise).state
            self._days[name] = self._costs(hours)
        return self._days[name]

    def _nearest(self, name: str) -> Equilibrium:
        """The solver's result, without limits of the network where no schedules keep them."""
        from p2penv.grid.equilibrium import InfeasibleError, variational_equilibrium

        try:
            return self.env.solution(name)
        except InfeasibleError:
            if name not in self._loose:
                self._loose[name] = variational_equilibrium(self.env.scenario.replace(**WIDE), KINDS[name])
            return self._loose[name]
