"""Measured profiles of households and PV every 15 minutes, shared by the markets that use them.

Shipped are a few days of the SimBench database (see the notice beside the file); the whole year needs the extra
``simbench``. Nothing here uses the network.
"""

from __future__ import annotations

import datetime
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.core.tables import Table, read_table

Floats = NDArray[np.float64]

HOUSEHOLDS = ("H0-A", "H0-B", "H0-C", "H0-G", "H0-L")
PANELS = tuple(f"PV{k}" for k in range(1, 9))
QUARTERS = 96  # of an hour in a day
LISTED = 31  # days named one by one in an error
# More than this no panel gives, in kW per kW of rating; edges of clouds take it little above 1.
MOST_GENERATION = 1.5
# No household uses this many times its mean of the year over all days of a file; in the shipped extract, 1.1 times.
MOST_USE = 20.0


class Quarters(NamedTuple):
    """Profiles every 15 minutes.

    Those of SimBench, shipped or of the whole year, have PV about an hour ahead of the sun over Kassel, whose clock
    ``time`` is on: generation begins before sunrise. They are passed on as they are.
    """

    time: NDArray[np.datetime64]  # (M,) start of each quarter of an hour, on the clock of the source
    load: Floats  # (M, 5) of HOUSEHOLDS, in multiples of each one's mean of the year
    generation: Floats  # (M, 8) of PANELS, which face different ways [kW per kW of rating]

    @property
    def days(self) -> list[str]:
        """Dates with all their 96 quarters, each once."""
        dates, counts = np.unique(self.time.astype("datetime64[D]"), return_counts=True)
        _, distinct = np.unique(np.unique(self.time).astype("datetime64[D]"), return_counts=True)
        return [str(date) for date in dates[(counts == QUARTERS) & (distinct == QUARTERS)]]

    def day(self, date: str) -> Quarters:
        """The 96 quarters of one day.

        Raises:
            ValueError: the data lack it, or the clock was changed on it; lists what there is.
        """
        days = self.days
        if len(days) > LISTED and date not in days:
            raise ValueError(
                f"day must be one of the {len(days)} whole days from {days[0]} to {days[-1]}, like {days[0]!r}; got "
                f"{date!r}"
            )
        validation.choice("day", date, days)
        rows = self.time.astype("datetime64[D]") == np.datetime64(date)
        return Quarters(*(column[rows] for column in self))


def shipped() -> Quarters:
    """The shipped extract of SimBench: a clear, a changeable and a dull day of every season."""
    return read_quarters(scenarios.folder("pem") / "simbench-2016.csv")


def read_quarters(path: Any) -> Quarters:
    """Quarters of a CSV of the shipped layout: time, then HOUSEHOLDS, then PANELS; whole days in order.

    Households are relative to their mean of the year, panels to their rating: a panel above 1.5 kW per kW, or a
    household whose mean over the file is above 20 times that of the year, are taken for absolute power and refused.
    Smaller units than these cannot be told from dull days and empty homes. Nothing is repaired; what was found are the
    ``days`` of the result.

    Raises:
        ValueError: no such file, other columns, a bad or implausible value, or time that repeats, goes back, has a gap
            within a day or an offset from UTC; names file, line or column, and value.
    """
    table = read_table(path)
    names = ("time", *HOUSEHOLDS, *PANELS)
    if tuple(table.names) != names:
        raise ValueError(f"{table.file}: columns must be {', '.join(names)}; got {', '.join(table.names)}")
    stamps = []
    for line, row in zip(table.lines, table.rows, strict=True):
        try:
            stamps.append(datetime.datetime.fromisoformat(row[0]))
            if stamps[-1].tzinfo is not None:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{table.file}, line {line}: time must be like 2016-07-25 07:15, without an offset from UTC, got "
                f"{row[0]!r}"
            ) from None
    values = table.numbers(range(1, len(names)), low=0.0)
    _whole_days(table, stamps)
    load, generation = values[:, : len(HOUSEHOLDS)], values[:, len(HOUSEHOLDS) :]
    for name, mean in zip(HOUSEHOLDS, load.mean(axis=0).tolist(), strict=True):
        if mean > MOST_USE:
            raise ValueError(
                f"{table.file}: {name} must be in multiples of its mean of the year, at most {MOST_USE:g} on average, "
                f"got {mean:g}; is the unit W?"
            )
    if (bad := generation > MOST_GENERATION).any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{table.file}, line {table.lines[row]}: {PANELS[column]} must be at most {MOST_GENERATION:g} kW per kW of "
            f"rating, got {float(generation[row, column])!r}; is the unit W, or power not divided by the rating?"
        )
    return Quarters(np.array(stamps, "datetime64[m]"), load, generation)


def _whole_days(table: Table, stamps: list[datetime.datetime]) -> None:
    """Refuse times that are not 96 quarters a day, day after day."""
    midnight, quarter = datetime.time(0, 0), datetime.timedelta(minutes=15)
    due = datetime.datetime.combine(stamps[0], midnight)
    for line, stamp in zip(table.lines, stamps, strict=True):
        later = due.time() == midnight and stamp.time() == midnight and stamp > due
        if stamp != due and not later:
            raise ValueError(
                f"{table.file}, line {line}: time {due:%Y-%m-%d %H:%M} is due, got {stamp:%Y-%m-%d %H:%M}; whole days "
                "in order are needed, no quarter of an hour left out or repeated"
            )
        due = stamp + quarter
    if due.time() != midnight:
        raise ValueError(
            f"{table.file}: the last day ends before {due:%Y-%m-%d %H:%M}, quarters up to 23:45 are needed"
        )


def simbench_year() -> Quarters:
    """The whole year 2016 of the installed ``simbench`` package, as :func:`shipped` has a few days of it.

    Raises:
        ImportError: the extra is missing; names it.
        ValueError: the installed version lacks a profile, or has a bad value.
    """
    tables = extra("simbench", "simbench").get_all_simbench_profiles(0)
    load, generation = tables["load"], tables["renewables"]
    missing = [f"{name}_pload" for name in HOUSEHOLDS if f"{name}_pload" not in load]
    missing += [name for name in PANELS if name not in generation]
    if missing:
        raise ValueError(f"the installed simbench lacks the profiles {', '.join(missing)}")
    time = [datetime.datetime.strptime(stamp, "%d.%m.%Y %H:%M") for stamp in load["time"]]
    loads = np.stack([np.asarray(load[f"{name}_pload"], np.float64) for name in HOUSEHOLDS], axis=1)
    panels = np.stack([np.asarray(generation[name], np.float64) for name in PANELS], axis=1)
    for names, values in ((HOUSEHOLDS, loads), (PANELS, panels)):
        if (bad := ~(np.isfinite(values) & (values >= 0.0))).any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"the installed simbench has {float(values[row, column])!r} for {names[column]} at {time[row]}; "
                "finite values >= 0 are needed"
            )
    return Quarters(np.array(time, "datetime64[m]"), loads / loads.mean(axis=0), panels)


def extra(module: str, name: str) -> Any:
    """The module of an extra.

    Raises:
        ImportError: it is missing; names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here: pip install 'p2penv[{name}]'") from error
