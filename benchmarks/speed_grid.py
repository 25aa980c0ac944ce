"""How fast are rules, batched steps, equilibria and Algorithm 1 of the network-constrained market?

Medians over repeats; what takes minutes is measured once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np

import p2penv
from baselines.grid_algorithm import algorithm1
from benchmarks.speed import Row, seconds, step_next
from p2penv.core.params import cast
from p2penv.grid import load_scenario, rules
from p2penv.grid.equilibrium import variational_equilibrium
from p2penv.grid.rules import Schedules


def network(quick: bool) -> Iterator[Row]:
    """Flows, voltages and excesses of the 36 buses of a batch, what the fees of their violations and cuts take."""
    envs, repeats = (64, 3) if quick else (4096, 50)
    scenario = load_scenario("ieee37", prosumers=50, scale="paper", power_factor=0.95)
    rng = np.random.default_rng(0)
    for dtype, target in ((np.float64, "<= 5"), (np.float32, "")):
        params = cast(scenario.params, np, dtype)
        # Sizes at which some limits are violated in most environments, and none in others.
        size = rng.uniform(0.0, 60.0, (8, envs, 1))
        demand = (size * rng.uniform(0.0, 2.0, (8, envs, scenario.size))).astype(dtype)
        given = cycle([tuple(-side for side in rules.bus_demand(params, net, 12)) for net in demand])
        spent = seconds(lambda given=given, params=params: rules.network_state(params, *next(given)), repeats)  # type: ignore[misc]
        yield Row(f"network state, {envs} environments x 36 buses", 1e3 * spent, "ms", target, note=dtype.__name__)
        pairs = cycle([(net, rules.state_of(params, net, 12)) for net in demand])
        spent = seconds(lambda pairs=pairs, params=params: rules.network_fees(params, *next(pairs)), repeats)  # type: ignore[misc]
        yield Row(f"network fees, {envs} environments x 50 prosumers", 1e3 * spent, "ms", note=dtype.__name__)
        nets = cycle(demand)
        spent = seconds(lambda nets=nets, params=params: rules.cut(params, next(nets), 12), repeats)  # type: ignore[misc]
        yield Row(f"exact cut, {envs} environments x 50 prosumers", 1e3 * spent, "ms", note=dtype.__name__)


def steps(quick: bool) -> Iterator[Row]:
    """Hours of the batched face, 50 households, one hour in 24 with a reset; actions differ from hour to hour."""
    envs = 8 if quick else 512
    scenario = load_scenario("ieee37", prosumers=50)
    for name, target, aim, options in (
        ("float32", ">= 1", "3", {"dtype": "float32"}),
        ("float64", "", "", {}),
        ("float32, curtail", "", "", {"dtype": "float32", "network": "curtail"}),
        ("float32, bilateral", "", "", {"dtype": "float32", "trade_price": "bilateral"}),
    ):
        given: dict[str, Any] = options
        env = p2penv.make_vector("grid_v0", envs, scenario=scenario, infos="none", **given)
        shape = env.action_space.shape
        assert shape is not None
        rng = np.random.default_rng(0)
        actions = cycle([rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)])
        env.reset(seed=0)
        spent = seconds(partial(step_next, env, actions), 3 if quick else 48)
        value = 1e-6 * envs * scenario.size / spent
        yield Row("batched hours, 50 prosumers", value, "M agent-steps/s", target, aim, f"{envs} environments, {name}")


def equilibria(quick: bool) -> Iterator[Row]:
    """The exact variational equilibrium of a day; building the program and the multipliers are included."""
    if find_spec("clarabel") is None:
        yield Row("exact equilibrium of a day", None, "s", note="skipped: needs clarabel")
        return
    cases: list[tuple[int, dict[str, Any], str, int]] = [
        (12, {"density": 0.6, "scale": "paper"}, "<= .5", 9),
        (50, {"density": 0.6, "scale": "paper"}, "<= 10", 3),
        (200, {"partners": 6}, "<= 20", 3),
        (1000, {"partners": 6}, "<= 180", 1),
    ]
    for size, options, target, repeats in cases[: 2 if quick else None]:
        scenario = load_scenario("ieee37", prosumers=size, **options)
        found, times = None, []
        for _ in range(1 if quick else repeats):
            start = time.perf_counter()
            found = variational_equilibrium(scenario)
            times.append(time.perf_counter() - start)
        assert found is not None
        note = f"{scenario.pairs} pairs, KKT residual {found.residual:.0e}{_memory()}"
        yield Row(f"exact equilibrium of a day, N = {size}", median(times), "s", target, note=note)


def algorithm(quick: bool) -> Iterator[Row]:
    """Algorithm 1 until it is within 0.1 kW of the exact equilibrium, and how far it is then."""
    if find_spec("clarabel") is None:
        yield Row("Algorithm 1", None, "s", note="skipped: the exact equilibrium beside it needs clarabel")
        return
    for size, target in ((12, "<= 60"), (50, "<= 900"))[: 1 if quick else None]:
        scenario = load_scenario("ieee37", prosumers=size, density=0.6, scale="paper")
        run = algorithm1(scenario)
        far = _distance(run.schedules, variational_equilibrium(scenario).schedules)
        note = f"{run.iterations} iterations, {far:.3f} kW from the exact one" + ("" if run.converged else ", gave up")
        yield Row(f"Algorithm 1, N = {size}, density .6", run.seconds, "s", target, note=note)


def _distance(found: Schedules, exact: Schedules) -> float:
    """Largest difference of devices, purchases and net trades [kW]; who trades with whom is not unique."""
    parts = [getattr(found, name) - getattr(exact, name) for name in ("dispatch", "charge", "discharge", "grid")]
    parts.append((found.trade - exact.trade).sum(axis=-1))
    return max(float(np.abs(part).max()) for part in parts)


def _memory() -> str:
    """Memory of this process at most so far, where the system counts it in KiB."""
    if sys.platform != "linux":
        return ""
    import resource

    return f", {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most so far"


def rows(quick: bool) -> Iterator[Row]:
    """All measurements."""
    yield from network(quick)
    yield from steps(quick)
    yield from equilibria(quick)
    yield from algorithm(quick)
