"""How fast are clearing, payments, draws and stepping of the VCG market? Medians over repeats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

import p2penv
from benchmarks.speed import Row, seconds, step_next
from p2penv.dpvcg import Scenario, load_scenario, rules, sampling


def payments(quick: bool) -> Iterator[Row]:
    """Efficient allocation and all VCG payments together."""
    for size, target in ((6, ""), (10_000, "<= 10"), (100_000, "<= 100")):
        size = min(size, 1000) if quick else size
        scenario = load_scenario() if size == 6 else Scenario.random(size // 2, size // 2, 0)
        spent = seconds(lambda: rules.pivots(scenario.bids, scenario.bounds), 3 if quick else 15)  # noqa: B023
        yield Row(f"VCG, all payments, n = {size}", 1e3 * spent, "ms", target)


def draws(quick: bool) -> Iterator[Row]:
    """Independent exact draws of the continuous mechanism, ε = 1 by the paper's calibration."""
    for size, count, target in ((6, 1_000_000, "<= 1"), (100, 10_000, ""), (10_000, 20, "")):
        count = min(count, 100) if quick else count
        scenario = load_scenario() if size == 6 else Scenario.random(size // 2, size // 2, 0)
        rng = np.random.default_rng(0)
        draw = partial(sampling.sample, scenario.bids, scenario.bounds, 0.5, count, rng)
        spent = seconds(draw, 3 if quick else 5) / count
        yield Row(f"exact draw, n = {size}", 1e6 * spent, "µs", target, note=f"{count:,} at once")


def steps(quick: bool) -> Iterator[Row]:
    """Steps of the batched face, n = 6, resets within the step included; every step has new reports and types."""
    expected: list[tuple[str, int, dict[str, Any], str, str]] = [
        ("vcg", 4096, {"mechanism": "vcg"}, ">= 1", "3"),
        ("vcg", 4096, {"mechanism": "vcg", "dtype": "float32"}, ">= 1", "3"),
        ("exponential, |R| = 100", 4096, {"support": "finite"}, ">= 0.3", "1"),
        ("exponential, |R| = 100", 4096, {"support": "finite", "dtype": "float32"}, ">= 0.3", "1"),
        ("exponential, |R| = 100, drawn", 4096, {"support": "finite", "reward": "realised"}, "", ""),
        ("exponential, continuous", 1024, {}, ">= 0.005", ""),
        ("exponential, continuous, drawn", 1024, {"reward": "realised"}, "", ""),
        ("laplace, drawn", 4096, {"mechanism": "laplace", "reward": "realised"}, "", ""),
        ("laplace, 256 fixed draws", 64, {"mechanism": "laplace"}, "", ""),
    ]
    for name, envs, options, target, aim in expected:
        envs = min(envs, 16) if quick else envs
        env = p2penv.make_vector("dpvcg_v0", envs, infos="none", **options)
        rng = np.random.default_rng(0)
        shape = env.action_space.shape
        assert shape is not None
        actions = cycle([rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)])
        env.reset(seed=0)
        spent = seconds(partial(step_next, env, actions), 3 if quick else 11)
        note = f"{envs} environments, {options.get('dtype', 'float64')}"
        value = 1e-6 * envs * len(env.agents) / spent
        yield Row(f"batched steps, {name}", value, "M agent-steps/s", target, aim, note)


def rows(quick: bool) -> Iterator[Row]:
    """All measurements."""
    for part in (payments, draws, steps):
        yield from part(quick)
