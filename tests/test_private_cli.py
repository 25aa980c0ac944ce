"""``python -m training private``: windows of the shipped day by protocol, in this process and by one a home."""

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from p2penv.pem import load_scenario, rules
from p2penv.pem.protocols.channel import ProtocolError
from training import private
from training.cli import app

SMALL = ["--homes", "8", "--windows", "3", "--bits", "512", "--insecure"]


def invoke(tmp_path, *arguments):
    result = CliRunner().invoke(app, ["private", *arguments, "--json", str(tmp_path / "rows.json")])
    path = tmp_path / "rows.json"
    return result, json.loads(path.read_text())["rows"] if path.exists() else None


def check(rows):
    """Against the rules of the market, in kW and cents."""
    day = load_scenario("day300", homes=8, windows=720)
    assert [row["window"] for row in rows] == [1, 2, 3]
    for row, at in zip(rows, (120, 360, 600), strict=True):
        net = day.generation[at] - day.load[at]
        supply, demand = np.maximum(net, 0).sum() * day.hours, np.maximum(-net, 0).sum() * day.hours
        assert (row["sellers"], row["buyers"]) == ((net > 0).sum(), (net < 0).sum())
        assert row["right"]
        assert row["error"] is None
        if min(row["sellers"], row["buyers"]) < 3:
            assert (row["case"], row["price"], row["traded"], row["bytes"]) == (rules.NO_MARKET, 1200, 0.0, 0)
            continue
        assert row["traded"] == pytest.approx(min(supply, demand), rel=2**-15, abs=2e-5)
        assert row["bytes"] > 0
        if supply >= demand:
            assert (row["case"], row["price"]) == (rules.EXTREME, 900)
        else:
            sells = net > 0
            ratio = day.preference[at][sells].sum() / (day.generation[at] + 1.0)[sells].sum()
            assert row["case"] == rules.GENERAL
            assert row["price"] == pytest.approx(np.clip(np.sqrt(120.0 * ratio), 90.0, 110.0) * 10, abs=1.01)
    assert any(row["case"] != rules.NO_MARKET for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["paper", "hardened", "committee"])
def test_windows_in_this_process(tmp_path, backend):
    result, rows = invoke(tmp_path, *SMALL, "--backend", backend)
    assert result.exit_code == 0, result.output
    assert f"{backend}, 8 homes, local" in result.output
    check(rows)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of parties need a system with fork")
def test_windows_by_processes(tmp_path):
    result, rows = invoke(tmp_path, *SMALL, "--backend", "hardened", "--transport", "tcp")
    assert result.exit_code == 0, result.output
    assert "hardened, 8 homes, tcp" in result.output
    check(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "512"], "at least 2048 bits"),
        (["--homes", "0"], "homes must be"),
        (["--windows", "0"], "windows must be in [1, 720]"),
        (["--windows", "721"], "windows must be in [1, 720]"),
        (["--limit", "0"], "limit must be"),
        (["--backend", "plain"], "plain"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, arguments, message):
    result, rows = invoke(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert rows is None


def test_windows_that_are_given_up_are_told(tmp_path, monkeypatch):
    def broken(window, *_, **__):
        raise ProtocolError("home_1", "hardened.tree", "sent nothing")

    monkeypatch.setattr("p2penv.pem.protocols.clearing.clear", broken)
    result, rows = invoke(tmp_path, "--homes", "8", "--windows", "1")
    assert result.exit_code == 1
    assert "home_1 in phase 'hardened.tree': sent nothing" in result.output
    assert (rows[0]["case"], rows[0]["traded"], rows[0]["right"]) == (None, 0.0, False)
    assert len(private.windows(8, 1)) == 1
