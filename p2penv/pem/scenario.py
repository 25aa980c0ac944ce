"""Scenarios of the private energy market: parameters, the shipped day, random days.

Source: Xie, Wang, Hong, Thai, "Privacy preserving distributed energy trading" (PEM).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.core.quarters import read_quarters, simbench_year
from p2penv.pem import profiles as made_of
from p2penv.pem.readers import read_matrix
from p2penv.pem.rules import Prices

Floats = NDArray[np.float64]

# In the default preference k = c·80(1 + load): at c = 1 the load as it is is best at this price [cents/kWh].
CONTENT_PRICE = 80.0
_GOLDEN = 0.6180339887498949
# Profiles of a community that are no file: the year of the installed package.
YEAR = "simbench"
PLACE = {"latitude", "longitude", "zone"}


def preferences(attachment: Floats, load: Floats) -> Floats:
    """Preference k = c·80(1 + load) ``(T + 1, n)`` of attachments c ``(n,)`` to base load ``(T + 1, n)`` [cents/h]."""
    return attachment * CONTENT_PRICE * (1.0 + load)


@dataclass(frozen=True, eq=False)
class Scenario:
    """A day of T windows of n ≥ 2 homes with load, and, some of them, generation and a battery.

    Scalars given for a field of the homes are spread over them. Everything is checked when it is built. Profiles have a
    row more than there are windows, for the observation after the last. Power is the average of a window in kW, energy
    in kWh, money in cents.

    Raises:
        ValueError: names field, home, value and what is allowed.
    """

    generation: Floats
    """(T + 1, n) g ≥ 0 [kW]"""
    load: Floats
    """(T + 1, n) base load ≥ 0 [kW]"""
    preference: Floats = None  # type: ignore[assignment]  # an array once built
    """(T + 1, n) k > 0 in the utility k log(1 + l + eb) of load and charging, from (n,) or a scalar too [cents/h];
    None: c·80(1 + load) with c spread evenly over [1, 1.3]"""
    loss: Floats = field(default_factory=lambda: np.array(0.1))
    """(n,) e in (0, 1), what charging counts as load in the utility; not the battery's efficiency"""
    battery_capacity: Floats = field(default_factory=lambda: np.array(0.0))
    """(n,) ≥ 0; 0 without battery [kWh]"""
    battery_power: Floats = field(default_factory=lambda: np.array(0.0))
    """(n,) ≥ 0, most it charges or discharges, measured at the home [kW]"""
    charge_efficiency: Floats = field(default_factory=lambda: np.array(0.95))
    """(n,) in (0, 1], of energy taken that is stored"""
    discharge_efficiency: Floats = field(default_factory=lambda: np.array(0.95))
    """(n,) in (0, 1], of energy stored that is given back"""
    initial_charge: Floats = field(default_factory=lambda: np.array(0.0))
    """(n,) in [0, 1], share of the capacity that is charged at the start"""
    flexibility: Floats = field(default_factory=lambda: np.array(0.4))
    """(n,) in [0, 1): load can be moved by this share of the base load either way"""
    buyback: float = 80.0
    """pb < low, at which the grid buys [cents/kWh]"""
    low: float = 90.0
    """p_l ≤ high, least price of trades [cents/kWh]"""
    high: float = 110.0
    """p_h < retail, highest price of trades [cents/kWh]"""
    retail: float = 120.0
    """ps, at which the grid sells [cents/kWh]"""
    charge_value: float = 80.0
    """≥ 0, what energy left in a battery at the end is worth [cents/kWh]"""
    minutes: float = 1.0
    """> 0, length of a window"""
    start: float = 7.0
    """in [0, 24), hour of the day at which the first window starts"""
    name: str = "custom"

    def __post_init__(self) -> None:
        load = validation.floats("load", self.load)
        if load.ndim != 2 or load.shape[0] < 2 or load.shape[1] < 2:
            raise ValueError(
                "load must have shape (T + 1, n), a row for each of T >= 1 windows and one for the end, of n >= 2 "
                f"homes; got shape {load.shape}"
            )
        self._set("load", _profile("load", load, load.shape))
        self._set("generation", _profile("generation", self.generation, load.shape))
        if self.preference is None:
            spread = (0.5 + _GOLDEN * np.arange(load.shape[1])) % 1.0
            k = preferences(1.0 + 0.3 * spread, load)
        else:
            k = validation.floats("preference", self.preference)
            if k.shape in ((), load.shape[1:]):
                k = np.broadcast_to(k, load.shape)
        self._set("preference", _profile("preference", k, load.shape, open_low=True))
        for name, high, inside, below in (
            ("loss", 1.0, True, True),
            ("battery_capacity", np.inf, False, False),
            ("battery_power", np.inf, False, False),
            ("charge_efficiency", 1.0, True, False),
            ("discharge_efficiency", 1.0, True, False),
            ("initial_charge", 1.0, False, False),
            ("flexibility", 1.0, False, True),
        ):
            values = validation.vector(name, getattr(self, name), self.size, 0.0, high, open_low=inside)
            if below and (values >= high).any():
                home = int(np.argmax(values >= high))
                raise ValueError(f"{name}[{home}] must be below {high:g}, got {float(values[home])!r} (home_{home})")
            self._set(name, values)
        for name in ("buyback", "low", "high", "retail", "charge_value"):
            self._set(name, validation.number(name, getattr(self, name), 0.0))
        if not self.buyback < self.low <= self.high < self.retail:
            raise ValueError(
                f"prices out of order: buyback {self.buyback:g} < low {self.low:g} <= high {self.high:g} < retail "
                f"{self.retail:g} cents/kWh must hold"
            )
        self._set("minutes", validation.number("minutes", self.minutes, 0.0, open_low=True))
        self._set("start", made_of.hour_of_day("start", self.start))

    def __reduce__(self) -> tuple[type[Scenario], tuple[Any, ...]]:
        # Built anew when copied or unpickled: NumPy's copies could be written to.
        return type(self), tuple(getattr(self, each.name) for each in dataclasses.fields(self))

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    @property
    def size(self) -> int:
        """Number of homes n."""
        return self.load.shape[1]

    @property
    def windows(self) -> int:
        """Number of windows T."""
        return self.load.shape[0] - 1

    @property
    def hours(self) -> float:
        """Length of a window Δt [h]."""
        return self.minutes / 60.0

    @property
    def agents(self) -> list[str]:
        """Names of the homes."""
        return [f"home_{k}" for k in range(self.size)]

    @property
    def prices(self) -> Prices:
        """The four public prices [cents/kWh]."""
        return Prices(self.buyback, self.low, self.high, self.retail)

    def replace(self, **fields: Any) -> Scenario:
        """A changed copy. A changed load leaves preferences as they are, unless ``preference=None`` is given too.

        Raises:
            TypeError: unknown field.
            ValueError: whatever building a scenario raises.
        """
        scenarios.check_fields(type(self), fields)
        return dataclasses.replace(self, **fields)

    def select(self, homes: int | None = None, windows: int | None = None, seed: int | None = None) -> Scenario:
        """Some of the homes, chosen by the seed and in their order, and the first windows.

        A smaller choice is part of a larger one.

        Args:
            homes: how many, ≥ 2; all if None.
            windows: how many; all if None.
            seed: of the choice of homes, 0 if None.

        Raises:
            ValueError: more homes or windows than there are, or a seed without a number of homes.
        """
        validation.refuse_idle(Scenario.select, seed=(seed, homes is not None, "a choice of homes"))
        chance = validation.seed("seed", 0 if seed is None else seed)
        rows = self.windows if windows is None else validation.count("windows", windows)
        count = self.size if homes is None else validation.count("homes", homes, 2)
        if rows > self.windows:
            raise ValueError(
                f"windows missing in the data: {rows} asked for, scenario {self.name!r} has {self.windows}"
            )
        if count > self.size:
            raise ValueError(f"homes must be at most the {self.size} of scenario {self.name!r}, got {count}")
        if (rows, count) == (self.windows, self.size):
            return self
        chosen = np.sort(np.random.default_rng(chance).permutation(self.size)[:count])
        fields: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                fields[each.name] = value[chosen] if value.ndim == 1 else value[: rows + 1, chosen]
        return dataclasses.replace(self, **fields)

    @classmethod
    def random(cls, homes: int, windows: int, seed: int | None = None) -> Scenario:
        """A synthetic day from 07:00 to 19:00 in so many windows; needs no data files.

        The sun rises after the first windows and sets before the last ones, with clouds that all homes share and some
        of their own. About two of five homes have PV, at least one does and one does not; about a third have a battery,
        at least one does and one does not.

        Raises:
            ValueError: fewer than two homes, or no windows.
        """
        validation.count("homes", homes, 2)
        rng = np.random.default_rng(seed)
        minutes = 720.0 / validation.count("windows", windows)
        hour = 7.0 + (np.arange(windows + 1) + 0.5) * minutes / 60.0
        sun = np.maximum(np.sin(np.pi * (hour - 7.5) / 11.0), 0.0) * (np.abs(hour - 13.0) < 5.5)
        steps = max(made_of.PASSING / minutes, 1e-3)
        clouds = made_of.wander(rng.standard_normal((windows + 1, 1)), steps)
        index = made_of.cloud_index(0.5, 0.8 * clouds + 0.6 * rng.standard_normal((windows + 1, homes)))
        owns = _some(rng, homes, 0.4)
        rating = np.where(owns, rng.uniform(2.0, 6.0, homes), 0.0)
        habits = 1.0 + 0.5 * np.cos(2.0 * np.pi * (hour[:, None] - rng.uniform(6.0, 20.0, homes)) / 12.0)
        use = rng.uniform(0.3, 1.2, homes)
        load = use * habits * np.exp(0.3 * rng.standard_normal((windows + 1, homes)))
        capacity = np.where(_some(rng, homes, 1 / 3), rng.uniform(2.0, 10.0, homes), 0.0)
        return cls(
            generation=rating * sun[:, None] * index,
            load=load,
            preference=preferences(rng.uniform(1.0, 1.3, homes), load),
            loss=rng.uniform(0.05, 0.2, homes),
            battery_capacity=capacity,
            battery_power=0.4 * capacity,
            charge_efficiency=rng.uniform(0.9, 1.0, homes),
            discharge_efficiency=rng.uniform(0.9, 1.0, homes),
            initial_charge=rng.uniform(0.0, 1.0, homes),
            flexibility=rng.uniform(0.2, 0.6, homes),
            minutes=minutes,
            name=f"random-{homes}-{windows}" + ("" if seed is None else f"-{seed}"),
        )


def _some(rng: np.random.Generator, size: int, share: float) -> NDArray[np.bool_]:
    """Who of ``size`` ≥ 2 has something: at least one, and not everybody."""
    count = min(max(round(share * size), 1), size - 1)
    return rng.permutation(size) < count


def _profile(name: str, value: Any, shape: tuple[int, ...], *, open_low: bool = False) -> Floats:
    array = validation.floats(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as load has, got {array.shape}")
    wrong = ~np.isfinite(array) | (array < 0.0) | ((array <= 0.0) if open_low else False)
    if wrong.any():
        row, home = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}[{row}, {home}] must be finite and {'>' if open_low else '>='} 0, got {float(array[row, home])!r} "
            f"(window {row}, home_{home})"
        )
    array.flags.writeable = False
    return array


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return scenarios.names("pem")


def load_scenario(
    name: str | Path = "day300",
    *,
    homes: int | None = None,
    windows: int | None = None,
    seed: int | None = None,
    day: str | None = None,
    profiles: str | Path | None = None,
    pv: Literal["measured", "clear_sky"] | None = None,
    **overrides: Any,
) -> Scenario:
    """Load a shipped scenario, or one from a TOML file.

    A file has either a table ``[community]`` with the arguments of :func:`p2penv.pem.profiles.community`, ``profiles``,
    a CSV beside it, ``day``, ``windows`` and, for ``pv``, ``latitude``, ``longitude``, ``zone``, or profiles of its
    own: ``generation``, ``load`` and, if wanted, ``preference`` as lists of rows or as names of CSVs beside it with a
    row for each window and one for the end, and a column for each home. All other keys are fields of the scenario.

    Args:
        name: one of :func:`scenario_names`, or the path of a ``.toml`` file.
        homes: how many, ≥ 2. Of a community fewer are the first of more; else they are chosen from the file's.
        windows: how many; of a community any number within the day, else at most the file's.
        seed: of the community, or of the choice of homes.
        day: of the community's profiles, like "2016-07-25".
        profiles: of the community: ``"simbench"``, the whole year 2016 of that package (extra ``simbench``), or a CSV
            of the shipped layout; a relative path is looked for from the working directory, in a file beside it.
        pv: of the community: ``"measured"``, the profiles', which in SimBench's run an hour ahead of the sun, or
            ``"clear_sky"``, that of a clear sky at the community's place under random clouds (extra ``clearsky``).
        **overrides: fields to replace; ``minutes`` (whole) and ``start`` move and resize a community's windows.

    Raises:
        ValueError: unknown name (the error lists the known ones), windows missing in the data, bad values, or options
            that would do nothing.
        TypeError: unknown field.
        ImportError: a missing extra; names it.
    """
    table, parent = scenarios.read("pem", name)
    scenarios.check_fields(Scenario, overrides)
    if "community" in table:
        source = profiles if profiles in (None, YEAR) else Path(profiles).absolute()
        asked = {"homes": homes, "windows": windows, "seed": seed, "day": day, "profiles": source, "pv": pv}
        chosen = {key: value for key, value in asked.items() if value is not None}
        moved = {key: overrides[key] for key in ("minutes", "start") if key in overrides}
        fields = _of_community(table | moved, chosen, parent, str(name))
        return scenarios.build(Scenario, fields | overrides, str(name))
    for key in ("generation", "load", "preference"):
        if isinstance(table.get(key), str):
            table[key] = read_matrix(parent / table[key], power=key != "preference")
    ready = scenarios.build(Scenario, table, str(name))
    return adapt(ready, homes=homes, windows=windows, seed=seed, day=day, profiles=profiles, pv=pv, **overrides)


def adapt(
    scenario: Scenario,
    *,
    homes: int | None = None,
    windows: int | None = None,
    seed: int | None = None,
    day: str | None = None,
    profiles: str | Path | None = None,
    pv: str | None = None,
    **overrides: Any,
) -> Scenario:
    """A scenario whose homes are given, not made of profiles, changed by the arguments of :func:`load_scenario`.

    Raises:
        ValueError: what only a community can choose, or what :meth:`Scenario.select` and building a scenario raise.
        TypeError: unknown field.
    """
    for key, value in (("day", day), ("profiles", profiles), ("pv", pv)):
        if value is not None:
            raise ValueError(f"{key} {value!r} cannot be chosen: the homes of scenario {scenario.name!r} are given")
    scenario = scenario.select(homes, windows, seed)
    return scenario.replace(**overrides) if overrides else scenario


def _of_community(table: Mapping[str, Any], chosen: Mapping[str, Any], parent: Any, name: str) -> dict[str, Any]:
    fields = dict(table)
    made = {**fields.pop("community"), **chosen}
    options = {"profiles", "day", "homes", "windows", "seed", "pv_share", "pv_rating", "annual_use", "battery_share"}
    options |= {"cloud_noise", "load_noise", "pv", "cloud_cover", *PLACE}
    if unknown := made.keys() - options:
        raise TypeError(f"unknown keys of [community] in scenario {name!r}: {', '.join(sorted(unknown))}")
    if missing := {"profiles", "day", "homes", "windows"} - made.keys():
        raise ValueError(f"[community] in scenario {name!r} lacks {', '.join(sorted(missing))}")
    source, date, windows = (made.pop(key) for key in ("profiles", "day", "windows"))
    # A file may describe its place and clouds whichever PV is asked for.
    place, cover = ({key: made.pop(key) for key in keys if key in made} for keys in (PLACE, ("cloud_cover",)))
    clear = validation.choice("pv", made.pop("pv", "measured"), ("measured", "clear_sky")) == "clear_sky"
    if clear and (missing := PLACE - place.keys()):
        raise ValueError(f"[community] in scenario {name!r} lacks {', '.join(sorted(missing))} for pv 'clear_sky'")
    day = (simbench_year() if source == YEAR else read_quarters(parent / source)).day(date)
    validation.count("homes", made["homes"], 2)
    if clear:
        made |= {"sky": made_of.clear_sky(date, **place), **cover}
    community = made_of.community(day, **made)
    start, minutes = fields.get("start", 7.0), fields.get("minutes", 1)
    length = int(minutes) if isinstance(minutes, float) and minutes.is_integer() else minutes
    generation, load = (
        made_of.windows_of(series, start, windows, length) for series in (community.generation, community.load)
    )
    owned = dict(community.fields)
    k = preferences(owned.pop("attachment"), load)
    return {"generation": generation, "load": load, "preference": k, **owned, **fields}
