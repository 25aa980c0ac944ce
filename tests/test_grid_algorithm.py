"""Distributed algorithms of the grid market against the exact equilibrium, their parts against a modelling tool."""

import cvxpy as cp
import numpy as np
import pytest

from baselines.grid_algorithm import Steps, admm, algorithm1
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
)
from p2penv.grid import load_scenario, rules
from p2penv.grid.equilibrium import check_schedules, competitive_gain, variational_equilibrium

METHODS = {"algorithm1": algorithm1, "admm": admm}


def small(seed=0, hours=6, size=6, **fields):
    scenario = load_scenario("ieee37", prosumers=size, seed=seed, scale="paper", final_charge=True, **fields)
    rows = ("demand", "solar", "passive_active", "passive_reactive", "grid_slope")
    return scenario.replace(**{name: getattr(scenario, name)[8 : 9 + hours] for name in rows})


def with_limit(s, name, part=0.3):
    """A limit that binds: devices must make up for this part of what dispatch could."""
    found = variational_equilibrium(s).schedules
    net, spare = rules.net_demand(found), s.dispatch_max - found.dispatch
    spare *= np.minimum(0.9 * found.grid.sum(axis=1) / spare.sum(axis=1), 1.0)[:, None]
    before, after = (rules.state_of(s.params, each) for each in (net, net - spare))
    if name == "import":
        top = before.grid_active.max()
        return s.replace(import_max=float(top - part * (top - after.grid_active.max())))
    if name == "voltage":
        low = before.voltage.min()
        return s.replace(voltage_min=float(low + part * (after.voltage.min() - low)))
    flows = [np.hypot(each.active, each.reactive).max(axis=0) for each in (before, after)]
    line = int((flows[0] - flows[1]).argmax())
    limit = np.full(len(s.feeder.lines), np.inf)
    limit[line] = flows[0][line] - part * (flows[0][line] - flows[1][line])
    return s.replace(line_limit=limit)


def distance(run, exact):
    """Largest difference of what is unique: devices, purchases, net trades and their sum [kW]."""
    a, b = run.schedules, exact.schedules
    parts = [getattr(a, name) - getattr(b, name) for name in ("dispatch", "charge", "discharge", "grid")]
    parts += [(a.trade - b.trade).sum(axis=-1), (a.grid - b.grid).sum(axis=-1)]
    return max(float(np.abs(each).max()) for each in parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 2])
def test_equilibrium_is_reached(method, seed):
    s = small(seed)
    run, exact = METHODS[method](s), variational_equilibrium(s)
    assert run.converged
    assert distance(run, exact) < 0.1
    # (6) and (8b) hold to the last digit, so what the iteration still misses shows as a little export.
    exports = np.maximum(-run.schedules.grid, 0.0)
    assert exports.max() < 1e-2
    check_schedules(s.replace(export=True), run.schedules)
    assert rules.costs(s, run.schedules).sum() == pytest.approx(exact.cost.sum(), rel=1e-4)
    trace = run.trace
    assert all(len(each) == run.iterations for each in trace)
    assert (np.diff(trace.seconds) > 0.0).all()
    assert max(trace.stationarity[-1], trace.infeasibility[-1]) <= 2e-4 < trace.infeasibility[0]
    assert trace.cost[-1] == pytest.approx(exact.cost.sum(), rel=1e-4)
    assert trace.total[-1] == pytest.approx(exact.schedules.grid.sum(), rel=1e-3)
    # Prices of pairs that trade less than they may are unique.
    first = np.arange(s.size)[:, None] < s.partner
    inner = np.zeros((s.hours, s.pairs), bool)
    moving = (np.abs(exact.schedules.trade) > 0.05) & (np.abs(exact.schedules.trade) < s.params.trade_max - 0.05)
    for hour in range(s.hours):
        inner[hour, s.pair[first][moving[hour][first]]] = True
    assert inner.sum() >= 3
    np.testing.assert_allclose(run.multipliers["trade"][inner], exact.multipliers["trade"][inner], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("import", 2e-3), ("line", 2e-3), ("voltage", 2e-4)])
def test_binding_limits(name, tolerance):
    """Within 0.1 kW takes a residual of that times the least curvature, storage's 0.02 cents/kW²h, or less."""
    s = with_limit(small(1, hours=2), name)
    run, exact = algorithm1(s, tolerance), variational_equilibrium(s)
    key = {"import": "import", "line": "line_max", "voltage": "voltage_min"}[name]
    assert exact.multipliers[key].max() > 1e-4
    assert run.converged
    assert distance(run, exact) < 0.1
    for price in ("import", "nodal"):
        at = slice(None) if price == "import" else (slice(None), np.unique(s.bus))
        np.testing.assert_allclose(run.multipliers[price][at], exact.multipliers[price][at], atol=2e-4)
    # At these prices nobody wants to leave the exact equilibrium.
    assert competitive_gain(s, exact.schedules, run.multipliers).max() < 1e-3 * exact.cost.sum()
    other = admm(s, 1e-3)
    assert other.converged
    assert distance(other, exact) < 0.1


@pytest.mark.slow
def test_free_reactive_flows():
    s = with_limit(small(1, hours=1, reactive=False), "line")
    run, exact = algorithm1(s, 2e-2), variational_equilibrium(s)
    assert exact.multipliers["line_cone"].max() > 1e-4
    assert run.converged
    assert distance(run, exact) < 0.1


def test_steps_are_short_enough():
    """The preconditioner that makes the method a proximal-point method is positive definite, with little to spare."""
    s = small(0, hours=1, size=4)
    steps = Steps.of(s)
    size, buses, lines = s.size, s.feeder.size, len(s.feeder.fed)
    width = TRADES + s.slots
    trade = TRADES + np.arange(s.slots)
    columns = size * width + lines + 1
    rows, at = [], lambda i, column: i * width + column
    for i in range(size):
        for k in np.flatnonzero(s.partner[i] >= 0):
            row = np.zeros(columns)
            row[at(i, trade[k])] = 1.0
            row[at(s.partner[i, k], trade[s.reverse[i, k]])] = 1.0
            rows.append((steps.trade, row))
    bought = np.zeros(columns)
    bought[[at(i, GRID) for i in range(size)]] = 1.0
    supply = bought.copy()
    supply[-1] = -1.0
    rows += [(steps.grid, bought), (steps.supply, supply)]
    line_of = {int(bus): line for line, bus in enumerate(s.feeder.fed)}
    for y in range(buses):
        row = np.zeros(columns)
        for i in np.flatnonzero(s.bus == y):
            row[[at(i, CURTAIL), at(i, CHARGE)]] = 1.0
            row[[at(i, DISCHARGE), at(i, DISPATCH)]] = -1.0
        if y in line_of:
            row[size * width + line_of[y]] = -1.0
        for z in np.flatnonzero(s.feeder.parent == y):
            row[size * width + line_of[int(z)]] += 1.0
        row[-1] = -1.0 if y == s.feeder.root else 0.0
        rows.append((steps.bus[y], row))
    coupling = np.array([row for _, row in rows])
    primal = np.full(columns, 1.0 / steps.prosumer)
    primal[size * width :] = 1.0 / steps.operator
    # The price's slope couples purchases, which the others see one iteration late.
    slope = CENTS * s.grid_slope[0]
    late = np.diag(primal)
    for i in range(size):
        for j in range(size):
            late[at(i, GRID), at(j, GRID)] -= slope * (i != j)
    whole = np.block([[late, -coupling.T], [-coupling, np.diag([1.0 / step for step, _ in rows])]])
    assert np.linalg.eigvalsh(whole).min() > 0.0


def test_local_programs_are_the_modelling_tool_s():
    s = small(2, hours=8)
    local = Prosumers(s, 4.0, 2.0)
    rng = np.random.default_rng(0)
    linear = local.cost + rng.normal(0.0, 20.0, local.cost.shape)
    linear[..., GRID] += 10.0
    linear[..., STATE] = 0.0
    found, steps = local.solve(linear, 1e-9, 5000)
    assert 1 < steps < 5000
    again, few = local.solve(linear, 1e-9)
    assert few < steps / 2  # from where it ended
    np.testing.assert_allclose(again, found, atol=1e-7)
    for i in range(s.size):
        x = {name: cp.Variable(s.hours) for name in ("di", "ch", "ds", "cu", "mg")}
        state, trade = cp.Variable(s.hours + 1), cp.Variable((s.hours, s.slots))
        net = s.demand[:-1, i] - s.solar[:-1, i]
        limits = [each >= 0 for each in x.values()]
        limits += [x["di"] <= s.dispatch_max[i], x["ch"] <= s.storage_power[i], x["ds"] <= s.storage_power[i]]
        limits += [x["cu"] <= s.solar[:-1, i], cp.abs(trade) <= np.tile(s.params.trade_max[i], (s.hours, 1))]
        limits += [x["di"] + x["ds"] + x["mg"] + cp.sum(trade, axis=1) == net + x["cu"] + x["ch"]]
        if s.storage_power[i] > 0.0:
            stored = s.charge_efficiency[i] * x["ch"] - x["ds"] / s.discharge_efficiency[i]
            limits += [state[1:] == s.leakage[i] * state[:-1] + s.step_hours * stored, state[0] == s.initial_charge[i]]
            limits += [state >= s.storage_min[i], state <= s.storage_max[i], state[-1] >= s.initial_charge[i]]
        cost = CENTS * (s.dispatch_quadratic[i] * cp.sum_squares(x["di"]) + s.tariff * cp.sum(cp.abs(trade)))
        cost += CENTS * s.storage_cost[i] * (cp.sum_squares(x["ch"]) + cp.sum_squares(x["ds"]))
        cost += CENTS * s.grid_slope[:-1] @ x["mg"] ** 2
        columns = {"di": DISPATCH, "ch": CHARGE, "ds": DISCHARGE, "cu": CURTAIL, "mg": GRID}
        for name, variable in x.items():
            cost += 2.0 * cp.sum_squares(variable) + linear[:, i, columns[name]] @ variable
        cost += 2.0 * cp.sum_squares(trade) + cp.sum(cp.multiply(linear[:, i, TRADES:], trade))
        problem = cp.Problem(cp.Minimize(cost), limits)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        for name, variable in x.items():
            np.testing.assert_allclose(found[:, i, columns[name]], variable.value, atol=1e-4)
        np.testing.assert_allclose(found[:, i, TRADES:], trade.value, atol=1e-4)


@pytest.mark.parametrize("reactive", [True, False])
def test_projection_is_the_modelling_tool_s(reactive):
    s = small(1, hours=3, reactive=reactive)
    flows = rules.state_of(s.params, rules.net_demand(variational_equilibrium(s).schedules))
    # Limits that the flows exceed, and that can be kept.
    apparent = np.hypot(flows.active, flows.reactive)
    limit = np.where(np.arange(apparent.shape[1]) % 5 == 0, 0.95 * apparent.max(axis=0) + 1.0, np.inf)
    s = s.replace(line_limit=limit, voltage_min=float(flows.voltage.min() + 5e-4), angle_limit=0.007)
    network = Network(s)
    target = flows.active + np.random.default_rng(0).normal(0.0, 10.0, flows.active.shape)
    found = network.project(target, 1e-9, 100_000)
    assert np.abs(found - target).max() > 1.0
    down, r, x = s.params.downstream, s.params.resistance, s.params.reactance
    for hour in range(s.hours):
        p, q = cp.Variable(len(r)), cp.Variable(len(r))
        limits = [q == flows.reactive[hour]] if reactive else []
        limits += [cp.norm(cp.vstack([p[k], q[k]])) <= limit[k] for k in np.flatnonzero(np.isfinite(limit))]
        # Per mille and mrad: in p.u. beside kW rows differ by 1e7, and Clarabel gives up.
        volt = 1e3 * (1.0 - down.T @ (cp.multiply(r, p) + cp.multiply(x, q)))
        angle = 1e3 * (down.T @ (cp.multiply(r, q) - cp.multiply(x, p)))
        limits += [volt >= 1e3 * s.voltage_min, volt <= 1e3 * s.voltage_max, cp.abs(angle) <= 1e3 * s.angle_limit]
        cost = cp.sum_squares(p - target[hour]) + (0.0 if reactive else cp.sum_squares(q))
        cp.Problem(cp.Minimize(cost), limits).solve(solver="CLARABEL")
        np.testing.assert_allclose(found[hour], p.value, atol=1e-2)


def test_it_says_when_it_did_not_converge():
    run = algorithm1(small(0), most=5)
    assert not run.converged
    assert run.iterations == 5
    check_schedules(small(0), run.schedules)


def test_bad_input_is_refused():
    s = small(0)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="tolerance must be"):
            method(s, tolerance=0.0)
        with pytest.raises(ValueError, match="most must be a whole number"):
            method(s, most=0)
    with pytest.raises(ValueError, match="penalty must be"):
        admm(s, penalty=-1.0)
