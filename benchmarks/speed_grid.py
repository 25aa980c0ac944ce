"""How fast are the rules of the network-constrained market? Medians over repeats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np

from benchmarks.speed import Row, seconds
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


def rows(quick: bool) -> Iterator[Row]:
    """All measurements."""
    yield from network(quick)
