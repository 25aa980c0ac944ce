"""The regenerated figures of the network-constrained market's paper against sums and identities worked out here."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from p2penv.grid import load_scenario
from p2penv.grid.equilibrium import InfeasibleError, variational_equilibrium
from training import grid_study, reproduce_grid, reproduce_grid_algorithm, reproduce_grid_trade
from training.cli import app

pytestmark = pytest.mark.slow
SIZE = 8


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures") / "new"
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_grid_trade, "SEEDS", 4)
        patch.setattr(reproduce_grid_algorithm, "SIZES", (1.0,))
        patch.setattr(reproduce_grid_algorithm, "DENSITIES", (0.6, 1.0))
        paths = reproduce_grid.grid(out, names.append, prosumers=SIZE)
    return out, paths, names


@pytest.fixture(scope="module")
def scenario():
    return businesses()


@pytest.fixture(scope="module")
def nash(scenario):
    return variational_equilibrium(scenario)


def businesses(**changes):
    return load_scenario(prosumers=SIZE, density=0.6, scale="paper", **changes)


def rows(written, name, **chosen):
    with (written[0] / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if all(row[key] == value for key, value in chosen.items())]


def column(found, name):
    return np.array([float(row[name]) for row in found])


def claim(written, start):
    (found,) = (row for row in rows(written, "claims") if row["claim"].startswith(start))
    return found


def numbers(text):
    return [float(number) for number in text.split(", ")]


def test_everything_has_picture_and_table(written):
    out, paths, names = written
    assert len(paths) == len(set(paths))
    assert sorted(out.iterdir()) == sorted(paths)
    assert names == list(reproduce_grid.PARTS)
    assert {row["part"] for row in rows(written, "claims")} == set(names)
    for path in paths:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else path.suffix == ".csv"
    assert {path.with_suffix(".csv") for path in paths if path.suffix == ".png"} <= set(paths)


def test_savings_are_differences_of_bills(written, scenario, nash):
    found = rows(written, "trading-benefit")
    alone = variational_equilibrium(scenario, "no_trade")
    np.testing.assert_allclose(column(found, "saved at contract prices"), alone.cost - nash.cost, atol=1e-6)
    # What buyers pay on top of the contract sellers get: no network limit binds, so only the split differs.
    shadow = column(found, "saved at shadow prices")
    assert shadow.sum() == pytest.approx((alone.cost - nash.cost).sum(), abs=1e-4)
    extra = np.zeros(SIZE)
    for m, (i, j) in enumerate(scenario.edges):
        received = nash.schedules.trade[:, i, list(scenario.partner[i]).index(j)]
        moved = (nash.multipliers["trade"][:, m] * received).sum()
        extra[[i, j]] += moved, -moved
    np.testing.assert_allclose(shadow, alone.cost - nash.cost - extra, atol=1e-4)
    losers = numbers(claim(written, "who loses")["ours"])
    assert losers[0] == (alone.cost - nash.cost < -1e-6).sum()
    assert claim(written, "nobody loses at shadow")["holds"] == str(losers[1] == losers[3] == 0)
    assert numbers(claim(written, "trading saves")["ours"])[0] == pytest.approx(
        (alone.cost - nash.cost).mean(), abs=0.006
    )


def test_who_loses_by_trading(written):
    """Bills worked out here, trades at c^tr and their multiplier; no limit binds in these communities."""
    found = rows(written, "trading-losers")
    assert [(row["community"], row["seed"]) for row in found] == [
        (name, str(seed)) for name in reproduce_grid_trade.COMMUNITIES for seed in range(4)
    ]
    for name, options in reproduce_grid_trade.COMMUNITIES.items():
        row = rows(written, "trading-losers", community=name, seed="2")[0]
        scenario = load_scenario(prosumers=12, seed=2, **options)
        alone, traded = variational_equilibrium(scenario, "no_trade"), variational_equilibrium(scenario)
        assert (
            max(np.abs(each.multipliers[key]).max() for each in (alone, traded) for key in ("import", "nodal")) < 1e-6
        )
        paid = np.zeros(12)
        for m, (i, j) in enumerate(scenario.edges):
            received = traded.schedules.trade[:, i, list(scenario.partner[i]).index(j)]
            paid[[i, j]] += np.array([1.0, -1.0]) * (traded.multipliers["trade"][:, m] * received).sum()
        saved = alone.cost - traded.cost - paid
        assert float(row["least_saved"]) == pytest.approx(saved.min(), abs=1e-5)
        assert float(row["least_part"]) == pytest.approx((saved / alone.cost).min(), abs=1e-6)
        assert int(row["losers"]) == (saved < -1e-6).sum()
        held = claim(written, f"12 {name}: nobody loses")
        assert int(held["ours"]) == column(rows(written, "trading-losers", community=name), "losers").sum()
        assert held["holds"] == str(name != "businesses, storage alone")


def test_the_operator_takes_tariffs(written, scenario, nash):
    alone, found, _, social = rows(written, "operator")
    traded = np.abs(nash.schedules.trade).sum()
    assert float(found["tariff_income"]) == pytest.approx(0.01 * traded, abs=1e-6)
    assert float(found["traded_kwh"]) == pytest.approx(traded / 2, abs=1e-6)
    assert float(alone["tariff_income"]) == float(alone["traded_kwh"]) == 0.0
    peak = (scenario.passive_total[:-1] + nash.schedules.grid.sum(axis=1)).max()
    assert float(found["peak_import_kw"]) == pytest.approx(peak, abs=1e-6)
    ratio = float(claim(written, "price of anarchy")["ours"])
    assert ratio == pytest.approx(float(found["prosumers_cost"]) / float(social["prosumers_cost"]), abs=6e-5)
    assert ratio >= 1.0


def test_trade_falls_with_the_tariff_and_not_with_the_contract_price(written, nash):
    by_tariff = column(rows(written, "trade-against-prices", changed="c^ta"), "traded_kwh")
    assert (np.diff(by_tariff) <= 1e-3).all()
    assert by_tariff[0] == pytest.approx(np.abs(nash.schedules.trade).sum() / 2, abs=1e-3)
    dear = variational_equilibrium(businesses(tariff=0.05))
    assert by_tariff[2] == pytest.approx(np.abs(dear.schedules.trade).sum() / 2, abs=1e-2)
    by_contract = rows(written, "trade-against-prices", changed="c^tr")
    np.testing.assert_allclose(column(by_contract, "traded_kwh"), by_tariff[0], rtol=1e-4)
    assert claim(written, "trade against c^tr")["holds"] == "True"
    # The same trades at another price: costs move by what was bought, less what was sold.
    bought = nash.schedules.trade.sum(axis=(0, 2))
    alone = variational_equilibrium(businesses(), "no_trade")
    saved = alone.cost - (nash.cost + (0.2 - 0.08) * bought)
    assert float(by_contract[-1]["least_saved"]) == pytest.approx(saved.min(), abs=1e-2)


def test_prices_of_the_day(written, scenario, nash):
    found = rows(written, "prices", case="with storage")
    imported = nash.schedules.grid.sum(axis=1)
    price = 0.1624 / scenario.passive_total[:-1] * (imported + scenario.passive_total[:-1])
    np.testing.assert_allclose(column(found, "imported_kw"), imported, atol=1e-6)
    np.testing.assert_allclose(column(found, "grid_price"), price, rtol=1e-9)
    # Buyers of what is traded in an hour value it at no less than its price and tariff, sellers at no more.
    trades, worth = column(found, "trade_price"), nash.multipliers["balance"]
    for hour in range(24):
        bought = nash.schedules.trade[hour].sum(axis=1)
        if not np.isfinite(trades[hour]):
            assert np.abs(nash.schedules.trade[hour]).sum() < 1e-3
            continue
        assert worth[hour][bought < -1e-3].min() <= trades[hour] + 1e-4
        assert worth[hour][bought > 1e-3].max() >= trades[hour] - 1e-4
    shadow = rows(written, "shadow-price")
    np.testing.assert_allclose(column(shadow, "multiplier_without_c_tr"), trades, atol=1e-4)
    np.testing.assert_allclose(column(shadow, "multiplier"), trades - 0.08, atol=1e-12)


def test_storage_and_dispatch(written):
    found = rows(written, "storage")
    peak = {name: column(rows(written, "storage", storage=name), "imported_kw").max() for name in ("none", "everybody")}
    everybody = variational_equilibrium(businesses(storage_share=1.0)).schedules
    assert peak["everybody"] == pytest.approx(everybody.grid.sum(axis=1).max(), abs=1e-3)
    cut = float(claim(written, "storage with everybody")["ours"].rstrip("%"))
    assert cut == pytest.approx(100.0 * (1.0 - peak["everybody"] / peak["none"]), abs=0.06)
    assert cut > 0.0
    assert len(found) == 72
    by_cost = rows(written, "dispatch-cost", storage="True")
    assert column(by_cost, "dispatched_kwh")[-1] < column(by_cost, "dispatched_kwh")[0]
    assert (np.diff(column(by_cost, "cost")) >= -1e-6).all()
    assert claim(written, "nobody charges")["holds"] == "True"


def test_limits_of_lines(written, scenario):
    """Flows by sums over the tree; between two days there is the least room that is feasible."""
    days = rows(written, "line-limits")
    rooms, feasible = column(days, "room"), [row["feasible"] == "True" for row in days]
    assert (np.diff(rooms) < 0).all()
    assert feasible == sorted(feasible, reverse=True)
    last = feasible.index(False)
    assert rooms[last - 1] - rooms[last] <= 0.011
    tight = grid_study.room_left(scenario, rooms[last - 1])
    found = variational_equilibrium(tight)
    with pytest.raises(InfeasibleError):
        variational_equilibrium(grid_study.room_left(scenario, rooms[last]))
    flow = np.zeros((24, 35, 2))
    at_bus = np.zeros((24, 36, 2))
    net = found.schedules.grid + found.schedules.trade.sum(axis=-1)
    for k, bus in enumerate(scenario.bus):
        at_bus[:, bus, 0] += net[:, k]
    at_bus += np.stack([scenario.passive_active[:-1], scenario.passive_reactive[:-1]], axis=-1)
    for line, bus in enumerate(scenario.feeder.fed):
        for leaf in range(36):
            above = leaf
            while above >= 0 and above != bus:
                above = scenario.feeder.parent[above]
            flow[:, line] += at_bus[:, leaf] * (above == bus)
    loading = np.linalg.norm(flow, axis=-1).max(axis=0) / tight.line_limit
    np.testing.assert_allclose(column(rows(written, "line-loading"), "within"), loading, atol=1e-6)
    assert 0.97 < loading.max() <= 1.0 + 1e-6
    least = column([row for row in days if row["least_cost"]], "least_cost")
    assert (np.diff(least) >= -1e-6 * least[:-1]).all()
    # At no room at all prosumers may not even buy what they need.
    assert not feasible[-1]
    np.testing.assert_allclose(grid_study.room_left(scenario, 1.0).line_limit, scenario.line_limit)


def test_each_multiplier_is_explained(written, nash):
    found = {row["multiplier"]: row for row in rows(written, "multipliers")}
    assert set(found) == set(nash.multipliers)
    for name, row in found.items():
        assert row["meaning"]
        assert float(row["most"]) == pytest.approx(nash.multipliers[name].max(), abs=1e-5)
    assert float(found["line_max"]["most_tight"]) > 1e-4
    assert float(found["line_max"]["most"]) < 1e-5
    assert float(claim(written, "multipliers satisfy")["ours"]) < 1e-6


def test_algorithms_end_at_the_equilibrium(written):
    found = rows(written, "iterations-prosumers")
    assert {(row["against"], row["prosumers"], row["density"]) for row in found} == {
        ("prosumers", "8", ""), ("density", "8", "0.6"), ("density", "8", "1.0"),
    }  # fmt: skip
    assert rows(written, "iterations-density") == [row for row in found if row["against"] == "density"]
    assert all(row["converged"] == "True" for row in found)
    assert (column(found, "distance_kw") < 2.0).all()
    np.testing.assert_allclose(
        column(found, "seconds_per_prosumer") * column(found, "prosumers"), column(found, "seconds")
    )
    for name in ("Algorithm 1", "ADMM"):
        trace = rows(written, "algorithm1-admm", algorithm=name)
        residual = np.maximum(column(trace, "stationarity"), column(trace, "infeasibility"))
        assert residual[-1] <= 1e-2 < residual[0]
        (same,) = (
            row for row in found if (row["against"], row["prosumers"], row["algorithm"]) == ("prosumers", "8", name)
        )
        assert len(trace) == int(same["iterations"])
        assert column(trace, "purchase_gap")[-1] < 1e-2 < column(trace, "purchase_gap")[0]
    assert claim(written, "Algorithm 1 converges")["holds"] == "True"


def test_too_few_prosumers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prosumers must be at least 4"):
        reproduce_grid.grid(tmp_path, prosumers=3)
    assert not list(tmp_path.iterdir())


def test_cli_regenerates(tmp_path, monkeypatch):
    calls = []

    def fake(out, report):
        report("Prices")
        calls.append(out)
        return [out / "prices.csv"]

    monkeypatch.setattr(reproduce_grid, "grid", fake)
    result = CliRunner().invoke(app, ["reproduce", "grid", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert calls == [tmp_path]
    assert "prices.csv" in result.output.replace("\n", "")
