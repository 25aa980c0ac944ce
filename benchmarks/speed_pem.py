"""How fast are pricing and stepping of the private energy market? Medians over repeats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

import p2penv
from benchmarks.speed import Row, seconds, step_next
from p2penv.pem import load_scenario, rules


def pricing(quick: bool) -> Iterator[Row]:
    """The exact price of random sellers, short of demand: everybody's breakpoints count."""
    prices = rules.Prices(*map(np.array, (80.0, 90.0, 110.0, 120.0)))
    for size, target in ((300, "<= 0.2"), (100_000, "<= 80")):
        size = min(size, 300) if quick else size
        rng = np.random.default_rng(0)
        capacity = rng.uniform(0.0, 8.0, size)
        offers = rules.Offers(rng.uniform(50.0, 900.0, size), capacity, rng.uniform(0.0, 1.0, size) * capacity)
        price = partial(rules.exact_price, offers, np.array(100.0 * size), prices)
        yield Row(f"exact price, n = {size}", 1e3 * seconds(price, 3 if quick else 15), "ms", target)


def steps(quick: bool) -> Iterator[Row]:
    """Whole days of 300 homes; actions differ from window to window."""
    homes, windows = (20, 10) if quick else (300, 720)
    scenario = load_scenario("day300", homes=homes, windows=windows)
    rng = np.random.default_rng(0)
    for envs, target in ((1, "<= 1"), (64, ">= 3")):
        env = p2penv.make_vector("pem_v0", envs, scenario=scenario, infos="none")
        shape = env.action_space.shape
        assert shape is not None
        actions = cycle([rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)])
        env.reset(seed=0)
        # One day and its reset; at 64 environments its mean is over fewer windows only in a quick run.
        spent = seconds(partial(_day, env, actions, windows), 2 if quick else 3)
        if envs == 1:
            yield Row(f"a day of {homes} homes x {windows} windows, one environment", spent, "s", target)
        else:
            value = 1e-6 * envs * homes * windows / spent
            yield Row("batched steps, 64 days of 300 homes", value, "M agent-steps/s", target, note="float64")
    face = p2penv.make_parallel("pem_v0", scenario=scenario)
    joint = cycle(
        [{agent: rng.uniform(-1, 1, 5).astype(np.float32) for agent in face.possible_agents} for _ in range(4)]
    )
    face.reset(seed=0)
    spent = seconds(lambda: face.step(next(joint)), 3, min(100, windows // 4))
    yield Row("parallel step, 300 homes, full infos", 1e3 * spent, "ms", "<= 1.5")


def _day(env: Any, actions: Iterator[Any], windows: int) -> None:
    for _ in range(windows):
        step_next(env, actions)


def rows(quick: bool) -> Iterator[Row]:
    """All measurements."""
    for part in (pricing, steps):
        yield from part(quick)
