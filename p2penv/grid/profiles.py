"""Days of prosumers: hourly demand and solar power made of measured profiles, equipment, partners.

Households are mixtures of the measured profiles the markets share (:mod:`p2penv.core.quarters`), businesses of the
commercial and agricultural ones of the extract beside the feeder. Every prosumer draws from a stream of its own, so
that a small community is the beginning of a large one but for its partners.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.core.quarters import HOUSEHOLDS, PANELS, read_quarters
from p2penv.core.tables import read_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BUSINESSES = ("G0-A", "G1-A", "G1-B", "G1-C", "G2-A", "G3-A", "G4-A", "G4-B", "G5-A", "G6-A", "L0-A", "L1-A", "L2-A")
HOURS = 24
HOURS_2016 = 366 * 24
SCALES = ("households", "paper")
MEAN_PEAK = 35.0
"""Mean of the peak loads 10 to 60 kW that the paper's equipment belongs to [kW]."""
_GOLDEN = 0.6180339887498949


class Community(NamedTuple):
    """A day of N prosumers and what they own."""

    demand: Floats  # (25, N) [kW]; the last row is midnight again
    solar: Floats  # (25, N) [kW]
    place: Floats  # (N,) in [0, 1), where along the buses
    size: Floats  # (N,) equipment relative to the paper's
    fields: dict[str, Floats]  # further fields of a scenario, (N,) each


def business_day(date: str, path: Any = None) -> Floats:
    """Hourly loads ``(24, 13)`` of BUSINESSES on a day, in multiples of each one's peak of the year.

    Args:
        date: like "2016-10-13".
        path: of a CSV with time and BUSINESSES as columns; None: the shipped extract.

    Raises:
        ValueError: no such file, other columns, bad values, or a day it lacks; lists what there is.
    """
    table = read_table(scenarios.folder("grid") / "simbench-business-2016.csv" if path is None else path)
    if tuple(table.names) != ("time", *BUSINESSES):
        raise ValueError(f"{table.file}: columns must be time, {', '.join(BUSINESSES)}; got {', '.join(table.names)}")
    days = [row[0][:10] for row in table.rows]
    whole = sorted({day for day in days if days.count(day) == HOURS})
    validation.choice("day", date, whole)
    values = table.numbers(range(1, len(table.names)), low=0.0)
    return values[[day == date for day in days]]


def community(
    prosumers: int,
    seed: int = 0,
    *,
    day: str,
    scale: str = "households",
    households: Any = None,
    businesses: Any = None,
    dispatch_share: float = 0.25,
    storage_share: float = 0.5,
    solar_share: float = 0.5,
    solar_rating: tuple[float, float] = (0.5, 1.5),
    peak: tuple[float, float] = (10.0, 60.0),
    annual_use: tuple[float, float] = (2000.0, 6000.0),
    dispatch_linear: float = 0.045,
    dispatch_quadratic: float = 0.002,
    dispatch_max: tuple[float, float] = (20.0, 720.0),
    storage_power: float = 5.0,
    storage_min: float = 20.0,
    storage_max: float = 100.0,
    initial_charge: float = 50.0,
    storage_cost: float = 1e-4,
) -> Community:
    """Prosumers made of the profiles of one day.

    With ``scale="paper"`` a prosumer is a business or a farm with a peak load drawn from ``peak``, and equipment is as
    given. With ``"households"`` it is a home with a year's use drawn from ``annual_use`` (log-uniform), and power and
    energy of its equipment are scaled by its peak load over MEAN_PEAK, quadratic costs by the inverse, so that homes
    face the same marginal costs. Who has what is spread evenly over the numbers of the prosumers.

    Args:
        prosumers: how many, ≥ 2.
        seed: a whole number ≥ 0.
        day: of both extracts, like "2016-10-13".
        scale: "households" or "paper".
        households: CSV of households and panels every 15 minutes; None: the shipped one.
        businesses: CSV of businesses by the hour; None: the shipped one.
        dispatch_share: of prosumers, in [0, 1].
        storage_share: of prosumers, in [0, 1].
        solar_share: of prosumers, in [0, 1].
        solar_rating: range of ratings in multiples of the peak load.
        peak: range of peak loads [kW].
        annual_use: range of a year's use [kWh].
        dispatch_linear: c^di [€/kWh].
        dispatch_quadratic: Q [€/kW²h].
        dispatch_max: range of p̄^di [kW].
        storage_power: of those with storage [kW].
        storage_min: x̲ [kWh].
        storage_max: x̄ [kWh].
        initial_charge: x_0 [kWh].
        storage_cost: q_st [€/kW²h].

    Raises:
        ValueError: an argument out of range, or a day the data lack.
    """
    if validation.count("prosumers", prosumers) < 2:
        raise ValueError(f"prosumers must be at least 2, got {prosumers!r}")
    validation.seed("seed", seed)
    validation.choice("scale", scale, SCALES)
    for name, share in (("dispatch", dispatch_share), ("storage", storage_share), ("solar", solar_share)):
        validation.number(f"{name}_share", share, 0.0, 1.0)
    for name, pair in (("solar_rating", solar_rating), ("peak", peak), ("annual_use", annual_use),
                       ("dispatch_max", dispatch_max)):  # fmt: skip
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] < np.inf:
            raise ValueError(f"{name} must be two values 0 < low <= high, got {tuple(pair)!r}")
    for name, value in (("dispatch_linear", dispatch_linear), ("dispatch_quadratic", dispatch_quadratic),
                        ("storage_power", storage_power), ("storage_min", storage_min), ("storage_max", storage_max),
                        ("initial_charge", initial_charge), ("storage_cost", storage_cost)):  # fmt: skip
        validation.number(name, value, 0.0)
    start = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    offset = start.uniform(size=3)
    seeds = [np.random.SeedSequence(seed, spawn_key=(1, k)) for k in range(prosumers)]
    u = np.stack([np.random.default_rng(each).uniform(size=9) for each in seeds])
    path = scenarios.folder("pem") / "simbench-2016.csv" if households is None else households
    quarters = read_quarters(path).day(day)
    weight = 0.5 + 0.5 * u[:, 2]
    home = scale == "households"
    source = quarters.load.reshape(HOURS, 4, -1).mean(axis=1) if home else business_day(day, businesses)
    first, second = (np.floor(source.shape[1] * u[:, k]).astype(np.int64) for k in (0, 1))
    mixed = weight * source[:, first] + (1.0 - weight) * source[:, second]
    if home:
        demand = annual_use[0] * (annual_use[1] / annual_use[0]) ** u[:, 3] / HOURS_2016 * mixed
        size = demand.max(axis=0) / MEAN_PEAK
    else:
        demand = (peak[0] + (peak[1] - peak[0]) * u[:, 3]) * mixed / mixed.max(axis=0)
        size = np.ones(prosumers)
    number = np.arange(prosumers)
    dispatches, stores, shines = (
        (offset[k] + step * number) % 1.0 < share
        for k, (step, share) in enumerate(
            ((_GOLDEN, dispatch_share), (2**0.5 - 1.0, storage_share), (3**0.5 - 1.0, solar_share))
        )
    )
    rating = demand.max(axis=0) * (solar_rating[0] + (solar_rating[1] - solar_rating[0]) * u[:, 4])
    facing = np.floor(len(PANELS) * u[:, 5]).astype(np.int64)
    panels = quarters.generation.reshape(HOURS, 4, -1).mean(axis=1)
    solar = np.where(shines, rating, 0.0) * panels[:, facing]
    most = dispatch_max[0] + (dispatch_max[1] - dispatch_max[0]) * u[:, 6]
    stored = np.where(stores, size, 0.0)
    fields = {
        "dispatch_max": np.where(dispatches, size * most, 0.0),
        "dispatch_quadratic": dispatch_quadratic / size,
        "dispatch_linear": np.full(prosumers, dispatch_linear),
        "storage_power": storage_power * stored,
        "storage_min": storage_min * stored,
        "storage_max": storage_max * stored,
        "initial_charge": initial_charge * stored,
        "storage_cost": storage_cost / size,
    }
    return Community(_around(demand), _around(solar), u[:, 7], size, fields)


def _around(day: Floats) -> Floats:
    """The day, and its first hour again for the end."""
    return np.concatenate([day, day[:1]])


def random_pairs(
    prosumers: int, rng: np.random.Generator, partners: int | None = 4, density: float | None = None
) -> Ints:
    """Pairs ``(M, 2)`` that trade, i < j: a path through all prosumers in random order, and random pairs beside it.

    Args:
        prosumers: how many, ≥ 2.
        rng: of the draws.
        partners: most of a prosumer, ≥ 2; pairs are added until hardly any fit. Unused where ``density`` is given.
        density: part of all pairs that trade, in (0, 1]; at least the path.

    Raises:
        ValueError: an argument out of range.
    """
    order = rng.permutation(prosumers)
    path = {(min(a, b), max(a, b)) for a, b in zip(order[:-1].tolist(), order[1:].tolist(), strict=True)}
    if density is not None:
        validation.number("density", density, 0.0, 1.0, open_low=True)
        every = np.stack(np.triu_indices(prosumers, 1), axis=1)
        want = round(density * len(every))
        others = [(i, j) for i, j in rng.permutation(every).tolist() if (i, j) not in path]
        chosen = path | set(others[: max(want - len(path), 0)])
    else:
        most = validation.count("partners", partners)
        if most < 2:
            raise ValueError(f"partners must be at least 2, for a path through all prosumers; got {partners!r}")
        chosen = set(path)
        degree = np.bincount(np.array(sorted(path)).ravel(), minlength=prosumers)
        for i, j in rng.integers(prosumers, size=(8 * most * prosumers, 2)).tolist():
            pair = (min(i, j), max(i, j))
            if i != j and pair not in chosen and degree[i] < most and degree[j] < most:
                chosen.add(pair)
                degree[i] += 1
                degree[j] += 1
    return np.array(sorted(chosen), np.int64)


__all__ = ["BUSINESSES", "HOUSEHOLDS", "SCALES", "Community", "business_day", "community", "random_pairs"]
