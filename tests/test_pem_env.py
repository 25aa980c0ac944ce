"""The private energy market: windows worked in plain Python, balances, batteries, planner, roles, faces, errors."""

import itertools
import math
import re

import gymnasium
import numpy as np
import pettingzoo
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from p2penv import make_functional, make_parallel, make_solo, make_vector, pem_v0
from p2penv.core.random import NumpyStream
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.parallel import MarketParallelEnv
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
from p2penv.faces.vector import MarketVectorEnv
from p2penv.pem import PEM, Scenario, load_scenario, settlement
from p2penv.pem.rules import Prices
from p2penv.pem.settlement import Homes

NAME, ID = "pem_v0", "p2penv/PEM-v0"
PRICINGS, RESPONSES, LEADERS = ("paper", "exact", "exact_bound"), ("agent", "best"), ("rule", "agent")
CAPS = ("preference_cap", "capacity_cap", "demand_cap")
MARKET_KEYS = ["price", "case", "saving", "grid_energy", "grid_account", "sellers", "buyers"]
AGENT_KEYS = ["role", "net", "load", "charge", "bought", "sold", "payment", "utility", "cost"]
every_rule = pytest.mark.parametrize(("pricing", "response"), list(itertools.product(PRICINGS, RESPONSES)))
NONE, GENERAL, EXTREME = 0, 1, 2

# Communities with all kinds of coalitions; batteries and actions make roles flip on top.
COMMUNITIES = {
    "random": lambda case: case,
    "eager": lambda case: case.replace(preference=0.8 * case.preference),
    "attached": lambda case: case.replace(preference=1.3 * case.preference),
    "everybody generates": lambda case: case.replace(generation=case.generation + 5.0),
    "nobody generates": lambda case: case.replace(generation=0.0 * case.generation),
    "one generates": lambda case: case.replace(generation=8.0 * (np.arange(case.size) == 0) + 0.0 * case.load),
    "one does not": lambda case: case.replace(generation=3.0 * (np.arange(case.size) > 0) + 0.0 * case.load),
    "idle": lambda case: case.replace(generation=0.0 * case.load, load=0.0 * case.load),
}
ENTRY = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 1e-300]), st.floats(-1, 1))
BUYBACK = st.sampled_from([0.0, 30.0, 80.0])
OPTIONS = st.fixed_dictionaries(
    {
        "pricing": st.sampled_from(PRICINGS),
        "response": st.sampled_from(RESPONSES),
        "leader": st.sampled_from(LEADERS),
        **{cap: st.sampled_from([0.0, 0.3, 3.0]) for cap in CAPS},
    }
)


def community(kind, homes, windows, seed):
    return COMMUNITIES[kind](Scenario.random(homes, windows, seed))


def start(env, num_envs=1, seed=0):
    return env.initial(env.params, NumpyStream(seed).draw(env.initial_noise, num_envs), num_envs)


def play(env, actions, seed=0):
    """State before and outcome of every window of a day of joint actions ``(T, E, N, A)``."""
    state, stream = start(env, actions.shape[1], seed), NumpyStream(seed)
    for joint in actions:
        step = env.step(env.params, state, joint, stream.draw(env.noise, len(joint)))
        yield state, step
        state = step.state


def random_actions(env, num_envs, seed=0):
    """A day of uniform joint actions, some of them at the ends."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.0, 1.0, (env.horizon, num_envs, len(env.context), 5))
    return np.where(rng.random(actions.shape) < 0.2, np.sign(actions), actions)


def zeros(face):
    return {agent: np.zeros(face.action_space(agent).shape, np.float32) for agent in face.possible_agents}


# One window in plain Python, from the written rules.


def supplies(offers, price):
    return [min(max(s - k / price, 0.0), g) if price > 0.0 else 0.0 for k, s, g in offers]


def best_price(offers, demand, prices):
    """Leader's price by trying, between neighbouring kinks, the ends and the stationary point √(ps·Σk/ΣA)."""
    top = prices.high
    if sum(supplies(offers, top)) > demand:
        top = brentq(lambda p: sum(supplies(offers, p)) - demand, prices.low, top, xtol=1e-13)
    kinks = [k / s for k, s, g in offers if s > 0 and g > 0] + [k / (s - g) for k, s, g in offers if s > g > 0]
    ends = sorted([prices.low, top, *(p for p in kinks if prices.low < p < top)])
    tried = list(ends)
    for low, high in itertools.pairwise(ends):
        middle = 0.5 * (low + high)
        inside = [(k, s) for k, s, g in offers if 0.0 < s - k / middle < g]
        level = sum(s for _, s in inside) + sum(g for k, s, g in offers if s - k / middle >= g)
        if level > 0.0:
            tried.append(min(max(math.sqrt(prices.retail * sum(k for k, _ in inside) / level), low), high))
    return max(tried, key=lambda p: (prices.retail - p) * min(sum(supplies(offers, p)), demand))


def average_price(offers, demand, paid, prices):
    """What sellers get on average if supply exceeds demand at the price paid: p̄ = pb + (p − pb)·E_b/E(p̄)."""
    if demand <= 0.0:
        return prices.buyback
    if sum(supplies(offers, paid)) <= demand:
        return paid
    pb = prices.buyback
    return brentq(lambda p: (p - pb) * sum(supplies(offers, p)) - (paid - pb) * demand, pb, paid, xtol=1e-13)


def by_hand(case, time, charge, action, *, pricing, response, offer, caps):
    """A window by the written order; lists of Python floats. None where the case hangs on rounding."""
    prices, hours, homes = case.prices, case.hours, range(case.size)
    g, base, k = (list(map(float, profile[time])) for profile in (case.generation, case.load, case.preference))
    # 1. The battery is projected; then reports, roles by net power at the load as it is.
    b, after = [], []
    for i in homes:
        e, least = case.loss[i], base[i] * (1.0 - case.flexibility[i])
        most = (case.battery_capacity[i] - charge[i]) / case.charge_efficiency[i] / hours
        deepest = min(charge[i] * case.discharge_efficiency[i] / hours, (least + 0.9) / e)
        b.append(min(max(action[i][0] * case.battery_power[i], -deepest), most))
        stored = case.charge_efficiency[i] * b[i] if b[i] > 0.0 else b[i] / case.discharge_efficiency[i]
        after.append(charge[i] + hours * stored)
    load = [base[i] * (1.0 + case.flexibility[i] * action[i][1]) for i in homes]
    net = [g[i] - load[i] - b[i] for i in homes]
    sells, buys = [each > 0.0 for each in net], [each < 0.0 for each in net]
    s = [g[i] + 1.0 + case.loss[i] * b[i] - b[i] for i in homes]
    limit = [max(g[i] - b[i] - base[i] * (1.0 - case.flexibility[i]), 0.0) for i in homes]
    told_k = [k[i] * math.exp(caps[0] * action[i][2]) for i in homes]
    told_s = [max(s[i], 0.0) * math.exp(caps[1] * action[i][3]) for i in homes]
    told_d = [-net[i] * math.exp(caps[2] * action[i][4]) if buys[i] else 0.0 for i in homes]
    demand = sum(told_d)
    # 2. Case and price.
    claims = [min(max(net[i] + told_s[i] - s[i], 0.0), limit[i]) if sells[i] else 0.0 for i in homes]
    selling = [claims[i] > 0.0 if pricing == "paper" else sells[i] for i in homes]
    offers = [(told_k[i], told_s[i], limit[i] if selling[i] else 0.0) for i in homes]
    at_low, at_high = (sum(supplies(offers, price)) for price in (prices.low, prices.high))
    compared = sum(claims) if pricing == "paper" else at_low
    if abs(compared - demand) < 1e-9 * (1.0 + demand) and demand > 0.0:
        return None
    if demand == 0.0 and any(selling) and at_low < 1e-9:
        return None  # whatever the price, it is the average of no sales at all
    if pricing == "paper":
        kind = NONE if sum(claims) <= 0.0 else EXTREME if sum(claims) >= demand else GENERAL
    else:
        kind = NONE if at_high <= 0.0 else EXTREME if at_low >= demand else GENERAL
    if kind == GENERAL and offer is None and pricing == "paper":
        ratio = sum(told_k[i] for i in homes if selling[i]) / sum(told_s[i] for i in homes if selling[i])
        price = min(max(math.sqrt(prices.retail * ratio), prices.low), prices.high)
    elif kind == GENERAL:
        price = best_price(offers, demand, prices) if offer is None else offer
    else:
        price = prices.low if kind == EXTREME else prices.retail
    answered = price if kind == GENERAL else prices.buyback
    if kind == EXTREME or (kind == GENERAL and offer is not None):
        answered = average_price(offers, demand, price, prices)
    # 3. Loads, 4. metering.
    schedule = supplies(offers, answered) if kind != NONE else [0.0 for _ in homes]
    if response == "best":
        due = [(min(demand / sum(schedule), 1.0) if sum(schedule) > 0.0 else 1.0) * each for each in schedule]
        true = [(k[i], s[i], limit[i]) for i in homes]
        answer, least, most = (supplies(true, p) for p in (answered, prices.buyback, prices.retail))
        for i in homes:
            if sells[i]:
                net[i] = min(max(due[i], least[i]), most[i]) if pricing == "exact_bound" else answer[i]
    if pricing != "exact_bound" and kind != NONE:
        schedule = [min(max(net[i] + told_s[i] - s[i], 0.0), limit[i]) if sells[i] else 0.0 for i in homes]
    given_, taken = [max(each, 0.0) for each in net], [max(-each, 0.0) for each in net]
    fill = min(1.0, sum(schedule) / demand) if demand > 0.0 else 1.0
    share = min(1.0, demand / sum(schedule)) if sum(schedule) > 0.0 else 1.0
    x = [min(taken[i], fill * told_d[i]) for i in homes]
    y = [min(given_[i], share * schedule[i]) for i in homes]
    if sum(x) > sum(y):
        x = [each * sum(y) / sum(x) for each in x]
    elif sum(y) > sum(x):
        y = [each * sum(x) / sum(y) for each in y]
    # 5. Settlement.
    paid = []
    for i in homes:
        grid = prices.retail * (taken[i] - x[i]) - prices.buyback * (given_[i] - y[i])
        fee = (prices.retail - price) * max(0.0, share * schedule[i] - given_[i])
        paid.append(hours * (price * (x[i] - y[i]) + grid + fee))
    load = [g[i] - b[i] - net[i] for i in homes]
    reward = [hours * k[i] * math.log(1.0 + load[i] + case.loss[i] * b[i]) - paid[i] for i in homes]
    if time == case.windows - 1:
        reward = [reward[i] + case.charge_value * after[i] for i in homes]
    bill = sum(paid[i] for i in homes if buys[i])
    market = {"price": price, "case": kind, "saving": hours * (prices.retail - price) * sum(x)}
    own = {"net": net, "load": load, "charge": after, "payment": paid}
    own |= {"bought": [hours * each for each in x], "sold": [hours * each for each in y]}
    return market, own, reward, bill


@settings(max_examples=250)
@given(st.sampled_from(list(COMMUNITIES)), st.integers(2, 5), st.integers(0, 10**6), BUYBACK, OPTIONS, st.lists(ENTRY))
def test_a_day_is_the_written_order_in_plain_python(kind, homes, seed, buyback, options, entries):
    case = community(kind, homes, 3, seed).replace(buyback=buyback)
    env = make_functional(NAME, scenario=case, **options)
    actions = random_actions(env, 1, seed)
    actions.ravel()[: len(entries)] = entries[: actions.size]
    led = options["leader"] == "agent"
    for time, (state, step) in enumerate(play(env, actions)):
        joint = actions[time, 0].tolist()
        offer = case.low + 0.5 * (joint[-1][0] + 1.0) * (case.high - case.low) if led else None
        rules = {"pricing": options["pricing"], "response": options["response"]}
        charge = state.charge[0].tolist()
        found = by_hand(case, time, charge, joint, offer=offer, caps=[options[cap] for cap in CAPS], **rules)
        assume(found is not None)
        market, own, reward, bill = found
        for key, value in market.items():
            # A leader is indifferent where prices save the same: compare the saving then.
            if key != "price" or abs(step.info["saving"][0] - market["saving"]) > 1e-9:
                assert step.info[key][0] == pytest.approx(value, rel=1e-9, abs=1e-9), key
        if abs(step.info["price"][0] - market["price"]) > 1e-6:
            continue
        for key, value in own.items():
            np.testing.assert_allclose(step.info[key][0, :homes], value, rtol=1e-7, atol=1e-7, err_msg=key)
        np.testing.assert_allclose(step.reward[0, :homes], reward, rtol=1e-8, atol=1e-6)
        if led:
            assert step.reward[0, homes] == pytest.approx(-bill, rel=1e-9, abs=1e-6)


# Windows worked by hand: a seller with S = 6, k = 500, and two buyers; half an hour each.


def worked(demand, **options):
    """p = √(120·500/6) = 100 if both buyers together want more than 1 kW, the supply there."""
    load = [1.0, *demand]
    case = Scenario(
        generation=[[5.0, 0.0, 0.0]] * 2, load=[load] * 2, preference=[500.0, 300.0, 200.0], flexibility=0.5, minutes=30
    )
    env = make_functional(NAME, scenario=case, **options)
    actions = np.zeros((1, 1, len(env.context), 5))
    actions[..., -1, 0] = options.pop("offer", 0.0) if env.led else 0.0
    return next(play(env, actions))[1]


@pytest.mark.parametrize("pricing", PRICINGS)
def test_general_market_by_hand(pricing):
    # The paper counts nominal supply, 4 kW.
    step = worked((2.0, 3.0), pricing=pricing)
    info = {key: value[0].tolist() for key, value in step.info.items()}
    assert (info["price"], info["case"]) == (pytest.approx(100.0), GENERAL)
    assert (info["sellers"], info["buyers"]) == (1.0, 2.0)
    assert info["net"] == pytest.approx([1.0, -2.0, -3.0])  # 6 − 500/100
    assert info["load"] == pytest.approx([4.0, 2.0, 3.0])
    assert info["bought"] == pytest.approx([0.0, 0.2, 0.3])  # a fifth of half an hour's demand
    assert info["sold"] == pytest.approx([0.5, 0.0, 0.0])
    assert info["payment"] == pytest.approx([-50.0, 20.0 + 96.0, 30.0 + 144.0])
    assert info["utility"] == pytest.approx([250.0 * math.log(5) + 50.0, 0.0, 0.0])
    assert info["cost"] == pytest.approx([0.0, 116.0, 174.0])
    assert (info["saving"], info["grid_energy"], info["grid_account"]) == pytest.approx((10.0, 2.0, 240.0))
    wanted = [0.5 * 500 * math.log(5) + 50, 0.5 * 300 * math.log(3) - 116, 0.5 * 200 * math.log(4) - 174]
    np.testing.assert_allclose(step.reward[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("pricing", PRICINGS)
def test_extreme_market_by_hand(pricing):
    """p̄ = 85: supply 6 − 500/85 = 2/17, of which half is demanded, as (85 − 80)/(90 − 80).

    Bound to its share of that, the seller keeps the other half: at 80 it would supply nothing.
    """
    supply = 2.0 / 17.0
    step = worked((supply / 4, supply / 4), pricing=pricing)
    info = {key: value[0].tolist() for key, value in step.info.items()}
    assert (info["price"], info["case"]) == (90.0, EXTREME)
    left = 0.0 if pricing == "exact_bound" else supply / 2
    assert info["net"] == pytest.approx([supply / 2 + left, -supply / 4, -supply / 4])
    assert info["sold"] == pytest.approx([supply / 4, 0.0, 0.0])  # half of it, for half an hour
    assert info["bought"] == pytest.approx([0.0, supply / 8, supply / 8])
    earned = 90.0 * supply / 4 + 80.0 * left / 2
    assert info["payment"] == pytest.approx([-earned, 90.0 * supply / 8, 90.0 * supply / 8])
    assert info["grid_account"] == pytest.approx(-80.0 * left / 2)
    assert step.reward[0, 0] == pytest.approx(250.0 * math.log(6.0 - supply / 2 - left) + earned)


@pytest.mark.parametrize("pricing", PRICINGS)
def test_a_grid_that_pays_nothing_by_hand(pricing):
    """Buyback 0, S = 4, an hour: √(120·405/4) is above 110; there supply is 4 − 405/110, nobody sells at price 0."""
    case = Scenario(
        generation=[[3.0, 0.0, 0.0]] * 2,
        load=[[0.5, 1.0, 1.0]] * 2,
        preference=[405.0, 200.0, 200.0],
        buyback=0.0,
        charge_value=0.0,
        minutes=60,
    )

    def played(case):
        env = make_functional(NAME, scenario=case, pricing=pricing)
        return next(play(env, np.zeros((1, 1, 3, 5))))[1]

    buyers = 200.0 * math.log(2.0) - 120.0
    alone = 405.0 * math.log(4.0)  # all for itself, nothing sold
    step, sold = played(case.replace(load=[[0.5, 2.0, 2.0]] * 2)), 4.0 - 405.0 / 110.0
    assert step.info["price"][0] == pytest.approx(110.0)
    wanted = [405.0 * math.log(4.0 - sold) + 110.0 * sold, *[200.0 * math.log(3.0) - 240.0 + 5.0 * sold] * 2]
    np.testing.assert_allclose(step.reward[0], wanted, rtol=1e-12)
    # Nobody buys: an extreme market in which the average price, and with it the supply, is 0.
    step = played(case.replace(load=[[0.5, 0.0, 0.0]] * 2))
    assert (step.info["case"][0], step.info["grid_energy"][0]) == (EXTREME, 0.0)
    np.testing.assert_allclose(step.reward[0], [alone, 0.0, 0.0], rtol=1e-12)
    # k/S is above p_h: no market to the exact prices; the paper sees 2.5 kW against 2, but at p_l there is none.
    step = played(case.replace(preference=[600.0, 200.0, 200.0]))
    assert step.info["case"][0] == (EXTREME if pricing == "paper" else NONE)
    np.testing.assert_allclose(step.reward[0], [600.0 * math.log(4.0), buyers, buyers], rtol=1e-12)


def test_lying_windows_by_hand():
    """A demand reported as its double is served first; a capacity overstated by 1 kW and not delivered costs a fee."""
    case = Scenario(
        generation=[[5.0, 0.0, 0.0]] * 2, load=[[1.0, 2.0, 2.0]] * 2, preference=500.0, flexibility=0.5, minutes=60
    )
    env = make_functional(NAME, scenario=case, demand_cap=math.log(2.0), capacity_cap=math.log(7 / 6), leader="agent")
    actions = np.zeros((1, 1, 4, 5))
    actions[0, 0, 1, 4] = 1.0  # the middle of the leader's range is 100
    step = next(play(env, actions))[1]
    info = step.info
    # Supply 1 kW for reports of 4 and 2: a sixth of either.
    np.testing.assert_allclose(step.state.fill[0], [1.0, 1 / 6, 1 / 6])
    np.testing.assert_allclose(info["bought"][0], [0.0, 2 / 3, 1 / 3, 0.0])
    np.testing.assert_allclose(info["payment"][0], [-100.0, 200 / 3 + 160.0, 100 / 3 + 200.0, 0.0])
    actions[0, 0, 1, 4], actions[0, 0, 0, 3] = 0.0, 1.0
    step = next(play(env, actions))[1]
    info = step.info
    np.testing.assert_allclose(step.state.fill[0], [0.5, 0.25, 0.25])  # of what was said, not of what was delivered
    # ŝ = 7 − 5 = 2 of which 1 is delivered: shares of .5 of 2, cut to half, and (120 − 100)·1 for the grid.
    np.testing.assert_allclose(info["sold"][0], [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(info["bought"][0], [0.0, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(info["payment"][0], [-80.0, 230.0, 230.0, 0.0])
    assert info["grid_account"][0] == pytest.approx(380.0)


# Balances and batteries, whatever the actions.


@settings(max_examples=120)
@given(st.sampled_from(list(COMMUNITIES)), st.integers(2, 6), st.integers(0, 10**6), BUYBACK, OPTIONS, st.lists(ENTRY))
def test_energy_money_and_charge_balance(kind, homes, seed, buyback, options, entries):
    case = community(kind, homes, 4, seed).replace(buyback=buyback)
    env = make_functional(NAME, scenario=case, **options)
    actions = random_actions(env, 6, seed)
    actions.ravel()[: len(entries)] = entries[: actions.size]
    for time, (state, step) in enumerate(play(env, actions)):
        info = step.info
        own = {key: info[key][:, :homes] for key in AGENT_KEYS}
        close = {"rtol": 0.0, "atol": 1e-9}
        np.testing.assert_allclose(own["payment"].sum(1), info["grid_account"], **close)
        np.testing.assert_allclose(case.hours * own["net"].sum(1), -info["grid_energy"], **close)
        np.testing.assert_allclose(own["bought"].sum(1), own["sold"].sum(1), **close)
        # What is not traded is with the grid, home by home; its account holds these and the fees.
        with_grid = case.hours * own["net"] + own["bought"] - own["sold"]
        least = case.retail * np.maximum(-with_grid, 0.0) - case.buyback * np.maximum(with_grid, 0.0)
        fees = info["grid_account"] - least.sum(1)
        assert (fees > -1e-8).all()
        if not options["capacity_cap"] and options["pricing"] != "exact_bound":
            np.testing.assert_allclose(fees, 0.0, atol=1e-8)
        # The buyers' cut.
        bill = case.retail * case.hours * np.maximum(-own["net"], 0.0).sum(1)
        assert (info["saving"] >= 0.0).all()
        assert (info["saving"] <= (case.retail - case.low) / case.retail * bill + 1e-9).all()
        # Energy of a home and of its battery.
        joint = actions[time][:, :homes]
        charging = case.generation[time] - own["load"] - own["net"]
        least = (1.0 - case.flexibility) * case.load[time]
        low = -np.minimum(state.charge * case.discharge_efficiency / case.hours, (least + 0.9) / case.loss)
        high = (case.battery_capacity - state.charge) / case.charge_efficiency / case.hours
        np.testing.assert_allclose(
            charging, np.minimum(np.maximum(joint[..., 0] * case.battery_power, low), high), **close
        )
        stored = np.where(charging > 0, charging * case.charge_efficiency, charging / case.discharge_efficiency)
        np.testing.assert_allclose(step.state.charge, state.charge + case.hours * stored, **close)
        assert (step.state.charge >= 0.0).all()
        assert (step.state.charge <= case.battery_capacity).all()
        np.testing.assert_array_equal(own["charge"], step.state.charge)
        # The logarithm: the same reward for both roles, charge valued at the end.
        assert (own["load"] >= least - 1e-9).all()
        consumed = 1.0 + own["load"] + case.loss * charging
        assert (consumed >= 0.1 - 1e-9).all()
        wanted = case.hours * case.preference[time] * np.log(consumed) - own["payment"]
        # The paper's U of sellers and C of buyers.
        np.testing.assert_allclose(own["utility"], np.where(own["role"] > 0, wanted, 0.0), rtol=1e-9, atol=1e-8)
        np.testing.assert_array_equal(own["cost"], np.where(own["role"] < 0, own["payment"], 0.0))
        wanted += (time == 3) * case.charge_value * step.state.charge
        np.testing.assert_allclose(step.reward[:, :homes], wanted, rtol=1e-9, atol=1e-8)
        np.testing.assert_array_equal(own["role"], step.state.role)
        np.testing.assert_array_equal(info["sellers"], (own["role"] > 0).sum(1))
        np.testing.assert_array_equal(info["buyers"], (own["role"] < 0).sum(1))
        assert (own["bought"][own["role"] >= 0] == 0.0).all()
        assert (own["sold"][own["role"] <= 0] == 0.0).all()
        for name, feature in zip(env.features[-len(env.observe(env.params, state)) :], env.observe(
            env.params, step.state), strict=True):  # fmt: skip
            assert np.abs(feature).max() <= 1.0, name


def test_the_communities_have_every_case_and_roles_that_flip():
    seen, flipped = set(), 0
    for kind, seed in itertools.product(COMMUNITIES, range(4)):
        roles = []
        env = make_functional(NAME, scenario=community(kind, 4, 4, seed))
        for _, step in play(env, random_actions(env, 4, seed)):
            roles.append(step.state.role)
            seen |= {tuple(row) for row in np.stack([step.info[key] for key in ("case", "sellers", "buyers")], 1)}
        flipped += sum(np.any(one * other < 0) for one, other in itertools.pairwise(roles))
    cases = {case for case, *_ in seen}
    assert cases == {NONE, GENERAL, EXTREME}
    assert flipped > 20
    counts = {tuple(row[1:]) for row in seen}
    assert {(0, 0), (0, 4), (4, 0), (1, 3), (3, 1)} <= counts


def test_a_full_discharge_keeps_the_logarithm_finite():
    """Without load, generation or much loss the battery could give more than utility allows: 1 + l + eb = 0.1."""
    case = Scenario(
        generation=np.zeros((3, 2)),
        load=np.zeros((3, 2)),
        preference=100.0,
        loss=0.9,
        battery_capacity=10.0,
        battery_power=1e3,
        discharge_efficiency=1.0,
        initial_charge=1.0,
        minutes=60,
    )
    env = make_functional(NAME, scenario=case, response="agent")
    actions = np.zeros((2, 1, 2, 5))
    actions[..., 0] = -1.0
    (_, first), (_, second) = play(env, actions)
    np.testing.assert_allclose(first.state.charge, 9.0)
    np.testing.assert_allclose(first.info["net"], 1.0)
    np.testing.assert_allclose(first.reward, 100.0 * math.log(0.1) + 80.0)
    np.testing.assert_allclose(second.reward, 100.0 * math.log(0.1) + 80.0 + 80.0 * 8.0)


def test_a_discharge_leaves_room_for_the_least_load():
    """Loads of 0.5 kW may fall to 0.1: b >= -(0.1 + 0.9)/0.9, so that 1 + l + eb is 0.1 at the least load, 0.5 else."""
    case = Scenario(
        generation=np.zeros((2, 2)),
        load=np.full((2, 2), 0.5),
        preference=100.0,
        loss=0.9,
        flexibility=0.8,
        battery_capacity=10.0,
        battery_power=1e3,
        initial_charge=1.0,
        charge_value=0.0,
        minutes=60,
    )
    env = make_functional(NAME, scenario=case, response="agent")
    actions = np.zeros((1, 1, 2, 5))
    actions[..., 0], actions[..., 0, 1] = -1.0, -1.0
    step = next(play(env, actions))[1]
    np.testing.assert_allclose(step.info["net"], [[1.0 / 0.9 - 0.1, 1.0 / 0.9 - 0.5]])
    consumed = np.array([0.1, 0.5])
    np.testing.assert_allclose(step.reward[0], 100.0 * np.log(consumed) + 80.0 * step.info["net"][0])


def test_charge_is_valued_once():
    case = Scenario.random(5, 4, 2)
    free = case.replace(charge_value=0.0)
    actions = random_actions(make_functional(NAME, scenario=case), 3)
    worth = [
        ours.reward - theirs.reward
        for (_, ours), (_, theirs) in zip(
            play(make_functional(NAME, scenario=case), actions),
            play(make_functional(NAME, scenario=free), actions),
            strict=True,
        )
    ]
    assert not np.any(worth[:3])
    *_, (_, last) = play(make_functional(NAME, scenario=case), actions)
    assert last.state.charge.max() > 0.5
    np.testing.assert_allclose(worth[3], 80.0 * last.state.charge, atol=1e-9)


@settings(max_examples=60)
@given(
    st.sampled_from(list(COMMUNITIES)), st.integers(0, 10**6), st.sampled_from(LEADERS), st.sampled_from(PRICINGS[1:])
)
def test_truthful_homes_do_no_worse_than_with_the_grid(kind, seed, leader, pricing):
    """At the same battery; buyers at the same load, sellers at their best one."""
    case = community(kind, 5, 3, seed)
    env = make_functional(NAME, scenario=case, leader=leader, pricing=pricing)
    actions = random_actions(env, 8, seed)
    actions[:, :, :5, 2:] = 0.0
    for time, (_, step) in enumerate(play(env, actions)):
        net, load = step.info["net"][:, :5], step.info["load"][:, :5]
        charging = case.generation[time] - load - net
        k, room = case.preference[time], 1.0 + case.generation[time] - (1.0 - case.loss) * charging
        most = case.generation[time] - charging - (1.0 - case.flexibility) * case.load[time]
        sold = np.clip(room - k / case.buyback, 0.0, np.maximum(most, 0.0))
        sells = step.info["role"][:, :5] > 0
        alone = np.where(
            sells,
            k * np.log(np.where(sells, room - sold, 1.0)) + case.buyback * sold,
            k * np.log(room - net) + case.retail * net,
        )
        alone = case.hours * alone + (time == 2) * case.charge_value * step.state.charge
        assert (step.reward[:, :5] >= alone - 1e-8).all()


# Reports and the leader.


@pytest.mark.parametrize("index", range(3))
def test_caps_scale_reports(index):
    case = Scenario.random(5, 2, 0)
    env = make_functional(NAME, scenario=case, **{CAPS[index]: 0.7})
    honest = make_functional(NAME, scenario=case)
    state, actions = start(env, 4), random_actions(env, 4)[0]
    truth = settlement.truthful(honest.decode(env.params, state, actions)[0])
    for field, (told, wanted) in enumerate(zip(env.decode(env.params, state, actions)[1], truth, strict=True)):
        scale = np.exp(0.7 * actions[..., 2 + field]) if field == index else 1.0
        np.testing.assert_allclose(told, scale * np.maximum(wanted, 0.0), rtol=1e-14)
    # Switched off, an action changes nothing at all.
    others = actions.copy()
    others[..., 2:] = 0.0
    others[..., 2 + index] = actions[..., 2 + index]
    for one, same in zip(
        env.step(env.params, state, actions, {}), env.step(env.params, state, others, {}), strict=True
    ):
        np.testing.assert_equal(one, same)


@every_rule
def test_the_leader_sets_the_price_and_pays_the_bill(pricing, response):
    case = Scenario.random(6, 3, 1)
    env = make_functional(NAME, scenario=case, leader="agent", pricing=pricing, response=response, preference_cap=0.5)
    rule = make_functional(NAME, scenario=case, pricing=pricing, response=response, preference_cap=0.5)
    assert [role.name for role in env.roles] == ["home", "buyers"]
    actions = random_actions(env, 32)
    general = 0
    for joint, (_, step), (_, other) in zip(actions, play(env, actions), play(rule, actions[:, :, :6]), strict=True):
        market = step.info["case"] == GENERAL
        general += market.sum()
        np.testing.assert_array_equal(step.info["case"], other.info["case"])
        np.testing.assert_allclose(step.info["price"][market], 100.0 + 10.0 * joint[market, 6, 0])
        np.testing.assert_array_equal(step.info["price"][~market], other.info["price"][~market])
        np.testing.assert_array_equal(step.reward[~market, :6], other.reward[~market])
        buys = step.info["role"] < 0
        np.testing.assert_allclose(step.reward[:, 6], -np.where(buys, step.info["payment"], 0.0).sum(1), atol=1e-9)
        assert not any(step.info[key][:, 6].any() for key in AGENT_KEYS)
        # The padding of the leader's row means nothing.
        changed = joint.copy()
        changed[:, 6, 1:] *= -1.0
    np.testing.assert_equal(
        list(play(env, np.concatenate([actions[:-1], changed[None]])))[-1][1], list(play(env, actions))[-1][1]
    )
    assert general > 20


def test_the_exact_price_is_the_leader_s_best():
    """No offer of a dense grid makes buyers pay less to truthful sellers that answer it."""
    case = Scenario.random(6, 4, 3).replace(battery_capacity=0.0)
    env, offers = make_functional(NAME, scenario=case, leader="agent"), np.linspace(-1.0, 1.0, 401)
    actions = np.zeros((4, 401, 7, 5))
    actions[..., 6, 0] = offers
    general = 0
    for state, step in play(env, actions):
        one = type(state)(*(leaf[:1] for leaf in state))
        best = env.policy("stackelberg").act(env.params, None, one, {})
        best[:, :6] = 0.0
        bill = env.step(env.params, one, best, {}).reward[0, 6]
        assert bill >= step.reward[:, 6].max() - 1e-9
        general += step.info["case"][0] == GENERAL
    assert general


# Observations.


def test_observations_hold_what_the_documentation_says():
    case = Scenario.random(5, 6, 4)
    face = make_parallel(NAME, scenario=case, leader="agent", forecast=2, forecast_error=0.0, demand_cap=0.3)
    env = face.functional
    column = {name: index for index, name in enumerate(env.features)}
    received, infos = face.reset(seed=0)
    for time in range(7):
        rows = np.stack(list(received.values()))
        homes, leader = rows[:5], rows[5]
        assert face.state_space.contains(face.state())

        def shows(name, values, rows=homes):
            np.testing.assert_allclose(rows[:, column[name]], values, atol=2e-6, err_msg=name)

        charge = [infos[agent]["charge"] for agent in case.agents]
        owned = np.where(case.battery_capacity > 0, case.battery_capacity, 1.0)
        shows("generation", case.generation[time] / case.generation.max())
        shows("base_load", case.load[time] / case.load.max())
        shows("preference", case.preference[time] / case.preference.max())
        shows("charge", np.array(charge) / owned)
        shows("battery_capacity", case.battery_capacity / case.battery_capacity.max())
        shows("flexibility", case.flexibility / case.flexibility.max())
        hour = 7.0 + 2.0 * time
        shows("sine", math.sin(2 * math.pi * hour / 24), rows)
        shows("cosine", math.cos(2 * math.pi * hour / 24), rows)
        for name, price in (("buyback", 80.0), ("low", 90.0), ("high", 110.0)):
            shows(name, price / 120.0, rows)
        later = min(time + 2, 6)
        shows("forecast_generation", case.generation[later] / case.generation.max())
        shows("forecast_load", case.load[later] / case.load.max())
        shows("sellers", 0.0), shows("buyers", 0.0)
        last = infos["home_0"]
        shows("last_price", (last["price"] - 80.0) / 20.0 - 1.0, rows)
        if time:
            shows("last_case", last["case"] - 1.0, rows)
            shows("last_role", [infos[agent]["role"] for agent in case.agents])
            assert leader[column["sellers"]] == pytest.approx(last["sellers"] / 5)
            assert leader[column["buyers"]] == pytest.approx(last["buyers"] / 5)
            bought, wanted = (np.array([infos[agent][key] for agent in case.agents]) for key in ("bought", "net"))
            demand = np.maximum(-wanted, 0.0) * case.hours
            if demand.sum() > 0.0:  # everybody told the truth: what was scheduled was bought
                assert leader[column["last_fill"]] == pytest.approx(bought.sum() / demand.sum(), abs=1e-6)
                buys = demand > 0.0
                np.testing.assert_allclose(homes[buys, column["last_fill"]], (bought[buys] / demand[buys]), atol=1e-6)
        else:
            shows("last_role", 0.0), shows("last_fill", 0.0, rows)
        own = (
            "generation",
            "base_load",
            "charge",
            "preference",
            "last_role",
            "battery_capacity",
            "flexibility",
            "loss",
        )
        assert not leader[[column[name] for name in (*own, "forecast_generation", "forecast_load")]].any()
        if time < 6:
            rng = np.random.default_rng(time)
            joint = {agent: rng.uniform(-1, 1, face.action_space(agent).shape) for agent in face.agents}
            for agent in case.agents:
                joint[agent][2:] = 0.0
            received, *_, infos = face.step(joint)


@pytest.mark.parametrize("leader", LEADERS)
def test_homes_do_not_see_each_other(leader):
    """Another home's profiles, battery and charge changed: nobody else sees it before the market clears."""
    case = Scenario.random(5, 3, 0)
    first = int(np.argmin(case.generation.max(0)))  # whose data set no scale

    def other(name):
        values = np.array(getattr(case, name))
        values[..., first] *= 0.5
        return values

    changed = case.replace(
        **{name: other(name) for name in ("load", "preference", "initial_charge", "battery_power", "loss")},
        generation=np.where(np.arange(5) == first, 0.01, case.generation),
    )
    seen = []
    for each in (case, changed):
        face = make_vector(NAME, 1, scenario=each, leader=leader, forecast=1, forecast_error=0.2)
        seen.append(face.reset(seed=0)[0][0])
    differs = np.flatnonzero((seen[0] != seen[1]).any(axis=1))
    scales = [name for name in ("load", "preference") if getattr(case, name).max() != getattr(changed, name).max()]
    assert not scales
    assert differs.tolist() == [first]


def seen_in_a_day(case, actions, **options):
    """Observations ``(T + 1, N, F)`` and, by name, infos of the agents' own ``(T + 1, N)`` in a day of actions."""
    face = make_vector(NAME, 1, scenario=case, forecast=1, forecast_error=0.2, **options)
    observations, info = face.reset(seed=0)
    seen, told = [observations[0]], {key: [info[key][0]] for key in AGENT_KEYS}
    for joint in actions:
        observations, *_, info = face.step(joint[None])
        seen.append(info["final_obs"][0] if "final_obs" in info else observations[0])
        for key in AGENT_KEYS:
            told[key].append(info[key][0])
    return np.stack(seen), {key: np.stack(values) for key, values in told.items()}


@pytest.mark.parametrize("pricing", PRICINGS)
@pytest.mark.parametrize("leader", LEADERS)
def test_what_the_market_does_not_ask_for_stays_with_a_home_all_day(leader, pricing):
    """A home that only buys: its preference, battery and flexibility matter to nobody, whatever the others do."""
    case = Scenario.random(6, 24, 1)
    (buyer, *_) = np.flatnonzero(
        (case.generation == 0.0).all(axis=0) & (case.preference.max(0) < case.preference.max())
    )
    one = np.arange(6) == buyer
    owned = {"battery_capacity": 4.0, "battery_power": 1.0, "initial_charge": 0.6}
    case = case.replace(**{name: np.where(one, value, getattr(case, name)) for name, value in owned.items()})
    halved = ("preference", "loss", "initial_charge", "flexibility", "battery_power", "discharge_efficiency")
    changed = case.replace(**{name: getattr(case, name) * np.where(one, 0.5, 1.0) for name in halved})
    options = {"leader": leader, "pricing": pricing, "preference_cap": 0.5, "capacity_cap": 0.5, "demand_cap": 0.5}
    size = 6 + (leader == "agent")
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (24, size, 5))
    actions[:, buyer, :2] = 0.0  # battery at rest, base load; it may lie about its demand
    (ours, own), (theirs, other) = (seen_in_a_day(each, actions, **options) for each in (case, changed))
    rest = np.arange(size) != buyer
    np.testing.assert_array_equal(ours[:, rest], theirs[:, rest])
    assert (ours[:, buyer] != theirs[:, buyer]).any(axis=-1).all()
    for key in AGENT_KEYS:
        np.testing.assert_array_equal(own[key][:, rest], other[key][:, rest], err_msg=key)
    assert (own["charge"][:, buyer] != other["charge"][:, buyer]).all()
    assert len({tuple(row) for row in own["role"]}) > 1


def test_demand_of_others_does_not_show_where_supply_covers_it():
    """At p_l, all day: a buyer sees and is told the same, whatever another one takes."""
    case = Scenario.random(6, 24, 0).replace(battery_capacity=0.0)
    buys = np.arange(6) < 3
    sun = np.where(buys, 0.0, 5.0 + np.arange(6) + np.sin(np.arange(25))[:, None])
    case = case.replace(generation=sun, preference=0.8 * case.preference, load=0.2 * case.load)
    changed = case.replace(load=case.load * np.where(np.arange(6) == 1, 0.3, 1.0))
    assert changed.load.max() == case.load.max()
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (24, 6, 5))
    (ours, own), (theirs, other) = (seen_in_a_day(each, actions) for each in (case, changed))
    for home in (0, 2):
        np.testing.assert_array_equal(ours[:, home], theirs[:, home])
        for key in AGENT_KEYS:
            np.testing.assert_allclose(own[key][:, home], other[key][:, home], rtol=1e-12, err_msg=key)
    case_shown = make_functional(NAME, scenario=case, forecast=1).features.index("last_case")
    assert (ours[1:, :, case_shown] == 1.0).all()  # extreme
    assert (own["bought"][1:, 1] > other["bought"][1:, 1]).all()
    # Sellers share what is wanted: they see their own part of it.
    assert (ours[1:, 4] != theirs[1:, 4]).any()


def test_forecasts_are_noisy_and_seeded():
    case = Scenario.random(4, 200, 0)
    env = make_functional(NAME, scenario=case, forecast=3, forecast_error=0.2)
    index = env.features.index("forecast_load") - len(env.features)
    faces = [MarketVectorEnv(env, 1) for _ in range(3)]
    seen = [[face.reset(seed=seed)[0]] for face, seed in zip(faces, (1, 1, 2), strict=True)]
    for _ in range(190):
        for rows, face in zip(seen, faces, strict=True):
            rows.append(face.step(np.zeros((1, 4, 5)))[0])
    shown = [np.stack(rows)[:, 0, :, index] for rows in seen]
    np.testing.assert_array_equal(shown[0], shown[1])
    assert (shown[0] != shown[2]).mean() > 0.9
    later = case.load[3:194] / case.load.max()
    kept = later < 0.5  # what is clipped at 1 is not normal
    errors = (shown[0] / later - 1.0)[kept]
    assert abs(errors.mean()) < 4 * 0.2 / math.sqrt(errors.size)
    assert errors.std() == pytest.approx(0.2, rel=0.15)
    one, other = errors[:-1], errors[1:]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


# Measures: the planner and the outcomes it is compared with.


def planned_by_scipy(case, time, charging):
    """Least social cost of a window by a generic solver: net power of homes, and what the grid takes and gives."""
    k, room = case.preference[time], 1.0 + case.generation[time] - (1.0 - case.loss) * charging
    free = case.generation[time] - charging
    low = np.minimum(free - (1.0 + case.flexibility) * case.load[time], 0.0)
    high = free - (1.0 - case.flexibility) * case.load[time]
    size, scale = case.size, k.sum()

    def cost(x):
        return (-np.sum(k * np.log(room - x[:size])) + case.retail * x[size] - case.buyback * x[size + 1]) / scale

    def slope(x):
        return np.r_[k / (room - x[:size]), case.retail, -case.buyback] / scale

    row = np.r_[np.ones(size), 1.0, -1.0]
    begin = 0.5 * (low + high)
    total = begin.sum()
    best = minimize(
        cost,
        np.r_[begin, max(-total, 0.0), max(total, 0.0)],
        jac=slope,
        method="SLSQP",
        bounds=[*zip(low, high, strict=True), (0.0, None), (0.0, None)],
        constraints={"type": "eq", "fun": lambda x: row @ x, "jac": lambda x: row},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    # It may stop at the optimum for want of a better step.
    assert best.status in (0, 8), best.message
    assert abs(row @ best.x) < 1e-9
    return case.hours * scale * best.fun


@pytest.mark.parametrize("kind", COMMUNITIES)
def test_the_planner_is_that_of_a_generic_solver_and_never_worse_than_play(kind):
    for seed, buyback in enumerate((80.0, 80.0, 0.0)):
        case = community(kind, 4, 2, seed).replace(buyback=buyback)
        for pricing, response in itertools.product(PRICINGS, RESPONSES):
            leader = LEADERS[(seed + PRICINGS.index(pricing)) % 2]
            env = make_functional(NAME, scenario=case, pricing=pricing, response=response, leader=leader)
            lying = make_functional(
                NAME, scenario=case, pricing=pricing, response=response, leader=leader, **dict.fromkeys(CAPS, 0.5)
            )
            actions = random_actions(env, 3, seed)
            for time, (state, step) in enumerate(play(env, actions, seed)):
                found = env.assess(env.params, state, actions[time])
                for name in ("", "_truthful", "_equilibrium"):
                    assert (found["social_cost_coordinated"] <= found[f"social_cost{name}"] + 1e-9).all(), name
                worse = lying.step(env.params, state, actions[time], {})
                ends = (time == 1) * case.charge_value * worse.state.charge
                cost = (ends - worse.reward[:, :4]).sum(1)
                assert (found["social_cost_coordinated"] <= cost + 1e-9).all()
                if (pricing, response) == ("exact", "best"):
                    charging = case.generation[time] - (step.info["load"] + step.info["net"])[:, :4]
                    for row in range(2):
                        wanted = planned_by_scipy(case, time, charging[row])
                        got = found["social_cost_coordinated"][row]
                        assert got == pytest.approx(wanted, rel=1e-7, abs=1e-6)


@every_rule
@pytest.mark.parametrize("leader", LEADERS)
def test_measures_are_those_of_play(pricing, response, leader):
    """Cost is minus reward less the charge's value; truth is played by zeros, the equilibrium by the exact rule."""
    case = Scenario.random(4, 2, 6)
    env = make_functional(NAME, scenario=case, pricing=pricing, response=response, leader=leader, preference_cap=0.5)
    exact = make_functional(NAME, scenario=case)
    actions = random_actions(env, 2, 1)
    for time, (state, step) in enumerate(play(env, actions)):
        found = env.assess(env.params, state, actions[time])
        ends = np.zeros_like(step.reward)
        ends[:, :4] = (time == 1) * case.charge_value * step.state.charge
        np.testing.assert_allclose(found["cost"], ends - step.reward, atol=1e-9)
        honest = actions[time].copy()
        honest[:, :4, 2:] = 0.0
        wanted = ends - env.step(env.params, state, honest, {}).reward
        np.testing.assert_allclose(found["cost_truthful"], wanted, atol=1e-9)
        wanted = ends[:, :4] - exact.step(env.params, state, honest[:, :4], {}).reward
        np.testing.assert_allclose(found["cost_equilibrium"][:, :4], wanted, atol=1e-9)
        for name in ("", "_truthful", "_equilibrium", "_coordinated"):
            own = found[f"cost{name}"][:, :4]
            np.testing.assert_allclose(found[f"social_cost{name}"], own.sum(1), atol=1e-9)
            assert found[f"cost{name}"].shape == step.reward.shape
        assert (found["exploitability"] >= 0.0).all()
        assert not found["nearest"].any()


def test_a_misreport_within_caps_gains_no_more_than_exploitability_says():
    case = Scenario.random(4, 2, 8)
    for pricing in PRICINGS:
        env = make_functional(NAME, scenario=case, pricing=pricing, preference_cap=1.0, demand_cap=0.5)
        state = start(env)
        actions = np.zeros((1, 4, 5))
        gain = env.assess(env.params, state, actions)["exploitability"][0]
        before = env.step(env.params, state, actions, {}).reward[0]
        for home, field, place in itertools.product(range(4), (2, 4), np.linspace(-1.0, 1.0, 9)):
            lie = actions.copy()
            lie[0, home, field] = place
            after = env.step(env.params, state, lie, {}).reward[0]
            assert after[home] - before[home] <= gain[home] + 1e-2 * case.hours + 1e-9


# Policies.


@pytest.mark.parametrize("leader", LEADERS)
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", ["stackelberg", "truthful"])
def test_policies_give_what_the_settlement_gives(name, response, leader):
    """Through the core to 1e-9, through every face to 1e-6; homes and loads worked out apart from the environment."""
    case = Scenario.random(5, 12, 11).replace(minutes=5.0, flexibility=0.8, charge_value=0.0)
    env = make_functional(NAME, scenario=case, response=response, leader=leader)
    general, size = 0, len(env.context)
    solo_index = size - 1
    parallel, turns = MarketParallelEnv(env), MarketAECEnv(MarketParallelEnv(env))
    batched, learner = MarketVectorEnv(env, 2), MarketVecEnv(env, 2)
    solo = MarketSoloEnv(env, parallel.possible_agents[solo_index], others=name)
    twins = MarketSoloVectorEnv(env, 2, "home_0", others=name)
    for face in (parallel, turns, batched, solo, twins):
        face.reset(seed=0)
    learner.reset()
    state = start(env)
    for time in range(12):
        g, load, k = case.generation[time], case.load[time], case.preference[time]
        most = np.maximum(g - 0.2 * load, 0.0)
        homes = Homes(k, g + 1.0, most, g - load)
        truth, prices = settlement.truthful(homes), Prices(80.0, 90.0, 110.0, 120.0)
        terms = settlement.price(homes, truth, prices, "exact")
        general += int(terms.case == GENERAL)
        net = homes.nominal
        if response == "best" or name == "stackelberg":
            net = settlement.best_net(homes, truth, terms, prices, "exact")
        if response == "agent":  # as far as loads can be moved
            net = np.maximum(net, g - 1.8 * load)
        settled = settlement.settle(homes, truth, terms, net, prices, "exact")
        wanted = settlement.rewards(homes, net, settled.payment) / 12.0
        if env.led:
            wanted = np.append(wanted, -settled.payment[homes.nominal < 0].sum() / 12.0)
        actions = env.policy(name).act(env.params, None, state, {})
        step = env.step(env.params, state, actions, {})
        np.testing.assert_allclose(step.reward[0], wanted, atol=1e-9)
        state = step.state

        joint = actions[0].astype(np.float32)
        own = {
            agent: row[: parallel.action_space(agent).shape[0]]
            for agent, row in zip(parallel.possible_agents, joint, strict=True)
        }
        np.testing.assert_allclose(list(parallel.step(own)[1].values()), wanted, atol=1e-6)
        for agent in parallel.possible_agents:
            turns.step(own[agent])
        np.testing.assert_allclose(list(turns.rewards.values()), wanted, atol=1e-6)
        pair = np.stack([joint, joint])
        np.testing.assert_allclose(batched.step(pair)[1], np.stack([wanted, wanted]), atol=1e-6)
        flat = learner.step(pair.reshape(2 * size, 5))[1]
        np.testing.assert_allclose(flat, np.tile(wanted, 2), rtol=2e-7, atol=1e-6)  # rewards in single precision
        assert solo.step(own[solo.learner.agent])[1] == pytest.approx(wanted[solo_index], abs=1e-6)
        np.testing.assert_allclose(twins.step(pair[:, 0])[1], wanted[0], atol=1e-6)
    assert general > 2


@pytest.mark.parametrize("name", ["stackelberg", "truthful"])
def test_policies_need_no_width_of_prices_or_loads(name):
    case = Scenario.random(4, 3, 0).replace(low=100.0, high=100.0, flexibility=0.0)
    env = make_functional(NAME, scenario=case, leader="agent")
    for _ in range(3):
        actions = env.policy(name).act(env.params, None, start(env, 2), {})
        assert not actions[:, :4].any()
        assert (np.abs(actions) <= 1.0).all()


# Days: endings, infos, determinism.


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_one_window_terminates_and_more_truncate(windows):
    face = make_parallel(NAME, homes=4, windows=windows, leader="agent")
    face.reset(seed=0)
    for time in range(1, windows + 1):
        *_, terminated, truncated, _ = face.step(zeros(face))
        for flags, expected in ((terminated, windows == 1), (truncated, 1 < windows == time)):
            assert list(flags) == face.possible_agents == ["home_0", "home_1", "home_2", "home_3", "buyers_0"]
            assert all(flag is expected for flag in flags.values())
    assert face.agents == []
    assert face.action_space("home_0").shape == (5,)
    assert face.action_space("buyers_0").shape == (1,)


@pytest.mark.parametrize("leader", LEADERS)
def test_infos_have_the_same_keys_from_reset_on(leader):
    options = {"scenario": Scenario.random(4, 3, 0), "leader": leader}
    face, batch = make_parallel(NAME, **options), make_vector(NAME, 2, **options)
    _, infos = face.reset(seed=0)
    assert infos["home_0"]["price"] == 120.0
    for agent, charge in zip(options["scenario"].agents, options["scenario"].initial_charge, strict=True):
        capacity = options["scenario"].battery_capacity[int(agent[-1])]
        assert infos[agent]["charge"] == pytest.approx(charge * capacity)
    _, first = batch.reset(seed=0)
    while face.agents:
        for info in infos.values():
            assert list(info) == MARKET_KEYS + AGENT_KEYS
            assert all(type(value) is float for value in info.values())
        infos = face.step(zeros(face))[-1]
    assert list(first) == MARKET_KEYS + AGENT_KEYS
    quiet = make_parallel(NAME, infos="none", **options)
    assert quiet.reset(seed=0)[1] == quiet.step(zeros(quiet))[-1] == {agent: {} for agent in quiet.possible_agents}


def test_a_day_of_720_windows_is_the_same_through_every_face():
    case = Scenario.random(6, 720, 5)
    env = make_functional(NAME, scenario=case, forecast=15, demand_cap=0.2, preference_cap=0.2)
    actions = np.random.default_rng(0).uniform(-1, 1, (720, 1, 6, 5)).astype(np.float32)
    parallel, turns, again = (MarketParallelEnv(env) for _ in range(3))
    turns = MarketAECEnv(turns)
    batched, wide = MarketVectorEnv(env, 1), MarketVectorEnv(env, 1)
    received, _ = parallel.reset(seed=3)
    turns.reset(seed=3), again.reset(seed=3), wide.reset(seed=4)
    seen, _ = batched.reset(seed=3)
    cases, roles, earned = set(), [], np.zeros(6)
    for time, joint in enumerate(actions):
        np.testing.assert_array_equal(np.stack(list(received.values())), seen[0])
        own = dict(zip(parallel.agents, joint[0], strict=True))
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
        assert all(flag == (time == 719) for flag in truncated.values())
        if time == 719:
            break
        np.testing.assert_array_equal(wide.step(joint)[1], reward)  # another seed: other forecasts, the same day
        cases.add(infos["home_0"]["case"])
        roles.append([info["role"] for info in infos.values()])
        earned += reward[0]
    assert cases == {NONE, GENERAL, EXTREME}
    assert (np.diff(roles, axis=0) != 0).any(axis=0).sum() >= 3  # with generation or a battery
    assert np.isfinite(earned).all()


def test_the_shipped_day():
    env = make_functional(NAME)
    assert (len(env.context), env.horizon) == (300, 720)
    assert make_functional(NAME, homes=7, windows=9, seed=3).scenario.load.shape == (10, 7)
    state = start(env, 2)
    for _ in range(3):
        step = env.step(env.params, state, env.policy("stackelberg").act(env.params, None, state, {}), {})
        np.testing.assert_allclose(step.info["payment"].sum(1), step.info["grid_account"], atol=1e-9)
        state = step.state


# Factories, errors.


def test_factories_and_registries():
    few = {"homes": 4, "windows": 3}
    assert isinstance(pem_v0.parallel_env(**few), MarketParallelEnv)
    assert isinstance(pem_v0.raw_env(**few), MarketAECEnv)
    assert isinstance(pem_v0.env(**few).unwrapped, MarketAECEnv)
    assert isinstance(pem_v0.solo_vector_env(2, agent="home_0", **few), MarketSoloVectorEnv)
    assert isinstance(pettingzoo.make("parallel", ID, **few), MarketParallelEnv)
    solo = gymnasium.make(ID, agent="buyers_0", leader="agent", **few)
    solo.reset(seed=1)
    assert solo.step(solo.action_space.sample())[3] is False
    case = load_scenario(homes=6, windows=4)
    assert isinstance(make_functional(NAME, scenario=case, homes=3, windows=2, low=95.0), PEM)


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 70.0}, "prices out of order: buyback 80 < low 70 <= high 110 < retail 120"),
        ({"high": 120.0}, "prices out of order"),
        ({"buyback": NAN}, "buyback must be finite and >= 0, got nan"),
        ({"battery_capacity": -1.0}, r"battery_capacity\[0\] must be finite and >= 0, got -1.0 \(agent 0\)"),
        ({"flexibility": [0.1, 0.2, 1.0]}, r"flexibility\[2\] must be below 1, got 1.0 \(home_2\)"),
        ({"charge_value": -1.0}, "charge_value must be finite and >= 0, got -1.0"),
        ({"windows": 10_000}, "windows missing in the data"),
        ({"windows": 0}, "windows must be a whole number >= 1, got 0"),
        ({"homes": 1}, "homes must be a whole number >= 2, got 1"),
        ({"scenario": "day301"}, "scenario must be one of 'day300'; got 'day301'"),
        ({"pricing": "best"}, "pricing must be one of 'paper', 'exact', 'exact_bound'; got 'best'"),
        ({"response": "worst"}, "response must be one of 'agent', 'best'; got 'worst'"),
        ({"leader": "home_0"}, "leader must be one of 'rule', 'agent'; got 'home_0'"),
        ({"clearing": "secret"}, "clearing must be one of 'plain', 'paper', 'hardened', 'committee'; got 'secret'"),
        ({"infos": "all"}, "infos must be one of 'full', 'none'; got 'all'"),
        ({"preference_cap": -0.1}, r"preference_cap must be in \[0, 10\], got -0.1"),
        ({"capacity_cap": NAN}, r"capacity_cap must be in \[0, 10\], got nan"),
        ({"demand_cap": 11}, r"demand_cap must be in \[0, 10\], got 11.0"),
        ({"forecast": -1}, r"forecast must be in \[0, 5\], got -1.0"),
        ({"forecast": 6}, r"forecast must be in \[0, 5\], got 6.0"),
        ({"forecast": 1.5}, "forecast must be a whole number of windows, got 1.5"),
        ({"forecast_error": -0.1, "forecast": 1}, "forecast_error must be finite and >= 0, got -0.1"),
        ({"forecast_error": 0.2}, "forecast_error is for forecasts; forecast is 0, got forecast_error=0.2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_name_option_value_and_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_functional(NAME, **({"homes": 3, "windows": 5} | options))


def test_unknown_names_are_refused():
    few = {"homes": 3, "windows": 2}
    with pytest.raises(TypeError, match=r"unknown option 'horizon'; options: .*pricing.*fields: .*battery_capacity"):
        make_functional(NAME, horizon=3)
    with pytest.raises(ValueError, match=r"agent must be one of .*; got 'buyers_0'"):
        make_solo(NAME, "buyers_0", **few)
    with pytest.raises(ValueError, match="policy must be one of 'stackelberg', 'truthful'; got 've'"):
        make_solo(NAME, "home_1", others="ve", **few)


@pytest.mark.parametrize(
    ("agent", "action", "message"),
    [
        ("home_1", [0.0, 0.0, NAN, 0.0, 0.0], r"action of home_1, entry preference, must lie in \[-1, 1\], got nan"),
        ("home_1", [1.25, 0.0, 0.0, 0.0, 0.0], r"action of home_1, entry battery, must lie in \[-1, 1\], got 1\.25"),
        ("home_1", [0.0], r"action of home_1 must have shape \(5,\), got \(1,\)"),
        ("buyers_0", [-1.5], r"action of buyers_0, entry price, must lie in \[-1, 1\], got -1\.5"),
        ("buyers_0", [NAN], r"action of buyers_0, entry price, must lie in \[-1, 1\], got nan"),
        ("buyers_0", [0.0] * 5, r"action of buyers_0 must have shape \(1,\), got \(5,\)"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(agent, action, message):
    options = {"scenario": Scenario.random(3, 4, 0), "leader": "agent", "forecast": 1}
    erring, twin = (make_parallel(NAME, **options) for _ in range(2))
    erring.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        erring.step(zeros(erring) | {agent: np.array(action)})
    np.testing.assert_equal(erring.step(zeros(erring)), twin.step(zeros(twin)))


def test_errors_of_the_leader_s_padded_row():
    """Of arrays for all agents its row is as wide as the homes'."""
    face = make_vector(NAME, 2, scenario=Scenario.random(3, 4, 0), leader="agent")
    face.reset(seed=0)
    for entry, name in ((0, "price"), (2, r"2 \(padding\)")):
        actions = np.zeros((2, 4, 5))
        actions[1, 3, entry] = 1.5
        with pytest.raises(ValueError, match=rf"action of buyers_0 in environment 1, entry {name}, must lie in"):
            face.step(actions)


# Any scenario, any action: a valid step or one clear error.

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "buyback": st.one_of(st.just(0.0), st.floats(1e-6, 91)),
        "low": st.floats(78, 105),
        "high": st.floats(100, 121),
        "loss": st.floats(0, 0.999),
        "battery_capacity": st.floats(-0.1, 50),
        "battery_power": st.floats(0, 100),
        "charge_efficiency": st.floats(0.01, 1),
        "initial_charge": st.floats(0, 1.01),
        "flexibility": st.floats(0, 1),
        "minutes": st.floats(0.1, 600.0),
        "charge_value": st.floats(0, 200),
        "forecast": st.integers(0, 2),
        "forecast_error": st.floats(0, 2.0),
        "preference": st.floats(-1, 1e4).filter(lambda k: k <= 0.0 or k > 1e-6),
    },
)


@settings(max_examples=100)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**31), OPTIONS, FIELDS, st.lists(ENTRY), st.booleans())
def test_any_scenario_and_action_gives_a_valid_step_or_one_error(
    homes, windows, seed, options, fields, entries, single
):
    env, message = None, ""
    try:
        env = make_functional(NAME, scenario=Scenario.random(homes, windows, seed), **options, **fields)
    except ValueError as error:
        message = str(error)
    if env is None:
        assert any(subject in message for subject in (*fields, "prices out of order")), message
        return
    face = MarketVectorEnv(env, 2, dtype="float32" if single else "float64")
    seen, info = face.reset(seed=seed)
    actions = random_actions(env, 2, seed)[0]
    actions.ravel()[: len(entries)] = entries[: actions.size]
    for _ in range(windows + 1):
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
    face = make_parallel(NAME, scenario=Scenario.random(3, 2, 0))
    face.reset(seed=0)
    actions = {agent: np.full(5, number) for agent, number in zip(face.agents, numbers, strict=True)}
    if np.all(np.abs(numbers) <= 1):
        assert np.isfinite(list(face.step(actions)[1].values())).all()
    else:
        agent = face.agents[int(np.argmax(~(np.abs(numbers) <= 1)))]
        with pytest.raises(ValueError, match=re.escape(f"action of {agent}, entry battery")):
            face.step(actions)
