"""Profiles of households: measured quarter hours, minutes made of them, communities of homes, clear skies.

Shipped are a few days of the SimBench database (see the notice beside the file); the whole year and clear skies need
the extras ``simbench`` and ``clearsky``. Nothing here uses the network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from p2penv.core import validation
from p2penv.core.quarters import HOUSEHOLDS, PANELS, Quarters, extra

Floats = NDArray[np.float64]

DAY = 24 * 60  # minutes
BLOCK = 15  # minutes of a measured value
HOURS_2016 = 366 * 24
PASSING = 20.0  # minutes a cloud takes to pass


def upsample(blocks: Floats, noise: Floats, ceiling: Floats | None = None) -> Floats:
    """Finer values with the mean of each block kept exactly, never negative and never above the ceiling.

    Straight lines between the middles of the blocks, times exp(noise), cut at the ceiling. Then each block is scaled
    down to its mean, or moved towards its ceiling up to it; both keep the limits.

    Args:
        blocks: ``(B, m)`` means ≥ 0.
        noise: ``(B·r, m)``, r values a block; zero for the lines alone.
        ceiling: ``(B, m)`` ≥ ``blocks``, or None.

    Returns:
        ``(B·r, m)``.

    Raises:
        ValueError: negative means, a ceiling below them, or shapes that do not fit.
    """
    count, width = blocks.shape
    ratio = noise.shape[0] // count
    if noise.shape != (count * ratio, width) or ratio < 1:
        raise ValueError(f"noise must have shape ({count} * r, {width}), got {noise.shape}")
    if (blocks < 0).any():
        raise ValueError(f"blocks must be >= 0, got {float(blocks.min())!r}")
    if ceiling is not None and (ceiling < blocks).any():
        raise ValueError("ceiling must be at least the mean of every block")
    middle = (np.arange(count * ratio) + 0.5) / ratio - 0.5
    before = np.clip(np.floor(middle).astype(np.int64), 0, max(count - 2, 0))
    share = np.clip(middle - before, 0.0, 1.0)[:, None]
    lines = (1.0 - share) * blocks[before] + share * blocks[np.minimum(before + 1, count - 1)]
    fine = (lines * np.exp(noise)).reshape(count, ratio, width)
    if ceiling is not None:
        fine = np.minimum(fine, ceiling[:, None])
    mean, target = fine.mean(axis=1), blocks
    down = np.divide(target, mean, out=np.ones_like(mean), where=mean > 0)
    if ceiling is None:
        return (fine * down[:, None]).reshape(count * ratio, width)
    room = ceiling - mean
    up = np.divide(ceiling - target, room, out=np.ones_like(mean), where=room > 0)
    raised = ceiling[:, None] - (ceiling[:, None] - fine) * np.minimum(up, 1.0)[:, None]
    return np.where((mean > target)[:, None], fine * down[:, None], raised).reshape(count * ratio, width)


def clearest(blocks: Floats, around: int = 4) -> Floats:
    """Ceiling ``(B, m)`` of generation: the most within an hour either way [the unit of ``blocks``].

    What clouds leave of a clear sky at that time, estimated from the profile itself.
    """
    padded = np.pad(blocks, ((around, around), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1, axis=0).max(axis=-1)


def unsteadiness(blocks: Floats, around: int = 4) -> Floats:
    """How far each value ``(B, m)`` is off the mean of those an hour before and after, in [0, 1]; 0 on clear days."""
    padded = np.pad(blocks, ((around, around), (0, 0)))
    before, after = padded[: -2 * around], padded[2 * around :]
    total = before + 2.0 * blocks + after
    return np.divide(np.abs(before - 2.0 * blocks + after), total, out=np.zeros_like(blocks), where=total > 0)


def wander(noise: Floats, persistence: float = 5.0) -> Floats:
    """Independent standard normals ``(M, m)`` made autocorrelated: e-fold in ``persistence`` steps, variance 1."""
    keep = np.exp(-1.0 / persistence)
    drive = np.sqrt(1.0 - keep * keep) * noise
    drive[0] = noise[0]
    return np.asarray(lfilter([1.0], [1.0, -keep], drive, axis=0))


class Community(NamedTuple):
    """A day of homes in minutes, and what they own."""

    generation: Floats  # (1440, n) [kW]
    load: Floats  # (1440, n) [kW]
    fields: dict[str, Floats]  # further fields of a scenario, (n,) each; "attachment" is c in k = c·80(1 + load)


def community(
    day: Quarters,
    homes: int,
    seed: int = 0,
    *,
    pv_share: float = 0.4,
    pv_rating: tuple[float, float] = (3.0, 10.0),
    annual_use: tuple[float, float] = (2000.0, 6000.0),
    battery_share: float = 0.5,
    cloud_noise: float = 2.0,
    load_noise: float = 0.5,
    sky: Floats | None = None,
    cloud_cover: float | None = None,
) -> Community:
    """Homes made of the profiles of one day; the first ones stay the same whatever ``homes`` is.

    Each home draws from a stream of its own: a mixture of two household profiles, its yearly use (log-uniform), its
    PV profile and rating, minute noise of load, and a shift of up to ten minutes either way. Minute noise of generation
    is shared by all panels that face the same way (passing clouds) but for a part of each home's own; it grows with how
    unsteady the profile is, so that clear days stay smooth. Who has PV and who a battery is spread evenly over the
    numbers of the homes, so that small communities have nearly the shares of large ones.

    Args:
        day: 96 quarters (:meth:`Quarters.day`).
        homes: how many.
        seed: a whole number ≥ 0.
        pv_share: of homes, in [0, 1].
        pv_rating: range of PV ratings [kW].
        annual_use: range of a year's use [kWh].
        battery_share: of homes with PV, in [0, 1]; a tenth as many of those without have one.
        cloud_noise: standard deviation of log generation where the sky is fully unsteady.
        load_noise: standard deviation of log load within a quarter of an hour.
        sky: ``(1440,)`` irradiance of a clear sky (:func:`clear_sky`) [kW/m²]. Panels then lie flat under clouds of
            :func:`cloud_index`, shared but for a part of each home's own; the day's profiles of PV are not used.
        cloud_cover: median of the clouds' cover in (0, 1), with ``sky`` only; 0.5 if None.

    Raises:
        ValueError: an argument out of range.
    """
    homes = validation.count("homes", homes)
    validation.seed("seed", seed)
    for name, value in (("pv_share", pv_share), ("battery_share", battery_share)):
        validation.number(name, value, 0.0, 1.0)
    for name, pair in (("pv_rating", pv_rating), ("annual_use", annual_use)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] < np.inf:
            raise ValueError(f"{name} must be two values 0 < low <= high, got {tuple(pair)!r}")
    for name, value in (("cloud_noise", cloud_noise), ("load_noise", load_noise)):
        validation.number(name, value, 0.0)
    if len(day.load) != DAY // BLOCK:
        raise ValueError(f"day must hold {DAY // BLOCK} quarters of an hour, got {len(day.load)}")
    if sky is None and cloud_cover is not None:
        raise ValueError(f"cloud_cover is for a clear sky; sky is None, got cloud_cover={cloud_cover!r}")
    if sky is not None and (np.shape(sky) != (DAY,) or not (np.isfinite(sky) & (np.asarray(sky) >= 0.0)).all()):
        raise ValueError(f"sky must be {DAY} values, finite and >= 0 kW/m2, got shape {np.shape(sky)}")
    start = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    offset, clouds = start.uniform(size=2), start.standard_normal((DAY, len(PANELS)))
    has_pv = _spread(np.arange(homes), offset[0]) < pv_share
    # Batteries are spread over the homes with PV, and over those without, each counted for themselves.
    rank = np.where(has_pv, np.cumsum(has_pv), np.cumsum(~has_pv))
    has_battery = _spread(rank, offset[1]) < np.where(has_pv, battery_share, 0.1 * battery_share)
    rngs = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, home))) for home in range(homes)]
    u = np.stack([rng.uniform(size=12) for rng in rngs])
    own = np.stack([rng.standard_normal((DAY, 2)) for rng in rngs], axis=1)

    first, second = (np.floor(len(HOUSEHOLDS) * u[:, k]).astype(np.int64) for k in (0, 1))
    weight = 0.5 + 0.5 * u[:, 2]
    use = annual_use[0] * (annual_use[1] / annual_use[0]) ** u[:, 3] / HOURS_2016
    blocks = use * (weight * day.load[:, first] + (1.0 - weight) * day.load[:, second])
    load = upsample(blocks, load_noise * wander(own[..., 0]))

    rating = np.where(has_pv, pv_rating[0] + (pv_rating[1] - pv_rating[0]) * u[:, 4], 0.0)
    facing = np.floor(len(PANELS) * u[:, 5]).astype(np.int64)
    if sky is None:
        noise = np.sqrt(0.8) * wander(clouds)[:, facing] + np.sqrt(0.2) * wander(own[..., 1])
        noise *= cloud_noise * np.repeat(unsteadiness(day.generation), BLOCK, axis=0)[:, facing]
        generation = rating * upsample(day.generation[:, facing], noise, clearest(day.generation)[:, facing])
    else:
        noise = np.sqrt(0.8) * wander(clouds[:, :1], PASSING) + np.sqrt(0.2) * wander(own[..., 1], PASSING)
        index = cloud_index(0.5 if cloud_cover is None else cloud_cover, noise)
        generation = pv_power(np.asarray(sky, np.float64), index, rating)

    # At midnight up to ten minutes come from the other end of the day.
    shift = np.floor(21.0 * u[:, 6]).astype(np.int64) - 10
    rows = (np.arange(DAY)[:, None] - shift) % DAY
    capacity = np.where(has_battery, 2.0 + 8.0 * u[:, 7], 0.0)
    fields = {
        "attachment": 1.0 + 0.3 * u[:, 8],
        "loss": 0.05 + 0.15 * u[:, 9],
        "battery_capacity": capacity,
        "battery_power": 0.4 * capacity,
        "initial_charge": np.where(has_battery, 0.2 + 0.6 * u[:, 10], 0.0),
        "flexibility": 0.2 + 0.4 * u[:, 11],
    }
    return Community(np.take_along_axis(generation, rows, axis=0), np.take_along_axis(load, rows, axis=0), fields)


def _spread(index: NDArray[np.int64], offset: float) -> Floats:
    """Golden-ratio sequence: numbers in [0, 1) that are evenly spread whatever the length."""
    return np.asarray((offset + 0.6180339887498949 * index) % 1.0, np.float64)


def hour_of_day(name: str, value: float) -> float:
    """An hour in [0, 24).

    Raises:
        ValueError: names the argument.
    """
    hour = validation.number(name, value, 0.0)
    if hour >= 24.0:
        raise ValueError(f"{name} must be an hour in [0, 24), got {value!r}")
    return hour


def minute_of_day(name: str, value: float) -> int:
    """Minute of the day at which an hour in [0, 24) begins.

    Raises:
        ValueError: names the argument; between minutes, too.
    """
    minute = 60.0 * hour_of_day(name, value)
    if abs(minute - round(minute)) > 1e-6:
        raise ValueError(f"{name} must be on a whole minute, got {value!r}")
    return round(minute)


def windows_of(minutes: Floats, start: float, windows: int, length: int) -> Floats:
    """Means ``(windows + 1, ...)`` of windows of ``length`` minutes from ``start`` o'clock, the last for the end.

    Args:
        minutes: ``(M, ...)`` from midnight on.
        start: hour of the day.
        windows: how many.
        length: minutes of each.

    Raises:
        ValueError: a window starts between minutes or the data end before the last one does.
    """
    begin, count = (
        minute_of_day("start", start),
        (validation.count("windows", windows) + 1) * validation.count("minutes", length),
    )
    if begin + count > len(minutes):
        most = max((len(minutes) - begin) // length - 1, 0)
        raise ValueError(
            f"windows missing in the data: {windows} of {length} minutes from {start:g} h on, and one more for the "
            f"final observation, end after minute {len(minutes)} of the data; at most {most} fit"
        )
    return minutes[begin : begin + count].reshape(windows + 1, length, *minutes.shape[1:]).mean(axis=1)


def clear_sky(
    date: str, latitude: float, longitude: float, *, zone: str = "UTC", altitude: float = 0.0, turbidity: float = 3.0
) -> Floats:
    """Global horizontal irradiance ``(1440,)`` of a clear sky, minute by minute on the clock of ``zone`` [kW/m²].

    Model of Ineichen and Perez (2002) by ``pvlib``.

    Args:
        date: like "2016-07-25".
        latitude: north > 0 [degrees].
        longitude: east > 0 [degrees].
        zone: IANA name; on days the clock changes, minutes are counted from midnight.
        altitude: above the sea [m].
        turbidity: Linke's, about 2 (clear, cold) to 5 (hazy).

    Raises:
        ImportError: the extra is missing; names it.
        ValueError: a place off the Earth, or an unknown zone.
    """
    pvlib, pandas = extra("pvlib", "clearsky"), extra("pandas", "clearsky")
    validation.number("latitude", latitude, -90.0, 90.0)
    validation.number("longitude", longitude, -180.0, 180.0)
    try:
        midnight = pandas.Timestamp(date).tz_localize(zone)
    except (KeyError, ValueError) as error:
        raise ValueError(f"no midnight of {date!r} in zone {zone!r}: {error}") from None
    times = midnight + pandas.to_timedelta(np.arange(DAY) + 0.5, unit="min")
    place = pvlib.location.Location(latitude, longitude, tz=zone, altitude=altitude)
    # Otherwise pvlib asks pandas for the day of the year by a name that pandas is giving up.
    beyond = pvlib.irradiance.get_extra_radiation(np.asarray(times.tz_convert("UTC").day_of_year))
    sky = place.get_clearsky(times, model="ineichen", linke_turbidity=turbidity, dni_extra=beyond)
    return np.asarray(sky["ghi"], np.float64) / 1000.0


def cloud_index(cover: float, noise: Floats) -> Floats:
    """Share of clear-sky irradiance that passes the clouds, 1 − 0.75 N^3.4 of a cover N that wanders about a median.

    Kasten and Czeplak, "Solar and terrestrial radiation dependent on the amount and type of cloud", 1980.

    Args:
        cover: median of N in (0, 1): 0.1 few clouds, 0.9 dull.
        noise: ``(...)`` standard normals, autocorrelated as by :func:`wander`.
    """
    if not 0.0 < cover < 1.0:
        raise ValueError(f"cover must be in (0, 1), got {cover!r}")
    amount = 1.0 / (1.0 + (1.0 / cover - 1.0) * np.exp(-2.0 * noise))
    return 1.0 - 0.75 * amount**3.4


def pv_power(irradiance: Floats, index: Floats, rating: Floats, performance: float = 0.85) -> Floats:
    """Generation ``(M, n)`` of panels that lie flat: rating × performance × irradiance × cloud index [kW].

    Args:
        irradiance: ``(M,)`` of a clear sky [kW/m²], ratings being for 1 kW/m².
        index: ``(M,)`` or ``(M, n)`` cloud index.
        rating: ``(n,)`` [kW].
        performance: share left by inverter, heat and dirt, in (0, 1].
    """
    validation.number("performance", performance, 0.0, 1.0, open_low=True)
    index = index[:, None] if index.ndim == 1 else index
    return performance * irradiance[:, None] * index * rating
