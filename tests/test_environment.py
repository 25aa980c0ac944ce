"""The communication environment: endings, infos, errors, registries, money and energy, the moving generation."""

import re
import warnings

import gymnasium
import numpy as np
import pettingzoo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2penv import communication_v0, make_functional, make_parallel, make_solo, make_vector, register
from p2penv.communication import Communication, Scenario, equilibrium, load_scenario
from p2penv.core.random import NumpyStream
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.parallel import MarketParallelEnv
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
from p2penv.faces.vector import MarketVectorEnv

NAME, ID = "communication_v0", "p2penv/Communication-v0"
MARKET_KEYS = ["price", "imbalance", "slack"]
AGENT_KEYS = ["shift", "variance", "privacy_loss", "privacy_price"]


def zeros(face):
    return {agent: np.zeros(2, np.float32) for agent in face.possible_agents}


# Endings, spaces, infos.


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_one_shot_games_terminate_and_repeated_ones_truncate(horizon):
    face = make_parallel(NAME, horizon=horizon)
    face.reset(seed=0)
    for time in range(1, horizon + 1):
        *_, terminated, truncated, _ = face.step(zeros(face))
        for flags, expected in ((terminated, horizon == 1), (truncated, 1 < horizon == time)):
            assert list(flags) == face.possible_agents
            assert all(flag is expected for flag in flags.values())  # Python bools
    assert face.agents == []
    assert face.step({}) == ({}, {}, {}, {}, {})
    solo = make_solo(NAME, "prosumer_1", horizon=horizon)
    solo.reset(seed=0)
    ends = [solo.step(np.zeros(2))[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(horizon == 1, horizon > 1)]
    assert all(type(flag) is bool for pair in ends for flag in pair)


def test_spaces():
    face = make_parallel(NAME)
    assert face.possible_agents == [f"prosumer_{n}" for n in range(13)]
    for agent in face.possible_agents:
        assert face.observation_space(agent) is face.observation_space(agent)
        assert face.action_space(agent) is face.action_space(agent)
        assert face.action_space(agent) == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        assert face.observation_space(agent).dtype == np.float32
        assert (np.abs(face.observation_space(agent).low) == 1).all()
    assert len({id(face.action_space(agent)) for agent in face.possible_agents}) == 13  # seeded one by one
    assert face.render_mode is None
    turns = communication_v0.env()
    assert turns.action_space("prosumer_3") is turns.action_space("prosumer_3")


def test_state_is_all_observations():
    face = make_parallel(NAME, horizon=3, reward="realised")
    received, _ = face.reset(seed=0)
    for _ in range(3):
        assert face.state_space.contains(face.state())
        np.testing.assert_array_equal(face.state(), np.concatenate(list(received.values())))
        received = face.step(zeros(face))[0]


def test_observations_hold_what_the_documentation_says():
    face = make_parallel(NAME, horizon=4, reward="realised")
    market, case = face.functional, face.functional.scenario
    received, _ = face.reset(seed=3)
    column = {name: index for index, name in enumerate(market.features)}
    assert received["prosumer_0"].shape == (len(column),)
    base = case.private_information / np.abs(case.private_information).max()
    for step in range(4):
        rows = np.stack(list(received.values()))
        np.testing.assert_allclose(rows[:, column["base_load"]], base, rtol=1e-6)
        np.testing.assert_allclose(rows[:, column["wholesale_price"]], 5 / 6, rtol=1e-6)
        moved = face.runner.state.private_information[0] - case.private_information
        np.testing.assert_allclose(rows[:, column["load_change"]], np.clip(moved / 15, -1, 1), atol=1e-6)
        for name in ("last_price", "last_imbalance"):  # public: the same for everybody
            assert np.ptp(rows[:, column[name]]) == 0
        assert (step == 0) == (rows[0, column["last_imbalance"]] == 0)
        received = face.step(zeros(face) | {"prosumer_4": np.ones(2)})[0]


def test_private_information_of_others_stays_hidden():
    """Two worlds that differ in agent 5's y alone, with the same total, look the same to everybody but 5 and 6."""
    market = make_functional(NAME, horizon=2)
    noise = np.zeros((2, 13))
    noise[1, 5], noise[1, 6] = 1.0, -1.0
    state = market.initial(market.params, {"renewable": noise}, 2)
    features = [np.broadcast_to(feature, (2, 13)) for feature in market.observe(market.params, state)]
    differs = np.any([np.abs(feature[0] - feature[1]) > 1e-12 for feature in features], axis=0)
    assert np.flatnonzero(differs).tolist() == [5, 6]


@pytest.mark.parametrize(
    "options", [{}, {"horizon": 3}, {"settlement": "physical", "horizon": 2, "reward": "realised"}]
)
def test_infos_have_the_same_keys_from_reset_on(options):
    face, batch = make_parallel(NAME, **options), make_vector(NAME, 2, **options)
    _, infos = face.reset(seed=0)
    _, first = batch.reset(seed=0)
    while face.agents:
        for info in infos.values():
            assert list(info) == MARKET_KEYS + AGENT_KEYS
            assert all(type(value) is float for value in info.values())
        infos = face.step(zeros(face))[-1]
    assert list(first) == MARKET_KEYS + AGENT_KEYS
    info = batch.step(np.zeros((2, 13, 2)))[-1]
    assert set(info) - {"final_obs", "_final_obs"} == set(MARKET_KEYS + AGENT_KEYS)
    quiet = make_parallel(NAME, infos="none", **options)
    assert quiet.reset(seed=0)[1] == quiet.step(zeros(quiet))[-1] == {agent: {} for agent in quiet.possible_agents}


def test_infos_by_hand():
    """Agent 0 over-reports by 1.5 MWh with twice the least noise, agent 1 under-reports by 3 with the least."""
    face = make_parallel(NAME)
    face.reset(seed=0)
    joint = zeros(face)
    joint["prosumer_0"], joint["prosumer_1"] = np.array([0.5, 1.0]), np.array([-1.0, -1.0])
    infos = face.step(joint)[-1]
    price = (66 - 1.5 + 156) / 31.890463  # Σb/a = 13·6/0.5, B as printed for this case
    for agent in face.possible_agents:
        assert infos[agent]["price"] == pytest.approx(price, rel=1e-7)
        assert infos[agent]["imbalance"] == pytest.approx(1.5)
        # The tightest of (8b), (8c): every generator starts at 6 + 0.5·ω.
        assert infos[agent]["slack"] == pytest.approx((price - 6.0005) * 31.890463, abs=1e-5)
    own = infos["prosumer_0"]
    slope = 1 / 0.5 + 1 / 3.0
    assert own["shift"] == 1.5
    assert own["variance"] == pytest.approx(2 * 1.5**2 / 20)
    assert own["privacy_loss"] == pytest.approx(5.0)  # half of A = 10
    assert own["privacy_price"] == pytest.approx(slope * 1.5 / (2 * 31.890463**2), rel=1e-6)
    assert infos["prosumer_1"]["privacy_loss"] == pytest.approx(10.0)
    assert infos["prosumer_2"]["privacy_loss"] == infos["prosumer_2"]["variance"] == 0.0


def test_variance_action_spans_the_documented_range():
    market = make_functional(NAME, variance_max=3.0)
    shift, variance = market.decode(market.params, np.array([[1.0, -1.0]] * 12 + [[-0.5, 1.0]]))
    np.testing.assert_allclose(shift, [3.0] * 12 + [-1.5])
    np.testing.assert_allclose(variance, [9 / 20] * 12 + [4 * 1.5**2 / 20])
    floor = make_functional(NAME, privacy="floor")
    _, variance = floor.decode(floor.params, np.array([[0.0, -1.0]] * 13))
    np.testing.assert_allclose(variance, 9 / 20)


@pytest.mark.parametrize("variance_max", [0.0, 1.0, 2.5])
def test_encode_inverts_decode(variance_max):
    market = make_functional(NAME, variance_max=variance_max)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 13, 2))
    if variance_max == 0:
        actions[..., 1] = -1.0
    np.testing.assert_allclose(market.encode(market.params, *market.decode(market.params, actions)), actions, atol=1e-9)


# Factories and registries.


def test_factories_and_registries():
    assert isinstance(communication_v0.parallel_env(), MarketParallelEnv)
    assert isinstance(communication_v0.raw_env(), MarketAECEnv)
    assert isinstance(communication_v0.env().unwrapped, MarketAECEnv)
    assert isinstance(pettingzoo.make("parallel", ID, horizon=2), MarketParallelEnv)
    turns = pettingzoo.make("aec", ID, horizon=2)
    assert isinstance(turns.unwrapped, MarketAECEnv)
    assert turns.unwrapped.functional.horizon == 2
    solo = gymnasium.make(ID, agent="prosumer_2", horizon=3)
    assert isinstance(solo.unwrapped, MarketSoloEnv)
    solo.reset(seed=1)
    assert solo.step(solo.action_space.sample())[3] is False
    batch = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", agent="prosumer_2", horizon=2)
    assert isinstance(batch.unwrapped, MarketSoloVectorEnv)
    received, _ = batch.reset(seed=1)
    assert received.shape == (3, *solo.observation_space.shape)
    assert batch.step(batch.action_space.sample())[1].shape == (3,)
    several = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", agent="prosumer_2")
    several.reset(seed=1)
    assert several.step(several.action_space.sample())[2].all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()  # again: nothing happens, nobody warns


def test_gymnasium_wrappers_work():
    from gymnasium.wrappers import RecordEpisodeStatistics

    env = RecordEpisodeStatistics(gymnasium.make(ID, agent="prosumer_8", horizon=3))
    env.reset(seed=0)
    rewards = []
    done = False
    while not done:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
        done = terminated or truncated
    assert info["episode"]["r"] == pytest.approx(sum(rewards))
    assert info["episode"]["l"] == 3


# Errors: one clear message, and nothing has changed.

NAN, WIDE, SHORT = np.array([0.0, np.nan]), np.array([1.25, 0.0]), np.zeros(3)
BAD_ACTIONS = [
    (NAN, r"prosumer_4, entry variance, must lie in \[-1, 1\], got nan"),
    (WIDE, r"prosumer_4, entry shift, must lie in \[-1, 1\], got 1\.25"),
    (np.array([-np.inf, 0.0]), "prosumer_4, entry shift, .* got -inf"),
    (SHORT, r"action of prosumer_4 must have shape \(2,\), got \(3,\)"),
    (0.5, r"action of prosumer_4 must have shape \(2,\), got \(\)"),
    (None, r"action of prosumer_4 must have shape \(2,\), got \(\)"),
]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS)
def test_bad_actions_are_refused_and_change_nothing(action, message):
    """After the error the trajectory is that of a twin who never made the mistake."""
    options = {"horizon": 3, "reward": "realised"}
    erring, twin = make_parallel(NAME, **options), make_parallel(NAME, **options)
    erring.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        erring.step(zeros(erring) | {"prosumer_4": action})
    np.testing.assert_equal(erring.step(zeros(erring)), twin.step(zeros(twin)))

    erring, twin = (make_solo(NAME, "prosumer_4", **options) for _ in range(2))
    erring.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        erring.step(action)
    np.testing.assert_equal(erring.step(np.ones(2)), twin.step(np.ones(2)))

    erring, twin = communication_v0.env(**options), communication_v0.env(**options)
    for face in (erring, twin):
        face.reset(seed=0)
        for _ in range(4):
            face.step(np.zeros(2))
    with pytest.raises(ValueError, match=message):
        erring.step(action)
    for face in (erring, twin):
        for _ in range(9):
            face.step(np.ones(2))
    assert erring.rewards == twin.rewards
    assert any(twin.rewards.values())


def test_bad_batches_are_refused_and_change_nothing():
    options = {"horizon": 3, "reward": "realised"}
    erring, twin = make_vector(NAME, 3, **options), make_vector(NAME, 3, **options)
    erring.reset(seed=0), twin.reset(seed=0)
    joint = np.zeros((3, 13, 2))
    joint[2, 7, 1] = -1.5
    with pytest.raises(ValueError, match=r"prosumer_7 in environment 2, entry variance, must lie .* got -1\.5"):
        erring.step(joint)
    with pytest.raises(ValueError, match=r"shape \(3, 13, 2\), got \(3, 13\)"):
        erring.step(joint[..., 0])
    np.testing.assert_equal(erring.step(np.clip(joint, -1, 1)), twin.step(np.clip(joint, -1, 1)))
    learner = MarketVecEnv(make_functional(NAME), 3)
    learner.reset()
    with pytest.raises(ValueError, match="prosumer_7 in environment 2, entry variance"):
        learner.step(joint.reshape(-1, 2))
    with pytest.raises(ValueError, match=r"shape \(39, 2\), got \(3, 13, 2\)"):
        learner.step(joint)
    solo = MarketSoloVectorEnv(make_functional(NAME), 3, "prosumer_7")
    solo.reset(seed=0)
    with pytest.raises(ValueError, match="prosumer_7 in environment 2, entry variance"):
        solo.step(joint[:, 7])
    with pytest.raises(ValueError, match=r"prosumer_7 must have shape \(3, 2\), got \(2,\)"):
        solo.step(joint[0, 7])


def test_missing_and_unknown_agents_are_refused():
    face = make_parallel(NAME)
    face.reset(seed=0)
    joint = zeros(face)
    del joint["prosumer_11"]
    with pytest.raises(ValueError, match=r"missing: \['prosumer_11'\], unknown: \[\]"):
        face.step(joint)
    with pytest.raises(ValueError, match=r"missing: \['prosumer_11'\], unknown: \['prosumer_13'\]"):
        face.step(joint | {"prosumer_13": np.zeros(2)})
    with pytest.raises(ValueError, match="unknown: \\['operator'\\]"):
        face.step(zeros(face) | {"operator": np.zeros(2)})
    with pytest.raises(TypeError, match="real numbers"):
        face.step({agent: ["0", "1"] for agent in face.agents})
    assert face.runner.state.time.tolist() == [0]


def test_a_padded_action_is_not_spread_over_entries():
    from toy_market import Toy

    face = MarketParallelEnv(Toy())
    face.reset(seed=0)
    with pytest.raises(ValueError, match=r"operator_0 must have shape \(2,\), got \(1,\)"):
        face.step({"seller_0": np.zeros(1), "seller_1": np.zeros(1), "operator_0": np.zeros(1)})


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (lambda: make_parallel(NAME), zeros),
        (lambda: make_solo(NAME, "prosumer_0"), lambda _: np.zeros(2)),
        (lambda: make_vector(NAME, 2), lambda _: np.zeros((2, 13, 2))),
        (lambda: MarketSoloVectorEnv(make_functional(NAME), 2, "prosumer_0"), lambda _: np.zeros((2, 2))),
        (lambda: MarketVecEnv(make_functional(NAME), 2), lambda _: np.zeros((26, 2))),
    ],
    ids=["parallel", "solo", "vector", "solo vector", "sb3"],
)
def test_reset_comes_first(make, step):
    face = make()
    with pytest.raises(RuntimeError, match="call reset before step"):
        face.step(step(face))


def test_reset_comes_first_in_turns():
    with pytest.raises(AssertionError, match="reset"):
        communication_v0.env().step(np.zeros(2))
    with pytest.raises(RuntimeError, match="call reset before state"):
        make_parallel(NAME).state()


def test_out_of_range_actions_can_be_clipped():
    wild, tame = np.array([3.0, -np.inf]), np.array([1.0, -1.0])
    for make in (make_parallel, lambda name, **options: communication_v0.env(**options)):
        clipping, plain = make(NAME, out_of_range="clip"), make(NAME)
        clipping.reset(seed=0), plain.reset(seed=0)
        if make is make_parallel:
            everybody = clipping.agents
            got = clipping.step(dict.fromkeys(everybody, wild))
            np.testing.assert_equal(got, plain.step(dict.fromkeys(everybody, tame)))
        else:
            for _ in range(13):
                clipping.step(wild), plain.step(tame)
            assert clipping.rewards == plain.rewards
        clipping.reset(seed=0)
        with pytest.raises(ValueError, match="got nan"):
            clipping.step(dict.fromkeys(clipping.agents, NAN) if make is make_parallel else NAN)
    solo = make_solo(NAME, "prosumer_0", out_of_range="clip")
    solo.reset(seed=0)
    reward = solo.step(wild)[1]
    solo.reset(seed=0)
    assert solo.step(tame)[1] == reward


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number >= 1, got 0"),
        ({"horizon": 2.0}, r"horizon must be a whole number >= 1, got 2\.0"),
        ({"horizon": True}, "horizon must be a whole number >= 1, got True"),
        ({"reward": "mean"}, "reward must be one of 'expected', 'realised'; got 'mean'"),
        ({"settlement": "pay"}, "settlement must be one of 'analytic', 'physical'; got 'pay'"),
        ({"privacy": "none"}, "privacy must be one of 'budget', 'floor'; got 'none'"),
        ({"infos": "all"}, "infos must be one of 'full', 'none'; got 'all'"),
        ({"shared_penalty": -1.0}, r"shared_penalty must be finite and >= 0, got -1\.0"),
        ({"shared_penalty": 1.0, "settlement": "physical"}, "shared_penalty .* physical settlement has none"),
        ({"variance_max": np.nan}, "variance_max must be finite and >= 0, got nan"),
        ({"autoregression": 1.0}, r"autoregression must be in \[0, 0\.999999\], got 1\.0"),
        ({"renewable_sd": -2}, r"renewable_sd must be finite and >= 0, got -2\.0"),
        ({"scenario": "ieee30"}, "scenario must be one of 'ieee14', .*; got 'ieee30'"),
        ({"max_shift": [1.0] * 12 + [-1.0]}, r"max_shift\[12\] must be .* got .*-1\.0.* \(agent 12\)"),
        ({"render_mode": "ansi"}, "render_mode must be one of None, 'human', 'rgb_array'; got 'ansi'"),
        ({"dtype": "float16"}, "dtype must be one of 'float64', 'float32'; got 'float16'"),
        ({"out_of_range": "wrap"}, "out_of_range must be one of 'raise', 'clip'; got 'wrap'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_name_option_value_and_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_parallel(NAME, **options)


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match=r"unknown option 'horizons'; options: .*horizon.*fields: .*wholesale_price"):
        make_parallel(NAME, horizons=3)
    with pytest.raises(
        ValueError, match="market must be one of communication_v0, dpvcg_v0, pem_v0, grid_v0; got 'communication'"
    ):
        make_parallel("communication")
    with pytest.raises(ValueError, match=r"agent must be one of .*; got 'prosumer_13'"):
        make_solo(NAME, "prosumer_13")
    with pytest.raises(ValueError, match="policy must be one of 've', 'truthful', 'coordinated'; got 'nash'"):
        make_solo(NAME, "prosumer_1", others="nash")
    with pytest.raises(ValueError, match="num_envs must be a whole number >= 1, got 0"):
        make_vector(NAME, 0)
    with pytest.raises(ValueError, match="give one seed"):
        make_vector(NAME, 2).reset(seed=[1, 2])


# Physical settlement: energy and money, from what the environment reports.


def settle_by_hand(case, price):
    """Generation, demand, net import and own cost ``(E, N)`` at prices ``(E,)``, from the model (2)-(3)."""
    price = np.asarray(price)[:, None]
    generation = np.clip(
        (price - case.generation_price) / case.generation_curvature, case.generation_min, case.generation_max
    )
    demand = np.clip(case.nominal_demand - price / (2 * case.discomfort), case.demand_min, case.demand_max)
    return generation, demand


@pytest.mark.parametrize("scenario", ["ieee14", "ieee14-bound", 6, 25])
@pytest.mark.parametrize("bookkeeping", ["each", "root"])
def test_physical_steps_balance_energy_and_money(scenario, bookkeeping):
    """Independent accounts: devices from the reported price, the rest from the books."""
    scenario = Scenario.random(scenario, seed=scenario) if isinstance(scenario, int) else scenario
    options = {"settlement": "physical", "reward": "realised", "max_shift": 9.0, "privacy_budget": 0.3}
    face = make_vector(NAME, 64, scenario=scenario, horizon=3, renewable_sd=12.0, bookkeeping=bookkeeping, **options)
    case, rng, size = face.functional.scenario, np.random.default_rng(1), face.functional.scenario.size
    face.reset(seed=2)
    bound = 0
    for _ in range(3):
        y = face.runner.state.private_information.copy()
        renewable = case.nominal_demand - y
        _, reward, *_, info = face.step(rng.uniform(-1, 1, (64, size, 2)))
        generation, demand = settle_by_hand(case, info["price"])
        bound += np.any((generation == case.generation_min) | (demand == case.demand_min), axis=1).sum()
        net_import = demand - generation - renewable
        np.testing.assert_allclose(net_import.sum(1), info["imbalance"], atol=1e-9 * size)

        def accounts(generation, demand, renewable=renewable):
            net_import = demand - generation - renewable
            charge = np.broadcast_to((case.wholesale_price / size * net_import.sum(1))[:, None], net_import.shape)
            trade = case.root_price * net_import
            if bookkeeping == "root":
                trade[:, 0] -= trade.sum(1)
            own = case.generation_curvature * generation**2 / 2 + case.generation_price * generation + case.fixed_cost
            own = own + case.discomfort * (demand - case.nominal_demand) ** 2 - case.usage_benefit
            return own + trade + charge, charge, trade

        cost, charge, trade = accounts(generation, demand)
        np.testing.assert_allclose(charge.sum(1), case.wholesale_price * info["imbalance"], atol=1e-9 * size)
        if bookkeeping == "root":
            np.testing.assert_allclose(trade.sum(1), 0.0, atol=1e-9)
        # Truthful reports clear the true market: solve ΣG + Σ(D* − D) = Σy by bisection.
        low, high = np.full(64, -1e4), np.full(64, 1e4)
        for _ in range(80):
            middle = (low + high) / 2
            generation, demand = settle_by_hand(case, middle)
            short = (generation + case.nominal_demand - demand).sum(1) < y.sum(1)
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        truthful, _, _ = accounts(*settle_by_hand(case, (low + high) / 2))
        np.testing.assert_allclose(reward, truthful - cost, atol=2e-9 * np.abs(cost).max())
    assert bound > 0  # the bounds did bind somewhere


@pytest.mark.parametrize("privacy", ["budget", "floor"])
@pytest.mark.parametrize("settlement", ["analytic", "physical"])
def test_expected_reward_is_the_mean_of_realised_ones(settlement, privacy):
    market = make_functional(NAME, settlement=settlement, reward="realised", privacy_budget=0.2, privacy=privacy)
    exact = make_functional(NAME, settlement=settlement, privacy_budget=0.2, privacy=privacy)
    action = np.random.default_rng(3).uniform(-1, 1, (1, 13, 2))
    state = market.initial(market.params, {}, 1)
    wanted = exact.step(exact.params, state, action, {}).reward[0]
    draws = 40_000
    state = market.initial(market.params, {}, draws)
    noise = NumpyStream(0).draw(market.noise, draws)
    sample = market.step(market.params, state, np.broadcast_to(action, (draws, 13, 2)), noise).reward
    error = sample.std(0) / np.sqrt(draws)
    assert (np.abs(sample.mean(0) - wanted) < 4.5 * error).all()
    assert (error < 0.5).all()


# The shared penalty.


def test_the_penalised_equilibrium_tends_to_the_variational_one():
    """Sequential penalised best responses at p0 = 3, where the shared bound binds; each R starts from the last."""
    case = load_scenario("ieee14-bound")
    exact = equilibrium.variational_equilibrium(case)
    params, shift = case.params(), np.zeros(13)
    for penalty, distance in ((1.0, 0.1), (10.0, 0.01), (100.0, 0.001)):
        for _ in range(2000):
            before = shift.copy()
            for agent in range(13):
                shift[agent] = equilibrium.best_response(params, shift, "penalty", penalty)[agent]
            if np.abs(shift - before).max() < 1e-12:
                break
        assert np.linalg.norm(shift - exact.shift) == pytest.approx(distance, rel=0.1)
        # The common marginal charge R·violation is the common multiplier.
        violation = float(params.report_low) - (case.private_information.sum() + shift.sum())
        assert penalty * violation == pytest.approx(float(exact.multiplier), rel=0.02)

        # In the environment as played nobody gains by any own shift on a fine grid.
        market = Communication(case, shared_penalty=penalty)
        state = market.initial(market.params, {}, 401)
        least = market.encode(market.params, np.broadcast_to(shift, (401, 13)))
        stay = market.step(market.params, state, least, {}).reward[0]
        for agent in range(13):
            deviation = np.broadcast_to(shift, (401, 13)).copy()
            deviation[:, agent] = np.linspace(-3, 3, 401)
            reward = market.step(market.params, state, market.encode(market.params, deviation), {}).reward[:, agent]
            assert reward.max() <= stay[agent] + 1e-9
        assert market.assess(market.params, state, least)["exploitability"][0].max() < 1e-9


def test_the_penalty_charges_everybody_alike_for_the_violation():
    plain, charged = make_functional(NAME), make_functional(NAME, shared_penalty=8.0)
    state = plain.initial(plain.params, {}, 2)
    actions = np.zeros((2, 13, 2))
    actions[0, :, 0] = -1.0  # Σx = −39 leaves the interval, which starts 30.6 MWh below the truth
    step = plain.step(plain.params, state, actions, {})
    difference = step.reward - charged.step(charged.params, state, actions, {}).reward
    assert step.info["slack"][0] < 0
    np.testing.assert_allclose(difference[0], 4.0 * step.info["slack"][0] ** 2, rtol=1e-9)
    np.testing.assert_allclose(difference[1], 0.0, atol=1e-12)


# The moving renewable generation.


@pytest.mark.parametrize(("rho", "sd"), [(0.9, 3.0), (0.5, 1.5), (0.0, 2.0)])
def test_renewable_deviations_are_a_stationary_autoregression(rho, sd):
    """4000 environments × 13 agents, 6 steps: sd within 1.5 %, correlations within 0.02, agents independent."""
    market = make_functional(NAME, horizon=6, autoregression=rho, renewable_sd=sd)
    stream, envs = NumpyStream(0), 4000
    state = market.initial(market.params, stream.draw(market.initial_noise, envs), envs)
    path = []
    for _ in range(6):
        path.append(market.scenario.private_information - state.private_information)
        state = market.step(market.params, state, np.zeros((envs, 13, 2)), stream.draw(market.noise, envs)).state
    path = np.array(path)
    np.testing.assert_allclose(path.std((1, 2)), sd, rtol=0.015)
    np.testing.assert_allclose(path.mean((1, 2)), 0.0, atol=0.03 * sd)
    flat = path.reshape(6, -1)
    for lag in (1, 2, 5):
        assert np.corrcoef(flat[0], flat[lag])[0, 1] == pytest.approx(rho**lag, abs=0.02)
    across = np.corrcoef(path[3].T)
    assert np.abs(across - np.eye(13)).max() < 0.08


@pytest.mark.parametrize("shape", [(5, 2), (1, 2), (0, 2), (1,), (3,), ()])
def test_turns_refuse_wrong_shapes_at_once_and_go_on(shape):
    turns = communication_v0.raw_env()
    with pytest.raises(RuntimeError, match="call reset before step"):
        turns.step(np.zeros(2))
    turns.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape(f"action of prosumer_0 must have shape (2,), got {shape}")):
        turns.step(np.zeros(shape))
    for agent in turns.agents[:]:
        assert turns.agent_selection == agent
        turns.step(np.zeros(2))
    assert all(turns.terminations.values())


def test_state_is_not_made_of_what_users_were_given():
    face = make_parallel(NAME, horizon=2)
    given, _ = face.reset(seed=0)
    joint = np.concatenate(list(given.values()))
    given["prosumer_0"][:] = 9.0
    np.testing.assert_array_equal(face.state(), joint)


def test_turns_keep_no_reference_to_actions():
    """One buffer for all: each agent plays what was in it in its turn."""
    turns, buffer = communication_v0.raw_env(), np.zeros(2)
    turns.reset(seed=0)
    for place, _ in enumerate(turns.agents[:]):
        buffer[0] = (-1.0) ** place
        turns.step(buffer)
    shifts = [turns.infos[agent]["shift"] for agent in turns.possible_agents]
    np.testing.assert_allclose(shifts, 3.0 * (-1.0) ** np.arange(13))


@pytest.mark.parametrize("how", ["raise", "clip"])
@pytest.mark.parametrize("value", [1j, "x", None])
def test_actions_that_are_no_numbers_are_refused(how, value):
    message = "must be real numbers, got an array of"
    actions = np.full((2, 13, 2), value)
    vector = make_vector(NAME, 2, out_of_range=how)
    vector.reset(seed=0)
    with pytest.raises(TypeError, match=message):
        vector.step(actions)
    turns = communication_v0.raw_env(out_of_range=how)
    turns.reset(seed=0)
    with pytest.raises(TypeError, match=message):
        turns.step(actions[0, 0])


@pytest.mark.parametrize(
    ("seed", "message"),
    [([1, 2], "give one seed"), ((1, 2), "give one seed"), (-1, "seed must be a whole number >= 0, got -1"),
     (0.5, "seed must be a whole number >= 0, got 0.5")],
)  # fmt: skip
def test_seeds_are_one_whole_number(seed, message):
    with pytest.raises(ValueError, match=message):
        make_vector(NAME, 2).reset(seed=seed)
    if np.ndim(seed) == 0:
        with pytest.raises(ValueError, match=message):
            make_parallel(NAME).reset(seed=seed)


def test_one_shot_games_do_not_move():
    face = make_parallel(NAME, reward="realised")
    face.reset(seed=0)
    np.testing.assert_allclose(face.runner.state.private_information[0], face.functional.scenario.private_information)


# Any scenario, any action: a valid step or one clear error.

OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "wholesale_price": st.floats(0, 50) | st.floats(0, 1e9),
        "max_shift": st.floats(0, 30) | st.floats(0, 1e9),
        "privacy_budget": st.floats(-9, 9).map(lambda size: 10.0**size),
        "privacy": st.sampled_from(["budget", "floor"]),
        "bookkeeping": st.sampled_from(["each", "root"]),
        "net_load": st.floats(-200, 400),
        "trading_price": st.floats(-5, 5) | st.floats(-1e9, 1e9),
        "margin": st.floats(0, 5),
        "discomfort": st.floats(1e-3, 100) | st.floats(1e-9, 1e9),
        "generation_curvature": st.floats(1e-3, 100) | st.floats(1e-9, 1e9),
        "generation_max": st.floats(0, 100),
        "demand_max": st.floats(0, 200),
        "horizon": st.integers(1, 3),
        "reward": st.sampled_from(["expected", "realised"]),
        "settlement": st.sampled_from(["analytic", "physical"]),
        "shared_penalty": st.floats(0, 1e3),
        "variance_max": st.floats(0, 5),
        "renewable_sd": st.floats(0, 50),
        "autoregression": st.floats(0, 0.99),
    },
)
ENTRY = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 1e-300, -1e-30]), st.floats(-1, 1))


@settings(max_examples=300)
@given(st.integers(2, 9), st.integers(0, 2**31), OVERRIDES, st.lists(ENTRY, min_size=2, max_size=18), st.booleans())
def test_any_scenario_and_action_gives_a_valid_step_or_one_error(size, seed, overrides, entries, single):
    market, message = None, ""
    try:
        market = make_functional(NAME, scenario=Scenario.random(size, seed), **overrides)
    except ValueError as error:
        message = str(error)
    if market is None:
        assert any(field in message for field in (*overrides, "empty feasible set", "empty joint feasible set"))
        return
    actions = np.resize(entries, (2, size, 2))
    face = MarketVectorEnv(market, 2, dtype="float32" if single else "float64")
    seen, info = face.reset(seed=seed)
    for _ in range(market.horizon + 1):
        assert face.observation_space.contains(seen)
        for key, value in info.items():
            assert not np.isnan(value).any(), key
        seen, reward, terminated, truncated, info = face.step(actions)
        assert np.isfinite(reward).all()
        assert not (terminated & truncated).any()
        if "final_obs" in info:
            assert face.observation_space.contains(info.pop("final_obs"))
            info.pop("_final_obs")


@given(st.lists(st.floats(width=32), min_size=26, max_size=26))
def test_any_numbers_are_played_or_refused(numbers):
    face = make_parallel(NAME)
    face.reset(seed=0)
    joint = np.array(numbers).reshape(13, 2)
    actions = dict(zip(face.agents, joint, strict=True))
    if np.all(np.abs(joint) <= 1):
        assert np.isfinite(list(face.step(actions)[1].values())).all()
    else:
        agent, entry = np.argwhere(~(np.abs(joint) <= 1))[0]
        with pytest.raises(ValueError, match=f"action of prosumer_{agent}, entry {('shift', 'variance')[entry]}"):
            face.step(actions)
