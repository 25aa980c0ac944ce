"""The grid market: hours worked in plain Python, balances, limits, equilibria through the core, faces, errors."""

import itertools
import math
import pickle
import re

import gymnasium
import numpy as np
import pettingzoo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2penv import grid_v0, make_functional, make_parallel, make_solo, make_vector
from p2penv.core.random import NumpyStream
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.parallel import MarketParallelEnv
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
from p2penv.faces.vector import MarketVectorEnv
from p2penv.grid import Grid, Scenario, feasible, load_scenario, rules
from p2penv.grid.rules import Schedules

NAME, ID = "grid_v0", "p2penv/Grid-v0"
PRICES, NETWORKS, OPERATORS = ("contract", "bilateral", "shadow"), ("price", "curtail"), ("rule", "agent")
KINDS = ("vgne", "wardrop", "social_optimum", "no_trade")
MARKET_KEYS = [
    "price", "imported", "traded", "loading", "voltage_low", "voltage_high", "line_excess", "voltage_excess",
    "import_excess", "penalty", "operator", "cut",
]  # fmt: skip
AGENT_KEYS = [
    "partners", "net", "grid", "dispatch", "charging", "curtailed", "received", "trade_price", "charge", "voltage",
    "fee", "tax", "unserved",
]  # fmt: skip
NAN = float("nan")


def short(case, hours, first=0, **fields):
    """Some hours of a day; the last one's profiles stay for the observation at the end."""
    rows = [*range(first, first + hours), first + hours - 1]
    names = ("demand", "solar", "passive_active", "passive_reactive", "grid_slope")
    return case.replace(**{name: getattr(case, name)[rows] for name in names}, **fields)


def tight(case, margin=0.2):
    """Limits just above what the passive loads need."""
    alone = rules.state_of(case.params, np.zeros((case.hours, case.size)))
    return case.replace(
        line_limit=1.001 * np.hypot(alone.active, alone.reactive).max(axis=0) + 0.1 * margin,
        voltage_min=float(alone.voltage.min()) - 1e-5 * margin,
        import_max=float(case.passive_total[:-1].max()) + 0.5 * margin,
    )


# Communities in which every rule matters.
CASES = {
    "slack": lambda case: case,
    "tight": tight,
    "sunny": lambda case: case.replace(solar=40.0 * case.solar + 1.0),
    "exporting": lambda case: tight(case.replace(solar=40.0 * case.solar + 1.0, export=True, import_min=-5.0)),
    "final charge": lambda case: case.replace(final_charge=True, leakage=0.98),
    "two prices": lambda case: case.replace(trade_cost=np.random.default_rng(0).uniform(0.0, 0.2, (case.pairs, 2))),
    "unlike": lambda case: tight(case.replace(power_factor=0.95, step_hours=0.5, storage_cost=0.01)),
}
ENTRY = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 1e-300]), st.floats(-1, 1))
CASE = st.tuples(st.sampled_from(list(CASES)), st.integers(2, 6), st.integers(0, 300))
OPTIONS = st.fixed_dictionaries(
    {
        "trade_price": st.sampled_from(PRICES[:2]),
        "network": st.sampled_from(NETWORKS),
        "dno": st.sampled_from(OPERATORS),
    }
)


def community(kind, prosumers, seed, hours=3):
    return CASES[kind](short(Scenario.random(prosumers, seed), hours, first=seed % 20))


def start(env, num_envs=1, seed=0):
    return env.initial(env.params, NumpyStream(seed).draw(env.initial_noise, num_envs), num_envs)


def play(env, actions, seed=0):
    """State before, what was played and outcome of every hour of a day of joint actions ``(H, E, N, A)``."""
    state, stream = start(env, actions.shape[1], seed), NumpyStream(seed)
    for joint in actions:
        step = env.step(env.params, state, joint, stream.draw(env.noise, len(joint)))
        yield state, env.play(env.params, state, joint), step
        state = step.state


def random_actions(env, num_envs, seed=0):
    """A day of uniform joint actions, some of them at the ends, some mere mirrors of the partner's."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.0, 1.0, (env.horizon, num_envs, len(env.context), len(env.action_names)))
    actions = np.where(rng.random(actions.shape) < 0.2, np.sign(actions), actions)
    size = env.scenario.size
    mirrored = -rules.exchange(env.scenario.params, actions[:, :, :size, 4:])
    actions[:, :, :size, 4:] = np.where(
        np.arange(size)[:, None] < env.scenario.partner, mirrored, actions[:, :, :size, 4:]
    )
    return actions


def zeros(face):
    return {agent: np.zeros(face.action_space(agent).shape, np.float32) for agent in face.possible_agents}


# One hour in plain Python, from the written rules.


def loads_below(case, at_bus):
    """What flows into every bus but the source, by recursion."""
    children = {
        bus: [k for k, above in enumerate(case.feeder.parent) if above == bus] for bus in range(case.feeder.size)
    }

    def below(bus):
        return at_bus[bus] + sum(below(child) for child in children[bus])

    return {bus: below(bus) for bus in range(case.feeder.size) if bus != case.feeder.root}


def excesses(case, hour, net, served=1.0):
    """Excess and price of every limit, bus by bus from the source down."""
    active, reactive = list(map(float, case.passive_active[hour])), list(map(float, case.passive_reactive[hour]))
    for i, bus in enumerate(case.bus):
        active[bus] += net[i]
        reactive[bus] += served * math.tan(math.acos(case.power_factor)) * float(case.demand[hour, i])
    p, q = loads_below(case, active), loads_below(case, reactive)
    voltage, angle, order = {case.feeder.root: 1.0}, {case.feeder.root: 0.0}, [case.feeder.root]
    while order:
        above = order.pop()
        for line, bus in enumerate(case.feeder.fed):
            if case.feeder.parent[bus] == above:
                r, x = case.feeder.resistance[line] / 1000.0, case.feeder.reactance[line] / 1000.0
                voltage[bus] = voltage[above] - r * p[bus] - x * q[bus]
                angle[bus] = angle[above] + r * q[bus] - x * p[bus]
                order.append(bus)
    limits = []
    for line, bus in enumerate(case.feeder.fed):
        limits.append((math.hypot(p[bus], q[bus]) - case.line_limit[line], case.line_price))
    for bus in voltage:
        limits.append((max(case.voltage_min - voltage[bus], voltage[bus] - case.voltage_max), case.voltage_price))
        limits.append((abs(angle[bus]) - case.angle_limit, case.angle_price))
    total = sum(active)
    limits.append((max(total - case.import_max, case.import_min - total), case.line_price))
    return limits, voltage


def shared_fees(case, hour, net):
    """Fees by the written rule; ∂c/∂η by central differences. None where a limit is met within rounding."""
    fees, rest, step = [0.0] * case.size, 0.0, 1e-3
    slopes = []
    for i in range(case.size):
        up, down = ([each + sign * step * (k == i) for k, each in enumerate(net)] for sign in (1.0, -1.0))
        pairs = zip(excesses(case, hour, up)[0], excesses(case, hour, down)[0], strict=True)
        slopes.append([(high - low) / (2 * step) for (high, _), (low, _) in pairs])
    for c, (excess, price) in enumerate(excesses(case, hour, net)[0]):
        if abs(excess) < 1e-9:
            return None
        if excess > 0.0:
            push = [max(0.0, slopes[i][c] * net[i]) for i in range(case.size)]
            push = [each if each > 1e-10 else 0.0 for each in push]
            rest += price * excess * (sum(push) == 0.0)
            for i in range(case.size):
                fees[i] += price * excess * push[i] / sum(push) if sum(push) else 0.0
    return [case.step_hours * fee for fee in fees], case.step_hours * rest


def smallest_cut(case, hour, net):
    """α by bisection: the limits hold for all parts from none up to one."""

    def fits(part):
        return max(excess for excess, _ in excesses(case, hour, [part * each for each in net], part)[0]) <= 0.0

    if fits(1.0):
        return 0.0
    low, high = 0.0, 1.0  # parts of what is served
    for _ in range(45):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return 1.0 - low


def floor_of(case, hour, i):
    """Least charge from which full charging reaches the first charge at the end."""
    if not case.final_charge:
        return float(case.storage_min[i])
    level = float(case.initial_charge[i])
    for _ in range(case.hours - hour):
        level = (level - case.step_hours * case.charge_efficiency[i] * case.storage_power[i]) / case.leakage[i]
        level = max(level, float(case.storage_min[i]))
    return level


def by_hand(case, hour, charge, action, trade, *, options, cap, ranges):
    """An hour by the written order; lists of Python floats, trades by pair given where purchases had to be cut."""
    people, t_s = range(case.size), case.step_hours
    demand, solar = ([float(each) for each in profile[hour]] for profile in (case.demand, case.solar))
    dispatch = [0.5 * (action[i][0] + 1.0) * case.dispatch_max[i] for i in people]
    curtail = [0.5 * (action[i][2] + 1.0) * solar[i] for i in people]
    limit = [0.5 * (action[i][3] + 1.0) * cap for i in people]
    stored, taken, given_ = [], [], []
    for i in people:
        kept = case.leakage[i] * charge[i]
        most = min((case.storage_max[i] - kept) / case.charge_efficiency[i] / t_s, case.storage_power[i])
        stock = (kept - floor_of(case, hour + 1, i)) / t_s
        least = -stock * case.discharge_efficiency[i] if stock >= 0.0 else -stock / case.charge_efficiency[i]
        power = min(max(action[i][1] * case.storage_power[i], -case.storage_power[i], least), max(most, 0.0))
        taken.append(max(power, 0.0)), given_.append(max(-power, 0.0))
    # Trades, pair by pair.
    matched, paid = {}, {}
    for m, (i, j) in enumerate(case.edges.tolist()):
        mine = action[i][4 + case.partner[i].tolist().index(j)] * case.trade_max[m]
        theirs = action[j][4 + case.partner[j].tolist().index(i)] * case.trade_max[m]
        quantity = min(abs(mine), abs(theirs)) if mine * theirs < 0.0 else 0.0
        bid, ask = (limit[i], limit[j]) if mine > 0.0 else (limit[j], limit[i])
        if options["trade_price"] == "bilateral" and bid < ask:
            quantity = 0.0
        matched[m] = math.copysign(quantity, mine)
        paid[m] = (0.5 * (bid + ask),) * 2 if options["trade_price"] == "bilateral" else tuple(case.trade_cost[m])

    def received(trades, i):
        return sum(q * ((i == a) - (i == b)) for q, (a, b) in zip(trades.values(), case.edges.tolist(), strict=True))

    if not case.export and any(received(matched, i) > demand[i] + taken[i] for i in people):
        matched = trade
    # Surplus: dispatch, then discharging, then solar power.
    grid = []
    for i in people:
        short_of = demand[i] - solar[i] + curtail[i] - dispatch[i] - given_[i] + taken[i] - received(matched, i)
        if not case.export:
            for values, room in ((dispatch, dispatch[i]), (given_, given_[i]), (curtail, solar[i] - curtail[i])):
                back = min(max(-short_of, 0.0), room)
                values[i] += back if values is curtail else -back
                short_of += back
            short_of = max(short_of, 0.0)
        grid.append(short_of)
        kept = case.leakage[i] * charge[i]
        stored.append(kept + t_s * (case.charge_efficiency[i] * taken[i] - given_[i] / case.discharge_efficiency[i]))
    net = [grid[i] + received(matched, i) for i in people]
    # Network.
    alpha = smallest_cut(case, hour, net) if options["network"] == "curtail" else 0.0
    unserved = [alpha * max(each, 0.0) for each in net]
    grid = [each - alpha * drawn for each, drawn in zip(grid, net, strict=True)]
    net = [(1.0 - alpha) * each for each in net]
    charged = shared_fees(case, hour, net) if options["network"] == "price" else ([0.0] * case.size, 0.0)
    if charged is None:
        return None
    fees, rest = charged
    tariff, factor = (ranges[0], ranges[1]) if options["dno"] == "agent" else (case.tariff, 1.0)
    price = float(case.grid_slope[hour]) * (sum(grid) + float(case.passive_total[hour]))
    cost, tax = [], []
    for i in people:
        own = case.dispatch_quadratic[i] * dispatch[i] ** 2 + case.dispatch_linear[i] * dispatch[i]
        own += case.storage_cost[i] * (taken[i] ** 2 + given_[i] ** 2) + price * grid[i] + case.lost_load * unserved[i]
        volume = 0.0
        for m, (a, b) in enumerate(case.edges.tolist()):
            if i in (a, b):
                own += paid[m][i == b] * matched[m] * (1.0 if i == a else -1.0)
                volume += abs(matched[m])
        tax.append(t_s * tariff * volume)
        cost.append(t_s * own + tax[i] + factor * fees[i])
    penalty = sum(fees) + rest
    return {
        "grid": grid, "net": net, "charge": stored, "price": price, "cut": alpha, "cost": cost, "penalty": penalty,
        "operator": sum(tax) + factor * sum(fees) - penalty, "trade": matched, "dispatch": dispatch,
        "curtailed": curtail,
    }  # fmt: skip


@settings(max_examples=60)
@given(CASE, OPTIONS, st.lists(ENTRY))
def test_a_day_is_the_written_order_in_plain_python(kind, options, entries):
    case = community(*kind)
    env = make_functional(NAME, scenario=case, **options)
    actions = random_actions(env, 1, kind[-1])
    actions.ravel()[: len(entries)] = entries[: actions.size]
    for hour, (state, _, step) in enumerate(play(env, actions)):
        joint = actions[hour, 0]
        first = case.edges[:, 0]
        slot = [case.partner[i].tolist().index(j) for i, j in case.edges.tolist()]
        trade = dict(enumerate(step.state.trade[0][first, slot].tolist()))
        ranges = [0.5 * (each + 1.0) * top for each, top in zip(joint[-1], (env.tariff_max, env.fee_max), strict=False)]
        wanted = by_hand(
            case, hour, state.charge[0].tolist(), joint.tolist(), trade, options=options, cap=env.limit_price,
            ranges=ranges,
        )  # fmt: skip
        if wanted is None:
            continue
        # A cut leaves a little room, and bisection stops.
        close = 1e-9 if wanted["cut"] == 0.0 else 1e-7
        size = case.size
        np.testing.assert_allclose(list(trade.values()), list(wanted["trade"].values()), rtol=1e-12, atol=1e-12)
        for key in ("grid", "net", "charge", "dispatch", "curtailed"):
            np.testing.assert_allclose(step.info[key][0, :size], wanted[key], rtol=close, atol=close, err_msg=key)
        for key in ("price", "cut"):
            assert step.info[key][0] == pytest.approx(wanted[key], rel=close, abs=close), key
        for key in ("penalty", "operator"):
            assert step.info[key][0] == pytest.approx(wanted[key], rel=1e-6, abs=1e-6), key
        np.testing.assert_allclose(-step.reward[0, :size], wanted["cost"], rtol=1e-6, atol=max(10.0 * close, 1e-6))
        if env.led:
            assert step.reward[0, size] == pytest.approx(wanted["operator"], rel=1e-6, abs=1e-6)


# Balances and limits, whatever the actions.


@settings(max_examples=60)
@given(CASE, OPTIONS, st.lists(ENTRY))
def test_energy_money_and_limits(kind, options, entries):
    case = community(*kind)
    env = make_functional(NAME, scenario=case, **options)
    actions = random_actions(env, 4, kind[-1])
    actions.ravel()[: len(entries)] = entries[: actions.size]
    params, size = case.params, case.size
    for hour, (state, played, step) in enumerate(play(env, actions)):
        flows, info = played.flows, step.info
        # Reciprocity (8b) is exact; bounds hold.
        mirrored = rules.exchange(params, flows.trade)
        np.testing.assert_array_equal((flows.trade + mirrored) * params.slots, 0.0)
        assert not (flows.trade * (1.0 - params.slots)).any()
        assert (np.abs(flows.trade) <= params.trade_max).all()
        for values, top in (
            (flows.dispatch, case.dispatch_max), (flows.charge, case.storage_power),
            (flows.discharge, case.storage_power), (flows.curtail, case.solar[hour]),
        ):  # fmt: skip
            assert (values >= 0.0).all()
            assert (values <= top + 1e-12).all()
        assert not (flows.charge * flows.discharge).any()
        assert case.export or (played.planned.grid >= 0.0).all()
        # (5): storage.
        charge = case.leakage * state.charge + case.step_hours * (
            case.charge_efficiency * flows.charge - flows.discharge / case.discharge_efficiency
        )
        np.testing.assert_allclose(step.state.charge, charge, atol=1e-9)
        assert (step.state.charge >= case.storage_min).all()
        assert (step.state.charge <= case.storage_max).all()
        # (6): every prosumer's balance, with what the operator cut.
        drawn = flows.grid + flows.trade.sum(-1)
        need = case.demand[hour] - case.solar[hour] + flows.curtail + flows.charge - flows.dispatch - flows.discharge
        kept = 1.0 - played.cut[:, None]
        np.testing.assert_allclose(drawn, kept * need, atol=1e-9)
        np.testing.assert_allclose(
            info["unserved"][:, :size], case.step_hours * (1.0 - kept) * np.maximum(need, 0.0), atol=1e-9
        )
        # (13), (17b): every bus, and the grid.
        at_bus = np.array(case.passive_active[hour]) + drawn @ params.location
        into = np.zeros((4, case.feeder.size))
        into[:, case.feeder.fed] = played.network.active
        out = np.zeros_like(into)
        for line, bus in enumerate(case.feeder.fed):
            out[:, case.feeder.parent[bus]] += played.network.active[:, line]
        into[:, case.feeder.root] = played.network.grid_active
        np.testing.assert_allclose(into - out, at_bus, atol=1e-9)
        np.testing.assert_allclose(info["imported"], flows.grid.sum(-1) + case.passive_total[hour], atol=1e-9)
        np.testing.assert_allclose(info["imported"], played.network.grid_active, atol=1e-9)
        # Money: what prosumers pay goes to producers, supplier, operator and, with unlike prices, nowhere.
        bill = rules.bill(params, flows, hour, played.price, played.tariff)
        between = bill.trade.sum(-1)
        if kind[0] != "two prices" or options["trade_price"] == "bilateral":
            np.testing.assert_allclose(between, 0.0, atol=1e-9)
        elsewhere = (
            (bill.dispatch + bill.storage + bill.grid).sum(-1) + between + case.lost_load * info["unserved"].sum(-1)
        )
        to_operator = info["operator"] + info["penalty"]
        np.testing.assert_allclose(-step.reward[:, :size].sum(-1), elsewhere + to_operator, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(to_operator, (info["fee"] + info["tax"]).sum(-1), atol=1e-9)
        if options["network"] == "curtail":
            assert not any(info[key].any() for key in ("line_excess", "voltage_excess", "import_excess", "penalty"))
            assert not played.network.angle_excess.any()
            assert ((played.cut >= 0.0) & (played.cut <= 1.0)).all()
        else:
            assert not played.cut.any()
        for name, feature in zip(
            env.features[env.context.shape[1] :], env.observe(env.params, step.state), strict=True
        ):
            assert np.abs(feature).max() <= 1.0, name
    if case.final_charge:
        assert (step.state.charge >= case.initial_charge - 1e-9).all()


@pytest.mark.parametrize("kind", ["tight", "unlike", "exporting"])
def test_limits_hold_in_single_precision_too(kind):
    face = make_vector(NAME, 256, scenario=community(kind, 6, 1, 6), network="curtail", dtype="float32")
    face.reset(seed=0)
    cuts = 0
    for joint in random_actions(face.functional, 256, 2):
        *_, info = face.step(joint.astype(np.float32))
        assert not any(info[key].any() for key in ("line_excess", "voltage_excess", "import_excess", "penalty"))
        cuts += int((info["cut"] > 0.0).sum())
    assert cuts > 50


def test_the_cases_meet_every_rule():
    """Otherwise the tests above would pass for want of a reason to fail."""
    seen = dict.fromkeys(
        ["fee", "cut", "unserved", "curtailed", "traded", "line_excess", "voltage_excess", "import_excess"], 0
    )
    cuts = spilled = exported = 0
    for kind, seed, network in itertools.product(CASES, range(6), NETWORKS):
        case = community(kind, 5, seed)
        env = make_functional(NAME, scenario=case, network=network)
        for _, played, step in play(env, random_actions(env, 4, seed)):
            for key in seen:
                seen[key] += int((step.info[key] > 1e-6).sum())
            exported += int((played.planned.grid < -1e-6).sum())
            spilled += int(((played.net < -1e-6) & (played.cut[:, None] > 0)).sum())
            offered = played.proposal * case.params.trade_max
            cuts += int((np.abs(rules.match(case.params, offered)[0]) > np.abs(played.flows.trade) + 1e-9).sum())
    assert min(seen.values()) > 10, seen
    assert min(cuts, exported, spilled) > 10, (cuts, exported, spilled)


# Trades that are backed, surplus that is taken back.


@st.composite
def trading(draw):
    size = draw(st.integers(2, 7))
    case = Scenario.random(size, draw(st.integers(0, 50)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    params = case.params
    trade, _ = rules.match(params, np.where(rng.random((3, *params.slots.shape)) < 0.5, -1, 1) * params.trade_max)
    trade = trade * rng.choice([0.0, 0.3, 1.0], size=(3, 1, 1))
    use = rng.uniform(0.0, 2.0, (3, size)) * rng.choice([0.0, 1.0], size=(3, size))
    return case, trade, use


@settings(max_examples=150)
@given(trading())
def test_backed_trades(given_):
    case, trade, use = given_
    found = feasible.backed(trade, use, case.partner)
    # The same with environments side by side in memory, which stay so.
    aside = np.ascontiguousarray(trade.transpose(1, 2, 0)).transpose(2, 0, 1)
    mirrored = rules.exchange(case.params, aside)
    np.testing.assert_array_equal(mirrored, rules.exchange(case.params, trade))
    assert mirrored.strides == aside.strides
    np.testing.assert_allclose(feasible.backed(aside, np.asfortranarray(use), case.partner), found, rtol=1e-14)
    params = case.params
    np.testing.assert_array_equal((found + rules.exchange(params, found)) * params.slots, 0.0)
    assert (np.abs(found) <= np.abs(trade)).all()
    assert (found * trade >= 0.0).all()
    assert (found.sum(-1) <= use + 1e-12).all()
    fine = (trade.sum(-1) <= use).all(-1)
    np.testing.assert_array_equal(found[fine], trade[fine])


def test_a_chain_of_resale_is_cut_all_along():
    """Six prosumers in a row pass 1 kW on; the last can use none: nobody may keep it, nor be left with it."""
    edges = np.array([[k, k + 1] for k in range(5)])
    case = Scenario.random(6, 0).replace(edges=edges, trade_cost=0.08, trade_max=1.0)
    wanted = np.zeros((6, case.slots))
    for i, j in edges:
        wanted[i, case.partner[i].tolist().index(j)], wanted[j, case.partner[j].tolist().index(i)] = -1.0, 1.0
    everything = feasible.backed(wanted, np.zeros(6) + np.eye(6)[5], case.partner)
    np.testing.assert_array_equal(everything, wanted)
    np.testing.assert_allclose(feasible.backed(wanted, np.zeros(6), case.partner), 0.0)
    # Cuts reach three links up; beyond, who resells buys what it needs itself: 0.2 kW.
    found = feasible.backed(wanted, np.full(6, 0.2), case.partner)
    assert (found.sum(-1) <= 0.2 + 1e-12).all()
    assert np.maximum(found, 0.0).sum(-1)[1:].min() >= 0.2 - 1e-12


def test_surplus_is_taken_back_in_order():
    more, dispatch, discharge = feasible.absorb(
        np.array([-1.0, 0.5, 2.5, 5.5]), np.full(4, 1.0), np.full(4, 2.0), np.full(4, 3.0)
    )
    np.testing.assert_allclose(dispatch, [2.0, 1.5, 0.0, 0.0])
    np.testing.assert_allclose(discharge, [3.0, 3.0, 2.5, 0.0])
    np.testing.assert_allclose(more, [0.0, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("power", [0.2, 3.0])
def test_the_floor_of_the_charge_is_just_enough(power):
    least, final, hours = np.array([1.0]), np.array([4.0]), 6
    floor = feasible.charge_floor(least, final, np.array([power]), np.array([0.9]), np.array([0.8]), 0.5, hours)
    for first in range(hours + 1):
        charge = floor[first]
        for _ in range(hours - first):
            charge = 0.9 * charge + 0.5 * 0.8 * power
        assert charge >= final - 1e-12
        assert floor[first] == least or charge == pytest.approx(final)


# Exact schedules through the core and every face.


@pytest.fixture(scope="module")
def exact_case():
    """An evening whose limits on imports and voltages bind in the equilibrium, and cannot be kept without trade."""
    case = short(Scenario.random(6, 2), 6, first=16)
    case = case.replace(storage_power=0.3, storage_max=3.0, storage_min=0.5, initial_charge=2.5)
    loose = make_functional(NAME, scenario=case).solution("vgne").schedules
    net = rules.net_demand(loose)
    state = rules.state_of(case.params, net)
    peak = int(state.grid_active.argmax())
    return case.replace(
        import_max=float(state.grid_active[peak] - 0.05 * loose.grid[peak].sum()),
        voltage_min=float(state.voltage.min()) + 1e-6,
    )


@pytest.mark.parametrize(("network", "dno"), list(itertools.product(NETWORKS, OPERATORS)))
@pytest.mark.parametrize("trade_price", PRICES[:2])
@pytest.mark.parametrize("name", KINDS[:3])
def test_exact_schedules_cost_what_the_solver_says(exact_case, name, trade_price, network, dno):
    """Through the core, whatever the network does: the limits are kept."""
    env = make_functional(NAME, scenario=exact_case, trade_price=trade_price, network=network, dno=dno)
    wanted, cost, policy = env.solution(name), 0.0, env.policy(name)
    state = start(env, 2)
    for hour in range(env.horizon):
        actions = policy.act(env.params, None, state, {})
        played = env.play(env.params, state, actions)
        for field in Schedules._fields:
            values = getattr(wanted.schedules, field)[hour]
            if field in ("charge", "discharge"):
                values = np.maximum(values - np.minimum(wanted.schedules.charge, wanted.schedules.discharge)[hour], 0.0)
            np.testing.assert_allclose(getattr(played.flows, field), np.stack([values] * 2), atol=1e-6, err_msg=field)
        step = env.step(env.params, state, actions, {})
        cost, state = cost - step.reward, step.state
    size = exact_case.size
    # Where limits bind the solver's last digits count: what is too much is cut or charged.
    np.testing.assert_allclose(cost[:, :size], np.stack([wanted.cost] * 2), rtol=1e-7)
    if env.led:
        tariffs = exact_case.tariff * exact_case.step_hours * np.abs(wanted.schedules.trade).sum()
        np.testing.assert_allclose(cost[:, size], -tariffs, atol=1e-6)


def test_a_schedule_that_no_limits_allow_is_refused(exact_case):
    env = make_functional(NAME, scenario=exact_case)
    with pytest.raises(ValueError, match=r"no schedules of .* satisfy all constraints"):
        env.policy("no_trade")
    env.policy("vgne")


@pytest.mark.parametrize(
    "options",
    [{}, {"export": True}, {"reactive": False}, {"final_charge": True, "leakage": 0.98},
     {"power_factor": 0.95, "step_hours": 0.5}],
    ids="-".join,
)  # fmt: skip
@pytest.mark.parametrize("name", KINDS)
def test_exact_schedules_cost_the_same_to_nine_digits_where_no_limit_is_near(name, options):
    case = short(Scenario.random(7, 5), 8, first=12, **options)
    env = make_functional(NAME, scenario=case)
    wanted, policy, state, cost = env.solution(name), env.policy(name), start(env), 0.0
    for _ in range(env.horizon):
        step = env.step(env.params, state, policy.act(env.params, None, state, {}), {})
        cost, state = cost - step.reward[0], step.state
    np.testing.assert_allclose(cost, wanted.cost, rtol=1e-9)
    np.testing.assert_allclose(rules.costs(case, wanted.schedules), wanted.cost, rtol=1e-12)


@pytest.mark.parametrize("dno", OPERATORS)
def test_the_equilibrium_costs_the_same_through_every_face(exact_case, dno):
    env = make_functional(NAME, scenario=exact_case, dno=dno)
    policy, wanted = env.policy("vgne"), env.solution("vgne").cost
    size, agents = exact_case.size, len(env.context)
    parallel, turns = MarketParallelEnv(env), MarketAECEnv(MarketParallelEnv(env))
    batched, learner = MarketVectorEnv(env, 2), MarketVecEnv(env, 2)
    solo, twins = MarketSoloEnv(env, "prosumer_1"), MarketSoloVectorEnv(env, 2, "prosumer_0", others="vgne")
    for face in (parallel, turns, batched, solo, twins):
        face.reset(seed=0)
    learner.reset()
    costs = dict.fromkeys(("parallel", "turns", "batched", "learner", "solo", "twins"), 0.0)
    for hour in range(env.horizon):
        joint = policy.plan[hour].astype(np.float32)
        own = {
            agent: row[: parallel.action_space(agent).shape[0]]
            for agent, row in zip(parallel.possible_agents, joint, strict=True)
        }
        costs["parallel"] -= np.array(list(parallel.step(own)[1].values()))
        for agent in parallel.possible_agents:
            turns.step(own[agent])
        costs["turns"] -= np.array(list(turns.rewards.values()))
        pair = np.stack([joint, joint])
        costs["batched"] -= batched.step(pair)[1][1]
        costs["learner"] -= learner.step(pair.reshape(2 * agents, -1))[1][agents:]
        costs["solo"] -= solo.step(own["prosumer_1"])[1]
        costs["twins"] -= twins.step(pair[:, 0])[1][1]
    for name in ("parallel", "turns", "batched", "learner"):
        np.testing.assert_allclose(costs[name][:size], wanted, rtol=1e-5 if name == "learner" else 1e-6, err_msg=name)
    assert costs["solo"] == pytest.approx(wanted[1], rel=1e-6)
    assert costs["twins"] == pytest.approx(wanted[0], rel=1e-6)


def test_shadow_prices_are_paid_between_prosumers_and_to_the_operator(exact_case):
    """Multipliers by hand: of the trade between partners, of the limits (12) and (16) on purchases and net demand."""
    env = make_functional(NAME, scenario=exact_case, trade_price="shadow")
    found = env.solution("vgne")
    multipliers, schedules = found.multipliers, found.schedules
    extra = np.zeros(exact_case.size)
    for hour in range(exact_case.hours):
        for i in range(exact_case.size):
            for k, j in enumerate(exact_case.partner[i]):
                if j >= 0:
                    extra[i] += multipliers["trade"][hour, exact_case.pair[i, k]] * schedules.trade[hour, i, k]
            net = schedules.grid[hour, i] + schedules.trade[hour, i].sum()
            extra[i] += multipliers["import"][hour] * schedules.grid[hour, i]
            extra[i] += multipliers["nodal"][hour, exact_case.bus[i]] * net
    assert multipliers["nodal"].max() > 1e-3 or multipliers["import"].max() > 1e-3  # something binds
    policy, state, cost = env.policy("vgne"), start(env), 0.0
    for _ in range(env.horizon):
        step = env.step(env.params, state, policy.act(env.params, None, state, {}), {})
        cost, state = cost - step.reward[0], step.state
    np.testing.assert_allclose(cost, found.cost + extra, rtol=1e-6)


def test_bilateral_prices_are_the_middle_of_the_limits():
    case = short(Scenario.random(3, 0), 1).replace(edges=np.array([[0, 1], [1, 2]]), trade_cost=0.08, trade_max=5.0)
    case = case.replace(demand=np.full((2, 3), 5.0), solar=0.0, storage_power=0.0)
    env = make_functional(NAME, scenario=case, trade_price="bilateral", limit_price=0.4)
    actions = np.full((1, 1, 3, 4 + case.slots), -1.0)
    actions[..., 4:] = 0.0
    actions[0, 0, :, 3] = [0.5, 0.0, -0.5]  # limits of .3, .2 and .1 €/kWh
    actions[0, 0, 0, 4], actions[0, 0, 1, 4] = 0.6, -0.4  # 0 buys 2 kW of 1
    actions[0, 0, 1, 5], actions[0, 0, 2, 4] = -1.0, 1.0  # 2 bids too little for what 1 asks
    ((_, played, step),) = play(env, actions)
    np.testing.assert_allclose(played.flows.trade[0, :, 0], [2.0, -2.0, 0.0])
    assert step.info["received"][0].tolist() == [2.0, -2.0, 0.0]
    np.testing.assert_allclose(step.info["trade_price"][0], [0.25, 0.25, 0.0])
    np.testing.assert_allclose(step.info["grid"][0], [3.0, 7.0, 5.0])
    price = case.grid_slope[0] * (15.0 + case.passive_total[0])
    np.testing.assert_allclose(
        -step.reward[0], price * np.array([3.0, 7.0, 5.0]) + np.array([0.5, -0.5, 0.0]) + np.array([0.02, 0.02, 0.0])
    )
    assert step.info["traded"][0] == pytest.approx(2.0)


def test_the_operator_sets_tariff_and_fee():
    case = community("tight", 6, 0)
    env = make_functional(NAME, scenario=case, dno="agent", tariff_max=0.2, fee_max=3.0)
    assert [(role.name, role.count, role.actions) for role in env.roles] == [
        ("prosumer", 6, 4 + case.slots),
        ("dno", 1, 2),
    ]
    rule = make_functional(NAME, scenario=case)
    actions = random_actions(env, 16, 1)
    charged = 0
    for joint, (_, played, step), (_, plain, other) in zip(
        actions, play(env, actions), play(rule, actions[:, :, :6]), strict=True
    ):
        tariff, factor = 0.1 * (joint[:, 6, 0] + 1.0), 1.5 * (joint[:, 6, 1] + 1.0)
        volume = np.abs(played.flows.trade).sum(-1)
        np.testing.assert_allclose(step.info["tax"][:, :6], tariff[:, None] * volume, atol=1e-12)
        np.testing.assert_allclose(step.info["fee"][:, :6], factor[:, None] * other.info["fee"], atol=1e-12)
        np.testing.assert_array_equal(played.flows.trade, plain.flows.trade)
        wanted = (tariff[:, None] * volume + factor[:, None] * other.info["fee"]).sum(-1) - other.info["penalty"]
        np.testing.assert_allclose(step.reward[:, 6], wanted, atol=1e-9)
        np.testing.assert_allclose(
            other.reward - step.reward[:, :6],
            (tariff[:, None] - case.tariff) * volume + (factor[:, None] - 1.0) * other.info["fee"],
            atol=1e-9,
        )
        assert not any(step.info[key][:, 6].any() for key in AGENT_KEYS)
        charged += int((other.info["fee"] > 0).sum())
    assert charged > 5
    changed = actions.copy()
    changed[:, :, 6, 2:] *= -1.0  # padding means nothing
    np.testing.assert_equal([row[2] for row in play(env, changed)], [row[2] for row in play(env, actions)])


def test_the_operator_may_keep_any_tariff_of_the_scenario():
    for tariff, most in ((0.01, 0.11), (0.2, 0.2), (0.0, 0.11)):
        for dno in OPERATORS:
            env = make_functional(NAME, prosumers=3, tariff=tariff, dno=dno)
            assert (env.tariff_max, env.fee_max) == (most, 2.0)
    plan = make_functional(NAME, prosumers=3, tariff=0.2, dno="agent").policy("vgne").plan
    np.testing.assert_allclose(plan[:, -1, :2], [[1.0, 0.0]] * 24)


def test_empty_slots_mean_nothing():
    case = community("slack", 6, 0)
    env = make_functional(NAME, scenario=case)
    assert (case.partner < 0).any()
    actions = random_actions(env, 4)
    changed = actions.copy()
    changed[..., 4:] = np.where(case.partner >= 0, actions[..., 4:], -actions[..., 4:])
    assert (changed != actions).any()
    for (_, _, one), (_, _, same) in zip(play(env, actions), play(env, changed), strict=True):
        np.testing.assert_equal(one, same)
        np.testing.assert_array_equal(one.info["partners"][0], (case.partner >= 0).sum(1))


# Measures of whole days.


def recorded(env, policy, num_envs=1):
    """States and actions of a day, as ``assess`` wants them."""
    states, joint, state = [], [], start(env, num_envs)
    stream = NumpyStream(9)
    for _ in range(env.horizon):
        noise = stream.draw(policy.noise, num_envs)
        actions = policy.act(env.params, np.zeros((num_envs, *env.context.shape)), state, noise)
        states.append(state), joint.append(actions)
        state = env.step(env.params, state, actions, stream.draw(env.noise, num_envs)).state
    return type(state)(*map(np.stack, zip(*states, strict=True))), np.stack(joint)


def test_assessment_of_exact_schedules(exact_case):
    env = make_functional(NAME, scenario=exact_case.replace(import_max=np.inf, voltage_min=0.5), dno="agent")
    size = exact_case.size
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(env.solution("vgne").cost, env.solution("no_trade").cost, rtol=1e-3)
    for name, key in (("vgne", "equilibrium"), ("social_optimum", "coordinated"), ("no_trade", "truthful")):
        found = env.assess(env.params, *recorded(env, env.policy(name), 2))
        np.testing.assert_allclose(found["cost"][:, :size], np.stack([env.solution(name).cost] * 2), rtol=1e-8)
        np.testing.assert_allclose(found["cost"], found[f"cost_{key}"], rtol=1e-12)
        np.testing.assert_allclose(found["social_cost"], found["cost"][:, :size].sum(axis=1), rtol=1e-12)
        assert (found["social_cost_coordinated"] <= found["social_cost"] + 1e-9).all()
        # The operator would take the highest tariff.
        volume = np.abs(env.solution(name).schedules.trade).sum()
        np.testing.assert_allclose(
            found["exploitability"][:, size], (env.tariff_max - exact_case.tariff) * volume, atol=1e-6
        )
        if name == "vgne":
            assert (found["exploitability"][:, :size] <= 1e-6 * np.abs(found["cost"][:, :size])).all()
            assert found["grid_distance"].max() < 1e-6
            assert found["trade_distance"].max() < 1e-6
            assert found["competitive_gain"].max() < 1e-6 * np.abs(found["cost"]).max()
        if name == "no_trade":
            # At the equilibrium's prices trading pays those who could.
            assert found["competitive_gain"][0, :size].sum() > 1e-3 * found["social_cost"][0]
            # Trades are held at zero, so that there is nothing to gain.
            assert (found["exploitability"][:, :size] <= 1e-6 * np.abs(found["cost"][:, :size])).all()
            wanted = np.abs(env.solution("vgne").schedules.trade.sum(-1)).mean(axis=0)
            np.testing.assert_allclose(found["trade_distance"][0, :size], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["slack", "tight", "sunny", "final charge", "unlike"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_day_of_a_prosumer_s_own_beats_the_best_response(kind, network):
    """Random days: gains are finite; no other random day of one prosumer, with the same trades, saves more."""
    env = make_functional(NAME, scenario=community(kind, 4, 7, 6), network=network)
    case, plain = env.scenario, make_functional(NAME, scenario=community(kind, 4, 7, 6))
    state, actions = recorded(env, baselines_random(env), 2)
    found = env.assess(env.params, state, actions)
    gain = found["exploitability"]
    assert np.isfinite(gain).all()
    assert gain.max() > 1e-3
    rng = np.random.default_rng(0)
    # Others, and all trades, as played; limits do not count for one who may make none worse.
    day = [env.play(env.params, type(state)(*(leaf[h] for leaf in state)), joint) for h, joint in enumerate(actions)]
    own = Schedules(*(np.stack(leaf, axis=1) for leaf in zip(*(hour.planned for hour in day), strict=True)))
    before = rules.costs(case, own)
    tried = 0
    for _ in range(60):
        i = int(rng.integers(case.size))
        share = rng.uniform(0.5, 1.0, (2, 1))
        changed = np.arange(case.size) == i
        dispatch = np.where(changed, share[..., None] * own.dispatch, own.dispatch)
        curtail = np.where(changed, share[..., None] * own.curtail, own.curtail)
        grid = own.grid + own.dispatch - dispatch + curtail - own.curtail
        new = own._replace(dispatch=dispatch, curtail=curtail, grid=grid)
        worse = rules.state_of(case.params, rules.net_demand(new))
        old = rules.state_of(case.params, rules.net_demand(own))
        fits = (grid >= 0.0).all(axis=(1, 2)) if not case.export else np.ones(2, bool)
        for field in ("line_excess", "voltage_excess", "angle_excess", "import_excess"):
            more = getattr(worse, field) - getattr(old, field) <= 1e-12
            fits &= more.reshape(2, -1).all(axis=1)
        saved = (before - rules.costs(case, new))[:, i]
        assert (saved[fits] <= gain[fits, i] + 1e-7).all()
        tried += int((fits & (saved > 0.0)).sum())
    assert tried > 0 or kind in ("tight", "sunny", "unlike")  # where one who changes makes some limit worse
    assert found["nearest"].all() == (kind in ("tight", "unlike"))
    assert plain.horizon == env.horizon


def baselines_random(env):
    from baselines import make

    return make(env, "random")


def test_the_planner_pays_least_whatever_is_played():
    for seed in range(3):
        env = make_functional(NAME, scenario=short(Scenario.random(5, seed), 6, first=14))
        found = env.assess(env.params, *recorded(env, baselines_random(env), 3))
        assert (found["social_cost_coordinated"] < found["social_cost"]).all()
        assert (found["social_cost_coordinated"] <= found["social_cost_equilibrium"]).all()


# Observations, infos, determinism.


@pytest.mark.parametrize("dno", OPERATORS)
def test_observations_hold_what_the_documentation_says(dno):
    case = tight(short(Scenario.random(5, 4), 6, first=8)).replace(solar=lambda_solar(5))
    face = make_parallel(NAME, scenario=case, dno=dno, forecast=2, forecast_error=0.0, infos="network")
    env, feeder = face.functional, case.feeder
    column = {name: index for index, name in enumerate(env.features)}
    received, infos = face.reset(seed=0)
    proposals, trades = np.zeros((5, case.slots)), np.zeros((5, case.slots))
    tariff, factor = case.tariff, 1.0
    for hour in range(7):
        rows = np.stack(list(received.values()))
        people, operator = rows[:5], rows[5:]
        now, later = min(hour, 6), min(hour + 2, 6)
        assert face.state_space.contains(face.state())

        def shows(name, values, rows=people):
            np.testing.assert_allclose(rows[:, column[name]], values, atol=2e-6, err_msg=name)

        shows("demand", case.demand[now] / case.demand.max())
        shows("solar", case.solar[now] / case.solar.max())
        shows("forecast_demand", case.demand[later] / case.demand.max())
        shows("forecast_solar", case.solar[later] / case.solar.max())
        charge = np.array([infos[agent]["charge"] for agent in case.agents])
        shows("charge", np.where(case.storage_max > 0, charge / np.maximum(case.storage_max, 1e-9), 0.0))
        for name in ("dispatch_max", "storage_power", "storage_min", "storage_max"):
            shows(name, getattr(case, name) / max(getattr(case, name).max(), 1e-9))
        shows("resistance", np.diag(feeder.R)[case.bus] / np.diag(feeder.R)[case.bus].max())
        shows("slope", case.grid_slope[now] / case.grid_slope.max(), rows)
        shows("passive", case.passive_total[now] / case.passive_total.max(), rows)
        shows("sine", math.sin(2 * math.pi * hour / 24), rows)
        shows("cosine", math.cos(2 * math.pi * hour / 24), rows)
        shows("last_price", 2.0 * infos["prosumer_0"]["price"] / env.limit_price - 1.0, rows)
        most = (case.passive_total + case.demand.sum(axis=1)).max()
        shows("last_import", np.clip(infos["prosumer_0"]["imported"] / most, -1, 1), rows)
        params = case.params
        for k in range(case.slots):
            shows(f"trade_max_{k}", params.trade_max[:, k] / params.trade_max.max())
            partner = case.partner[:, k]
            offered = [proposals[j, case.reverse[i, k]] if j >= 0 else 0.0 for i, j in enumerate(partner)]
            shows(f"proposal_{k}", offered)
            shows(f"last_trade_{k}", trades[:, k] / np.where(params.trade_max[:, k] > 0, params.trade_max[:, k], 1.0))
        if dno == "agent":
            shows("tariff", tariff / env.tariff_max, rows), shows("fee_factor", factor / env.fee_max, rows)
            private = ("demand", "solar", "charge", "forecast_demand", "dispatch_max", "proposal_0", "last_trade_0")
            assert not operator[:, [column[name] for name in private]].any()
            for bus in feeder.buses:
                shows(f"voltage_{bus}", 0.0)
                if hour:
                    widest = max(1.0 - case.voltage_min, case.voltage_max - 1.0)
                    seen = np.clip((infos["dno_0"][f"voltage_{bus}"] - 1.0) / widest, -1, 1)
                    shows(f"voltage_{bus}", seen, operator)
            for line, bus in enumerate(feeder.fed):
                if hour:
                    flow = infos["dno_0"][f"flow_{feeder.buses[bus]}"] / case.line_limit[line]
                    shows(f"loading_{feeder.buses[bus]}", min(flow, 1.0), operator)
        if hour < 6:
            rng = np.random.default_rng(hour)
            joint = {agent: rng.uniform(-1, 1, face.action_space(agent).shape) for agent in face.agents}
            proposals = np.stack([joint[agent][4:] for agent in case.agents]) * (case.partner >= 0)
            if dno == "agent":
                tariff, factor = 0.5 * (joint["dno_0"] + 1.0) * np.array([env.tariff_max, env.fee_max])
            received, *_, infos = face.step(joint)
            trades = face.runner.state.trade[0]


def lambda_solar(size):
    rng = np.random.default_rng(1)
    return rng.uniform(0.0, 2.0, (7, size))


def test_prosumers_do_not_see_each_other():
    """Another one's profile, unit and storage changed: nobody else sees it before anything is played."""
    case = short(Scenario.random(5, 0), 3)
    first = int(np.argmin(case.demand.max(0) + case.storage_max / 100))  # whose data set no scale

    def other(name):
        values = np.array(getattr(case, name))
        values[..., first] *= 0.9
        return values

    changed = case.replace(**{name: other(name) for name in ("demand", "solar", "storage_power", "initial_charge")})
    changed = changed.replace(storage_min=np.minimum(changed.storage_min, changed.initial_charge))
    seen = [make_vector(NAME, 1, scenario=each, forecast=1).reset(seed=0)[0][0] for each in (case, changed)]
    features = make_functional(NAME, scenario=case, forecast=1).features
    public = [features.index(name) for name in ("last_import", "last_price")]  # relative to totals, which are public
    seen = [np.delete(each, public, axis=1) for each in seen]
    assert set(np.flatnonzero((seen[0] != seen[1]).any(axis=1))) <= {first}
    assert (seen[0][first] != seen[1][first]).any()


def test_forecasts_are_noisy_and_seeded():
    case = Scenario.random(20, 0)
    env = make_functional(NAME, scenario=case, forecast=3, forecast_error=0.2)
    index = env.features.index("forecast_demand") - len(env.features)
    faces = [MarketVectorEnv(env, 4) for _ in range(3)]
    seen = [[face.reset(seed=seed)[0]] for face, seed in zip(faces, (1, 1, 2), strict=True)]
    for _ in range(20):
        for rows, face in zip(seen, faces, strict=True):
            rows.append(face.step(np.zeros(face.action_space.shape))[0])
    shown = [np.stack(rows)[..., index] for rows in seen]
    np.testing.assert_array_equal(shown[0], shown[1])
    assert (shown[0] != shown[2]).mean() > 0.9
    later = (case.demand[3:24] / case.demand.max())[:, None] + 0.0 * shown[0]
    kept = (later < 0.5) & (later > 0)
    errors = (shown[0][kept] / later[kept]) - 1.0
    assert abs(errors.mean()) < 5 * 0.2 / math.sqrt(errors.size)
    assert errors.std() == pytest.approx(0.2, rel=0.1)


def test_a_day_truncates_and_infos_keep_their_keys():
    face, batch = (make(NAME, *rest, scenario=short(Scenario.random(4, 0), 5), dno="agent") for make, rest in (
        (make_parallel, ()), (make_vector, (2,))))  # fmt: skip
    case = face.functional.scenario
    _, infos = face.reset(seed=0)
    _, first = batch.reset(seed=0)
    assert list(first) == MARKET_KEYS + AGENT_KEYS
    assert infos["prosumer_0"]["price"] == pytest.approx(0.1624)
    assert infos["prosumer_1"]["charge"] == pytest.approx(case.initial_charge[1])
    for hour in range(1, 6):
        for info in infos.values():
            assert list(info) == MARKET_KEYS + AGENT_KEYS
            assert all(type(value) is float for value in info.values())
        *_, terminated, truncated, infos = face.step(zeros(face))
        assert list(truncated) == [*case.agents, "dno_0"]
        assert not any(terminated.values())
        assert all(flag is (hour == 5) for flag in truncated.values())
    assert face.agents == []
    assert face.action_space("prosumer_0").shape == (4 + case.slots,)
    assert face.action_space("dno_0").shape == (2,)
    quiet = make_parallel(NAME, scenario=case, infos="none")
    assert quiet.reset(seed=0)[1] == quiet.step(zeros(quiet))[-1] == {agent: {} for agent in quiet.possible_agents}
    more = make_functional(NAME, scenario=case, infos="network")
    assert len(more.info_axes) == len(MARKET_KEYS + AGENT_KEYS) + 36 + 35


def test_a_day_is_the_same_through_every_face():
    env = make_functional(NAME, prosumers=8, seed=3, forecast=2, dno="agent", trade_price="bilateral")
    actions = random_actions(env, 1, 5).astype(np.float32)
    actions[:, :, -1, 2:] = 0.0
    parallel, again, turns = MarketParallelEnv(env), MarketParallelEnv(env), MarketAECEnv(MarketParallelEnv(env))
    batched, wide = MarketVectorEnv(env, 1), MarketVectorEnv(env, 1)
    received, _ = parallel.reset(seed=3)
    turns.reset(seed=3), again.reset(seed=3), wide.reset(seed=4)
    seen, _ = batched.reset(seed=3)
    for hour, joint in enumerate(actions):
        np.testing.assert_array_equal(np.stack(list(received.values())), seen[0])
        own = {
            agent: row[: parallel.action_space(agent).shape[0]]
            for agent, row in zip(parallel.agents, joint[0], strict=True)
        }
        received, rewards, _, truncated, infos = parallel.step(own)
        for agent, action in own.items():
            assert turns.agent_selection == agent
            turns.step(action)
        assert turns.rewards == rewards
        repeated = again.step(own)
        assert repeated[1] == rewards
        assert repeated[4] == infos
        seen, reward, *_ = batched.step(joint)
        np.testing.assert_array_equal(reward[0], list(rewards.values()))
        assert all(flag == (hour == 23) for flag in truncated.values())
        np.testing.assert_array_equal(wide.step(joint)[1], reward)  # another seed: other forecasts, the same day


def loaded(prosumers, seed, hours):
    """Limits that are met, none so near that single precision could not tell."""
    case = community("slack", prosumers, seed, hours)
    return case.replace(line_limit=tight(case).line_limit, import_max=tight(case).import_max)


@pytest.mark.parametrize(("trade_price", "network"), [("contract", "price"), ("bilateral", "curtail")])
def test_jax_and_torch_play_the_same_hours(trade_price, network):
    jax = pytest.importorskip("jax")
    torch = pytest.importorskip("torch")
    case = loaded(6, 1, 4)
    env = make_functional(NAME, scenario=case, trade_price=trade_price, network=network, dno="agent")
    actions = random_actions(env, 3)
    wanted = [step for *_, step in play(env, actions)]
    observed = [env.observe(env.params, step.state) for step in wanted]
    compiled = jax.jit(lambda params, state, joint: env.step(params, state, joint, {}))
    for xp, step, dtype, close in (
        (jax.numpy, compiled, jax.numpy.float32, 2e-3),
        (torch, lambda params, state, joint: env.step(params, state, joint, {}), torch.float64, 1e-9),
    ):
        params = env.parameters(xp, dtype)
        state = env.initial(params, {}, 3)
        for hour, joint in enumerate(actions):
            found = step(params, state, xp.asarray(joint, dtype=dtype))
            np.testing.assert_allclose(found.reward, wanted[hour].reward, rtol=close, atol=5.0 * close)
            for feature, other in zip(env.observe(params, found.state), observed[hour], strict=True):
                np.testing.assert_allclose(feature, np.broadcast_to(other, np.shape(feature)), atol=5.0 * close)
            state = found.state


def test_a_compiled_rollout_of_the_equilibrium_costs_what_the_solver_says():
    jax = pytest.importorskip("jax")
    from p2penv.faces.jax import MarketJaxEnv

    env = make_functional(NAME, scenario=short(Scenario.random(4, 1), 6, first=8), dno="agent", forecast=1)
    face, policy = MarketJaxEnv(env, num_envs=3), env.policy("vgne")
    rollout = jax.jit(lambda key, params: face.rollout(key, policy, 6, params)[1])
    cost = -np.asarray(rollout(jax.random.key(0), face.params)).sum(axis=0)
    np.testing.assert_allclose(cost[:, :4], np.stack([env.solution("vgne").cost] * 3), rtol=1e-5)


def test_an_environment_survives_pickling():
    env = make_functional(NAME, scenario=short(Scenario.random(4, 0), 3), dno="agent", forecast=1)
    env.policy("vgne")
    twin = pickle.loads(pickle.dumps(env))
    actions = random_actions(env, 2)
    np.testing.assert_equal([row[2] for row in play(twin, actions)], [row[2] for row in play(env, actions)])
    with pytest.raises(ValueError, match="read-only"):
        env.params.market.demand[0] = 0.0


def test_single_precision_stays_close():
    env = make_functional(NAME, scenario=loaded(6, 0, 4))
    actions = random_actions(env, 8).astype(np.float32)
    params = env.parameters(np, np.float32)
    state = env.initial(params, {}, 8)
    for joint, (_, _, wanted) in zip(actions, play(env, actions.astype(np.float64)), strict=True):
        step = env.step(params, state, joint, {})
        assert step.reward.dtype == np.float32
        np.testing.assert_allclose(step.reward, wanted.reward, rtol=1e-3, atol=1e-2)
        state = step.state


def test_the_shipped_day():
    env = make_functional(NAME)
    assert (len(env.context), env.horizon) == (12, 24)
    assert make_functional(NAME, prosumers=5, seed=2).scenario.demand.shape == (25, 5)
    state = start(env, 2)
    for _ in range(3):
        step = env.step(env.params, state, env.policy("vgne").act(env.params, None, state, {}), {})
        state = step.state
    assert not step.info["penalty"].any()


# Factories, errors.


def test_factories_and_registries():
    few = {"prosumers": 4}
    assert isinstance(grid_v0.parallel_env(**few), MarketParallelEnv)
    assert isinstance(grid_v0.raw_env(**few), MarketAECEnv)
    assert isinstance(grid_v0.env(**few).unwrapped, MarketAECEnv)
    assert isinstance(grid_v0.solo_vector_env(2, agent="prosumer_0", **few), MarketSoloVectorEnv)
    assert isinstance(pettingzoo.make("parallel", ID, **few), MarketParallelEnv)
    solo = gymnasium.make(ID, agent="dno_0", dno="agent", **few)
    solo.reset(seed=1)
    assert solo.step(solo.action_space.sample())[3] is False
    case = load_scenario(prosumers=3)
    assert isinstance(make_functional(NAME, scenario=case, tariff=0.02), Grid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prosumers": 1}, "prosumers must"),
        ({"scenario": "ieee38"}, "scenario must be one of .*'ieee37'.*; got 'ieee38'"),
        ({"trade_price": "free"}, "trade_price must be one of 'contract', 'bilateral', 'shadow'; got 'free'"),
        ({"network": "none"}, "network must be one of 'price', 'curtail'; got 'none'"),
        ({"dno": "nobody"}, "dno must be one of 'rule', 'agent'; got 'nobody'"),
        ({"infos": "all"}, "infos must be one of 'full', 'network', 'none'; got 'all'"),
        ({"dno": "agent", "tariff_max": 0.001}, "tariff_max must be finite and >= 0.01, got 0.001"),
        ({"dno": "agent", "tariff": 0.0, "tariff_max": 0.0}, "tariff_max must be finite and > 0, got 0.0"),
        ({"dno": "agent", "fee_max": 0.5}, "fee_max must be finite and >= 1, got 0.5"),
        ({"tariff_max": 0.2}, "tariff_max is for an operator that plays; dno is 'rule'"),
        ({"fee_max": 3.0}, "fee_max is for an operator that plays; dno is 'rule'"),
        ({"limit_price": 0.0}, "limit_price must be finite and > 0, got 0.0"),
        ({"forecast": -1}, r"forecast must be in \[0, 24\], got -1.0"),
        ({"forecast": 25}, r"forecast must be in \[0, 24\], got 25.0"),
        ({"forecast": 1.5}, "forecast must be a whole number of hours, got 1.5"),
        ({"forecast_error": 0.2}, "forecast_error is for forecasts; forecast is 0"),
        ({"forecast": 1, "forecast_error": NAN}, "forecast_error must be finite and >= 0, got nan"),
        ({"tariff": -1.0}, "tariff must be finite and >= 0, got -1.0"),
        ({"network": "curtail", "line_limit": 100.0}, "passive loads alone exceed a limit: line"),
        ({"voltage_min": 1.2}, "voltage limits must have"),
        ({"import_max": 10.0, "trade_price": "shadow"}, "no schedules of .* satisfy all constraints"),
        ({"solar": NAN}, "solar must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_name_option_value_and_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_functional(NAME, **({"prosumers": 4} | options))


def test_unknown_names_are_refused():
    with pytest.raises(
        TypeError, match=r"unknown scenario field 'horizon'; .*storage_power.*environment: .*trade_price"
    ):
        make_functional(NAME, horizon=3)
    with pytest.raises(TypeError, match=r"unknown scenario field 'prosumers'; .*environment: .*trade_price"):
        make_functional(NAME, scenario=load_scenario(prosumers=4), prosumers=3)
    with pytest.raises(ValueError, match=r"agent must be one of .*; got 'dno_0'"):
        make_solo(NAME, "dno_0", prosumers=4)
    with pytest.raises(
        ValueError, match="policy must be one of 'vgne', 'wardrop', 'social_optimum', 'no_trade'; got 've'"
    ):
        make_solo(NAME, "prosumer_1", others="ve", prosumers=4)


@pytest.mark.parametrize(
    ("agent", "action", "message"),
    [
        ("prosumer_1", [0.0, NAN], r"action of prosumer_1, entry storage, must lie in \[-1, 1\], got nan"),
        ("prosumer_1", [0.0] * 4 + [1.5], r"action of prosumer_1, entry trade_0, must lie in \[-1, 1\], got 1\.5"),
        ("prosumer_1", [0.0, 0.0, 0.0, -2.0], r"entry limit_price, must lie in \[-1, 1\], got -2\.0"),
        ("dno_0", [-1.5, 0.0], r"action of dno_0, entry tariff, must lie in \[-1, 1\], got -1\.5"),
        ("dno_0", [0.0] * 5, r"action of dno_0 must have shape \(2,\), got \(5,\)"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(agent, action, message):
    options = {"scenario": short(Scenario.random(3, 0), 3), "dno": "agent", "forecast": 1}
    erring, twin = (make_parallel(NAME, **options) for _ in range(2))
    erring.reset(seed=0), twin.reset(seed=0)
    if agent != "dno_0":
        action = action + [0.0] * (erring.action_space(agent).shape[0] - len(action))
    with pytest.raises(ValueError, match=message):
        erring.step(zeros(erring) | {agent: np.array(action)})
    np.testing.assert_equal(erring.step(zeros(erring)), twin.step(zeros(twin)))


# Any scenario, any action: a valid step or one clear error.

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dispatch_max": st.floats(-0.1, 50.0),
        "dispatch_quadratic": st.floats(0.0, 1.0),
        "storage_power": st.floats(0.0, 20.0),
        "storage_max": st.floats(0.0, 100.0),
        "leakage": st.floats(0.9, 1.01),
        "charge_efficiency": st.floats(0.01, 1.0),
        "final_charge": st.booleans(),
        "export": st.booleans(),
        "reactive": st.booleans(),
        "power_factor": st.floats(0.01, 1.0),
        "solar": st.floats(0.0, 100.0),
        "tariff": st.floats(0.0, 0.2),
        "trade_cost": st.floats(0.0, 1.0),
        "grid_slope": st.floats(1e-9, 1.0),
        "import_min": st.floats(-100.0, 1e4),
        "line_limit": st.floats(0.1, 1e5),
        "voltage_min": st.floats(0.5, 1.01),
        "lost_load": st.floats(0.0, 100.0),
        "step_hours": st.floats(0.01, 10.0),
        "forecast": st.integers(0, 2),
        "forecast_error": st.floats(0.0, 2.0),
        "limit_price": st.floats(0.0, 10.0),
    },
)
# What an error may name besides the fields.
BLAMED = ("storage_min", "initial_charge", "storage", "passive loads", "voltage", "import_max", "tariff_max")


@settings(max_examples=80)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 100), OPTIONS, FIELDS, st.lists(ENTRY), st.booleans())
def test_any_scenario_and_action_gives_a_valid_step_or_one_error(
    prosumers, hours, seed, options, fields, entries, single
):
    env, message = None, ""
    fields.setdefault("forecast", 1)
    fields["forecast"] = min(fields["forecast"], hours)
    try:
        env = make_functional(NAME, scenario=short(Scenario.random(prosumers, seed), hours), **options, **fields)
    except ValueError as error:
        message = str(error)
    if env is None:
        assert any(subject in message for subject in (*fields, *BLAMED)), message
        return
    face = MarketVectorEnv(env, 2, dtype="float32" if single else "float64")
    seen, info = face.reset(seed=seed)
    actions = random_actions(env, 2, seed)[0]
    actions.ravel()[: len(entries)] = entries[: actions.size]
    for _ in range(hours + 1):
        assert face.observation_space.contains(seen)
        for key, value in info.items():
            assert not np.isnan(value).any(), key
        seen, reward, terminated, truncated, info = face.step(actions)
        assert np.isfinite(reward).all()
        assert not (terminated & truncated).any()
        if "final_obs" in info:
            assert face.observation_space.contains(info.pop("final_obs"))
            info.pop("_final_obs")


@given(st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_any_numbers_are_played_or_refused(numbers):
    face = make_parallel(NAME, scenario=short(Scenario.random(3, 0), 2))
    face.reset(seed=0)
    size = face.action_space("prosumer_0").shape[0]
    actions = {agent: np.full(size, number) for agent, number in zip(face.agents, numbers, strict=True)}
    if np.all(np.abs(numbers) <= 1):
        assert np.isfinite(list(face.step(actions)[1].values())).all()
    else:
        agent = face.agents[int(np.argmax(~(np.abs(numbers) <= 1)))]
        with pytest.raises(ValueError, match=re.escape(f"action of {agent}, entry dispatch")):
            face.step(actions)
