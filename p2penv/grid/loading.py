"""Scenarios of trading under network limits from their files: a feeder, and prosumers made by a seed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2penv.core import scenarios, validation
from p2penv.grid import profiles
from p2penv.grid.feeder import Feeder
from p2penv.grid.scenario import Scenario


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return scenarios.names("grid")


def load_scenario(
    name: str | Path = "ieee37",
    *,
    prosumers: int | None = None,
    seed: int = 0,
    scale: str = "households",
    partners: int | None = None,
    density: float | None = None,
    day: str | None = None,
    **overrides: Any,
) -> Scenario:
    """Prosumers, made by a seed, on the feeder of a shipped scenario or a TOML file.

    Calibration: prosumers and equipment as :func:`p2penv.grid.profiles.community` says; each at a bus drawn evenly
    from all but the source. The passive load of a bus is ``passive_level`` of its published load times an hourly shape
    (with all of it only 0.64 MW more, spread evenly, would leave 0.95 p.u.), d is ``price_level`` over the passive load
    of the hour. A line may carry ``line_margin`` times the peak of its passive load and the peaks of the prosumers
    downstream together; the same goes for the import. So households up to a thousand, and businesses up to about
    fifty, can all buy their demand from the grid without trading; more businesses need trading, or ``reactive=False``.

    Args:
        name: one of :func:`scenario_names`, or the path of a ``.toml`` file of that layout.
        prosumers: how many, ≥ 2; a small community is the beginning of a large one, but for partners and limits.
        seed: of prosumers and partners.
        scale: "households", or "paper": businesses and farms of 10 to 60 kW.
        partners: most of each prosumer; pairs are a path through all and random ones.
        density: part of all pairs that trade instead, 0.6 in the paper.
        day: of the profiles, like "2016-10-13".
        **overrides: fields to replace, or keys of the file's table ``[community]``.

    Raises:
        ValueError: unknown name (the error lists the known ones) or bad values.
        TypeError: unknown field.
    """
    table, parent = scenarios.read("grid", name)
    if "community" not in table:
        raise ValueError(f"scenario {str(name)!r} lacks a table [community]")
    made = dict(table.pop("community"))
    keys = set(made) | {"power_factor"}
    scenarios.check_fields(Scenario, overrides, *keys)
    fields = {each.name for each in dataclasses.fields(Scenario)}
    # Scalars of prosumers and pairs are scaled by the community; arrays replace what it made.
    chosen = {key: value for key, value in overrides.items() if key in made and (key not in fields or _is_plain(value))}
    replaced = {key: value for key, value in overrides.items() if key not in chosen}
    if partners is not None and density is not None:
        raise ValueError("partners and density exclude each other")
    asked = {"prosumers": prosumers, "partners": partners, "day": day}
    made |= chosen | {key: value for key, value in asked.items() if value is not None}
    return _of_community(table, made, parent, seed, scale, density, replaced, str(name))


# Keys of [community] that are no arguments of the function of that name.
CALIBRATION = {"partners", "trade_cost", "trade_max", "charge_efficiency", "discharge_efficiency", "price_level",
               "passive_level", "passive_shape", "line_margin"}  # fmt: skip


def _is_plain(value: Any) -> bool:
    return np.ndim(value) == 0


def _of_community(
    table: Mapping[str, Any],
    made: dict[str, Any],
    parent: Any,
    seed: int,
    scale: str,
    density: float | None,
    replaced: Mapping[str, Any],
    source: str,
) -> Scenario:
    fields: dict[str, Any] = dict(table)
    feeder = replaced.get("feeder")
    if feeder is None:
        feeder = Feeder.read(parent / fields["feeder"], fields["source"])
    fields.pop("source", None)
    options = set(inspect.signature(profiles.community).parameters) - {"seed", "scale"} | CALIBRATION
    if unknown := made.keys() - options:
        raise TypeError(f"unknown keys of [community] in scenario {source!r}: {', '.join(sorted(unknown))}")
    if missing := (CALIBRATION | {"prosumers", "day", "households", "businesses"}) - made.keys():
        raise ValueError(f"[community] in scenario {source!r} lacks {', '.join(sorted(missing))}")
    for key in ("passive_level", "line_margin", "price_level"):
        validation.number(key, made[key], 0.0, open_low=True)
    profile = validation.floats("passive_shape", made["passive_shape"])
    if profile.shape != (profiles.HOURS,) or not (np.isfinite(profile) & (profile >= 0.0)).all():
        raise ValueError(f"passive_shape must be {profiles.HOURS} values >= 0, one for each hour, got {profile!r}")
    trade_cost, trade_max, partners = made.pop("trade_cost"), made.pop("trade_max"), made.pop("partners")
    level, shape, margin = (
        made.pop("passive_level"),
        validation.floats("passive_shape", made.pop("passive_shape")),
        made.pop("line_margin"),
    )
    price, count = made.pop("price_level"), made.pop("prosumers")
    efficiencies = {key: made.pop(key) for key in ("charge_efficiency", "discharge_efficiency")}
    made["businesses"] = parent / made["businesses"]
    made["households"] = scenarios.folder("pem") / made["households"]
    group = profiles.community(count, seed, scale=scale, **made)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    edges = profiles.random_pairs(count, rng, partners, density)
    places = np.array([k for k in range(feeder.size) if k != feeder.root])
    bus = places[np.floor(len(places) * group.place).astype(np.int64)]
    hourly = np.append(shape, shape[0])[:, None]
    active, reactive = level * hourly * feeder.spot_active, level * hourly * feeder.spot_reactive
    if not (active.sum(axis=1) > 0.0).all():
        hour = int(np.argmin(active.sum(axis=1)))
        raise ValueError(f"passive load of hour {hour} must be > 0 for the grid's price, a level over it; got 0 kW")
    peaks = group.demand.max(axis=0)
    at_bus = np.bincount(bus, weights=peaks, minlength=feeder.size)
    passive = np.hypot(feeder.downstream @ feeder.spot_active, feeder.downstream @ feeder.spot_reactive)
    total = level * shape.max() * feeder.spot_active.sum() + peaks.sum()
    fields |= {
        "feeder": feeder,
        "bus": bus,
        "demand": group.demand,
        "solar": group.solar,
        "edges": edges,
        "trade_cost": np.full(len(edges), trade_cost),
        "trade_max": trade_max * np.max(group.size[edges], axis=1),
        "passive_active": active,
        "passive_reactive": reactive,
        "grid_slope": price / active.sum(axis=1),
        "line_limit": margin * (level * shape.max() * passive + feeder.downstream @ at_bus),
        "import_max": margin * total,
        "name": f"{fields['name']}-{scale}-{count}-{seed}",
        **efficiencies,
        **group.fields,
    }
    return scenarios.build(Scenario, {**fields, **replaced}, source)
