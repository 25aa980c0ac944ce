"""Command line: ``python -m training list | solve | train | evaluate | reproduce | report | bench``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import baselines
import p2penv
from p2penv.core.contract import MarketEnv
from training.runs import TrainConfig, load_config, write_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_show_locals=False)
console = Console()

Market = Annotated[str, typer.Argument(help="communication (or its versioned name)")]
Scenario = Annotated[str | None, typer.Option(help="shipped scenario or TOML file")]
Horizon = Annotated[int, typer.Option(help="steps an episode; 1 is the one-shot game")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="any other option of the environment: key=value")
]
Json = Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")]


class Algorithm(StrEnum):
    """Learners on offer."""

    ppo = "ppo"
    sac = "sac"


class Learners(StrEnum):
    """How agents share what they learn."""

    shared = "shared"
    independent = "independent"


def _market(name: str) -> str:
    versioned = name if name in p2penv.MARKETS else f"{name}_v0"
    if versioned not in p2penv.MARKETS:
        known = ", ".join(market.removesuffix("_v0") for market in p2penv.MARKETS)
        raise typer.BadParameter(f"market must be one of {known}; got {name!r}")
    return versioned


def _options(scenario: str | None, horizon: int, pairs: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {} if scenario is None else {"scenario": scenario}
    if horizon != 1:
        options["horizon"] = horizon
    for pair in pairs or []:
        key, mark, text = pair.partition("=")
        if not mark:
            raise typer.BadParameter(f"option must look like key=value, got {pair!r}")
        if key in options:
            raise typer.BadParameter(f"option {key!r} is given twice")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


def _file(path: Path | None, value: Any) -> None:
    """Write numbers to the file a user named, if any."""
    if path is None:
        return
    try:
        write_json(path, value)
    except OSError as error:
        raise typer.BadParameter(f"--json: cannot write {path}: {error.strerror}") from None


def _env(market: str, options: dict[str, Any]) -> MarketEnv:
    try:
        return p2penv.make_functional(_market(market), **options)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None


@app.command("list")
def list_() -> None:
    """Markets, scenarios and baselines."""
    from p2penv.communication import scenario_names

    table = Table("market", "id", "scenarios", "baselines")
    for market, (identifier, _, _) in p2penv.MARKETS.items():
        names = baselines.names(p2penv.make_functional(market))
        table.add_row(market, identifier, "\n".join(scenario_names()), "\n".join(names))
    console.print(table)


@app.command()
def solve(
    market: Market,
    scenario: Scenario = None,
    horizon: Horizon = 1,
    option: Options = None,
    json_: Json = None,
) -> None:
    """Exact equilibrium, planner and truthful play."""
    from training import tables
    from training.evaluate import evaluate

    env = _env(market, _options(scenario, horizon, option))
    results = {}
    for name in ("truthful", "ve", "coordinated"):
        found = evaluate(env, env.policy(name))
        tables.print_evaluation(found, name, console)
        results[name] = found.summary()
    _file(json_, results)


@app.command()
def train(
    context: typer.Context,
    market: Market,
    scenario: Scenario = None,
    horizon: Horizon = 1,
    algorithm: Annotated[Algorithm, typer.Option(help="learning algorithm")] = Algorithm.ppo,
    learners: Annotated[Learners, typer.Option(help="one network for all, or one learner per agent")] = Learners.shared,
    seed: Annotated[int, typer.Option(help="of learner and market")] = TrainConfig.seed,
    steps: Annotated[int | None, typer.Option(help="agent-steps in all; default by algorithm and horizon")] = None,
    envs: Annotated[int, typer.Option(help="environments stepped together")] = TrainConfig.num_envs,
    learning_rate: Annotated[float, typer.Option(help="at the start, falls to zero")] = TrainConfig.learning_rate,
    gamma: Annotated[float, typer.Option(help="discount")] = TrainConfig.gamma,
    contexts: Annotated[int, typer.Option(help="held-out states to evaluate on")] = TrainConfig.contexts,
    threads: Annotated[int, typer.Option(help="threads of PyTorch")] = TrainConfig.threads,
    name: Annotated[str | None, typer.Option(help="folder under runs/")] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of an interrupted run")] = None,
    option: Options = None,
) -> None:
    """Train agents and compare them with the equilibrium."""
    from training import train as trainer

    try:
        if resume is not None:
            sources = {name: context.get_parameter_source(name) for name in context.params}
            given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
            if fixed := sorted(set(given) - {"market", "resume", "steps"}):
                raise typer.BadParameter(
                    f"a resumed run keeps its configuration except --steps; drop {', '.join(fixed)}"
                )
            if (stored := load_config(resume).market) != _market(market):
                raise typer.BadParameter(f"run {resume} was made on {stored}, not {_market(market)}")
            trainer.resume(resume, steps, console)
            return
        options = _options(scenario, horizon, option)
        _env(market, options)
        config = TrainConfig(
            market=_market(market),
            options=options,
            algorithm=algorithm.value,
            learners=learners.value,
            seed=seed,
            steps=default_steps(algorithm.value, options.get("horizon", 1)) if steps is None else steps,
            num_envs=envs,
            learning_rate=learning_rate,
            gamma=gamma,
            contexts=contexts,
            threads=threads,
        )
        trainer.train(config, name, console)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None


def default_steps(algorithm: str, horizon: int) -> int:
    """Agent-steps that suffice on the shipped scenarios."""
    if algorithm == "sac":
        return 400_000
    return TrainConfig.steps if horizon == 1 else 4_000_000


@app.command()
def evaluate(
    market: Market,
    policy: Annotated[
        str, typer.Option(help="baseline, or folder of a run (measured where it was trained unless told otherwise)")
    ] = "truthful",
    agent: Annotated[list[str] | None, typer.Option(help="another policy for one agent: prosumer_8=POLICY")] = None,
    scenario: Scenario = None,
    horizon: Horizon = 1,
    contexts: Annotated[int, typer.Option(help="held-out states")] = 100,
    seed: Annotated[int, typer.Option(help="of the held-out states")] = 0,
    option: Options = None,
    json_: Json = None,
) -> None:
    """Exact exploitability and costs of any mix of policies."""
    from training import tables
    from training.evaluate import evaluate as measure
    from training.evaluate import marl_eval
    from training.policies import MixedPolicy, resolve

    options = _options(scenario, horizon, option)
    if not options and (Path(policy) / "config.json").is_file():
        options = load_config(Path(policy)).options  # where it was trained, unless another market is asked for
    env = _env(market, options)
    names = [f"{role.name}_{n}" for role in env.roles for n in range(role.count)]
    try:
        others = {}
        for pair in agent or []:
            who, mark, what = pair.partition("=")
            if not mark or who not in names:
                raise ValueError(
                    f"--agent must look like {names[0]}=POLICY with an agent of {names[0]} … {names[-1]}; got {pair!r}"
                )
            others[names.index(who)] = resolve(env, what)
        found = measure(env, MixedPolicy(resolve(env, policy), others), contexts, seed)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from None
    title = " ".join([policy, *(agent or [])])
    tables.print_evaluation(found, title, console)
    tables.print_infos(found, console)
    final = {key: value for key, value in found.summary().items() if isinstance(value, int | float)}
    _file(json_, marl_eval(_market(market), env.scenario.name, title, seed, [], final))


@app.command()
def reproduce(
    market: Market,
    out: Annotated[Path, typer.Option(help="folder for figures and tables")] = Path("runs/reproduce"),
) -> None:
    """Regenerate the figures of the market's paper as PNG and CSV."""
    from training import reproduce as papers

    known = {"communication_v0": papers.communication}
    for path in known[_market(market)](out):
        console.print(str(path))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="folder of a finished run")]) -> None:
    """Write a run's HTML page again."""
    from training.report import write

    try:
        console.print(str(write(run)))
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="fewer repeats and smaller sizes")] = False,
) -> None:
    """Measure speed; results go to runs/bench."""
    from benchmarks import speed

    speed.run(quick=quick)
