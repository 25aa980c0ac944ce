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
from p2penv.core.tables import read_table

Floats = NDArray[np.float64]

HOUSEHOLDS = ("H0-A", "H0-B", "H0-C", "H0-G", "H0-L")
PANELS = tuple(f"PV{k}" for k in range(1, 9))
QUARTERS = 96  # of an hour in a day


class Quarters(NamedTuple):
    """Profiles every 15 minutes."""

    time: NDArray[np.datetime64]  # (M,) start of each quarter of an hour, on the clock of the source
    load: Floats  # (M, 5) of HOUSEHOLDS, in multiples of each one's mean of the year
    generation: Floats  # (M, 8) of PANELS, which face different ways [kW per kW of rating]

    @property
    def days(self) -> list[str]:
        """Dates with all their 96 quarters."""
        dates, counts = np.unique(self.time.astype("datetime64[D]"), return_counts=True)
        return [str(date) for date in dates[counts == QUARTERS]]

    def day(self, date: str) -> Quarters:
        """The 96 quarters of one day.

        Raises:
            ValueError: the data lack it, or the clock was changed on it; lists what there is.
        """
        validation.choice("day", date, self.days)
        rows = self.time.astype("datetime64[D]") == np.datetime64(date)
        return Quarters(*(column[rows] for column in self))


def shipped() -> Quarters:
    """The shipped extract of SimBench: a clear, a changeable and a dull day of every season."""
    return read_quarters(scenarios.folder("pem") / "simbench-2016.csv")


def read_quarters(path: Any) -> Quarters:
    """Quarters of a CSV of the shipped layout: time, then HOUSEHOLDS, then PANELS.

    Raises:
        ValueError: no such file, or it has other columns, or a bad value; names file, line and value.
    """
    table = read_table(path)
    names = ("time", *HOUSEHOLDS, *PANELS)
    if tuple(table.names) != names:
        raise ValueError(f"{table.file}: columns must be {', '.join(names)}; got {', '.join(table.names)}")
    stamps = []
    for line, row in zip(table.lines, table.rows, strict=True):
        try:
            stamps.append(datetime.datetime.fromisoformat(row[0]))
        except ValueError:
            raise ValueError(f"{table.file}, line {line}: time must be like 2016-07-25 07:15, got {row[0]!r}") from None
    values = table.numbers(range(1, len(names)), low=0.0)
    return Quarters(np.array(stamps, "datetime64[m]"), values[:, : len(HOUSEHOLDS)], values[:, len(HOUSEHOLDS) :])


def simbench_year() -> Quarters:
    """The whole year 2016 of the installed ``simbench`` package, as :func:`shipped` has a few days of it.

    Raises:
        ImportError: the extra is missing; names it.
        ValueError: the installed version lacks a profile.
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
