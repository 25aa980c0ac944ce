"""The environment with windows that are cleared by a protocol."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("tno.mpc.protocols.secure_comparison", reason="needs the private extra")

from p2penv import pem_v0
from p2penv.core.random import NumpyStream
from p2penv.pem import PEM, Scenario
from p2penv.pem.protocols import plain
from p2penv.pem.protocols.market import Clearing, Window
from p2penv.pem.protocols.member import Community
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET

HOMES, WINDOWS = 12, 12


@pytest.fixture(scope="module")
def keys() -> Community:
    return Community(HOMES, 512, insecure=True)


def scenario() -> Scenario:
    """A day with windows of all cases; minutes are few enough for the range of energies."""
    return Scenario.random(HOMES, WINDOWS, seed=4).replace(minutes=5.0)


def rollout(env: PEM, num_envs: int = 1, seed: int = 0, dtype: type = np.float64):
    """Infos, rewards and actions of a day of random actions."""
    params, stream = env.parameters(np, dtype), NumpyStream(seed, dtype)
    state = env.initial(params, stream.draw(env.initial_noise, num_envs), num_envs)
    rng, infos, rewards = np.random.default_rng(seed), [], []
    for _ in range(env.horizon):
        actions = rng.uniform(-1.0, 1.0, (num_envs, HOMES, 5)).astype(dtype)
        step = env.step(params, state, actions, stream.draw(env.noise, num_envs))
        state = step.state
        infos.append(step.info)
        rewards.append(step.reward)
    return infos, np.array(rewards)


@pytest.mark.parametrize("backend", ["paper", "hardened"])
@pytest.mark.parametrize("response", ["best", "agent"])
def test_every_second_window_is_cleared_by_the_protocol(backend: str, response: str, keys: Community) -> None:
    seen: list[tuple[Window, Clearing]] = []
    options = {"pricing": "paper", "response": response, "preference_cap": 0.1, "demand_cap": 0.3, "capacity_cap": 0.1}
    env = PEM(scenario(), clearing=backend, private_every=2, keys=keys, **options)
    env.private.observer = lambda *cleared: seen.append(cleared)
    infos, rewards = rollout(env)
    assert len(seen) == WINDOWS // 2
    assert {cleared.case for _, cleared in seen} >= {NO_MARKET, GENERAL}
    for (window, cleared), info in zip(seen, infos[1::2], strict=True):
        assert plain.clear(window).same(cleared)
        assert bool(cleared.record.traffic) == window.open
        assert info["price"][0] == pytest.approx(cleared.price / 10, abs=1e-12)
        assert info["case"][0] == cleared.case
        traded = np.where(window.net < 0, info["bought"][0], info["sold"][0])
        # What is published, but never more than is used or generated.
        assert (traded * 1e6 <= cleared.allocation + 1e-6).all()
    plain_infos, plain_rewards = rollout(PEM(scenario(), **options))
    for at, (info, other) in enumerate(zip(infos, plain_infos, strict=True)):
        if at % 2 == 0:
            for name in info:
                np.testing.assert_array_equal(info[name], other[name])
        elif seen[at // 2][1].case == info["case"][0] == other["case"][0] != NO_MARKET:
            # A tick of the price and 2⁻¹⁶ of the energy.
            assert 0.0 <= other["price"][0] - info["price"][0] <= 0.1 + 1e-3
            np.testing.assert_allclose(info["bought"], other["bought"], atol=2e-3)
            np.testing.assert_allclose(rewards[at], plain_rewards[at], atol=0.1)
    assert seen[0][0].size == HOMES


@pytest.mark.parametrize("backend", ["paper", "hardened"])
def test_truthful_homes_that_do_as_they_say_get_what_is_published(backend: str, keys: Community) -> None:
    seen: list[tuple[Window, Clearing]] = []
    env = PEM(scenario(), clearing=backend, private_every=1, keys=keys, pricing="paper", response="agent")
    env.private.observer = lambda *cleared: seen.append(cleared)
    infos, _ = rollout(env)
    assert {cleared.case for _, cleared in seen} == {NO_MARKET, GENERAL, EXTREME}
    for (window, cleared), info in zip(seen, infos, strict=True):
        traded = np.where(window.net < 0, info["bought"][0], info["sold"][0]) * 1e6
        # What floors leave over is with the grid: for sellers what buyers lose to them, and the other way round.
        longer = max(window.supply.sum(), window.demand.sum())
        np.testing.assert_allclose(traded, cleared.allocation, atol=1.0 + HOMES + longer / 65536)
        assert info["bought"].sum() == pytest.approx(info["sold"].sum(), abs=1e-12)
        assert info["grid_account"][0] == pytest.approx(info["payment"].sum(), abs=1e-9)
        assert info["grid_energy"][0] == pytest.approx(-info["net"].sum() * env.scenario.hours, abs=1e-9)


def test_batches_clear_each_environment_where_it_is_due(keys: Community) -> None:
    counts: list[int] = []
    env = PEM(scenario(), clearing="paper", private_every=5, keys=keys, pricing="paper")
    env.private.observer = lambda window, cleared: counts.append(cleared.price)
    infos, rewards = rollout(env, num_envs=3)
    assert len(counts) == 3 * (WINDOWS // 5)
    assert rewards.shape == (WINDOWS, 3, HOMES)
    assert infos[4]["price"].shape == (3,)
    np.testing.assert_allclose(infos[4]["price"], np.array(counts[:3]) / 10)


def test_single_precision(keys: Community) -> None:
    env = PEM(scenario(), clearing="paper", private_every=3, keys=keys, pricing="paper")
    infos, rewards = rollout(env, dtype=np.float32)
    assert rewards.dtype == np.float32
    assert infos[2]["price"].dtype == np.float32


def test_faces_play_it(keys: Community) -> None:
    env = pem_v0.parallel_env(scenario=scenario(), clearing="hardened", private_every=6, keys=keys, pricing="paper")
    env.reset(seed=1)
    env.action_space(env.agents[0]).seed(0)
    while env.agents:
        _, rewards, *_ = env.step({agent: env.action_space(agent).sample() for agent in env.agents})
    assert len(rewards) == HOMES
    env.close()


def test_learners_train_with_the_protocol_and_are_measured_without(keys: Community) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the train extra")
    from training.runs import TrainConfig
    from training.sb3 import make_env, make_models

    seen: list[Clearing] = []
    env = PEM(scenario(), clearing="hardened", private_every=4, keys=keys, pricing="paper")
    env.private.observer = lambda _, cleared: seen.append(cleared)
    config = TrainConfig(market="pem_v0", num_envs=2, steps=2 * HOMES * WINDOWS)
    vec = make_env(env, config)
    assert not seen
    (model,) = make_models(config, env, [vec], None)
    model.learn(config.steps)
    assert len(seen) == model.num_timesteps // (HOMES * WINDOWS) * (WINDOWS // 4)
    assert env.private is not None
    assert env.rehearsal().private is None
    options = {"pricing": "paper", "response": "best"}
    infos, rewards = rollout(PEM(scenario(), clearing="hardened", private_every=4, keys=keys, **options).rehearsal())
    others, same = rollout(PEM(scenario(), **options))
    np.testing.assert_array_equal(rewards, same)
    np.testing.assert_equal(infos, others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"clearing": "paper", "pricing": "exact"},
            "clearing 'paper' needs pricing='paper' and leader='rule', got pricing='exact'",
        ),
        ({"clearing": "hardened", "pricing": "exact_bound"}, "got pricing='exact_bound'"),
        ({"clearing": "hardened", "pricing": "paper", "leader": "agent"}, "got pricing='paper' and leader='agent'"),
        ({"clearing": "paper", "pricing": "paper", "private_every": 0}, "private_every must be a whole number >= 1"),
        ({"private_every": 2}, "private_every is for clearing by a protocol; clearing is 'plain'"),
        ({"clearing": "paper", "pricing": "paper", "low": 90.05}, "low must be a multiple of 0.1 cents/kWh"),
        ({"clearing": "paper", "pricing": "paper", "retail": 500.0}, "retail must be below 409.6 cents/kWh, got 500"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PEM(scenario(), **options)


def test_protocols_price_as_the_paper_unless_told_otherwise() -> None:
    assert pem_v0.parallel_env(clearing="hardened", private_every=60).functional.pricing == "paper"
    assert PEM(clearing="paper").private.every == 60
    assert PEM().pricing == "exact"


def test_keys_must_suffice(keys: Community) -> None:
    with pytest.raises(ValueError, match=f"keys must be of at least 20 homes, got {HOMES}"):
        PEM(Scenario.random(20, 3, seed=1), clearing="paper", pricing="paper", keys=keys)
    with pytest.raises(ValueError, match="keys is for clearing by a protocol"):
        PEM(scenario(), keys=keys)


def test_reports_out_of_range_are_refused(keys: Community) -> None:
    options = {"pricing": "paper", "preference_cap": 10.0, "private_every": 1}
    env = PEM(scenario(), clearing="paper", keys=keys, **options)
    params = env.parameters()
    state = env.initial(params, {}, 1)._replace(time=np.array([6]))
    actions = np.zeros((1, HOMES, 5))
    actions[..., 2] = 1.0
    with pytest.raises(ValueError, match=r"preference\[\d+\] must be in \[0, 4294967295\]"):
        env.step(params, state, actions, {})


def test_other_namespaces_are_refused() -> None:
    jnp = pytest.importorskip("jax.numpy")
    env = PEM(scenario(), clearing="hardened", pricing="paper")
    with pytest.raises(ValueError, match=r"clearing 'hardened' works with NumPy only, not with jax\.numpy"):
        env.parameters(jnp)
    from p2penv.faces.jax import MarketJaxEnv

    with pytest.raises(ValueError, match="works with NumPy only"):
        MarketJaxEnv(env, 1)


def test_copies_hold_no_keys(keys: Community) -> None:
    env = PEM(scenario(), clearing="paper", pricing="paper", keys=keys)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.private.community is None
        assert other.private.every == env.private.every == 60
    assert env.private.community is keys
