"""Plans of single homes for a day against the others' play, and what the leaderboard makes of them."""

import csv
import json

import numpy as np
import pytest

import baselines
import p2penv
from baselines.pem import HindsightPolicy
from benchmarks import leaderboard
from p2penv.pem import Scenario
from training import days_pem
from training.evaluate import returns
from training.policies import MixedPolicy
from training.runs import TrainConfig


def community(**options):
    return p2penv.make_functional("pem_v0", scenario=Scenario.random(5, 24, 3), infos="none", **options)


@pytest.mark.parametrize("options", [{}, {"response": "agent", "pricing": "paper"}, {"leader": "agent"}])
def test_against_truthful_play_plans_are_those_of_hindsight(options):
    env = community(**options)
    found = days_pem.gains(env, env.policy("truthful"))
    assert found.shape == (5,)
    before = returns(env, env.policy("truthful"))[0]
    if not env.led:  # where a leader follows reports, the price path is that of its own rule
        for agent in range(5):
            after = returns(env, HindsightPolicy(env, agent))[0]
            assert found[agent] == pytest.approx(max(after[agent] - before[agent], 0.0), abs=1e-6)
    assert found.max() > 10.0


def test_a_gain_is_what_the_plan_earns_against_the_policy_itself():
    """A mixed policy, stepped through apart: one home by its plan, the others by theirs."""
    env = community()
    policy = MixedPolicy(baselines.make(env, "battery_best_loads"), {1: baselines.make(env, "truthful")})
    found, before = days_pem.gains(env, policy), days_pem.play(env, policy)
    np.testing.assert_allclose(before.reward, returns(env, policy), atol=1e-9)
    schedule = baselines.pem.hindsight(env, 1, before.path)
    plan = baselines.pem.day_of_actions(env, [schedule] * 5)[:, 1]

    class Planned:
        full_information, noise = True, policy.noise

        def act(self, params, observations, state, noise):
            actions = np.array(policy.act(params, observations, state, noise))
            actions[:, 1, :2] = plan[int(state.time[0]), :2]
            return actions

    gain = returns(env, Planned())[0, 1] - before.reward[0, 1]
    assert gain > 1.0
    assert found[1] == pytest.approx(gain, abs=1e-9)


def test_who_can_move_nothing_gains_nothing():
    env = p2penv.make_functional(
        "pem_v0", scenario=Scenario.random(5, 12, 3).replace(battery_power=0.0, flexibility=0.0), response="agent"
    )
    np.testing.assert_allclose(days_pem.gains(env, env.policy("truthful")), 0.0, atol=1e-9)


def test_drawn_play_meets_the_same_draws():
    env = community(forecast=2, forecast_error=0.3)
    policy = baselines.make(env, "random")
    one = days_pem.play(env, policy, 1)
    plans = np.zeros((24, 5, 5))
    five = days_pem.play(env, policy, 1, plans)
    assert five.reward.shape == (5, 5)
    # The others of one day differ from the single day by what one home's rest does to prices, that is, little.
    others = ~np.eye(5, dtype=bool)
    assert np.abs(five.reward - one.reward)[others].max() < 0.2 * np.ptp(one.reward)
    assert one.violation < 1e-9
    assert not np.array_equal(one.reward, days_pem.play(env, policy, 2).reward)


@pytest.mark.parametrize(
    ("field", "change"), [("bought", 1.5), ("payment", 1.01), ("grid_power", 1.1), ("charge", 30.0)]
)
def test_breaches_are_seen(monkeypatch, field, change):
    env = community()
    step, play = type(env).step, type(env).play
    if field == "charge":

        def charged(self, *given):
            found = step(self, *given)
            return found._replace(state=found.state._replace(charge=found.state.charge + change))

        monkeypatch.setattr(type(env), "step", charged)
    else:

        def settled(self, *given):
            found = play(self, *given)
            broken = found.settled._replace(**{field: change * getattr(found.settled, field)})
            return found._replace(settled=broken)

        monkeypatch.setattr(type(env), "play", settled)
    assert days_pem.play(env, env.policy("truthful")).violation > 1e-3


@pytest.mark.slow
def test_leaderboard(tmp_path, monkeypatch):
    """Every method, a finished run taken as it is, tables that say the same."""
    monkeypatch.chdir(tmp_path)
    quick = TrainConfig(steps=600, num_envs=2, contexts=2)
    monkeypatch.setattr(leaderboard, "learners", lambda market: {"PPO, shared": quick})
    options = {"homes": 4, "windows": 12, "minutes": 60, "battery_capacity": 4.0, "battery_power": 2.0}
    names = ["truthful", "battery_best_loads", "random"]
    monkeypatch.setattr(baselines, "names", lambda env: names)
    rows = leaderboard.run("pem", 1, options, tmp_path / "results")
    env = p2penv.make_functional("pem_v0", **options)
    assert {row["method"] for row in rows} == {*names, "PPO, shared"}
    assert [row["episode_reward"] for row in rows] == sorted((row["episode_reward"] for row in rows), reverse=True)
    found = {row["method"]: row for row in rows}
    for name in ("truthful", "battery_best_loads"):
        policy = baselines.make(env, name)
        assert found[name]["episode_reward"] == pytest.approx(returns(env, policy).mean())
        assert found[name]["nashconv_at_least"] == pytest.approx(days_pem.gains(env, policy).sum())
        assert found[name]["episode_reward_95"] == pytest.approx(0.0, abs=1e-9)
        assert 0.5 < found[name]["welfare_ratio"] <= 1.0
    assert found["truthful"]["episode_gain"] == 0.0
    assert found["PPO, shared"]["seconds"] > 0.0
    assert max(row["violation"] for row in rows) < 1e-9
    with (tmp_path / "results" / "pem_v0.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    assert "-o homes=4" in json.loads((tmp_path / "results" / "pem_v0.json").read_text())["command"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["leaderboard-pem-ppo-shared-0"]
    again = leaderboard.run("pem", 1, options, tmp_path / "again")
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert again == rows
