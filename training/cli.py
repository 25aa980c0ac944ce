"""Command line: ``python -m training list|solve|train|evaluate|audit|private|reproduce|report|bench``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import baselines
import p2penv
from p2penv.core.contract import MarketEnv
from p2penv.dpvcg import DPVCG
from p2penv.pem import PEM
from training.runs import SUITED, TrainConfig, load_config, suited, write_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_show_locals=False)
audit = typer.Typer(no_args_is_help=True, help="Does the mechanism keep what it promises?")
app.add_typer(audit, name="audit")
console = Console()

Market = Annotated[str, typer.Argument(help="communication, dpvcg, pem or grid (or a versioned name)")]
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


class Protocol(StrEnum):
    """Of private clearing."""

    paper = "paper"
    hardened = "hardened"
    committee = "committee"


class Transport(StrEnum):
    """How parties of private clearing talk."""

    local = "local"
    tcp = "tcp"


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


def _has(verb: str, market: str, known: Iterable[str]) -> str:
    """The versioned name of a market, if the verb is there for it."""
    versioned = _market(market)
    if versioned not in known:
        names = ", ".join(name.removesuffix("_v0") for name in known)
        raise typer.BadParameter(f"{verb} is there for {names}; not for {versioned.removesuffix('_v0')}")
    return versioned


def _options(scenario: str | None, horizon: int, pairs: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {} if scenario is None else {"scenario": scenario}
    if horizon != 1:
        options["horizon"] = horizon
    return parse_options(pairs, options)


def parse_options(pairs: list[str] | None, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Options of an environment from ``key=value`` texts, beside those given already.

    Raises:
        typer.BadParameter: not of that form, or a key twice.
    """
    options = dict(given or {})
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
    except (ValueError, TypeError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None


@app.command("list")
def list_() -> None:
    """Markets, scenarios and baselines."""
    table = Table("market", "id", "scenarios", "baselines")
    for market, (identifier, module, _) in p2penv.MARKETS.items():
        names = baselines.names(p2penv.make_functional(market))
        scenarios = import_module(module).scenario_names()
        table.add_row(market, identifier, "\n".join(scenarios), "\n".join(names))
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
    from training.evaluate import episodes, evaluate, whole

    env = _env(market, _options(scenario, horizon, option))
    results = {}
    for name in env.policies:
        try:
            found = evaluate(env, env.policy(name))
            played = episodes(env, env.policy(name)) if whole(env) else None
        except (ValueError, ImportError) as error:
            raise typer.BadParameter(str(error)) from None
        tables.print_evaluation(found, name, console, played)
        results[name] = found.summary() | ({} if played is None else played.numbers)
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
    envs: Annotated[int | None, typer.Option(help="environments stepped together; default by market")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="at the start, falls to zero; default by market")] = None,
    gamma: Annotated[float | None, typer.Option(help="discount; the market's own if not given")] = None,
    contexts: Annotated[int | None, typer.Option(help="held-out states to evaluate on; default by market")] = None,
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
        versioned = _market(market)
        if steps is None and (algorithm is Algorithm.sac or "steps" not in SUITED.get(versioned, {})):
            steps = default_steps(algorithm.value, options.get("horizon", 1))
        config = suited(
            versioned,
            options=options,
            algorithm=algorithm.value,
            learners=learners.value,
            seed=seed,
            steps=steps,
            num_envs=envs,
            learning_rate=learning_rate,
            gamma=gamma,
            contexts=contexts,
            threads=threads,
        )
        trainer.train(config, name, console)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (FileNotFoundError, ValueError, TypeError, ImportError) as error:
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
        str | None,
        typer.Option(help="baseline (default: what play is compared with), or folder of a run, measured where trained"),
    ] = None,
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
    from training.evaluate import episodes, marl_eval, whole
    from training.evaluate import evaluate as measure
    from training.policies import MixedPolicy, resolve

    options = _options(scenario, horizon, option)
    if not options and policy is not None and (Path(policy) / "config.json").is_file():
        options = load_config(Path(policy)).options  # where it was trained, unless another market is asked for
    env = _env(market, options)
    policy = env.reference if policy is None else policy
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
        mixed = MixedPolicy(resolve(env, policy), others)
        found = measure(env, mixed, contexts, seed)
        played = episodes(env, mixed, seed=seed) if whole(env) else None
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    title = " ".join([policy, *(agent or [])])
    tables.print_evaluation(found, title, console, played)
    tables.print_infos(found, console)
    numbers = found.summary() | ({} if played is None else played.numbers)
    final = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
    _file(json_, marl_eval(_market(market), env.scenario.name, title, seed, [], final))


@app.command()
def reproduce(
    market: Annotated[str, typer.Argument(help="communication, dpvcg, pem or grid; pem-private, of its protocols")],
    out: Annotated[Path, typer.Option(help="folder for figures and tables")] = Path("runs/reproduce"),
) -> None:
    """Regenerate the figures and tables of the market's paper as PNG and CSV."""
    from training import reproduce as communication
    from training import reproduce_dpvcg as dpvcg
    from training import reproduce_grid as grid
    from training import reproduce_pem as pem

    papers: dict[str, Callable[..., list[Path]]] = {
        "communication_v0": lambda out, report: communication.communication(out),
        "dpvcg_v0": dpvcg.dpvcg,
        "pem_v0": pem.pem,
        "grid_v0": grid.grid,
    }
    make = _private_figures if market == "pem-private" else papers[_has("reproduce", market, papers)]
    with _progress() as progress:
        task = progress.add_task("", total=None)
        try:
            paths = make(out, lambda part: progress.update(task, description=part))
        except OSError as error:
            raise typer.BadParameter(f"--out: cannot write {out}: {error.strerror}") from None
        except ImportError as error:
            raise typer.BadParameter(str(error)) from None
    for path in paths:
        console.print(str(path))


def _private_figures(out: Path, report: Callable[[str], None]) -> list[Path]:
    from training.reproduce_private import private

    return private(out, report)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def _vcg(verb: str, market: str, options: dict[str, Any]) -> DPVCG:
    _has(verb, market, ["dpvcg_v0"])
    env = _env(market, options)
    assert isinstance(env, DPVCG)
    return env


@audit.command()
def truthfulness(
    market: Market,
    scenario: Scenario = None,
    contexts: Annotated[
        int | None,
        typer.Option(help="dpvcg: random types to average over, 1, the types of the case; pem: windows to sample, 20"),
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="dpvcg: also train an attacker for each agent")] = False,
    steps: Annotated[int | None, typer.Option(help="of experience of each attacker")] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="pem: certify misreports of all fields of a seller together; takes long")
    ] = False,
    seed: Annotated[int, typer.Option(help="of types, windows and attackers")] = 0,
    option: Options = None,
    json_: Json = None,
) -> None:
    """Exact regret of misreporting beside what is claimed or proven, and what a learner gains."""
    versioned = _has("audit truthfulness", market, ["dpvcg_v0", "pem_v0"])
    if steps is not None and not learn:
        raise typer.BadParameter("--steps is of the attackers: give --learn too")
    options = _options(scenario, 1, option)
    if versioned == "pem_v0":
        if learn:
            raise typer.BadParameter("--learn is there for dpvcg; not for pem")
        _truthfulness_pem(options, contexts, seed, joint, json_)
    else:
        if joint:
            raise typer.BadParameter("--joint is there for pem; not for dpvcg")
        _truthfulness_dpvcg(market, options, 1 if contexts is None else contexts, learn, steps, seed, json_)


def _truthfulness_dpvcg(
    market: str,
    options: dict[str, Any],
    contexts: int,
    learn: bool,
    steps: int | None,
    seed: int,
    json_: Path | None,
) -> None:
    from training import tables
    from training.truthfulness import STEPS
    from training.truthfulness import audit as measure

    options.setdefault("types", "fixed" if contexts == 1 else "uniform")
    env = _vcg("audit truthfulness", market, options)
    with _progress() as progress:
        task = progress.add_task("best misreports", total=None)
        try:
            found = measure(
                env,
                contexts,
                seed,
                learn=learn,
                steps=STEPS if steps is None else steps,
                report=lambda part: progress.update(task, description=part),
            )
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(str(error)) from None
    tables.print_truthfulness(found, console)
    _file(json_, {"market": env.name, "options": options} | found.summary())


def _truthfulness_pem(options: dict[str, Any], windows: int | None, seed: int, joint: bool, json_: Path | None) -> None:
    """The worked deviations, then regret on a scenario: 20 homes of the shipped day if no scenario is named."""
    from training import truthfulness_pem as checks

    if "scenario" not in options:
        options.setdefault("homes", checks.HOMES)
    for field in ("preference", "capacity", "demand"):
        options.setdefault(f"{field}_cap", checks.CAP)
    env = _env("pem", options)
    assert isinstance(env, PEM)
    with _progress() as progress:
        task = progress.add_task("worked deviations", total=None)

        def report(part: str) -> None:
            progress.update(task, description=part)

        try:
            pricings = [env.pricing] if "pricing" in options else checks.PRICINGS
            found = checks.audit(env, windows, seed, pricings=pricings, joint=joint, report=report)
            worked = checks.worked(joint=joint, report=report)
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(str(error)) from None
    checks.print_worked(worked, console)
    checks.print_regret(found, console)
    cases = [each.row() for each in worked]
    _file(json_, {"market": env.name, "options": options, "worked": cases} | found.summary())


@audit.command()
def privacy(
    market: Market,
    scenario: Scenario = None,
    horizon: Horizon = 1,
    samples: Annotated[int, typer.Option(help="draws under each of two neighbouring profiles")] = 50_000,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    paper_compat: Annotated[
        bool, typer.Option("--paper-compat", help="add the optimum of the reports to the range, as the paper does")
    ] = False,
    option: Options = None,
    json_: Json = None,
) -> None:
    """Exact privacy loss, and what draws prove of it, beside the ε that is claimed."""
    from training import privacy as checks
    from training import tables

    options = _options(scenario, horizon, option)
    env = _vcg("audit privacy", market, options)
    try:
        mechanism = checks.with_paper_range(env.mechanism) if paper_compat else env.mechanism
        found = checks.audit(mechanism, env.space, samples, seed, rounds=env.horizon)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None
    tables.print_privacy(found, console)
    _file(json_, {"market": env.name, "options": options, "paper_compat": paper_compat} | found.summary())


@app.command("private")
def private_(
    homes: Annotated[int, typer.Option(help="of the shipped day, the first so many")] = 20,
    transport: Annotated[
        Transport, typer.Option(help="all parties in this process, or each a process of its own over mutual TLS")
    ] = Transport.local,
    backend: Annotated[Protocol, typer.Option(help="protocol")] = Protocol.hardened,
    windows: Annotated[int, typer.Option(help="to clear, spread over the day")] = 6,
    bits: Annotated[int, typer.Option(help="of keys; the committee has none")] = 2048,
    insecure: Annotated[bool, typer.Option("--insecure", help="allow keys shorter than 2048 bits, for trials")] = False,
    limit: Annotated[float, typer.Option(help="longest time for a window [s]")] = 60.0,
    json_: Json = None,
) -> None:
    """Clear windows of the private energy market by a cryptographic protocol."""
    from training import private

    rows: list[private.Cleared] = []
    with _progress() as progress:
        task = progress.add_task("keys and processes", total=None)
        try:
            for row in private.run(
                homes, windows, backend.value, transport.value, bits=bits, insecure=insecure, limit=limit
            ):
                rows.append(row)
                progress.update(task, description=f"{row.window} of {windows} windows")
        except (ValueError, ImportError) as error:
            raise typer.BadParameter(str(error)) from None
        except RuntimeError as error:
            console.print(f"given up: {error}", highlight=False)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    private.show(rows, f"{backend.value}, {homes} homes, {transport.value}", console)
    _file(json_, {"backend": backend.value, "transport": transport.value, "rows": [row.row() for row in rows]})
    if not all(row.right for row in rows):
        raise typer.Exit(1)


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
