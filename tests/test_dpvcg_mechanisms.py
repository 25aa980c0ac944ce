"""Mechanisms: what ε is real, payments and regret by their definitions, printed figures, draws, refusals."""

from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from p2penv.dpvcg import continuous, finite, mechanisms, rules
from p2penv.dpvcg.equilibrium import efficient_allocation, regret, vcg_payments
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, VCGMechanism
from p2penv.dpvcg.privacy import privacy_loss
from p2penv.dpvcg.rules import Bids, Bounds
from p2penv.dpvcg.scenario import Scenario, load_scenario
from p2penv.dpvcg.typespace import TypeSpace, with_report

CASE = load_scenario()
GROUP = TypeSpace.group(CASE)
OMEGA = 5.44875  # of consumer_2: (.0067 − .00125)(25² − 10²) + (.2975 − .125)(25 − 10)


@cache
def exponential(epsilon=1.0, support="continuous", calibration="declared", **options):
    return ExponentialMechanism(CASE, epsilon, support, calibration, **options)


@cache
def eleven(epsilon):
    """The printed points and the exact optimum, held fixed."""
    points = np.vstack([CASE.sampled_allocations * CASE.sign, efficient_allocation(CASE).allocation])
    return ExponentialMechanism(CASE, epsilon, "finite", "paper", points=points, balance_tolerance=0.05)


def within(space, rng, shape=()):
    """Bids anywhere in a type space."""
    box = space.low, space.high
    return rules.report_bids(space.scenario.bids, rng.uniform(*box, (*shape, *space.low.shape)))


def one_lies(space, rng, agent, size, others=None):
    """Bids ``(size, n)`` in which one agent reports anything, the others the truth or what is given."""
    honest = space.scenario.bids if others is None else others
    anything = within(space, rng, (size,))
    own = np.arange(space.scenario.size) == agent
    return Bids(*(np.where(own, lie, right) for lie, right in zip(anything, honest, strict=True)))


def payoff(mechanism, kind, bids, true=CASE.bids):
    law = mechanism.law_of(bids, true)
    return law.true_value - mechanisms.payments(law, kind)


SUPPORTS = ["continuous", "finite"]
both_supports = pytest.mark.parametrize("support", SUPPORTS)


# What ε is real.


def test_calibrations():
    declared, paper = exponential(2.0), exponential(1.0, calibration="paper")
    assert declared.beta == pytest.approx(2.0 / OMEGA)
    assert (declared.nominal_epsilon, declared.epsilon) == (2.0, 2.0)
    # The paper's β = ε/2 takes valuations to lie in [0, 1]; what it gives is β·ω.
    assert paper.beta == 0.5
    assert paper.nominal_epsilon == 1.0
    assert paper.epsilon == pytest.approx(0.5 * OMEGA)
    narrow = ExponentialMechanism(Scenario.random(2, 2, 0), 0.5, space=TypeSpace.scalings(Scenario.random(2, 2, 0)))
    assert narrow.beta * narrow.space.sensitivity.max() == pytest.approx(0.5)
    assert VCGMechanism(CASE).epsilon == np.inf
    laplace = LaplaceMechanism(CASE, 0.5)
    assert (laplace.nominal_epsilon, laplace.epsilon) == (0.5, 0.5)


def test_releases():
    """Draws of the market and all sub-markets cost nε; payments are never listed, whatever the mechanism."""
    made = [VCGMechanism(CASE), exponential(2.0), exponential(1.0, calibration="paper"), LaplaceMechanism(CASE, 0.5),
            exponential(2.0, "finite"), exponential(2.0, "finite", paper_compat=True)]  # fmt: skip
    wanted = [
        {},
        {"draw": 2.0, "all_draws": 12.0},
        {"draw": pytest.approx(0.5 * OMEGA), "all_draws": pytest.approx(3.0 * OMEGA)},
        {"noisy_reports": 0.5, "draw": 0.5},
        {"draw": 2.0, "all_draws": 12.0},
        {},
    ]
    assert [dict(mechanism.releases) for mechanism in made] == wanted


@pytest.mark.parametrize("calibration", ["declared", "paper"])
def test_draws_on_a_range_are_as_private_as_they_say(calibration):
    """Exact ratios of probabilities, any two declarations in the box, for the draw and for all n + 1 draws."""
    mechanism, rng = exponential(2.0, "finite", calibration, range_size=30), np.random.default_rng(0)
    worst = 0.0
    for agent in range(6):
        others = within(GROUP, rng)
        bids = one_lies(GROUP, rng, agent, 200, others)
        # Corners of the box tell most apart.
        corners = np.where(rng.uniform(size=(200, 2)) < 0.5, GROUP.low[agent], GROUP.high[agent])
        bids.quadratic[:, agent], bids.linear[:, agent] = corners.T
        laws = mechanism.probabilities(bids)
        losses = privacy_loss(laws[:100], laws[100:])
        worst = max(worst, losses.max())
        assert losses.max() <= mechanism.epsilon * (1 + 1e-12)
        total = losses.copy()
        for left_out in range(6):
            points = mechanism.table.without[left_out]
            values = points[:, None] ** 2 * bids.quadratic + points[:, None] * bids.linear  # (m, B, n)
            scores = mechanism.beta * values.sum(axis=-1).T
            laws = np.exp(scores - scores.max(axis=1, keepdims=True))
            laws /= laws.sum(axis=1, keepdims=True)
            total += privacy_loss(laws[:100], laws[100:])
        assert total.max() <= mechanism.releases["all_draws"]
    assert worst > 0.4 * mechanism.epsilon  # not by a wide margin


def test_continuous_draws_are_as_private_as_they_say():
    """ln f/f' = β(v_i − v_i')(y_i) − ln Z/Z', at every quantity of the agent."""
    mechanism, rng = exponential(2.0), np.random.default_rng(0)
    worst = 0.0
    for agent in range(6):
        bids = one_lies(GROUP, rng, agent, 60, within(GROUP, rng))
        corners = np.where(rng.uniform(size=(60, 2)) < 0.5, GROUP.low[agent], GROUP.high[agent])
        bids.quadratic[:, agent], bids.linear[:, agent] = corners.T
        free = mechanism.law(bids).free
        y = np.linspace(CASE.bounds.low[agent], CASE.bounds.high[agent], 301)
        value = bids.quadratic[:, agent, None] * y**2 + bids.linear[:, agent, None] * y
        ratio = mechanism.beta * (value[:30] - value[30:] - (free[:30] - free[30:])[:, None])
        worst = max(worst, np.abs(ratio).max())
        assert np.abs(ratio).max() <= 2.0
    assert worst > 0.8


def test_the_paper_s_range_hides_nothing():
    """The optimum of the reports is in the range: another report, another support."""
    mechanism = exponential(2.0, "finite", paper_compat=True)
    assert mechanism.epsilon == np.inf
    truth, lie = CASE.bids, with_report(CASE, 1, [-0.0065, 0.22])
    first, second = mechanism.range(truth).points, mechanism.range(lie).points
    assert first.shape == (11, 6)  # Table III's ten and the optimum
    np.testing.assert_array_equal(first[:10], CASE.sampled_allocations * CASE.sign)
    np.testing.assert_array_equal(first[:10], second[:10])
    np.testing.assert_allclose(first[10], rules.clear(truth, CASE.bounds).allocation)
    assert np.abs(first[10] - second[10]).max() > 0.1
    laws = np.zeros((2, 12))
    laws[0, :11] = mechanism.probabilities(truth)
    laws[1, [*range(10), 11]] = mechanism.probabilities(lie)
    assert privacy_loss(*laws) == np.inf
    # Drawn often enough to be seen.
    drawn = mechanism.sample(2000, 0, truth)
    assert (np.abs(drawn - first[10]).max(axis=1) < 1e-12).mean() > 0.05
    assert (mechanism.regret_bound() == np.inf).all()
    assert (mechanism.regret_bound("none") == np.inf).all()
    without = mechanism.range(truth).without
    for agent in range(6):
        best = rules.allocations_without(truth, CASE.bounds)[agent]
        np.testing.assert_allclose(without[agent, -1], best)


# Printed figures.


@pytest.mark.parametrize(("epsilon", "welfare"), [(0.1, 0.829845), (1.0, 0.871575), (10.0, 1.165620)])
def test_expected_welfare_of_the_case(epsilon, welfare):
    assert exponential(epsilon, calibration="paper").expected_welfare() == pytest.approx(welfare, abs=6e-7)


def test_printed_payments():
    entropy = exponential(1.0, calibration="paper").payments("entropy")
    np.testing.assert_allclose(entropy, [0.4335, 0.4911, 0.7341, -0.4645, -0.6479, -0.9227], atol=6e-5)
    almost_uniform = exponential(0.01, calibration="paper").payments()
    wanted = [0.417686, 0.475859, 0.722909, -0.467539, -0.636826, -0.893387]
    np.testing.assert_allclose(almost_uniform, wanted, atol=6e-7)


def test_somebody_would_rather_not_take_part():
    """Individual rationality is not claimed: minimum demands keep consumer 2 in at a loss."""
    payoffs = exponential(0.01, calibration="paper").payoffs()
    assert payoffs[2] == pytest.approx(-0.0026, abs=5e-5)
    assert (np.delete(payoffs, 2) > 0).all()


def test_payoff_changes_on_the_eleven_points():
    """ε = 1 with β = ε/2, Algorithm 3, agent i reports half its valuation."""
    wanted = [-0.0238409, -0.0193700, -0.0161044, -0.0056366, 0.0161690, 0.0098644]
    found = [regret(eleven(1.0), agent, 0.5) for agent in range(6)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "welfare"), [(0.1, 0.035), (1.0, 0.324), (10.0, 1.255)])
def test_mean_welfare_under_laplace_noise(epsilon, welfare):
    mechanism = LaplaceMechanism(CASE, epsilon, samples=200_000)
    assert mechanism.expected_welfare() == pytest.approx(welfare, abs=0.005)


def test_vcg_of_the_case():
    mechanism = VCGMechanism(CASE)
    np.testing.assert_array_equal(mechanism.payments(), vcg_payments(CASE))
    assert mechanism.expected_welfare() == pytest.approx(1.568237, abs=5e-7)
    value = [1.0, 0.91818, 0.911676]  # by hand: −.00125·15² + .125·15 − .5937 = 1.00005, …
    np.testing.assert_allclose((mechanism.payoffs() + mechanism.payments())[:3], value, atol=2e-3)
    np.testing.assert_array_equal(mechanism.sample(3), [mechanism.expected_allocation()] * 3)
    assert mechanism.regret_bound().tolist() == [0.0] * 6


# Payments by their definitions, on a range.


@pytest.mark.parametrize("paper_compat", [False, True])
def test_payments_by_their_definitions(paper_compat):
    """(b) p_i = h(v_{−i}) − E_D[sw_{−i}] + KL(D‖uniform)/β, (a) p_i = E_{D_{−i}}[sw_{−i}] − E_D[sw_{−i}], in loops."""
    mechanism = exponential(3.0, "finite", paper_compat=paper_compat)
    bids, beta = within(GROUP, np.random.default_rng(1)), mechanism.beta
    support = mechanism.range(bids)

    def draw(points, present):
        values = (bids.quadratic * points + bids.linear) * points + bids.constant
        welfare = values[:, present].sum(axis=1)
        weights = np.exp(beta * (welfare - welfare.max()))
        return weights / weights.sum(), values, welfare

    everyone = np.arange(6)
    chance, values, _ = draw(support.points, everyone)
    np.testing.assert_allclose(mechanism.probabilities(bids), chance, rtol=1e-12)
    np.testing.assert_allclose(mechanism.expected_allocation(bids), chance @ support.points, rtol=1e-10)
    truth = (CASE.bids.quadratic * support.points + CASE.bids.linear) * support.points + CASE.bids.constant
    assert mechanism.expected_welfare(bids) == pytest.approx(chance @ truth.sum(axis=1))
    divergence = (chance * np.log(chance * len(chance))).sum()
    for agent in everyone:
        others = np.delete(everyone, agent)
        rest, _, best = draw(support.without[agent], others)
        given_up = chance @ values[:, others].sum(axis=1)
        first = rest @ best - given_up
        second = np.log(np.exp(beta * best).mean()) / beta - given_up + divergence / beta
        assert mechanism.payments("algorithm3", bids)[agent] == pytest.approx(first, abs=1e-12)
        assert mechanism.payments("entropy", bids)[agent] == pytest.approx(second, abs=1e-12)
        own = chance @ truth[:, agent]
        assert mechanism.payoffs("algorithm3", bids)[agent] == pytest.approx(own - first, abs=1e-12)


def test_entropy_payments_do_not_depend_on_units():
    """The uniform law is their base: in Wh, with β per the same money, nothing changes."""
    fields = {name: getattr(CASE, name) for name in ("demand_min", "demand_max", "generation_min", "generation_max")}
    small = {name: 1000.0 * value for name, value in fields.items()}
    for name in ("utility", "cost"):
        small |= {f"{name}_quadratic": getattr(CASE, f"{name}_quadratic") * 1e-6}
        small |= {f"{name}_linear": getattr(CASE, f"{name}_linear") * 1e-3}
    other = ExponentialMechanism(CASE.replace(**small, sampled_allocations=None), 1.0, calibration="paper")
    wanted = exponential(1.0, calibration="paper").payments("entropy")
    np.testing.assert_allclose(other.payments("entropy"), wanted, atol=1e-8)


# Regret.


@pytest.mark.parametrize("kind", ["scale", "coefficients"])
@both_supports
def test_entropy_payments_are_truthful_in_expectation(support, kind):
    """Whatever the others report."""
    mechanism, rng = exponential(1.0, support, "paper"), np.random.default_rng(2)
    space = TypeSpace.scalings(CASE, 0.05, 5.0) if kind == "scale" else GROUP
    for agent in range(6):
        others = within(space, rng)
        lies = one_lies(space, rng, agent, 100, others)
        honest = row(rules.one_honest(others, CASE.bids), agent)
        gain = payoff(mechanism, "entropy", lies)[:, agent] - payoff(mechanism, "entropy", honest)[agent]
        assert gain.max() <= 1e-12
        assert gain.min() < -1e-5
        lie = [lies.quadratic[0, agent], lies.linear[0, agent]]
        assert regret(mechanism, agent, lie, "entropy") <= 1e-12


def row(bids, index):
    return Bids(*(field[index] for field in bids))


def moments(mechanism, bids):
    """Reported welfare and both values, without the markets that lack an agent."""
    if mechanism.support == "continuous":
        return continuous.moments(mechanism.table, bids, mechanism.beta, CASE.bids)
    return finite.law(mechanism.table, bids, mechanism.beta, CASE.bids)


@both_supports
def test_regret_of_algorithm_3_is_within_its_bounds(support):
    """10⁴ random misreports in the box, the others reporting anything; payments included and left aside."""
    mechanism, rng = exponential(2.0, support), np.random.default_rng(3)
    alone = mechanism.regret_bound("none")
    largest = 0.0
    for agent in range(6):
        others = within(GROUP, rng, (17,))
        honest = Bids(*(field[:, agent] for field in rules.one_honest(others, CASE.bids)))
        bound = mechanism.regret_bound_of(others, CASE.bids)[:, agent]
        lies = one_lies(GROUP, rng, agent, 100 * 17, Bids(*(np.tile(field, (100, 1)) for field in honest)))

        def own(bids, agent=agent):
            # E[W_{-i}] of the market without the agent does not depend on its report.
            found = moments(mechanism, bids)
            kept = found.true_value + found.welfare[:, None] - found.value
            return np.stack([kept[:, agent], found.true_value[:, agent]])

        gain, moved = own(lies).reshape(2, 100, 17) - own(honest)[:, None]
        assert (gain <= bound).all()
        assert (moved <= alone[agent]).all()
        largest = max(largest, (gain / bound).max())
        # The same by the payments themselves.
        few = Bids(*(field[:17] for field in lies))
        found = payoff(mechanism, "algorithm3", few) - payoff(mechanism, "algorithm3", honest)
        np.testing.assert_allclose(found[:, agent], gain[0], atol=1e-9)
    assert largest > 0.0
    # The truthful bound is that of the true reports of the others.
    np.testing.assert_allclose(mechanism.regret_bound(), mechanism.regret_bound_of(CASE.bids, CASE.bids), rtol=1e-12)


def test_regret_on_ten_thousand_random_markets():
    """Markets, ranges, ε, reports and lies all random; payoffs of Algorithm 3 from the definition of the draw."""
    rng, cases, size, width = np.random.default_rng(0), 500, 5, 1.0
    tightest = np.zeros(2)
    for _ in range(20):
        points, epsilon = int(rng.integers(2, 30)), 10.0 ** rng.uniform(-1, 1.5)
        low = rng.uniform(-20, 5, size)
        bounds = Bounds(low, low + rng.uniform(1, 20, size))
        chosen = rng.uniform(*bounds, (cases, points, size))
        bids = Bids(-(10.0 ** rng.uniform(-4, -1, size)), rng.uniform(-0.3, 0.3, size), rng.normal(size=size))
        value = rules.value(bids, chosen)
        sensitivity = rules.scale_sensitivity(bids, bounds, width)
        beta = epsilon / sensitivity.max()
        true, others, lie = rng.uniform(0.5, 0.5 + width, (3, cases, 1))
        lie = np.where(rng.random(lie.shape) < 0.5, np.where(true < 1.0, 1.5, 0.5), lie)  # the ends tell most
        rest = others * value[..., 1:].sum(axis=-1)

        def law(report, rest=rest, beta=beta, value=value):
            score = beta * (rest + report * value[..., 0])
            weight = np.exp(score - score.max(axis=1, keepdims=True))
            return weight / weight.sum(axis=1, keepdims=True)

        change = law(lie) - law(true)
        for kind, payoff in enumerate((rest + true * value[..., 0], true * value[..., 0])):
            gain = (change * payoff).sum(axis=1)
            bound = rules.regret_bound(beta, sensitivity[:1], np.ptp(payoff, axis=1))
            assert (gain <= bound * (1 + 1e-12)).all()
            tightest[kind] = max(tightest[kind], (gain / bound).max())
    assert (tightest > 0.5).all(), tightest


def test_bounds_of_the_case():
    """osc(W)·tanh(βω/4) with osc(W) = 2.560187 on the polytope."""
    mechanism = exponential(2.0)
    wanted = 2.560187 * np.tanh(0.5 / OMEGA * np.array([2.815, 3.872, 5.449, 0.572, 0.865, 1.218]))
    np.testing.assert_allclose(mechanism.regret_bound("algorithm3"), wanted, rtol=2e-4)
    assert mechanism.regret_bound("entropy").tolist() == [0.0] * 6
    # Left aside payments: the range of consumer 0's value is 1.00005 − (−.6·…) over 5 to 15 kWh.
    span = (-0.00125 * 225 + 0.125 * 15) - (-0.00125 * 25 + 0.125 * 5)
    assert mechanism.regret_bound("none")[0] == pytest.approx(span * np.tanh(0.5 / OMEGA * 2.815))


def test_expected_welfare_is_close_to_the_optimum():
    for epsilon in (1.0, 10.0):
        mechanism = exponential(epsilon, calibration="paper")
        assert 1.568237 - mechanism.expected_welfare() <= rules.expected_gap(mechanism.beta, 6)


@given(st.integers(0, 10**6), st.integers(0, 5))
def test_nobody_gains_by_lying_under_vcg(seed, agent):
    """Any misreport, however far from the truth, against anything the others report."""
    rng = np.random.default_rng(seed)
    case = CASE if seed % 2 else Scenario.random(3, 3, seed)
    mechanism = VCGMechanism(case)
    others = Bids(*(field * rng.uniform(0.2, 4.0, 6) for field in case.bids))
    honest = row(rules.one_honest(others, case.bids), agent)
    truth = mechanism.payoffs(reports=honest)[agent]
    lies = Bids(*(np.tile(field, (50, 1)) for field in honest))
    lies.quadratic[:, agent] *= np.exp(rng.normal(size=50) * 2)
    lies.linear[:, agent] += rng.normal(size=50) * 0.3
    lies.constant[:, agent] += rng.normal(size=50)
    assert (mechanism.payoffs(reports=lies)[:, agent] - truth).max() <= 1e-9
    scale = float(np.exp(rng.normal()))
    assert regret(mechanism, agent, scale) <= 1e-9
    assert regret(mechanism, agent, [lies.quadratic[0, agent], lies.linear[0, agent]]) <= 1e-9


@pytest.mark.slow
def test_nobody_gains_by_lying_in_a_large_market():
    case, rng = Scenario.random(500, 500, 0), np.random.default_rng(0)
    mechanism = VCGMechanism(case)
    for agent in rng.permutation(1000)[:20]:
        assert regret(mechanism, agent, rng.uniform(0.1, 3.0)) <= 1e-9


# Draws.


def test_draws_of_the_continuous_mechanism():
    mechanism, size = exponential(10.0, calibration="paper"), 40_000
    reports = with_report(CASE, 0, [-0.005, 0.25])
    drawn = mechanism.sample(size, 1, reports)
    assert drawn.shape == (size, 6)
    assert np.abs(drawn.sum(axis=1)).max() < 1e-9
    assert ((drawn >= CASE.bounds.low - 1e-9) & (drawn <= CASE.bounds.high + 1e-9)).all()
    error = drawn.std(axis=0) / np.sqrt(size)
    assert (np.abs(drawn.mean(axis=0) - mechanism.expected_allocation(reports)) < 4 * error).all()
    welfare = rules.value(CASE.bids, drawn).sum(axis=1)
    error = welfare.std() / np.sqrt(size)
    assert abs(welfare.mean() - mechanism.expected_welfare(reports)) < 4 * error
    np.testing.assert_array_equal(mechanism.sample(5, 1, reports), mechanism.sample(5, 1, reports))
    assert (mechanism.sample(5, 1, reports) != mechanism.sample(5, 2, reports)).any()


def test_draws_of_the_finite_mechanism():
    mechanism, size = exponential(10.0, "finite", range_size=20), 20_000
    reports = with_report(CASE, 0, [-0.005, 0.25])
    drawn = mechanism.sample(size, 1, reports)
    where = np.array([(mechanism.table.points == point).all(axis=1).argmax() for point in drawn[:2000]])
    np.testing.assert_array_equal(mechanism.table.points[where], drawn[:2000])
    chances = mechanism.probabilities(reports)
    assert stats.chisquare(np.bincount(where, minlength=20), 2000 * chances).pvalue > 1e-3
    error = drawn.std(axis=0) / np.sqrt(size)
    assert (np.abs(drawn.mean(axis=0) - mechanism.expected_allocation(reports)) < 4 * error).all()


def test_the_range_is_drawn_once_whatever_the_reports():
    mechanism = exponential(10.0, "finite", range_size=20)
    lie = within(GROUP, np.random.default_rng(0))
    assert mechanism.range(lie) is mechanism.range(CASE.bids)
    again = ExponentialMechanism(CASE, 10.0, "finite", range_size=20)
    np.testing.assert_array_equal(again.table.points, mechanism.table.points)
    other = ExponentialMechanism(CASE, 10.0, "finite", range_size=20, seed=1)
    assert (other.table.points != mechanism.table.points).any()


# Laplace noise.


@pytest.mark.parametrize("space", [GROUP, TypeSpace.scalings(CASE, 0.5, 1.5)], ids=["coefficients", "scale"])
def test_laplace_noise(space):
    """Scale k·range/ε: the likelihood of any noisy report changes by e^ε at most between two reports of the box."""
    epsilon = 0.7
    mechanism = LaplaceMechanism(CASE, epsilon, space=space, samples=4000)
    width = space.high - space.low
    loss = (width / mechanism.scale).sum(axis=1)
    np.testing.assert_allclose(loss, epsilon)
    noise = mechanism.scale * mechanism.draws
    for agent, entry in np.ndindex(*mechanism.scale.shape):
        found = stats.kstest(noise[:, agent, entry], stats.laplace(scale=mechanism.scale[agent, entry]).cdf)
        assert found.pvalue > 1e-3


def test_laplace_estimates_against_draws():
    """An average over fixed draws and one over fresh draws, within their standard errors; payments too."""
    mechanism = LaplaceMechanism(CASE, 5.0, samples=4000)
    reports = with_report(CASE, 4, [-0.0011, 0.007])
    drawn = mechanism.sample(4000, 9, reports)
    values = rules.value(CASE.bids, drawn)
    error = np.hypot(values.sum(axis=1).std() / np.sqrt(4000), mechanism.standard_error(reports))
    assert abs(values.sum(axis=1).mean() - mechanism.expected_welfare(reports)) < 4 * error
    gap = drawn.mean(axis=0) - mechanism.expected_allocation(reports)
    assert (np.abs(gap) < 4 * drawn.std(axis=0) * np.sqrt(2 / 4000)).all()
    # By hand: noisy coefficients, curvature clipped, cleared, VCG payments of the noisy market.
    noisy = np.stack(reports[:2], axis=-1) + mechanism.scale * mechanism.draws
    bids = Bids(np.minimum(noisy[..., 0], -1e-6), noisy[..., 1], np.broadcast_to(CASE.bids.constant, noisy.shape[:2]))
    found = rules.pivots(bids, CASE.bounds)
    np.testing.assert_allclose(mechanism.payments("vcg", reports), found.payment.mean(axis=0), rtol=1e-10)
    value = rules.value(CASE.bids, found.clearing.allocation)
    np.testing.assert_allclose(mechanism.payoffs("vcg", reports), (value - found.payment).mean(axis=0), atol=1e-12)


def test_without_noise_laplace_is_vcg():
    mechanism = LaplaceMechanism(CASE, 1e9, samples=8)
    np.testing.assert_allclose(mechanism.payoffs(), VCGMechanism(CASE).payoffs(), atol=1e-5)
    np.testing.assert_allclose(mechanism.regret_bound(), 0.0, atol=1e-6)


def test_noisy_scales_stay_concave():
    space = TypeSpace.scalings(CASE)
    noise = np.full((6, 1), -100.0)
    np.testing.assert_allclose(mechanisms.perturb(CASE.bids, space.truth, noise).quadratic, -1e-6)


# Batches, other spaces, refusals.


@pytest.mark.parametrize(
    "make",
    [
        lambda: VCGMechanism(CASE),
        lambda: exponential(2.0),
        lambda: exponential(2.0, "finite"),
        lambda: LaplaceMechanism(CASE, 2.0, samples=50),
    ],
    ids=["vcg", "continuous", "finite", "laplace"],
)
def test_batched_reports_equal_single_ones(make):
    mechanism = make()
    bids = within(GROUP, np.random.default_rng(5), (2, 3))
    for kind in mechanisms.PAYMENTS[mechanism.kind]:
        found = mechanism.payoffs(kind, bids), mechanism.payments(kind, bids), mechanism.expected_allocation(bids)
        welfare = mechanism.expected_welfare(bids)
        assert welfare.shape == (2, 3)
        for index in np.ndindex(2, 3):
            one = row(bids, index)
            alone = mechanism.payoffs(kind, one), mechanism.payments(kind, one), mechanism.expected_allocation(one)
            np.testing.assert_allclose([batch[index] for batch in found], alone, rtol=1e-9, atol=1e-10)
            assert mechanism.expected_welfare(one) == pytest.approx(welfare[index])


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialMechanism(CASE, 0.0), "epsilon must be finite and > 0, got 0.0"),
        (lambda: ExponentialMechanism(CASE, -1.0), "epsilon must be finite and > 0, got -1.0"),
        (lambda: ExponentialMechanism(CASE, NAN), "epsilon must be finite and > 0, got nan"),
        (lambda: LaplaceMechanism(CASE, float("inf")), "epsilon must be finite and > 0, got inf"),
        (lambda: LaplaceMechanism(CASE, 1.0, samples=0), "samples must be a whole number >= 1, got 0"),
        (lambda: ExponentialMechanism(CASE, 1.0, "grid"), "support must be one of 'continuous', 'finite'; got 'grid'"),
        (lambda: ExponentialMechanism(CASE, 1.0, calibration="half"), "calibration must be one of 'declared', 'paper'"),
        (lambda: ExponentialMechanism(CASE, 1.0, paper_compat=True), "paper_compat belong to support='finite'"),
        (lambda: ExponentialMechanism(CASE, 1.0, points=[[0.0] * 6]), "points and paper_compat belong to"),
        (
            lambda: ExponentialMechanism(CASE, 1.0, "finite", points=CASE.sampled_allocations * CASE.sign),
            r"points\[\d\] must balance to within balance_tolerance = 1e-09 kWh",
        ),
        (lambda: ExponentialMechanism(CASE, 1.0, "finite", range_size=0), "range_size must be .* >= 1, got 0"),
        (lambda: ExponentialMechanism(CASE, 1.0, "finite", seed=-1), "seed must be a whole number >= 0, got -1"),
        (lambda: ExponentialMechanism(CASE, 1.0, range_size=7), "range_size belongs to support='finite' .* got 7"),
        (lambda: ExponentialMechanism(CASE, 1.0, seed=3), "seed belongs to support='finite' and would do nothing"),
        (lambda: ExponentialMechanism(CASE, 1.0, sampler="hopsy"), "sampler belongs to .* got 'hopsy'"),
        (lambda: ExponentialMechanism(CASE, 1.0, "finite", balance_tolerance=0.1), "tolerance belongs to points"),
        (
            lambda: ExponentialMechanism(CASE, 1.0, "finite", points=exponential(1.0, "finite").table, seed=2),
            "seed belongs to ranges to be drawn; points is a whole one",
        ),
        (lambda: LaplaceMechanism(CASE, 1.0, seed=1.5), "seed must be a whole number >= 0, got 1.5"),
        (lambda: ExponentialMechanism(CASE, 1e12), "epsilon is too large for support='continuous' .* mechanism='vcg'"),
        (lambda: exponential(2.0).payments("vcg"), "'exponential' must be one of 'algorithm3', 'entropy'; got 'vcg'"),
        (lambda: VCGMechanism(CASE).payments("entropy"), "mechanism 'vcg' must be one of 'vcg'; got 'entropy'"),
        (lambda: LaplaceMechanism(CASE, 1.0).payoffs("algorithm3"), "'laplace' must be one of 'vcg'; got 'algorithm3'"),
        (lambda: exponential(2.0).payments(reports=[1, 1, 1.5, 1, 1, 1]), "report of consumer_2 is outside the"),
        (lambda: LaplaceMechanism(CASE, 1.0).payoffs(reports=[1, 2, 1, 1, 1, 1]), "report of consumer_1 is outside"),
        (lambda: exponential(2.0).sample(0), "size must be a whole number >= 1, got 0"),
        (lambda: VCGMechanism(CASE).payoffs(reports=[1, 1, NAN, 1, 1, 1]), "agent 2 must be finite, got nan"),
        (lambda: exponential(2.0).probabilities(), "probabilities exist for support='finite'; support is 'continuous'"),
        (
            lambda: ExponentialMechanism(CASE, 1.0, space=TypeSpace.scalings(CASE, 1.0, 1.0)),
            "declared type space has no width",
        ),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [VCGMechanism, partial(ExponentialMechanism, epsilon=1.0),
                                  partial(LaplaceMechanism, epsilon=1.0)])  # fmt: skip
def test_type_spaces_of_other_limits_are_refused(make):
    """ω of the smaller limits would promise more privacy than there is."""
    wider = CASE.replace(demand_max=[30.0, 40.0, 50.0], sampled_allocations=None)
    with pytest.raises(ValueError, match="space must be made for this scenario"):
        make(wider, space=GROUP)
    same = TypeSpace(wider, "coefficients", GROUP.low, GROUP.high)
    assert (same.sensitivity >= GROUP.sensitivity).all()
    assert (make(wider, space=same).space.sensitivity == same.sensitivity).all()
    # Equal numbers are enough.
    make(CASE.replace(name="again"), space=GROUP)


def test_fewer_digits_are_taken_where_rounding_forbids_more(monkeypatch):
    market = Scenario.random(2, 2, 0)
    exact = ExponentialMechanism(market, 1.0).payments()
    mechanisms._quadrature_of.cache_clear()
    monkeypatch.setattr(mechanisms, "TOLERANCES", (1e-30, 1e-7))
    np.testing.assert_allclose(ExponentialMechanism(market, 1.0).payments(), exact, atol=1e-6)
    mechanisms._quadrature_of.cache_clear()
    monkeypatch.setattr(mechanisms, "TOLERANCES", (1e-30,))
    with pytest.raises(ValueError, match=r"epsilon is too large for support='continuous' .*tolerance 1e-30"):
        ExponentialMechanism(market, 1.0)


@pytest.mark.parametrize("make", [VCGMechanism, lambda c: ExponentialMechanism(c, 1.0),
                                  lambda c: LaplaceMechanism(c, 1.0)])  # fmt: skip
def test_infeasible_sub_markets_are_refused(make):
    short = CASE.replace(generation_max=[30.0, 5.0, 5.0], sampled_allocations=None)
    with pytest.raises(ValueError, match="infeasible sub-market: without producer_0"):
        make(short)
    with pytest.raises(ValueError, match="infeasible sub-market: without producer_0"):
        vcg_payments(short)


def test_the_paper_s_calibration_takes_any_report():
    """No ε holds for reports outside the box, and none is claimed for them; the figures use scalings down to .1."""
    assert np.isfinite(exponential(1.0, calibration="paper").payments(reports=[1, 1, 0.1, 1, 1, 1])).all()
