"""Learning in the network-constrained market: the command line, and that learners beat the greedy rule."""

import csv
import json
import sys

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import baselines
import p2penv
from benchmarks import leaderboard
from training import tables
from training.cli import app
from training.evaluate import evaluate
from training.runs import suited
from training.train import train

CASE = {"prosumers": 4, "seed": 3}
OPTIONS = ("-o", "prosumers=4", "-o", "seed=3")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    pytest.importorskip("clarabel")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_cli(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_command_line(folder):
    solved = run_cli("solve", "grid", *OPTIONS, "--json", "solved.json")
    assert "variational GNE of the day" in solved
    numbers = json.loads((folder / "solved.json").read_text())
    assert numbers.keys() == {"vgne", "wardrop", "social_optimum", "no_trade"}
    env = p2penv.make_functional("grid_v0", **CASE)
    assert numbers["vgne"]["social_cost"] == pytest.approx(env.solution("vgne").cost.sum(), rel=1e-6)
    printed = run_cli("train", "grid", *OPTIONS, "--steps", "3000", "--envs", "4", "--name", "cli")
    assert "NashConv, learned" in printed
    assert "competitive gain, mean" in printed
    stored = json.loads((folder / "runs/cli/config.json").read_text())["training"]
    assert (stored["num_envs"], stored["steps"], stored["gamma"]) == (4, 3000, 0.9)
    (folder / "runs/cli/report.html").unlink()
    run_cli("report", "runs/cli")
    assert "no trade" in (folder / "runs/cli/report.html").read_text()
    run_cli("evaluate", "grid", "--policy", "vgne", "--agent", "prosumer_1=runs/cli", *OPTIONS, "--json", "out.json")
    measured = next(iter(json.loads((folder / "out.json").read_text())["grid_v0"].values()))
    metrics = next(iter(measured.values()))["seed_0"]["absolute_metrics"]
    assert metrics["nashconv"][0] > 1e-6
    assert metrics["social_cost"][0] > metrics["social_cost_equilibrium"][0]


def test_a_day_without_solution_is_one_clear_error():
    for verb in (("solve", "grid"), ("evaluate", "grid", "--policy", "vgne"), ("train", "grid", "--steps", "1000")):
        result = CliRunner().invoke(app, [*verb, *OPTIONS, "-o", "line_limit=1"], env={"COLUMNS": "200"})
        assert result.exit_code == 2, result.output
        assert "no schedules of 'ieee37-households-4-3'" in result.output
        assert "the line limit (16a) of line 799-701" in result.output


def test_a_missing_solver_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "clarabel", None)
    for verb in (("solve",), ("evaluate", "--policy", "greedy"), ("train", "--steps", "1000"), ("reproduce",),
                 ("evaluate", "-o", "trade_price=shadow")):  # fmt: skip
        options = [] if verb[0] == "reproduce" else OPTIONS
        result = CliRunner().invoke(app, [verb[0], "grid", *verb[1:], *options], env={"COLUMNS": "200"})
        assert result.exit_code == 2, (verb, result.output)
        assert 'need Clarabel: pip install "p2penv[grid]"' in result.output


def test_averages_fit_the_console(capsys):
    env = p2penv.make_functional("grid_v0", **CASE)
    found = evaluate(env, baselines.make(env, "greedy"))
    for width in (60, 80, 200):
        tables.print_infos(found, Console(width=width))
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        text = " ".join(lines)
        assert "…" not in text
        for key, values in found.info.items():
            shown = key.replace("_", " ") if values.ndim else key
            assert all(word in text for word in shown.split()), key
            assert all(f"{value:.5f}" in text for value in np.ravel(values)), key


def test_leaderboard(folder, monkeypatch):
    """The equilibrium is at no distance from itself; less social cost comes first."""
    short = suited("grid_v0", steps=3000, num_envs=4)
    monkeypatch.setattr(leaderboard, "suited", lambda market: short)
    rows = leaderboard.run("grid", 2, CASE, folder)
    with (folder / "grid_v0.csv").open(newline="") as file:
        table = {
            row["method"]: {key: float(value) for key, value in list(row.items())[1:]} for row in csv.DictReader(file)
        }
    env = p2penv.make_functional("grid_v0", **CASE)
    assert table.keys() == {*baselines.names(env), "PPO, shared"}
    costs = [row["social_cost"] for row in rows]
    assert costs == sorted(costs)
    exact = table["vgne"]
    for key in ("cost_gap", "nashconv", "competitive_gain", "grid_distance", "trade_distance"):
        assert exact[key] == pytest.approx(0.0, abs=1e-6), key
        assert table["random"][key] > 1e-3, key
    assert exact["social_cost"] == pytest.approx(env.solution("vgne").cost.sum(), rel=1e-6)
    assert table["no_trade"]["reward"] == pytest.approx(0.0, abs=1e-9)
    assert table["PPO, shared"]["seconds"] > 0.0


@pytest.mark.slow
def test_ppo_beats_the_greedy_rule():
    """Twelve prosumers, settings and seed by default; in half of the steps it does not."""
    run = train(suited("grid_v0"), console=Console(quiet=True))
    found = json.loads((run / "metrics.json").read_text())
    env = p2penv.make_functional("grid_v0", infos="none")
    assert found["social_cost_learned"] < evaluate(env, baselines.make(env, "greedy")).social_cost
    assert found["social_cost_learned"] >= found["social_cost_coordinated"] - 1e-9
    assert found["nashconv_learned"] < 0.1 * found["nashconv_untrained"]
