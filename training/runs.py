"""Run folders: names, atomic writes, configuration."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from p2penv.core import validation

ROOT = Path("runs")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on.

    Raises:
        ValueError: a field out of range.
        TypeError: an option that cannot be kept with the run as text.
    """

    market: str = "communication_v0"
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the environment."""
    algorithm: Literal["ppo", "sac"] = "ppo"
    learners: Literal["shared", "independent"] = "shared"
    """One network for all agents, told apart by a one-hot code, or one learner per agent."""
    seed: int = 0
    steps: int = 1_300_000
    """Agent-steps of experience: environments x agents x steps."""
    num_envs: int = 64
    network: tuple[int, ...] = (32, 32)
    learning_rate: float = 3e-3
    """At the start; falls linearly to zero."""
    gamma: float | None = None
    """Discount; the market's own if None: zero where actions do not move the state that pays."""
    eval_every: int = 10
    """Rollouts between evaluations of the deterministic policy."""
    contexts: int = 100
    """Held-out states an evaluation averages over where states move."""
    threads: int = 1
    """Threads of PyTorch; small networks are fastest on one."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs", "eval_every", "contexts", "threads"):
            validation.count(name, getattr(self, name))
        validation.choice("algorithm", self.algorithm, ("ppo", "sac"))
        validation.choice("learners", self.learners, ("shared", "independent"))
        validation.number("seed", self.seed, 0, 2**31 - 1)
        validation.number("learning_rate", self.learning_rate, 0.0, open_low=True)
        if self.gamma is not None:
            validation.number("gamma", self.gamma, 0.0, 1.0)
        for name, value in self.options.items():
            try:
                json.dumps(value, default=_plain)
            except TypeError:
                raise TypeError(
                    f"option {name} is kept with the run as text, got {value!r}; give numbers, lists, names, paths as "
                    "text, a scenario as a TOML file"
                ) from None


# What suits a market better than the defaults of TrainConfig. Rollouts are whole days: 57 600 agent-steps of 20 homes.
SUITED: Mapping[str, Mapping[str, Any]] = {
    "pem_v0": {"steps": 2_000_000, "num_envs": 4, "learning_rate": 1e-3, "contexts": 24},
    # What is stored is paid at once; all else tells in its hour.
    "grid_v0": {"steps": 300_000, "num_envs": 16, "gamma": 0.9, "contexts": 4},
}


def suited(market: str, **given: Any) -> TrainConfig:
    """Configuration of a market's runs: what is given and not None, then what suits it, then the defaults."""
    return TrainConfig(market=market, **{**SUITED.get(market, {}), **{k: v for k, v in given.items() if v is not None}})


def load_config(folder: Path) -> TrainConfig:
    """Configuration of a run.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: its configuration cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["training"]
        return TrainConfig(**{**values, "network": tuple(values["network"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the configuration of a run: {error!r}") from error


def save_config(folder: Path, config: TrainConfig) -> None:
    """Write configuration and versions."""
    write_json(folder / "config.json", {"training": dataclasses.asdict(config), "versions": versions()})


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("p2penv", "numpy", "scipy", "gymnasium", "pettingzoo", "stable-baselines3", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def new_folder(name: str, root: Path = ROOT) -> Path:
    """``runs/<name>``, with a number behind it where that exists; created at once, so that two runs differ."""
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain folder name, got {name!r}")
    for suffix in ("", *(f"-{number}" for number in range(2, 10_000))):
        folder = root / f"{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RuntimeError(f"too many runs called {name!r} in {root}")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step; arrays become lists."""
    write_text(path, json.dumps(value, indent=2, default=_plain) + "\n")


def _plain(item: Any) -> Any:
    if isinstance(item, np.ndarray | np.generic):
        return item.tolist()
    raise TypeError(f"cannot write {type(item).__name__} as JSON")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV in one step."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """Read a CSV of numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
