"""Audits of truthfulness and privacy, on short settings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import p2penv
from p2penv.dpvcg import equilibrium, load_scenario, rules
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, VCGMechanism
from p2penv.dpvcg.typespace import TypeSpace, with_report
from training import privacy, truthfulness
from training.cli import app

SCENARIO = load_scenario("community6")
FINITE = {"support": "finite", "range_size": 10}


def make(**options):
    return p2penv.make_functional("dpvcg_v0", **options)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Truthfulness.


@pytest.mark.parametrize("options", [FINITE, {}, {**FINITE, "epsilon": 5.0, "calibration": "paper"}])
def test_regret_is_that_of_a_scan_of_reports(options):
    env = make(types="fixed", **options)
    found = truthfulness.audit(env)
    scales = np.linspace(0.5, 1.5, 21)
    for agent in (0, 3, 5):
        best = max(equilibrium.regret(env.mechanism, agent, scale) for scale in scales)
        assert best <= found.certificate[0, agent] + 1e-9
        # The payoff is smooth in the report: between 21 points it hardly rises.
        assert found.regret[0, agent] == pytest.approx(best, rel=0.02, abs=1e-6)
        again = equilibrium.regret(env.mechanism, agent, found.report[0, agent])
        assert again == pytest.approx(found.regret[0, agent], abs=1e-8)
    assert (found.regret <= found.certificate).all()
    assert (found.certificate <= found.bound).all()
    assert found.interval.tolist() == [0.0] * 6
    assert found.agree is None


@pytest.mark.parametrize("options", [{"mechanism": "vcg"}, {"payments": "entropy", **FINITE}])
def test_truth_is_optimal(options):
    env = make(types="fixed", **options)
    found = truthfulness.audit(env)
    for value in (found.regret, found.certificate, found.bound):
        np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(found.report, 1.0)
    for scale in (0.6, 0.9, 1.4):
        assert equilibrium.regret(env.mechanism, 2, scale, env.payments) <= 1e-9


def test_bound_is_the_proven_one():
    env = make(types="fixed", support="finite", range_size=40)
    mechanism = env.mechanism
    points = mechanism.table.points
    welfare = rules.value(SCENARIO.bids, points).sum(axis=1)
    value = rules.value(SCENARIO.bids, np.linspace(SCENARIO.bounds.low, SCENARIO.bounds.high, 10_001))
    bound = np.ptp(welfare) * np.tanh(0.25 * mechanism.beta * np.ptp(value, axis=0))
    np.testing.assert_allclose(truthfulness.audit(env).bound[0], bound, rtol=1e-6)


def test_regret_under_laplace_noise_stays_below_what_no_noise_would_give():
    found = truthfulness.audit(make(mechanism="laplace", types="fixed", laplace_samples=16))
    assert (found.regret <= found.certificate).all()
    assert (found.bound == found.certificate).all()
    assert found.regret.max() > 0.0


def test_intervals_over_contexts_shrink():
    env = make(**FINITE)
    few, many = (truthfulness.audit(env, contexts) for contexts in (20, 320))
    assert few.regret.shape == (20, 6)
    assert (many.interval < few.interval).all()
    assert (np.abs(few.regret.mean(axis=0) - many.regret.mean(axis=0)) < 3 * (few.interval + many.interval)).all()
    assert (many.regret <= many.bound).all()
    assert not np.array_equal(truthfulness.audit(env, 20, seed=1).regret, few.regret)


def test_learned_attackers_find_the_exact_regret_and_no_more():
    env = make(types="fixed", **FINITE)
    found = truthfulness.audit(env, learn=True, steps=1_000)
    assert found.agree is True
    assert (found.learned <= found.regret + 1e-7).all()
    assert found.learned.sum() > 0.9 * found.regret.sum()


def test_gain_of_a_learner_is_the_regret_of_its_report():
    env = make(types="fixed", **FINITE)
    model = truthfulness.attack(env, 4, steps=200)
    runner = truthfulness.Runner(env, 1)
    runner.reset(0)
    action, _ = model.predict(runner.observations(runner.state)[:, 4], deterministic=True)
    scale = 0.5 + 0.5 * (float(action[0, 0]) + 1.0)
    gain = truthfulness.learned_gain(env, runner, 4, model)
    assert gain[0] == pytest.approx(equilibrium.regret(env.mechanism, 4, scale), abs=1e-12)
    # The environment's own measure agrees: it is what the rest of the best gain is missing.
    actions = np.zeros((1, 6, 1))
    actions[0, 4, 0] = action[0, 0]
    left = env.assess(env.params, runner.state, actions)["exploitability"][0, 4]
    assert gain[0] + left == pytest.approx(truthfulness.audit(env).regret[0, 4], abs=2e-8)


def test_an_attacker_that_gained_too_much_would_be_noticed():
    found = truthfulness.audit(make(types="fixed", **FINITE))
    cheat = truthfulness.Truthfulness(**{**found.__dict__, "learned": found.certificate + 1e-6})
    assert cheat.agree is False


# Privacy.


def test_exact_loss_on_a_finite_range_is_that_of_a_scan_of_pairs():
    env = make(epsilon=3.0, **FINITE)
    found = privacy.audit(env.mechanism, env.space, samples=2_000)
    scales = np.linspace(0.5, 1.5, 41)
    for agent in range(6):
        laws = np.log([env.mechanism.probabilities(with_report(SCENARIO, agent, scale)) for scale in scales])
        loss = np.abs(laws[:, None] - laws[None]).max()
        assert loss <= found.exact[agent] + 1e-12
        assert found.exact[agent] == pytest.approx(loss, rel=1e-3)
    assert (found.exact <= 3.0).all()
    assert found.holds


@pytest.mark.parametrize("report", ["scale", "coefficients"])
def test_loss_on_the_polytope_by_monte_carlo(report):
    env = make(epsilon=2.0, report=report)
    mechanism, (low, high) = env.mechanism, SCENARIO.bounds
    # Uniform draws of five agents, the sixth balances them; kept where it can.
    draws = np.random.default_rng(0).uniform(low[:5], high[:5], (600_000, 5))
    last = -draws.sum(axis=1)
    kept = (last >= low[5]) & (last <= high[5])
    draws = np.column_stack([draws, last])[kept]
    for agent in (1, 5):
        pair, loss = privacy.worst_pair(mechanism, env.space, agent)
        first, second = (with_report(SCENARIO, agent, one) for one in pair)
        log_mass = [
            np.log(np.exp(mechanism.beta * rules.value(bids, draws).sum(axis=1)).mean()) for bids in (first, second)
        ]
        where = np.linspace(low[agent], high[agent], 1001)
        ends = [
            rules.value(rules.Bids(*(field[agent] for field in bids)), where) * mechanism.beta - mass
            for bids, mass in zip((first, second), log_mass, strict=True)
        ]
        assert loss == pytest.approx(np.abs(ends[0] - ends[1]).max(), abs=3e-3)
        assert loss <= 2.0


def test_loss_under_laplace_noise_is_all_of_epsilon():
    mechanism = LaplaceMechanism(SCENARIO, 0.7, samples=8)
    found = privacy.audit(mechanism, mechanism.space, samples=4_000)
    np.testing.assert_allclose(found.exact, 0.7, rtol=1e-12)
    assert (found.lower <= 0.7).all()
    # By the definition: the ratio of the densities of two noisy reports is largest beyond both ends.
    low, high, scale = (field[0] for field in (mechanism.space.low, mechanism.space.high, mechanism.scale))
    beyond = low - 1.0
    ratio = stats.laplace.logpdf(beyond, low, scale).sum() - stats.laplace.logpdf(beyond, high, scale).sum()
    assert found.exact[0] == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("compat", [False, True])
def test_nothing_is_hidden_where_the_outcome_depends_on_the_report(compat):
    env = make(mechanism="exponential", **FINITE) if compat else make(mechanism="vcg")
    mechanism = privacy.with_paper_range(env.mechanism) if compat else env.mechanism
    found = privacy.audit(mechanism, env.space, samples=5_000)
    assert np.isinf(found.exact).all()
    assert np.isinf(found.epsilon)
    assert np.isinf(found.spent)
    assert found.releases == {}
    assert found.holds is not compat  # VCG claims nothing
    assert (found.lower > 2.0).all()


def test_draws_never_prove_more_than_is_claimed_and_unmask_the_papers_range():
    epsilon, seeds, samples = 1.0, 20, 30_000
    space = TypeSpace.scalings(SCENARIO)
    honest = ExponentialMechanism(SCENARIO, epsilon, "finite", space=space, range_size=10)
    smooth = ExponentialMechanism(SCENARIO, epsilon, space=space)
    broken = privacy.with_paper_range(honest)
    for mechanism, agent in ((honest, 2), (smooth, 2), (broken, 2), (broken, 4)):
        pair, loss = privacy.worst_pair(mechanism, space, agent)
        lower = np.array(
            [privacy.tell_apart(mechanism, agent, pair, samples, np.random.default_rng(seed)) for seed in range(seeds)]
        )
        assert (lower <= loss).all()
        if mechanism is broken:
            assert (lower > epsilon).all()
        else:
            assert (lower <= epsilon).all()
            assert loss <= epsilon
            assert lower.min() > 0.1  # it does say something


def test_account_over_rounds_and_what_may_be_published():
    env = make(epsilon=0.25, **FINITE)
    found = privacy.audit(env.mechanism, env.space, samples=100, rounds=24)
    assert found.spent == pytest.approx(6.0)
    assert found.releases == {"draw": 0.25, "all_draws": 1.5}  # nε, not (2n + 1)ε
    # Under β = ε/2 the mechanism's own account differs from what is claimed.
    env = make(epsilon=1.0, calibration="paper", report="coefficients", **FINITE)
    found = privacy.audit(env.mechanism, env.space, samples=100)
    assert found.claimed == 1.0
    assert found.epsilon == pytest.approx(0.5 * env.space.sensitivity.max())
    assert (found.exact <= found.epsilon).all()
    # The exact loss is enough to refute the claim; so few draws prove nothing.
    assert found.exact.max() > found.claimed > found.lower.max()
    assert not found.holds


def test_the_papers_range_is_the_same_one_with_optima_added():
    mechanism = make(range_seed=5, calibration="paper", epsilon=2.0, **FINITE).mechanism
    broken = privacy.with_paper_range(mechanism)
    assert (broken.beta, broken.paper_compat) == (mechanism.beta, True)
    for own, same in zip(broken.range(SCENARIO.bids), mechanism.table, strict=True):
        np.testing.assert_array_equal(own[..., :-1, :], same)
    assert privacy.with_paper_range(broken) is broken


def test_only_a_finite_range_can_get_the_optimum_of_the_reports():
    for mechanism in (VCGMechanism(SCENARIO), ExponentialMechanism(SCENARIO, 1.0)):
        with pytest.raises(ValueError, match="support='finite'"):
            privacy.with_paper_range(mechanism)


# Command line.


def run_cli(*arguments):
    return CliRunner().invoke(app, ["audit", *arguments])


def test_cli_truthfulness(folder):
    result = run_cli("truthfulness", "dpvcg", "-o", "support=finite", "-o", "range_size=10", "--json", "found.json")
    assert result.exit_code == 0, result.output
    assert "regret of misreporting" in result.output
    assert "best scale" in result.output
    stored = json.loads((folder / "found.json").read_text())
    assert stored["options"] == {"support": "finite", "range_size": 10, "types": "fixed"}
    env = make(types="fixed", **FINITE)
    for agent, row in enumerate(stored["agents"]):
        best = equilibrium.best_misreport(env.mechanism, agent)
        assert row["regret"] == pytest.approx(best.gain, abs=1e-12)
        assert row["report_scale"] == pytest.approx(best.report[0])
        assert "learned" not in row


def test_cli_truthfulness_with_contexts_and_attackers(folder):
    result = run_cli(
        "truthfulness", "dpvcg", "-o", "support=finite", "-o", "range_size=5", "--contexts", "4", "--learn",
        "--steps", "200", "--json", "found.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "learned gains within the exact ones" in result.output
    stored = json.loads((folder / "found.json").read_text())
    assert stored["contexts"] == 4
    assert stored["learned_within_exact"] is True
    assert all(row["learned"] <= row["regret"] + 1e-8 for row in stored["agents"])


def test_cli_privacy(folder):
    common = ("privacy", "dpvcg", "-o", "support=finite", "-o", "range_size=10", "--samples", "3000")
    result = run_cli(*common, "--horizon", "3", "--json", "honest.json")
    assert result.exit_code == 0, result.output
    assert "may be published: draw" in result.output
    honest = json.loads((folder / "honest.json").read_text())
    assert honest["holds"] is True
    assert honest["epsilon_spent"] == pytest.approx(3.0)
    result = run_cli(*common, "--paper-compat", "--json", "broken.json")
    assert result.exit_code == 0, result.output
    assert "not private" in " ".join(result.output.split())
    broken = json.loads((folder / "broken.json").read_text())
    assert broken["holds"] is False
    assert [row["exact"] for row in broken["agents"]] == ["inf"] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("truthfulness", "communication"), "audit truthfulness is there for dpvcg, pem; not for communication"),
        (("privacy", "communication"), "audit privacy is there for dpvcg; not for communication"),
        (("privacy", "auction"), "market must be one of"),
        (("privacy", "dpvcg", "--paper-compat"), "support='finite'"),
        (("privacy", "dpvcg", "--samples", "0"), "samples must be a whole number >= 1, got 0"),
        (("privacy", "dpvcg", "--samples", "1"), "samples must be at least 2"),
        (("privacy", "dpvcg", "--seed", "-1"), "seed must be a whole number >= 0, got -1"),
        (("privacy", "dpvcg", "-o", "epsilon=-1"), "epsilon must be"),
        (("privacy", "dpvcg", "-o", "colour=1"), "unknown option 'colour'"),
        (("truthfulness", "dpvcg", "--contexts", "0"), "contexts must be"),
        (("truthfulness", "dpvcg", "--contexts", "5", "-o", "types=fixed"), "contexts must be 1 where types are fixed"),
        (("truthfulness", "dpvcg", "--steps", "10"), "give --learn too"),
        (("truthfulness", "dpvcg", "--learn", "--steps", "0"), "steps must be"),
        (("truthfulness", "dpvcg", "--seed", "-1"), "seed must be"),
        (("truthfulness", "dpvcg", "-o", "mechanism=vcg", "-o", "payments=entropy"), "payments of mechanism 'vcg'"),
    ],
)
def test_cli_refuses_with_one_clear_line(arguments, message):
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
