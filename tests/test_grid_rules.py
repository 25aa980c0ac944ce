"""Rules of trading under network limits: hand-worked cases, the definitions at random, other namespaces, balance."""

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.core.params import cast
from p2penv.grid import Feeder, Scenario, load_scenario, rules
from p2penv.grid.rules import Schedules

SEEDS = st.integers(0, 10_000)
# A chain s–1–2 of 0.01 + 0.02j, on 1 kVA: drops are easy to read.
CHAIN = Feeder.from_lines("chain", "s", [("s", "1"), ("1", "2")], [0.01, 0.01], [0.02, 0.02], base_kva=100.0)

COMMUNITY = load_scenario("ieee37", prosumers=20, seed=3, scale="paper", power_factor=0.95)


def chain(prosumers=3, hours=2, **fields):
    """Prosumers 0 and 1 at bus 1 and 2, others at bus 2; 10 kW of passive load at bus 1."""
    fields = {
        "feeder": CHAIN,
        "bus": np.minimum(np.arange(prosumers) + 1, 2),
        "demand": np.full((hours + 1, prosumers), 4.0),
        "edges": [(0, 1), (1, 2)] if prosumers == 3 else [(0, 1)],
        "passive_active": np.tile([0.0, 10.0, 0.0], (hours + 1, 1)),
        "passive_reactive": 0.0,
    } | fields
    return Scenario(**fields)


def day(scenario, seed, batch=()):
    """Random schedules within the devices' limits, trades reciprocal, the grid as residual."""
    rng, params = np.random.default_rng(seed), scenario.params
    shape = (*batch, scenario.hours, scenario.size)
    dispatch = rng.uniform(0.0, 1.0, shape) * params.dispatch_max
    curtail = rng.uniform(0.0, 1.0, shape) * params.solar[:-1]
    wanted = rng.normal(0.0, 1.0, shape) * params.storage_power
    state = np.broadcast_to(params.initial_charge, shape[:-2] + shape[-1:])
    charge, discharge = np.zeros(shape), np.zeros(shape)
    for hour in range(scenario.hours):
        charge[..., hour, :], discharge[..., hour, :] = rules.storage_split(params, state, wanted[..., hour, :])
        state = rules.next_charge(params, state, charge[..., hour, :], discharge[..., hour, :])
    trade, _ = rules.match(params, rng.normal(0.0, 10.0, (*shape, scenario.slots)))
    grid = rules.grid_exchange(params, dispatch, charge, discharge, curtail, trade)
    return Schedules(dispatch, charge, discharge, curtail, grid, trade)


# --- Devices and trades -----------------------------------------------------------------------------------------------


def test_an_hour_worked_by_hand():
    scenario = chain(
        solar=np.tile([0.0, 6.0, 0.0], (3, 1)),
        dispatch_max=[5.0, 0.0, 0.0],
        dispatch_quadratic=0.01,
        dispatch_linear=0.05,
        storage_cost=0.001,
        trade_cost=[0.08, 0.1],
        tariff=0.01,
        grid_slope=[0.01, 0.02, 0.03],
    )
    trade = np.array([[0.0, 0.0], [0.0, -2.0], [2.0, 0.0]])
    flows = Schedules(np.array([3.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.zeros(3), np.array([0.0, 0.5, 0.0]),
                      np.zeros(3), trade)  # fmt: skip
    assert scenario.partner.tolist() == [[1, -1], [0, 2], [1, -1]]
    grid = rules.grid_exchange(scenario.params, *flows[:4], trade, 1)
    # 4 − 3; 4 − 6 + 0.5 + 1 + 2; 4 − 2.
    np.testing.assert_allclose(grid, [1.0, 1.5, 2.0])
    flows = flows._replace(grid=grid)
    np.testing.assert_allclose(rules.net_demand(flows), [1.0, -0.5, 4.0])
    bill = rules.bill(scenario.params, flows, 1)
    np.testing.assert_allclose(bill.dispatch, [0.01 * 9 + 0.05 * 3, 0.0, 0.0])
    np.testing.assert_allclose(bill.storage, [0.0, 0.001, 0.0])
    np.testing.assert_allclose(bill.trade, [0.0, -0.2, 0.2])
    np.testing.assert_allclose(bill.tariff, [0.0, 0.02, 0.02])
    np.testing.assert_allclose(bill.grid, 0.02 * (4.5 + 10.0) * grid)
    np.testing.assert_allclose(bill.cost, rules.hour_cost(scenario.params, flows, 1))
    bilateral = rules.bill(scenario.params, flows, 1, np.full((3, 2), 0.3), np.array(0.05))
    np.testing.assert_allclose(bilateral.trade, [0.0, -0.6, 0.6])
    np.testing.assert_allclose(bilateral.tariff, [0.0, 0.1, 0.1])


def test_each_side_of_a_pair_may_see_a_cost_of_its_own():
    scenario = chain(trade_cost=[(0.08, 0.09), (0.1, 0.2)])
    np.testing.assert_array_equal(scenario.params.trade_cost, [[0.08, 0.0], [0.09, 0.1], [0.2, 0.0]])


def test_costs_of_a_day_are_those_of_its_hours():
    schedules = day(COMMUNITY, 0, (2,))
    hours = [
        rules.hour_cost(COMMUNITY.params, Schedules(*(each[:, h] for each in schedules[:5]), schedules.trade[:, h]), h)
        for h in range(COMMUNITY.hours)
    ]
    np.testing.assert_allclose(rules.costs(COMMUNITY, schedules), np.sum(hours, axis=0), rtol=1e-13)
    # Environments may be at hours of their own.
    at = np.array([5, 17])
    mixed = Schedules(*(each[[0, 1], at] for each in schedules))
    each = rules.hour_cost(COMMUNITY.params, mixed, at)
    np.testing.assert_allclose(each, [hours[5][0], hours[17][1]], rtol=1e-13)


@given(SEEDS)
def test_power_and_money_balance(seed):
    schedules = day(COMMUNITY, seed)
    params = COMMUNITY.params
    # (8b) to the last bit.
    np.testing.assert_array_equal(
        schedules.trade + np.where(params.slots > 0, rules.exchange(params, schedules.trade), 0.0), 0.0
    )
    bill = rules.bill(params, schedules)
    price = rules.grid_price(params, schedules.grid.sum(axis=-1))
    received = bill.tariff.sum(axis=-1) + params.step_hours * price * schedules.grid.sum(axis=-1)
    paid = (bill.trade + bill.tariff + bill.grid).sum(axis=-1)
    np.testing.assert_allclose(paid, received, atol=1e-9)
    # Every bus: what the line brings is what the prosumers there and the passive load draw, and what goes on.
    feeder, net = COMMUNITY.feeder, rules.net_demand(schedules)
    state = rules.state_of(COMMUNITY, net)
    drawn = params.passive_active[:-1].copy()
    np.add.at(drawn.T, COMMUNITY.bus, net.T)
    into, onward = np.zeros((2, COMMUNITY.hours, feeder.size))
    into[:, feeder.fed] = state.active
    into[:, feeder.root] = state.grid_active
    np.add.at(onward.T, feeder.parent[feeder.fed], state.active.T)
    np.testing.assert_allclose(into, onward + drawn, atol=1e-9)
    # (17b): trades cancel, so the source gives what is bought and the passive load.
    np.testing.assert_allclose(state.grid_active, schedules.grid.sum(axis=-1) + params.passive_total[:-1], atol=1e-9)


@given(SEEDS)
def test_the_potential_changes_as_the_cost_of_who_deviates(seed):
    """An exact potential, with the trades of the deviator held, which its partners would have to answer."""
    before, other = day(COMMUNITY, seed), day(COMMUNITY, seed + 1)
    who = seed % COMMUNITY.size
    mixed = [np.array(each) for each in before[:5]]
    for mine, theirs in zip(mixed, other[:5], strict=True):
        mine[:, who] = theirs[:, who]
    after = Schedules(*mixed, before.trade)
    change = rules.costs(COMMUNITY, after) - rules.costs(COMMUNITY, before)
    gap = rules.potential(COMMUNITY, after) - rules.potential(COMMUNITY, before)
    assert gap == pytest.approx(change[who], abs=1e-8)
    assert rules.potential(COMMUNITY, before, "no_trade") == rules.potential(COMMUNITY, before)
    # What all pay together is the planner's potential, but for what goes from one prosumer to another.
    assert rules.potential(COMMUNITY, before, "social") == pytest.approx(rules.costs(COMMUNITY, before).sum())
    # Price takers do not see their own effect on the price.
    apart = rules.potential(COMMUNITY, before) - rules.potential(COMMUNITY, before, "wardrop")
    assert apart == pytest.approx(0.5 * (COMMUNITY.grid_slope[:-1, None] * before.grid**2).sum())
    with pytest.raises(ValueError, match=r"kind must be one of 'nash', .*; got 'vcg'"):
        rules.potential(COMMUNITY, before, "vcg")


@given(SEEDS, st.floats(0.9, 1.0))
def test_charge_stays_inside_and_nothing_nearer_was_possible(seed, leakage):
    rng = np.random.default_rng(seed)
    high = rng.uniform(1.0, 100.0, 3)
    low = rng.uniform(0.0, 0.9, 3) * high
    start = low + rng.uniform(0.0, 1.0, 3) * (high - low)
    power = rng.uniform(0.2, 20.0, 3) + 7.0 * (1.0 - leakage) * high
    scenario = chain(storage_power=power, storage_min=low, storage_max=high, initial_charge=start, leakage=leakage,
                     charge_efficiency=rng.uniform(0.8, 1.0, 3), discharge_efficiency=rng.uniform(0.8, 1.0, 3),
                     step_hours=rng.uniform(0.2, 1.0))  # fmt: skip
    params, state = scenario.params, np.tile(start, (4, 1))
    for _ in range(30):
        wanted = rng.normal(0.0, 20.0, (4, 3))
        charge, discharge = rules.storage_split(params, state, wanted)
        assert (charge * discharge == 0.0).all()
        assert ((charge >= 0.0) & (charge <= power) & (discharge >= 0.0) & (discharge <= power)).all()
        after = leakage * state + params.step_hours * (
            params.charge_efficiency * charge - discharge / params.discharge_efficiency
        )
        state = rules.next_charge(params, state, charge, discharge)
        np.testing.assert_allclose(state, after, atol=1e-12 * high.max())
        assert ((state >= low) & (state <= high)).all()
        # Where the request was not granted, power or charge is at a limit.
        limited = np.abs(charge - discharge - wanted) > 1e-9
        at_limit = (np.abs(state - low) < 1e-9) | (np.abs(state - high) < 1e-9)
        at_limit |= np.isclose(charge, power) | np.isclose(discharge, power)
        assert at_limit[limited].all()


def test_floors_of_each_environment():
    """Bounds of charge may differ between environments, which keeps a final charge within reach."""
    scenario = chain(storage_power=5.0, storage_max=20.0, initial_charge=10.0)
    params = scenario.params._replace(storage_min=np.array([[0.0] * 3, [9.0] * 3]))
    _, discharge = rules.storage_split(params, np.full((2, 3), 10.0), np.full((2, 3), -5.0))
    np.testing.assert_allclose(discharge, [[5.0] * 3, [0.94] * 3])


def test_matching_worked_by_hand():
    params = chain(trade_max=[3.0, 30.0]).params
    proposals = np.array([[5.0, 9.0], [-4.0, 2.0], [-1.0, 9.0]])
    trade, price = rules.match(params, proposals)
    # 0 wants 5, at most 3, and 1 offers 4; 1 wants 2 from 2, which offers 1. What is in empty slots counts for nothing.
    np.testing.assert_array_equal(trade, [[3.0, 0.0], [-3.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(price, params.trade_cost)
    same = np.array([[5.0, 0.0], [4.0, -2.0], [-1.0, 0.0]])
    assert not rules.match(params, same)[0].any()
    trade, price = rules.match(params, proposals, np.array([0.2, 0.1, 0.15]), "bilateral")
    # 0 pays up to 0.2 and 1 asks for 0.1; 1 pays up to 0.1, 2 asks for 0.15.
    np.testing.assert_array_equal(trade, [[3.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(price, [[0.15, 0.0], [0.15, 0.0], [0.0, 0.0]])


@given(SEEDS, st.sampled_from(["contract", "bilateral"]))
def test_matching_pair_by_pair(seed, mode):
    rng, params = np.random.default_rng(seed), COMMUNITY.params
    proposals = rng.normal(0.0, 20.0, (3, COMMUNITY.size, COMMUNITY.slots))
    limit = rng.choice([0.1, 0.2, 0.3], (3, COMMUNITY.size))
    trade, price = rules.match(params, proposals, limit, mode)
    seen = np.zeros_like(trade)
    for e in range(3):
        for m, (i, j) in enumerate(COMMUNITY.edges):
            ki, kj = (list(COMMUNITY.partner[a]).index(b) for a, b in ((i, j), (j, i)))
            most = COMMUNITY.trade_max[m]
            a, b = (np.clip(proposals[e, who, k], -most, most) for who, k in ((i, ki), (j, kj)))
            quantity = min(abs(a), abs(b)) if a * b < 0 else 0.0
            buyer, seller = (i, j) if a > 0 else (j, i)
            if mode == "bilateral" and limit[e, buyer] < limit[e, seller]:
                quantity = 0.0
            seen[e, i, ki], seen[e, j, kj] = np.sign(a) * quantity, np.sign(b) * quantity
            if mode == "bilateral" and quantity:
                assert price[e, i, ki] == price[e, j, kj] == 0.5 * (limit[e, i] + limit[e, j])
    np.testing.assert_array_equal(trade, seen)
    bill = rules.trade_payment(params, trade, price)
    np.testing.assert_allclose(bill.sum(axis=-1), 0.0, atol=1e-9)


# --- Network ----------------------------------------------------------------------------------------------------------


def test_a_fee_worked_by_hand():
    """Bus 2 draws through both lines; prosumer 1 buys there, 2 sells, 0 buys at bus 1."""
    scenario = chain(line_limit=[12.0, 1.0], line_price=2.0, voltage_min=0.5, voltage_max=1.5, angle_limit=1.0)
    net = np.array([5.0, 6.0, -2.0])
    state = rules.state_of(scenario, net, 0)
    np.testing.assert_allclose(state.active, [19.0, 4.0])
    np.testing.assert_allclose(state.line_excess, [7.0, 3.0])
    fees, operator = rules.network_fees(scenario.params, net, state)
    # 2·7 € for the first line by 5 : 6, 2·3 € for the second all to prosumer 1; who sells relieves.
    np.testing.assert_allclose(fees, [14.0 * 5 / 11, 14.0 * 6 / 11 + 6.0, 0.0])
    assert operator == 0.0
    # The passive load alone is too much and nobody buys: the operator pays.
    fees, operator = rules.network_fees(scenario.params, -net * 0.0, rules.state_of(scenario, net * 0.0, 0))
    assert not fees.any()
    assert operator == 0.0
    tight = scenario.replace(line_limit=[8.0, 1.0])
    fees, operator = rules.network_fees(tight.params, net * 0.0, rules.state_of(tight, net * 0.0, 0))
    assert not fees.any()
    assert operator == pytest.approx(4.0)


def excesses(state):
    """Value of each limit's function and its excess, in one row."""
    return np.concatenate(
        [state.line_excess, state.voltage_excess, state.angle_excess, state.import_excess[..., None]], axis=-1
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fees_follow_derivatives(sign):
    """Shares from finite differences of each violated limit, prosumer by prosumer, as the definition has them."""
    scenario = COMMUNITY.replace(
        line_limit=0.3 * COMMUNITY.line_limit, voltage_min=0.99, voltage_max=1.001, angle_limit=0.004,
        import_max=1500.0, import_min=400.0,
    )  # fmt: skip
    params, hour = scenario.params, 12
    net = sign * np.random.default_rng(1).uniform(-30.0, 170.0, scenario.size)
    state = rules.state_of(scenario, net, hour)
    excess = excesses(state)
    price = np.concatenate([np.full(35, scenario.line_price), np.full(36, scenario.voltage_price),
                            np.full(36, scenario.angle_price), [scenario.line_price]])  # fmt: skip
    step = 1e-4 * np.eye(scenario.size)
    slope = (
        excesses(rules.state_of(scenario, net + step, hour)) - excesses(rules.state_of(scenario, net - step, hour))
    ) / 2e-4
    push = np.maximum(0.0, slope * net[:, None])
    push[push < 1e-12] = 0.0
    total = push.sum(axis=0)
    violated = excess > 0.0
    assert violated[:35].any()
    assert violated[35:71].any()
    assert violated[71:107].any()
    assert violated[107]
    share = np.divide(push, total, out=np.zeros_like(push), where=total > 0)
    fees, operator = rules.network_fees(params, net, state)
    np.testing.assert_allclose(fees, (share * price * excess).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(operator, (price * excess)[total == 0.0].sum(), atol=1e-6)
    np.testing.assert_allclose(fees.sum() + operator, (price * excess).sum(), rtol=1e-12)


@given(SEEDS, st.floats(1.0, 400.0), st.booleans())
def test_cut_power_exceeds_nothing_and_no_smaller_cut_would_do(seed, size, reactive):
    rng = np.random.default_rng(seed)
    scenario = COMMUNITY.replace(reactive=reactive)
    net = rng.normal(rng.normal(0.0, size), size, (8, scenario.size))
    hours = rng.integers(scenario.hours, size=8)
    params = scenario.params
    alpha = rules.cut(params, net, hours)
    assert ((alpha >= 0.0) & (alpha <= 1.0)).all()

    def scaled(part):
        q = part[:, None] * params.reactive_demand[hours] @ params.location + params.passive_reactive[hours]
        p = part[:, None] * net @ params.location + params.passive_active[hours]
        return excesses(rules.network_state(scenario, -p, -q))

    assert (scaled(1.0 - alpha) == 0.0).all()
    fewer = scaled(1.0 - alpha * (1.0 - 1e-6) + 1e-9 * (alpha > 0))
    assert (fewer.max(axis=-1)[alpha > 0] > 0.0).all()


def test_a_cut_worked_by_hand():
    """10 kW pass already; 6 + 8j more on a line for 16 kVA: (10 + 6t)² + (8t)² = 16² at t = 0.7856…"""
    scenario = chain(2, power_factor=0.6, demand=np.tile([0.0, 6.0], (3, 1)), line_limit=[16.0, np.inf],
                     voltage_min=0.5, voltage_max=1.5, angle_limit=1.0)  # fmt: skip
    t = (-60.0 + np.sqrt(60.0**2 + 100.0 * 156.0)) / 100.0
    assert rules.cut(scenario.params, np.array([0.0, 6.0]), 0) == pytest.approx(1.0 - t, abs=1e-11)
    # Voltage of bus 2: 1 − 0.01·0.1 for the passive load, then 2·(0.01·0.06 + 0.02·0.08) for the whole of it.
    low = chain(2, power_factor=0.6, demand=np.tile([0.0, 6.0], (3, 1)), voltage_min=0.997)
    assert rules.cut(low.params, np.array([0.0, 6.0]), 0) == pytest.approx(1.0 - 0.002 / 0.0044, abs=1e-9)
    # Selling 25 of which the passive load takes 10, and none may leave.
    assert rules.cut(chain(2).params, np.array([-5.0, -20.0]), 0) == pytest.approx(0.6, abs=1e-11)
    assert rules.cut(chain(2).params, np.array([0.0, 0.0]), 0) == 0.0
    assert rules.cut(chain(2, import_max=12.0).params, np.array([4.0, 4.0]), 0) == pytest.approx(0.75, abs=1e-11)


# --- Other namespaces and precisions ----------------------------------------------------------------------------------


def outcome(params, proposals, limit, net, state, wanted, hour):
    trade, price = rules.match(params, proposals, limit, "bilateral")
    charge, discharge = rules.storage_split(params, state, wanted)
    grid = rules.grid_exchange(params, 0.0 * charge, charge, discharge, 0.0 * charge, trade, hour)
    flows = Schedules(0.0 * charge, charge, discharge, 0.0 * charge, grid, trade)
    network = rules.state_of(params, net, hour)
    fees = rules.network_fees(params, net, network)
    cost, after = rules.hour_cost(params, flows, hour, price), rules.next_charge(params, state, charge, discharge)
    return *fees, rules.cut(params, net, hour), *network, cost, after


def inputs(scenario):
    rng, n = np.random.default_rng(0), scenario.size
    return (
        rng.normal(0.0, 20.0, (5, n, scenario.slots)), rng.uniform(0.0, 0.4, (5, n)), rng.normal(60.0, 90.0, (5, n)),
        np.broadcast_to(scenario.initial_charge, (5, n)) + 0.0, rng.normal(0.0, 5.0, (5, n)),
    )  # fmt: skip


def test_jax_and_torch_agree_with_numpy():
    given, hour = inputs(COMMUNITY), 12
    wanted = outcome(COMMUNITY.params, *given, hour)
    with jax.enable_x64(True):
        params = cast(COMMUNITY.params, jax.numpy)
        arrays = [jax.numpy.asarray(each) for each in given]
        found = jax.jit(outcome)(params, *arrays, hour)
        each = jax.numpy.asarray([12, 12, 12, 12, 12])
        mixed = jax.jit(outcome)(params, *arrays, each)
        slope = jax.jit(
            jax.grad(lambda net: rules.network_fees(params, net, rules.state_of(params, net, hour))[0].sum())
        )
        assert bool(jax.numpy.isfinite(slope(arrays[2])).all())
    torch = array_api_compat.torch
    with_torch = outcome(cast(COMMUNITY.params, torch), *(torch.asarray(each) for each in given), hour)
    for want, *others in zip(wanted, found, mixed, with_torch, strict=True):
        for other in others:
            np.testing.assert_allclose(np.asarray(other), want, rtol=1e-9, atol=1e-9)


def test_single_precision_stays_single():
    params = cast(COMMUNITY.params, np, np.float32)
    found = outcome(params, *(each.astype(np.float32) for each in inputs(COMMUNITY)), 12)
    wanted = outcome(COMMUNITY.params, *inputs(COMMUNITY), 12)
    for single, double in zip(found, wanted, strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=2e-3, atol=2e-2)
