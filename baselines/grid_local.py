"""What prosumers and the network operator solve in each iteration of a distributed algorithm of the grid market.

Prosumers' programs over the day are factored once and solved for all of them at once by operator splitting: the
equations (5) and (6) against bounds and the tariff. The operator projects onto the limits (16) of the network by the
same splitting (Douglas-Rachford on the product of flows and what they limit), only in hours in which they bind.
"""

from __future__ import annotations

import numpy as np

from p2penv.grid import blocks, rules
from p2penv.grid.program import Floats, Index
from p2penv.grid.rules import Schedules
from p2penv.grid.scenario import Scenario

# Columns of a prosumer's decisions of an hour; trades follow.
DISPATCH, CHARGE, DISCHARGE, CURTAIL, GRID, STATE, TRADES = range(7)
CENTS = 100.0
# Steps of the splitting go beyond the projections by this factor.
RELAXATION = 1.6
# Its penalty on the charge in kWh, relative to that on powers.
STORED = 0.1
# The operator's penalty relative to its weights: where limits bind, 0.3 took about twice as many steps.
EASY = 0.1


class Prosumers:
    """The local programs of all prosumers: minimise ½xᵀDx + gᵀx + fee·|trades| over each one's own limits.

    Arrays of decisions are ``(H, N, 6 + K)``, costs in cents.

    Args:
        scenario: the market.
        weight: proximal weight 1/α, added to the curvature of every decision but the charge.
        own: how often the prosumer's own purchase counts in its curvature d: 2 in J_i, 1 in the potential.
    """

    def __init__(self, scenario: Scenario, weight: float, own: float) -> None:
        s, hours, size = scenario, scenario.hours, scenario.size
        shape = (hours, size, TRADES + s.slots)
        cents = CENTS * s.step_hours
        stored = s.storage_power > 0.0
        self.low, self.high, self.curvature, self.cost = (np.zeros(shape) for _ in range(4))
        self.high[..., DISPATCH] = s.dispatch_max
        self.high[..., CHARGE] = self.high[..., DISCHARGE] = s.storage_power
        self.high[..., CURTAIL] = rules.at(s.solar, None)
        self.high[..., GRID] = np.inf
        self.low[..., GRID] = -np.inf if s.export else 0.0
        self.low[..., STATE] = np.where(stored, s.storage_min, 0.0)
        if s.final_charge:
            self.low[-1, :, STATE] = np.where(stored, s.initial_charge, 0.0)
        self.high[..., STATE] = np.where(stored, s.storage_max, 0.0)
        self.high[..., TRADES:] = s.params.trade_max
        self.low[..., TRADES:] = -s.params.trade_max
        self.curvature[..., DISPATCH] = 2.0 * cents * s.dispatch_quadratic
        self.curvature[..., CHARGE] = self.curvature[..., DISCHARGE] = 2.0 * cents * s.storage_cost
        self.curvature[..., GRID] = own * cents * rules.at(s.grid_slope, None)[:, None]
        self.cost[..., DISPATCH] = cents * s.dispatch_linear
        self.cost[..., TRADES:] = cents * s.params.trade_cost
        self.fee = cents * float(s.tariff)
        self.weight = np.where(np.arange(shape[-1]) == STATE, 0.0, weight)
        # Equations E x = e: (6) of all hours, then (5).
        self.signs = np.ones(shape[-1])
        self.signs[[CHARGE, CURTAIL]], self.signs[STATE] = -1.0, 0.0
        self.into, self.out = -s.step_hours * s.charge_efficiency, s.step_hours / s.discharge_efficiency
        self.kept = s.leakage
        start = np.zeros((hours, size))
        start[0] = np.where(stored, s.leakage * s.initial_charge, 0.0)
        self.target = np.concatenate([blocks.base_demand(s), start])
        # The splitting's own penalty: the proximal weight is the scale of most curvatures; charges are in kWh.
        self.penalty = np.where(np.arange(shape[-1]) == STATE, STORED, 1.0) * weight
        self.inverse = 1.0 / (self.curvature + self.weight + self.penalty)
        self.factor = np.linalg.inv(self._gram())
        self.dual, self.solution = np.zeros(shape), np.zeros(shape)

    def equations(self, x: Floats) -> Floats:
        """E x ``(2H, N)``."""
        stored = x[..., STATE] + self.into * x[..., CHARGE] + self.out * x[..., DISCHARGE]
        stored[1:] -= self.kept * x[:-1, :, STATE]
        return np.concatenate([x @ self.signs, stored])

    def transposed(self, y: Floats) -> Floats:
        """Eᵀ y ``(H, N, 6 + K)``."""
        balance, stored = np.split(y, 2)
        x = balance[..., None] * self.signs
        x[..., CHARGE] += self.into * stored
        x[..., DISCHARGE] += self.out * stored
        x[..., STATE] += stored
        x[:-1, :, STATE] -= self.kept * stored[1:]
        return x

    def _gram(self) -> Floats:
        """E D⁻¹ Eᵀ ``(N, 2H, 2H)``, column by column."""
        rows, size = self.target.shape
        columns = []
        for unit in np.eye(rows):
            image = self.inverse * self.transposed(np.repeat(unit[:, None], size, axis=1))
            columns.append(self.equations(image).T)
        return np.stack(columns, axis=-1)

    def solve(self, linear: Floats, tolerance: float, most: int = 500) -> tuple[Floats, int]:
        """Minimisers ``(H, N, 6 + K)`` for linear costs of that shape, from where the last call ended.

        Stops when what bounds and equations disagree about, and what changes, is below ``tolerance`` [kW], or after
        ``most`` steps; returns the steps too.
        """
        z, dual, fee, steps = self.solution, self.dual, self.fee / self.penalty[TRADES:], 0
        while steps < most:
            steps += 1
            free = self.inverse * (self.penalty * z - dual - linear)
            y = np.matmul(self.factor, (self.equations(free) - self.target).T[..., None])[..., 0].T
            x = free - self.inverse * self.transposed(y)
            ahead = RELAXATION * x + (1.0 - RELAXATION) * z
            point = ahead + dual / self.penalty
            trades = point[..., TRADES:]
            trades -= np.minimum(np.maximum(trades, -fee), fee)
            new = np.minimum(np.maximum(point, self.low), self.high)
            dual = dual + self.penalty * (ahead - new)
            change = max(float(np.abs(x - new).max()), float(np.abs(new - z).max()))
            z = new
            if change <= tolerance:
                break
        self.solution, self.dual = z, dual
        return z, steps


class Network:
    """Projection onto the limits (16) of the network, from flows by hour ``(H, n)``.

    Args:
        scenario: the market.
        basis: ``(n, L)`` what a unit of each variable adds to the flows [kW]; variables are flows if not given.
        offset: ``(H, L)`` flows where all variables are 0.
        weight: ``(n,)`` of the squared distance by variable.
    """

    def __init__(
        self,
        scenario: Scenario,
        basis: Floats | None = None,
        offset: Floats | float = 0.0,
        weight: Floats | float = 1.0,
    ) -> None:
        s, params = scenario, scenario.params
        lines = len(params.resistance)
        basis = np.eye(lines) if basis is None else basis
        self.lines, self.free = lines, not s.reactive
        down, r, x = params.downstream, params.resistance[:, None], params.reactance[:, None]
        drop, lag = (r * down)[:, s.feeder.fed], (x * down)[:, s.feeder.fed]
        _, reactive = rules.bus_demand(params, blocks.base_demand(s))
        q = reactive @ down.T * float(s.reactive)
        base = np.broadcast_to(np.asarray(offset, np.float64), q.shape)
        # Voltages and angles count by what a kW on their way moves on average.
        scale = 1.0 / float(np.mean(drop[drop > 0.0]))
        voltage, angle = 1.0 - base @ drop - q @ lag, q @ drop - base @ lag
        cap = np.where(self.free, np.inf, np.sqrt(np.maximum(s.line_limit**2 - q**2, 0.0)))
        self.low = np.concatenate([-cap - base, scale * (s.voltage_min - voltage), scale * (-s.angle_limit - angle)], 1)
        self.high = np.concatenate([cap - base, scale * (s.voltage_max - voltage), scale * (s.angle_limit - angle)], 1)
        matrix = np.concatenate([basis, -scale * basis @ drop, -scale * basis @ lag], axis=1)
        if self.free:  # reactive flows are variables too, and held by discs together with the active ones
            own = np.concatenate([np.zeros((lines, lines)), -scale * lag, scale * drop, np.eye(lines)], axis=1)
            matrix = np.concatenate([np.pad(matrix, ((0, 0), (0, lines))), own])
            self.low, self.high = (
                np.pad(each, ((0, 0), (0, lines)), constant_values=end)
                for each, end in ((self.low, -np.inf), (self.high, np.inf))
            )
        self.matrix, self.base, self.radius = matrix, base, s.line_limit
        weights = np.broadcast_to(np.asarray(weight, np.float64), (len(basis),))
        self.weight = np.append(weights, np.full(len(matrix) - len(basis), weights.mean()))
        self.penalty = EASY * float(self.weight.mean())
        self.inverse = np.linalg.inv(np.diag(self.weight) + self.penalty * matrix @ matrix.T)
        self.reactive = np.zeros((s.hours, len(matrix) - len(basis)))
        self.dual, self.last = (np.zeros((s.hours, matrix.shape[1])) for _ in range(2))
        self.steps = 0

    def _held(self, values: Floats, hours: Index) -> Floats:
        """Limited quantities moved to within their limits."""
        held = np.minimum(np.maximum(values, self.low[hours]), self.high[hours])
        if self.free:
            active, free = values[:, : self.lines] + self.base[hours], values[:, -self.lines :]
            shrink = np.minimum(self.radius / np.maximum(np.hypot(active, free), 1e-300), 1.0)
            held[:, : self.lines] = active * shrink - self.base[hours]
            held[:, -self.lines :] = free * shrink
        return held

    def project(self, target: Floats, tolerance: float = 1e-6, most: int = 500) -> Floats:
        """Nearest ``(H, n)`` to ``target`` of those within the limits, from where the last call ended.

        Stops when flows and limits disagree by less than ``tolerance`` [kW], or after ``most`` steps. Free reactive
        flows stay as near as they can to where they were.
        """
        width = target.shape[1]
        point = np.concatenate([target, self.reactive], axis=1)
        values = point @ self.matrix
        held = self._held(values, np.arange(len(point)))
        outside = (np.abs(held - values) > 1e-12 * (1.0 + np.abs(values))).any(axis=1)
        self.dual[~outside], self.last[~outside] = 0.0, values[~outside]
        hours = np.flatnonzero(outside)
        self.steps = 0
        if hours.size:
            goal, held, dual = self.weight * point[hours], self.last[hours], self.dual[hours]
            while self.steps < most:
                self.steps += 1
                x = (goal + (self.penalty * held - dual) @ self.matrix.T) @ self.inverse
                values = x @ self.matrix
                ahead = RELAXATION * values + (1.0 - RELAXATION) * held
                before, held = held, self._held(ahead + dual / self.penalty, hours)
                dual = dual + self.penalty * (ahead - held)
                if max(np.abs(values - held).max(), np.abs(held - before).max()) <= tolerance:
                    break
            point[hours], self.last[hours], self.dual[hours] = x, held, dual
        self.reactive = point[:, width:]
        return point[:, :width]


def schedules_of(scenario: Scenario, x: Floats) -> Schedules:
    """A day that can be played out of decisions ``(H, N, 6 + K)``: trades halfway between both sides, (6) exact."""
    params, trade = scenario.params, x[..., TRADES:]
    trade = 0.5 * (trade - rules.exchange(params, trade)) * params.slots
    devices = (x[..., DISPATCH], x[..., CHARGE], x[..., DISCHARGE], x[..., CURTAIL])
    return Schedules(*devices, rules.grid_exchange(params, *devices, trade), trade)
