"""What scenarios of all markets share: shipped files, TOML, fields."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from p2penv.core import validation

Scenario = TypeVar("Scenario")


def folder(market: str) -> Any:
    """Folder of the shipped data files of a market."""
    return resources.files("p2penv") / "data" / market


def names(market: str) -> list[str]:
    """Names of the shipped scenarios of a market."""
    return sorted(path.name.removesuffix(".toml") for path in folder(market).iterdir() if path.name.endswith(".toml"))


def read(market: str, name: str | Path) -> tuple[dict[str, Any], Any]:
    """Table of a shipped scenario or of a ``.toml`` file, and the folder it lies in.

    Raises:
        TypeError: neither text nor a path.
        ValueError: unknown name (the error lists the known ones), no such file, or not TOML.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"scenario must be a name, the path of a .toml file or a Scenario, got {name!r}")
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"no scenario file {str(path)!r}")
        parent: Any = path.parent
    else:
        validation.choice("scenario", str(name), names(market))
        parent = folder(market)
        path = parent / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), parent
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"scenario {str(name)!r} is not valid TOML: {error}") from None


def build(kind: type[Scenario], table: Mapping[str, Any], source: str) -> Scenario:
    """A scenario dataclass from a table of its fields.

    Raises:
        TypeError: unknown fields.
        ValueError: missing fields, or what building it raises.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    if unknown := table.keys() - {field.name for field in fields}:
        raise TypeError(f"unknown fields in scenario {source!r}: {', '.join(sorted(unknown))}")
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := required - table.keys():
        raise ValueError(f"scenario {source!r} lacks {', '.join(sorted(missing))}")
    return kind(**table)


def check_fields(kind: type[Any], fields: Mapping[str, Any], *more: str) -> None:
    """Refuse names that are neither fields of a scenario dataclass nor among ``more``.

    Raises:
        TypeError: lists the allowed ones.
    """
    known = {field.name for field in dataclasses.fields(kind)} | set(more)
    for field in fields:
        if field not in known:
            raise TypeError(f"unknown scenario field {field!r}; allowed: {', '.join(sorted(known))}")
