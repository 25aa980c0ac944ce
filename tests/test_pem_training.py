"""Learning in the private energy market: what learners are paid, and that they beat the rules."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import baselines
import p2penv
from p2penv.pem import Scenario
from training.cli import app
from training.evaluate import returns
from training.runs import TrainConfig, suited
from training.sb3 import EpisodeVecEnv, make_env
from training.train import train


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("leader", ["rule", "agent"])
def test_learners_are_paid_the_episode_s_reward_less_a_constant(leader):
    """Whatever is played: summed over an episode, and up to each agent's scale."""
    env = p2penv.make_functional("pem_v0", scenario=Scenario.random(4, 12, 2), infos="none", leader=leader)
    agents = 4 + (leader == "agent")
    vector = EpisodeVecEnv(env, 3, 0.9)
    plain = p2penv.make_vector("pem_v0", num_envs=3, scenario=env.scenario, leader=leader)
    rng = np.random.default_rng(0)
    truthful = returns(env, env.policy("truthful"))[0]
    for _ in range(2):  # the second episode starts by itself
        paid, total = np.zeros((3, agents)), np.zeros((3, agents))
        if vector._worth.size == 0:
            vector.reset()
        plain.reset(seed=0)
        for step in range(12):
            actions = rng.uniform(-1.0, 1.0, (3 * agents, 5)).astype(np.float32)
            _, rewards, ended, infos = vector.step(actions)
            paid += rewards.reshape(3, agents)
            total += plain.step(actions.reshape(3, agents, 5))[1]
            assert ended.all() == (step == 11)
        assert not any("TimeLimit.truncated" in info for info in infos)
        ratio = paid / (total - truthful)
        np.testing.assert_allclose(ratio, np.broadcast_to(vector._share, ratio.shape), rtol=1e-3)


def test_markets_without_worth_are_paid_as_ever():
    env = p2penv.make_functional("communication_v0")
    assert type(make_env(env, TrainConfig())).__name__ == "MarketVecEnv"


def test_returns_of_deterministic_play_are_the_same_in_every_episode():
    env = p2penv.make_functional("pem_v0", scenario=Scenario.random(4, 12, 2))
    found = returns(env, baselines.make(env, "battery"), 3, seed=7)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, found[:1].repeat(3, axis=0))
    drawn = returns(env, baselines.make(env, "random"), 3, seed=7)
    assert np.ptp(drawn, axis=0).min() > 0.0


def test_ppo_beats_truth_and_batteries_by_rule():
    """20 homes over 720 windows, in a quarter of the steps that are the default."""
    options = {"homes": 20}
    run = train(suited("pem_v0", options=options, steps=500_000, contexts=4), console=Console(quiet=True))
    found = json.loads((run / "metrics.json").read_text())
    env = p2penv.make_functional("pem_v0", **options)
    rules = [returns(env, baselines.make(env, name)).mean() for name in ("truthful", "battery", "battery_best_loads")]
    assert found["episode_reward_truthful"] == pytest.approx(rules[0])
    assert found["episode_reward_learned"] > max(rules)
    gains = [row["episode_gain"] for row in found["agents"]]
    assert np.mean(gains) == pytest.approx(found["episode_reward_learned"] - rules[0])
    assert found["payoff_change"] == pytest.approx(np.mean(gains) / rules[0])
    page = (run / "report.html").read_text()
    # Truth is no equilibrium: homes without battery move loads, homes with one charge it.
    assert "NashConv" not in page
    assert "equilibrium</h" not in page
    assert "<th>gain [cents]</th>" in page
    assert (run / "learned.png").is_file()


def test_cli_evaluates_whole_days(folder):
    """What batteries bring shows in rewards of days only; where no report may be untrue, no NashConv is claimed."""
    small = [
        "-o",
        "homes=6",
        "-o",
        "windows=24",
        "-o",
        "minutes=30",
        "-o",
        "battery_capacity=3",
        "-o",
        "battery_power=2",
    ]
    result = CliRunner().invoke(app, ["evaluate", "pem", "--policy", "battery", *small, "--json", "found.json"])
    assert result.exit_code == 0, result.output
    env = p2penv.make_functional("pem_v0", homes=6, windows=24, minutes=30, battery_capacity=3, battery_power=2)
    gain = (returns(env, baselines.make(env, "battery")) - returns(env, env.policy("truthful")))[0]
    assert np.abs(gain).max() > 1.0
    stored = json.loads((folder / "found.json").read_text())["pem_v0"]["day300"]["battery"]["seed_0"]
    assert stored["absolute_metrics"]["episode_gain"] == [pytest.approx(gain.mean())]
    assert stored["absolute_metrics"]["least_gain"] == [pytest.approx(gain.min())]
    text = " ".join(result.output.split())
    for name, value in zip(env.scenario.agents, gain, strict=True):
        assert re.search(rf"{name} \S+ \S+ {value + 0.0:.3f} ", text), name
    assert "NashConv" not in text
    assert "nothing: no misreport is allowed" in text
    # Truth, what is played and the exact price's play are then one in a single step: said once.
    assert "truthful = equilibrium = played" in result.output
    assert "social cost, truthful = equilibrium " in text  # wrapped after that
    assert "price of anarchy, equilibrium = " in text
    assert "social cost, played" not in text
    assert not re.search("utility gap|exploitability ", result.output.split("Single steps")[1].split("social cost")[0])
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output
    lying = CliRunner().invoke(app, ["evaluate", "pem", *small, "-o", "demand_cap=0.5"])
    assert "NashConv" in lying.output
    for column in ("utility gap", "exploitability", "social cost, truthful ", "social cost, played ",
                   "price of anarchy, played"):  # fmt: skip
        assert column in " ".join(lying.output.split())
    assert "truthful = " not in lying.output
    # Loads that do not answer the price differ from the equilibrium's, not from truthful play's.
    held = CliRunner().invoke(app, ["evaluate", "pem", "--policy", "battery", *small, "-o", "response=agent"])
    assert "social cost, truthful = played" in " ".join(held.output.split())
    assert "social cost, equilibrium " in held.output
    assert "misreports within the caps" in " ".join(lying.output.split())


def test_tables_of_training_compare_what_may_differ():
    """Learned play is truthful play but for reports; only where these are free are there columns of both."""
    text = {}
    for cap in (0.0, 0.5):
        console = Console(record=True, width=120, file=io.StringIO())
        options = {"homes": 3, "windows": 4, "demand_cap": cap}
        train(suited("pem_v0", options=options, steps=600, contexts=2, num_envs=4), f"cap-{cap}", console)
        text[cap] = console.export_text()
    assert "social cost of a step, truthful = equilibrium = learned" in text[0.0]
    assert "price of anarchy, equilibrium = learned" in text[0.0]
    for row in ("truthful", "equilibrium", "learned"):
        assert f"social cost of a step, {row} " in text[0.5]


def test_cli_trains_with_misreports_on(folder):
    small = ["-o", "homes=3", "-o", "windows=4", "-o", "demand_cap=0.5", "--contexts", "2", "--steps", "600"]
    result = CliRunner().invoke(app, ["train", "pem", "--name", "lies", *small])
    assert result.exit_code == 0, result.output
    stored = json.loads((folder / "runs/lies/config.json").read_text())["training"]
    assert (stored["num_envs"], stored["learning_rate"], stored["steps"], stored["contexts"]) == (4, 1e-3, 600, 2)
