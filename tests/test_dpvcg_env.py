"""The VCG environment: parity with the mechanisms, hidden types, infos, errors, draws, any scenario and action."""

import copy
import pickle
import re
from functools import cache

import gymnasium
import numpy as np
import pettingzoo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2penv import dpvcg_v0, make_functional, make_parallel, make_solo, make_vector
from p2penv.core.random import NumpyStream
from p2penv.dpvcg import DPVCG, Scenario, load_scenario, rules, sampling
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, VCGMechanism
from p2penv.dpvcg.rules import Bids
from p2penv.dpvcg.typespace import TypeSpace
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.jax import MarketJaxEnv
from p2penv.faces.parallel import MarketParallelEnv
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
from p2penv.faces.vector import MarketVectorEnv

NAME, ID = "dpvcg_v0", "p2penv/DPVCG-v0"
CASE = load_scenario()
MECHANISMS = {
    "vcg": {"mechanism": "vcg"},
    "continuous algorithm3": {"payments": "algorithm3"},
    "continuous entropy": {"payments": "entropy", "calibration": "paper"},
    "finite algorithm3": {"support": "finite", "payments": "algorithm3", "range_size": 30},
    "finite entropy": {"support": "finite", "payments": "entropy", "epsilon": 5.0},
    "laplace": {"mechanism": "laplace", "laplace_samples": 32},
}
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)
MARKET_KEYS = ["welfare", "budget", "epsilon_spent", "negative_payoffs"]
AGENT_KEYS = ["quantity", "payment", "report_scale", "true_scale"]


@cache
def market(name, **options):
    return make_functional(NAME, **(MECHANISMS[name] | options))


def start(env, num_envs, seed=0):
    return env.initial(env.params, NumpyStream(seed).draw(env.initial_noise, num_envs), num_envs)


def zeros(face):
    return {agent: np.zeros(face.action_space(agent).shape, np.float32) for agent in face.possible_agents}


# Parity with the mechanisms.


@pytest.mark.parametrize("report", ["scale", "coefficients"])
@every_mechanism
def test_truth_gives_the_mechanism_s_own_payoffs(name, report):
    """Through the core to 1e-9, through every face to 1e-6; the mechanism is built apart from the environment."""
    env = market(name, report=report, types="fixed")
    space = TypeSpace.scalings(CASE) if report == "scale" else TypeSpace.around(CASE)
    options = MECHANISMS[name]
    if name == "vcg":
        own, wanted = VCGMechanism(CASE), VCGMechanism(CASE).payoffs()
    elif name == "laplace":
        own = LaplaceMechanism(CASE, 1.0, space=space, samples=32)
        wanted = own.payoffs()
    else:
        own = ExponentialMechanism(
            CASE,
            options.get("epsilon", 1.0),
            options.get("support", "continuous"),
            options.get("calibration", "declared"),
            space=space,
            range_size=options.get("range_size", 100),
        )
        wanted = own.payoffs(options["payments"])
    state = start(env, 2)
    np.testing.assert_allclose(state.types, np.broadcast_to(space.truth, (2, *space.truth.shape)))
    actions = env.policy("truthful").act(env.params, None, state, {})
    step = env.step(env.params, state, actions, {})
    np.testing.assert_allclose(step.reward, np.broadcast_to(wanted, (2, 6)), atol=1e-9)
    np.testing.assert_allclose(step.info["welfare"], np.sum(wanted + own.payments(env.payments)), atol=1e-9)
    np.testing.assert_allclose(env.assess(env.params, state, actions)["cost"][0], -wanted, atol=1e-9)

    joint = actions.astype(np.float32)
    parallel = MarketParallelEnv(env)
    parallel.reset(seed=0)
    rewards = parallel.step(dict(zip(parallel.agents, joint[0], strict=True)))[1]
    np.testing.assert_allclose(list(rewards.values()), wanted, atol=1e-6)
    turns = MarketAECEnv(MarketParallelEnv(env))
    turns.reset(seed=0)
    for action in joint[0]:
        turns.step(action)
    np.testing.assert_allclose(list(turns.rewards.values()), wanted, atol=1e-6)
    batched = MarketVectorEnv(env, 2)
    batched.reset(seed=0)
    np.testing.assert_allclose(batched.step(joint)[1], np.stack([wanted, wanted]), atol=1e-6)
    learner = MarketVecEnv(env, 2)
    learner.reset()
    np.testing.assert_allclose(learner.step(joint.reshape(12, -1))[1], np.tile(wanted, 2), atol=1e-6)
    for agent in (0, 4):
        solo = MarketSoloEnv(env, CASE.agents[agent])
        solo.reset(seed=0)
        assert solo.step(joint[0, agent])[1] == pytest.approx(wanted[agent], abs=1e-6)


@every_mechanism
def test_lies_give_the_mechanism_s_payoffs_at_the_true_type(name):
    """Random types, random reports, against one mechanism whose case is the true type."""
    env = market(name, report="coefficients")
    state, actions = start(env, 3, seed=4), np.random.default_rng(4).uniform(-1, 1, (3, 6, 2))
    step = env.step(env.params, state, actions, {})
    mechanism = env.mechanism
    reports = env.space.low + (actions + 1) / 2 * (env.space.high - env.space.low)
    for row in range(3):
        reported = rules.report_bids(CASE.bids, reports[row])
        true = rules.report_bids(CASE.bids, state.types[row])
        payment = mechanism.payments(env.payments, reported)
        if name == "vcg":
            value = rules.value(true, mechanism.expected_allocation(reported))
        elif name == "laplace":
            value = mechanism.payoffs_at(reports[row], true) + payment
        else:
            value = mechanism.law_of(reported, true).true_value
        np.testing.assert_allclose(step.reward[row], value - payment, atol=1e-9)
        np.testing.assert_allclose(step.info["payment"][row], payment, atol=1e-9)
        assert step.info["welfare"][row] == pytest.approx(value.sum(), abs=1e-9)
        assert step.info["budget"][row] == pytest.approx(payment.sum(), abs=1e-9)
        assert step.info["negative_payoffs"][row] == (value < payment).sum()
    np.testing.assert_allclose(step.info["report_quadratic"], reports[..., 0])
    np.testing.assert_allclose(step.info["true_linear"], state.types[..., 1])


@every_mechanism
def test_expected_reward_is_the_mean_of_realised_ones(name):
    """Within four standard errors; under Laplace noise the expectation is an average over draws itself."""
    options = {"report": "coefficients", "horizon": 2} | ({} if name == "vcg" else {"epsilon": 2.0})
    if name == "laplace":
        options["laplace_samples"] = 20_000
    env, exact = market(name, reward="realised", **options), market(name, **options)
    draws = 3000 if "continuous" in name else 20_000  # each with its own payments, by quadrature
    action = np.random.default_rng(3).uniform(-1, 1, (1, 6, 2))
    wanted = exact.step(exact.params, start(exact, 1), action, NumpyStream(0).draw(exact.noise, 1))
    state = type(s := start(env, 1))(*(np.broadcast_to(leaf, (draws, *leaf.shape[1:])) for leaf in s))
    noise = NumpyStream(1).draw(env.noise, draws)
    sample = env.step(env.params, state, np.broadcast_to(action, (draws, 6, 2)), noise)
    error = sample.reward.std(0) * np.sqrt((2 if name == "laplace" else 1) / draws) + 1e-9
    assert (np.abs(sample.reward.mean(0) - wanted.reward[0]) < 4 * error).all()
    quantity = sample.info["quantity"]
    np.testing.assert_allclose(quantity.sum(1), 0.0, atol=1e-9)
    low, high = CASE.bounds
    assert ((quantity >= low - 1e-9) & (quantity <= high + 1e-9)).all()
    error = quantity.std(0) * np.sqrt((2 if name == "laplace" else 1) / draws) + 1e-9
    assert (np.abs(quantity.mean(0) - wanted.info["quantity"][0]) < 4 * error).all()
    if "algorithm3" in name or "entropy" in name:  # payments are expectations
        np.testing.assert_allclose(sample.info["payment"], np.tile(wanted.info["payment"], (draws, 1)), atol=1e-9)


@every_mechanism
def test_extreme_noise_stays_finite(name):
    """The ends of the unit interval, in both precisions: zero is drawn now and then."""
    env = market(name, reward="realised", report="coefficients")
    for dtype in map(np.dtype, env.dtypes):
        params = env.parameters(np, dtype)
        for value in (0.0, 1.0 - float(np.finfo(dtype).eps)):
            noise = {key: np.full((2, *draw.shape), value, dtype) for key, draw in env.noise.items()}
            state = env.initial(params, {key: np.full((2, 6, 2), value, dtype) for key in env.initial_noise}, 2)
            step = env.step(params, state, np.full((2, 6, 2), 1.0, dtype), noise)
            assert np.isfinite(step.reward).all()
            # Noise makes valuations flat, whose quantities follow a price in single precision to some Wh.
            assert np.abs(step.info["quantity"].sum(1)).max() < (1e-9 if dtype == np.float64 else 1e-2)


def test_proposals_suffice_for_hard_reports():
    """At corners of a wide box and a sharp law no draw falls back to the efficient allocation."""
    env = make_functional(NAME, reward="realised", scale_range=(0.1, 5.0), epsilon=10.0)
    rng, draws = np.random.default_rng(0), 5000
    bids = rules.report_bids(CASE.bids, np.where(rng.uniform(size=(draws, 6, 1)) < 0.5, 0.1, 5.0))
    uniforms = NumpyStream(2).draw(env.noise, draws)["draw"]
    drawn = sampling.from_uniforms(bids, CASE.bounds, env.params.beta, uniforms)
    best = rules.clear(bids, CASE.bounds).allocation
    assert np.abs(drawn - best).max(axis=1).min() > 0.0


def test_a_range_is_drawn_from_at_any_epsilon():
    """Draws from points need none of what limits draws from the polytope; at a huge ε the best point is certain."""
    env = make_functional(NAME, support="finite", reward="realised", epsilon=1e6, range_size=30)
    state, actions = start(env, 50), np.random.default_rng(0).uniform(-1, 1, (50, 6, 1))
    step = env.step(env.params, state, actions, NumpyStream(0).draw(env.noise, 50))
    points = env.params.table.points
    reported = rules.report_bids(CASE.bids, env.decode(env.params, actions))
    welfare = rules.value(Bids(*(field[:, None] for field in reported)), points).sum(axis=-1)
    np.testing.assert_allclose(step.info["quantity"], points[welfare.argmax(axis=1)], atol=1e-9)


# Types.


@pytest.mark.parametrize("report", ["scale", "coefficients"])
def test_types_are_uniform_on_the_declared_space(report):
    env = market("vcg", report=report, horizon=2)
    envs = 4000
    state = start(env, envs)
    after = env.step(
        env.params, state, np.zeros((envs, 6, len(env.action_names))), NumpyStream(1).draw(env.noise, envs)
    )
    for types in (state.types, after.state.types):
        place = (types - env.space.low) / (env.space.high - env.space.low)
        assert ((place >= 0) & (place <= 1)).all()
        np.testing.assert_allclose(place.mean(0), 0.5, atol=0.025)
        np.testing.assert_allclose(place.std(0), np.sqrt(1 / 12), atol=0.02)
    assert (after.state.types != state.types).all()
    fixed = market("vcg", report=report, horizon=2, types="fixed")
    after = fixed.step(fixed.params, start(fixed, 2), np.zeros((2, 6, len(env.action_names))), {})
    np.testing.assert_allclose(after.state.types, np.broadcast_to(fixed.space.truth, after.state.types.shape))
    assert fixed.noise == {}


@every_mechanism
def test_types_of_others_stay_hidden(name):
    """Two worlds that differ in agent 2's type alone look the same to everybody else, until the market clears."""
    env = market(name, report="coefficients")
    noise = np.full((2, 6, 2), 0.5)
    noise[1, 2] = 0.9
    state = env.initial(env.params, {"types": noise}, 2)
    features = [np.broadcast_to(feature, (2, 6)) for feature in env.observe(env.params, state)]
    differs = np.any([feature[0] != feature[1] for feature in features], axis=0)
    assert np.flatnonzero(differs).tolist() == [2]
    # Afterwards only through one's own outcome.
    step = env.step(env.params, state, np.zeros((2, 6, 2)), NumpyStream(0).draw(env.noise, 2))
    alike = env.observe(env.params, step.state)
    for feature in alike:
        np.testing.assert_allclose(np.delete(feature[0], 2), np.delete(feature[1], 2), atol=1e-12)


def test_observations_hold_what_the_documentation_says():
    face = make_parallel(NAME, mechanism="vcg", horizon=3, report="coefficients")
    env = face.functional
    received, _ = face.reset(seed=3)
    column = {name: index for index, name in enumerate(env.features)}
    traded = paid = np.zeros(6)
    rng = np.random.default_rng(0)
    for time in range(3):
        rows = np.stack(list(received.values()))
        assert face.state_space.contains(face.state())
        np.testing.assert_array_equal(rows[:, column["role"]], CASE.sign)
        np.testing.assert_allclose(rows[:, column["quantity_low"]], CASE.bounds.low / 30.0, rtol=1e-6)
        np.testing.assert_allclose(rows[:, column["quantity_high"]], CASE.bounds.high / 25.0, rtol=1e-6)
        np.testing.assert_allclose(rows[:, column["case_linear"]], CASE.bids.linear / 0.2975, rtol=1e-6)
        np.testing.assert_allclose(rows[:, column["agents"]], 6 / 7, rtol=1e-6)
        omega = env.space.sensitivity.max()
        np.testing.assert_allclose(rows[:, column["sensitivity"]], omega / (1 + omega), rtol=1e-6)
        np.testing.assert_array_equal(rows[:, column["epsilon"]], 1.0)  # nothing is hidden
        state = face.runner.state
        place = (state.types[0] - env.space.low) / (env.space.high - env.space.low)
        own = rows[:, [column["type_quadratic"], column["type_linear"]]]
        np.testing.assert_allclose(own, 2 * place - 1, atol=1e-6)
        last = rows[:, [column["last_quantity"], column["last_payment"]]]
        if time == 0:
            assert not last.any()
        else:
            width = CASE.bounds.high - CASE.bounds.low
            np.testing.assert_allclose(last[:, 0], 2 * (traded - CASE.bounds.low) / width - 1, atol=1e-6)
            assert (np.sign(last[:, 1]) == np.sign(paid)).all()
        received, *_, infos = face.step({agent: rng.uniform(-1, 1, 2) for agent in face.agents})
        traded, paid = (np.array([infos[agent][key] for agent in infos]) for key in ("quantity", "payment"))
    assert market("finite entropy").context[0, column["epsilon"]] == pytest.approx(5 / 6)  # ε/(1 + ε)


@pytest.mark.parametrize("report", ["scale", "coefficients"])
def test_encode_inverts_decode(report):
    env = market("vcg", report=report)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 6, len(env.action_names)))
    parameters = env.decode(env.params, actions)
    np.testing.assert_allclose(env.encode(env.params, parameters), actions, atol=1e-12)
    assert ((parameters >= env.space.low) & (parameters <= env.space.high)).all()
    np.testing.assert_allclose(env.decode(env.params, np.ones(actions.shape[1:])), env.space.high, rtol=1e-15)


# Endings, infos, ε.


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_one_shot_games_terminate_and_repeated_ones_truncate(horizon):
    face = make_parallel(NAME, mechanism="vcg", horizon=horizon)
    face.reset(seed=0)
    for time in range(1, horizon + 1):
        *_, terminated, truncated, _ = face.step(zeros(face))
        for flags, expected in ((terminated, horizon == 1), (truncated, 1 < horizon == time)):
            assert list(flags) == face.possible_agents == CASE.agents
            assert all(flag is expected for flag in flags.values())
    assert face.agents == []
    solo = make_solo(NAME, "producer_1", mechanism="vcg", horizon=horizon)
    solo.reset(seed=0)
    ends = [solo.step(np.zeros(1))[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(horizon == 1, horizon > 1)]


def test_infos_by_hand():
    """Everybody reports half its valuation, which leaves the allocation and halves payments; types are the case's."""
    face = make_parallel(NAME, mechanism="vcg", types="fixed")
    face.reset(seed=0)
    _, rewards, *_, infos = face.step({agent: np.array([-1.0]) for agent in face.agents})
    demand, payment = [15, 14.003637, 18.622660, -9.626444, -15.521675, -22.478178], [
        0.630752, 0.588926, 0.747996, -0.506091, -0.884004, -1.414105,
    ]  # fmt: skip
    for index, agent in enumerate(CASE.agents):
        info = infos[agent]
        assert list(info) == MARKET_KEYS + AGENT_KEYS
        assert info["quantity"] == pytest.approx(demand[index], abs=1e-6)
        # Constants are scaled with the valuation; they cancel in pivots.
        assert info["payment"] == pytest.approx(payment[index] / 2, abs=1e-6)
        assert (info["report_scale"], info["true_scale"]) == (0.5, 1.0)
        assert info["welfare"] == pytest.approx(1.568237, abs=1e-6)
        assert info["budget"] == pytest.approx(-0.8365267 / 2, abs=1e-6)
        assert info["epsilon_spent"] == np.inf
        assert info["negative_payoffs"] == sum(reward < 0 for reward in rewards.values())
        value = CASE.bids.quadratic[index] * demand[index] ** 2 + CASE.bids.linear[index] * demand[index]
        assert rewards[agent] == pytest.approx(value + CASE.bids.constant[index] - payment[index] / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "each"),
    [
        ({"epsilon": 0.3}, 0.3),
        ({"support": "finite", "epsilon": 0.3}, 0.3),
        ({"support": "finite", "epsilon": 0.3, "calibration": "paper"}, None),
        ({"mechanism": "laplace", "epsilon": 0.3, "laplace_samples": 4}, 0.3),
        ({"mechanism": "vcg"}, np.inf),
    ],
)
def test_epsilon_adds_up_over_rounds(options, each):
    face = make_parallel(NAME, horizon=3, **options)
    if each is None:  # what β = ε/2 really costs
        each = 0.15 * face.functional.space.sensitivity.max()
    for _ in range(2):
        _, infos = face.reset(seed=0)
        assert {info["epsilon_spent"] for info in infos.values()} == {0.0}
        for time in (1, 2, 3):
            infos = face.step(zeros(face))[-1]
            assert all(info["epsilon_spent"] == pytest.approx(time * each) for info in infos.values())


@every_mechanism
def test_infos_have_the_same_keys_from_reset_on(name):
    options = MECHANISMS[name] | {"horizon": 2}
    face, batch = make_parallel(NAME, **options), make_vector(NAME, 2, **options)
    _, infos = face.reset(seed=0)
    _, first = batch.reset(seed=0)
    while face.agents:
        for info in infos.values():
            assert list(info) == MARKET_KEYS + AGENT_KEYS
            assert all(type(value) is float for value in info.values())
        infos = face.step(zeros(face))[-1]
    assert list(first) == MARKET_KEYS + AGENT_KEYS
    assert set(batch.step(np.zeros((2, 6, 1)))[-1]) == {*MARKET_KEYS, *AGENT_KEYS}
    quiet = make_parallel(NAME, infos="none", **options)
    assert quiet.reset(seed=0)[1] == quiet.step(zeros(quiet))[-1] == {agent: {} for agent in quiet.possible_agents}


def test_laplace_noise_needs_double_precision():
    """Valuations that noise has made flat would clear wrongly in single precision."""
    env = market("laplace")
    with pytest.raises(ValueError, match="dtype must be one of 'float64'; got 'float32'"):
        MarketVectorEnv(env, 2, dtype="float32")
    with pytest.raises(ValueError, match="dtype must be one of 'float64'; got 'float32'"):
        MarketJaxEnv(env, 2)


@every_mechanism
def test_single_precision_is_close_to_double(name):
    env = market(name, horizon=3, report="coefficients")
    if "float32" not in env.dtypes:
        return
    single, stream, envs = env.parameters(np, np.float32), NumpyStream(0), 16
    noise = stream.draw(env.initial_noise, envs)
    wide = env.initial(env.params, noise, envs)
    narrow = env.initial(single, {key: value.astype(np.float32) for key, value in noise.items()}, envs)
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions, noise = rng.uniform(-1, 1, (envs, 6, 2)).astype(np.float32), stream.draw(env.noise, envs)
        a = env.step(env.params, wide, actions.astype(np.float64), noise)
        b = env.step(single, narrow, actions, {key: value.astype(np.float32) for key, value in noise.items()})
        assert b.reward.dtype == np.float32
        np.testing.assert_allclose(b.reward, a.reward, atol=2e-3)
        np.testing.assert_allclose(b.info["quantity"], a.info["quantity"], atol=2e-2)
        wide, narrow = a.state, b.state


@pytest.mark.parametrize("duplicate", [lambda face: pickle.loads(pickle.dumps(face)), copy.deepcopy])
@every_mechanism
def test_copies_go_on_alike(name, duplicate):
    face = MarketVectorEnv(market(name, horizon=4), 2)
    face.reset(seed=2)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 6, 1))
    face.step(actions[0])
    twin = duplicate(face)
    wanted = [face.step(joint) for joint in actions[1:]]
    np.testing.assert_equal([twin.step(joint) for joint in actions[1:]], wanted)


# What reports need.


@every_mechanism
def test_assess(name):
    env = market(name)
    state, actions = start(env, 3), np.random.default_rng(1).uniform(-1, 1, (3, 6, 1))
    found = env.assess(env.params, state, actions)
    step = env.step(env.params, state, actions, {})
    np.testing.assert_allclose(found["cost"], -step.reward, atol=1e-12)
    np.testing.assert_allclose(found["social_cost"], -step.info["welfare"], atol=1e-12)
    truth = env.step(env.params, state, env.encode(env.params, state.types), {})
    for key in ("truthful", "equilibrium"):
        np.testing.assert_allclose(found[f"cost_{key}"], -truth.reward, atol=1e-12)
        np.testing.assert_allclose(found[f"social_cost_{key}"], -truth.info["welfare"], atol=1e-12)
    for row in range(3):
        true = rules.report_bids(CASE.bids, state.types[row])
        best = rules.pivots(true, CASE.bounds)
        assert found["social_cost_coordinated"][row] == pytest.approx(-best.clearing.welfare)
        payoffs = rules.value(true, best.clearing.allocation) - best.payment
        np.testing.assert_allclose(found["cost_coordinated"][row], -payoffs, atol=1e-12)
    assert (found["social_cost"] >= found["social_cost_coordinated"] - 1e-12).all()
    assert (found["exploitability"] >= 0).all()
    assert not found["nearest"].any()
    if name in ("continuous algorithm3", "finite algorithm3"):
        honest = env.assess(env.params, state, env.encode(env.params, state.types))
        assert (honest["exploitability"] <= honest["regret_bound"]).all()
    if name == "vcg" or "entropy" in name:
        honest = env.assess(env.params, state, env.encode(env.params, state.types))
        np.testing.assert_allclose(honest["exploitability"], 0.0, atol=1e-12)
        # Nobody loses by going over to the truth, whatever the others do.
        for agent in range(6):
            joint = actions.copy()
            joint[:, agent] = env.encode(env.params, state.types)[:, agent]
            gain = env.step(env.params, state, joint, {}).reward[:, agent] - step.reward[:, agent]
            np.testing.assert_allclose(gain, found["exploitability"][:, agent], atol=1e-9)


# Factories, errors.


def test_factories_and_registries():
    assert isinstance(dpvcg_v0.parallel_env(mechanism="vcg"), MarketParallelEnv)
    assert isinstance(dpvcg_v0.raw_env(mechanism="vcg"), MarketAECEnv)
    assert isinstance(dpvcg_v0.env(mechanism="vcg").unwrapped, MarketAECEnv)
    assert isinstance(dpvcg_v0.solo_vector_env(2, agent="producer_0", mechanism="vcg"), MarketSoloVectorEnv)
    assert isinstance(pettingzoo.make("parallel", ID, horizon=2, mechanism="vcg"), MarketParallelEnv)
    solo = gymnasium.make(ID, agent="producer_2", horizon=3, mechanism="vcg")
    solo.reset(seed=1)
    assert solo.step(solo.action_space.sample())[3] is False
    assert isinstance(make_functional(NAME, scenario=Scenario.random(2, 3, 0), mechanism="vcg"), DPVCG)


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0.0"),
        ({"epsilon": NAN}, "epsilon must be finite and > 0, got nan"),
        ({"epsilon": -1, "mechanism": "laplace"}, "epsilon must be finite and > 0, got -1.0"),
        ({"mechanism": "gaussian"}, "mechanism must be one of 'vcg', 'exponential', 'laplace'; got 'gaussian'"),
        ({"payments": "vcg"}, "payments of mechanism 'exponential' must be one of 'algorithm3', 'entropy'; got 'vcg'"),
        ({"mechanism": "vcg", "payments": "entropy"}, "mechanism 'vcg' must be one of 'vcg'; got 'entropy'"),
        ({"mechanism": "laplace", "payments": "algorithm3"}, "'laplace' must be one of 'vcg'; got 'algorithm3'"),
        ({"support": "grid"}, "support must be one of 'continuous', 'finite'; got 'grid'"),
        ({"calibration": "none"}, "calibration must be one of 'declared', 'paper'; got 'none'"),
        ({"mechanism": "laplace", "support": "grid"}, "support must be one of"),
        ({"mechanism": "vcg", "epsilon": 0.5}, "epsilon belongs to mechanism='exponential' or 'laplace' .* got 0.5"),
        ({"mechanism": "laplace", "support": "finite"}, "support belongs to mechanism='exponential' and would do noth"),
        ({"mechanism": "vcg", "calibration": "paper"}, "calibration belongs to mechanism='exponential'"),
        ({"range_size": 7}, "range_size belongs to mechanism='exponential' and support='finite'"),
        ({"mechanism": "vcg", "range_seed": 1}, "range_seed belongs to"),
        ({"laplace_samples": 7}, "laplace_samples belongs to mechanism='laplace'"),
        ({"report": "coefficients", "scale_range": [0.5, 2.0]}, r"scale_range belongs to .* got \[0.5, 2.0\]"),
        ({"spread": 0.2}, "spread belongs to report='coefficients'"),
        ({"mechanism": "vcg", "calibration": "none"}, "calibration must be one of"),
        ({"range_seed": -1}, "range_seed must be a whole number >= 0, got -1"),
        ({"report": "all"}, "report must be one of 'scale', 'coefficients'; got 'all'"),
        ({"types": "normal"}, "types must be one of 'uniform', 'fixed'; got 'normal'"),
        ({"reward": "mean"}, "reward must be one of 'expected', 'realised'; got 'mean'"),
        ({"infos": "all"}, "infos must be one of 'full', 'none'; got 'all'"),
        ({"horizon": 0}, "horizon must be a whole number >= 1, got 0"),
        ({"scale_range": (0.0, 1.5)}, "consumer_0 must be concave throughout"),
        ({"scale_range": (1.1, 1.5)}, "consumer_0 is outside the declared type space"),
        ({"scale_range": 0.5}, r"scale_range must be a pair \(low, high\), got 0.5"),
        ({"scale_range": (NAN, 1.5)}, "of a type space must be finite"),
        ({"scale_range": (1.0, 1.0)}, "declared type space has no width"),
        ({"report": "coefficients", "spread": 1.0}, "spread must be in .* got 1.0"),
        ({"support": "finite", "range_size": 0}, "range_size must be a whole number >= 1, got 0"),
        ({"mechanism": "laplace", "laplace_samples": 2.5}, "laplace_samples must be a whole number >= 1, got 2.5"),
        ({"scenario": "community7"}, "scenario must be one of 'community6'; got 'community7'"),
        ({"demand_max": [15.0, 18.0, NAN]}, r"demand_max\[2\] must be finite .* got nan \(agent 2\)"),
        (
            {"generation_max": [30.0, 5.0, 5.0], "sampled_allocations": None},
            "infeasible sub-market: without producer_0",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_name_option_value_and_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_functional(NAME, **options)


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match=r"unknown option 'horizons'; options: .*epsilon.*fields: .*cost_linear"):
        make_functional(NAME, horizons=3)
    with pytest.raises(ValueError, match=r"agent must be one of .*; got 'producer_3'"):
        make_solo(NAME, "producer_3", mechanism="vcg")
    with pytest.raises(ValueError, match="policy must be one of 'truthful'; got 've'"):
        make_solo(NAME, "producer_1", others="ve", mechanism="vcg")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, NAN], r"action of producer_1, entry linear, must lie in \[-1, 1\], got nan"),
        ([1.25, 0.0], r"action of producer_1, entry quadratic, must lie in \[-1, 1\], got 1\.25"),
        ([0.0], r"action of producer_1 must have shape \(2,\), got \(1,\)"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(action, message):
    options = {"horizon": 3, "mechanism": "laplace", "laplace_samples": 4, "report": "coefficients"}
    erring, twin = (make_parallel(NAME, reward="realised", **options) for _ in range(2))
    erring.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        erring.step(zeros(erring) | {"producer_1": np.array(action)})
    np.testing.assert_equal(erring.step(zeros(erring)), twin.step(zeros(twin)))


# Types without width, coefficients of zero.


@pytest.mark.parametrize(
    "options",
    [
        {"mechanism": "vcg", "scale_range": (1.0, 1.0)},
        {"mechanism": "vcg", "report": "coefficients", "cost_linear": 0.0},
        {"mechanism": "laplace", "laplace_samples": 4, "scale_range": (1.0, 1.0)},
        {"mechanism": "vcg", "cost_linear": 0.0, "utility_linear": 0.0},
        {"support": "finite", "report": "coefficients", "cost_linear": 0.0, "range_size": 5},
    ],
)
def test_degenerate_type_spaces(options):
    env = make_functional(NAME, **options)
    face = MarketVectorEnv(env, 2)
    seen, _ = face.reset(seed=0)
    assert face.observation_space.contains(seen)
    actions = env.policy("truthful").act(env.params, seen, face.runner.state, {})
    np.testing.assert_allclose(env.decode(env.params, actions), face.runner.state.types, atol=1e-12)
    assert np.isfinite(face.step(actions)[1]).all()


# Any scenario, any action: a valid step or one clear error.

OVERRIDES = st.fixed_dictionaries(
    {"mechanism": st.sampled_from(["vcg", "exponential", "laplace"])},
    optional={
        "payments": st.sampled_from(["vcg", "algorithm3", "entropy"]),
        "support": st.sampled_from(["continuous", "finite"]),
        "epsilon": st.floats(1e-3, 1e3),
        "calibration": st.sampled_from(["declared", "paper"]),
        "report": st.sampled_from(["scale", "coefficients"]),
        "scale_range": st.tuples(st.floats(0.01, 1.2), st.floats(0.8, 10.0)),
        "spread": st.floats(0, 1.0),
        "types": st.sampled_from(["uniform", "fixed"]),
        "reward": st.sampled_from(["expected", "realised"]),
        "horizon": st.integers(1, 3),
        "utility_quadratic": st.floats(-0.1, 0.0),
        "utility_linear": st.floats(-1.0, 1.0),
        "cost_linear": st.floats(-1.0, 1.0),
        "cost_quadratic": st.floats(0.0, 0.1),
        "demand_min": st.floats(0, 5),
        "generation_max": st.floats(0, 100),
        "generation_min": st.floats(0, 5),
    },
)


def fitting(overrides):
    """Without what would do nothing, with little to compute."""
    kind, ranged = overrides["mechanism"], overrides.get("support") == "finite"
    idle = {"spread" if overrides.get("report", "scale") == "scale" else "scale_range"}
    idle |= {"support", "calibration"} if kind != "exponential" else set()
    idle |= {"epsilon"} if kind == "vcg" else set()
    few = (
        {"laplace_samples": 8} if kind == "laplace" else {"range_size": 20} if kind == "exponential" and ranged else {}
    )
    return {key: value for key, value in overrides.items() if key not in idle} | few


ENTRY = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 1e-300]), st.floats(-1, 1))
# What the messages may be about besides options.
SUBJECTS = ("type space", "empty feasible set", "infeasible sub-market", "market", "tolerance")


@settings(max_examples=100)
@given(
    st.integers(2, 4), st.integers(2, 4), st.integers(0, 2**31), OVERRIDES, st.lists(ENTRY, min_size=2), st.booleans()
)
def test_any_scenario_and_action_gives_a_valid_step_or_one_error(
    consumers, producers, seed, overrides, entries, single
):
    overrides = fitting(overrides)
    if overrides["mechanism"] == "exponential" and overrides.get("support") != "finite":
        consumers = producers = 2  # fitting a quadrature to wide spaces of more agents takes seconds
    env, message = None, ""
    try:
        scenario = Scenario.random(consumers, producers, seed)
        env = make_functional(NAME, scenario=scenario, **overrides)
    except ValueError as error:
        message = str(error)
    if env is None:
        assert any(subject in message for subject in (*overrides, *SUBJECTS)), message
        return
    size = consumers + producers
    face = MarketVectorEnv(env, 2, dtype=env.dtypes[-1] if single else "float64")
    seen, info = face.reset(seed=seed)
    actions = np.resize(entries, (2, size, len(env.action_names)))
    for _ in range(env.horizon + 1):
        assert face.observation_space.contains(seen)
        for key, value in info.items():
            assert not np.isnan(value).any(), key
        seen, reward, terminated, truncated, info = face.step(actions)
        assert np.isfinite(reward).all()
        assert not (terminated & truncated).any()
        if "final_obs" in info:
            assert face.observation_space.contains(info.pop("final_obs"))
            info.pop("_final_obs")


@given(st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_any_numbers_are_played_or_refused(numbers):
    face = MarketParallelEnv(market("vcg"))
    face.reset(seed=0)
    actions = {agent: np.array([number]) for agent, number in zip(face.agents, numbers, strict=True)}
    if np.all(np.abs(numbers) <= 1):
        assert np.isfinite(list(face.step(actions)[1].values())).all()
    else:
        agent = CASE.agents[int(np.argmax(~(np.abs(numbers) <= 1)))]
        with pytest.raises(ValueError, match=re.escape(f"action of {agent}, entry scale")):
            face.step(actions)
