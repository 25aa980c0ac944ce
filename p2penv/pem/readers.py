"""Files of measurements: tables of numbers, and single homes in the layout of the UMass Smart* data.

Smart*: Barker, Mishra, Irwin, Cecchet, Shenoy, Albrecht, "Smart*: an open data set and tools for enabling research in
sustainable homes", SustKDD 2012. One CSV a home with a time, the home's use and its generation, other columns ignored.
What can be repaired is and is reported; what cannot is refused, naming file, line and value.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.tables import Table, read_table
from p2penv.pem.profiles import minute_of_day

Floats = NDArray[np.float64]

# Inverters draw a little at night and meters are off by a little: readings down to this count as zero [kW].
STANDBY = 0.1
# No home uses or generates this much half of the time at which it uses or generates anything [kW].
IMPLAUSIBLE = 50.0
# Generation of a home has the sign of load if this share of its readings is below zero, and none above.
REVERSED = 0.1


def read_matrix(path: Any, *, power: bool = False) -> Floats:
    """Numbers ``(rows, columns)`` of a CSV, one row a window and one column a home; a line of names is skipped.

    Args:
        path: CSV file.
        power: whether it holds kW, which homes must be able to use or generate: watts are refused, as in half of the
            readings above standby a home has at most 50 kW. A smaller unit cannot be told from small homes, and time
            not at all: the rows have none.

    Raises:
        ValueError: names file, line or column, and value.
    """
    table = read_table(path, header=False)
    try:
        [float(cell) for cell in table.rows[0]]
    except ValueError:
        table = read_table(path)
    values = table.numbers(range(len(table.names)))
    if power:
        for name, series in zip(table.names, values.T, strict=True):
            _plausible(table.file, name, series)
    return values


def _plausible(where: str, name: str, series: Floats) -> None:
    """Refuse power that no home has [kW]."""
    middle = float(np.median(series[series > STANDBY])) if (series > STANDBY).any() else 0.0
    if middle > IMPLAUSIBLE:
        raise ValueError(
            f"{where}: half of all readings of {name} above {STANDBY:g} kW are at least {middle:g} kW, which no home "
            "has; is the unit W?"
        )


class Findings(NamedTuple):
    """What a reader found in a file, and repaired."""

    rows: int  # read, of the day if one was asked for
    minutes: int  # between readings
    gaps: int  # readings filled in by straight lines: missing rows and blank cells
    duplicates: int  # rows left out because they repeat an earlier one
    disordered: int  # rows that were earlier than the one before them
    negative: int  # readings a little below zero, set to zero
    reversed: bool  # whether generation was negative and has been turned
    zone: str  # of the clock of the result: an IANA name, an offset from UTC, or "local, not named"
    unit: str  # in the file, "kW" or "W"


class Reading(NamedTuple):
    """One home, regularly in time."""

    time: NDArray[np.datetime64]  # (M,) on the home's clock; an hour lacks or repeats where the clock is changed
    load: Floats  # (M,) [kW]
    generation: Floats  # (M,) [kW]
    findings: Findings


def read_smart(
    path: Any, *, zone: str | None = None, unit: str | None = None, day: str | None = None, max_gap: int = 15
) -> Reading:
    """One home's file with columns time, use_kW and gen_kW, also named as in ``Date & Time,use [kW],gen [kW]``.

    Times are ISO dates with or without an offset from UTC, or seconds since 1970. Without ``gen`` the home has no
    generation. Generation is turned if a tenth of its readings or more are below standby, −0.1 kW, and none are above
    0.1 kW. Readings are taken for watts called kW, and refused, where half of those above standby exceed 50 kW.

    Args:
        path: CSV file.
        zone: IANA name of the home's time zone; needed for seconds and where offsets change.
        unit: "kW" or "W", needed if the header does not say.
        day: like "2014-07-25"; rows of other days, on the home's clock, are left out and not checked.
        max_gap: longest gap that is filled by straight lines, ≥ 0 [minutes].

    Raises:
        ValueError: names file, line and value: a missing column, an unknown or doubtful unit, a time that cannot be
            read, that the home's clock skips or that is off the regular steps, two readings of one time, a long gap,
            negative use, generation of both signs; or an argument out of range.
    """
    longest = validation.count("max_gap", max_gap, 0)
    day = None if day is None else validation.date("day", day)
    table = read_table(path)
    columns, found_unit = _columns(table, unit)
    scale = {"kW": 1.0, "W": 1e-3}[found_unit]
    seconds, clock, zone_name = _times(table, columns[0], zone)
    if day is not None:
        kept = np.flatnonzero(clock(seconds).astype("datetime64[D]") == np.datetime64(day, "D"))
        if kept.size == 0:
            raise ValueError(f"{table.file}: no readings on {day}, on the clock {zone_name!r}")
        seconds = seconds[kept]
        table = table._replace(lines=[table.lines[k] for k in kept], rows=[table.rows[k] for k in kept])
    values = scale * table.numbers(columns[1:], blank=True)
    order = np.argsort(seconds, kind="stable")
    disordered = int((np.diff(seconds) < 0).sum())
    seconds, values, lines = seconds[order], values[order], np.array(table.lines)[order]

    again = np.flatnonzero(np.diff(seconds) == 0) + 1
    for row in again:
        if not np.array_equal(values[row], values[row - 1], equal_nan=True):
            raise ValueError(
                f"{table.file}, line {lines[row]}: a second reading of the same time with other values, "
                f"{values[row].tolist()} kW after {values[row - 1].tolist()} kW in line {lines[row - 1]}; "
                "if the clock was put back there, name the zone"
            )
    seconds, values, lines = (np.delete(array, again, axis=0) for array in (seconds, values, lines))
    if len(seconds) < 2:
        raise ValueError(f"{table.file}: at least two readings are needed, got {len(seconds)}")
    minutes = _step(table, seconds, lines)
    index = (seconds - seconds[0]) // (60 * minutes)
    whole = np.full((index[-1] + 1, 2), np.nan)
    whole[index, : values.shape[1]] = values
    if values.shape[1] == 1:
        whole[:, 1] = 0.0
    line = np.zeros(len(whole), np.int64)
    line[index] = lines
    line = np.maximum.accumulate(line)  # of the last row at or before each step

    gaps = _fill(table, whole, line, longest // minutes, minutes)
    load, generation = whole.T
    backwards = generation.max() <= STANDBY and (generation < -STANDBY).mean() >= REVERSED
    generation = -generation if backwards else generation
    negative = 0
    for name, series in ((table.names[columns[1]], load), (table.names[columns[-1]], generation)):
        low = int(np.argmin(series))
        if series[low] < -STANDBY:
            raise ValueError(
                f"{table.file}, line {line[low]}: {name} must be >= {-STANDBY:g} kW, got {series[low]:g} kW; "
                "net readings of a meter are not what a home uses or generates"
            )
        negative += int((series < 0).sum())
        _plausible(table.file, name, series)
    steps = seconds[0] + 60 * minutes * np.arange(len(whole))
    findings = Findings(
        len(table.rows), minutes, gaps, len(again), disordered, negative, bool(backwards), zone_name, found_unit
    )
    return Reading(clock(steps), np.maximum(load, 0.0), np.maximum(generation, 0.0), findings)


def day_of(
    readings: Sequence[Reading], date: str, *, start: float = 7.0, windows: int = 720, minutes: int = 1
) -> tuple[Floats, Floats]:
    """Generation and load ``(windows + 1, n)`` of homes on one day, as a scenario takes them [kW].

    Args:
        readings: one a home, of :func:`read_smart`.
        date: like "2014-07-25", on each home's own clock.
        start: hour of the first window, in [0, 24) and on a whole minute.
        windows: how many; the data must hold one more.
        minutes: of a window, a multiple of the time between readings.

    Raises:
        ValueError: names the home, or an argument out of range.
    """
    count = validation.count("windows", windows) + 1
    first = np.datetime64(validation.date("date", date), "m") + np.timedelta64(minute_of_day("start", start), "m")
    result = []
    for home, reading in enumerate(readings):
        step = reading.findings.minutes
        if validation.count("minutes", minutes) % step:
            raise ValueError(
                f"minutes must be a multiple of {step}, the time between readings of home {home}; got {minutes}"
            )
        begin = np.flatnonzero(reading.time == first)
        length = count * (minutes // step)
        if begin.size == 0 or begin[0] + length > len(reading.time):
            raise ValueError(
                f"windows missing in the data: home {home} has readings from {reading.time[0]} to {reading.time[-1]}, "
                f"needed are {windows} windows of {minutes} minutes from {first} on and one more"
            )
        rows = slice(begin[0], begin[0] + length)
        result.append([series[rows].reshape(count, -1).mean(axis=1) for series in (reading.generation, reading.load)])
    if not result:
        raise ValueError("readings of at least one home are needed")
    return np.stack([home[0] for home in result], axis=1), np.stack([home[1] for home in result], axis=1)


def _columns(table: Table, unit: str | None) -> tuple[list[int], str]:
    """Indices of time, use and, if there is one, generation; and the unit."""
    if unit is not None:
        validation.choice("unit", unit, ("kW", "W"))
    times = [k for k, name in enumerate(table.names) if name.lower() in ("time", "date & time", "timestamp")]
    found: list[int] = []
    units = set()
    for quantity in ("use", "gen"):
        matches = [
            (k, re.fullmatch(rf"{quantity}(?:[ _]*\[?(\w+)\]?)?", name, re.I)) for k, name in enumerate(table.names)
        ]
        named = [(k, match) for k, match in matches if match]
        if len(named) > 1 or (quantity == "use" and not named) or len(times) != 1:
            raise ValueError(
                f"{table.file}, line 1: one column time, one use_kW and at most one gen_kW are needed, "
                f"got {', '.join(table.names)}"
            )
        for k, match in named:
            found.append(k)
            units.add(match[1])
    known = {name: kind for name in units if name for kind in ("kW", "W") if name.lower() == kind.lower()}
    wrong = [name for name in units if name and name not in known]
    if wrong:
        raise ValueError(f"{table.file}, line 1: the unit must be kW or W, average power, got {wrong[0]!r}")
    said = {known[name] for name in units if name}
    if unit is None and (None in units or not said):
        raise ValueError(f"{table.file}, line 1: no unit in {', '.join(table.names)}; give unit='kW' or unit='W'")
    said |= {unit} if unit is not None else set()
    if len(said) > 1:
        raise ValueError(f"{table.file}, line 1: units differ, {' and '.join(sorted(said))}")
    return [times[0], *found], said.pop()


def _times(table: Table, column: int, zone: str | None) -> tuple[NDArray[np.int64], Any, str]:
    """Seconds since 1970 (of the local clock if nothing more is known), how to show them, and the zone's name."""
    try:
        place = None if zone is None else ZoneInfo(zone)
    except (KeyError, ValueError, TypeError, OSError):  # not there, or not a name at all
        raise ValueError(f"unknown time zone {zone!r}; an IANA name like America/New_York is needed") from None
    seconds: list[int] = []
    kinds: set[str] = set()
    offsets: set[datetime.timedelta] = set()
    for line, row in zip(table.lines, table.rows, strict=True):
        cell = row[column].strip()
        stamp = _stamp(table, line, cell)
        kinds.add("seconds" if isinstance(stamp, float) else "naive" if stamp.tzinfo is None else "offset")
        if len(kinds) > 1:
            raise ValueError(
                f"{table.file}, line {line}: times of different kinds, got {cell!r} after {table.rows[0][column]!r}"
            )
        if isinstance(stamp, float):
            moment = stamp
        elif stamp.tzinfo is None and place is not None:
            local = stamp.replace(tzinfo=place)
            if local.astimezone(datetime.UTC).astimezone(place).replace(tzinfo=None) != stamp:
                raise ValueError(
                    f"{table.file}, line {line}: the clock of {zone} skips {cell!r}; a file on standard time all year "
                    "has another zone, like Etc/GMT+5"
                )
            moment = local.timestamp()
            # The second pass through the hour that repeats when the clock is put back.
            if seconds and moment <= seconds[-1] and stamp.replace(tzinfo=place, fold=1).timestamp() > seconds[-1]:
                moment = stamp.replace(tzinfo=place, fold=1).timestamp()
        else:
            offsets.add(stamp.utcoffset() or datetime.timedelta(0))
            if place is None and len(offsets) > 1:
                raise ValueError(
                    f"{table.file}, line {line}: the offset from UTC changes, got {cell!r}; "
                    "give the zone of the home's clock"
                )
            moment = stamp.replace(tzinfo=stamp.tzinfo or datetime.UTC).timestamp()
        if moment != int(moment):
            raise ValueError(f"{table.file}, line {line}: time must be on a whole second, got {cell!r}")
        seconds.append(int(moment))
    if place is None and "seconds" in kinds:
        raise ValueError(f"{table.file}: times are seconds since 1970; give the zone of the home's clock")
    shift = next(iter(offsets), datetime.timedelta(0))

    def clock(moments: NDArray[np.int64]) -> NDArray[np.datetime64]:
        if place is None:
            return (moments + round(shift.total_seconds())).astype("datetime64[s]").astype("datetime64[m]")
        local = [datetime.datetime.fromtimestamp(int(moment), place).replace(tzinfo=None) for moment in moments]
        return np.array(local, "datetime64[m]")

    name = zone or ("local, not named" if "naive" in kinds else f"UTC{_signed(shift)}")
    return np.array(seconds, np.int64), clock, name


def _stamp(table: Table, line: int, cell: str) -> Any:
    if re.fullmatch(r"\d{9,10}(\.\d*)?", cell):
        return float(cell)
    try:
        return datetime.datetime.fromisoformat(cell)
    except ValueError:
        raise ValueError(
            f"{table.file}, line {line}: time must be like 2014-07-25 07:01:00 or seconds since 1970, got {cell!r}"
        ) from None


def _signed(shift: datetime.timedelta) -> str:
    minutes = round(shift.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _step(table: Table, seconds: NDArray[np.int64], lines: NDArray[np.int64]) -> int:
    """Minutes between readings: the most frequent distance, of which all others must be multiples."""
    distances, counts = np.unique(np.diff(seconds), return_counts=True)
    step = int(distances[np.argmax(counts)])
    if step % 60:
        raise ValueError(f"{table.file}: readings must be whole minutes apart, got {step} seconds")
    off = (seconds - seconds[0]) % step
    if off.any():
        row = int(np.argmax(off > 0))
        raise ValueError(
            f"{table.file}, line {lines[row]}: time is off the steps of {step // 60} minutes by {off[row]} s"
        )
    return step // 60


def _fill(table: Table, whole: Floats, line: NDArray[np.int64], longest: int, minutes: int) -> int:
    """Fill short gaps of each column in place; how many readings lacked."""
    filled = 0
    for series in whole.T:
        known = np.flatnonzero(~np.isnan(series))
        if known.size == 0:
            raise ValueError(f"{table.file}: a column without values")
        for before, after in pairwise([-1, *known.tolist(), len(series)]):
            missing = after - before - 1
            if missing > longest or (missing and (before < 0 or after == len(series))):
                raise ValueError(
                    f"{table.file}, after line {line[max(before, 0)]}: no values for {missing * minutes} minutes, "
                    f"at most {longest * minutes} between two readings can be filled"
                )
            filled += missing
        series[:] = np.interp(np.arange(len(series)), known, series[known])
    return filled
