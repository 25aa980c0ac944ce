"""Scenarios: what is refused and how it is said, files, overrides, random instances, namespaces."""

import copy
import dataclasses
import pickle
import re

import jax
import numpy as np
import pytest

from p2penv.communication import rules
from p2penv.communication.scenario import Scenario, load_scenario, scenario_names

PAIR = {
    "discomfort": [1.0, 2.0],
    "usage_benefit": 0.0,
    "generation_curvature": 1.0,
    "generation_price": 2.0,
    "fixed_cost": 0.0,
    "nominal_demand": 10.0,
    "renewable_generation": [8.0, 0.0],
    "demand_min": 0.0,
    "demand_max": 12.0,
    "generation_min": 0.0,
    "generation_max": 9.0,
    "max_shift": 1.0,
    "privacy_budget": 1.0,
    "wholesale_price": 5.0,
    "root_price": 1.0,
}
LINE = {"lines": [[0, 1]], "line_capacity": 4.0}
TRIO = {"discomfort": [1.0] * 3, "renewable_generation": 5.0, "lines": [[1, 2]], "line_capacity": 4.0}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"discomfort": [1.0, NAN]}, "discomfort[1] must be in [1e-09, 1e+09], got nan (agent 1)"),
        ({"discomfort": [0.0, 1.0]}, "discomfort[0] must be in [1e-09, 1e+09], got 0.0 (agent 0)"),
        ({"discomfort": [1.0]}, "discomfort must be a scalar or of shape (2,), got shape (1,)"),
        ({"discomfort": [1.0], "renewable_generation": [8.0]}, "at least 2 agents, got N = 1"),
        ({"discomfort": 1.0, "renewable_generation": 8.0}, "at least 2 agents, got N = 1"),
        ({"generation_curvature": [1.0, 0.0]}, "generation_curvature[1] must be in [1e-09, 1e+09], got 0.0 (agent 1)"),
        ({"usage_benefit": [0.0, INF]}, "usage_benefit[1] must be in [-1e+09, 1e+09], got inf (agent 1)"),
        ({"generation_price": [1.0, 2.0, 3.0]}, "generation_price must be a scalar or of shape (2,), got shape (3,)"),
        ({"fixed_cost": [[0.0, 0.0]]}, "fixed_cost must be a scalar or of shape (2,), got shape (1, 2)"),
        ({"nominal_demand": [-1.0, 1.0]}, "nominal_demand[0] must be in [0, 1e+09], got -1.0 (agent 0)"),
        ({"renewable_generation": -1.0}, "renewable_generation[0] must be in [0, 1e+09], got -1.0 (agent 0)"),
        ({"max_shift": [1.0, -2.0]}, "max_shift[1] must be in [0, 1e+09], got -2.0 (agent 1)"),
        ({"wholesale_price": 1e10}, "wholesale_price must be in [0, 1e+09], got 10000000000.0"),
        (
            {"privacy_budget": [1e-5, 1e8]},
            "privacy_budget must not differ by more than a factor of 1e+12, which rounding would not survive; got "
            "1e-05 (agent 0) and 1e+08 (agent 1)",
        ),
        ({"privacy_budget": 0.0}, "privacy_budget[0] must be in [1e-09, 1e+09], got 0.0 (agent 0)"),
        ({"root_price": [1.0, NAN]}, "root_price[1] must be in [-1e+09, 1e+09], got nan (agent 1)"),
        ({"demand_min": [0.0, 20.0]}, "demand_min[1] = 20 exceeds demand_max[1] = 12 (agent 1)"),
        ({"demand_min": [11.0, 0.0]}, "demand_min[0] = 11 exceeds nominal_demand[0] = 10 (agent 0)"),
        ({"demand_max": [12.0, 9.0]}, "nominal_demand[1] = 10 exceeds demand_max[1] = 9 (agent 1)"),
        ({"generation_min": [0.0, 10.0]}, "generation_min[1] = 10 exceeds generation_max[1] = 9 (agent 1)"),
        ({"generation_max": [9.0, 1.0], "generation_price": [6.0, 2.0]}, "empty feasible set"),
        ({"margin": 5.0}, "widen generation_min/max, demand_min/max or lower margin"),
        ({"margin": -1.0}, "margin must be in [0, 1e+09], got -1.0"),
        ({"wholesale_price": NAN}, "wholesale_price must be in [0, 1e+09], got nan"),
        ({"bookkeeping": "both"}, "bookkeeping must be one of 'each', 'root'; got 'both'"),
        ({"privacy": "none"}, "privacy must be one of 'budget', 'floor'; got 'none'"),
        ({"lines": [[0, 2]]}, "lines must join two different nodes of 0 … 1, got (0, 2)"),
        ({"lines": [[1, 1]]}, "lines must join two different nodes of 0 … 1, got (1, 1)"),
        ({"lines": [[0, -1]]}, "lines must join two different nodes of 0 … 1, got (0, -1)"),
        ({"lines": [[0, 0.5]]}, "lines must join two different nodes of 0 … 1, got (0, 0.5)"),
        ({"lines": [[0, NAN]]}, "lines must join two different nodes of 0 … 1, got (0, nan)"),
        ({"lines": [0, 1]}, "lines must be pairs of nodes, shape (L, 2), got shape (2,)"),
        ({"lines": [[0, 1], [1, 0]]}, "lines must not repeat a pair of nodes"),
        ({"lines": [[0, 1]], "line_capacity": [-1.0]}, "line_capacity[0] must be in [0, 1e+09], got -1.0 (line 0)"),
        ({"lines": [[0, 1]], "line_capacity": [1.0, 2.0]}, "line_capacity must be a scalar or of shape (1,)"),
        ({"positions": [[0.0, 0.0]]}, "positions must be finite and of shape (2, 2), got shape (1, 2)"),
        ({"root_price": [1.0, 2.0]}, "root_price differs between agents: give price_matrix too"),
        ({"price_matrix": np.ones((3, 3))}, "price_matrix must have shape (2, 2), got (3, 3)"),
        ({**TRIO, "price_matrix": np.full((3, 3), NAN)}, "price_matrix must be finite on line (1, 2)"),
        ({**LINE, "symmetric_flow": 1.0}, "symmetric_flow needs a price_matrix with equal prices on the line"),
    ],
)
def test_refusals_name_field_agent_value_and_range(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Scenario(**(PAIR | fields))


@pytest.mark.parametrize(("field", "value"), [("discomfort", ["a", "b"]), ("lines", [[0, 1], [2]]), ("margin", "x")])
def test_what_is_not_a_number_is_a_type_error(field, value):
    with pytest.raises(TypeError, match=f"{field} must (hold numbers|be a number)"):
        Scenario(**(PAIR | {field: value}))


def test_free_flow_needs_equal_prices_and_room():
    prices = np.array([[0, 1, 1], [1, 0, 2], [1, 3, 0]], float)
    size = 3
    case = {name: value for name, value in PAIR.items() if np.ndim(value) == 0}
    case |= {"discomfort": np.ones(size), "renewable_generation": 5.0, "price_matrix": prices}
    case |= {"lines": [[1, 2]], "line_capacity": 4.0}
    with pytest.raises(ValueError, match=re.escape("symmetric_flow[0] must be 0 unless the two prices of line (1, 2)")):
        Scenario(**case, symmetric_flow=1.0)
    tied = case | {"price_matrix": np.ones((size, size))}
    with pytest.raises(ValueError, match=re.escape("at most its capacity 4; got 4.5")):
        Scenario(**tied, symmetric_flow=4.5)
    np.testing.assert_array_equal(Scenario(**tied, symmetric_flow=-4.0).bilateral_flows, [-4.0])


def test_overrides_are_checked():
    scenario = load_scenario()
    with pytest.raises(TypeError, match=r"unknown scenario field 'alpha'; allowed: .*max_shift.*net_load"):
        scenario.replace(alpha=1.0)
    with pytest.raises(ValueError, match=r"net_load must be at most the nominal demand 299 MWh.*negative; got 300"):
        scenario.replace(net_load=300.0)
    with pytest.raises(ValueError, match="net_load must be finite, got nan"):
        scenario.replace(net_load=NAN)
    with pytest.raises(ValueError, match="needs renewable generation to scale"):
        scenario.replace(renewable_generation=0.0, net_load=66.0)
    for price in ([1.0, 2.0], (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match=r"trading_price must be a scalar or \(root prices \(N,\), price matrix"):
            scenario.replace(trading_price=price)
    with pytest.raises(ValueError, match="root_price"):
        scenario.replace(trading_price=NAN)
    with pytest.raises(
        ValueError, match="scenario must be one of 'ieee14', 'ieee14-bound', 'ieee14-interior'; got 'ieee'"
    ):
        load_scenario("ieee")
    with pytest.raises(ValueError, match=r"no scenario file 'nowhere\.toml'"):
        load_scenario("nowhere.toml")


def test_overrides_change_what_they_name_and_nothing_else():
    scenario = load_scenario()
    changed = load_scenario(net_load=70.0, max_shift=2.0, trading_price=1.5)
    assert changed.private_information.sum() == pytest.approx(70.0)
    # The shape of renewable generation stays: .4, .3, .3 over nodes 2, 5, 7.
    share = changed.renewable_generation / changed.renewable_generation.sum()
    np.testing.assert_allclose(share[[2, 5, 7]], [0.4, 0.3, 0.3])
    np.testing.assert_array_equal(changed.max_shift, 2.0)
    np.testing.assert_array_equal(changed.root_price, 1.5)
    moved = {"renewable_generation", "max_shift", "root_price"}
    for field in dataclasses.fields(Scenario):
        if field.name not in moved:
            np.testing.assert_array_equal(getattr(changed, field.name), getattr(scenario, field.name))
    same = scenario.replace(renewable_generation=0.0).replace(net_load=299.0)
    assert same.private_information.sum() == pytest.approx(299.0)


def test_homogeneous_prices_after_heterogeneous_ones_restore_the_scenario():
    scenario = load_scenario()
    rng = np.random.default_rng(0)
    there = scenario.replace(trading_price=(rng.uniform(1, 2, 13), rng.uniform(1, 2, (13, 13))))
    assert there.params().root_books.tolist() == [1.0] + [0.0] * 12
    back = there.replace(trading_price=1.0).params()
    for mine, other in zip(jax.tree.leaves(back), jax.tree.leaves(scenario.params()), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_values_are_copied_and_read_only():
    demand = np.array([10.0, 10.0])
    scenario = Scenario(**(PAIR | {"nominal_demand": demand}))
    demand[0] = -1.0
    assert scenario.nominal_demand[0] == 10.0
    with pytest.raises(ValueError, match="read-only"):
        scenario.nominal_demand[0] = 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenario.margin = 1.0


def write(path, table):
    def text(value):
        return f'"{value}"' if isinstance(value, str) else str(value)

    path.write_text("".join(f"{name} = {text(value)}\n" for name, value in table.items()))
    return path


def test_file_from_disk(tmp_path):
    table = {name: value for name, value in PAIR.items() if name != "root_price"} | {"trading_price": 1.0}
    loaded = load_scenario(write(tmp_path / "pair.toml", table), max_shift=0.5)
    for name in PAIR.keys() - {"max_shift"}:
        np.testing.assert_array_equal(
            getattr(loaded, name), np.broadcast_to(PAIR[name], np.shape(getattr(loaded, name)))
        )
    np.testing.assert_array_equal(loaded.max_shift, 0.5)


def test_what_is_no_scenario_is_refused_by_name(tmp_path):
    for given in (3, None, b"ieee14"):
        with pytest.raises(TypeError, match=r"scenario must be a name, the path of a \.toml file or a Scenario, got"):
            load_scenario(given)
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml' is not valid TOML"):
        load_scenario(tmp_path / "latin.toml")
    one, other = (
        write(tmp_path / "one.toml", {"base": "other.toml"}),
        write(tmp_path / "other.toml", {"base": "one.toml"}),
    )
    for path in (one, other):
        with pytest.raises(ValueError, match="is based on itself"):
            load_scenario(path)
    for size, message in (
        (2.5, "n must be a whole number"),
        ("3", "n must be a whole number"),
        (1, "at least 2 agents"),
    ):
        with pytest.raises(ValueError, match=message):
            Scenario.random(size)
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got -1"):
        Scenario.random(3, -1)


def test_file_with_a_base(tmp_path):
    shipped = load_scenario(write(tmp_path / "a.toml", {"base": "ieee14", "max_shift": 1.0}))
    np.testing.assert_array_equal(shipped.max_shift, 1.0)
    np.testing.assert_array_equal(shipped.discomfort, load_scenario().discomfort)
    # A base beside the file, whatever the working directory; own prices beat the trading price of the base.
    prices = np.ones((13, 13)).tolist()
    own = load_scenario(write(tmp_path / "b.toml", {"base": "a.toml", "root_price": 2.0, "price_matrix": prices}))
    np.testing.assert_array_equal(own.max_shift, 1.0)
    np.testing.assert_array_equal(own.root_price, 2.0)
    assert own.price_matrix is not None


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (PAIR | {"colour": 1.0}, TypeError, "unknown fields in scenario '.*bad.toml': colour"),
        ({"discomfort": [1.0, 1.0]}, ValueError, "scenario '.*bad.toml' lacks demand_max, demand_min"),
        ({"base": "other"}, ValueError, "scenario must be one of .* got 'other'"),
        ({"base": "ieee14", "trading_price": [1.0, 2.0]}, ValueError, "trading_price must be a scalar"),
        ({"base": "ieee14", "max_shift": [1.0]}, ValueError, "max_shift must be a scalar or of shape"),
        ({"": ""}, ValueError, "scenario '.*bad.toml' is not valid TOML"),
    ],
)
def test_bad_files(tmp_path, table, error, message):
    with pytest.raises(error, match=message):
        load_scenario(write(tmp_path / "bad.toml", table))


def test_shipped_scenarios():
    assert scenario_names() == ["ieee14", "ieee14-bound", "ieee14-interior"]
    base = load_scenario()
    assert base.size == 13
    assert base.private_information.sum() == pytest.approx(66.0)
    # IEEE case14: these loads are its bus loads, and 17 of its lines stay clear of node 0.
    np.testing.assert_allclose(
        base.nominal_demand[[1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]],
        [21.7, 94.2, 47.8, 7.6, 11.2, 14.9, 29.5, 9.0, 3.5, 6.1, 13.5],
    )
    assert (base.lines != 0).all(axis=1).sum() == 17
    np.testing.assert_array_equal(load_scenario("ieee14-interior").privacy_budget, 0.2)
    assert load_scenario("ieee14-bound").wholesale_price == 3.0


@pytest.mark.parametrize("size", [2, 3, 5, 13, 100, 2000])
def test_random_scenarios_are_feasible_and_connected(size):
    for seed in range(20 if size < 100 else 2):
        scenario = Scenario.random(size, seed)
        price = rules.clearing_price(scenario, scenario.private_information)
        generation, cut = rules.dispatch(scenario, price)
        assert ((generation > scenario.generation_min) & (generation < scenario.generation_max)).all()
        demand = scenario.nominal_demand - cut
        assert ((demand > scenario.demand_min) & (demand < scenario.demand_max)).all()
        reached = {0}
        for first, second in sorted(scenario.lines.tolist(), key=max):
            reached |= {first, second} if {first, second} & reached else set()
        assert reached == set(range(size))
    again = Scenario.random(size, seed)
    np.testing.assert_array_equal(again.discomfort, scenario.discomfort)


def test_random_refuses_one_agent():
    with pytest.raises(ValueError, match="at least 2 agents, got n = 1"):
        Scenario.random(1)


# JAX itself warns too; the error must come whatever the filters are.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_params_refuse_to_lose_digits():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"jax\.numpy gave float32 for float64: enable x64 or ask for float32"):
            load_scenario().params(jax.numpy)
        assert load_scenario().params(jax.numpy, jax.numpy.float32).slope.dtype == np.float32
    with jax.enable_x64(True):
        assert load_scenario().params(jax.numpy).clearing.knots.dtype == np.float64
    small = load_scenario().params(np, np.float32)._replace(clearing_order=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(small)} == {np.dtype(np.float32)}


def test_trading_prices_may_be_lists_as_files_and_commands_have_them():
    matrix = np.arange(169.0).reshape(13, 13)
    given = load_scenario(trading_price=[[1.0] * 13, matrix.tolist()])
    wanted = load_scenario(trading_price=(np.ones(13), matrix))
    np.testing.assert_array_equal(given.bilateral_flows, wanted.bilateral_flows)
    with pytest.raises(ValueError, match="trading_price must be a scalar or"):
        load_scenario(trading_price=[1.0, 2.0])
    with pytest.raises(TypeError, match="price_matrix must hold numbers"):
        load_scenario(trading_price=[1.0, [[1.0, 2.0], [3.0]]])


def test_prices_of_lines_at_node_0_are_not_read():
    scenario = load_scenario()
    matrix = np.arange(169.0).reshape(13, 13)
    blank = matrix.copy()
    blank[0] = blank[:, 0] = NAN
    both = [scenario.replace(trading_price=(1.0, prices)).params() for prices in (matrix, blank)]
    for mine, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_array_equal(mine, other)
    # Node 0 books the rest then, whatever the field says.
    assert both[0].root_books[0] == 1.0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda scenario: pickle.loads(pickle.dumps(scenario))])
def test_copies_are_equal_and_read_only(copied):
    first = Scenario.random(5, 0).replace(positions=np.ones((5, 2)), trading_price=(1.0, np.eye(5)))
    params = first.params()
    for scenario in (first, copied(first)):
        for field in dataclasses.fields(Scenario):
            value = getattr(scenario, field.name)
            np.testing.assert_array_equal(value, getattr(first, field.name))
            assert not isinstance(value, np.ndarray) or not value.flags.writeable, field.name
        for mine, other in zip(jax.tree.leaves(scenario.params()), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(mine, other)
            assert not isinstance(mine, np.ndarray) or not mine.flags.writeable
