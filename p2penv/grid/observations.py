"""What prosumers and a network operator see in the grid market; every feature in [−1, 1] by public scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, safe_divide
from p2penv.grid import rules

if TYPE_CHECKING:
    from p2penv.grid.hours import State
    from p2penv.grid.scenario import Scenario

# Scales of what is zero everywhere.
TINY = 1e-9


class Observer:
    """Features of n prosumers, and of an operator behind them if one plays.

    Args:
        scenario: whose largest values are the public scales.
        limit_price: scale of the grid's price [€/kWh].
        forecast: hours ahead, 0 for no forecasts.
        forecast_error: relative standard deviation of forecasts.
        operator: highest tariff [€/kWh] and fee multiplier; None if none plays.
    """

    def __init__(
        self,
        scenario: Scenario,
        limit_price: float,
        forecast: int,
        forecast_error: float,
        operator: tuple[float, float] | None,
    ) -> None:
        s, market = scenario, scenario.params
        self.limit_price, self.forecast, self.forecast_error = limit_price, forecast, forecast_error
        self.operator = operator
        self._demand, self._solar, self._slope, self._passive, self._imported = (
            1.0 / max(float(values.max()), TINY)
            for values in (s.demand, s.solar, s.grid_slope, s.passive_total, s.passive_total + s.demand.sum(axis=1))
        )
        dispatches = s.dispatch_max > 0.0
        own = {
            "dispatch_max": s.dispatch_max,
            "dispatch_linear": s.dispatch_linear * dispatches,
            "dispatch_quadratic": s.dispatch_quadratic * dispatches,
            "storage_power": s.storage_power,
            "storage_min": s.storage_min,
            "storage_max": s.storage_max,
            "resistance": np.diag(market.R)[s.bus],
        }
        columns = [values / max(float(values.max()), TINY) for values in own.values()]
        slots = market.trade_max
        columns += list((slots / max(float(slots.max(initial=0.0)), TINY)).T)
        context = np.stack(columns, axis=1)
        self.context: Array = context if operator is None else np.concatenate([context, 0.0 * context[:1]])
        each = range(slots.shape[1])
        names = [*own, *(f"trade_max_{slot}" for slot in each), "demand", "solar", "charge"]
        names += [*(f"proposal_{slot}" for slot in each), *(f"last_trade_{slot}" for slot in each)]
        names += ["slope", "passive", "sine", "cosine", "last_price", "last_import"]
        names += ["forecast_demand", "forecast_solar"] if forecast else []
        if operator is not None:
            names += ["tariff", "fee_factor"]
            names += [*(f"loading_{s.feeder.buses[bus]}" for bus in s.feeder.fed)]
            names += [*(f"voltage_{bus}" for bus in s.feeder.buses)]
        self.features: tuple[str, ...] = tuple(names)

    def observe(self, market: rules.Params, state: State, hour: Array, later: Array | None) -> tuple[Array, ...]:
        """Changing features ``(E, N)``.

        Args:
            market: parameters.
            state: of E episodes.
            hour: rows of the profiles ``(E,)`` or one for all.
            later: the same of the hour that is forecast, if one is.
        """
        xp = namespace(state.charge)
        none, alone = 0.0 * state.charge, 0.0 * state.price
        demand, solar = none + market.demand[hour], none + market.solar[hour]
        slope, passive = alone + market.grid_slope[hour], alone + market.passive_total[hour]
        angle = (2.0 * np.pi / 24.0) * market.step_hours * state.time
        slots = market.partner.shape[1]
        offered = rules.exchange(market, state.proposal) * market.slots
        traded = safe_divide(state.trade, market.trade_max + 0.0 * state.trade)
        own = [demand * self._demand, solar * self._solar, safe_divide(state.charge, market.storage_max + none)]
        own += [offered[..., slot] for slot in range(slots)] + [traded[..., slot] for slot in range(slots)]
        public = [slope * self._slope, passive * self._passive, xp.sin(angle), xp.cos(angle)]
        public += [2.0 * state.price / self.limit_price - 1.0, state.imported * self._imported]
        ahead: list[Array] = []
        if later is not None:
            profiles = ((market.demand, self._demand), (market.solar, self._solar))
            for index, (profile, scale) in enumerate(profiles):
                error = 1.0 + self.forecast_error * state.forecast[..., index]
                ahead.append(profile[later] * error * scale)
        one = none + 1.0
        if self.operator is None:
            every = (*own, *(value[:, None] + none for value in public), *ahead)
            return tuple(clip(value, -one, one) for value in every)
        # The operator's column: what is public, and its network instead of private data.
        zero = none[:, :1]
        seen = [value / most for value, most in zip((state.tariff, state.factor), self.operator, strict=True)]
        joint = [xp.concat([value, zero], axis=-1) for value in own]
        joint += [xp.concat([value[:, None] + none, value[:, None]], axis=-1) for value in public]
        joint += [xp.concat([value, zero], axis=-1) for value in ahead]
        joint += [xp.concat([value[:, None] + none, value[:, None]], axis=-1) for value in seen]
        for values in (state.loading, state.voltage):
            joint += [xp.concat([none, values[:, place : place + 1]], axis=-1) for place in range(values.shape[1])]
        unit = xp.concat([one, one[:, :1]], axis=-1)
        return tuple(clip(value, -unit, unit) for value in joint)
