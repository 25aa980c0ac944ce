"""Feeders: the published one, flows and voltages against two independent solutions, everything that is refused."""

import copy
import dataclasses
import pickle

import numpy as np
import power_flow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.grid import Feeder, load_feeder, load_scenario, rules

LINES = [("a", "b"), ("b", "c"), ("d", "b")]


def small(lines=LINES, r=0.01, x=0.02, loads=None, source="a", **fields):
    return Feeder.from_lines("small", source, lines, np.full(len(lines), r), np.full(len(lines), x), loads, **fields)


def random_tree(seed, size):
    rng = np.random.default_rng(seed)
    parent = np.array([-1, *(int(rng.integers(k)) for k in range(1, size))])
    r, x = rng.uniform(0.001, 0.02, (2, size - 1))
    return Feeder("tree", tuple(map(str, range(size))), "0", parent, r, x, np.zeros(size), np.zeros(size))


def solved(feeder, active, reactive, sign=-1.0):
    """θ and v of demands by (13) and (15) as one linear system, line by line; B = −b of the line is ``sign``·b."""
    size = feeder.size
    matrix, right = np.zeros((2 * size, 2 * size)), np.concatenate([active, reactive]) / feeder.base_kva
    for line, y in enumerate(feeder.fed):
        z = feeder.parent[y]
        admittance = 1.0 / complex(feeder.resistance[line], feeder.reactance[line])
        conductance, susceptance = admittance.real, -sign * admittance.imag
        for bus, other in ((y, z), (z, y)):
            matrix[bus, [bus, other]] += [susceptance, -susceptance]
            matrix[bus, [size + bus, size + other]] += [-conductance, conductance]
            matrix[size + bus, [bus, other]] += [conductance, -conductance]
            matrix[size + bus, [size + bus, size + other]] += [susceptance, -susceptance]
    for row, value in ((feeder.root, 0.0), (size + feeder.root, 1.0)):
        matrix[row], right[row] = 0.0, value
        matrix[row, row] = 1.0
    answer = np.linalg.solve(matrix, right)
    return answer[:size], answer[size:]


def on(feeder):
    """Rules' parameters of any feeder, with two prosumers that do nothing."""
    loaded = dataclasses.replace(feeder, spot_active=np.ones(feeder.size))
    return load_scenario(prosumers=2, feeder=loaded).params


def test_the_published_feeder():
    feeder = load_feeder()
    assert (feeder.size, len(feeder.lines), feeder.source, feeder.buses[feeder.root]) == (36, 35, "799", "799")
    assert feeder.spot_active.sum() == pytest.approx(2457.0, abs=1e-9)
    assert feeder.spot_reactive.sum() == pytest.approx(1201.0, abs=1e-9)
    assert "775" not in feeder.buses
    line = feeder.lines.index("799-701")
    # 1850 feet of configuration 721, 0.22717 + 0.2333j ohm a mile, on 4.8² ohm.
    assert feeder.resistance[line] == pytest.approx(0.22717 * 1850 / 5280 / 4.8**2, abs=5e-9)
    assert feeder.reactance[line] == pytest.approx(0.2333 * 1850 / 5280 / 4.8**2, abs=5e-9)
    # Where a line's flow goes: everything hangs on the first one, the last feeds one bus.
    assert feeder.downstream[line].sum() == 35
    assert feeder.downstream[feeder.lines.index("711-740")].nonzero()[0].tolist() == [feeder.index("740")]
    for matrix in (feeder.R, feeder.X, feeder.downstream):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1.0


def test_a_case_worked_by_hand():
    """a–b–c and b–d, 0.01 + 0.02j each: b's drop is that of everything, c's and d's come on top."""
    feeder = small(base_kva=100.0)
    assert feeder.buses == ("a", "b", "c", "d")
    demand, reactive = np.array([5.0, 0.0, 10.0, 20.0]), np.array([0.0, 5.0, 0.0, 0.0])
    state = rules.network_state(on(feeder), -demand, -reactive)
    np.testing.assert_allclose(state.active, [30.0, 10.0, 20.0])
    np.testing.assert_allclose(state.reactive, [5.0, 0.0, 0.0])
    drop = [0.01 * 0.3 + 0.02 * 0.05, 0.01 * 0.1, 0.01 * 0.2]
    np.testing.assert_allclose(state.voltage, [1.0, 1.0 - drop[0], 1.0 - drop[0] - drop[1], 1.0 - drop[0] - drop[2]])
    turn = [0.02 * 0.3 - 0.01 * 0.05, 0.02 * 0.1, 0.02 * 0.2]
    np.testing.assert_allclose(state.angle, [0.0, -turn[0], -turn[0] - turn[1], -turn[0] - turn[2]], atol=1e-15)
    assert (state.grid_active, state.grid_reactive) == (35.0, 5.0)


def test_flows_and_voltages_solve_the_equations_of_the_lines():
    feeder = load_feeder()
    params, rng = on(feeder), np.random.default_rng(0)
    active, reactive = rng.uniform(-60.0, 120.0, (2, 50, feeder.size))
    state = rules.network_state(params, -active, -reactive)
    for k in range(50):
        angle, voltage = solved(feeder, active[k], reactive[k])
        np.testing.assert_allclose(state.angle[k], angle, atol=1e-13)
        np.testing.assert_allclose(state.voltage[k], voltage, atol=1e-13)
    np.testing.assert_allclose(1.0 - active @ feeder.R - reactive @ feeder.X, state.voltage, atol=1e-13)
    np.testing.assert_allclose(reactive @ feeder.R - active @ feeder.X, state.angle, atol=1e-13)


@given(st.integers(0, 10_000), st.integers(2, 30))
def test_any_tree(seed, size):
    feeder, rng = random_tree(seed, size), np.random.default_rng(seed)
    active, reactive = rng.normal(0.0, 30.0, (2, size))
    state = rules.network_state(on(feeder), -active, -reactive)
    angle, voltage = solved(feeder, active, reactive)
    np.testing.assert_allclose(state.angle, angle, atol=1e-11)
    np.testing.assert_allclose(state.voltage, voltage, atol=1e-11)
    # Balance at every bus: what flows in, less what flows on, is its demand; the source covers the rest.
    into, onward = np.zeros((2, size)), np.zeros((2, size))
    into[0, feeder.fed], into[1, feeder.fed] = state.active, state.reactive
    np.add.at(onward[0], feeder.parent[feeder.fed], state.active)
    np.add.at(onward[1], feeder.parent[feeder.fed], state.reactive)
    into[:, feeder.root] += [state.grid_active, state.grid_reactive]
    np.testing.assert_allclose(into - onward, [active, reactive], atol=1e-9)


def test_the_feeders_own_loads():
    feeder = load_feeder()
    params = on(feeder)
    state = rules.network_state(params, -feeder.spot_active, -feeder.spot_reactive)
    assert feeder.buses[int(state.voltage.argmin())] == "740"
    assert state.voltage.min() == pytest.approx(0.95875, abs=5e-6)
    exact = power_flow.solve(feeder, feeder.spot_active, feeder.spot_reactive)
    assert feeder.buses[int(exact.voltage.argmin())] == "740"
    assert exact.voltage.min() == pytest.approx(0.95725, abs=5e-6)
    assert exact.losses == pytest.approx(58.86, abs=5e-3)
    # What more of active power, spread evenly over all other buses, leaves 0.95 p.u.
    room = (state.voltage - 0.95)[1:] / (feeder.R @ (np.arange(feeder.size) != feeder.root) / 35.0)[1:]
    assert room.min() == pytest.approx(640.6, abs=0.05)
    # b taken as it stands in tables, instead of B = −b, hides most of the drop.
    assert solved(feeder, feeder.spot_active, feeder.spot_reactive, sign=1.0)[1].min() == pytest.approx(
        0.9826, abs=5e-5
    )


@pytest.mark.parametrize(("scale", "prosumers"), [("households", 12), ("households", 1000), ("paper", 50)])
def test_the_linear_equations_are_near_an_ac_power_flow(scale, prosumers):
    """The errors that the module states, with all demand bought from the grid."""
    scenario = load_scenario(prosumers=prosumers, scale=scale)
    feeder = scenario.feeder
    net = np.maximum(scenario.demand - scenario.solar, 0.0)
    for hour in (3, 12, 19):
        active, reactive = rules.bus_demand(scenario.params, net[hour], hour)
        linear, exact = rules.network_state(scenario, -active, -reactive), power_flow.solve(feeder, active, reactive)
        assert exact.voltage.min() > 0.95
        over = linear.voltage - exact.voltage
        assert -1e-9 < over.min() <= over.max() < 0.0016
        np.testing.assert_allclose(linear.angle, exact.angle, atol=7e-4)
        power, true = np.hypot(linear.active, linear.reactive), np.hypot(exact.active, exact.reactive)
        # At the fed end only the losses downstream are missing.
        assert (power < true + 1e-6).all()
        assert (power > true * (1.0 - 0.016) - 1e-6).all()
        assert 0.0 < exact.losses < 0.025 * active.sum()


def test_reading_and_copying(tmp_path):
    path = tmp_path / "three.csv"
    head = "from,to,length_ft,configuration,r_pu,x_pu,load_kw,load_kvar\n"
    path.write_text(head + "s,1,100,x,0.01,0.02,5,1\n1,2,100,x,0.03,0.01,7,2\n", encoding="utf-8")
    feeder = Feeder.read(path, "s")
    assert (feeder.name, feeder.buses, feeder.lines) == ("three", ("s", "1", "2"), ["s-1", "1-2"])
    np.testing.assert_array_equal(feeder.spot_active, [0.0, 5.0, 7.0])
    np.testing.assert_array_equal(feeder.resistance, [0.01, 0.03])
    for other in (copy.deepcopy(feeder), pickle.loads(pickle.dumps(feeder))):
        np.testing.assert_array_equal(other.R, feeder.R)
        assert not other.resistance.flags.writeable
    for text, message in (
        ("from,to,r\n1,2,3\n", r"three\.csv: columns must be from, to, length_ft"),
        (head + "s,1,100,x,nan,0.02,5,1\n", r"three\.csv, line 2: r_pu must be a number"),
        (head + "s,1,100,x,0,0.02,5,1\n", r"resistance of s-1 must be finite and > 0, got 0\.0"),
        (head + "s,1,100,x,1,-2,5,1\n", r"reactance of s-1 must be finite and > 0, got -2\.0"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Feeder.read(path, "s")
    with pytest.raises(ValueError, match="feeder must be one of 'ieee37'; got 'ieee13'"):
        load_feeder("ieee13")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": [*LINES, ("d", "c")]}, "line b-c closes a cycle|line d-c closes a cycle"),
        ({"lines": [*LINES, ("b", "a")]}, "closes a cycle; the feeder must be radial"),
        ({"lines": [*LINES, ("e", "f")]}, "disconnected feeder: no line leads from source a to e, f"),
        ({"lines": [*LINES, ("c", "c")]}, "line c-c starts and ends at the same bus"),
        ({"source": "z"}, "source must be one of 'a', 'b', 'c', 'd'; got 'z'"),
        ({"loads": {"z": (1.0, 0.0)}}, "bus of a load must be one of 'a', 'b', 'c', 'd'; got 'z'"),
        ({"loads": {"c": (np.nan, 0.0)}}, "spot_active of c must be finite, got nan"),
        ({"loads": {"c": (0.0, np.inf)}}, "spot_reactive of c must be finite, got inf"),
        ({"r": 0.0}, "resistance of a-b must be finite and > 0, got 0.0"),
        ({"x": np.nan}, "reactance of a-b must be finite and > 0, got nan"),
        ({"base_kva": 0.0}, r"base_kva must be finite and > 0, got 0\.0"),
    ],
)
def test_feeders_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("parent", [-1, 0, 3, 2], "a cycle of lines keeps these buses from the source a: c, d"),
        ("parent", [-1, 0, -1, 1], r"parent of bus c must be in \[0, 3\], got -1 \(the source is a\)"),
        ("parent", [1, 0, 1, 1], "parent of bus a must be -1, got 1"),
        ("parent", [-1, 0, 7, 1], r"parent of bus c must be in \[0, 3\], got 7"),
        ("parent", [-1, 0, 1], r"parent must be whole numbers of shape \(4,\)"),
        ("parent", [-1.0, 0.0, 1.0, 1.5], r"parent must be whole numbers of shape \(4,\)"),
        ("buses", ("a", "b", "b", "d"), "buses named twice: b"),
        ("buses", ("a",), "a feeder needs at least 2 buses, got 1"),
        ("source", "q", "bus must be one of 'a', 'b', 'c', 'd'; got 'q'"),
        ("resistance", [0.1, 0.1], r"resistance must have shape \(3,\), got \(2,\)"),
        ("spot_active", [0.1, 0.1], r"spot_active must have shape \(4,\), got \(2,\)"),
    ],
)
def test_fields_that_do_not_fit_are_refused(field, value, message):
    feeder = small()
    names = ("name", "buses", "source", "parent", "resistance", "reactance", "spot_active", "spot_reactive")
    fields = {name: getattr(feeder, name) for name in names}
    with pytest.raises(ValueError, match=message):
        Feeder(**{**fields, field: value})
