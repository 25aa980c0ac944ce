"""How fast are stepping, exact equilibria and learning on this machine? Medians over repeats.

Nothing is timed that a user would not wait for, except where a row says so: importing, compiling and the first call
are left out. Actions differ from step to step and results are kept, so that nothing can be skipped as constant.
"""

from __future__ import annotations

import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import p2penv
from p2penv.communication import Scenario, load_scenario
from p2penv.communication.equilibrium import variational_equilibrium
from p2penv.communication.params import Params
from p2penv.core.contract import Draw
from p2penv.faces.vector import MarketVectorEnv
from training.runs import versions, write_csv, write_json

Floats = NDArray[np.float64]
ENDLESS = 10**6


@dataclass(frozen=True)
class Row:
    """One measurement; ``value`` is None where it was skipped and ``note`` says why."""

    name: str
    value: float | None
    unit: str
    target: str = ""
    aim: str = ""
    note: str = ""


def seconds(call: Callable[[], Any], repeats: int, calls: int = 1) -> float:
    """Median over repeats of the time of one call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return median(times)


def single_steps(quick: bool) -> Iterator[Row]:
    """Steps of the parallel face; the resets between them are not counted."""
    for kind, horizon in (("one-shot", 1), ("repeated", ENDLESS)):
        for infos, target in (("none", "<= 25" if horizon == 1 else ""), ("full", "<= 30" if horizon == 1 else "")):
            env = p2penv.make_parallel("communication_v0", horizon=horizon, infos=infos)
            rng = np.random.default_rng(0)
            actions = cycle(
                [{agent: rng.uniform(-1, 1, 2).astype(np.float32) for agent in env.possible_agents} for _ in range(64)]
            )
            env.reset(seed=0)
            medians = []
            for _ in range(3 if quick else 15):
                spent, steps = 0.0, 100 if quick else 2000
                for _ in range(steps):
                    if not env.agents:
                        env.reset()
                    joint = next(actions)
                    start = time.perf_counter()
                    env.step(joint)
                    spent += time.perf_counter() - start
                medians.append(1e6 * spent / steps)
            yield Row(f"parallel step, {kind}, infos={infos!r}", median(medians), "µs", target, "20" if target else "")


def step_next(env: MarketVectorEnv, actions: Iterator[Any]) -> Any:
    """One step with the next actions."""
    return env.step(next(actions))


def batched_steps(quick: bool) -> Iterator[Row]:
    """Steps of the batched face, resets within the step included."""
    cases: list[tuple[str, int, dict[str, Any], str, str]] = [
        ("one-shot, expected", 4096, {"copy": False}, "", "100"),
        ("one-shot, expected", 4096, {}, "", ""),
        ("repeated, realised", 4096, {"horizon": ENDLESS, "reward": "realised", "copy": False}, ">= 30", "60"),
        ("repeated, realised", 4096, {"horizon": ENDLESS, "reward": "realised"}, ">= 30", "60"),
        ("repeated, realised", 4096, {"horizon": ENDLESS, "reward": "realised", "dtype": "float64"}, "", ""),
        ("physical, realised", 4096, {"horizon": ENDLESS, "reward": "realised", "settlement": "physical"}, "", ""),
        ("physical, expected", 256, {"horizon": ENDLESS, "settlement": "physical"}, "", ""),
    ]
    for name, envs, given, target, aim in cases:
        envs = min(envs, 64) if quick else envs
        options: dict[str, Any] = {"dtype": "float32", "infos": "none"} | given
        env = p2penv.make_vector("communication_v0", envs, **options)
        rng = np.random.default_rng(0)
        shape = env.action_space.shape
        assert shape is not None
        actions = cycle([rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)])
        env.reset(seed=0)
        spent = seconds(partial(step_next, env, actions), 3 if quick else 15, 2 if quick else 10)
        note = f"{envs} environments, {options['dtype']}" + ("" if options.get("copy", True) else ", copy=False")
        yield Row(f"batched steps, {name}", 1e-6 * envs * len(env.agents) / spent, "M agent-steps/s", target, aim, note)


def potential_qp(params: Params) -> tuple[Any, ...]:
    """The least weighted potential as a sparse quadratic program in (x, S), for Clarabel.

    Where the shared bound is slack its minimiser is the variational equilibrium; where it binds, the normalised
    equilibrium with weights B_n.

    B²W = ½(S + β)² + ½Σw_n x_n² − Σ(L_n)x_n up to a constant, with S = Y + Σx, |x| ≤ α and S in its interval.
    """
    import clarabel
    from scipy import sparse

    size = params.slope.size
    quadratic = sparse.diags([*params.variance_slope, 1.0], format="csc")
    linear = np.append(-(params.target + params.intercept), params.intercept)
    total = sparse.csc_matrix(np.append(-np.ones(size), 1.0))
    rows = sparse.vstack([total, sparse.eye(size + 1), -sparse.eye(size + 1)], format="csc")
    high, low = np.append(params.max_shift, params.report_high), np.append(-params.max_shift, params.report_low)
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * (size + 1))]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    return quadratic, linear, rows, np.concatenate([[params.base_load], high, -low]), cones, settings


def clarabel_row(params: Params, quick: bool) -> Row:
    """Clarabel on the same equilibrium; building the matrices is not counted."""
    size = params.slope.size
    name, unit, scale = f"same, generic solver (Clarabel), N = {size}", *(("ms", 1e3) if size > 10_000 else ("µs", 1e6))
    if find_spec("clarabel") is None:
        return Row(name, None, unit, note="skipped: needs clarabel")
    import clarabel

    problem = potential_qp(params)
    solve = lambda: clarabel.DefaultSolver(*problem).solve()  # noqa: E731
    error = np.abs(np.array(solve().x)[:size] - variational_equilibrium(params, params.slope).shift).max()
    note = f"differs by {error:.0e} MWh from the exact one"
    return Row(name, scale * seconds(solve, 3 if quick else 9), unit, note=note)


def exact_rows(params: Params, unit: str, scale: float, target: str, repeats: int, calls: int) -> Iterator[Row]:
    """The exact solver from the bare parameters, and once more with the sorted table that a scenario keeps in them."""
    size, bare = params.slope.size, params._replace(free=None)
    spent = seconds(partial(variational_equilibrium, bare), repeats, calls)
    yield Row(f"exact equilibrium, N = {size}", scale * spent, unit, target, note="sorting the answers included")
    spent = seconds(partial(variational_equilibrium, params), repeats, calls)
    note = "answers sorted when the parameters were made, which is not counted"
    yield Row(f"same, answers sorted beforehand, N = {size}", scale * spent, unit, note=note)


def equilibria(quick: bool) -> Iterator[Row]:
    """Exact variational equilibria of several sizes, beside a generic solver."""
    params = load_scenario().params()
    yield from exact_rows(params, "µs", 1e6, "<= 50", 3 if quick else 15, 20 if quick else 500)
    yield clarabel_row(params, quick)
    envs = 64 if quick else 4096
    base = params.nominal_demand - params.renewable_generation
    contexts = base + np.random.default_rng(0).normal(0.0, 1.0, (envs, base.size))
    bare = params._replace(free=None)
    spent = seconds(lambda: variational_equilibrium(bare, private_information=contexts), 3 if quick else 15)
    yield Row("exact equilibrium, N = 13, each of a batch", 1e6 * spent / envs, "µs", "<= 1.5", note=f"batch of {envs}")
    sizes = ((1_000, "µs", 1e6, "<= 100"), (100_000, "ms", 1e3, "<= 30"), (1_000_000, "s", 1.0, "< 1"))
    for size, unit, scale, target in sizes:
        if quick and size > 1_000:
            yield Row(f"exact equilibrium, N = {size}", None, unit, target, note="skipped: quick run")
            continue
        params = Scenario.random(size, seed=0).params()
        yield from exact_rows(params, unit, scale, target, 5, max(1, 10_000 // size))
        if size < 1_000_000:
            yield clarabel_row(params, quick)
        else:
            note = "skipped: some ten seconds and a gigabyte a solve"
            yield Row(f"same, generic solver (Clarabel), N = {size}", None, unit, note=note)
    if not quick:
        yield Row(
            "exact equilibrium, N = 1000000, peak memory", peak_memory(params), "GiB", "< 1", note="beyond its data"
        )


def peak_memory(params: Params) -> float:
    """Most memory one equilibrium holds at a time, sorted table included, on top of its inputs [GiB]."""
    params = params._replace(free=None)
    tracemalloc.start()
    variational_equilibrium(params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**30


class RandomPolicy:
    """Uniform actions: a policy that costs next to nothing and never repeats itself."""

    full_information = False

    def __init__(self, agents: int) -> None:
        self.noise: Mapping[str, Draw] = {"action": Draw("uniform", (agents, 2))}

    def act(self, params: Any, observations: Any, state: Any, noise: dict[str, Any]) -> Any:
        """Actions ``(E, N, 2)``."""
        del params, observations, state
        return 2.0 * noise["action"] - 1.0


def jax_rollout(quick: bool) -> Iterator[Row]:
    """Compiled rollout of random actions with autoreset, rewards and final state kept."""
    name, unit = "JAX rollout, repeated, realised", "M agent-steps/s"
    if find_spec("jax") is None:
        yield Row(name, None, unit, note="skipped: needs jax")
        return
    import jax

    from p2penv.faces.jax import MarketJaxEnv

    envs, steps = (64, 10) if quick else (4096, 100)
    env = MarketJaxEnv(
        p2penv.make_functional("communication_v0", horizon=ENDLESS, reward="realised", infos="none"), envs
    )
    agents = env.context.shape[0]
    policy = RandomPolicy(agents)
    rollout = jax.jit(lambda key, params: env.rollout(key, policy, steps, params))
    keys = iter(jax.random.split(jax.random.key(0), 100))
    spent = seconds(lambda: jax.block_until_ready(rollout(next(keys), env.params)), 3 if quick else 9)
    device = jax.devices()[0].platform
    yield Row(name, 1e-6 * envs * agents * steps / spent, unit, note=f"{envs} environments, float32, {device}")


def learning(quick: bool) -> Iterator[Row]:
    """The shared-parameter PPO learner as it trains by default, evaluations left out."""
    name, unit = "PPO, shared parameters, 64 environments", "k agent-steps/s"
    if missing := [package for package in ("torch", "stable_baselines3") if find_spec(package) is None]:
        yield Row(name, None, unit, note=f"skipped: needs {', '.join(missing)}")
        return
    from training.runs import TrainConfig
    from training.sb3 import make_env, make_models

    config = TrainConfig(num_envs=8 if quick else 64)
    env = p2penv.make_functional("communication_v0")
    vec = make_env(env, config)
    (model,) = make_models(config, env, [vec], None)
    model.learn(1)
    before, start = model.num_timesteps, time.perf_counter()
    model.learn(1 if quick else 100_000, reset_num_timesteps=False)
    spent = time.perf_counter() - start
    yield Row(name, 1e-3 * (model.num_timesteps - before) / spent, unit, note=f"network {config.network}, 1 thread")


def machine() -> dict[str, str | int | None]:
    """What decides the numbers besides the code."""
    found: dict[str, str | int | None] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
    }
    for package in ("jax", "clarabel"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | versions()


def table(rows: list[Row]) -> Table:
    """Rows for the terminal."""
    drawn = Table(title="Speed on this machine")
    for column in ("name", "value", "unit", "target", "aim", "note"):
        drawn.add_column(column, justify="right" if column == "value" else "left")
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.3g}"
        drawn.add_row(row.name, value, row.unit, row.target, row.aim, row.note)
    return drawn


def run(quick: bool = False, folder: Path = Path("runs/bench")) -> list[Row]:
    """Measure everything, print a table and write ``speed.json`` and ``speed.csv``.

    Args:
        quick: small sizes and few repeats, only to see that everything runs; the numbers mean little then.
        folder: where to write.
    """
    from benchmarks import speed_dpvcg, speed_grid, speed_pem, speed_private

    core = (single_steps, batched_steps, equilibria, jax_rollout, learning)
    parts = (*core, speed_dpvcg.rows, speed_pem.rows, speed_private.rows, speed_grid.rows)
    rows = [row for part in parts for row in part(quick)]
    Console().print(table(rows))
    plain = [asdict(row) for row in rows]
    write_json(folder / "speed.json", {"quick": quick, "machine": machine(), "rows": plain})
    write_csv(folder / "speed.csv", plain, list(plain[0]))
    return rows


if __name__ == "__main__":
    run()
