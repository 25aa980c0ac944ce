"""One market, many faces: the same seed must give the same trajectory, the same actions the same rewards."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from toy_market import Toy

from p2penv import make_functional
from p2penv.communication import Scenario, load_scenario, rules
from p2penv.core.contract import Draw
from p2penv.core.random import BLOCK, NumpyStream
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.parallel import MarketParallelEnv, records
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
from p2penv.faces.vector import MarketVectorEnv
from p2penv.pem import Scenario as Day

MARKETS = {
    "one-shot": {},
    "one-shot realised": {"reward": "realised"},
    "repeated": {"horizon": 3},
    "repeated realised": {"horizon": 3, "reward": "realised"},
    "physical": {"horizon": 3, "reward": "realised", "settlement": "physical"},
    "physical expected": {"horizon": 2, "settlement": "physical"},
    "penalised floor": {"horizon": 3, "privacy": "floor", "shared_penalty": 5.0, "scenario": "ieee14-bound"},
}


VCG_MARKETS = {
    "vcg": {"mechanism": "vcg", "horizon": 3, "report": "coefficients"},
    "vcg finite": {"support": "finite", "horizon": 3, "reward": "realised"},
    "vcg continuous": {"reward": "realised", "payments": "entropy", "report": "coefficients"},
    "vcg laplace": {"mechanism": "laplace", "laplace_samples": 8, "horizon": 2, "reward": "realised"},
}


PEM_MARKETS = {
    "pem": {"preference_cap": 0.5, "demand_cap": 0.5},
    "pem paper led": {"pricing": "paper", "leader": "agent", "forecast": 1, "capacity_cap": 0.5},
    "pem bound, loads played": {"pricing": "exact_bound", "response": "agent", "capacity_cap": 0.5},
}


GRID_MARKETS = {
    "grid": {"forecast": 1},
    "grid curtailed, led": {"trade_price": "bilateral", "network": "curtail", "dno": "agent", "export": True},
}


@pytest.fixture(params=[*MARKETS, *VCG_MARKETS, *PEM_MARKETS, *GRID_MARKETS])
def market(request):
    if request.param in GRID_MARKETS:
        return make_functional("grid_v0", prosumers=5, seed=1, **GRID_MARKETS[request.param])
    if request.param in PEM_MARKETS:
        return make_functional("pem_v0", scenario=Day.random(5, 3, 1), **PEM_MARKETS[request.param])
    if request.param in VCG_MARKETS:
        return make_functional("dpvcg_v0", **VCG_MARKETS[request.param])
    return make_functional("communication_v0", **MARKETS[request.param])


def draws(market, steps, seed=7, envs=1):
    """Joint float32 actions ``(steps, envs, N, A)``."""
    agents, size = sum(role.count for role in market.roles), max(role.actions for role in market.roles)
    return np.random.default_rng(seed).uniform(-1, 1, (steps, envs, agents, size)).astype(np.float32)


def by_agent(face, joint):
    return {
        agent: row[: face.action_space(agent).shape[0]] for agent, row in zip(face.possible_agents, joint, strict=True)
    }


def parallel_run(face, actions, seed):
    """Rows (observations, rewards, ended) of a parallel face, one seed, reset whenever an episode ends."""
    rows, (received, _) = [], face.reset(seed=seed)
    for joint in actions[:, 0]:
        before = np.stack(list(received.values()))
        received, rewards, terminated, truncated, infos = face.step(by_agent(face, joint))
        ended = any(terminated.values()) or any(truncated.values())
        rows.append((before, np.array(list(rewards.values())), ended, np.stack(list(received.values())), infos))
        if not face.agents:
            received, _ = face.reset()
    return rows


def test_every_face_plays_the_same_trajectory(market):
    """Several episodes from one seed: parallel, turn-based, batched and SB3."""
    actions = draws(market, 3 * market.horizon)
    parallel = MarketParallelEnv(market)
    rows = parallel_run(parallel, actions, seed=11)

    turns = MarketAECEnv(MarketParallelEnv(market))
    turns.reset(seed=11)
    batched = MarketVectorEnv(market, 1)
    seen, _ = batched.reset(seed=11)
    learner = MarketVecEnv(market, 1, identity=False)
    learner.seed(11)
    flat = learner.reset()
    for (before, rewards, ended, after, infos), joint in zip(rows, actions, strict=True):
        np.testing.assert_array_equal(seen[0], before)
        np.testing.assert_array_equal(flat, before)
        for agent, own in by_agent(parallel, joint[0]).items():
            assert turns.agent_selection == agent
            np.testing.assert_array_equal(turns.observe(agent), before[parallel.possible_agents.index(agent)])
            turns.step(own)
        assert list(turns.rewards.values()) == rewards.tolist()
        assert turns.infos == infos
        seen, reward, terminated, truncated, info = batched.step(joint)
        np.testing.assert_array_equal(reward[0], rewards)
        assert bool(terminated[0] or truncated[0]) == ended
        flat, flat_reward, done, flat_infos = learner.step(joint[0])
        np.testing.assert_array_equal(flat_reward, rewards.astype(np.float32))
        assert done.tolist() == [ended] * len(rewards)
        if ended:
            np.testing.assert_array_equal(info["final_obs"][0], after)
            np.testing.assert_array_equal([one["terminal_observation"] for one in flat_infos], after)
            turns.reset()
    assert sum(row[2] for row in rows) == 3


def test_toy_faces_agree_through_unequal_lengths():
    """Two roles of different sizes and random lengths: the padding of a batch must not leak into anything."""
    market = Toy(4)
    actions = draws(market, 20)
    actions[..., :2, 1] = 0.0  # padding: sellers have one action
    rows = parallel_run(MarketParallelEnv(market), actions, seed=5)
    batched = MarketVectorEnv(market, 1)
    batched.reset(seed=5)
    for (_, rewards, ended, _, _), joint in zip(rows, actions, strict=True):
        _, reward, terminated, truncated, _ = batched.step(joint)
        np.testing.assert_array_equal(reward[0], rewards)
        assert bool(terminated[0] or truncated[0]) == ended


def test_only_what_ended_is_reset():
    market = Toy(4)
    face = MarketVectorEnv(market, 32)
    face.reset(seed=0)
    lengths = face.runner.state.left.copy()
    assert np.unique(lengths).size > 2
    for time in range(1, 5):
        _, _, terminated, truncated, info = face.step(np.zeros((32, 3, 2), np.float32))
        if time == 1:
            ended = lengths == 1
            assert ended.any()
            assert not ended.all()
            np.testing.assert_array_equal(truncated, ended)
            np.testing.assert_array_equal(info["_final_obs"], ended)
            np.testing.assert_array_equal(face.runner.state.left[~ended], lengths[~ended] - 1)
            assert (face.runner.state.left[ended] >= 1).all()
            assert (face.runner.state.level[ended] == 0).all()
            assert (face.runner.state.level[~ended] > 0).any()
        assert not terminated.any()


@pytest.mark.parametrize("horizon", [1, 2])
def test_noise_of_the_step_is_drawn_before_that_of_the_reset(horizon):
    """Replay of the stream in plain NumPy: one block, environments side by side in memory."""
    market = make_functional("communication_v0", horizon=horizon, reward="realised")
    generator = np.random.Generator(np.random.SFC64(9))

    def normal():
        return generator.standard_normal((13, 3)).T

    base, alpha, budget = market.scenario.private_information, 3.0, 10.0
    face = MarketVectorEnv(market, 3)
    face.reset(seed=9)
    if horizon > 1:
        np.testing.assert_allclose(face.runner.state.private_information, base - 3.0 * normal(), atol=1e-12)
    for actions in draws(market, horizon, envs=3).astype(np.float64):
        shift = alpha * actions[..., 0]
        variance = shift**2 / (2 * budget) * (1 + (actions[..., 1] + 1) / 2)
        deviation = (shift + np.sqrt(variance) * normal()).sum(1)
        if horizon > 1:
            normal()  # moves the renewable generation
        *_, info = face.step(actions)
        np.testing.assert_allclose(info["imbalance"], -deviation, atol=1e-12)
    if horizon > 1:
        np.testing.assert_allclose(face.runner.state.private_information, base - 3.0 * normal(), atol=1e-12)


def test_copies_of_a_large_stream_go_on_alike():
    """Draws of several blocks, each block with a generator of its own."""
    spec = {"small": Draw("uniform", (2,)), "large": Draw("normal", (3,))}
    stream = NumpyStream(5)
    stream.draw(spec, 2 * BLOCK // 3 + 5)
    for twin in (pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)):
        again = copy.deepcopy(stream)
        for envs in (4, BLOCK, 2 * BLOCK):
            np.testing.assert_equal(twin.draw(spec, envs), again.draw(spec, envs))


def test_last_observation_is_that_of_the_ended_episode():
    market = make_functional("communication_v0", horizon=2, reward="realised")
    face, core = MarketVectorEnv(market, 4), NumpyStream(3)
    face.reset(seed=3)
    state = market.initial(market.params, core.draw(market.initial_noise, 4), 4)
    for actions in draws(market, 2, envs=4):
        last, _, _, truncated, info = face.step(actions)
        state = market.step(market.params, state, actions.astype(float), core.draw(market.noise, 4)).state
    assert truncated.all()
    own = market.features.index("load_change")
    change = (state.private_information - market.scenario.private_information) / 15.0
    np.testing.assert_allclose(info["final_obs"][..., own], np.clip(change, -1, 1), atol=1e-6)
    np.testing.assert_array_equal(info["_final_obs"], [True] * 4)
    assert np.abs(last[..., own] - info["final_obs"][..., own]).max() > 0.1


def test_environments_of_a_batch_equal_single_ones(market):
    envs, stream = 5, NumpyStream(1)
    state = market.initial(market.params, stream.draw(market.initial_noise, envs), envs)
    for actions in draws(market, market.horizon, envs=envs).astype(np.float64):
        noise = stream.draw(market.noise, envs)
        step = market.step(market.params, state, actions, noise)
        for row in range(envs):
            one = slice(row, row + 1)
            alone = market.step(
                market.params,
                type(state)(*(leaf[one] for leaf in state)),
                actions[one],
                {key: value[one] for key, value in noise.items()},
            )
            np.testing.assert_allclose(alone.reward[0], step.reward[row], rtol=1e-12, atol=1e-12)
            for own, batch in zip(alone.state, step.state, strict=True):
                np.testing.assert_allclose(own[0], batch[row], rtol=1e-12, atol=1e-12)
        state = step.state


@pytest.mark.parametrize("name", ["truthful", "ve", "coordinated"])
@pytest.mark.parametrize("scenario", ["ieee14", "ieee14-interior", "ieee14-bound"])
def test_policies_give_the_solvers_cost_through_core_and_faces(name, scenario):
    """Cost of the profile at the solver against the rewards of playing it; truthful cost by the formula of (8a)."""
    from p2penv.communication.equilibrium import coordinated, variational_equilibrium

    market = make_functional("communication_v0", scenario=scenario)
    case, size = market.scenario, 13
    slope = 1 / case.generation_curvature + 1 / (2 * case.discomfort)
    price = (case.private_information.sum() + (case.generation_price / case.generation_curvature).sum()) / slope.sum()
    ratio = case.generation_price / case.generation_curvature
    truthful = (
        slope * price**2 / 2
        - case.generation_price * ratio / 2
        + case.fixed_cost
        - case.usage_benefit
        + 1.0 * (case.private_information + ratio - slope * price)
    )
    cost = {"truthful": truthful}.get(name)
    if cost is None:
        cost = (variational_equilibrium if name == "ve" else coordinated)(case).cost
    wanted = truthful - cost

    policy = market.policy(name)
    state = market.initial(market.params, {}, 2)
    actions = policy.act(market.params, None, state, {})
    reward = market.step(market.params, state, actions, {}).reward
    np.testing.assert_allclose(reward, np.broadcast_to(wanted, (2, size)), atol=1e-9)
    np.testing.assert_allclose(market.assess(market.params, state, actions)["cost"][0], cost, atol=1e-9)

    joint = actions.astype(np.float32)
    parallel = MarketParallelEnv(market)
    parallel.reset(seed=0)
    rewards = list(parallel.step(by_agent(parallel, joint[0]))[1].values())
    np.testing.assert_allclose(rewards, wanted, atol=1e-6)
    turns = MarketAECEnv(MarketParallelEnv(market))
    turns.reset(seed=0)
    for own in joint[0]:
        turns.step(own)
    np.testing.assert_allclose(list(turns.rewards.values()), wanted, atol=1e-6)
    batched = MarketVectorEnv(market, 2)
    batched.reset(seed=0)
    np.testing.assert_allclose(batched.step(joint)[1], np.stack([wanted, wanted]), atol=1e-6)
    learner = MarketVecEnv(market, 2)
    learner.reset()
    np.testing.assert_allclose(learner.step(joint.reshape(-1, 2))[1], np.tile(wanted, 2), atol=2e-6)  # float32 rewards
    for agent in (0, 8, 11):
        solo = MarketSoloEnv(market, f"prosumer_{agent}", others=name)
        solo.reset(seed=0)
        assert solo.step(joint[0, agent])[1] == pytest.approx(wanted[agent], abs=1e-6)


@pytest.mark.parametrize("options", MARKETS.values(), ids=MARKETS)
def test_single_precision_is_close_to_double(options):
    """The same actions and noise; rewards reach 8 $ here."""
    market = make_functional("communication_v0", **options)
    single = market.scenario.params(np, np.float32)
    stream, envs = NumpyStream(0), 16
    noise = stream.draw(market.initial_noise, envs)
    wide = market.initial(market.params, noise, envs)
    narrow = market.initial(single, {key: value.astype(np.float32) for key, value in noise.items()}, envs)
    for actions in draws(market, market.horizon, envs=envs):
        noise = stream.draw(market.noise, envs)
        a = market.step(market.params, wide, actions.astype(np.float64), noise)
        b = market.step(single, narrow, actions, {key: value.astype(np.float32) for key, value in noise.items()})
        assert b.reward.dtype == np.float32
        # Factored rewards keep float32 digits; differences of moments lose some (costs reach 10⁴ $).
        tolerance = 6e-6 if options.get("settlement") != "physical" else 6e-5
        np.testing.assert_allclose(b.reward, a.reward, rtol=0, atol=tolerance)
        np.testing.assert_allclose(b.info["price"], a.info["price"], rtol=5e-7)
        wide, narrow = a.state, b.state


@pytest.mark.parametrize("options", MARKETS.values(), ids=MARKETS)
def test_single_precision_faces(options):
    face = MarketVectorEnv(make_functional("communication_v0", **options), 4, dtype="float32")
    face.reset(seed=0)
    reward = face.step(draws(face.functional, 1, envs=4)[0])[1]
    assert reward.dtype == np.float32
    assert face.runner.state.private_information.dtype == np.float32


def test_solo_equals_parallel_with_the_others_at_policy(market):
    parallel, name = MarketParallelEnv(market), "ve" if "ve" in market.policies else market.reference
    index = min(9, len(parallel.possible_agents) - 2)
    agent = parallel.possible_agents[index]
    own = draws(market, 2 * market.horizon)[:, 0, index]
    solo, twin = MarketSoloEnv(market, agent, others=name), MarketSoloVectorEnv(market, 1, agent, others=name)
    policy = market.policy(name)
    received, info = solo.reset(seed=4)
    batch, _ = twin.reset(seed=4)
    everybody, infos = parallel.reset(seed=4)
    for action in own:
        np.testing.assert_array_equal(received, everybody[agent])
        np.testing.assert_array_equal(batch[0], everybody[agent])
        assert info == infos[agent]
        joint = policy.act(market.params, None, parallel.runner.state, {})[0]
        joint[index] = action
        received, reward, terminated, truncated, info = solo.step(action)
        batch, rewards, *_, final = twin.step(action[None])
        everybody, all_rewards, ends, cuts, infos = parallel.step(by_agent(parallel, joint))
        assert reward == rewards[0] == all_rewards[agent]
        assert (terminated, truncated) == (ends[agent], cuts[agent])
        assert info == infos[agent]
        if terminated or truncated:
            np.testing.assert_array_equal(final["final_obs"][0], everybody[agent])
            received, info = solo.reset()
            everybody, infos = parallel.reset()


FACES = {
    "parallel": MarketParallelEnv,
    "vector": lambda market: MarketVectorEnv(market, 2),
    "solo": lambda market: MarketSoloEnv(market, "prosumer_1"),
    "solo vector": lambda market: MarketSoloVectorEnv(market, 2, "prosumer_1"),
    "sb3": lambda market: MarketVecEnv(market, 2),
}


duplicated = pytest.mark.parametrize(
    "duplicate", [lambda face: pickle.loads(pickle.dumps(face)), copy.deepcopy], ids=["pickled", "copied"]
)


def advance(face, seed):
    """One step with fixed actions, whatever the face; what it returned."""
    rng = np.random.default_rng(seed)
    if isinstance(face, MarketParallelEnv):
        return face.step({agent: rng.uniform(-1, 1, 2) for agent in face.agents})
    if isinstance(face, MarketSoloEnv):
        return face.step(rng.uniform(-1, 1, 2))
    shape = (26, 2) if isinstance(face, MarketVecEnv) else face.action_space.shape
    return face.step(rng.uniform(-1, 1, shape))


@duplicated
@pytest.mark.parametrize("face", FACES)
def test_copies_of_a_face_go_on_alike_and_apart(face, duplicate):
    market = make_functional("communication_v0", horizon=5, reward="realised")
    original = FACES[face](market)
    original.seed(2) if face == "sb3" else None
    original.reset() if face == "sb3" else original.reset(seed=2)
    advance(original, 0)
    twin = duplicate(original)
    wanted = [advance(original, seed) for seed in (1, 2, 3)]
    np.testing.assert_equal([advance(twin, seed) for seed in (1, 2, 3)], wanted)


@duplicated
def test_copies_of_the_turn_based_face(duplicate):
    from p2penv.communication_v0 import env

    original = env(horizon=3, reward="realised")
    original.reset(seed=2)
    for _ in range(17):  # into the second round
        original.step(np.full(2, 0.25))
    twin = duplicate(original)
    for face in (original, twin):
        for _ in range(13):
            face.step(np.full(2, -0.5))
    assert original.agent_selection == twin.agent_selection
    assert original.rewards == twin.rewards
    np.testing.assert_array_equal(original.state(), twin.state())


@duplicated
def test_copies_of_a_scenario_and_a_market(duplicate):
    for scenario in (load_scenario("ieee14-bound"), Scenario.random(7, seed=1)):
        twin = duplicate(scenario)
        shift = np.full(scenario.size, 0.1)
        wanted = rules.expected_cost(scenario, shift, shift, "physical")
        np.testing.assert_array_equal(rules.expected_cost(twin, shift, shift, "physical"), wanted)
        np.testing.assert_equal(twin.params()._asdict(), scenario.params()._asdict())
    market = duplicate(make_functional("communication_v0", horizon=4))
    state = market.initial(market.params, {"renewable": np.ones((1, 13))}, 1)
    assert market.policy("ve").act(market.params, None, state, {}).shape == (1, 13, 2)


def test_seeds_matter_and_unseeded_resets_go_on():
    """The same seed restarts the stream; without one it goes on; no seed at all is entropy."""
    market = make_functional("communication_v0", horizon=2)
    face = MarketParallelEnv(market)
    first = face.reset(seed=1)[0]["prosumer_2"]
    second = face.reset()[0]["prosumer_2"]
    other = face.reset(seed=2)[0]["prosumer_2"]
    np.testing.assert_array_equal(face.reset(seed=1)[0]["prosumer_2"], first)
    np.testing.assert_array_equal(face.reset()[0]["prosumer_2"], second)
    free = [MarketParallelEnv(market).reset()[0]["prosumer_2"] for _ in range(2)]
    for a, b in itertools.combinations([first, second, other, *free], 2):
        assert (a != b).any()


@pytest.mark.parametrize(("market", "own"), [((), ()), (("m",), ()), ((), ("o",)), (("x'}", "{y"), ('"z"', "a\\n"))])
def test_records_hold_the_market_and_the_own_values(market, own):
    """Any text may be a key, though code is written for them."""
    columns = {key: np.array([[10.0 * n, 10.0 * n + 1.0]]) for n, key in enumerate(own)}
    found = records(market, own)(["a", "b"], {key: np.array([n]) for n, key in enumerate(market)} | columns)
    for row, agent in enumerate(("a", "b")):
        own_values = (column[0, row] for column in columns.values())
        assert found[agent] == dict(zip((*market, *own), (*range(len(market)), *own_values), strict=True))
    assert list(found) == ["a", "b"]


# The private energy market: a leader with one action among homes with five.


@pytest.mark.parametrize("options", PEM_MARKETS.values(), ids=PEM_MARKETS)
def test_the_energy_market_in_single_precision_is_close_to_double(options):
    """The same actions and noise; a case may hang on rounding, so few windows may differ in it."""
    market = make_functional("pem_v0", scenario=Day.random(5, 6, 1), **options)
    single = market.parameters(np, np.float32)
    stream, envs, differ = NumpyStream(0), 64, 0
    noise = stream.draw(market.initial_noise, envs)
    wide = market.initial(market.params, noise, envs)
    narrow = market.initial(single, {key: value.astype(np.float32) for key, value in noise.items()}, envs)
    for actions in draws(market, market.horizon, envs=envs):
        noise = stream.draw(market.noise, envs)
        a = market.step(market.params, wide, actions.astype(np.float64), noise)
        b = market.step(single, narrow, actions, {key: value.astype(np.float32) for key, value in noise.items()})
        assert b.reward.dtype == np.float32
        assert {leaf.dtype for leaf in b.state} == {np.dtype(np.float32), np.dtype(np.int32)}
        same = a.info["case"] == b.info["case"]
        differ += (~same).sum()
        stakes = market.scenario.hours * market.scenario.preference.max()
        np.testing.assert_allclose(b.reward[same], a.reward[same], rtol=1e-5, atol=2e-6 * stakes)
        np.testing.assert_allclose(b.state.charge, a.state.charge, rtol=1e-5, atol=1e-5)
        wide, narrow = a.state, b.state
    assert differ <= 2
    face = MarketVectorEnv(market, 4, dtype="float32")
    face.reset(seed=0)
    assert face.step(draws(market, 1, envs=4)[0])[1].dtype == np.float32


PEM_FACES = {
    "parallel": MarketParallelEnv,
    "vector": lambda market: MarketVectorEnv(market, 2),
    "solo": lambda market: MarketSoloEnv(market, "buyers_0"),
    "solo vector": lambda market: MarketSoloVectorEnv(market, 2, "home_1"),
    "sb3": lambda market: MarketVecEnv(market, 2),
    "turns": lambda market: MarketAECEnv(MarketParallelEnv(market)),
}


@duplicated
@pytest.mark.parametrize("face", PEM_FACES)
def test_copies_of_an_energy_market_go_on_alike(face, duplicate):
    market = make_functional("pem_v0", scenario=Day.random(5, 6, 1), **PEM_MARKETS["pem paper led"])
    original = PEM_FACES[face](market)
    original.seed(2) if face == "sb3" else None
    original.reset() if face == "sb3" else original.reset(seed=2)

    def forward(one, seed):
        rng = np.random.default_rng(seed)
        if face == "turns":
            for agent in one.possible_agents:
                one.step(rng.uniform(-1, 1, one.action_space(agent).shape))
            return one.rewards, one.infos
        if face == "parallel":
            return one.step({agent: rng.uniform(-1, 1, one.action_space(agent).shape) for agent in one.agents})
        return one.step(rng.uniform(-1, 1, (12, 5) if face == "sb3" else one.action_space.shape))

    forward(original, 0)
    twin = duplicate(original)
    wanted = [copy.deepcopy(forward(original, seed)) for seed in (1, 2, 3)]
    np.testing.assert_equal([copy.deepcopy(forward(twin, seed)) for seed in (1, 2, 3)], wanted)
    copied = duplicate(market)
    np.testing.assert_equal(copied.params, market.params)
    np.testing.assert_equal(copied.scenario.load, market.scenario.load)


def test_padding_of_the_leader_s_actions_means_nothing():
    """In batches its row is as wide as a home's."""
    market = make_functional("pem_v0", scenario=Day.random(5, 3, 1), **PEM_MARKETS["pem paper led"])
    actions = draws(market, 3, envs=2)
    padded = actions.copy()
    padded[:, :, 5, 1:] = 0.0
    for face in ("vector", "sb3"):
        outcomes = []
        for played in (actions, padded):
            one = PEM_FACES[face](market)
            one.seed(1) if face == "sb3" else one.reset(seed=1)
            one.reset() if face == "sb3" else None
            outcomes.append([one.step(joint.reshape(12, 5) if face == "sb3" else joint)[:3] for joint in played])
        np.testing.assert_equal(*outcomes)
