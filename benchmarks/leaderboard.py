"""Leaderboard of a market: one row a method, mean and 95 % interval over seeds.

``python -m benchmarks.leaderboard communication`` trains every learner with five seeds, measures every baseline, and
writes ``benchmarks/results/<market>.csv`` and ``.json`` (with command and versions).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

import baselines
import p2penv
from training.evaluate import Evaluation, evaluate
from training.policies import load_learned
from training.runs import TrainConfig, read_csv, versions, write_csv, write_json
from training.train import train

FOLDER = Path(__file__).parent / "results"
LEARNERS = {
    "PPO, shared": TrainConfig(algorithm="ppo", learners="shared"),
    "PPO, independent": TrainConfig(algorithm="ppo", learners="independent"),
    "SAC, shared": TrainConfig(algorithm="sac", learners="shared", steps=400_000),
}
MEASURES = ["reward", "welfare_ratio", "nashconv", "regret", "privacy_loss", "violation", "seconds"]


def measures(found: Evaluation, seconds: float) -> dict[str, float]:
    """One number a measure.

    Reward is the mean utility gap per agent [$], welfare ratio the planner's social cost over the profile's, regret
    the largest gain of one agent [$], privacy loss the mean over agents [nat], violation how far the mean report
    total leaves the shared interval [MWh].
    """
    return {
        "reward": float(found.utility_gap.mean()),
        "welfare_ratio": found.social_cost_coordinated / found.social_cost,
        "nashconv": found.nashconv,
        "regret": float(found.exploitability.max()),
        "privacy_loss": float(found.info["privacy_loss"].mean()),
        "violation": max(0.0, -float(found.info["slack"])),
        "seconds": seconds,
    }


def summarise(method: str, samples: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and half width of the 95 % interval (Student's t) of every measure over the seeds."""
    row: dict[str, Any] = {"method": method, "seeds": len(samples)}
    for key in MEASURES:
        values = np.array([sample[key] for sample in samples])
        row[key] = float(values.mean())
        spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        row[f"{key}_95"] = float(stats.t.ppf(0.975, max(len(values) - 1, 1)) * spread)
    return row


def run(market: str = "communication", seeds: int = 5, root: Path = FOLDER) -> list[dict[str, Any]]:
    """Measure every method with seeds 0 … seeds − 1 and write the tables."""
    versioned = f"{market}_v0"
    console = Console()
    env = p2penv.make_functional(versioned)
    rows = []
    for name in baselines.names(env):
        samples = []
        for seed in range(seeds):
            samples.append(measures(evaluate(env, baselines.make(env, name), seed=seed), 0.0))
        rows.append(summarise(name, samples))
    for method, config in LEARNERS.items():
        samples = []
        for seed in range(seeds):
            settings = TrainConfig(**{**config.__dict__, "market": versioned, "seed": seed})
            folder = train(
                settings,
                f"leaderboard-{market}-{config.algorithm}-{config.learners}-{seed}",
                console=Console(quiet=True),
            )
            seconds = read_csv(folder / "curve.csv")[-1]["seconds"]
            samples.append(measures(evaluate(env, load_learned(folder, env), seed=seed), seconds))
            console.print(f"{method}, seed {seed}: NashConv {samples[-1]['nashconv']:.5f}, {seconds:.0f} s")
        rows.append(summarise(method, samples))
    rows.sort(key=lambda row: row["nashconv"])
    columns = list(rows[0])
    write_csv(root / f"{versioned}.csv", rows, columns)
    command = f"python -m benchmarks.leaderboard {market} --seeds {seeds}"
    write_json(root / f"{versioned}.json", {"command": command, "versions": versions(), "rows": rows})
    table = Table("method", *(key.replace("_", " ") for key in MEASURES), title=f"{versioned}, {seeds} seeds")
    for row in rows:
        table.add_row(row["method"], *(f"{row[key]:.5g} ± {row[key + '_95']:.2g}" for key in MEASURES))
    console.print(table)
    return rows


def main(
    market: Annotated[str, typer.Argument(help="name of the market")] = "communication",
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 5,
) -> None:
    """Measure every method of a market."""
    run(market, seeds)


if __name__ == "__main__":
    typer.run(main)
