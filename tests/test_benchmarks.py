"""The benchmarks run, and write what they print."""

import csv
import json

import pytest

from benchmarks import leaderboard, speed


def test_quick_run(tmp_path, capsys):
    rows = speed.run(quick=True, folder=tmp_path)
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "speed.json").read_text())
    with (tmp_path / "speed.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in saved["rows"]] == [row["name"] for row in table] == [row.name for row in rows]
    assert saved["quick"]
    assert {"python", "numpy", "cpu_count", "jax"} <= saved["machine"].keys()
    assert "Speed on this machine" in printed
    for row in rows:
        assert row.note.startswith("skipped") if row.value is None else row.value > 0
    measured = {row.name: row.value for row in rows if row.value is not None}
    parts = ("VCG", "exact draw", "exact price", "network state", "batched hours", "of a day", "Algorithm 1")
    parts += ("hardened clearing", "committee clearing")
    for part in (*parts, "parallel step", "batched steps", "exact equilibrium", "generic solver", "JAX rollout", "PPO"):
        assert any(part in name for name in measured), part


def test_generic_solver_is_given_the_same_problem():
    """Also where the shared bound binds."""
    clarabel = pytest.importorskip("clarabel")
    cases: list[dict] = [{}, {"privacy_budget": 0.2}]
    cases += [{"wholesale_price": 3.0}, {"wholesale_price": 3.0, "privacy_budget": 0.2}]
    for case in cases:
        params = speed.load_scenario(**case).params()
        found = clarabel.DefaultSolver(*speed.potential_qp(params)).solve().x[:-1]
        assert found == pytest.approx(speed.variational_equilibrium(params, params.slope).shift, abs=1e-4)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    (rollout,), (learner,) = speed.jax_rollout(True), speed.learning(True)
    solver = speed.clarabel_row(speed.load_scenario().params(), True)
    assert [row.value for row in (rollout, learner, solver)] == [None] * 3
    assert [row.note for row in (rollout, learner, solver)] == [
        "skipped: needs jax",
        "skipped: needs torch, stable_baselines3",
        "skipped: needs clarabel",
    ]


def test_leaderboard_of_the_vcg_market(tmp_path, monkeypatch):
    """Every method has a row; what is infinite is written as a word, for JSON has no such number."""
    monkeypatch.chdir(tmp_path)
    short = {"PPO, shared": 3_000}
    monkeypatch.setattr(leaderboard, "DPVCG_STEPS", short)
    options = {"mechanism": "vcg", "types": "fixed"}
    rows = leaderboard.run("dpvcg", 2, options, tmp_path, "fixed")
    saved = json.loads((tmp_path / "fixed.json").read_text(), parse_constant=pytest.fail)
    with (tmp_path / "fixed.csv").open(newline="") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert (
        saved["command"]
        == "python -m benchmarks.leaderboard dpvcg --seeds 2 -o mechanism=vcg -o types=fixed --name fixed"
    )
    assert {row["method"] for row in rows} == {"truthful", "dp_vcg", "best_response", "random", *short} == table.keys()
    truth, luck = table["truthful"], table["random"]
    assert [float(truth[key]) for key in ("reward", "nashconv", "regret", "seconds")] == [0.0] * 4
    assert float(truth["welfare_ratio"]) == pytest.approx(1.0)
    assert float(luck["nashconv"]) >= float(luck["regret"]) > 0.0
    assert float(luck["welfare_ratio"]) < 1.0
    assert all(row["privacy_loss"] == "inf" for row in saved["rows"])
    assert all(float(table[name]["seconds"]) > 0.0 for name in short)
    # On the case nobody would rather have stayed away.
    assert float(truth["violation"]) == 0.0


def test_leaderboard_summary_by_hand():
    """Student's t of three seeds: 4.303 standard errors."""
    found = leaderboard.summarise("x", [{"a": value, "b": float("inf")} for value in (1.0, 2.0, 3.0)])
    assert found == {"method": "x", "seeds": 3, "a": 2.0, "a_95": pytest.approx(4.303 / 3**0.5, abs=1e-3),
                     "b": float("inf"), "b_95": 0.0}  # fmt: skip
