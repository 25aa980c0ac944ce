"""The benchmarks run, and write what they print."""

import csv
import json

import pytest

from benchmarks import speed


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
    parts = ("VCG", "exact draw", "exact price", "network state")
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
