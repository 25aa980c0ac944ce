"""How fast are the rules and the batched steps of the network-constrained market? Medians over repeats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

import p2penv
from benchmarks.speed import Row, seconds, step_next
from p2penv.core.params import cast
from p2penv.grid import load_scenario, rules


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


def rows(quick: bool) -> Iterator[Row]:
    """All measurements."""
    yield from network(quick)
    yield from steps(quick)
