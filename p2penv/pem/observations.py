"""What homes and a leading buyer see in the private energy market; every feature in [−1, 1] by public scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, safe_divide

if TYPE_CHECKING:
    from p2penv.pem.env import Params, State
    from p2penv.pem.scenario import Scenario

# Of a home's own data, constant.
OWN = (
    "battery_capacity",
    "battery_power",
    "loss",
    "charge_efficiency",
    "discharge_efficiency",
    "flexibility",
)
PUBLIC = ("buyback", "low", "high")
CHANGING = ("generation", "base_load", "charge", "preference", "last_role", "last_fill")
MARKET = ("sine", "cosine", "last_price", "last_case")


class Observer:
    """Features of n homes, and of a leader behind them if there is one.

    Args:
        scenario: whose largest values are the public scales.
        led: whether there is a leader.
        forecast: windows ahead, 0 for no forecasts.
        forecast_error: relative standard deviation of forecasts.
    """

    def __init__(self, scenario: Scenario, led: bool, forecast: int, forecast_error: float) -> None:
        self.scenario, self.led, self.forecast, self.forecast_error = scenario, led, forecast, forecast_error
        profiles = (scenario.generation, scenario.load, scenario.preference)
        self._scales = [1.0 / max(float(profile.max()), 1e-9) for profile in profiles]
        own = [getattr(scenario, name) for name in OWN]
        columns = [safe_divide(values, values.max() + 0.0 * values) for values in own]
        columns += [np.full(scenario.size, getattr(scenario, name) / scenario.retail) for name in PUBLIC]
        context = np.stack(columns, axis=1)
        # The leader has no home of its own; prices it shares.
        leader = context[:1] * (np.arange(len(columns)) >= len(own))
        self.context: Array = np.concatenate([context, leader]) if led else context
        ahead = ("forecast_generation", "forecast_load") if forecast else ()
        self.features = (*OWN, *PUBLIC, *CHANGING, *MARKET, *ahead, *(("sellers", "buyers") if led else ()))

    def observe(self, params: Params, state: State, rows: Sequence[Array], ahead: Sequence[Array]) -> tuple[Array, ...]:
        """Changing features ``(E, N)``.

        Args:
            params: of the environment.
            state: of E episodes.
            rows: generation, load and preference ``(E, n)`` in the window to come.
            ahead: generation and load ``(E, n)`` in the one that is forecast, if any.
        """
        xp = namespace(state.charge)
        hour = self.scenario.start + params.hours * state.time
        angle = (2.0 * np.pi / 24.0) * hour
        prices = params.prices
        last = 2.0 * (state.price - prices.buyback) / (prices.retail - prices.buyback) - 1.0
        none = 0.0 * state.charge
        generation, load, preference = (row * scale for row, scale in zip(rows, self._scales, strict=True))
        charge = safe_divide(state.charge, params.capacity + none)
        home: list[Array] = [generation, load, charge, preference, state.role, state.fill]
        market = [xp.sin(angle), xp.cos(angle), last, state.case - 1.0 + 0.0 * last]
        forecasts = [
            row * (1.0 + self.forecast_error * state.forecast[..., index]) * self._scales[index]
            for index, row in enumerate(ahead)
        ]
        every = (*home, *(value[:, None] + none for value in market), *forecasts)
        columns = [clip(value, none - 1.0, none + 1.0) for value in every]
        if not self.led:
            return tuple(columns)
        # The leader's row: what is public, and shares of roles instead of private data.
        zero = none[:, :1]
        public = (state.scheduled, *market)
        leading = [*[zero] * (len(home) - 1), *(value[:, None] + zero for value in public), *[zero] * len(forecasts)]
        joint = [xp.concat([own, lead], axis=-1) for own, lead in zip(columns, leading, strict=True)]
        for sign in (1.0, -1.0):
            share = xp.mean(xp.where(sign * state.role > 0.0, none + 1.0, none), axis=-1)[:, None]
            joint.append(xp.concat([none, share], axis=-1))
        return tuple(joint)
