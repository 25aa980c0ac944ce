"""Profiles: finer values, communities, files of single homes; everything the readers refuse and repair."""

import datetime
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2penv.core import quarters as measured
from p2penv.core import scenarios
from p2penv.core.quarters import HOUSEHOLDS, PANELS
from p2penv.pem import PEM, Scenario, profiles, readers


@pytest.fixture(scope="module")
def quarters():
    return measured.shipped()


# Finer values


def test_upsampling_by_hand():
    """Blocks 1, 3 of two values: lines through the middles give .5 of a step either way; the ends stay flat."""
    blocks = np.array([[1.0], [3.0]])
    fine = profiles.upsample(blocks, np.zeros((4, 1)))
    # Lines: 1, 1.5, 2.5, 3; scaled to the means 1 and 3.
    np.testing.assert_allclose(fine[:, 0], [1 / 1.25, 1.5 / 1.25, 2.5 / (2.75 / 3), 3 / (2.75 / 3)])
    # Ceilings 1.2 and 3.2: the first pair is cut to 1, 1.2 and scaled down; the second raised towards 3.2.
    fine = profiles.upsample(blocks, np.zeros((4, 1)), np.array([[1.2], [3.2]]))
    np.testing.assert_allclose(fine[:, 0], [1 / 1.1, 1.2 / 1.1, 3.2 - 0.7 * 0.2 / 0.45, 3.2 - 0.2 * 0.2 / 0.45])


@settings(max_examples=60, deadline=None)
@given(
    blocks=hnp.arrays(float, (5, 2), elements=st.floats(0, 1e3) | st.just(0.0)),
    above=hnp.arrays(float, (5, 2), elements=st.floats(0, 10) | st.just(0.0)),
    noise=hnp.arrays(float, (20, 2), elements=st.floats(-4, 4)),
    capped=st.booleans(),
)
def test_upsampling_keeps_energy_and_limits(blocks, above, noise, capped):
    ceiling = blocks + above if capped else None
    fine = profiles.upsample(blocks, noise, ceiling)
    np.testing.assert_allclose(fine.reshape(5, 4, 2).mean(axis=1), blocks, rtol=1e-9, atol=1e-9)
    assert (fine >= -1e-12).all()
    if capped:
        assert (fine <= np.repeat(ceiling, 4, axis=0) * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("blocks", "noise", "ceiling", "message"),
    [
        ([[1.0], [-2.0]], np.zeros((4, 1)), None, "blocks must be >= 0, got -2.0"),
        ([[1.0], [2.0]], np.zeros((5, 1)), None, "noise must have shape (2 * r, 1), got (5, 1)"),
        ([[1.0], [2.0]], np.zeros((4, 1)), [[1.0], [1.5]], "ceiling must be at least the mean of every block"),
    ],
)
def test_upsampling_refuses(blocks, noise, ceiling, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        profiles.upsample(np.array(blocks), noise, None if ceiling is None else np.array(ceiling))


def test_wandering_noise_has_variance_one_and_the_said_memory():
    noise = profiles.wander(np.random.default_rng(0).standard_normal((400, 4000)), 5.0)
    np.testing.assert_allclose(noise.std(axis=1), 1.0, atol=0.06)
    lagged = (noise[:-5] * noise[5:]).mean()
    assert lagged == pytest.approx(np.exp(-1), abs=0.01)


def test_ceiling_and_unsteadiness():
    steady = np.linspace(0, 5, 20)[:, None]
    inner = slice(4, -4)
    np.testing.assert_allclose(profiles.clearest(steady)[inner, 0], steady[8:, 0])  # an hour later
    np.testing.assert_allclose(profiles.unsteadiness(steady)[inner], 0.0, atol=1e-12)
    torn = np.tile([0, 0, 0, 0, 1.0, 1, 1, 1], 4)[:, None]
    np.testing.assert_allclose(profiles.unsteadiness(torn)[inner], 1.0)


@pytest.mark.parametrize(
    ("start", "windows", "length", "message"),
    [
        (7.0, 1020, 1, "windows missing in the data: 1020 of 1 minutes from 7 h on"),
        (7.0, 68, 15, "at most 67 fit"),
        (23.75, 15, 1, "at most 14 fit"),
        (24.0, 1, 1, "start must be an hour in [0, 24), got 24.0"),
        (7.001, 1, 1, "start must be on a whole minute, got 7.001"),
        (25.0, 1, 1, "start must be an hour in [0, 24), got 25.0"),
        (7.0, 0, 1, "windows must be a whole number >= 1, got 0"),
        (7.0, 1, 1.5, "minutes must be a whole number >= 1, got 1.5"),
    ],
)
def test_windows_must_be_in_the_data(start, windows, length, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        profiles.windows_of(np.zeros((1440, 2)), start, windows, length)


def test_windows_are_means():
    minutes = np.arange(1440.0)[:, None]
    assert profiles.windows_of(minutes, 7.5, 2, 10)[:, 0].tolist() == [454.5, 464.5, 474.5]
    assert profiles.windows_of(minutes, 7.0, 1019, 1)[-1, 0] == 1439


# The shipped days


def test_shipped_days(quarters):
    assert len(quarters.days) == 12
    assert quarters.load.shape == (12 * 96, len(HOUSEHOLDS))
    assert quarters.generation.shape == (12 * 96, len(PANELS))
    energy = {day: quarters.day(day).generation.sum() / 4 / len(PANELS) for day in quarters.days}  # kWh per kW
    for clear, changeable, dull in (
        ("2016-01-14", "2016-01-20", "2016-01-08"),
        ("2016-04-08", "2016-04-21", "2016-04-04"),
        ("2016-07-25", "2016-07-07", "2016-07-28"),
        ("2016-10-13", "2016-10-19", "2016-10-04"),
    ):
        assert energy[clear] > energy[changeable] > energy[dull] > 0
    assert quarters.generation.max() < 1
    night = quarters.time.astype("datetime64[h]").astype(int) % 24 < 4
    assert not quarters.generation[night].any()
    with pytest.raises(ValueError, match=r"day must be one of '2016-01-08', .*; got '2016-03-27'"):
        quarters.day("2016-03-27")


def test_licence_and_size_of_the_shipped_files():
    folder = scenarios.folder("pem")
    notice = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("Open Database License", "Database Contents License", "opendatacommons.org/licenses/odbl/1.0",
                  "Copyright (c) 2019-2026 by University of Kassel", "simbench` 1.6.3"):  # fmt: skip
        assert words in notice
    assert sum(len(path.read_bytes()) for path in folder.iterdir()) < 300_000


def day(names, values, drop=None, again=None):
    """A file of the quarters of a day, one left out or repeated."""
    order = [k for k in range(96) if k != drop]
    if again is not None:
        order.insert(again, again)
    rows = [f"2016-07-25 {k // 4:02d}:{k % 4 * 15:02d},{values}" for k in order]
    return "\n".join([names, *rows]) + "\n"


def test_a_whole_day_is_read(tmp_path):
    path = tmp_path / "day.csv"
    names, values = ",".join(("time", *HOUSEHOLDS, *PANELS)), ",".join(["0.5"] * 13)
    rows = day(names, values)
    later = rows.split("\n", 1)[1].replace("2016-07-25", "2016-07-27")
    path.write_text(rows + later, encoding="utf-8")
    read = measured.read_quarters(path)
    assert read.days == ["2016-07-25", "2016-07-27"]
    assert (read.load == 0.5).all()
    with pytest.raises(ValueError, match=re.escape("day must be one of '2016-07-25', '2016-07-27'; got '2016-07-26'")):
        read.day("2016-07-26")


def test_days_with_a_repeated_and_a_missing_quarter_are_not_whole(quarters):
    """96 rows are not enough."""
    one = quarters.day("2016-07-25")
    time = one.time.copy()
    time[7] = time[6]
    assert one._replace(time=time).days == []


def test_quarters_refuse(tmp_path):
    names = ",".join(("time", *HOUSEHOLDS, *PANELS))
    values = ",".join(["1"] * 13)
    path = tmp_path / "bad.csv"
    for text, message in (
        (f"{names}\n2016-07-25 07:00,{values}\n2016-07-25 07:15,{values[:-1]}-3\n",
         "bad.csv, line 3: PV8 must be a number, finite and >= 0, got '-3'"),
        (f"{names}\n2016-07-25 00:00+02:00,{values}\n",
         "bad.csv, line 2: time must be like 2016-07-25 07:15, without an offset from UTC, got "
         "'2016-07-25 00:00+02:00'"),
        (day(names, values, drop=7), "bad.csv, line 9: time 2016-07-25 01:45 is due, got 2016-07-25 02:00; whole days"),
        (day(names, values, again=7), "bad.csv, line 10: time 2016-07-25 02:00 is due, got 2016-07-25 01:45"),
        (day(names, values, again=7, drop=50), "bad.csv, line 10: time 2016-07-25 02:00 is due"),  # 96 rows
        (day(names, values, drop=0), "bad.csv, line 2: time 2016-07-25 00:00 is due, got 2016-07-25 00:15"),
        (day(names, values, drop=95), "bad.csv: the last day ends before 2016-07-25 23:45"),
        (f"{names}\n25.07.2016,{values}\n", "bad.csv, line 2: time must be like 2016-07-25 07:15,"),
        (f"{names}\n2016-07-25 07:00,{values},1\n", "bad.csv, line 2: 14 values are needed, got 15"),
        ("time,PV1\n2016-07-25 07:00,1\n", "bad.csv: columns must be time, H0-A"),
        (names, "bad.csv: no rows"),
    ):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=re.escape(message)):
            measured.read_quarters(path)
    with pytest.raises(ValueError, match="no data file"):
        measured.read_quarters(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("columns", "factor", "message"),
    [
        (PANELS[2:3], 1000.0, r"scaled.csv, line \d+: PV3 must be at most 1.5 kW per kW of rating, got \d+"),
        (PANELS, 5.0, r"scaled.csv, line \d+: PV\d must be at most 1.5 kW per kW of rating"),
        (HOUSEHOLDS[1:2], 300.0, "scaled.csv: H0-B must be in multiples of its mean .* got 275.5.*; is the unit W"),
    ],
)
def test_absolute_power_is_refused(tmp_path, columns, factor, message):
    """Columns of the shipped file in other units: watts for kilowatts, a plant of 5 kW, a household in watts."""
    lines = (scenarios.folder("pem") / "simbench-2016.csv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split(",")
    path = tmp_path / "scaled.csv"

    def scaled(line):
        cells = line.split(",")
        return ",".join(
            str(float(cell) * factor) if name in columns else cell for name, cell in zip(names, cells, strict=True)
        )

    path.write_text("\n".join([lines[0], *map(scaled, lines[1:])]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        measured.read_quarters(path)


# Communities


def test_homes_are_measured_days_scaled(quarters):
    """Without noise and with one home's shift undone, load is a mixture of the household profiles."""
    day = quarters.day("2016-07-25")
    made = profiles.community(day, 40, 3, load_noise=0.0, cloud_noise=0.0)
    assert (made.load >= 0).all()
    assert (made.generation >= 0).all()
    # A day's use is at most what the most of a range, 6000 kWh a year, makes of the thirstiest profile.
    days = day.load.mean(axis=0) * 24 / (366 * 24)
    use = made.load.sum(axis=0) / 60
    assert (use >= 2000 * days.min() * (1 - 1e-9)).all()
    assert (use <= 6000 * days.max() * (1 + 1e-9)).all()
    # Generation in multiples of the profile's energy is the rating.
    owners = made.generation.sum(axis=0) > 0
    energies = day.generation.sum(axis=0) / 4
    ratings = made.generation.sum(axis=0)[owners, None] / 60 / energies
    assert (((ratings >= 3) & (ratings <= 10)).any(axis=1)).all()


def test_noise_moves_no_energy(quarters):
    day = quarters.day("2016-07-07")
    calm = profiles.community(day, 30, 1, load_noise=0.0, cloud_noise=0.0)
    noisy = profiles.community(day, 30, 1)
    np.testing.assert_allclose(noisy.load.sum(axis=0), calm.load.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(noisy.generation.sum(axis=0), calm.generation.sum(axis=0), rtol=1e-12)
    assert np.abs(noisy.generation - calm.generation).max() > 0.1


def test_clear_days_stay_smooth(quarters):
    """Mean change from minute to minute against the mean: several times as large under passing clouds."""
    rough = {}
    for day in ("2016-07-25", "2016-07-07"):
        total = profiles.community(quarters.day(day), 100, 0).generation[480:1080].sum(axis=1)
        rough[day] = np.abs(np.diff(total)).mean() / total.mean()
    assert rough["2016-07-07"] > 2 * rough["2016-07-25"]


def test_first_homes_stay_the_same(quarters):
    day = quarters.day("2016-10-13")
    few, many = profiles.community(day, 7, 5), profiles.community(day, 60, 5)
    np.testing.assert_allclose(few.load, many.load[:, :7], rtol=1e-12)
    np.testing.assert_allclose(few.generation, many.generation[:, :7], rtol=1e-12)
    for name, values in few.fields.items():
        np.testing.assert_allclose(values, many.fields[name][:7], rtol=1e-12)
    other = profiles.community(day, 7, 6)
    assert not np.allclose(other.load, few.load)


@pytest.mark.parametrize("homes", [10, 50, 300])
def test_shares_of_owners(quarters, homes):
    made = profiles.community(quarters.day("2016-10-13"), homes, 2, pv_share=0.3, battery_share=0.5)
    owners = made.generation.any(axis=0)
    assert abs(owners.sum() - 0.3 * homes) <= 2
    assert abs((made.fields["battery_capacity"][owners] > 0).sum() - 0.5 * owners.sum()) <= 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pv_share": 1.2}, "pv_share must be in [0, 1], got 1.2"),
        ({"pv_rating": (5.0, 2.0)}, "pv_rating must be two values 0 < low <= high, got (5.0, 2.0)"),
        ({"annual_use": (0.0, 2.0)}, "annual_use must be two values 0 < low <= high, got (0.0, 2.0)"),
        ({"cloud_noise": -1.0}, "cloud_noise must be finite and >= 0, got -1.0"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"homes": 0}, "homes must be a whole number >= 1, got 0"),
        ({"cloud_cover": 0.3}, "cloud_cover is for a clear sky; sky is None, got cloud_cover=0.3"),
        ({"sky": np.zeros(1440), "cloud_cover": 1.0}, "cover must be in (0, 1), got 1.0"),
    ],
)
def test_communities_refuse(quarters, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        profiles.community(quarters.day("2016-10-13"), **{"homes": 3, **fields})


def test_communities_take_one_day(quarters):
    with pytest.raises(ValueError, match="day must hold 96 quarters of an hour, got 1152"):
        profiles.community(quarters, 3)


# Optional sources


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simbench", None)
    monkeypatch.setitem(sys.modules, "pvlib", None)
    with pytest.raises(ImportError, match=r"simbench is needed here: pip install 'p2penv\[simbench\]'"):
        measured.simbench_year()
    with pytest.raises(ImportError, match=r"pvlib is needed here: pip install 'p2penv\[clearsky\]'"):
        profiles.clear_sky("2016-07-25", 51.3, 9.5)


def test_extras_are_imported_only_when_used():
    code = (
        "import sys; from p2penv.pem.scenario import load_scenario; load_scenario(homes=2, windows=1); "
        "print(*{'simbench', 'pvlib', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("", "")


def test_the_year_in_the_layout_of_the_package(monkeypatch):
    """A package of the same shape: dates day first, load profiles named by ``_pload``, relative to the peak."""
    stamps = ["24.07.2016 23:45", *(f"25.07.2016 {k // 4:02d}:{k % 4 * 15:02d}" for k in range(96))]
    ramp = np.arange(97.0)
    load = {f"{name}_pload": (k + 1) * ramp / 97 for k, name in enumerate(HOUSEHOLDS)}
    tables = {"load": {"time": stamps, **load}, "renewables": dict.fromkeys(PANELS, ramp / 200)}
    fake = types.SimpleNamespace(get_all_simbench_profiles=lambda scenario: tables)
    monkeypatch.setitem(sys.modules, "simbench", fake)
    year = measured.simbench_year()
    np.testing.assert_allclose(year.load.mean(axis=0), 1.0)
    np.testing.assert_allclose(year.load[:, 4], ramp / 48)
    assert year.days == ["2016-07-25"]
    assert str(year.day("2016-07-25").time[1]) == "2016-07-25T00:15"
    tables["renewables"]["PV2"] = np.where(ramp == 5, -0.1, ramp)
    with pytest.raises(ValueError, match=r"the installed simbench has -0\.1 for PV2 at 2016-07-25 01:00:00"):
        measured.simbench_year()
    del tables["renewables"]["PV3"], tables["load"]["H0-C_pload"]
    with pytest.raises(ValueError, match="the installed simbench lacks the profiles H0-C_pload, PV3"):
        measured.simbench_year()


def test_the_shipped_days_are_those_of_the_package(quarters):
    pytest.importorskip("simbench")
    year = measured.simbench_year()
    assert len(year.days) == 364  # the clock is changed on two
    for day in quarters.days:
        np.testing.assert_allclose(quarters.day(day).load, year.day(day).load, atol=6e-5)
        np.testing.assert_allclose(quarters.day(day).generation, year.day(day).generation, atol=6e-5)


def test_clear_sky_of_pvlib():
    """Solar noon at 9.5° E in summer time is 2 h − 38 min after 12:00 UTC + equation of time (6.5 min in late July)."""
    pytest.importorskip("pvlib")
    sky = profiles.clear_sky("2016-07-25", 51.3, 9.5, zone="Europe/Berlin")
    assert sky.shape == (1440,)
    assert 0.75 < sky.max() < 0.95
    assert sky.argmax() / 60 == pytest.approx(14 - 38 / 60 + 6.5 / 60, abs=0.1)
    light = np.flatnonzero(sky)
    assert light[-1] - light[0] == pytest.approx(15.6 * 60, abs=20)
    with pytest.raises(ValueError, match="no midnight of '2016-07-25' in zone 'Nowhere/None'"):
        profiles.clear_sky("2016-07-25", 51.3, 9.5, zone="Nowhere/None")
    with pytest.raises(ValueError, match=re.escape("latitude must be in [-90, 90], got 91.0")):
        profiles.clear_sky("2016-07-25", 91.0, 9.5)


def test_communities_under_a_clear_sky(quarters):
    """A home's generation is rating × .85 × sky × cloud index, shifted; of clouds it keeps a quarter at least."""
    day, sky = quarters.day("2016-10-13"), np.maximum(np.sin(np.pi * (np.arange(1440) - 360) / 720), 0.0)
    made = profiles.community(day, 40, 3, sky=sky, cloud_cover=0.4)
    measured_homes = profiles.community(day, 40, 3)
    np.testing.assert_array_equal(made.load, measured_homes.load)
    owners = made.generation.any(axis=0)
    np.testing.assert_array_equal(owners, measured_homes.generation.any(axis=0))
    most = made.generation.max(axis=0)[owners]
    assert ((most > 0.85 * 3.0 * 0.7) & (most <= 0.85 * 10.0)).all()
    # On a clear day every home is its rating times the sky.
    clear = profiles.community(day, 40, 3, sky=sky, cloud_cover=1e-6)
    rating = clear.generation.max(axis=0)[owners] / 0.85
    assert ((rating >= 3.0 - 1e-6) & (rating <= 10.0)).all()
    shifts = clear.generation[:, owners].argmax(axis=0) - 720
    assert (np.abs(shifts) <= 10).all()
    assert np.unique(shifts).size > 5
    for home, shift, rated in zip(np.flatnonzero(owners), shifts, rating, strict=True):
        whole = 0.85 * rated * np.roll(sky, shift)
        np.testing.assert_allclose(clear.generation[:, home], whole, atol=1e-6)
        assert (made.generation[:, home] <= whole * (1 + 1e-9)).all()
        assert (made.generation[:, home] >= 0.25 * whole * (1 - 1e-9)).all()
    # Clouds are shared in the main: what homes keep of the sky moves together.
    noon = slice(600, 840)
    kept = made.generation[noon, owners] / np.maximum(clear.generation[noon, owners], 1e-9)
    assert np.mean(np.corrcoef(kept.T)[np.triu_indices(owners.sum(), 1)]) > 0.3
    for bad in (sky[:-1], np.where(np.arange(1440) == 3, np.nan, sky), sky - 1.0):
        with pytest.raises(ValueError, match="sky must be 1440 values, finite and >= 0"):
            profiles.community(day, 3, sky=bad)


def test_cloud_index_and_generation():
    assert profiles.cloud_index(0.5, np.zeros(1))[0] == pytest.approx(1 - 0.75 * 0.5**3.4)
    index = profiles.cloud_index(0.5, np.array([-20.0, 20.0]))  # clear and overcast
    np.testing.assert_allclose(index, [1.0, 0.25], atol=1e-6)
    power = profiles.pv_power(np.array([0.0, 0.8]), index, np.array([2.0, 5.0]), 0.9)
    np.testing.assert_allclose(power, [[0, 0], [0.8 * 0.25 * 0.9 * 2, 0.8 * 0.25 * 0.9 * 5]], rtol=1e-5)
    own = profiles.pv_power(np.array([0.0, 0.8]), np.full((2, 2), [1.0, 0.5]), np.array([2.0, 5.0]), 1.0)
    np.testing.assert_allclose(own[1], [1.6, 2.0])
    with pytest.raises(ValueError, match=re.escape("cover must be in (0, 1), got 1.0")):
        profiles.cloud_index(1.0, np.zeros(1))
    with pytest.raises(ValueError, match=re.escape("performance must be in (0, 1], got 0.0")):
        profiles.pv_power(np.ones(1), np.ones(1), np.ones(1), 0.0)


# Homes in the Smart* layout


def smart(tmp_path, rows, header="time,use_kW,gen_kW", name="home.csv"):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def minute(k, use=1.0, gen=0.5, day="2014-07-25"):
    return f"{day} {7 + k // 60:02d}:{k % 60:02d}:00,{use},{gen}"


def test_a_good_file(tmp_path):
    reading = readers.read_smart(smart(tmp_path, [minute(k, k / 10, k / 20) for k in range(90)]))
    assert reading.findings == readers.Findings(90, 1, 0, 0, 0, 0, False, "local, not named", "kW")
    np.testing.assert_allclose(reading.load, np.arange(90) / 10)
    np.testing.assert_allclose(reading.generation, np.arange(90) / 20)
    assert str(reading.time[0]) == "2014-07-25T07:00"
    assert str(reading.time[-1]) == "2014-07-25T08:29"


def test_header_of_the_published_files(tmp_path):
    """Names with units in brackets, single appliances after them, a byte order mark."""
    rows = [minute(k, 1000, 500) + ",3,text" for k in range(3)]
    path = smart(tmp_path, rows, "\ufeffDate & Time,use [W],gen [W],Furnace [kW],note")
    reading = readers.read_smart(path)
    np.testing.assert_allclose(reading.load, 1.0)
    np.testing.assert_allclose(reading.generation, 0.5)
    assert reading.findings.unit == "W"
    without = readers.read_smart(smart(tmp_path, [minute(k).rsplit(",", 1)[0] for k in range(3)], "time,use_kW"))
    np.testing.assert_array_equal(without.generation, 0.0)
    assert readers.read_smart(smart(tmp_path, rows, "time,use,gen,a,b"), unit="W").load[0] == 1.0


def test_repairs_are_reported(tmp_path):
    """A gap of two rows, a blank cell, a repeated row, two rows swapped, and standby power at night."""
    rows = [minute(k, k, 0.1 * k - 0.05) for k in range(20)]
    rows[3] = minute(3, "", 0.25)
    rows[10], rows[11] = rows[11], rows[10]
    rows = rows[:6] + rows[8:] + [rows[-1]]
    reading = readers.read_smart(smart(tmp_path, rows))
    found = reading.findings
    # Two rows of two columns and a cell.
    assert (found.rows, found.gaps, found.duplicates, found.disordered, found.negative) == (19, 5, 1, 1, 1)
    np.testing.assert_allclose(reading.load, np.arange(20))
    np.testing.assert_allclose(reading.generation, np.maximum(0.1 * np.arange(20) - 0.05, 0), atol=1e-12)


def test_generation_with_the_sign_of_load_is_turned(tmp_path):
    reading = readers.read_smart(smart(tmp_path, [minute(k, 1, -0.2 * k) for k in range(5)]))
    assert reading.findings.reversed
    np.testing.assert_allclose(reading.generation, 0.2 * np.arange(5))


def test_a_glitch_turns_nothing(tmp_path):
    """One reading of −0.5 kW among 599 around zero, of a home without panels: no generation with the sign of load."""
    rows = [minute(k, 1, -0.5 if k == 77 else 0.1) for k in range(600)]
    with pytest.raises(ValueError, match=re.escape("home.csv, line 79: gen_kW must be >= -0.1 kW, got -0.5 kW")):
        readers.read_smart(smart(tmp_path, rows))
    # Panels in winter: power for four hours of twenty-four, a little standby in the others.
    winter = [f"2014-01-25 {k // 60:02d}:{k % 60:02d},1,{-0.8 if 600 <= k < 840 else 0.05}" for k in range(1440)]
    reading = readers.read_smart(smart(tmp_path, winter))
    assert reading.findings.reversed
    assert reading.generation.sum() == pytest.approx(240 * 0.8)


def test_times_the_clock_skips_are_refused_with_the_zone(tmp_path):
    """A file on standard time while the clock of New York is put forward, 02:00 to 03:00 on 9 March 2014."""
    rows = [f"2014-03-09 {1 + k // 60:02d}:{k % 60:02d}:00,1,{k / 100}" for k in range(150)]
    path = smart(tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"line 62: the clock of America/New_York skips '2014-03-09 02:00:00'; a file on standard time"
    ):
        readers.read_smart(path, zone="America/New_York")
    reading = readers.read_smart(path, zone="Etc/GMT+5")
    assert (len(reading.load), reading.findings.gaps, reading.findings.duplicates) == (150, 0, 0)
    # The clock's own minutes around it are one after the other.
    moved = [row for row in rows if " 02:" not in row]
    assert readers.read_smart(smart(tmp_path, moved), zone="America/New_York").findings.gaps == 0


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([minute(0), minute(1, "abc")], None, "home.csv, line 3: use_kW must be a number, finite, got 'abc'"),
        ([minute(0), minute(1, 1, "inf")], None, "home.csv, line 3: gen_kW must be a number, finite, got 'inf'"),
        ([minute(0), minute(1, -2)], None, "home.csv, line 3: use_kW must be >= -0.1 kW, got -2 kW"),
        ([minute(0), minute(1, 1, -2)], None, "home.csv, line 3: gen_kW must be >= -0.1 kW, got -2 kW"),
        ([minute(0, 900), minute(1, 900)], None,
         "home.csv: half of all readings of use_kW above 0.1 kW are at least 900 kW, which no home has"),
        ([minute(0, 0.5, 4000), minute(1, 0.5, 0), minute(2, 0.5, 4000)], None,
         "home.csv: half of all readings of gen_kW above 0.1 kW are at least 4000 kW, which no home has"),
        ([minute(0), minute(1), minute(1, 2)], None,
         "home.csv, line 4: a second reading of the same time with other values, [2.0, 0.5] kW after [1.0, 0.5] kW in "
         "line 3"),
        ([minute(0), minute(1), minute(2), minute(19)], None,
         "home.csv, after line 4: no values for 16 minutes, at most 15 between two readings can be filled"),
        ([minute(0, ""), minute(1), minute(2)], None, "home.csv, after line 2: no values for 1 minutes"),
        ([minute(0, ""), minute(1, "")], None, "home.csv: a column without values"),
        ([minute(0)], None, "home.csv: at least two readings are needed, got 1"),
        (["25/07/2014 07:00,1,1"], None,
         "home.csv, line 2: time must be like 2014-07-25 07:01:00 or seconds since 1970, got '25/07/2014 07:00'"),
        ([minute(0), "1406286060,1,1"], None,
         "home.csv, line 3: times of different kinds, got '1406286060' after '2014-07-25 07:00:00'"),
        (["1406286000,1,1", "1406286060,1,1"], None,
         "home.csv: times are seconds since 1970; give the zone of the home's clock"),
        (["2014-11-02 01:59:00-04:00,1,1", "2014-11-02 01:00:00-05:00,1,1"], None,
         "home.csv, line 3: the offset from UTC changes, got '2014-11-02 01:00:00-05:00'; give the zone"),
        (["2014-07-25 07:00:00,1,1", "2014-07-25 07:00:01,1,1"], None,
         "home.csv: readings must be whole minutes apart, got 1 seconds"),
        ([*[minute(k) for k in range(5)], "2014-07-25 07:05:30,1,1"], None,
         "home.csv, line 7: time is off the steps of 1 minutes by 30 s"),
        ([minute(0)], "time,use_kWh,gen_kWh", "home.csv, line 1: the unit must be kW or W, average power, got 'kWh'"),
        ([minute(0)], "time,use_kW,gen_W", "home.csv, line 1: units differ, W and kW"),
        ([minute(0)], "time,use,gen", "home.csv, line 1: no unit in time, use, gen; give unit='kW' or unit='W'"),
        ([minute(0)], "time,load_kW,gen_kW",
         "home.csv, line 1: one column time, one use_kW and at most one gen_kW are needed, got time, load_kW, gen_kW"),
        ([minute(0), "2014-07-25 07:01:00,1"], None, "home.csv, line 3: 3 values are needed, got 2"),
        ([], None, "home.csv: no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_repaired_is_refused(tmp_path, rows, header, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        readers.read_smart(smart(tmp_path, rows, header or "time,use_kW,gen_kW"))


def test_arguments_of_the_reader(tmp_path):
    path = smart(tmp_path, [minute(0), minute(1)])
    with pytest.raises(ValueError, match="unknown time zone 'Mars/Base'; an IANA name"):
        readers.read_smart(path, zone="Mars/Base")
    with pytest.raises(ValueError, match=re.escape("unit must be one of 'kW', 'W'; got 'MW'")):
        readers.read_smart(path, unit="MW")
    with pytest.raises(ValueError, match="units differ, W and kW"):
        readers.read_smart(path, unit="W")
    with pytest.raises(ValueError, match="unknown time zone 5; an IANA name"):
        readers.read_smart(path, zone=5)
    for gap in (-5, "a", 1.5):
        with pytest.raises(ValueError, match=re.escape(f"max_gap must be a whole number >= 0, got {gap!r}")):
            readers.read_smart(path, max_gap=gap)
    reading = readers.read_smart(path, day=datetime.date(2014, 7, 25))
    for date in ("25.07.2014", "2014-07", "2014-07-25T05", "2014-02-30", "hello"):
        with pytest.raises(ValueError, match=re.escape(f"day must be a date like 2014-07-25, got {date!r}")):
            readers.read_smart(path, day=date)
        with pytest.raises(ValueError, match=re.escape(f"date must be a date like 2014-07-25, got {date!r}")):
            readers.day_of([reading], date, windows=1)
    with pytest.raises(ValueError, match=re.escape("start must be on a whole minute, got 7.013")):
        readers.day_of([reading], "2014-07-25", start=7.013, windows=1)
    with pytest.raises(ValueError, match=re.escape("start must be an hour in [0, 24), got 24.0")):
        readers.day_of([reading], "2014-07-25", start=24.0, windows=1)
    (tmp_path / "latin.csv").write_bytes("time,use_kW,gen_kW,Küche\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv, after line 0: not a CSV file in UTF-8"):
        readers.read_smart(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match="no data file"):
        readers.read_smart(tmp_path / "none.csv")


def test_seconds_and_offsets_are_shown_on_the_home_s_clock(tmp_path):
    """07:00 in New York in July is 11:00 UTC."""
    seconds = [f"{1406286000 + 60 * k},1,1" for k in range(3)]
    reading = readers.read_smart(smart(tmp_path, seconds), zone="America/New_York")
    assert str(reading.time[0]) == "2014-07-25T07:00"
    assert reading.findings.zone == "America/New_York"
    fixed = readers.read_smart(smart(tmp_path, [f"2014-07-25T07:0{k}:00-04:00,1,1" for k in range(3)]))
    assert str(fixed.time[0]) == "2014-07-25T07:00"
    assert fixed.findings.zone == "UTC-04:00"
    zulu = readers.read_smart(
        smart(tmp_path, [f"2014-07-25T11:0{k}:00Z,1,1" for k in range(3)]), zone="America/New_York"
    )
    np.testing.assert_array_equal(zulu.time, fixed.time)


def test_the_hour_that_repeats_when_the_clock_is_put_back(tmp_path):
    """01:00 to 01:59 twice with other values: readable with the zone, refused without it."""
    stamps = [f"{1 + k // 60:02d}:{k % 60:02d}" for k in range(60)] * 2 + ["02:00"]
    rows = [f"2014-11-02 {stamp}:00,{k / 100},0" for k, stamp in enumerate(stamps)]
    path = smart(tmp_path, rows)
    with pytest.raises(ValueError, match="if the clock was put back there, name the zone"):
        readers.read_smart(path)
    reading = readers.read_smart(path, zone="America/New_York")
    np.testing.assert_allclose(reading.load, np.arange(121) / 100)
    assert reading.findings.gaps == reading.findings.duplicates == 0


def test_only_the_day_asked_for_is_checked(tmp_path):
    """Before it a bad value, after it a gap of a day."""
    rows = [minute(0, "bad", day="2014-07-24"), *map(minute, range(30)), minute(0, day="2014-07-27")]
    path = smart(tmp_path, rows)
    with pytest.raises(ValueError, match="line 2: use_kW must be a number"):
        readers.read_smart(path)
    reading = readers.read_smart(path, day="2014-07-25")
    assert (reading.findings.rows, len(reading.load)) == (30, 30)
    with pytest.raises(ValueError, match=r"home.csv: no readings on 2014-07-26, on the clock 'local, not named'"):
        readers.read_smart(path, day="2014-07-26")
    later = smart(tmp_path, [f"{1406286000 + 60 * k + 13 * 3600},1,1" for k in range(3)])  # midnight in UTC
    assert len(readers.read_smart(later, zone="America/New_York", day="2014-07-25").load) == 3
    with pytest.raises(ValueError, match=r"home.csv: no readings on 2014-07-25, on the clock 'Asia/Tokyo'"):
        readers.read_smart(later, zone="Asia/Tokyo", day="2014-07-25")


def test_homes_in_files_are_a_market(tmp_path):
    """From CSVs of two homes to windows in which one sells to the other what it has left over."""
    for home, gen in ((1, 2.0), (2, 0.0)):
        smart(tmp_path, [minute(k, 0.5 * home, gen) for k in range(11)], name=f"{home}.csv")
    readings = [readers.read_smart(tmp_path / f"{home}.csv") for home in (1, 2)]
    generation, load = readers.day_of(readings, "2014-07-25", windows=10)
    env = PEM(Scenario(generation=generation, load=load, flexibility=0.0), response="agent")
    info = env.step(env.params, env.initial(env.params, {}, 1), np.zeros((1, 2, 5)), {}).info
    np.testing.assert_allclose(info["net"], [[1.5, -1.0]])
    np.testing.assert_allclose(60.0 * info["sold"], [[1.0, 0.0]])
    np.testing.assert_allclose(60.0 * info["payment"].sum(1), -80.0 * 0.5)


def test_half_hours_and_days_of_homes(tmp_path):
    """Readings every half hour, of two homes, as windows of an hour."""
    paths = []
    for home in (1, 2):
        rows = [f"2014-07-25 {k // 2:02d}:{k % 2 * 30:02d},{home * k},{k}" for k in range(48)]
        paths.append(smart(tmp_path, rows, name=f"{home}.csv"))
    homes = [readers.read_smart(path, max_gap=60) for path in paths]
    assert homes[0].findings.minutes == 30
    generation, load = readers.day_of(homes, "2014-07-25", windows=11, minutes=60)
    np.testing.assert_allclose(generation, np.repeat((2 * np.arange(7, 19) + 0.5)[:, None], 2, axis=1))
    np.testing.assert_allclose(load, generation * [1, 2])
    with pytest.raises(
        ValueError, match="minutes must be a multiple of 30, the time between readings of home 0; got 1"
    ):
        readers.day_of(homes, "2014-07-25")
    with pytest.raises(ValueError, match="windows missing in the data: home 0 has readings from 2014-07-25T00:00"):
        readers.day_of(homes, "2014-07-25", windows=17, minutes=60)
    with pytest.raises(ValueError, match="windows missing in the data"):
        readers.day_of(homes, "2014-07-26", windows=1, minutes=30)
    with pytest.raises(ValueError, match="readings of at least one home are needed"):
        readers.day_of([], "2014-07-25", windows=1, minutes=30)


def test_watts_in_a_matrix_of_power_are_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("a,b\n" + "0,0\n" * 6 + "1,700\n2,900\n3,800\n", encoding="utf-8")
    assert readers.read_matrix(path).max() == 900.0  # preferences may be as large
    with pytest.raises(ValueError, match=r"m.csv: half of all readings of b above 0.1 kW are at least 800 kW"):
        readers.read_matrix(path, power=True)
    path.write_text("0,0\n0,30\n1,60\n", encoding="utf-8")
    assert readers.read_matrix(path, power=True).max() == 60.0


def test_matrices(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("1,2\n3,4\n\n", encoding="utf-8")
    np.testing.assert_array_equal(readers.read_matrix(path), [[1, 2], [3, 4]])
    path.write_text("a,b\n1,2\n3,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("m.csv, line 3: b must be a number, finite, got 'x'")):
        readers.read_matrix(path)
