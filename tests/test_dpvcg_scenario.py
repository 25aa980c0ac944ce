"""Scenarios and type spaces of the VCG market: the paper's case, what is refused and how it is said, random markets."""

import copy
import dataclasses
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.dpvcg.rules import Bids
from p2penv.dpvcg.scenario import Scenario, load_scenario, scenario_names
from p2penv.dpvcg.typespace import TypeSpace, check_agent, reported_bids, with_report

PAIR = {
    "utility_quadratic": -0.01,
    "utility_linear": 0.3,
    "utility_constant": -0.5,
    "demand_min": [1.0, 2.0],
    "demand_max": [5.0, 6.0],
    "cost_quadratic": [0.01, 0.02],
    "cost_linear": 0.05,
    "cost_constant": 0.1,
    "generation_min": 0.0,
    "generation_max": [7.0, 8.0],
}
NAN, INF = float("nan"), float("inf")


def test_the_paper_s_case():
    """Tables I and II."""
    case = load_scenario()
    assert scenario_names() == ["community6"]
    assert (case.consumers, case.producers, case.size, case.name) == (3, 3, 6, "community6")
    assert case.agents == [f"consumer_{k}" for k in range(3)] + [f"producer_{k}" for k in range(3)]
    np.testing.assert_array_equal(case.sign, [1, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(case.bids.quadratic, [-0.00125, -0.006, -0.0067, -0.0022, -0.0013, -0.001])
    np.testing.assert_array_equal(case.bids.linear, [0.125, 0.216, 0.2975, 0.0056, 0.0076, 0.003])
    np.testing.assert_array_equal(case.bids.constant, [-0.5937, -0.93, -2.305, 0, 0, 0])
    np.testing.assert_array_equal(case.bounds.low, [5, 5, 10, -20, -25, -30])
    np.testing.assert_array_equal(case.bounds.high, [15, 18, 25, 0, 0, 0])
    assert case.sampled_allocations.shape == (10, 6)
    # As printed: rounded, the second row (whose printed welfare belongs to 21.94) the worst.
    off = np.abs((case.sampled_allocations * case.sign).sum(axis=1))
    assert off.argmax() == 1
    assert off.max() == pytest.approx(0.04, abs=1e-9)


def test_signs_of_the_signed_quantity():
    """Utility of demand and cost of generation written out, against the valuation of the signed quantity."""
    case = Scenario(**PAIR)
    demand, generation = np.array([2.0, 3.0]), np.array([4.0, 1.0])
    utility = -0.01 * demand**2 + 0.3 * demand - 0.5
    cost = np.array([0.01, 0.02]) * generation**2 + 0.05 * generation + 0.1
    y = np.concatenate([demand, -generation])
    found = case.bids.quadratic * y**2 + case.bids.linear * y + case.bids.constant
    np.testing.assert_allclose(found, np.concatenate([utility, -cost]), rtol=1e-14)
    np.testing.assert_array_equal(case.bounds.low, [1, 2, -7, -8])
    np.testing.assert_array_equal(case.bounds.high, [5, 6, 0, 0])
    assert not np.signbit(case.bounds.high[2:]).any()  # no −0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"utility_quadratic": [-0.01, NAN]}, "utility_quadratic[1] must be finite, got nan (agent 1)"),
        (
            {"utility_quadratic": [-0.01, 0.0]},
            "utility_quadratic[1] must be <= -1e-09: utility is strictly concave, got 0.0",
        ),
        ({"cost_quadratic": [0.01, -0.02]}, "cost_quadratic[1] must be >= 1e-09: cost is strictly convex, got -0.02"),
        ({"utility_linear": [0.3, 0.3, 0.3]}, "must be a scalar or of shape (3,), got shape (2,)"),
        ({"cost_linear": INF}, "cost_linear[0] must be finite, got inf (agent 0)"),
        ({"utility_constant": [[1.0, 2.0]]}, "utility_constant must be a scalar or of shape (2,), got shape (1, 2)"),
        ({"demand_min": [1.0, -2.0]}, "demand_min[1] must be finite and >= 0, got -2.0 (agent 1)"),
        ({"generation_max": [NAN, 8.0]}, "generation_max[0] must be finite and >= 0, got nan (agent 0)"),
        ({"demand_min": [5.0, 2.0]}, "demand_min[0] = 5 must be below demand_max[0] = 5"),
        ({"generation_min": [0.0, 9.0]}, "generation_min[1] = 9 must be below generation_max[1] = 8"),
        (
            {"demand_min": [0.0, 0.0], "demand_max": 1.0, "generation_min": 6.0},
            "empty feasible set: demand of 0 to 2 kWh",
        ),
        ({"generation_max": 1.0}, "cannot meet generation of 0 to 2 kWh"),
        ({"sampled_allocations": [1.0, 2.0]}, "sampled_allocations must be finite and of shape (m, 4), got shape (2,)"),
        ({"sampled_allocations": [[1.0, 2.0, NAN, 1.0]]}, "sampled_allocations must be finite"),
        ({"sampled_allocations": [[1.0, 2.0, 3.0, 9.0]]}, "sampled_allocations[0] of agent 3 must be in [0, 8], got 9"),
    ],
)
def test_refusals_name_field_agent_value_and_range(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Scenario(**(PAIR | fields))


@pytest.mark.parametrize(("field", "value"), [("utility_linear", ["a", "b"]), ("sampled_allocations", "x")])
def test_what_is_not_a_number_is_a_type_error(field, value):
    with pytest.raises(TypeError, match=f"{field} must hold numbers"):
        Scenario(**(PAIR | {field: value}))


def test_infeasible_sub_markets_name_the_agent():
    case = load_scenario()
    case.check_submarkets()
    # Without its first producer the others make at most 10 kWh, less than the 20 kWh that must be served.
    short = case.replace(generation_max=[30.0, 5.0, 5.0], sampled_allocations=None)
    with pytest.raises(ValueError, match=r"infeasible sub-market: without producer_0 .* at least 10 and"):
        short.check_submarkets()
    # Without its only large consumer what must be generated finds no demand.
    glut = case.replace(demand_max=[40.0, 6.0, 11.0], generation_min=8.0, sampled_allocations=None)
    with pytest.raises(ValueError, match=r"infeasible sub-market: without consumer_0 .* at most -7 kWh"):
        glut.check_submarkets()
    alone = Scenario(**(PAIR | {"cost_quadratic": 0.01, "generation_max": 9.0}))
    with pytest.raises(ValueError, match="without producer_0"):
        alone.check_submarkets()


def test_overrides_are_checked():
    case = load_scenario()
    with pytest.raises(TypeError, match=r"unknown scenario field 'alpha'; allowed: .*cost_linear.*utility_constant"):
        case.replace(alpha=1.0)
    with pytest.raises(TypeError, match="unknown scenario field 'alpha'"):
        load_scenario(alpha=1.0)
    with pytest.raises(ValueError, match=re.escape("demand_max[2] must be finite and >= 0, got -1.0 (agent 2)")):
        load_scenario(demand_max=[15.0, 18.0, -1.0])
    with pytest.raises(ValueError, match="scenario must be one of 'community6'; got 'community7'"):
        load_scenario("community7")
    with pytest.raises(ValueError, match=r"no scenario file 'nowhere\.toml'"):
        load_scenario("nowhere.toml")
    changed = load_scenario(cost_linear=0.01)
    np.testing.assert_array_equal(changed.cost_linear, [0.01] * 3)
    for field in dataclasses.fields(Scenario):
        if field.name != "cost_linear":
            np.testing.assert_array_equal(getattr(changed, field.name), getattr(case, field.name))


def test_values_are_copied_and_read_only():
    demand = np.array([1.0, 2.0])
    case = Scenario(**(PAIR | {"demand_min": demand}))
    demand[0] = 4.0
    assert case.demand_min[0] == 1.0
    twins = case, copy.copy(case), copy.deepcopy(case), pickle.loads(pickle.dumps(case))
    for twin in twins:
        for array in (twin.demand_min, twin.sign, *twin.bids, *twin.bounds):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 3.0
        np.testing.assert_array_equal(twin.bids, case.bids)
    with pytest.raises(ValueError, match="read-only"):
        load_scenario().sampled_allocations[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.name = "other"


def write(path, table):
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in table.items()))
    return path


def test_files(tmp_path):
    loaded = load_scenario(write(tmp_path / "pair.toml", PAIR), demand_max=9.0)
    np.testing.assert_array_equal(loaded.bids, Scenario(**PAIR).bids)
    np.testing.assert_array_equal(loaded.demand_max, 9.0)
    with pytest.raises(TypeError, match=r"unknown fields in scenario '.*bad\.toml': colour"):
        load_scenario(write(tmp_path / "bad.toml", PAIR | {"colour": 1.0}))
    with pytest.raises(ValueError, match=r"scenario '.*bad\.toml' lacks cost_constant, cost_linear"):
        load_scenario(write(tmp_path / "bad.toml", {"demand_min": 1.0}))
    with pytest.raises(ValueError, match=r"scenario '.*bad\.toml' is not valid TOML"):
        load_scenario(write(tmp_path / "bad.toml", {"": ""}))


@pytest.mark.parametrize(("consumers", "producers"), [(2, 2), (2, 5), (7, 2), (40, 3), (500, 500)])
def test_random_scenarios_clear_with_and_without_anyone(consumers, producers):
    for seed in range(20 if consumers < 100 else 2):
        case = Scenario.random(consumers, producers, seed)
        assert (case.consumers, case.producers) == (consumers, producers)
        low, high = case.bounds
        for agent in [None, *range(min(case.size, 20))]:
            rest = np.arange(case.size) != agent
            assert low[rest].sum() < 0 < high[rest].sum()
        case.check_submarkets()
    again = Scenario.random(consumers, producers, seed)
    np.testing.assert_array_equal(again.bids, case.bids)
    np.testing.assert_array_equal(again.bounds, case.bounds)
    assert (Scenario.random(consumers, producers, seed + 1).bids.linear != case.bids.linear).any()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 3), "n_consumers must be at least 2, got 1"),
        ((2, 1), "n_producers must be at least 2, got 1"),
        ((2.5, 3), "n_consumers must be a whole number >= 1, got 2.5"),
    ],
)
def test_too_small_random_scenarios_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        Scenario.random(*counts, seed=0)


# Type spaces.


def test_boxes():
    case = load_scenario()
    group = TypeSpace.group(case)
    np.testing.assert_array_equal(group.low[:3], [[-0.0067, 0.125]] * 3)
    np.testing.assert_array_equal(group.high[:3], [[-0.00125, 0.2975]] * 3)
    np.testing.assert_array_equal(group.low[3:], [[-0.0022, 0.003]] * 3)
    np.testing.assert_array_equal(group.high[3:], [[-0.001, 0.0076]] * 3)
    around = TypeSpace.around(case, 0.25)
    np.testing.assert_allclose(around.low[0], [-0.00125 * 1.25, 0.125 * 0.75], rtol=1e-14)
    np.testing.assert_allclose(around.high[5], [-0.001 * 0.75, 0.003 * 1.25], rtol=1e-14)
    scale = TypeSpace.scalings(case, 0.2, 3.0)
    assert (scale.statistics, group.statistics) == (1, 2)
    for space in (group, around, scale):
        space.check(case.bids)
        np.testing.assert_array_equal(space.parameters(case.bids), space.truth)
    doubled = Bids(*(2.0 * field for field in case.bids))
    np.testing.assert_allclose(scale.parameters(doubled), 2.0)


@given(st.integers(0, 10**6))
def test_sensitivity_of_the_group_box_is_the_largest_on_a_grid(seed):
    """Largest oscillation of a difference of two declarations: corners of the box, and quantities on a grid."""
    case = load_scenario() if seed == 0 else Scenario.random(3, 2, seed)
    space = TypeSpace.group(case)
    share = np.linspace(0.0, 1.0, 101)
    y = case.bounds.low[:, None] + share * (case.bounds.high - case.bounds.low)[:, None]
    corners = np.array([(a, b) for a in (0, 1) for b in (0, 1)])
    worst = np.zeros(case.size)
    for first in corners:
        for second in corners:
            step = (first - second) * (space.high - space.low)
            worst = np.maximum(worst, np.ptp(step[:, :1] * y**2 + step[:, 1:] * y, axis=1))
    np.testing.assert_allclose(space.sensitivity, worst, rtol=1e-12)


def test_sensitivity_of_the_case():
    np.testing.assert_allclose(
        TypeSpace.group(load_scenario()).sensitivity, [2.815, 3.872, 5.449, 0.572, 0.865, 1.218], atol=5e-4
    )


@given(st.integers(0, 10**6), st.floats(0.05, 1.0), st.floats(1.0, 4.0))
def test_sensitivity_of_scalings_is_the_largest_on_a_grid(seed, low, high):
    case = load_scenario() if seed == 0 else Scenario.random(2, 3, seed)
    share = np.linspace(0.0, 1.0, 20001)
    y = case.bounds.low[:, None] + share * (case.bounds.high - case.bounds.low)[:, None]
    value = case.bids.quadratic[:, None] * y**2 + case.bids.linear[:, None] * y
    found = TypeSpace.scalings(case, low, high).sensitivity
    np.testing.assert_allclose(found, (high - low) * np.ptp(value, axis=1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda case: TypeSpace.scalings(case, 0.0, 1.5), "consumer_0 must be concave throughout .* got α >= 0"),
        (lambda case: TypeSpace.scalings(case, 1.1, 1.5), r"consumer_0 is outside .* α must be in \[1.1, 1.5\], got 1"),
        (lambda case: TypeSpace.scalings(case, 0.5, 0.9), r"consumer_0 is outside .* α must be in \[0.5, 0.9\], got 1"),
        (lambda case: TypeSpace.scalings(case, 0.5, INF), "high of a type space must be finite"),
        (lambda case: TypeSpace.around(case, 0.0), r"spread must be in \(0, 1\], got 0.0"),
        (lambda case: TypeSpace.around(case, 1.0), "spread must be in .* got 1.0"),
        (lambda case: TypeSpace.around(case, NAN), "spread must be in .* got nan"),
        (lambda case: TypeSpace(case, "box", [[1.0]] * 6, [[1.0]] * 6), "kind must be one of 'scale', 'coefficients'"),
        (lambda case: TypeSpace(case, "scale", [[1.0]] * 5, [[1.0]] * 6), r"low .* shape \(6, 1\), got shape \(5, 1\)"),
        (
            lambda case: TypeSpace(case, "coefficients", [[-1.0, 0.0]] * 6, [[0.0, 1.0]] * 6),
            "consumer_0 must be concave throughout .* got a <= 0",
        ),
    ],
)
def test_bad_boxes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(load_scenario())


def test_reports_outside_the_box_are_refused():
    case = load_scenario()
    wide = with_report(case, 4, [-0.0013, 0.02])
    message = (
        "report of producer_1 is outside the declared type space: its linear coefficient must be in "
        "[0.003, 0.0076], got 0.02"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        TypeSpace.group(case).check(wide)
    scale = TypeSpace.scalings(case)
    with pytest.raises(ValueError, match=r"report of consumer_1 .* scale α must be in \[0.5, 1.5\], got 1.6"):
        scale.check(with_report(case, 1, 1.6))
    # A pair of coefficients that is no scaling.
    with pytest.raises(ValueError, match="report of consumer_2 must be a scaling of its declared valuation"):
        scale.check(with_report(case, 2, [-0.0067, 0.3]))
    batch = Bids(*(np.stack([right, lie]) for right, lie in zip(case.bids, wide, strict=True)))
    with pytest.raises(ValueError, match="report of producer_1"):
        TypeSpace.group(case).check(batch)


def test_reports_in_all_their_forms():
    case = load_scenario()
    truth = reported_bids(case)
    np.testing.assert_array_equal(truth, case.bids)
    scales = np.linspace(0.5, 1.5, 6)
    wanted = [scales * field for field in case.bids]
    np.testing.assert_array_equal(reported_bids(case, scales), wanted)
    np.testing.assert_array_equal(reported_bids(case, scales[:, None]), wanted)
    pairs = np.stack([case.bids.quadratic * 2, case.bids.linear * 3], axis=1)
    np.testing.assert_array_equal(reported_bids(case, pairs), [pairs[:, 0], pairs[:, 1], case.bids.constant])
    np.testing.assert_array_equal(reported_bids(case, Bids(*wanted)), wanted)
    one = with_report(case, 3, 0.5)
    np.testing.assert_array_equal(one.linear[3], 0.5 * 0.0056)
    np.testing.assert_array_equal(np.delete(one.linear, 3), np.delete(case.bids.linear, 3))
    again = with_report(case, 0, (-0.01, 0.2), one)
    np.testing.assert_array_equal([again.quadratic[0], again.linear[0], again.linear[3]], [-0.01, 0.2, 0.0028])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda case: reported_bids(case, np.ones(5)), r"scales \(6,\) or coefficients \(6, 2\), got \(5,\)"),
        (lambda case: reported_bids(case, np.ones((6, 3))), r"got \(6, 3\)"),
        (lambda case: reported_bids(case, [1, 1, NAN, 1, 1, 1]), "agent 2 must be finite, got nan"),
        (lambda case: reported_bids(case, [1, 1, 1, 1, 0, 1]), "report of producer_1 must be concave .* got -?0.0"),
        (lambda case: reported_bids(case, [1, -2, 1, 1, 1, 1]), "report of consumer_1 must be concave"),
        (lambda case: reported_bids(case, case.bids._replace(linear=np.ones(5))), r"linear must have shape \(..., 6\)"),
        (lambda case: reported_bids(case, case.bids._replace(constant=np.full(6, INF))), "constant of agent 0 must be"),
        (lambda case: with_report(case, 6, 1.0), "agent must be a whole number from 0 to 5, got 6"),
        (lambda case: with_report(case, True, 1.0), "agent must be a whole number from 0 to 5, got True"),
        (lambda case: with_report(case, -1, 1.0), "agent must be a whole number from 0 to 5, got -1"),
        (lambda case: with_report(case, 0, [1.0, 2.0, 3.0]), r"scale or a pair .* got shape \(3,\)"),
        (lambda case: with_report(case, 2, [0.01, 0.2]), "report of consumer_2 must be concave .* got 0.01"),
    ],
)  # fmt: skip
def test_bad_reports_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(load_scenario())


def test_agents_are_numbered():
    assert [check_agent(load_scenario(), k) for k in (0, np.int64(5))] == [0, 5]
    with pytest.raises(ValueError, match=r"got 1\.5"):
        check_agent(load_scenario(), 1.5)
