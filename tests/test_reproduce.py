"""The regenerated figures against the values published beside the model."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from p2penv.communication import load_scenario
from training import reproduce


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures") / "new"
    return out, reproduce.communication(out)


def table(written, name):
    with (written[0] / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


def test_every_figure_has_picture_and_table(written):
    out, paths = written
    assert len(paths) == len(set(paths)) == 14
    assert sorted(out.iterdir()) == sorted(paths)  # nothing half-written is left
    for path in paths:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else path.suffix == ".csv"


def test_privacy_prices_by_hand(written):
    rows = table(written, "figure1-privacy-price")
    # Agent 8: B_n = 1/0.5 + 1/(2·0.31), B = 31.890463, |x| = 3.
    by_hand = (2.0 + 1.0 / 0.62) * 3.0 / (2.0 * 31.890463**2)
    assert rows["paper"][8] == rows["paper"].max() == pytest.approx(by_hand, rel=1e-6)
    assert rows["paper"].max() == pytest.approx(5.33e-3, abs=5e-6)
    assert rows["paper"].min() == pytest.approx(2.74e-3, abs=5e-6)
    np.testing.assert_allclose(rows["kkt"], rows["paper"] / 10.0, rtol=1e-12)
    assert rows["shift_mwh"][10] == pytest.approx(-2.418959, abs=1e-6)
    np.testing.assert_allclose(rows["variance_mwh2"], rows["shift_mwh"] ** 2 / 20.0)


def test_social_cost_over_budgets(written):
    rows = table(written, "figure4-social-budget")
    assert rows["privacy_budget"][[0, -1]] == pytest.approx([0.1, 100.0])
    assert rows["peer_to_peer"][[0, -1]] == pytest.approx([6.74, 13.12], abs=0.005)
    assert rows["coordinated"][[0, -1]] == pytest.approx([10.64, 14.73], abs=0.005)
    assert (np.diff(rows["peer_to_peer"]) > 0).all()
    assert (rows["truthful"] == 0).all()
    assert (rows["coordinated"] >= rows["peer_to_peer"]).all()


def test_social_cost_over_shifts(written):
    rows = table(written, "figure5-social-shift")
    alpha, planner = rows["max_shift"], rows["coordinated"]
    assert alpha[[0, -1]] == pytest.approx([0.25, 8.0])
    assert planner[[0, -1]] == pytest.approx([2.96, 14.68], abs=0.005)
    np.testing.assert_allclose(planner[alpha >= 2.5], planner[-1], rtol=1e-9)  # flat from there
    assert planner[alpha < 2.0].max() < 14.68 - 0.05
    peak = np.argmax(rows["peer_to_peer"])
    assert rows["peer_to_peer"][peak] == pytest.approx(13.02, abs=0.005)
    assert alpha[peak] == pytest.approx(3.3, abs=0.1)


@pytest.mark.parametrize("name", ["figure2-gap-budget", "figure3-gap-shift"])
def test_agents_who_gain_most_and_who_lose(written, name):
    rows = table(written, name)
    key = next(key for key in rows if not key.startswith("gap_"))
    gaps = np.stack([rows[f"gap_{n}"] for n in range(13)], axis=1)
    nominal = int(np.argmin(np.abs(rows[key] - {"privacy_budget": 10.0, "max_shift": 3.0}[key])))
    at = gaps[nominal]
    assert rows[key][nominal] == pytest.approx({"privacy_budget": 10.0, "max_shift": 3.0}[key])
    assert list(np.argsort(at)[-2:]) == [3, 8]
    assert set(np.flatnonzero(at < 0)) == {9, 11}
    assert at[[8, 3, 2, 9, 11]] == pytest.approx([5.1861, 2.5308, 1.1695, -0.2212, -0.2854], abs=5e-5)
    # Both sweeps show the same decrease as the social figures, agent by agent.
    social = table(written, {"privacy_budget": "figure4-social-budget", "max_shift": "figure5-social-shift"}[key])
    np.testing.assert_allclose(gaps.sum(1), social["peer_to_peer"], rtol=0, atol=1e-9)


def test_heterogeneous_prices_favour_node_0_by_bookkeeping(written):
    rows = table(written, "heterogeneous-prices")
    assert np.argmax(rows["heterogeneous"]) == 0
    # The same gain with one price for all, once node 0 books the imbalance: c·Σx more than with (3).
    np.testing.assert_allclose(rows["homogeneous_root"], rows["heterogeneous"], rtol=0, atol=1e-9)
    total_shift = table(written, "figure1-privacy-price")["shift_mwh"].sum()
    extra = rows["homogeneous_root"] - rows["homogeneous_each"]
    np.testing.assert_allclose(extra, [-1.0 * total_shift, *[0.0] * 12], rtol=0, atol=1e-9)


def test_small_shifts_of_nodes_3_and_8_bound_the_total(written):
    rows = table(written, "small-shift-3-8")
    total = rows["total_shift_mwh"]
    assert total[-1] == pytest.approx(table(written, "figure1-privacy-price")["shift_mwh"].sum())
    assert (np.diff(total) <= 1e-9).all()
    assert abs(total[0]) < abs(total[-1]) - 3.0
    assert (np.diff(rows["gap_8"]) >= -1e-9).all()
    # The price follows (6) from the total.
    np.testing.assert_allclose(rows["price"], 6.961329 + total / 31.890463, rtol=0, atol=1e-6)


def test_labels_are_pushed_apart_as_little_as_needed():
    np.testing.assert_allclose(reproduce._apart(np.array([0.0, 5.0]), 1.0), [0.0, 5.0])
    np.testing.assert_allclose(reproduce._apart(np.array([2.0, 2.0, 9.0]), 1.0), [1.5, 2.5, 9.0])


def test_an_interrupted_write_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "figure1-privacy-price.png"
    path.write_bytes(b"old")

    def fail(self, *args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        reproduce._privacy_price(load_scenario("ieee14"), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
