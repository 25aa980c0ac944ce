"""Figure 5 and Table I of the private energy market: tables agree with what was measured, traffic with counting."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from p2penv.pem.protocols import plain
from p2penv.pem.rules import GENERAL
from training import reproduce_private
from training.cli import app

HOMES, BITS, WINDOWS = (12, 20), (256, 512), 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out, parts = tmp_path_factory.mktemp("figures") / "new", []
    paths = reproduce_private.private(out, parts.append, homes=HOMES, bits=BITS, windows=WINDOWS, middle=20)
    assert sorted(out.iterdir()) == sorted(paths)
    assert len(parts) == 4
    for path in paths:
        assert path.suffix == ".csv" or path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def rows(name, **chosen):
        with (out / f"{name}.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if all(row[key] == str(chosen[key]) for key in chosen)]

    return rows


def test_run_times_are_sums_of_windows(written):
    for homes in HOMES:
        for bits in BITS:
            spent = [float(row["seconds"]) for row in written("figure5-windows", homes=homes, bits=bits)]
            assert len(spent) == WINDOWS
            assert min(spent) > 0.0
            (total,) = written("figure5c-homes", homes=homes, bits=bits)
            assert float(total["seconds"]) == pytest.approx(sum(spent))
            assert float(total["idle_per_home"]) > 0.0
            if bits == max(BITS):
                average = [float(row["seconds"]) for row in written("figure5a-average", homes=homes)]
                assert average == pytest.approx(np.cumsum(spent) / [1, 2])
            if homes == 20:
                running = [float(row["seconds"]) for row in written("figure5b-keys", bits=bits)]
                assert running == pytest.approx(np.cumsum(spent))


def test_traffic_is_that_of_ciphertexts(written):
    """Ciphertexts are numbers modulo N², so twice as long as keys are; the rest does not depend on keys."""
    first, second = written("table1-bandwidth")
    assert [int(row["bits"]) for row in (first, second)] == [*BITS]
    small, large = float(first["megabytes"]), float(second["megabytes"])
    assert small < large < 2.0 * small
    # Protocol 1 alone has every home of both sides send one ciphertext or more.
    assert large * 1e6 > 20 * 2 * 512 / 8
    assert (first["paper_least"], float(second["paper_most"])) == ("", 0.55)
    each = [float(row["size"]) for row in written("figure5-windows", homes=20, bits=512)]
    assert large == pytest.approx(np.mean(each) / 1e6)


def test_windows_are_general():
    found = reproduce_private.general_windows(12, 3)
    assert [plain.clear(window).case for window in found] == [GENERAL] * 3
    with pytest.raises(ValueError, match="windows must be at most"):
        reproduce_private.general_windows(12, 721)


def test_bad_settings_are_refused(tmp_path):
    for options, message in (({"windows": 0}, "windows"), ({"middle": 7}, "middle"), ({"homes": (1,)}, "middle")):
        with pytest.raises(ValueError, match=message):
            reproduce_private.private(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_cli_regenerates(tmp_path, monkeypatch):
    def fake(out, report):
        report("100 homes")
        return [out / "table1-bandwidth.csv"]

    monkeypatch.setattr(reproduce_private, "private", fake)
    result = CliRunner().invoke(app, ["reproduce", "pem-private", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "table1-bandwidth.csv" in result.output.replace("\n", "")
