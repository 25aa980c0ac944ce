"""Equilibria and best responses of the grid market against an independent formulation in a modelling tool."""

import sys
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest

from p2penv.grid import Feeder, Scenario, load_scenario, rules
from p2penv.grid.equilibrium import (
    InfeasibleError,
    best_response,
    bill,
    check_schedules,
    competitive_gain,
    exploitability,
    potential_program,
    shadow_cost,
    variational_equilibrium,
)
from p2penv.grid.program import MissingSolverError, kkt_residual
from p2penv.grid.rules import Schedules

SEEDS = range(5)
KINDS = ("nash", "wardrop", "social", "no_trade")


def small(seed=0, hours=24, **fields):
    """Eight businesses and farms; ``hours`` cuts the day short."""
    fields = {"prosumers": 8, "scale": "paper", "final_charge": True, **fields}
    scenario = load_scenario("ieee37", seed=seed, **fields)
    rows = ("demand", "solar", "passive_active", "passive_reactive", "grid_slope")
    start = 8 if hours < 12 else 0
    return scenario.replace(**{name: getattr(scenario, name)[start : start + hours + 1] for name in rows})


def model(s, kind="nash", player=None, others=None):
    """The market from the paper's equations: both sides of a trade, phase angles, admittances, per unit.

    With ``player`` only its decisions are free; those of ``others`` are as they were played.
    """
    hours, size, pairs = s.hours, s.size, len(s.edges)
    di, ch, ds, cu, mg = (cp.Variable((hours, size)) for _ in range(5))
    charge = cp.Variable((hours + 1, size))
    there, back = cp.Variable((hours, pairs)), cp.Variable((hours, pairs))  # p^tr_ij and p^tr_ji
    demand, solar = s.demand[:hours], s.solar[:hours]
    passive, reactive = s.passive_active[:hours], s.passive_reactive[:hours]
    b, d = passive.sum(axis=1), s.grid_slope[:hours]
    limits = SimpleNamespace(reciprocity=there + back == 0)
    free_to = list(range(size)) if player is None else [player]

    def of(each):  # columns of those who decide
        return each[:, free_to]

    def wide(limit):
        return np.tile(limit[free_to], (hours, 1))

    private = [of(each) >= 0 for each in (di, ch, ds, cu)] + [
        of(di) <= wide(s.dispatch_max),
        of(cu) <= solar[:, free_to],
    ]
    private += [of(each) <= wide(s.storage_power) for each in (ch, ds)]
    private += [charge[0] == s.initial_charge]
    private += [
        charge[1:, i]
        == s.leakage[i] * charge[:-1, i]
        + s.step_hours * (s.charge_efficiency[i] * ch[:, i] - ds[:, i] / s.discharge_efficiency[i])
        for i in range(size)
    ]
    private += [of(charge)[1:] >= wide(s.storage_min), of(charge)[1:] <= wide(s.storage_max)]
    private += [charge[hours, free_to] >= s.initial_charge[free_to]] if s.final_charge else []
    private += [] if s.export else [of(mg) >= 0]
    if player is None:
        private += [cp.abs(each) <= np.tile(s.trade_max, (hours, 1)) for each in (there, back)]
    into = np.zeros((2, pairs, size))
    for m, (i, j) in enumerate(s.edges):
        into[0, m, i] = into[1, m, j] = 1.0
    balance = [di + ds - ch + mg + there @ into[0] + back @ into[1] == demand - solar + cu]  # (6)
    private += balance
    if kind == "no_trade":
        private += [there == 0]
    sigma = cp.sum(mg, axis=1)
    shared = [sigma + b >= s.import_min] + ([sigma + b <= s.import_max] if np.isfinite(s.import_max) else [])  # (12)
    f = s.feeder
    root = f.buses.index(f.source)
    theta, volt = cp.Variable((hours, len(f.buses))), cp.Variable((hours, len(f.buses)))
    place = np.zeros((size, len(f.buses)))
    place[np.arange(size), s.bus] = 1.0
    ratio = np.sqrt(1.0 - s.power_factor**2) / s.power_factor
    child = [y for y in range(len(f.buses)) if y != root]
    admittance = 1.0 / (f.resistance + 1j * f.reactance)
    kva = f.base_kva
    active, free = [], []
    for line, y in enumerate(child):  # (15), B < 0
        turned, dropped = theta[:, y] - theta[:, f.parent[y]], volt[:, y] - volt[:, f.parent[y]]
        g, susceptance = admittance[line].real, admittance[line].imag
        active.append(kva * (susceptance * turned - g * dropped))
        free.append(kva * (g * turned + susceptance * dropped))
    net = (demand - solar + cu + ch - ds - di) @ place + passive
    network = [theta[:, root] == 0, volt[:, root] == 1]
    for line, y in enumerate(child):
        below = [k for k, z in enumerate(child) if f.parent[z] == y]
        network.append(net[:, y] == active[line] - sum(active[k] for k in below))  # (13)
        if s.reactive:
            load = reactive[:, y] + ratio * (demand @ place)[:, y]
            network.append(load == free[line] - sum(free[k] for k in below))
        if np.isfinite(s.line_limit[line]):
            flow = cp.vstack([active[line], free[line]])
            network.append(cp.norm(flow, axis=0) <= s.line_limit[line])  # (16a)
    network += [volt >= s.voltage_min, volt <= s.voltage_max, cp.abs(theta) <= s.angle_limit]
    step = s.step_hours
    devices = cp.multiply(np.tile(s.dispatch_quadratic, (hours, 1)), di**2) + di @ np.diag(s.dispatch_linear)
    devices += cp.multiply(np.tile(s.storage_cost, (hours, 1)), ch**2 + ds**2)
    trade = cp.sum(there @ s.trade_cost[:, 0] + back @ s.trade_cost[:, 1])
    trade += s.tariff * (cp.sum(cp.abs(there)) + cp.sum(cp.abs(back)))
    if player is None:
        own = {"nash": 0.5, "no_trade": 0.5}.get(kind, 0.0)
        whole = 1.0 if kind == "social" else 0.5
        grid = d @ (whole * sigma**2 + cp.multiply(b, sigma) + own * cp.sum(mg**2, axis=1))
        cost = step * (cp.sum(devices) + trade + grid)
    else:
        rest = others.grid.sum(axis=1) - others.grid[:, player]
        i = player
        cost = step * (cp.sum(devices[:, i]) + d @ (mg[:, i] ** 2 + cp.multiply(rest + b, mg[:, i])))
        fixed = np.arange(size) != i
        for variable, played in ((di, others.dispatch), (ch, others.charge), (ds, others.discharge)):
            private.append(variable[:, fixed] == played[:, fixed])
        private.append(cu[:, fixed] == others.curtail[:, fixed])
        for m, (k, j) in enumerate(s.edges):
            slot = int(np.flatnonzero(s.partner[k] == j)[0])
            private.append(there[:, m] == others.trade[:, k, slot])
    problem = cp.Problem(cp.Minimize(cost), [limits.reciprocity, *private, *shared, *network])
    return SimpleNamespace(
        problem=problem, dispatch=di, charge=ch, discharge=ds, curtail=cu, grid=mg, there=there, balance=balance[0],
        reciprocity=limits.reciprocity, voltage=volt, trade=trade,
    )  # fmt: skip


def solved(m):
    m.problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return m


def assert_same(s, found, m, kind, rel=1e-5):
    value = m.problem.value
    assert found.potential == pytest.approx(value, rel=rel)
    scale = np.abs(m.grid.value).max()
    for name in ("dispatch", "charge", "discharge", "grid"):
        expected = getattr(m, name).value
        if name == "grid" and kind in ("wardrop", "social"):  # who buys is not unique, how much all buy is
            np.testing.assert_allclose(found.schedules.grid.sum(1), expected.sum(1), atol=rel * scale)
            continue
        tolerance = 1e-4 if name == "dispatch" else 1e-3  # costs of storage and of who buys when are nearly flat
        np.testing.assert_allclose(getattr(found.schedules, name), expected, atol=tolerance * scale)
    paid = rules.trading_cost(s.params, found.schedules.trade).sum()
    assert paid == pytest.approx(s.step_hours * m.trade.value, rel=1e-4, abs=1e-4)
    assert found.cost.sum() == pytest.approx(total_cost(s, m), rel=rel)


def total_cost(s, m):
    di, ch, ds, mg = (np.asarray(getattr(m, name).value) for name in ("dispatch", "charge", "discharge", "grid"))
    sigma = mg.sum(axis=1)
    grid = s.grid_slope[: s.hours] * (sigma + s.passive_active[: s.hours].sum(axis=1)) * sigma
    devices = s.dispatch_quadratic * di**2 + s.dispatch_linear * di + s.storage_cost * (ch**2 + ds**2)
    return s.step_hours * (devices.sum() + grid.sum() + m.trade.value)


def tightened(s, *names, part=0.3, kind="nash"):
    """The scenario with limits that bind: dispatch must make up for this part of what it can."""
    found = variational_equilibrium(s, kind).schedules
    net, spare = rules.net_demand(found), s.dispatch_max - found.dispatch
    # Nobody exports, so all prosumers together can save no more than they buy.
    spare *= np.minimum(0.9 * found.grid.sum(axis=1) / spare.sum(axis=1), 1.0)[:, None]
    before, after = (rules.state_of(s.params, each) for each in (net, net - spare))
    fields = {}
    if "import" in names:
        top = before.grid_active.max()
        fields["import_max"] = float(top - part * (top - after.grid_active.max()))
    if "voltage" in names:
        low = before.voltage.min()
        fields["voltage_min"] = float(low + part * (after.voltage.min() - low))
    if "line" in names:
        flows = [np.hypot(each.active, each.reactive).max(axis=0) for each in (before, after)]
        line = int((flows[0] - flows[1]).argmax())
        limit = np.full(len(s.feeder.lines), np.inf)
        limit[line] = flows[0][line] - part * (flows[0][line] - flows[1][line])
        fields["line_limit"] = limit
    return s.replace(**fields)


# Against the independent formulation.


@pytest.mark.parametrize("seed", SEEDS)
def test_slack_limits(seed):
    s = small(seed)
    found = variational_equilibrium(s)
    assert found.residual <= 1e-6
    assert all(np.abs(found.multipliers[name]).max() < 1e-6 for name in ("import", "nodal", "line_max", "voltage_min"))
    assert_same(s, found, solved(model(s)), "nash")


@pytest.mark.parametrize("kind", KINDS)
def test_another_solver_finds_the_same_costs(kind):
    """OSQP, by operator splitting, where Clarabel and the tests above go by interior points."""
    s = small(1, hours=6, line_limit=np.inf)
    m = model(s, kind)
    m.problem.solve(solver="OSQP", eps_abs=1e-7, eps_rel=1e-7, max_iter=200_000)
    assert m.problem.status == "optimal"
    found = variational_equilibrium(s, kind)
    assert found.potential == pytest.approx(m.problem.value, rel=1e-5)
    np.testing.assert_allclose(found.schedules.grid.sum(axis=1), m.grid.value.sum(axis=1), atol=0.05)


@pytest.mark.parametrize("names", [("import",), ("voltage",), ("line",)])
@pytest.mark.parametrize("seed", SEEDS)
def test_binding_limits(seed, names):
    s = tightened(small(seed, hours=8), *names)
    found = variational_equilibrium(s)
    assert found.residual <= 1e-6
    price = {"import": "import", "voltage": "voltage_min", "line": "line_max"}[names[0]]
    assert found.multipliers[price].max() > 1e-4
    after = rules.state_of(s.params, rules.net_demand(found.schedules))
    for excess in (after.line_excess, after.voltage_excess, after.import_excess):
        assert excess.max() < 1e-6
    assert_same(s, found, solved(model(s)), "nash")
    assert exploitability(s, found.schedules).max() <= 1e-6 * found.cost.sum()
    assert competitive_gain(s, found.schedules, found.multipliers).max() <= 1e-6 * found.cost.sum()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_other_kinds(kind):
    s = small(1, hours=8, trade_cost=0.08)
    cost = np.broadcast_to(s.trade_cost, (s.pairs, 2)) + np.array([0.0, 0.004])  # the two of a pair see different costs
    s = s.replace(trade_cost=cost)
    found = variational_equilibrium(s, kind)
    assert found.residual <= 1e-6
    assert_same(s, found, solved(model(s, kind)), kind)


@pytest.mark.parametrize("seed", [0, 3])
def test_free_reactive_flows(seed):
    """As in the paper: (16a) is a cone, and voltages hardly bind."""
    s = small(seed, hours=6, reactive=False)
    loose = variational_equilibrium(s)
    s = tightened(s, "line")
    found = variational_equilibrium(s)
    assert found.residual <= 1e-6
    assert found.multipliers["line_cone"].max() > 1e-5
    assert found.potential > loose.potential
    assert_same(s, found, solved(model(s)), "nash")
    assert exploitability(s, found.schedules).max() <= 1e-6 * found.cost.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_infeasible_days(seed):
    s = small(seed, hours=6)
    least = s.passive_active[:6].sum(axis=1).max() - 100.0
    for fields, words in (
        ({"import_max": float(least)}, r"the largest import \(12\) in hour \d by"),
        ({"voltage_min": 0.999}, r"the least voltage \(16\) at bus \d+ in hour \d by .* p\.u\."),
        ({"line_limit": np.where(np.arange(len(s.feeder.lines)) == 0, 10.0, np.inf)}, r"\(16a\) of line 799-701 in"),
    ):
        tight = s.replace(**fields)
        with pytest.raises(InfeasibleError, match=words):
            variational_equilibrium(tight)
        m = model(tight)
        m.problem.solve(solver="CLARABEL")
        assert m.problem.status in ("infeasible", "infeasible_inaccurate")


def test_multipliers_are_the_modelling_tool_s():
    s = small(2, hours=8)
    found, m = variational_equilibrium(s), solved(model(s))
    sign = np.sign(np.vdot(m.balance.dual_value, found.multipliers["balance"]))
    np.testing.assert_allclose(sign * m.balance.dual_value, found.multipliers["balance"], atol=1e-5)
    # μ^tr is unique where a pair trades less than its limit.
    traded = np.abs(m.there.value)
    inner = (traded > 1e-3) & (traded < s.trade_max - 1e-3)
    assert inner.sum() > 5
    expected = -sign * m.reciprocity.dual_value
    np.testing.assert_allclose(np.abs(expected[inner]), np.abs(found.multipliers["trade"][inner]), atol=1e-5)


def test_multipliers_are_derivatives_of_the_potential():
    s = small(1, hours=6)
    peak = rules.state_of(s.params, rules.net_demand(variational_equilibrium(s).schedules)).grid_active.max()
    s = s.replace(import_max=float(peak - 2.0))
    found = variational_equilibrium(s)

    def value(**fields):
        return variational_equilibrium(s.replace(**fields)).potential

    eps = 1e-2
    slope = (value(import_max=s.import_max - eps) - value(import_max=s.import_max + eps)) / (2 * eps)
    assert found.multipliers["import"].sum() == pytest.approx(slope, rel=1e-3)
    more, less = (np.array(s.demand) for _ in range(2))
    hour = int(found.multipliers["import"].argmax())
    more[hour, 4] += eps
    less[hour, 4] -= eps
    slope = (value(demand=more) - value(demand=less)) / (2 * eps)
    assert found.multipliers["balance"][hour, 4] == pytest.approx(slope, rel=1e-3)
    # A stored kWh: more charge at the start is worth its multiplier, with what leaks taken off.
    k = int(np.flatnonzero(s.storage_power > 0)[0])
    loose = s.replace(final_charge=False)
    start = [np.array(s.initial_charge) for _ in range(2)]
    start[0][k] += eps
    start[1][k] -= eps
    low, high = (variational_equilibrium(loose.replace(initial_charge=each)).potential for each in start)
    worth = variational_equilibrium(loose).multipliers["state"][0, k]
    assert worth * s.leakage[k] == pytest.approx((high - low) / (2 * eps), rel=1e-3, abs=1e-5)


# Best responses and exploitability.


def random_schedules(s, seed):
    """A feasible day: random devices and trades, the rest from the grid."""
    rng = np.random.default_rng(seed)
    shape = (s.hours, s.size)
    dispatch, curtail = rng.random(shape) * s.dispatch_max, rng.random(shape) * s.solar[: s.hours]
    power, state = np.zeros((2, *shape)), s.initial_charge
    for hour in range(s.hours):
        low = s.storage_min
        if s.final_charge:  # what is missing can be charged in time
            gain = s.charge_efficiency * s.storage_power * s.step_hours
            low = s.initial_charge.copy()
            for _ in range(s.hours - hour - 1):
                low = (low - gain) / s.leakage
            low = np.maximum(low, s.storage_min)
        wish = rng.uniform(-1, 1, s.size) * s.storage_power
        power[:, hour] = rules.storage_split(s.params._replace(storage_min=low), state, wish)
        state = rules.next_charge(s.params, state, *power[:, hour])
    trade = np.zeros((*shape, s.slots))
    for m, (i, j) in enumerate(s.edges):
        amount = rng.uniform(-0.05, 0.05, s.hours) * s.trade_max[m]
        a, b = (int(np.flatnonzero(s.partner[p] == q)[0]) for p, q in ((i, j), (j, i)))
        trade[:, i, a], trade[:, j, b] = amount, -amount
    grid = rules.grid_exchange(s.params, dispatch, *power, curtail, trade)
    return Schedules(dispatch, *power, curtail, grid, trade)


@pytest.mark.parametrize("seed", SEEDS)
def test_best_response_is_the_modelling_tool_s(seed):
    s = small(seed, hours=8, export=True, line_limit=np.inf)
    played = random_schedules(s, seed)
    gains = exploitability(s, played)
    assert (gains >= 0.0).all()
    before = rules.costs(s, played)
    for player in (0, 3, 7):
        response = best_response(s, played, player)
        m = solved(model(s, player=player, others=played))
        trading = rules.trading_cost(s.params, played.trade).sum(axis=0)[player]
        assert response.cost == pytest.approx(m.problem.value + trading, rel=1e-6, abs=1e-6)
        assert response.gain == pytest.approx(gains[player], rel=1e-5, abs=1e-6 * before.sum())
        # By the rules: the new day costs the prosumer what is said, and nobody else moved.
        assert rules.costs(s, response.schedules)[player] == pytest.approx(response.cost, rel=1e-9)
        check_schedules(s, response.schedules)
        np.testing.assert_array_equal(response.schedules.trade, played.trade)
        others = np.arange(s.size) != player
        np.testing.assert_array_equal(response.schedules.grid[:, others], played.grid[:, others])


@pytest.mark.parametrize("reactive", [True, False])
def test_best_response_under_binding_limits(reactive):
    s = small(1, hours=6, export=True, reactive=reactive)
    played = random_schedules(s, 1)
    state = rules.state_of(s.params, rules.net_demand(played))
    # Room for what is played and little more, in every shared limit.
    s = s.replace(
        import_max=float(state.grid_active.max() + 1.0),
        voltage_min=float(state.voltage.min() - 1e-5),
        line_limit=np.hypot(state.active, state.reactive).max(axis=0) + 1.0,
    )
    for player in (1, 5, 6):
        response = best_response(s, played, player)
        m = solved(model(s, player=player, others=played))
        trading = rules.trading_cost(s.params, played.trade).sum(axis=0)[player]
        assert response.cost == pytest.approx(m.problem.value + trading, rel=1e-6, abs=1e-6)


def test_limits_exceeded_as_played_may_not_be_made_worse():
    s = small(1, hours=6, export=True)
    played = random_schedules(s, 1)
    state = rules.state_of(s.params, rules.net_demand(played))
    s = s.replace(import_max=float(np.median(state.grid_active)), voltage_min=float(np.median(state.voltage)))
    state = rules.state_of(s.params, rules.net_demand(played))
    assert state.import_excess.max() > 1.0
    assert state.voltage_excess.max() > 1e-4
    for player in range(s.size):
        response = best_response(s, played, player)
        after = rules.state_of(s.params, rules.net_demand(response.schedules))
        assert (after.import_excess <= state.import_excess + 1e-6).all()
        assert (after.voltage_excess <= state.voltage_excess + 1e-9).all()
        assert np.isfinite(response.gain)
        assert response.gain >= 0.0


def test_exploitability_of_days():
    s = small(0, hours=6, export=True)
    days = [random_schedules(s, seed) for seed in range(2)]
    both = exploitability(s, Schedules(*(np.stack(pair) for pair in zip(*days, strict=True))))
    np.testing.assert_allclose(both, [exploitability(s, day) for day in days])
    assert both.max() > 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_gain_at_the_equilibrium(seed):
    s = small(seed)
    found = variational_equilibrium(s)
    assert exploitability(s, found.schedules).max() <= 1e-6 * found.cost.sum()
    assert competitive_gain(s, found.schedules, found.multipliers).max() <= 1e-6 * found.cost.sum()
    # Elsewhere there is something to gain, and more with free trades at prices that the schedules do not follow.
    alone = variational_equilibrium(s, "no_trade").schedules
    assert competitive_gain(s, alone, found.multipliers).sum() > 0.01
    assert exploitability(s, variational_equilibrium(s, "social").schedules).sum() > 1e-4


# What theory says about the kinds.


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_costs(seed):
    s = small(seed)
    found = {kind: variational_equilibrium(s, kind) for kind in KINDS}
    total = {kind: each.cost.sum() for kind, each in found.items()}
    assert total["social"] < total["nash"] < total["wardrop"] < total["no_trade"]
    for kind, each in found.items():
        assert rules.potential(s, each.schedules, kind) == pytest.approx(each.potential, rel=1e-12)
        check_schedules(s, each.schedules)
        # No hour both charges and discharges at the default cost of storage.
        assert np.minimum(each.schedules.charge, each.schedules.discharge).max() < 1e-5
    assert (found["no_trade"].schedules.trade == 0.0).all()


def test_the_potential_is_exact():
    """What a unilateral change of devices does to J_i it does to Φ."""
    s = small(0, hours=6, export=True)
    first, second = random_schedules(s, 0), random_schedules(s, 1)
    for i in range(s.size):
        moved = [np.array(each) for each in first]
        for array, other in zip(moved[:4], second, strict=False):
            array[:, i] = other[:, i]
        moved = Schedules(*moved)
        moved = moved._replace(grid=rules.grid_exchange(s.params, *moved[:4], moved.trade))
        by_cost = (rules.costs(s, moved) - rules.costs(s, first))[i]
        by_potential = rules.potential(s, moved) - rules.potential(s, first)
        assert by_potential == pytest.approx(by_cost, rel=1e-9)


@pytest.mark.parametrize("scale", ["households", "paper"])
def test_nobody_trades_where_surplus_is_sold_to_the_grid_at_its_price(scale):
    """A trade would save nothing and cost the tariff twice."""
    s = load_scenario("ieee37", prosumers=12, scale=scale)
    s = s.replace(solar=5.0 * s.solar)
    assert np.abs(variational_equilibrium(s).schedules.trade).max() > 0.1
    found = variational_equilibrium(s.replace(export=True)).schedules
    assert found.grid.min() < -0.1
    assert np.abs(found.trade).max() < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_tighter_lines_cost_more(seed):
    s = small(seed, hours=8)
    last = loose = variational_equilibrium(s, "social").cost.sum()
    for part in (0.0, 0.2, 0.4, 0.6):
        cost = variational_equilibrium(tightened(s, "line", part=part, kind="social"), "social").cost.sum()
        assert cost >= last * (1.0 - 1e-9)
        last = cost
    assert last > loose * (1.0 + 1e-6)


def test_storage_lowers_the_peak_of_the_import_where_it_pays():
    """On seven of ten days, and never raises it; it stands idle where no two hours differ by more than it loses."""
    lowered = []
    for seed in range(10):
        s = small(seed)
        found, without = (variational_equilibrium(each) for each in (s, s.replace(storage_power=0.0)))
        peak, before = (each.schedules.grid.sum(axis=1).max() for each in (found, without))
        # To an owner, before it has any: its dearest kWh over its cheapest, less what a round trip loses.
        worth = without.multipliers["balance"][:, s.storage_power > 0.0]
        gain = (worth.max(axis=0) / worth.min(axis=0)).max() * s.charge_efficiency[0] * s.discharge_efficiency[0]
        if abs(gain - 1.0) > 1e-3:  # seed 4 is at the edge
            assert (found.schedules.discharge.sum() > 1.0) == (gain > 1.0)
        if peak < 0.985 * before:
            lowered.append(seed)
        else:
            assert peak == pytest.approx(before, rel=1e-3)
    assert lowered == [0, 1, 2, 3, 6, 7, 8]


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_loses_by_trading_at_shadow_prices(seed):
    s = small(seed)
    alone, found = variational_equilibrium(s, "no_trade").cost, variational_equilibrium(s)
    assert (alone - bill(s, found)).min() > 0.1
    # At contract prices sellers do not get what their power is worth, and some lose.
    assert (alone - found.cost).min() < -1.0
    assert (alone - found.cost).sum() == pytest.approx((alone - bill(s, found)).sum(), rel=1e-9)


def least_saved(s, alone, found):
    """What individual optimality at shadow prices promises each prosumer against its day without trade ``(N,)``.

    At the equilibrium it could still buy as it did alone: at what the others' purchases have made of the price, and
    with the charges of limits.
    """
    bought, now = alone.schedules.grid, found.schedules.grid
    less = (bought.sum(1, keepdims=True) - bought) - (now.sum(1, keepdims=True) - now)
    charges = found.multipliers["import"][:, None] + found.multipliers["nodal"][:, s.bus]
    return s.step_hours * (bought * (s.grid_slope[: s.hours, None] * less - charges)).sum(axis=0)


def test_who_buys_when_a_storage_does_may_lose_by_trading():
    """By hand: 1 stores in the first hour what 2 buys in the second, and 0 buys in the first at the price they make.

    y solves 2·d₀·y + d₀(4 + 10) = η(d₁(2(4 − ηy) + 10) − 2c^ta); prosumer 0 pays d₀·4·y more.
    """
    feeder = Feeder.from_lines("chain", "s", [("s", "1"), ("1", "2")], [1e-5, 1e-5], [1e-5, 1e-5])
    s = Scenario(
        feeder=feeder, bus=[1, 2, 2], demand=[[4.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]],
        edges=[(0, 1), (1, 2)], passive_active=np.tile([0.0, 10.0, 0.0], (3, 1)), passive_reactive=0.0,
        grid_slope=[0.01, 0.02, 0.01], storage_power=[0.0, 10.0, 0.0], storage_max=[0.0, 10.0, 0.0],
        charge_efficiency=0.9, discharge_efficiency=1.0, storage_cost=0.0, tariff=0.02,
    )  # fmt: skip
    alone, found = variational_equilibrium(s, "no_trade"), variational_equilibrium(s)
    stored = (0.9 * (0.02 * (8.0 + 10.0) - 0.04) - 0.01 * 14.0) / (2 * 0.01 + 2 * 0.81 * 0.02)
    np.testing.assert_allclose(alone.cost, [0.01 * 14.0 * 4.0, 0.0, 0.02 * 14.0 * 4.0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        found.schedules.grid, [[4.0, stored, 0.0], [0.0, 0.0, 4.0 - 0.9 * stored]], rtol=1e-6, atol=1e-6
    )
    saved = alone.cost - bill(s, found)
    assert saved[0] == pytest.approx(-0.01 * 4.0 * stored, rel=1e-5)
    assert saved[0] < -0.1
    assert min(saved[1:]) > 0.05
    np.testing.assert_allclose(least_saved(s, alone, found)[:2], [saved[0], 0.0], rtol=1e-5, atol=1e-7)


def test_who_loses_by_trading_loses_by_the_price_of_the_grid():
    """Businesses of every kind: savings at shadow prices are at least what individual optimality promises."""
    losing, charged = [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        s = small(
            seed, prosumers=6, dispatch_share=float(rng.choice([0.0, 0.25])), tariff=float(rng.choice([0.0, 0.01])),
            storage_share=float(rng.choice([0.3, 1.0])), storage_power=20.0, passive_level=0.1, final_charge=False,
        )  # fmt: skip
        if seed % 3 == 0:
            peak = rules.state_of(s.params, rules.net_demand(variational_equilibrium(s).schedules))
            s = s.replace(import_max=float(peak.grid_active.max() - 1.0), voltage_min=float(peak.voltage.min() + 2e-6))
        try:
            alone, found = (variational_equilibrium(s, kind) for kind in ("no_trade", "nash"))
        except InfeasibleError:
            continue
        saved = alone.cost - bill(s, found)
        assert (saved >= least_saved(s, alone, found) - 1e-6 * alone.cost.sum()).all()
        losing.append((saved < -1e-4 * alone.cost).any())
        charged.append(max(found.multipliers[name].max() for name in ("import", "nodal")) > 1e-4)
    # The promise is put to the test.
    assert len(losing) >= 20
    assert 6 <= sum(losing) <= 18
    assert sum(charged) >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_shadow_prices_share_out_the_costs(seed):
    """Trades at μ^tr cancel in sum, so bills add up to the costs."""
    s = small(seed)
    found = variational_equilibrium(s)
    assert bill(s, found).sum() == pytest.approx(found.cost.sum(), rel=1e-9)
    np.testing.assert_allclose(bill(s, found), shadow_cost(s, found.schedules, found.multipliers))


# Refusals.


def test_bad_input_is_refused(monkeypatch):
    s = small(0, hours=6)
    with pytest.raises(ValueError, match="kind must be one of 'nash'"):
        variational_equilibrium(s, "cournot")
    found = variational_equilibrium(s)
    with pytest.raises(ValueError, match=r"prosumer must be in 0\.\.7, got 8"):
        best_response(s, found.schedules, 8)
    with pytest.raises(ValueError, match=r"grid must be finite and of shape \(6, 8\)"):
        exploitability(s, found.schedules._replace(grid=np.full((6, 8), np.nan)))
    grid, dispatch = np.array(found.schedules.grid), np.array(found.schedules.dispatch)
    grid[3, 2] += 1.0
    dispatch[1, 4] = s.dispatch_max[4] + 5.0
    with pytest.raises(ValueError, match=r"grid misses the balance \(6\) by 1 \(prosumer_2, hour 3\)"):
        exploitability(s, found.schedules._replace(grid=grid))
    with pytest.raises(ValueError, match=r"dispatch exceeds .* \(prosumer_4, hour 1\)"):
        exploitability(s, found.schedules._replace(dispatch=dispatch))
    with pytest.raises(ValueError, match=r"reciprocity \(8b\)"):
        check_schedules(s, found.schedules._replace(trade=found.schedules.trade + 1.0))
    monkeypatch.setitem(sys.modules, "clarabel", None)
    with pytest.raises(MissingSolverError, match=r'pip install "p2penv\[grid\]"'):
        variational_equilibrium(s)


def test_residual_sees_what_is_wrong():
    s = small(0, hours=6)
    program = potential_program(s)
    solution = program.solve()
    assert kkt_residual(program, solution.x, solution.z) < 1e-6
    for x, z in ((solution.x + 0.01, solution.z), (solution.x, solution.z + 0.01), (0 * solution.x, solution.z)):
        assert kkt_residual(program, x, z) > 1e-4


def test_random_scenarios_have_equilibria():
    found = variational_equilibrium(Scenario.random(30, seed=3))
    assert found.residual <= 1e-6
    assert found.cost.shape == (30,)
