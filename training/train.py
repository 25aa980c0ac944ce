"""A training run: learn, watch the distance to equilibrium, keep checkpoints, measure, report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

import p2penv
from p2penv.core.contract import MarketEnv
from training import report, tables
from training.evaluate import EPISODES, Episodes, Evaluation, evaluate, marl_eval, returns
from training.policies import ALGORITHMS, LearnedPolicy, model_paths
from training.runs import (
    TrainConfig,
    load_config,
    new_folder,
    read_csv,
    save_config,
    write_atomic,
    write_csv,
    write_json,
)
from training.sb3 import AgentVecEnv, Relay, learn, make_env, make_models, rehearsal


def make_market(config: TrainConfig) -> MarketEnv:
    """The functional environment of a run."""
    return p2penv.make_functional(config.market, **{**config.options, "infos": "none"})


class Watch(BaseCallback):
    """Evaluates the deterministic policy every few rollouts, keeps checkpoints, moves the bar."""

    def __init__(self, run: Run, progress: Progress) -> None:
        super().__init__()
        self.run = run
        self.progress = progress
        self.bar = progress.add_task("training", total=run.config.steps, completed=run.done, shown="")
        self.spent = run.seconds
        self.rollouts = 0
        self.due = False
        self.overhead = 0.0
        self.started = 0.0

    def _on_training_start(self) -> None:
        self.started = time.perf_counter()
        if not self.run.curve:
            self.measure()

    def _on_step(self) -> bool:
        # Learners train after a rollout has ended, and all of them before the first step of the next one has.
        if self.due:
            self.due = False
            self._clock()
            self.measure()
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        self.due = self.rollouts % self.run.interval == 0
        self.run.done = self.model.num_timesteps * len(self.run.models)
        self._clock()
        self.progress.update(self.bar, completed=min(self.run.done, self.run.config.steps))

    def _on_training_end(self) -> None:
        self._clock()

    def _clock(self) -> None:
        self.run.seconds = self.spent + time.perf_counter() - self.started - self.overhead

    def measure(self) -> None:
        """Measure and save what has been learned so far; not counted as training time."""
        begun = time.perf_counter()
        row = self.run.measure()
        gain = row.get("episode_gain")
        shown = f"NashConv {row['nashconv']:.4f}" if gain is None else f"gain of an episode {gain:.4f}"
        self.progress.update(self.bar, shown=shown)
        for key in ("nashconv", "social_gap"):
            self.logger.record(f"equilibrium/{key}", row[key])
        self.logger.dump(self.run.done // len(self.run.models))
        self.run.save()
        self.overhead += time.perf_counter() - begun


class Run:
    """A run in its folder; made new or picked up from its last checkpoint."""

    def __init__(self, folder: Path, config: TrainConfig, resume: bool = False) -> None:
        self.folder = folder
        self.config = config
        self.env = make_market(config)
        joint = make_env(self.env, config)
        self.agents = joint.agents
        shared = config.learners == "shared"
        relay = None if shared else Relay(joint)
        envs: list[VecEnv] = (
            [joint] if relay is None else [AgentVecEnv(relay, index) for index in range(len(self.agents))]
        )
        self.paths = model_paths(folder / "checkpoint", config.learners, self.agents)
        self.curve: list[dict[str, float]] = []
        self.done, self.seconds = 0, 0.0
        self.models: list[BaseAlgorithm] = make_models(config, self.env, envs, str(folder / "tensorboard"))
        # The curve is written after the models: without it the first checkpoint was cut off.
        curve = folder / "curve.csv"
        if resume and curve.is_file() and all(path.is_file() for path in self.paths):
            kind = ALGORITHMS[config.algorithm]
            logs = [model.tensorboard_log for model in self.models]  # of this folder, which may have been moved
            self.models = [kind.load(path, env=env, device="cpu") for path, env in zip(self.paths, envs, strict=True)]
            for model, log in zip(self.models, logs, strict=True):
                model.tensorboard_log = log
            self.curve = read_csv(curve)
            self.done = self.models[0].num_timesteps * len(self.models)
            self.seconds = self.curve[-1]["seconds"]
        self.policy = LearnedPolicy(self.models, len(self.agents))
        self.measured = rehearsal(self.env)
        usual = self.env.policy(self.env.reference)
        # Where what is done now pays later, stage measures do not tell it all: also the reward of whole episodes.
        self.usual = returns(self.measured, usual, EPISODES).mean(axis=0) if self.env.discount > 0.0 else None
        self.interval = config.eval_every if config.algorithm == "ppo" else max(1, 10 * config.eval_every)

    def measure(self) -> dict[str, float]:
        """Evaluate the policy as it is and add a point to the curve."""
        found = self.evaluate()
        row = {
            "agent_steps": float(self.done),
            "seconds": self.seconds,
            "nashconv": found.nashconv,
            "social_gap": found.social_gap,
            "mean_reward": float(found.utility_gap.mean()),
        }
        if (played := self.episodes()) is not None:
            row |= {key: played.numbers[key] for key in ("episode_gain", "least_gain")}
        self.curve.append(row)
        return row

    def episodes(self) -> Episodes | None:
        """Rewards of whole episodes, where they are more than those of single steps."""
        if self.usual is None:
            return None
        total = returns(self.measured, self.policy, EPISODES).mean(axis=0)
        return Episodes(self.agents, total, self.usual, self.env.reference, self.env.money)

    def evaluate(self, contexts: int | None = None) -> Evaluation:
        """Exact measures of the deterministic policy in held-out contexts."""
        return evaluate(self.measured, self.policy, contexts or self.config.contexts)

    def save(self) -> None:
        """Write a checkpoint and the curve so far."""
        for model, path in zip(self.models, self.paths, strict=True):
            write_atomic(path, model.save)
        write_csv(self.folder / "curve.csv", self.curve, list(self.curve[0]))

    def train(self, console: Console) -> None:
        """Learn until the configured agent-steps are reached."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            watch = Watch(self, progress)
            learn(self.models, self.config.steps, self.done, watch)
            watch.measure()


def train(config: TrainConfig, name: str | None = None, console: Console | None = None) -> Path:
    """Train in a new folder, print the comparison with the equilibrium, write the run's files.

    Args:
        config: the configuration.
        name: of the folder under ``runs/``.
        console: where to print.

    Returns:
        The folder, with ``policy.zip`` (or one per agent), ``config.json``, ``metrics.json``, ``metrics.csv``,
        ``curve.csv``, ``marl_eval.json``, ``learned.png`` and ``report.html``.
    """
    folder = new_folder(name or f"{config.market.removesuffix('_v0')}-{config.algorithm}-seed{config.seed}")
    run = Run(folder, config)
    save_config(folder, config)
    return _go(run, console or Console())


def resume(folder: Path, steps: int | None = None, console: Console | None = None) -> Path:
    """Go on with an interrupted run from its last checkpoint, to ``steps`` in all if given; write what is missing.

    The random streams start afresh and SAC starts with an empty replay buffer, so an interrupted run does not repeat
    an uninterrupted one to the digit.

    Raises:
        FileNotFoundError: not a run.
        ValueError: nothing is left to learn.
    """
    config = load_config(folder)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    run = Run(folder, config, resume=True)
    learned = run.done >= config.steps
    if learned and (folder / "metrics.json").is_file():
        raise ValueError(f"run {folder} already has {run.done:,} of {config.steps:,} agent-steps; ask for more --steps")
    save_config(folder, config)
    return finish(run, console or Console()) if learned else _go(run, console or Console())


def _go(run: Run, console: Console) -> Path:
    config = run.config
    console.print(
        f"[bold]{config.market}[/bold] {run.env.scenario.name}, horizon {run.env.horizon}: {config.algorithm.upper()}, "
        f"{config.learners} learners, {len(run.agents)} agents, {config.num_envs} environments -> {run.folder}"
    )
    try:
        run.train(console)
    except KeyboardInterrupt:
        run.measure()
        run.save()
        console.print(f"interrupted; go on with: python -m training train {config.market} --resume {run.folder}")
        raise
    return finish(run, console)


def finish(run: Run, console: Console) -> Path:
    """Measure the final policy; write and print everything."""
    folder, config = run.folder, run.config
    learned = run.evaluate()
    truthful = evaluate(run.measured, run.env.policy(run.env.reference), config.contexts)
    for model, path in zip(run.models, model_paths(folder, config.learners, run.agents), strict=True):
        write_atomic(path, model.save)
    stakes = np.abs(learned.cost_truthful)
    metrics: dict[str, Any] = {
        "market": config.market,
        "scenario": run.env.scenario.name,
        "horizon": run.env.horizon,
        "algorithm": config.algorithm,
        "learners": config.learners,
        "seed": config.seed,
        "agent_steps": run.done,
        "train_seconds": run.seconds,
        "nashconv_truthful": truthful.nashconv,
        "nashconv_untrained": run.curve[0]["nashconv"],
        "nashconv_learned": learned.nashconv,
        "nashconv_learned_interval_95": learned.interval,
        # None where truth is an equilibrium, up to what exploitability is certified to.
        "nashconv_ratio": learned.nashconv / truthful.nashconv if truthful.nashconv > 1e-6 else None,
        "social_cost_truthful": learned.social_cost_truthful,
        "social_cost_equilibrium": learned.social_cost_equilibrium,
        "social_cost_coordinated": learned.social_cost_coordinated,
        "social_cost_learned": learned.social_cost,
        "equilibrium": run.env.equilibrium,
        "reference": run.env.reference,
        "money": run.env.money,
        "deviations": learned.deviations,
        "contexts_without_feasible_set": learned.nearest,
        "payoff_change": float(learned.utility_gap.sum() / stakes.sum()),
        "payoff_change_worst": float((learned.utility_gap / np.maximum(stakes, 1e-12)).min()),
        # What the best other report would add to an agent's own payoff, at most.
        "regret_share": float((learned.exploitability / np.maximum(stakes, 1e-12)).max()),
        "price_of_anarchy": learned.price_of_anarchy,
        "price_of_anarchy_learned": learned.price_of_anarchy_played,
        "contexts": learned.contexts,
        # What the market measures beside costs and exploitability.
        "measures": learned.info,
        "agents": learned.rows(),
    }
    final = {"nashconv": learned.nashconv, "social_gap": learned.social_gap}
    if (played := run.episodes()) is not None:
        metrics["episode_reward_truthful"] = played.numbers["episode_reward_reference"]
        metrics["episode_reward_learned"] = played.numbers["episode_reward"]
        stakes = np.maximum(np.abs(played.reward_reference), 1e-12)
        metrics["payoff_change"] = float(played.gain.sum() / stakes.sum())
        metrics["payoff_change_worst"] = float((played.gain / stakes).min())
        metrics["agents"] = [row | more for row, more in zip(metrics["agents"], played.rows(), strict=True)]
        final |= played.numbers
    write_json(folder / "metrics.json", metrics)
    write_csv(folder / "metrics.csv", metrics["agents"], list(metrics["agents"][0]))
    method = f"{config.algorithm}-{config.learners}"
    nested = marl_eval(config.market, run.env.scenario.name, method, config.seed, run.curve, final)
    write_json(folder / "marl_eval.json", nested)
    page = report.write(folder)
    tables.print_training(metrics, console)
    console.print(f"report: {page}")
    return folder
