"""The JAX face: compiled rollouts, agreement with NumPy given the same noise, gradients, autoreset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2penv import make_functional
from p2penv.communication import load_scenario
from p2penv.communication.params import derive
from p2penv.core.contract import Draw
from p2penv.core.random import JaxStream, NumpyStream
from p2penv.core.roots import evaluate
from p2penv.faces.jax import MarketJaxEnv
from p2penv.pem import Scenario as Day

NAME = "communication_v0"
OPTIONS = {
    "one-shot": {},
    "repeated": {"horizon": 3},
    "realised": {"horizon": 3, "reward": "realised"},
    "physical": {"horizon": 3, "reward": "realised", "settlement": "physical"},
    "physical expected": {"horizon": 2, "settlement": "physical"},
    "penalised floor": {"horizon": 2, "privacy": "floor", "shared_penalty": 5.0, "scenario": "ieee14-bound"},
}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_numpy_given_the_same_noise(options, double):
    market, envs = make_functional(NAME, **options), 6
    params = market.scenario.params(jnp)
    stream, rng = NumpyStream(0), np.random.default_rng(0)
    noise = stream.draw(market.initial_noise, envs)
    state = market.initial(market.params, noise, envs)
    other = market.initial(params, {key: jnp.asarray(value) for key, value in noise.items()}, envs)
    step = jax.jit(market.step)
    for _ in range(market.horizon):
        actions, noise = rng.uniform(-1, 1, (envs, 13, 2)), stream.draw(market.noise, envs)
        wanted = market.step(market.params, state, actions, noise)
        got = step(params, other, jnp.asarray(actions), {key: jnp.asarray(value) for key, value in noise.items()})
        assert got.reward.dtype == jnp.float64
        np.testing.assert_allclose(got.reward, wanted.reward, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(got.terminated, wanted.terminated)
        np.testing.assert_array_equal(got.truncated, wanted.truncated)
        for key, value in wanted.info.items():
            np.testing.assert_allclose(got.info[key], value, rtol=1e-9, atol=1e-9, err_msg=key)
        for one, same in zip(
            market.observe(params, got.state), market.observe(market.params, wanted.state), strict=True
        ):
            np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-12)
        state, other = wanted.state, got.state


def test_the_face_is_the_core_with_noise_of_its_keys(double):
    """Every draw named and keyed: replayed here with jax.random alone."""
    market = make_functional(NAME, horizon=2, reward="realised")
    face = MarketJaxEnv(market, 3, dtype="float64")
    start, key = jax.random.key(1), jax.random.key(2)
    seen, state = jax.jit(face.reset)(start, face.params)
    deviation = jax.random.normal(jax.random.fold_in(start, 0), (3, 13))
    base = market.scenario.private_information
    np.testing.assert_allclose(state.private_information, base - 3.0 * deviation, rtol=1e-12)
    assert seen.shape == (3, 13, len(market.features))
    actions = jax.random.uniform(jax.random.key(3), (3, 13, 2), minval=-1.0, maxval=1.0)
    step_key, _ = jax.random.split(key)
    noise = {name: jax.random.normal(jax.random.fold_in(step_key, i), (3, 13)) for i, name in enumerate(market.noise)}
    wanted = market.step(
        market.params, type(state)(*map(np.asarray, state)), np.asarray(actions), jax.device_get(noise)
    )
    _, _, reward, *_ = jax.jit(face.step)(key, state, actions, face.params)
    np.testing.assert_allclose(reward, wanted.reward, rtol=1e-9, atol=1e-9)


def test_autoreset_keeps_the_last_observation():
    market = make_functional(NAME, horizon=2)
    face = MarketJaxEnv(market, 4)
    step = jax.jit(face.step)
    seen, state = jax.jit(face.reset)(jax.random.key(0), face.params)
    own = market.features.index("load_change")
    for time in (1, 2):
        key = jax.random.key(time)
        actions = jnp.full((4, 13, 2), 0.3 * time)
        noise = JaxStream(jax.random.split(key)[0], jnp.float32).draw(market.noise, 4)
        moved = jax.jit(market.step)(face.params, state, actions, noise).state
        seen, state, _, terminated, truncated, info = step(key, state, actions, face.params)
        change = (np.asarray(moved.private_information) - market.scenario.private_information) / 15.0
        np.testing.assert_allclose(info["final_obs"][..., own], np.clip(change, -1, 1), atol=1e-5)
        assert not terminated.any()
        assert truncated.all() == (time == 2)
        assert (np.asarray(state.time) == time % 2).all()
    assert np.abs(seen[..., own] - info["final_obs"][..., own]).max() > 0.05
    assert (state.imbalance == 0).all()
    assert np.abs(seen).max() <= 1


def test_rollouts_compile_scan_and_map():
    """Mapped over keys, each with a scenario of its own, against a plain loop."""
    market = make_functional(NAME, **OPTIONS["realised"])
    face = MarketJaxEnv(market, 2)

    class Random:
        full_information = False
        noise = {"action": Draw("uniform", (13, 2))}

        def act(self, params, observations, state, noise):
            assert state is None
            return 2.0 * noise["action"] - 1.0

    def run(key, params):
        return face.rollout(key, Random(), 5, params)

    keys = jnp.stack([jax.random.key(0), jax.random.key(0), jax.random.key(1)])
    cheap = load_scenario(wholesale_price=2.0).params(jnp, jnp.float32)
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), face.params, cheap, cheap)
    states, rewards = jax.jit(jax.vmap(run))(keys, each)
    assert rewards.shape == (3, 5, 2, 13)
    assert rewards.dtype == jnp.float32
    assert jnp.isfinite(rewards).all()
    assert states.private_information.shape == (3, 2, 13)
    for one, other in ((0, 1), (1, 2)):
        assert jnp.abs(rewards[one] - rewards[other]).max() > 1e-3
    # One of them step by step.
    start_key, scan_key = jax.random.split(keys[2])
    _, state = jax.jit(face.reset)(start_key, cheap)
    step = jax.jit(face.step)
    for time, step_key in enumerate(jax.random.split(scan_key, 5)):
        act_key, env_key = jax.random.split(step_key)
        actions = 2.0 * jax.random.uniform(jax.random.fold_in(act_key, 0), (2, 13, 2)) - 1.0
        _, state, reward, *_ = step(env_key, state, actions, cheap)
        np.testing.assert_allclose(rewards[2, time], reward, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("privacy", ["budget", "floor"])
def test_reference_policies_roll_out(privacy):
    market = make_functional(NAME, scenario="ieee14-interior", privacy=privacy)
    face = MarketJaxEnv(market, 2)
    ve = market.policy("ve")
    state = market.initial(market.params, {}, 1)
    wanted = market.step(market.params, state, ve.act(market.params, None, state, {}), {}).reward[0]
    _, rewards = jax.jit(lambda key, params: face.rollout(key, ve, 3, params))(jax.random.key(0), face.params)
    np.testing.assert_allclose(rewards, np.broadcast_to(wanted, (3, 2, 13)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["realised", "physical expected", "penalised floor"])
def test_gradients_by_parameters_and_actions(name, double):
    """Against central differences: the wholesale price, every discomfort, and one's own action."""
    market = make_functional(NAME, **OPTIONS[name])
    rng, stream = np.random.default_rng(1), NumpyStream(1)
    params = market.scenario.params(jnp)
    noise = {key: jnp.asarray(value) for key, value in stream.draw(market.initial_noise, 1).items()}
    step_noise = {key: jnp.asarray(value) for key, value in stream.draw(market.noise, 1).items()}
    actions = jnp.asarray(rng.uniform(-0.9, 0.9, (1, 13, 2)))
    weights = jnp.asarray(rng.normal(size=13))

    def value(price, discomfort, actions):
        changed = derive(params._replace(wholesale_price=price, discomfort=discomfort))
        state = market.initial(changed, noise, 1)
        return (market.step(changed, state, actions, step_noise).reward @ weights)[0]

    point = (params.wholesale_price, params.discomfort, actions)
    slopes = jax.jit(jax.grad(value, (0, 1, 2)))(*point)
    compiled, small = jax.jit(value), 1e-5
    for index, slope in enumerate(slopes):
        direction = jnp.asarray(rng.normal(size=slope.shape))
        ends = [
            compiled(*(part + sign * small * direction if i == index else part for i, part in enumerate(point)))
            for sign in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * small)
        assert abs(float(numeric)) > 1e-6
        np.testing.assert_allclose(jnp.sum(slope * direction), numeric, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("privacy", ["budget", "floor"])
def test_parameters_can_be_derived_while_compiling(privacy, double):
    """Which privacy rule holds is not known then."""
    wanted = load_scenario(privacy=privacy).params()
    found = jax.jit(derive)(load_scenario(privacy=privacy).params(jnp))
    loads = np.linspace(-50.0, 300.0, 40)
    for table in ("free", "clearing"):
        answers = (evaluate(getattr(params, table), loads) for params in (found, wanted))
        np.testing.assert_allclose(*answers, rtol=1e-9, atol=1e-9)


def test_double_precision_must_be_enabled():
    with pytest.warns(UserWarning, match="float64"), pytest.raises(ValueError, match="enable x64 or ask for float32"):
        MarketJaxEnv(make_functional(NAME), 2, dtype="float64")
    with pytest.raises(ValueError, match="num_envs must be a whole number >= 1"):
        MarketJaxEnv(make_functional(NAME), 0)


def test_a_second_scenario_reuses_the_compiled_step():
    market = make_functional(NAME, horizon=2)
    face = MarketJaxEnv(market, 2)
    step = jax.jit(face.step)
    _, state = face.reset(jax.random.key(0), face.params)
    actions = jnp.zeros((2, 13, 2))
    for scenario in ("ieee14", "ieee14-bound", "ieee14-interior"):
        params = load_scenario(scenario).params(jnp, jnp.float32)
        assert jnp.isfinite(step(jax.random.key(1), state, actions, params)[2]).all()
    assert step._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stream_moments_and_independence(dtype, double):
    spec = {"a": Draw("normal", (200,)), "b": Draw("uniform", (200,)), "c": Draw("normal", (200,))}
    noise = JaxStream(jax.random.key(0), jnp.dtype(dtype)).draw(spec, 100)
    assert all(value.shape == (100, 200) and value.dtype == dtype for value in noise.values())
    assert abs(float(noise["a"].mean())) < 0.03
    assert float(noise["a"].std()) == pytest.approx(1.0, abs=0.03)
    assert float(noise["b"].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noise["b"].min()) >= 0
    assert abs(float(jnp.corrcoef(noise["a"].ravel(), noise["c"].ravel())[0, 1])) < 0.03


# The VCG market.

VCG = {
    "vcg": {"mechanism": "vcg", "horizon": 2},
    "finite": {"support": "finite", "reward": "realised", "payments": "entropy", "report": "coefficients"},
    "continuous": {"reward": "realised"},
    "laplace": {"mechanism": "laplace", "laplace_samples": 8, "epsilon": 20.0},
}


@pytest.mark.parametrize("options", VCG.values(), ids=VCG)
def test_the_vcg_market_equals_numpy_given_the_same_noise(options, double):
    market, envs = make_functional("dpvcg_v0", **options), 4
    params = market.parameters(jnp)
    stream, rng = NumpyStream(0), np.random.default_rng(0)
    noise = stream.draw(market.initial_noise, envs)
    state = market.initial(market.params, noise, envs)
    other = market.initial(params, {key: jnp.asarray(value) for key, value in noise.items()}, envs)
    step = jax.jit(market.step)
    for _ in range(market.horizon):
        actions = rng.uniform(-1, 1, (envs, 6, len(market.action_names)))
        noise = stream.draw(market.noise, envs)
        wanted = market.step(market.params, state, actions, noise)
        got = step(params, other, jnp.asarray(actions), {key: jnp.asarray(value) for key, value in noise.items()})
        np.testing.assert_allclose(got.reward, wanted.reward, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(got.terminated, wanted.terminated)
        for key, value in wanted.info.items():
            np.testing.assert_allclose(got.info[key], value, rtol=1e-9, atol=1e-9, err_msg=key)
        for one, same in zip(
            market.observe(params, got.state), market.observe(market.params, wanted.state), strict=True
        ):
            np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-12)
        state, other = wanted.state, got.state


def test_the_vcg_market_rolls_out_and_has_gradients(double):
    """Rollouts of truth give the truthful payoffs; the slope of an agent's reward in its own action, numerically."""
    market = make_functional("dpvcg_v0", **VCG["finite"] | {"reward": "expected", "types": "fixed", "horizon": 1})
    face, truthful = MarketJaxEnv(market, 2, dtype="float64"), market.policy("truthful")
    _, rewards = jax.jit(lambda key, params: face.rollout(key, truthful, 3, params))(jax.random.key(0), face.params)
    wanted = market.mechanism.payoffs(market.payments)
    np.testing.assert_allclose(rewards, np.broadcast_to(wanted, (3, 2, 6)), atol=1e-9)

    state = market.initial(face.params, {}, 1)
    actions = jnp.asarray(np.random.default_rng(1).uniform(-0.9, 0.9, (1, 6, len(market.action_names))))
    weights = jnp.arange(6.0)
    value = jax.jit(lambda actions: (market.step(face.params, state, actions, {}).reward @ weights)[0])
    slope, small = jax.jit(jax.grad(value))(actions), 1e-5
    direction = jnp.asarray(np.random.default_rng(2).normal(size=actions.shape))
    numeric = (value(actions + small * direction) - value(actions - small * direction)) / (2 * small)
    np.testing.assert_allclose(jnp.sum(slope * direction), numeric, rtol=1e-5, atol=1e-7)


# The private energy market.

PEM = {
    "exact": {"preference_cap": 0.5, "demand_cap": 0.5},
    "paper, loads played": {"pricing": "paper", "response": "agent", "capacity_cap": 0.5, "forecast": 1},
    "bound, led": {"pricing": "exact_bound", "leader": "agent", "capacity_cap": 0.3},
}


def energy(name):
    return make_functional("pem_v0", scenario=Day.random(5, 3, 2), **PEM[name])


@pytest.mark.parametrize("name", PEM)
def test_the_energy_market_equals_numpy_given_the_same_noise(name, double):
    market, envs = energy(name), 8
    agents, params = len(market.context), market.parameters(jnp)
    stream, rng = NumpyStream(0), np.random.default_rng(0)
    noise = stream.draw(market.initial_noise, envs)
    state = market.initial(market.params, noise, envs)
    other = market.initial(params, {key: jnp.asarray(value) for key, value in noise.items()}, envs)
    step = jax.jit(market.step)
    for _ in range(market.horizon):
        actions, noise = rng.uniform(-1, 1, (envs, agents, 5)), stream.draw(market.noise, envs)
        wanted = market.step(market.params, state, actions, noise)
        got = step(params, other, jnp.asarray(actions), {key: jnp.asarray(value) for key, value in noise.items()})
        assert [leaf.dtype for leaf in got.state] == [leaf.dtype for leaf in wanted.state]
        np.testing.assert_allclose(got.reward, wanted.reward, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(got.terminated, wanted.terminated)
        np.testing.assert_array_equal(got.truncated, wanted.truncated)
        for key, value in wanted.info.items():
            np.testing.assert_allclose(got.info[key], value, rtol=1e-9, atol=1e-9, err_msg=key)
        for one, same in zip(
            market.observe(params, got.state), market.observe(market.params, wanted.state), strict=True
        ):
            np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-12)
        state, other = wanted.state, got.state


@pytest.mark.parametrize("name", ["exact", "bound, led"])
def test_policies_of_the_energy_market_roll_out(name, double):
    """Over the end of a day, against the loop in NumPy."""
    market = energy(name)
    face, policy = MarketJaxEnv(market, 2, dtype="float64"), market.policy("stackelberg")
    _, rewards = jax.jit(lambda key, params: face.rollout(key, policy, 5, params))(jax.random.key(0), face.params)
    state = market.initial(market.params, {}, 2)
    for time in range(5):
        step = market.step(market.params, state, policy.act(market.params, None, state, {}), {})
        np.testing.assert_allclose(rewards[time], step.reward, rtol=1e-9, atol=1e-9)
        state = step.state if time != 2 else market.initial(market.params, {}, 2)


@pytest.mark.parametrize("name", PEM)
def test_gradients_of_the_energy_market(name, double):
    """In all actions and the retail price, against central differences; homes without generation or battery too."""
    market = energy(name)
    agents, params = len(market.context), market.parameters(jnp)
    stream = NumpyStream(1)
    noise, later = (
        {key: jnp.asarray(value) for key, value in stream.draw(spec, 1).items()}
        for spec in (market.initial_noise, market.noise)
    )
    actions = jnp.asarray(np.random.default_rng(3).uniform(-0.9, 0.9, (1, agents, 5)))
    weights = jnp.asarray(np.random.default_rng(4).normal(size=agents))

    def value(actions, retail):
        changed = params._replace(prices=params.prices._replace(retail=retail))
        state = market.initial(changed, noise, 1)
        return (market.step(changed, state, actions, later).reward @ weights)[0]

    point, small, compiled = (actions, params.prices.retail), 1e-5, jax.jit(value)
    slopes = jax.jit(jax.grad(value, (0, 1)))(*point)
    for index, slope in enumerate(slopes):
        assert jnp.isfinite(slope).all()
        direction = jnp.asarray(np.random.default_rng(5).normal(size=slope.shape))
        ends = [
            compiled(*(part + sign * small * direction if i == index else part for i, part in enumerate(point)))
            for sign in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * small)
        assert abs(float(numeric)) > 1e-6
        np.testing.assert_allclose(jnp.sum(slope * direction), numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pricing", ["paper", "exact", "exact_bound"])
def test_gradients_of_the_energy_market_without_sellers_or_buyers(pricing, double):
    """Finite and right by actions and the retail price where a root or a quotient is of zero, without buyback too."""
    random = Day.random(4, 2, 3)
    kinds = {
        "nobody sells": random.replace(generation=0.0 * random.load),
        "nobody buys": random.replace(generation=random.generation + 5.0),
        "idle": random.replace(generation=0.0 * random.load, load=0.0 * random.load, battery_power=0.0),
        "both": random.replace(generation=random.load * np.array([3.0, 0.0, 0.0, 1.1])),
    }
    caps = dict.fromkeys(("preference_cap", "capacity_cap", "demand_cap"), 0.3)
    actions = jnp.asarray(np.random.default_rng(3).uniform(-0.2, 0.2, (1, 4, 5)))
    direction = jnp.asarray(np.random.default_rng(5).normal(size=actions.shape))
    weights = jnp.asarray(np.random.default_rng(4).normal(size=4))
    market = make_functional("pem_v0", scenario=random, pricing=pricing, **caps)

    @jax.jit
    def both(params, actions, retail):
        def value(actions, retail):
            changed = params._replace(prices=params.prices._replace(retail=retail))
            return (market.step(changed, market.initial(changed, {}, 1), actions, {}).reward @ weights)[0]

        return value(actions, retail), jax.grad(value, (0, 1))(actions, retail)

    seen = set()
    for kind, scenario in kinds.items():
        for buyback in (0.0, 80.0):
            energy = make_functional("pem_v0", scenario=scenario.replace(buyback=buyback), pricing=pricing, **caps)
            params, small = energy.parameters(jnp), 1e-5
            retail = params.prices.retail
            info = energy.step(params, energy.initial(params, {}, 1), actions, {}).info
            seen.add((bool(info["sellers"][0]), bool(info["buyers"][0])))
            _, (slope, by_retail) = both(params, actions, retail)
            assert jnp.isfinite(slope).all(), (kind, buyback)
            assert jnp.isfinite(by_retail), (kind, buyback)
            ends = [both(params, actions + sign * small * direction, retail)[0] for sign in (1, -1)]
            numeric = (ends[0] - ends[1]) / (2 * small)
            np.testing.assert_allclose(jnp.sum(slope * direction), numeric, rtol=1e-4, atol=1e-5, err_msg=kind)
    assert seen == {(False, True), (True, False), (False, False), (True, True)}
