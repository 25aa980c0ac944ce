"""Leaderboard of a market: one row a method, mean and 95 % interval over seeds.

``python -m benchmarks.leaderboard communication`` trains every learner with five seeds, measures every baseline, and
writes ``benchmarks/results/<market>.csv`` and ``.json`` (with command and versions). Where what is done now pays later,
methods are measured by the reward of whole episodes: ``python -m benchmarks.leaderboard pem -o homes=20``. Finished
runs are not made again, so that an interrupted leaderboard goes on where it was. A market with other options may get
files of its own: ``python -m benchmarks.leaderboard dpvcg -o mechanism=vcg --name dpvcg_v0-vcg``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

import baselines
import p2penv
from p2penv.core.contract import MarketEnv, Policy
from p2penv.pem import PEM
from training import days_pem
from training.cli import Options, parse_options
from training.evaluate import Evaluation, episodes, evaluate
from training.policies import load_learned
from training.privacy import plain
from training.runs import ROOT, SUITED, TrainConfig, load_config, read_csv, suited, versions, write_csv, write_json
from training.train import train

# Steps of an episode that the welfare ratio averages over.
STEPS = 48
FOLDER = Path(__file__).parent / "results"
# First measure there is to sort by, and whether less is better.
SORTED = (("social_cost", True), ("nashconv", True), ("episode_reward", False))
LEARNERS = {
    "PPO, shared": TrainConfig(algorithm="ppo", learners="shared"),
    "PPO, independent": TrainConfig(algorithm="ppo", learners="independent"),
    "SAC, shared": TrainConfig(algorithm="sac", learners="shared", steps=400_000),
}
# VCG: fewer steps suffice, and expected payoffs on the polytope take long; SAC would need hours.
DPVCG_STEPS = {"PPO, shared": 600_000, "PPO, independent": 600_000}


def learners(market: str) -> dict[str, TrainConfig]:
    """Configurations by name; one where a market has settings of its own."""
    if market == "dpvcg_v0":
        return {name: replace(LEARNERS[name], steps=steps) for name, steps in DPVCG_STEPS.items()}
    return {"PPO, shared": suited(market)} if market in SUITED else LEARNERS


def measure(env: MarketEnv, policy: Policy, seed: int, seconds: float) -> dict[str, float]:
    """One number a measure, of stages, or of episodes where what is done now pays later."""
    if env.episodic:
        return day_measures(evaluate(env, policy, 1, seed), seconds)
    if env.discount > 0.0:
        return episode_measures(env, policy, seed, seconds)
    return stage_measures(evaluate(env, policy, seed=seed), seconds)


def episode_measures(env: MarketEnv, policy: Policy, seed: int, seconds: float) -> dict[str, float]:
    """Of a whole held-out episode: mean reward of an agent, its gain over the reference, the least agent's gain.

    Welfare ratio is that of steps: what a planner who finds the state as it is played would reach over what is reached.
    In the private energy market also NashConv at least, a lower bound (``training.days_pem``) [cents], and violation,
    the largest breach of a balance or of a battery's limits [kWh, cents].
    """
    played, anarchy = episodes(env, policy, 1, seed).numbers, evaluate(env, policy, STEPS, seed).price_of_anarchy_played
    row = {key: played[key] for key in ("episode_reward", "episode_gain", "least_gain")}
    row["welfare_ratio"] = float("nan") if anarchy is None else 1.0 / anarchy
    if isinstance(env, PEM):
        row["nashconv_at_least"] = float(days_pem.gains(env, policy, seed).sum())
        row["violation"] = days_pem.play(env, policy, seed).violation
    return row | {"seconds": seconds}


def day_measures(found: Evaluation, seconds: float) -> dict[str, float]:
    """Of a whole held-out day of the network-constrained market [€].

    Reward is the mean gain of an agent over the reference, least gain the least agent's; cost gap is social cost over
    that of the equilibrium; NashConv holds trades, competitive gain is what all would gain if they could trade at the
    equilibrium's prices; distances are those of purchases from the grid and of net trades to the equilibrium's [kW];
    violation is the mean over hours of what exceeds limits of lines [kVA].
    """
    info, anarchy = found.info, found.price_of_anarchy_played
    return {
        "reward": float(found.utility_gap.mean()),
        "least_gain": float(found.utility_gap.min()),
        "social_cost": found.social_cost,
        "cost_gap": found.social_cost / found.social_cost_equilibrium - 1.0,
        "welfare_ratio": float("nan") if anarchy is None else 1.0 / anarchy,
        "nashconv": found.nashconv,
        "competitive_gain": float(info["competitive_gain"].sum()),
        "grid_distance": float(info["grid_distance"].mean()),
        "trade_distance": float(info["trade_distance"].mean()),
        "violation": float(info["line_excess"]),
        "seconds": seconds,
    }


def stage_measures(found: Evaluation, seconds: float) -> dict[str, float]:
    """One number a measure.

    Reward is the mean gain of an agent over truthful play, welfare ratio the profile's welfare over the planner's (of
    costs: the planner's over the profile's), regret the largest gain that an agent forgoes; in the market's money.
    Communication: privacy loss is the mean over agents [nat], violation how far the mean report total leaves the shared
    interval [MWh]. VCG: privacy loss is ε of the draws, infinite where nothing is hidden, violation the mean number of
    agents who would rather have stayed away.
    """
    info, anarchy = found.info, found.price_of_anarchy_played
    if "slack" in info:
        privacy, violation = float(info["privacy_loss"].mean()), max(0.0, -float(info["slack"]))
    else:
        privacy, violation = float(info["epsilon_spent"]), float(info["negative_payoffs"])
    return {
        "reward": float(found.utility_gap.mean()),
        "welfare_ratio": float("nan") if anarchy is None else 1.0 / anarchy,
        "nashconv": found.nashconv,
        "regret": float(found.exploitability.max()),
        "privacy_loss": privacy,
        "violation": violation,
        "seconds": seconds,
    }


def summarise(method: str, samples: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and half width of the 95 % interval (Student's t) of every measure over the seeds."""
    row: dict[str, Any] = {"method": method, "seeds": len(samples)}
    for key in samples[0]:
        values = np.array([sample[key] for sample in samples])
        row[key] = float(values.mean())
        # What is the same for all seeds has no spread, also if it is infinite.
        spread = 0.0 if (values == values[0]).all() else values.std(ddof=1) / np.sqrt(len(values))
        row[f"{key}_95"] = float(stats.t.ppf(0.975, max(len(values) - 1, 1)) * spread)
    return row


def run(
    market: str = "communication",
    seeds: int = 5,
    options: dict[str, Any] | None = None,
    root: Path = FOLDER,
    stem: str | None = None,
) -> list[dict[str, Any]]:
    """Measure every method with seeds 0 … seeds − 1 and write the tables, under the market's name or another."""
    versioned, options = f"{market}_v0", options or {}
    console = Console()
    env = p2penv.make_functional(versioned, **options)
    rows = []
    for name in baselines.names(env):
        policy = baselines.make(env, name)
        # Where nothing is drawn all seeds are the same.
        drawn = any((env.initial_noise, env.noise, policy.noise))
        found = [measure(env, policy, seed, 0.0) for seed in range(seeds if drawn else 1)]
        rows.append(summarise(name, found if drawn else found * seeds))
    for method, config in learners(versioned).items():
        samples = []
        for seed in range(seeds):
            settings = TrainConfig(**{**config.__dict__, "market": versioned, "options": options, "seed": seed})
            name = f"leaderboard-{market}-{config.algorithm}-{config.learners}-{seed}"
            folder = _finished(name, settings) or train(settings, name, console=Console(quiet=True))
            seconds = read_csv(folder / "curve.csv")[-1]["seconds"]
            samples.append(measure(env, load_learned(folder, env), seed, seconds))
            shown = ", ".join(f"{key.replace('_', ' ')} {value:.5g}" for key, value in samples[-1].items())
            console.print(f"{method}, seed {seed}: {shown}")
        rows.append(summarise(method, samples))
    # Where trades are held NashConv alone tells little: doing nothing is no worse than any.
    by, rising = next((by, rising) for by, rising in SORTED if by in rows[0])
    rows.sort(key=lambda row: row[by], reverse=not rising)
    columns = list(rows[0])
    write_csv(root / f"{stem or versioned}.csv", rows, columns)
    given = "".join(f" -o {key}={value}" for key, value in options.items())
    command = f"python -m benchmarks.leaderboard {market} --seeds {seeds}{given}" + (f" --name {stem}" if stem else "")
    numbers = [{key: value if isinstance(value, str) else plain(value) for key, value in row.items()} for row in rows]
    write_json(root / f"{stem or versioned}.json", {"command": command, "versions": versions(), "rows": numbers})
    measures = [key for key in columns[2:] if not key.endswith("_95")]
    table = Table("method", *(key.replace("_", " ") for key in measures), title=f"{stem or versioned}, {seeds} seeds")
    for row in rows:
        table.add_row(row["method"], *(f"{row[key]:.5g} ± {row[key + '_95']:.2g}" for key in measures))
    console.print(table)
    return rows


def _finished(name: str, settings: TrainConfig) -> Path | None:
    """Folder of a finished run of that name and configuration, if there is one."""
    folders = [path.parent for path in sorted(ROOT.glob(f"{name}*/metrics.json"))]
    return next((folder for folder in folders if load_config(folder) == settings), None)


def main(
    market: Annotated[str, typer.Argument(help="name of the market")] = "communication",
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 5,
    option: Options = None,
    name: Annotated[str | None, typer.Option(help="of the files; that of the market if not given")] = None,
) -> None:
    """Measure every method of a market."""
    run(market, seeds, parse_options(option), stem=name)


if __name__ == "__main__":
    typer.run(main)
