"""The exact equilibria of the network-constrained market."""

import numpy as np
import pytest

from p2penv.grid import load_scenario, rules
from p2penv.grid.equilibrium import variational_equilibrium


@pytest.fixture(scope="module")
def scenario():
    return load_scenario("ieee37", prosumers=12, seed=0)


@pytest.fixture(scope="module")
def exact(scenario):
    return {kind: variational_equilibrium(scenario, kind) for kind in ("nash", "wardrop", "social", "no_trade")}


def test_each_equilibrium_minimises_its_own_potential(scenario, exact):
    assert all(found.residual < 1e-6 for found in exact.values())
    for kind in ("nash", "wardrop", "social"):
        own = rules.potential(scenario, exact[kind].schedules, kind)
        assert exact[kind].potential == pytest.approx(own, rel=1e-7)
        for other in exact.values():
            assert own <= rules.potential(scenario, other.schedules, kind) * (1.0 + 1e-9)
    cost = {kind: found.cost.sum() for kind, found in exact.items()}
    assert cost["social"] <= cost["nash"] <= cost["no_trade"]


def test_equilibrium_schedules_balance_and_reciprocate(scenario, exact):
    schedules = exact["nash"].schedules
    hours, demand = scenario.hours, scenario.demand[: scenario.hours]
    solar = scenario.solar[:hours]
    supplied = schedules.dispatch + schedules.discharge - schedules.charge + schedules.grid + schedules.trade.sum(-1)
    np.testing.assert_allclose(supplied - schedules.curtail + solar, demand, atol=1e-7)
    back = rules.exchange(scenario.params, schedules.trade)
    np.testing.assert_allclose(schedules.trade + back, 0.0, atol=1e-9)
    assert (schedules.charge * schedules.discharge < 1e-6).all()
