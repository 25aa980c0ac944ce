"""Exponential mechanism on a finite range: the paper's tables, its definition, rejection sampling, other namespaces."""

import importlib.util
import sys

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from p2penv.core.params import cast
from p2penv.dpvcg import finite, rules
from p2penv.dpvcg.finite import Range
from p2penv.dpvcg.rules import Bids, Bounds
from p2penv.dpvcg.scenario import load_scenario

# Tables I and II; consumers first.
BIDS = Bids(
    np.array([-0.00125, -0.006, -0.0067, -0.0022, -0.0013, -0.001]),
    np.array([0.125, 0.216, 0.2975, 0.0056, 0.0076, 0.003]),
    np.array([-0.5937, -0.93, -2.305, 0.0, 0.0, 0.0]),
)
BOUNDS = Bounds(np.array([5.0, 5, 10, -20, -25, -30]), np.array([15.0, 18, 25, 0, 0, 0]))
SIGN = np.array([1, 1, 1, -1, -1, -1])
# Table III: demands and generations, welfare, probability at ε = 0.1, 1 and 10.
TABLE = np.array(
    [
        [12.38, 13.4, 19.43, 1.91, 15.04, 28.27, 1.28, 0.0924, 0.105, 0.114],
        [7.48, 9.6, 10.71, 3.5, 2.35, 21.9, 0.356, 0.0882, 0.0662, 0.0011],
        [11.31, 7.52, 12.66, 2.7, 6.08, 22.73, 0.7, 0.0897, 0.0784, 0.0059],
        [14.5, 16.87, 24, 19.14, 12.05, 24.18, 1.08, 0.0915, 0.0953, 0.0422],
        [5.95, 6.12, 15.78, 10.2, 11.7, 5.96, 0.388, 0.0883, 0.0673, 0.0012],
        [8.73, 14.86, 14.8, 16.25, 9.3, 12.85, 0.93, 0.0907, 0.0882, 0.0193],
        [13.06, 16.4, 19.13, 10.08, 20.51, 18, 1.4, 0.0929, 0.115, 0.201],
        [13.56, 12.55, 15.18, 2.56, 16.43, 22.31, 1.3, 0.0925, 0.106, 0.127],
        [8.11, 14.32, 14.53, 19, 6.76, 11.2, 0.7, 0.0897, 0.0788, 0.0062],
        [10.23, 7.23, 18.97, 15.02, 1.51, 19.9, 0.75, 0.0899, 0.0806, 0.0079],
        [15, 14.003637, 18.622660, 9.626444, 15.521675, 22.478178, 1.56, 0.0937, 0.121, 0.472],
    ]
)
POINTS = TABLE[:, :6] * SIGN
ELEVEN = Range(POINTS, np.zeros((6, 1, 6)))


def scaled(agent, alpha, bids=BIDS):
    factor = np.where(np.arange(6) == agent, alpha, 1.0)
    return Bids(*(factor * field for field in bids))


def random_case(seed, batch=(3,), agents=5, size=40):
    """Bids with leading axes and a range whose points need not balance: the law does not care."""
    rng = np.random.default_rng(seed)
    bids = Bids(
        -rng.uniform(0.001, 0.01, (*batch, agents)),
        rng.uniform(0.0, 0.3, (*batch, agents)),
        rng.normal(size=(*batch, agents)),
    )
    points = rng.uniform(-10, 10, (size, agents))
    without = rng.uniform(-10, 10, (agents, size, agents)) * (1.0 - np.eye(agents))[:, None]
    return bids, Range(points, without)


def slow_law(support, bids, beta, true):
    """The law by its definition, point by point, in extended precision."""
    agents = len(bids.linear)
    extended = [np.asarray(field, np.longdouble) for field in bids]

    def tilt(points, keep):
        values = (extended[0] * points.astype(np.longdouble) + extended[1]) * points + extended[2]
        total = (values * keep).sum(axis=1)
        middle = total.mean()
        chance = np.exp(beta * (total - total.max()))
        chance /= chance.sum()
        # expm1 and log1p keep all digits as β goes to zero.
        free = middle if beta == 0 else middle + np.log1p(np.expm1(beta * (total - middle)).mean()) / beta
        return chance, values, total, free

    chance, values, total, free = tilt(support.points, np.ones(agents))
    true_values = (true.quadratic * support.points + true.linear) * support.points + true.constant
    rest = [tilt(support.without[i], np.arange(agents) != i) for i in range(agents)]
    return rules.Law(
        chance @ total,
        chance @ support.points,
        chance @ values,
        chance @ true_values,
        free,
        np.array([law @ total for law, _, total, _ in rest]),
        np.array([free for *_, free in rest]),
    )


# The paper's tables.


def test_table_three_welfare():
    np.testing.assert_array_equal(load_scenario().sampled_allocations, TABLE[:10, :6])
    printed = TABLE[:, 6]
    points = POINTS.copy()
    points[1, 5] = -21.94  # printed 21.9; 0.356 belongs to this
    found = finite.welfare(points, BIDS)
    # The paper truncates some and rounds others.
    digits = np.where((printed < 0.5), 0.001, 0.0105)
    assert (np.abs(found - printed) < digits).all()
    assert finite.welfare(POINTS, BIDS)[1] == pytest.approx(0.356, abs=0.003)


@pytest.mark.parametrize(("epsilon", "column"), [(0.1, 7), (1.0, 8), (10.0, 9)])
def test_table_three_probabilities(epsilon, column):
    found, printed = finite.probabilities(POINTS, BIDS, 0.5 * epsilon), TABLE[:, column].copy()
    assert found.sum() == pytest.approx(1.0, abs=1e-14)
    if epsilon == 1.0:  # a misprint
        assert printed[6] == 0.115
        printed[6] = 0.1115
    np.testing.assert_allclose(found, printed, atol=1.5e-3)


def test_at_epsilon_100_the_optimum_is_all_but_certain():
    found = finite.probabilities(POINTS, BIDS, 50.0)
    assert found[-1] > 0.999
    assert found[:-1].max() < 1e-3


def test_payoff_change_on_the_eleven_points():
    expected = [-0.0238409, -0.0193700, -0.0161044, -0.0056366, 0.0161690, 0.0098644]
    true = finite.law(ELEVEN, BIDS, 0.5)
    for agent in range(6):
        lie = finite.law(ELEVEN, scaled(agent, 0.5), 0.5, BIDS)
        payoffs = [(law.true_value - rules.algorithm3_payments(law))[agent] for law in (true, lie)]
        assert payoffs[1] - payoffs[0] == pytest.approx(expected[agent], abs=1e-6)
        # The same from the family in the agent's own report.
        family = finite.residual(POINTS, scaled(agent, np.nan), 0.5, agent)
        own = (BIDS.quadratic[agent] * family.quantity + BIDS.linear[agent]) * family.quantity + BIDS.constant[agent]
        changes = []
        for alpha in (1.0, 0.5):
            chance = family.weight * np.exp(0.5 * alpha * own)
            changes.append(chance @ (own + family.others) / chance.sum())
        assert changes[1] - changes[0] == pytest.approx(expected[agent], abs=1e-6)


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, 1.0539), (0.1, 1.0998)])
def test_figure_six_ratio(alpha, expected):
    first = finite.probabilities(POINTS, BIDS, 0.25)
    second = finite.probabilities(POINTS, scaled(5, alpha), 0.25)
    assert max((first / second).max(), (second / first).max()) == pytest.approx(expected, abs=5e-5)


# The law against its definition.


@pytest.mark.parametrize("beta", [0.0, 1e-13, 1e-7, 3e-6, 1e-3, 0.5, 7.0, 300.0])
def test_law_against_its_definition(beta):
    bids, support = random_case(1)
    true, _ = random_case(2)
    found = finite.law(support, bids, beta, true)
    for row in range(3):
        here, own = (Bids(*(field[row] for field in each)) for each in (bids, true))
        expected = slow_law(support, here, beta, own)
        for name, value, wanted in zip(rules.Law._fields, found, expected, strict=True):
            np.testing.assert_allclose(value[row], np.float64(wanted), rtol=1e-9, atol=1e-9, err_msg=name)


def test_extreme_beta_stays_finite():
    bids, support = random_case(3)
    found = finite.law(support, bids, 1e6)
    best = finite.welfare(support.points, bids).max(axis=-1)
    np.testing.assert_allclose(found.welfare, best, atol=1e-5)
    np.testing.assert_allclose(found.free, best, atol=1e-4)
    assert all(np.isfinite(field).all() for field in found)


def test_without_an_agent_nothing_of_it_matters():
    bids, support = random_case(4, batch=())
    base = finite.law(support, bids, 0.7)
    for agent in range(5):
        changed = Bids(*(np.where(np.arange(5) == agent, 2.0 * field - 1.0, field) for field in bids))
        found = finite.law(support, changed, 0.7)
        assert found.welfare_without[agent] == pytest.approx(base.welfare_without[agent], abs=1e-12)
        assert found.free_without[agent] == pytest.approx(base.free_without[agent], abs=1e-12)


@given(st.integers(0, 10**6), st.floats(0.0, 5.0), st.floats(0.05, 3.0), st.floats(-0.2, 0.2), st.integers(0, 4))
def test_entropy_payments_are_truthful(seed, beta, scale, shift, agent):
    true, support = random_case(seed, batch=())
    mine = np.arange(5) == agent
    lie = Bids(
        np.where(mine, scale * true.quadratic, true.quadratic),
        np.where(mine, scale * true.linear + shift, true.linear),
        true.constant,
    )
    payoffs = []
    for bids in (true, lie):
        law = finite.law(support, bids, beta, true)
        payoffs.append((law.true_value - rules.entropy_payments(law))[agent])
    assert payoffs[1] <= payoffs[0] + 1e-9


def test_ranges_with_leading_axes():
    bids, support = random_case(5)
    rng = np.random.default_rng(0)
    points = rng.uniform(-10, 10, (3, 7, 5))
    without = rng.uniform(-10, 10, (3, 5, 9, 5)) * (1.0 - np.eye(5))[:, None]
    mixed = [Range(points, without), Range(points, support.without), Range(support.points, without)]
    for each in mixed:
        found = finite.law(each, bids, 0.6)
        chances = finite.probabilities(each.points, bids, 0.6)
        family = finite.residual(each.points, bids, 0.6, 2)
        for row in range(3):
            part = Range(
                *(field if field.shape == own.shape else field[row] for field, own in zip(each, support, strict=True))
            )
            one = Bids(*(field[row] for field in bids))
            for value, wanted in zip(found, finite.law(part, one, 0.6), strict=True):
                np.testing.assert_allclose(value[row], wanted, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(chances[row], finite.probabilities(part.points, one, 0.6), rtol=1e-11)
            for value, wanted in zip(family, finite.residual(part.points, one, 0.6, 2), strict=True):
                np.testing.assert_allclose(value[row], wanted, rtol=1e-11, atol=1e-12)


def test_residual_rebuilds_the_law():
    bids, support = random_case(6)
    for agent in range(5):
        family = finite.residual(support.points, bids, 0.8, agent)
        own = rules.value(Bids(*(field[..., agent, None] for field in bids)), family.quantity)
        chance = family.weight * np.exp(0.8 * own)
        chance /= chance.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(chance, finite.probabilities(support.points, bids, 0.8), rtol=1e-11)
        np.testing.assert_allclose(family.others + own, finite.welfare(support.points, bids), atol=1e-12)
        assert (family.weight.max(axis=-1) == 1.0).all()
    with pytest.raises(ValueError, match=r"agent must be in \[0, 4\], got 5"):
        finite.residual(support.points, bids, 0.8, 5)


# Other namespaces.


def test_jax_and_torch_agree_with_numpy():
    bids, support = random_case(7)
    wanted = finite.law(support, bids, 0.9)
    shared = jax.jit(finite.law)
    with jax.enable_x64():
        for found in (
            shared(cast(support, jax.numpy), cast(bids, jax.numpy), 0.9),
            finite.law(cast(support, array_api_compat.torch), cast(bids, array_api_compat.torch), 0.9),
        ):
            for value, expected in zip(found, wanted, strict=True):
                np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("xp", [np, jax.numpy, array_api_compat.torch])
def test_single_precision(xp):
    bids, support = random_case(8)
    law = jax.jit(finite.law) if xp is jax.numpy else finite.law
    for beta in (0.0, 1e-5, 0.5, 20.0):
        wanted = finite.law(support, bids, beta)
        few = cast(support, xp, xp.float32)
        found = law(few, cast(bids, xp, xp.float32), beta)
        for value, expected in zip(found, wanted, strict=True):
            assert value.dtype == xp.float32
            np.testing.assert_allclose(np.asarray(value), expected, atol=2e-4 * max(1.0, beta))
    chances = finite.probabilities(few.points, cast(bids, xp, xp.float32), 0.5)
    uniforms = xp.asarray(np.array([0.1, 0.5, 0.999999], np.float32))
    index = np.asarray(finite.choose(chances, uniforms))
    np.testing.assert_array_equal(index, finite.choose(np.asarray(chances), np.asarray(uniforms)))
    family = finite.residual(few.points, cast(bids, xp, xp.float32), 0.5, 1)
    exact = finite.residual(support.points, bids, 0.5, 1)
    np.testing.assert_allclose(np.asarray(family.weight), exact.weight, rtol=1e-4)


# Draws.


def test_choose_by_hand():
    chances = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, np.nextafter(1.0, 0.0), 1.0])
    assert [int(finite.choose(chances, u)) for u in uniforms] == [1, 1, 3, 3, 4, 4, 4]
    # Batched, and with weights that do not add up to one.
    np.testing.assert_array_equal(finite.choose(np.tile(3.0 * chances, (7, 1)), uniforms), [1, 1, 3, 3, 4, 4, 4])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30), st.floats(0.0, 1.0, exclude_max=True))
def test_a_point_without_a_chance_is_never_drawn(chances, uniform):
    chances = np.array([*chances, 0.3, 0.0])
    assert chances[finite.choose(chances, np.float64(uniform))] > 0.0


def test_draws_follow_the_law():
    chances = finite.probabilities(POINTS, BIDS, 5.0)
    draws = finite.choose(np.tile(chances, (100_000, 1)), np.random.default_rng(0).random(100_000))
    assert stats.chisquare(np.bincount(draws, minlength=11), 100_000 * chances).pvalue > 1e-3


# Ranges.


def rejection(bounds, size, rng):
    """Uniform points of the polytope: all but one coordinate from their box, kept if the last one fits."""
    found = np.zeros((0, len(bounds.low)))
    while len(found) < size:
        free = rng.uniform(bounds.low[:-1], bounds.high[:-1], (50 * size, len(bounds.low) - 1))
        last = -free.sum(axis=1)
        keep = (last >= bounds.low[-1]) & (last <= bounds.high[-1])
        found = np.concatenate([found, np.column_stack([free, last])[keep]])
    return found[:size]


SAMPLERS = [
    "exact",
    pytest.param("hopsy", marks=pytest.mark.skipif(not importlib.util.find_spec("hopsy"), reason="optional extra")),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ranges_are_uniform(sampler):
    size = 4000
    support = finite.draw_range(BOUNDS, size, 3, sampler)
    assert support.points.shape == (size, 6)
    assert support.without.shape == (6, size, 6)
    mean, deviation = np.abs(support.points).mean(axis=0), support.points.std(axis=0)
    reference = np.array([2.867, 3.704, 4.256, 5.580, 6.821, 7.794])
    centre = np.array([9.947, 11.410, 17.373, 10.225, 12.884, 15.621])
    assert (np.abs(mean - centre) < 4.5 * reference / np.sqrt(size)).all()
    np.testing.assert_allclose(deviation, reference, rtol=0.05)
    rng = np.random.default_rng(1)
    for agent, points in [(None, support.points), *enumerate(support.without)]:
        others = np.arange(6) != agent
        drawn = points[:, others]
        low, high = BOUNDS.low[others], BOUNDS.high[others]
        assert np.abs(points.sum(axis=1)).max() < 1e-9
        assert (drawn >= low - 1e-9).all()
        assert (drawn <= high + 1e-9).all()
        assert not points[:, ~others].any()
        wanted = rejection(Bounds(low, high), size, rng)
        # 41 tests in all; products see how coordinates go together.
        for column in range(drawn.shape[1]):
            assert stats.ks_2samp(drawn[:, column], wanted[:, column]).pvalue > 1e-4
        assert stats.ks_2samp(drawn[:, 0] * drawn[:, -1], wanted[:, 0] * wanted[:, -1]).pvalue > 1e-4
    # Draws do not depend on each other.
    centred = (support.points - support.points.mean(axis=0)) / deviation
    assert np.abs((centred[1:] * centred[:-1]).mean(axis=0)).max() < 4.5 / np.sqrt(size)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_make_ranges(sampler):
    first, again, other = (finite.draw_range(BOUNDS, 7, seed, sampler) for seed in (4, 4, 5))
    for mine, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(mine, same)
        assert not np.isclose(mine[mine != 0], different[mine != 0]).any()
    # Markets have streams of their own.
    assert not np.isclose(first.without[0, 0, 1:], first.points[0, 1:]).any()


def test_given_points_are_used():
    with pytest.raises(ValueError, match=r"points\[0\] must balance to within balance_tolerance = 1e-09 kWh, got"):
        finite.draw_range(BOUNDS, 5, 0, points=POINTS)
    support = finite.draw_range(BOUNDS, 5, 0, points=POINTS, balance_tolerance=0.05)
    np.testing.assert_array_equal(support.points, POINTS)
    np.testing.assert_array_equal(support.without, finite.draw_range(BOUNDS, 5, 0).without)


def test_hopsy_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "hopsy", None)
    with pytest.raises(ImportError, match=r"pip install p2penv\[hopsy\]"):
        finite.draw_range(BOUNDS, 5, 0, "hopsy")


def test_markets_without_room_are_refused():
    with pytest.raises(ValueError, match=r"the market has no range of allocations that balance.*\[1, 14\.5\]"):
        finite.draw_range(Bounds(np.array([5.0, 6, -10]), np.array([10.0, 7.5, -3.0])), 5, 0)
    with pytest.raises(ValueError, match=r"the market without agent 2 has no range.*\[3, 9\]"):
        finite.draw_range(Bounds(np.array([1.0, 2, -9]), np.array([4.0, 5, 0])), 5, 0)
    with pytest.raises(ValueError, match=r"low\[1\] = 5 exceeds high\[1\] = 2"):
        finite.draw_range(Bounds(np.array([1.0, 5, -9]), np.array([4.0, 2, 0])), 5, 0)
    with pytest.raises(ValueError, match="size must be a whole number >= 1"):
        finite.draw_range(BOUNDS, 0, 0)
    with pytest.raises(ValueError, match="sampler must be one of 'exact', 'hopsy'"):
        finite.draw_range(BOUNDS, 5, 0, "gibbs")


def test_ranges_are_checked():
    support = finite.draw_range(BOUNDS, 4, 0)
    found = finite.check_range(Range(support.points.tolist(), support.without), BOUNDS)
    np.testing.assert_array_equal(found.points, support.points)
    printed = Range(POINTS, support.without)
    assert finite.check_range(printed, BOUNDS, balance_tolerance=0.05).points.shape == (11, 6)

    def broken(field, index, value):
        arrays = {name: np.array(array) for name, array in support._asdict().items()}
        arrays[field][index] = value
        return Range(**arrays)

    for wrong, message in (
        (printed, r"points\[0\] must balance to within balance_tolerance = 1e-09 kWh, got a total of -0\.01"),
        (broken("points", (2, 3), np.nan), r"points\[2\] of agent 3 must be finite, got nan"),
        (broken("points", (1, 0), 15.5), r"points\[1\] of agent 0 must be inside its limits .* got 15\.5"),
        (broken("without", (4, 1, 4), -1.0), r"without\[4\] must be zero in column 4"),
        (broken("without", (4, 1, 0), 2.0), r"without\[4\]\[1\] of agent 0 must be inside"),
        (broken("without", (4, 1, 0), 5.0), r"without\[4\]\[1\] must balance"),
        (Range(support.points[:, :5], support.without), r"points must have shape \(m, 6\) with m >= 1, got \(4, 5\)"),
        (
            Range(support.points, support.without[:5]),
            r"without must have shape \(6, m, 6\) with m >= 1, got \(5, 4, 6\)",
        ),
        (Range("points", support.without), "points must hold numbers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            finite.check_range(wrong, BOUNDS)


@pytest.mark.parametrize("xp", [np, jax.numpy, array_api_compat.torch])
def test_the_optimum_comes_last(xp):
    rng = np.random.default_rng(0)
    points, best = rng.normal(size=(4, 6)), rng.normal(size=(2, 6))
    found = np.asarray(finite.with_optimum(*(xp.asarray(array, dtype=xp.float32) for array in (points, best))))
    assert found.shape == (2, 5, 6)
    np.testing.assert_allclose(found[:, 4], best, rtol=1e-6)
    np.testing.assert_allclose(found[1, :4], points, rtol=1e-6)
    without, others = rng.normal(size=(6, 4, 6)), rng.normal(size=(2, 6, 6))
    found = np.asarray(finite.with_optimum(*(xp.asarray(array, dtype=xp.float32) for array in (without, others))))
    assert found.shape == (2, 6, 5, 6)
    np.testing.assert_allclose(found[:, :, 4], others, rtol=1e-6)
