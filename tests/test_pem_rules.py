"""Pricing and settlement of the private energy market: hand-worked cases, dense grids, other namespaces, balance."""

import time

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from p2penv.pem import rules, settlement
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Offers, Prices
from p2penv.pem.settlement import Homes, Reports

PRICES = Prices(80.0, 90.0, 110.0, 120.0)
PRICINGS = ("paper", "exact", "exact_bound")


def offers(k, capacity, most):
    return Offers(*(np.array(each, dtype=float) for each in np.broadcast_arrays(k, capacity, most)))


def market(k, capacity, most, demand):
    return rules.exact_price(offers(k, capacity, most), np.array(float(demand)), PRICES)


def saved(each, demand, price):
    """The leader's saving straight from its definition, at prices ``(P,)``."""
    supply = np.clip(each.capacity - each.preference / price[:, None], 0.0, each.most).sum(axis=-1)
    return (PRICES.retail - price) * np.minimum(supply, demand)


def random_offers(rng, shape):
    capacity = rng.uniform(0.5, 6.0, shape)
    k = capacity * rng.uniform(50.0, 125.0, shape)
    most = capacity * rng.choice([0.0, 0.05, 0.3, 0.9, 1.5], shape)
    return Offers(k, capacity, most)


def random_homes(rng, shape, spread=1.0):
    """A mixed market; ``spread`` 0: the reports are the truth."""
    consumed = rng.uniform(0.2, 4.0, shape)  # 1 + l + eb
    nominal = rng.uniform(-2.0, 2.0, shape) * (rng.random(shape) < 0.9)
    capacity = consumed + nominal
    homes = Homes(
        preference=np.maximum(capacity, 0.3) * rng.uniform(40.0, 125.0, shape),
        capacity=capacity,
        most=np.maximum(nominal, 0.0) + consumed * rng.uniform(0.0, 0.9, shape),
        nominal=nominal,
    )
    lies = (np.exp(spread * rng.normal(size=shape)) for _ in range(3))
    true = settlement.truthful(homes)
    reports = Reports(*(np.maximum(each, 0.0) * lie for each, lie in zip(true, lies, strict=True)))
    return homes, reports


def clear(homes, reports, pricing, response="best", prices=PRICES):
    terms = settlement.price(homes, reports, prices, pricing)
    net = homes.nominal
    if response == "best":
        net = settlement.best_net(homes, reports, terms, prices, pricing)
    return terms, net, settlement.settle(homes, reports, terms, net, prices, pricing)


# Prices of the leader.


@pytest.mark.parametrize(
    ("k", "capacity", "most", "demand", "exact", "digits", "saving"),
    [
        ([160, 708], [2, 6], [1, 5], 100.0, 97.98, 0.005, 8.08),
        ([450] * 2, 5, 0.3, 100.0, 95.745, 0.0005, 14.553),
        ([294] * 10, 3, 2, 0.9, 101.031, 0.0005, None),
    ],
)
def test_price_where_the_paper_s_set_of_sellers_is_wrong(k, capacity, most, demand, exact, digits, saving):
    found = market(k, capacity, most, demand)
    assert found.case == GENERAL
    assert found.price == pytest.approx(exact, abs=digits)
    if saving is not None:
        assert found.saving == pytest.approx(saving, abs=0.005)


@pytest.mark.parametrize(
    ("k", "capacity", "most", "price", "saving", "digits"),
    [([160, 708], [2, 6], [1, 5], 110.0, 5.45, 0.005), ([450] * 2, [5] * 2, [0.3] * 2, 103.92, 9.646, 0.0005)],
)
def test_paper_price(k, capacity, most, price, saving, digits):
    each = offers(k, capacity, most)
    found = rules.paper_price(each, each.most, np.array(100.0), PRICES)
    assert found.price == pytest.approx(price, abs=0.005)
    assert found.saving == pytest.approx(saving, abs=digits)


def test_paper_price_cycles_where_supply_at_its_price_covers_demand():
    each, demand = offers([294] * 10, 3, 2), np.array(0.9)
    net, seen = np.full(10, 0.05), []
    for _ in range(4):
        found = rules.paper_price(each, net, demand, PRICES)
        seen.append(float(found.price))
        net = rules.supply(each, found.price[None])
        # Who has nothing to sell at p_l keeps a little on offer, or there would be no market.
        net = np.maximum(net, 1e-3)
    assert seen == pytest.approx([108.44, 90.0, 108.44, 90.0], abs=0.005)
    exact = market([294] * 10, 3, 2, 0.9)
    assert rules.supply(each, exact.price[None]).sum() == pytest.approx(0.9)  # where supply meets demand


def test_exact_price_is_never_worse_than_a_grid():
    rng = np.random.default_rng(1)
    grid = np.linspace(PRICES.low, PRICES.high, 4001)
    general = 0
    for trial in range(3000):
        each = random_offers(rng, int(rng.integers(1, 9)))
        demand = np.array(each.most.sum() * rng.uniform(0.05, 1.5) + 0.01)
        found = rules.exact_price(each, demand, PRICES)
        at_low, at_high = (np.clip(each.capacity - each.preference / p, 0, each.most).sum() for p in (90.0, 110.0))
        if at_low >= demand:
            assert (found.case, found.price) == (EXTREME, PRICES.low)
        elif at_high == 0.0:
            assert (found.case, found.price) == (NO_MARKET, PRICES.retail)
        else:
            general += 1
            assert found.case == GENERAL
            assert PRICES.low <= found.price <= PRICES.high
        best = saved(each, demand, grid).max()
        # Between two grid prices .005 apart the saving moves by at most its slope: Σk(ps − p)/p² + E_b.
        slope = each.preference.sum() * 30.0 / 8100.0 + demand
        assert best - 1e-9 <= found.saving <= best + 0.005 * slope, trial
        own = saved(each, demand, np.atleast_1d(found.price))[0] if found.case != NO_MARKET else 0.0
        assert own == pytest.approx(float(found.saving), rel=1e-10, abs=1e-10)
    assert general > 1000


def test_coinciding_breakpoints_and_demand_at_a_flat_supply():
    """Sellers that start or saturate together or at p_l, p_h, and demand that is supply at such a price, or next to it.

    There sums cancel, so that rounding alone says on which side of demand a flat supply is.
    """
    rng = np.random.default_rng(6)
    grid = np.linspace(PRICES.low, PRICES.high, 2001)
    met = {GENERAL: 0, EXTREME: 0}
    for trial in range(1500):
        size = int(rng.integers(1, 9))
        capacity = rng.uniform(0.5, 6.0, size)
        k = capacity * rng.choice([85.0, 90.0, 95.5, 100.0, 105.0, 110.0], size)
        full = rng.choice([90.0, 98.0, 102.04, 106.0, 110.0, 130.0, np.inf], size)
        each = Offers(k, capacity, np.maximum(capacity - k / full, 0.0) * (rng.random(size) < 0.8))
        price = min(rng.choice(np.concatenate([k / capacity, full])), 150.0)
        demand = rng.permutation(np.clip(capacity - k / price, 0.0, each.most)).sum()
        if rng.random() < 0.3:
            demand = np.nextafter(demand, rng.choice([0.0, np.inf]))
        if demand <= 0.0:
            continue
        found = rules.exact_price(each, np.array(demand), PRICES)
        best = saved(each, demand, grid).max()
        assert best - 1e-9 <= found.saving <= best + 0.01 * (k.sum() * 30.0 / 8100.0 + demand), trial
        if found.case == NO_MARKET:
            continue
        assert saved(each, demand, found.price[None])[0] == pytest.approx(float(found.saving), abs=1e-9), trial
        met[int(found.case)] += 1
        if found.case == EXTREME:
            average = float(rules.extreme_price(each, np.array(demand), PRICES))
            supply = np.clip(capacity - k / average, 0.0, each.most).sum()
            assert (average - 80.0) * supply == pytest.approx(10.0 * demand, abs=1e-7), trial
    assert met[GENERAL] > 700
    assert met[EXTREME] > 40


def test_one_sort_prices_many_sellers():
    """Sixteen times the sellers take at most fifty times as long, 256 if time were quadratic, and no n x n memory."""

    def spent(size):
        each, demand = random_offers(np.random.default_rng(7), size), np.array(3.0 * size)
        rules.exact_price(each, demand, PRICES)
        marks = []
        for _ in range(3):
            begun = time.process_time()
            rules.exact_price(each, demand, PRICES)
            marks.append(time.process_time() - begun)
        return min(marks)

    assert spent(2**17) < 50.0 * spent(2**13)


def test_extreme_price_is_the_root_found_by_bracketing():
    each, demand = offers([420.0] * 4, 5.0, 4.0), np.array(0.5 * 4 * (5.0 - 420.0 / 90.0))
    assert rules.extreme_price(each, demand, PRICES) == pytest.approx(87.77, abs=0.005)
    rng = np.random.default_rng(2)
    for _ in range(300):
        each = random_offers(rng, int(rng.integers(1, 7)))
        at_low = rules.supply(each, np.array([90.0])).sum()
        if at_low == 0.0:
            continue
        demand = np.array(at_low * rng.uniform(0.05, 1.0))

        def excess(p, each=each, demand=demand):
            return (p - 80.0) * np.clip(each.capacity - each.preference / p, 0.0, each.most).sum() - 10.0 * demand

        root = brentq(excess, 80.0, 90.0 + 1e-9, xtol=1e-12)
        assert rules.extreme_price(each, demand, PRICES) == pytest.approx(root, abs=1e-8)


def test_a_price_of_zero_draws_no_supply():
    each = offers([420.0, 1e-3, 5.0], [5.0, 5.0, 0.0], [4.0, 4.0, 0.0])
    assert rules.supply(each, np.array([0.0])).tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(
        rules.supply(each, np.array([[0.0], [100.0]])), [[0.0, 0.0, 0.0], [5.0 - 4.2, 4.0, 0.0]]
    )
    # Without buyback p̄·E(p̄) = p_l·E_b has a closed form: p̄ = (p_l·E_b + k)/S, also where nothing is demanded.
    for demand in (0.0, 0.1, 0.3):
        found = rules.extreme_price(offers([420.0], 5.0, 4.0), np.array(demand), PRICES._replace(buyback=0.0))
        assert found == pytest.approx((90.0 * demand + 420.0) / 5.0 if demand else 0.0, rel=1e-14)


@given(
    st.floats(0.0, 10.0), st.floats(0.0, 1.0), st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.floats(0.0, 3.0),
    st.floats(0.01, 0.99), st.floats(0.1, 3.0),
)  # fmt: skip
def test_battery_limits_are_the_furthest_that_are_safe(capacity, share, into, out, least, loss, hours):
    """At a limit the battery is empty or full, or the logarithm at its margin; before it none of them is passed."""
    charge = share * capacity
    low, high = rules.charging_limits(charge, capacity, into, out, least, loss, hours)
    assert low <= 0.0 <= high
    for part in (0.0, 0.5, 1.0):
        for end in (low, high):
            after = charge + rules.charge_change(np.array(part * end), into, out, hours)
            assert -1e-9 <= after <= capacity + 1e-9
            assert 1.0 + least + loss * part * end >= 0.1 - 1e-9
    empty = charge + rules.charge_change(np.array(low), into, out, hours)
    assert min(empty, 1.0 + least + loss * low - 0.1) == pytest.approx(0.0, abs=1e-9)
    full = charge + rules.charge_change(np.array(high), into, out, hours)
    assert full == pytest.approx(capacity, abs=1e-9)


def test_who_never_saturates_or_never_sells():
    # S − G ≤ 0: no price saturates; one interior seller at √(ps·k/S).
    assert market([420.0], 5.0, 5.0, 10.0).price == pytest.approx(np.sqrt(120.0 * 84.0))
    assert market([420.0], 5.0, 9.0, 10.0).price == pytest.approx(np.sqrt(120.0 * 84.0))
    for k, capacity, most in (([420.0], 5.0, 0.0), ([700.0], 5.0, 4.0), ([420.0], 0.0, 4.0)):
        found = market(k, capacity, most, 10.0)
        assert (found.price, found.case, found.saving) == (PRICES.retail, NO_MARKET, 0.0)


def test_no_demand_equal_breakpoints_and_equal_price_bounds():
    found = market([420.0], 5.0, 4.0, 0.0)
    assert (found.price, found.case, found.saving) == (PRICES.low, EXTREME, 0.0)
    assert rules.extreme_price(offers([420.0], 5.0, 4.0), np.array(0.0), PRICES) == PRICES.buyback
    one, many = market([420.0], 5.0, 4.0, 10.0), market([420.0] * 50, 5.0, 4.0, 500.0)
    assert many.price == pytest.approx(float(one.price), rel=1e-13)
    assert many.saving == pytest.approx(50.0 * float(one.saving), rel=1e-13)
    fixed = rules.exact_price(offers([420.0], 5.0, 4.0), np.array(10.0), PRICES._replace(low=100.0, high=100.0))
    assert (fixed.price, fixed.case) == (100.0, GENERAL)
    assert fixed.saving == pytest.approx(20.0 * (5.0 - 4.2))


def test_default_preferences_of_the_paper_never_leave_the_floor():
    # k = 20, 40 and S = 1 + g + … ≥ 1: (13) is at most √(120·40).
    assert np.sqrt(120.0 * 40.0) < 69.3
    rng = np.random.default_rng(3)
    for _ in range(50):
        size = int(rng.integers(1, 20))
        each = Offers(rng.choice([20.0, 40.0], size), rng.uniform(1.0, 5.0, size), rng.uniform(0.1, 4.0, size))
        assert rules.paper_price(each, each.most, np.array(1e3), PRICES).price == PRICES.low
        assert rules.exact_price(each, np.array(1e3), PRICES).price == PRICES.low
    assert (np.array([20.0, 40.0]) / PRICES.low - 1.0 < 0.0).all()  # the loads (10) asks for
    # So a seller that need not use anything keeps nothing: g = 2, S = 3 and all of G = 2 is supplied at the floor.
    assert (rules.supply(offers([20.0, 40.0], 3.0, 2.0), np.array([90.0])) == 2.0).all()


@given(st.floats(40.0, 119.0))
def test_interior_prices_need_k_over_s_between_67_5_and_100_8(ratio):
    price = float(market([5.0 * ratio] * 3, 5.0, 5.0, 100.0).price)
    interior = PRICES.low < price < PRICES.high
    assert interior == (67.5 < ratio < 110.0**2 / 120.0)
    paper = rules.paper_price(offers([5.0 * ratio] * 3, 5.0, 5.0), np.ones(3), np.array(100.0), PRICES)
    if ratio < 110.0:
        assert paper.price == pytest.approx(price)


@given(st.integers(0, 10**6))
def test_the_cut_is_at_most_a_quarter(seed):
    rng = np.random.default_rng(seed)
    each = random_offers(rng, 6)
    demand = np.array(rng.uniform(0.01, 20.0))
    limit = (PRICES.retail - PRICES.low) / PRICES.retail * PRICES.retail * float(demand)
    for found in (rules.exact_price(each, demand, PRICES), rules.paper_price(each, each.most, demand, PRICES)):
        assert 0.0 <= found.saving <= limit + 1e-12
    homes, reports = random_homes(rng, 12, 0.0)
    for pricing in PRICINGS:
        _, _, found = clear(homes, reports, pricing)
        buys = homes.nominal < 0.0
        grid = PRICES.retail * -homes.nominal[buys]
        assert (found.payment[buys] >= 0.75 * grid - 1e-9).all()
        assert (found.payment[buys] <= grid + 1e-9).all()


# Batches and other namespaces.


def both(homes, reports, pricing, prices=PRICES):
    terms, net, found = clear(homes, reports, pricing, prices=prices)
    return [*terms, net, *found, settlement.rewards(homes, net, found.payment)]


@pytest.mark.parametrize("pricing", PRICINGS)
def test_a_batch_is_a_loop(pricing):
    homes, reports = random_homes(np.random.default_rng(4), (40, 9))
    together = both(homes, reports, pricing)
    for window in range(40):
        alone = both(*(type(each)(*(field[window] for field in each)) for each in (homes, reports)), pricing)
        for name, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
            np.testing.assert_allclose(ours[window], theirs, rtol=1e-11, atol=1e-11, err_msg=str(name))


@pytest.mark.parametrize("buyback", [0.0, 80.0])
@pytest.mark.parametrize("pricing", PRICINGS)
def test_jax_and_torch_are_numpy(pricing, buyback):
    homes, reports = random_homes(np.random.default_rng(5), (20, 7))
    prices = PRICES._replace(buyback=buyback)
    ours = both(homes, reports, pricing, prices)
    assert all(np.isfinite(each).all() for each in ours)
    with jax.enable_x64(True):
        compiled = jax.jit(lambda *each: both(*each[:2], pricing, each[2]))(
            *(type(each)(*(jax.numpy.asarray(field) for field in each)) for each in (homes, reports, prices))
        )
        compiled = [np.asarray(each) for each in compiled]
    torch = array_api_compat.torch
    tensors = (type(each)(*(torch.asarray(np.asarray(field)) for field in each)) for each in (homes, reports, prices))
    homes_t, reports_t, prices_t = tensors
    others = [np.asarray(each) for each in both(homes_t, reports_t, pricing, prices_t)]
    for a, b, c in zip(ours, compiled, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(c, a, rtol=1e-10, atol=1e-10)


# Settlement.


@given(
    st.integers(0, 10**6), st.sampled_from(PRICINGS), st.sampled_from(["agent", "best"]), st.sampled_from([0.0, 0.3, 2])
)
def test_energy_and_money_balance(seed, pricing, response, spread):
    rng = np.random.default_rng(seed)
    homes, reports = random_homes(rng, (20, int(rng.integers(1, 9))), spread)
    terms, net, found = clear(homes, reports, pricing, response)
    np.testing.assert_allclose(found.bought.sum(axis=-1), found.sold.sum(axis=-1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.grid_power + net.sum(axis=-1), 0.0, atol=1e-9)
    np.testing.assert_allclose(found.payment.sum(axis=-1), found.grid_account, rtol=0, atol=1e-9)
    given_, taken = np.maximum(net, 0.0), np.maximum(-net, 0.0)
    assert ((found.sold >= 0.0) & (found.sold <= given_)).all()
    assert ((found.bought >= 0.0) & (found.bought <= taken)).all()
    assert (found.fee >= 0.0).all()
    assert (found.bought[homes.nominal >= 0.0] == 0.0).all()
    assert (found.sold[homes.nominal <= 0.0] == 0.0).all()
    if spread == 0.0:
        assert np.abs(found.fee).max() < 1e-9
    # Nothing is traded below buyback or above retail.
    assert ((terms.price >= PRICES.low) & (terms.price <= PRICES.retail)).all()


def test_a_settlement_worked_by_hand():
    # Supply at p = 100 is 1 + 2; demand reported 4 + 2; the second buyer takes 1 of 2, the second seller delivers 1.5.
    homes = Homes(
        np.array([400.0, 300.0, 100.0, 100.0]),
        np.array([5.0, 5.0, 2.0, 2.0]),
        np.array([4.0, 4.0, 0.0, 0.0]),
        np.array([1.0, 2.0, -4.0, -1.0]),
    )
    reports = Reports(homes.preference, homes.capacity, np.array([0.0, 0.0, 4.0, 2.0]))
    prices = PRICES._replace(low=100.0, high=100.0)
    terms = settlement.price(homes, reports, prices, "exact_bound")
    assert (terms.price, terms.case) == (100.0, GENERAL)
    net = np.array([1.0, 1.5, -4.0, -1.0])
    found = settlement.settle(homes, reports, terms, net, prices, "exact_bound")
    assert (found.fill, found.share) == (0.5, 1.0)
    # Buyers would get 2 + 1, sellers give 1 + 1.5: buyers are scaled by 5/6.
    np.testing.assert_allclose(found.bought, [0.0, 0.0, 5.0 / 3.0, 5.0 / 6.0])
    np.testing.assert_allclose(found.sold, [1.0, 1.5, 0.0, 0.0])
    np.testing.assert_allclose(found.fee, [0.0, 20.0 * 0.5, 0.0, 0.0])
    np.testing.assert_allclose(
        found.payment, [-100.0, -150.0 + 10.0, 500 / 3 + 120 * 7 / 3, 500 / 6 + 120 / 6], rtol=1e-14
    )
    np.testing.assert_allclose(found.grid_account, 10.0 + 120.0 * 2.5, rtol=1e-14)
    # Not bound, nobody is short of what it says.
    loose = settlement.settle(homes, reports, terms, net, prices, "exact")
    np.testing.assert_allclose(loose.schedule, [1.0, 1.5, 0.0, 0.0])
    assert (loose.fee == 0.0).all()


@given(st.integers(0, 10**6), st.sampled_from(["exact", "exact_bound"]))
def test_truthful_homes_are_no_worse_off_than_with_the_grid(seed, pricing):
    homes, reports = random_homes(np.random.default_rng(seed), (30, 8), 0.0)
    _, net, found = clear(homes, reports, pricing)
    earned = settlement.rewards(homes, net, found.payment)
    # The best of the grid alone, over a grid of loads.
    given_ = np.linspace(0.0, 1.0, 401)[:, None, None] * np.where(homes.nominal > 0.0, homes.most, 0.0)
    kept = homes.capacity - given_
    sells = homes.nominal > 0.0
    alone = np.where(sells, homes.preference * np.log(np.where(sells, kept, 1.0)) + PRICES.buyback * given_, -np.inf)
    buyers = homes.preference * np.log(homes.capacity - homes.nominal) + PRICES.retail * homes.nominal
    alone = np.where(sells, alone.max(axis=0), buyers)
    assert (earned >= alone - 1e-9).all()


def test_the_paper_s_price_may_be_worse_than_the_grid():
    """Ten sellers answer p = √(120·98) = 108.44 with three times what buyers want, and sell the rest at 80."""
    homes = Homes(
        np.r_[np.full(10, 294.0), 100.0], np.r_[np.full(10, 3.0), 3.0], np.r_[np.full(10, 2.0), 0.0],
        np.r_[np.full(10, 0.05), -0.9],
    )  # fmt: skip
    alone = 294.0 * np.log(3.0)  # k/S = 98 is above buyback: nothing is sold to the grid
    price, sold = np.sqrt(120.0 * 98.0), 0.09
    supply = 3.0 - 294.0 / price
    by_hand = 294.0 * np.log(294.0 / price) + price * sold + 80.0 * (supply - sold)
    earned = {}
    for pricing in PRICINGS:
        terms, net, found = clear(homes, settlement.truthful(homes), pricing)
        earned[pricing] = float(settlement.rewards(homes, net, found.payment)[0])
        assert terms.case == GENERAL
    assert earned["paper"] == pytest.approx(by_hand, rel=1e-12)
    assert by_hand < alone - 1.0
    # The exact price is where supply meets demand.
    assert earned["exact"] == pytest.approx(earned["exact_bound"], rel=1e-9)
    assert earned["exact"] > alone + 0.1


def test_answering_the_floor_price_in_an_extreme_market_is_worse_than_the_grid():
    # Ten identical sellers and half of their supply at p_l demanded.
    wanted = 0.5 * 10 * (5.0 - 420.0 / 90.0)
    homes = Homes(
        np.r_[np.full(10, 420.0), 100.0],
        np.r_[np.full(10, 5.0), 2.0],
        np.r_[np.full(10, 4.0), 0.0],
        np.r_[np.full(10, 1.0), -wanted],
    )
    reports = settlement.truthful(homes)
    terms = settlement.price(homes, reports, PRICES, "exact")
    assert terms.case == EXTREME
    assert terms.answered == pytest.approx(87.77, abs=0.005)
    alone = 420.0 * np.log(5.0)  # k/S = 84 is above buyback: the grid alone draws no supply
    results = []
    for answered in (terms.answered, terms.price):
        supply = rules.supply(Offers(*homes[:3]), answered[None])
        net = np.where(homes.nominal > 0.0, supply, homes.nominal)
        found = settlement.settle(homes, reports, terms, net, PRICES, "exact")
        results.append(settlement.rewards(homes, net, found.payment)[0] - alone)
    assert results[0] > 0.0 > results[1]
