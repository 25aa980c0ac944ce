"""What misreports gain in the private energy market: worked figures, random reports, dense grids."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2penv.pem import settlement
from p2penv.pem.equilibrium import (
    best_misreport,
    exploitability_of,
    extreme_price,
    leader_price,
    paper_price,
    regret,
)
from p2penv.pem.misreport import Case
from p2penv.pem.rules import EXTREME, GENERAL, Prices
from p2penv.pem.settlement import Homes, Reports

PRICES = Prices(80.0, 90.0, 110.0, 120.0)
PRICINGS = ("paper", "exact", "exact_bound")
BASE = 420.0 * (1.0 / np.sqrt(120.0 * 84.0))  # consumption of a seller of S = 5, k = 84·S at its price


def identical(sellers, buyers, ratio, demand, supply=1.0, capacity=5.0):
    """Sellers of equal S and k = ratio·S, then buyers of equal demand."""
    return Homes(
        np.r_[np.full(sellers, ratio * capacity), np.full(buyers, 100.0)],
        np.r_[np.full(sellers, capacity), np.full(buyers, 2.0)],
        np.r_[np.full(sellers, capacity - 1.0), np.zeros(buyers)],
        np.r_[np.full(sellers, supply), np.full(buyers, -demand)],
    )


def lie(homes, agent, preference=1.0, capacity=1.0, demand=1.0):
    """Everybody's truth but one home's."""
    told = Reports(*(np.array(each) for each in settlement.truthful(homes)))
    for field, scale in zip(told, (preference, capacity, demand), strict=True):
        field[agent] *= scale
    return told


def traded(homes, agent, pricing="paper", response="best", reports=None):
    """Price, case, fill and payment of a home."""
    reports = settlement.truthful(homes) if reports is None else reports
    terms = settlement.price(homes, reports, PRICES, pricing)
    net = settlement.best_net(homes, reports, terms, PRICES, pricing) if response == "best" else homes.nominal
    found = settlement.settle(homes, reports, terms, net, PRICES, pricing)
    return terms.price, terms.case, found.fill, found.payment[agent]


# Worked figures: the paper's rule is not incentive compatible.


@pytest.mark.parametrize(
    ("ratio", "scale", "truth", "price", "percent"),
    [(84.0, 20.0, np.sqrt(120 * 84.0), np.sqrt(120 * 84.0 * 1.19), 11.08), (60.0, 100.0, 90.0, 110.0, 26.53)],
)
def test_seller_that_overstates_its_preference(ratio, scale, truth, price, percent):
    homes = identical(100, 100, ratio, 20.0)
    told = lie(homes, 0, preference=scale)
    before, after = traded(homes, 0), traded(homes, 0, reports=told)
    assert (before[0], after[0]) == (pytest.approx(truth), pytest.approx(price))
    gain = regret(homes, 0, told, PRICES)
    assert 100.0 * gain / -before[3] == pytest.approx(percent, abs=0.005)
    # From the definition: k·log(k/p) − k + pS at the best load.
    k = ratio * 5.0
    by_hand = k * np.log(truth / price) + 5.0 * (price - truth)
    assert gain == pytest.approx(by_hand, rel=1e-10)
    # The exact price leaves out who asks for more than anybody pays.
    assert abs(regret(homes, 0, told, PRICES, "exact")) < 1e-9
    assert regret(homes, 0, told, PRICES, "exact_bound") < -0.05 * -before[3]


def test_best_overstatement_is_where_the_price_meets_its_bound():
    homes = identical(100, 100, 84.0, 20.0)
    found = best_misreport(homes, 0, settlement.truthful(homes), PRICES, ("preference",), cap=np.log(100.0))
    assert found.scale[0] >= 100.0 * 110.0**2 / 120.0 / 84.0 - 99.0 - 1e-9
    by_hand = 420.0 * np.log(np.sqrt(120 * 84.0) / 110.0) + 5.0 * (110.0 - np.sqrt(120 * 84.0))
    assert found.gain == pytest.approx(by_hand, abs=1e-9)
    assert found.bound == pytest.approx(by_hand, abs=1e-4)


def test_buyer_that_overstates_its_demand():
    supply = 5.0 - BASE
    homes = identical(100, 100, 84.0, supply / 0.3)
    price, _, fill, payment = traded(homes, 150)
    assert (price, fill) == (pytest.approx(np.sqrt(120.0 * 84.0)), pytest.approx(0.3))
    told = lie(homes, 150, demand=1.0 / 0.3)
    for pricing in PRICINGS:  # binding sellers' delivery does not bind buyers
        assert 100.0 * regret(homes, 150, told, PRICES, pricing) / payment == pytest.approx(11.63, abs=0.005)
        # Best: exactly all it needs, φ·D̂ = d.
        best = best_misreport(homes, 150, settlement.truthful(homes), PRICES, pricing=pricing)
        assert best.scale[0] >= 99.0 / 29.0 - 1e-9
        assert best.gain == pytest.approx(0.7 * (120.0 - price) * supply / 0.3, rel=1e-9)
        assert best.bound == pytest.approx(best.gain, abs=1e-4)


def test_pivotal_buyer_flips_the_case():
    homes = identical(10, 10, 84.0, 1.0, supply=0.99)
    truth = traded(homes, 15, response="agent")
    assert truth[:3] == (pytest.approx(100.4, abs=0.01), GENERAL, pytest.approx(0.99))
    told = lie(homes, 15, demand=0.9 - 1e-12)  # a gap of .1
    assert traded(homes, 15, response="agent", reports=told)[:2] == (PRICES.low, EXTREME)
    gain = regret(homes, 15, told, PRICES, response="agent")
    assert 100.0 * gain / truth[3] == pytest.approx(7.6, abs=0.05)
    best = best_misreport(homes, 15, settlement.truthful(homes), PRICES, response="agent", cap=1.0)
    assert best.gain >= gain - 1e-4
    # Flipping the case does not lower the exact price: it is there already.
    assert regret(homes, 15, told, PRICES, "exact", "agent") < 0.0


def test_pivotal_seller_flips_the_case():
    homes = identical(10, 10, 84.0, 1.0, supply=1.0)
    truth = traded(homes, 0, response="agent")
    assert truth[:2] == (PRICES.low, EXTREME)
    told = lie(homes, 0, capacity=0.98, preference=0.98)  # .1 of S = 5 held back at the same k/S
    after = traded(homes, 0, response="agent", reports=told)
    assert after[:3] == (pytest.approx(100.4, abs=0.01), GENERAL, pytest.approx(0.99))
    gain = regret(homes, 0, told, PRICES, response="agent")
    assert 100.0 * gain / -truth[3] == pytest.approx(9.3, abs=0.05)
    best = best_misreport(homes, 0, settlement.truthful(homes), PRICES, response="agent", cap=1.0, tolerance=1e-2)
    assert best.gain >= gain
    assert regret(homes, 0, told, PRICES, "exact", "agent") < 0.0


@pytest.mark.parametrize("ratio", [84.0, 60.0])
def test_what_exact_prices_and_bound_delivery_leave(ratio):
    homes = identical(100, 100, ratio, 20.0)
    sales = -traded(homes, 0, "exact")[3]
    gained = {}
    for pricing in PRICINGS:
        for fields in (("preference",), ("capacity",)):
            told = settlement.truthful(homes)
            found = best_misreport(homes, 0, told, PRICES, fields, pricing, cap=np.log(100.0), tolerance=1e-6)
            gained[pricing, fields[0]] = 100.0 * found.bound / sales
    assert gained["paper", "preference"] > 11.0
    assert gained["exact", "preference"] < 0.1
    for field in ("preference", "capacity"):
        assert gained["exact_bound", field] < 3e-4  # % of sales


def test_bound_delivery_leaves_steeper_curves_to_report():
    # k and S together can say the same supply at the price by a curve that the leader follows up.
    homes = identical(100, 1, 84.0, 2000.0)
    told = settlement.truthful(homes)
    sales = -traded(homes, 0, "exact_bound")[3]
    assert 100.0 * regret(homes, 0, lie(homes, 0, 25.027, 20.756), PRICES, "exact_bound") / sales > 1.8
    found = best_misreport(homes, 0, told, PRICES, None, "exact_bound", cap=np.log(100.0), tolerance=0.3)
    assert 1.8 < 100.0 * found.gain / sales <= 100.0 * found.bound / sales < 2.25


# The certified search.


def random_case(seed, agents=None):
    """A random market of a few homes, some of which lie, and a home with a role."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 8))
    consumed, nominal = rng.uniform(0.2, 4.0, size), rng.uniform(-2.0, 2.0, size)
    homes = Homes(
        np.maximum(consumed + nominal, 0.3) * rng.uniform(40.0, 125.0, size),
        consumed + nominal,
        np.maximum(nominal, 0.0) + consumed * rng.uniform(0.0, 0.9, size),
        nominal,
    )
    spread = rng.choice([0.0, 0.3, 1.0])
    told = (np.maximum(each, 0.0) * np.exp(spread * rng.normal(size=size)) for each in settlement.truthful(homes))
    return rng, homes, Reports(*told), int(rng.integers(size))


def fields_of(homes, agent):
    return (("preference",), ("capacity",), ("preference", "capacity")) if homes.nominal[agent] > 0 else (("demand",),)


@settings(max_examples=150)
@given(
    st.integers(0, 10**6), st.sampled_from(PRICINGS), st.sampled_from(["agent", "best"]), st.sampled_from([0.0, 80.0])
)
def test_no_report_in_a_box_exceeds_its_bound(seed, pricing, response, buyback):
    rng, homes, told, agent = random_case(seed)
    prices = PRICES._replace(buyback=buyback)
    for fields in fields_of(homes, agent):
        case = Case.of(homes, agent, told, prices, pricing, response)._replace(fields=fields)
        low = np.exp(rng.uniform(-1.5, 1.5, (40, len(fields))))
        high = low * np.exp(rng.exponential(1.0, low.shape) * rng.choice([1e-6, 1e-2, 1.0], (40, 1)))
        bound = case.bounds(low, high)
        inside = low + (high - low) * rng.random((50, *low.shape))
        inside[:2] = low, high
        payoffs = case.payoffs(inside.reshape(-1, len(fields))).reshape(50, -1)
        assert (payoffs <= bound + 1e-8).all()


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(PRICINGS), st.sampled_from(["agent", "best"]))
def test_best_misreport_is_no_worse_than_a_dense_grid(seed, pricing, response):
    _, homes, told, agent = random_case(seed)
    for fields in fields_of(homes, agent):
        joint = len(fields) > 1
        found = best_misreport(
            homes, agent, told, PRICES, fields, pricing, response, cap=1.0, tolerance=0.5 if joint else 1e-4
        )
        assert found.gain >= 0.0
        assert found.bound - found.gain <= (0.5 if joint else 1e-4) + 1e-9
        assert found.certified
        case = Case.of(homes, agent, told, PRICES, pricing, response)._replace(fields=fields)
        marks = np.exp(np.linspace(-1.0, 1.0, 101 if joint else 20001))
        scales = np.stack(np.meshgrid(*[marks] * len(fields)), axis=-1).reshape(-1, len(fields))
        values = case.payoffs(scales) - case.payoff(told)
        assert values.max() <= found.bound + 1e-9
        # The report found does gain what it says.
        assert case.payoffs(found.scale[None])[0] - case.payoff(told) == pytest.approx(found.gain, abs=1e-8)


@pytest.mark.parametrize("pricing", PRICINGS)
def test_best_misreport_is_certified_where_demand_meets_a_flat_supply(pricing):
    """Sellers saturate together and buyers want just what they have then: rounding alone says which side is longer."""
    rng = np.random.default_rng(9)
    tried = 0
    for _ in range(12):
        sellers, buyers = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        capacity = rng.uniform(1.0, 6.0, sellers)
        k = capacity * rng.choice([85.0, 90.0, 95.5, 100.0], sellers)
        full = rng.choice([98.0, 102.04, 106.0], sellers)
        most = np.maximum(capacity - k / full, 1e-3)
        demand = np.clip(capacity - k / rng.choice(full), 0.0, most).sum() * rng.dirichlet(np.ones(buyers))
        if demand.min() < 1e-6:
            continue
        homes = Homes(
            np.r_[k, np.full(buyers, 100.0)],
            np.r_[capacity, np.full(buyers, 2.0)],
            np.r_[most, np.zeros(buyers)],
            np.r_[most * rng.uniform(0.1, 1.0, sellers), -demand],
        )
        truth = settlement.truthful(homes)
        for agent, fields in ((0, ("preference",)), (0, ("capacity",)), (sellers, ("demand",))):
            found = best_misreport(homes, agent, truth, PRICES, fields, pricing, cap=1.0, tolerance=1e-3)
            assert found.bound - found.gain <= 1e-3 + 1e-9
            case = Case.of(homes, agent, truth, PRICES, pricing, "best")._replace(fields=fields)
            marks = np.r_[np.exp(np.linspace(-1.0, 1.0, 2001)), np.nextafter(1.0, [0.0, 2.0])][:, None]
            assert (case.payoffs(marks) - case.payoff(truth)).max() <= found.bound + 1e-9
            tried += 1
    assert tried >= 18


def test_a_search_says_where_it_stops_short_of_its_tolerance(monkeypatch):
    """Sellers bound to their schedules among tied prices: the bound holds, but is wider than asked for."""
    tied = Homes(*map(np.array, ([650.0, 650.0, 100.0], [5.0, 5.0, -1.0], [2.2, 1.0, 0.9], [1.0, 1.0, -2.0])))
    told = Reports(np.array(tied.preference), np.array([5.0, 5.0, 0.0]), np.array([0.0, 0.0, 2.0]))
    loose = best_misreport(tied, 1, told, PRICES, ("capacity",), "exact_bound", "agent", cap=1.5, tolerance=1e-3)
    assert loose.bound - loose.gain > 1e-3
    assert not loose.certified
    marks = np.exp(np.linspace(-1.5, 1.5, 20001))[:, None]
    case = Case.of(tied, 1, told, PRICES, "exact_bound", "agent")._replace(fields=("capacity",))
    assert (case.payoffs(marks) - case.payoff(told)).max() <= loose.bound
    # Cut short by hand, any search does.
    homes = identical(100, 100, 84.0, 20.0)
    search = (homes, 0, settlement.truthful(homes), PRICES, ("preference",), "exact")
    usual = best_misreport(*search)
    assert usual.certified
    monkeypatch.setattr("p2penv.pem.equilibrium.MOST", 1)
    short = best_misreport(*search)
    assert short.bound > short.gain + 1e-4
    assert not short.certified


def test_exploitability_of_many_windows():
    _, homes, told, _ = random_case(3)
    batch = [np.stack([each, each]) for each in (*homes, *told)]
    found = exploitability_of(Homes(*batch[:4]), Reports(*batch[4:]), PRICES, "exact", caps=(1.0, 0.0, 1.0))
    assert found.shape == (2, homes.nominal.size)
    np.testing.assert_array_equal(found[0], found[1])
    for agent, gain in enumerate(found[0]):
        fields = fields_of(homes, agent)[0]
        alone = best_misreport(homes, agent, told, PRICES, fields, "exact", cap=1.0, tolerance=1e-2)
        assert gain == alone.gain
    assert (exploitability_of(homes, told, PRICES, caps=(0.0, 0.0, 0.0)) == 0.0).all()


# Prices and refusals.


def test_prices_of_many_windows():
    k, capacity, most = [160.0, 708.0], [2.0, 6.0], [1.0, 5.0]
    found = leader_price(k, capacity, most, np.array([100.0, 1e-3]), PRICES)
    assert found.price[0] == pytest.approx(97.98, abs=0.005)
    assert found.saving[0] == pytest.approx(8.08, abs=0.005)
    assert found.price[1] == PRICES.low
    assert found.case.tolist() == [GENERAL, EXTREME]
    paper = paper_price(k, capacity, most, most, 100.0, PRICES)
    assert (paper.price, paper.saving) == (pytest.approx(110.0), pytest.approx(5.45, abs=0.005))
    half = 0.5 * (5.0 - 420.0 / 90.0)
    assert extreme_price([420.0], [5.0], [4.0], half, PRICES) == pytest.approx(87.77, abs=0.005)


def test_bad_input_is_refused():
    homes = identical(2, 2, 84.0, 1.0)
    told = settlement.truthful(homes)
    with pytest.raises(ValueError, match=r"preference of agent 1 must be > 0, got 0\.0"):
        leader_price([1.0, 0.0], [1.0, 1.0], [1.0, 1.0], 1.0, PRICES)
    for demand in (-1.0, np.nan, np.inf, [1.0, -1.0], np.array(np.nan)):
        with pytest.raises(ValueError, match=r"demand must be finite and >= 0, got (-1\.0|nan|inf)"):
            leader_price([1.0], [1.0], [1.0], demand, PRICES)
    with pytest.raises(TypeError, match="demand must hold numbers"):
        leader_price([1.0], [1.0], [1.0], "much", PRICES)
    for wrong in ({"low": 70.0}, {"low": np.array([70.0, 130.0])}, {"retail": np.array([120.0, np.nan])},
                  {"buyback": -1.0}, {"retail": np.inf}):  # fmt: skip
        with pytest.raises(ValueError, match=r"prices must have 0 <= buyback < low <= high < retail, got \("):
            leader_price([1.0], [1.0], [1.0], 1.0, PRICES._replace(**wrong))
    with pytest.raises(ValueError, match=re.escape("got (80.0, 130.0, 110.0, 120.0)")):
        leader_price([1.0], [1.0], [1.0], 1.0, PRICES._replace(low=np.array([90.0, 130.0])))
    with pytest.raises(TypeError, match="scenario must be a scenario or its prices, got 'day300'"):
        leader_price([1.0], [1.0], [1.0], 1.0, "day300")
    with pytest.raises(ValueError, match=re.escape("preference must have shape (..., n) of n >= 1 homes, got (0,)")):
        leader_price([], [], [], 1.0, PRICES)
    for cap in (800.0, -1.0):
        with pytest.raises(ValueError, match=rf"cap\[0\] must be in \[0, 10\], got {cap}"):
            best_misreport(homes, 3, told, PRICES, cap=cap)
    with pytest.raises(ValueError, match="field must be one of 'demand'; got 'capacity'"):
        best_misreport(homes, 3, told, PRICES, ("capacity",))
    with pytest.raises(ValueError, match=r"agent must be in 0\.\.3, got 4"):
        regret(homes, 4, told, PRICES)
    with pytest.raises(ValueError, match="pricing must be one of"):
        regret(homes, 0, told, PRICES, "best")
    with pytest.raises(ValueError, match=r"reported demand\[2\]"):
        regret(homes, 0, told._replace(demand=np.array([0.0, 0.0, np.nan, 1.0])), PRICES)
    off = homes._replace(nominal=np.array([0.0, 1.0, -1.0, -1.0]))
    with pytest.raises(ValueError, match="agent 0 is off the market"):
        best_misreport(off, 0, told, PRICES)
    with pytest.raises(ValueError, match=r"capacity\[1\] must be above nominal"):
        regret(homes._replace(nominal=np.array([1.0, 6.0, -1.0, -1.0])), 0, told, PRICES)
