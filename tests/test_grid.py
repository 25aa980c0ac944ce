"""The feeder and the exact equilibria of the network-constrained market."""

import numpy as np
import pytest

from p2penv.grid import load_feeder, load_scenario, rules
from p2penv.grid.equilibrium import variational_equilibrium


@pytest.fixture(scope="module")
def scenario():
    return load_scenario("ieee37", prosumers=12, seed=0)


@pytest.fixture(scope="module")
def exact(scenario):
    return {kind: variational_equilibrium(scenario, kind) for kind in ("nash", "wardrop", "social", "no_trade")}


def test_feeder_has_the_published_loads():
    feeder = load_feeder()
    assert len(feeder.buses) == 36
    assert feeder.spot_active.sum() == pytest.approx(2457.0)
    assert feeder.spot_reactive.sum() == pytest.approx(1201.0)


def test_lowest_voltage_with_the_feeder_s_own_loads(scenario):
    feeder = scenario.feeder
    state = rules.network_state(scenario, -feeder.spot_active, -feeder.spot_reactive)
    assert feeder.buses[int(state.voltage.argmin())] == "740"
    assert state.voltage.min() == pytest.approx(0.95875, abs=5e-6)


def test_flows_and_voltages_solve_the_equations_of_the_lines(scenario):
    """(13) and (15) as one linear system in θ and v, built from the lines' admittances."""
    feeder = scenario.feeder
    size, rng = len(feeder.buses), np.random.default_rng(0)
    active, reactive = rng.uniform(-60.0, 40.0, (2, size))
    children = np.flatnonzero(np.asarray(feeder.parent) >= 0)
    admittance = 1.0 / (np.asarray(feeder.resistance) + 1j * np.asarray(feeder.reactance))
    conductance, susceptance = admittance.real, admittance.imag
    system, right = np.zeros((2 * size, 2 * size)), np.zeros(2 * size)
    source = feeder.buses.index(feeder.source)
    for line, child in enumerate(children):
        parent = feeder.parent[child]
        g, b = conductance[line], susceptance[line]
        for bus, other in ((child, parent), (parent, child)):
            for sign, column in ((1.0, bus), (-1.0, other)):
                system[bus, column] += sign * b
                system[bus, size + column] -= sign * g
                system[size + bus, column] += sign * g
                system[size + bus, size + column] += sign * b
    right[:size], right[size:] = -active / feeder.base_kva, -reactive / feeder.base_kva
    for row, value in ((source, 0.0), (size + source, 1.0)):
        system[row] = 0.0
        system[row, row] = 1.0
        right[row] = value
    solved = np.linalg.solve(system, right)
    state = rules.network_state(scenario, active, reactive)
    np.testing.assert_allclose(state.angle, solved[:size], atol=1e-12)
    np.testing.assert_allclose(state.voltage, solved[size:], atol=1e-12)


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
