"""Distributed algorithms for the equilibrium of the grid market: the paper's Algorithm 1, and ADMM beside it.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Trans. Smart Grid 2022, Algorithm 1: prosumers exchange
trades with partners and purchases with a coordinator, the operator of the network takes part as a player of its own.

Steps are below what the row and column sums of the coupling allow; the printed bounds leave out that devices enter (13)
by charging and discharging separately, and the operator's own row sum. Money is in cents: in euros residuals look small
long before purchases are right. Both stop on the Karush-Kuhn-Tucker conditions of the equilibrium.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from baselines.grid_local import (
    CENTS,
    CHARGE,
    CURTAIL,
    DISCHARGE,
    DISPATCH,
    GRID,
    STATE,
    TRADES,
    Network,
    Prosumers,
    schedules_of,
)
from p2penv.core import validation
from p2penv.grid import blocks, rules
from p2penv.grid.program import Floats
from p2penv.grid.rules import Schedules
from p2penv.grid.scenario import Scenario

# Residuals at which devices and purchases are within 0.1 kW of the equilibrium in the default days.
TOLERANCE = 2e-4
# Part of the largest step that the bounds allow.
CAUTION = 0.98
# Devices by column, and what they add to net demand.
SIGNS = {CURTAIL: 1.0, CHARGE: 1.0, DISCHARGE: -1.0, DISPATCH: -1.0}
# Local programs are solved to this part of the residual of the iteration before, and at least to the second [kW].
INNER, COARSEST, FINEST = 0.005, 1e-2, 1e-7


class Trace(NamedTuple):
    """What each iteration ended with, ``(T,)`` each."""

    stationarity: Floats  # largest violation of the players' optimality conditions [cents/kWh]
    infeasibility: Floats  # largest violation of the shared constraints [kW]
    cost: Floats  # what all prosumers pay at contract prices [€]
    total: Floats  # purchases from the grid over the day [kWh]
    inner: Floats  # steps of the local programs
    seconds: Floats  # since the start


@dataclass(frozen=True, eq=False)
class Run:
    """Where a distributed algorithm ended."""

    schedules: Schedules  # (H, N), (6) and (8b) exact: trades halfway between what both sides want
    converged: bool
    iterations: int
    trace: Trace
    multipliers: dict[str, Floats]  # as of Equilibrium: "trade" (H, M); Algorithm 1 also "import" (H,), "nodal" (H, B)
    seconds: float


class Shared(NamedTuple):
    """What is coupled, as the players' decisions have it."""

    trade: Floats  # (H, N, K) ζ of (8b)
    total: Floats  # (H,) σ + b of (12)
    bus: Floats  # (H, B) what (13) misses
    source: Floats  # (H,) what (17b) misses


class Duals(NamedTuple):
    """Multipliers [cents/kW]."""

    trade: Floats  # (H, N, K) μ^tr, each side's own
    high: Floats  # (H,) ≥ 0 of the upper limit of (12)
    low: Floats  # (H,) ≥ 0 of the lower one
    bus: Floats  # (H, B) μ^pb of (13)
    source: Floats  # (H,) μ^tg of (17b)


class Steps(NamedTuple):
    """Step sizes of Algorithm 1."""

    prosumer: float  # α_i
    operator: float
    trade: float  # β^tr
    grid: float  # γ, of (12)
    supply: float  # β^tg, of (17b)
    bus: Floats  # (B,) β^pb_y, of (13)

    @classmethod
    def of(cls, scenario: Scenario) -> Steps:
        """The largest that the bounds allow: α < 1/(3 + N max d), β^tr < 1/2, and so on."""
        feeder, size = scenario.feeder, scenario.size
        slope = CENTS * scenario.step_hours * float(rules.at(scenario.grid_slope, None).max())
        there = scenario.params.location.sum(axis=0)
        lines = np.bincount(feeder.parent[feeder.fed], minlength=feeder.size) + (feeder.parent >= 0)
        return cls(
            CAUTION / (3.0 + size * slope),
            CAUTION / 2.0,
            CAUTION / 2.0,
            CAUTION / size,
            CAUTION / (size + 1.0),
            CAUTION / (1.0 + 4.0 * there + lines),
        )


def algorithm1(
    scenario: Scenario,
    tolerance: float = TOLERANCE,
    most: int = 20_000,
    steps: Steps | None = None,
) -> Run:
    """The paper's semi-decentralised Algorithm 1: a preconditioned proximal-point method.

    In each iteration, all from what the others last said: prosumers solve their own programs with a proximal term; the
    operator projects onto the limits of the network; pairs move μ^tr against 2ζ⁺ − ζ with ζ = p^tr_ij + p^tr_ji, the
    coordinator λ ≥ 0 of (12), the operator the multipliers of (13) and (17b).

    Args:
        scenario: the market; must be feasible.
        tolerance: > 0, both residuals of the trace are at most this [cents/kWh, kW] when it stops.
        most: iterations at most, ≥ 1.
        steps: step sizes; the largest allowed if not given.

    Raises:
        ValueError: an argument out of range.
    """
    tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)
    most = validation.count("most", most)
    steps = Steps.of(scenario) if steps is None else steps
    start = time.perf_counter()
    params, feeder = scenario.params, scenario.feeder
    hours, cents = scenario.hours, CENTS * scenario.step_hours
    slope = cents * rules.at(scenario.grid_slope, None)[:, None]
    passive, b = rules.at(params.passive_active, None), rules.at(params.passive_total, None)
    base = blocks.base_demand(scenario)
    local, network = Prosumers(scenario, 1.0 / steps.prosumer, 2.0), Network(scenario)
    # What reaches a bus by lines: from the one that feeds it, less what those it feeds carry on.
    reach = np.zeros((len(feeder.fed), feeder.size))
    reach[np.arange(len(reach)), feeder.fed] = 1.0
    reach[np.arange(len(reach)), feeder.parent[feeder.fed]] -= 1.0

    def shared(x: Floats, flow: Floats, supply: Floats) -> Shared:
        total = x[..., GRID].sum(axis=1) + b
        both = (x[..., TRADES:] + rules.exchange(params, x[..., TRADES:])) * params.slots
        drawn = passive + (base + _moved(x)) @ params.location - flow @ reach
        drawn[:, feeder.root] -= supply
        return Shared(both, total, drawn, total - supply)

    x = np.zeros((hours, scenario.size, TRADES + scenario.slots))
    # At the start everybody buys what it lacks, and the network carries what it must.
    x[..., GRID] = base if scenario.export else np.maximum(base, 0.0)
    flow = (passive + base @ params.location) @ params.downstream.T
    supply = flow.sum(axis=1, where=feeder.parent[feeder.fed] == feeder.root)
    said = shared(x, flow, supply)
    dual = Duals(0.0 * said.trade, 0.0 * b, 0.0 * b, 0.0 * said.bus, 0.0 * b)
    prices, rows, residual = _priced(scenario, dual), list[tuple[float, ...]](), 1.0
    for _ in range(most):
        accuracy = min(max(INNER * residual, FINEST), COARSEST)
        others = said.total[:, None] - x[..., GRID]
        linear = local.cost + prices - local.weight * x
        linear[..., GRID] += slope * others
        new, inner = local.solve(linear, accuracy)
        new_flow = network.project(flow + steps.operator * (dual.bus @ reach.T), accuracy)
        new_supply = supply + steps.operator * (dual.source + dual.bus[:, feeder.root])
        now = shared(new, new_flow, new_supply)
        ahead = Shared(*(2.0 * after - before for after, before in zip(now, said, strict=True)))
        moved = Duals(
            dual.trade + steps.trade * ahead.trade,
            np.maximum(dual.high + steps.grid * (ahead.total - scenario.import_max), 0.0),
            np.maximum(dual.low + steps.grid * (scenario.import_min - ahead.total), 0.0),
            dual.bus + steps.bus * ahead.bus,
            dual.source + steps.supply * ahead.source,
        )
        # What is missing to optimality of each player at the new point and prices.
        new_prices = _priced(scenario, moved)
        rest = new_prices - prices - local.weight * (new - x)
        rest[..., GRID] += slope * (now.total[:, None] - new[..., GRID] - others)
        change = moved.bus - dual.bus
        carried = change @ reach.T + (new_flow - flow) / steps.operator
        drawn = change[:, feeder.root] + moved.source - dual.source + (new_supply - supply) / steps.operator
        stationarity = max(float(np.abs(each).max()) for each in (rest, carried, drawn)) / scenario.step_hours
        missed = [np.abs(now.trade), np.abs(now.bus), np.abs(now.source), *_import_misses(scenario, now.total, moved)]
        infeasibility = max(float(each.max()) for each in missed)
        x, flow, supply, said, dual, prices = new, new_flow, new_supply, now, moved, new_prices
        residual = max(stationarity, infeasibility)
        rows.append((stationarity, infeasibility, *_sums(scenario, x), inner, time.perf_counter() - start))
        if residual <= tolerance:
            break
    # (17b) follows from the rest, so prices have one degree of freedom an hour: none is charged at the source.
    level = dual.bus[:, feeder.root, None]
    multipliers = {
        "trade": (_by_pair(scenario, dual.trade) + level) / cents,
        "import": (dual.high - dual.low) / cents,
        "nodal": (dual.bus - level) / cents,
    }
    return _run(scenario, x, residual <= tolerance, rows, multipliers)


def admm(scenario: Scenario, tolerance: float = TOLERANCE, most: int = 20_000, penalty: float | None = None) -> Run:
    """ADMM on the potential, which needs what makes the game a potential game; Algorithm 1 does not.

    Prosumers hold their decisions, the coordinator copies of them that satisfy (8b), (12), (13) and (16) and carry the
    common part of the potential. The two sides minimise the augmented Lagrangian in turn.

    Args:
        scenario: the market; must be feasible.
        tolerance: > 0, both residuals of the trace are at most this [cents/kWh, kW] when it stops.
        most: iterations at most, ≥ 1.
        penalty: > 0 on squared disagreement [cents/kW²h]; N times the mean slope d if not given.

    Raises:
        ValueError: an argument out of range.
    """
    tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)
    most = validation.count("most", most)
    start = time.perf_counter()
    params, size, cents = scenario.params, scenario.size, CENTS * scenario.step_hours
    slope, b = cents * rules.at(scenario.grid_slope, None), rules.at(params.passive_total, None)
    rho = (
        size * float(slope.mean())
        if penalty is None
        else scenario.step_hours * validation.number("penalty", penalty, 0.0, open_low=True)
    )
    local = Prosumers(scenario, rho, 1.0)
    # Net demands at buses with prosumers are the variables of the network; a kW more there is spread over all devices.
    at = np.flatnonzero(params.location.sum(axis=0))
    devices = len(SIGNS) * params.location.sum(axis=0)[at]
    base, _ = rules.bus_demand(params, blocks.base_demand(scenario))
    network = Network(scenario, params.downstream.T[at], base @ params.downstream.T, 1.0 / devices)
    place = params.location[:, at]
    x = np.zeros(local.cost.shape)
    copy, dual = np.zeros(x.shape), np.zeros(x.shape)
    rows, residual = list[tuple[float, ...]](), 1.0
    for _ in range(most):
        accuracy = min(max(INNER * residual, FINEST), COARSEST)
        x, inner = local.solve(local.cost + dual - local.weight * copy, accuracy)
        wish = x + dual / rho
        new = wish.copy()
        trade = wish[..., TRADES:]
        new[..., TRADES:] = 0.5 * (trade - rules.exchange(params, trade)) * params.slots
        bought = wish[..., GRID].sum(axis=1)
        total = (rho * bought / size - slope * b) / (slope + rho / size)
        total = np.minimum(np.maximum(total, scenario.import_min - b), scenario.import_max - b)
        new[..., GRID] += ((total - bought) / size)[:, None]
        moved = _moved(wish) @ place
        shift = (network.project(moved, accuracy) - moved) / devices
        for column, sign in SIGNS.items():
            new[..., column] += sign * (shift @ place.T)
        new[..., STATE] = x[..., STATE]
        dual = dual + local.weight * (x - new)
        stationarity = float(np.abs(local.weight * (new - copy)).max()) / scenario.step_hours
        infeasibility = float(np.abs(x - new).max())
        copy, residual = new, max(stationarity, infeasibility)
        rows.append((stationarity, infeasibility, *_sums(scenario, x), inner, time.perf_counter() - start))
        if residual <= tolerance:
            break
    # Of copies that must sum up: μ^tr is what both sides of a pair are charged.
    multipliers = {"trade": _by_pair(scenario, dual[..., TRADES:]) / cents}
    return _run(scenario, x, residual <= tolerance, rows, multipliers)


def _priced(scenario: Scenario, dual: Duals) -> Floats:
    """What the multipliers charge for each decision ``(H, N, 6 + K)`` [cents/kW]."""
    prices = np.zeros((*dual.trade.shape[:2], TRADES + scenario.slots))
    nodal = dual.bus[:, scenario.bus]
    for column, sign in SIGNS.items():
        prices[..., column] = sign * nodal
    prices[..., GRID] = (dual.high - dual.low + dual.source)[:, None]
    prices[..., TRADES:] = dual.trade
    return prices


def _moved(x: Floats) -> Floats:
    """What devices add to net demand ``(H, N)`` [kW]."""
    return np.sum([sign * x[..., column] for column, sign in SIGNS.items()], axis=0)


def _import_misses(scenario: Scenario, total: Floats, dual: Duals) -> list[Floats]:
    """By how much (12) is missed, and complementarity with it."""
    above, below = total - scenario.import_max, scenario.import_min - total
    return [above, below, np.minimum(dual.high, -above), np.minimum(dual.low, -below)]


def _sums(scenario: Scenario, x: Floats) -> tuple[float, float]:
    """Cost of everybody [€] and purchases [kWh] of decisions as they are."""
    day = Schedules(x[..., DISPATCH], x[..., CHARGE], x[..., DISCHARGE], x[..., CURTAIL], x[..., GRID], x[..., TRADES:])
    return float(rules.costs(scenario.params, day).sum()), scenario.step_hours * float(x[..., GRID].sum())


def _by_pair(scenario: Scenario, slots: Floats) -> Floats:
    """Values ``(H, M)`` of pairs out of slots ``(H, N, K)``, the mean of both sides."""
    full = scenario.params.slots > 0.0
    pairs = np.zeros((len(slots), scenario.pairs))
    for hour, row in enumerate(slots):
        pairs[hour] = 0.5 * np.bincount(scenario.pair[full], weights=row[full], minlength=scenario.pairs)
    return pairs


def _run(
    scenario: Scenario, x: Floats, converged: bool, rows: list[tuple[float, ...]], multipliers: dict[str, Floats]
) -> Run:
    trace = Trace(*np.array(rows).T)
    return Run(schedules_of(scenario, x), converged, len(rows), trace, multipliers, float(trace.seconds[-1]))
