"""Baselines of the private energy market: exact through the core, against hand-worked answers and brute force."""

import itertools

import numpy as np
import pytest

import baselines
import p2penv
from baselines.pem import Path, best_misreport_dynamics, hindsight, payoff, price_path
from p2penv.core.random import NumpyStream
from p2penv.faces.runner import Runner
from p2penv.pem import Scenario

NAMES = ["truthful", "stackelberg", "paper_rule", "grid_only", "battery", "battery_best_loads", "liars", "hindsight"]


def day(policy, env):
    """Rewards ``(T, n)``, charges ``(T + 1, n)`` and infos of a day of a policy."""
    runner, stream = Runner(env), NumpyStream(0)
    runner.reset(0)
    rewards, charges, infos = [], [runner.state.charge[0]], []
    for _ in range(env.horizon):
        noise = stream.draw(policy.noise, 1)
        actions = np.asarray(policy.act(runner.params, runner.observations(runner.state), runner.state, noise))
        step = runner.step(runner.check(actions))
        rewards.append(step.reward[0])
        charges.append(step.state.charge[0])
        infos.append({key: value[0] for key, value in step.info.items()})
    return np.stack(rewards), np.stack(charges), infos


def community(seed=1, homes=6, windows=24, **options):
    return p2penv.make_functional("pem_v0", scenario=Scenario.random(homes, windows, seed), **options)


def test_names_and_errors():
    env = community()
    assert baselines.names(env) == [*NAMES, "random"]
    with pytest.raises(ValueError, match=r"loads must be one of 'base', 'best'.*got 'least'"):
        baselines.make(env, "battery", loads="least")
    with pytest.raises(ValueError, match="sweeps must be a whole number >= 1, got 0"):
        baselines.make(env, "liars", sweeps=0)
    with pytest.raises(ValueError, match=r"tolerance must be finite and > 0, got 0"):
        best_misreport_dynamics(env, tolerance=0)
    with pytest.raises(ValueError, match=r"agent must be in 0\.\.5, got 6"):
        baselines.make(env, "hindsight", agent=6)
    with pytest.raises(ValueError, match="knots must be at least 2, got 1"):
        hindsight(env, 0, knots=1)


@pytest.mark.parametrize("leader", ["rule", "agent"])
@pytest.mark.parametrize("name", NAMES)
def test_actions_and_charges_stay_in_range(name, leader):
    env = community(leader=leader)
    policy = baselines.make(env, name)
    _, charges, _ = day(policy, env)
    assert (charges >= 0.0).all()
    assert (charges <= env.scenario.battery_capacity).all()
    state = env.initial(env.params, {}, 3)
    played = policy.act(env.params, None, state, {})
    assert played.shape == (3, 6 + (leader == "agent"), 5)
    assert (np.abs(played) <= 1.0).all()
    assert (played[:, :6, 2:] == 0.0).all()  # nothing but the truth where caps are 0


def test_loads_answer_the_paper_s_price():
    """(13) within [p_l, p_h], worked out from sellers' own data; k/p − 1 within the flexibility."""
    env = community(response="agent", pricing="paper", initial_charge=0.0)
    s = env.scenario
    _, _, infos = day(baselines.make(env, "paper_rule"), env)
    seen = 0
    for t, info in enumerate(infos):
        g, base, k = s.generation[t], s.load[t], s.preference[t]
        sells = g > base
        if not sells.any() or (g - base)[sells].sum() >= (base - g)[~sells].sum():
            continue
        price = np.clip(np.sqrt(120.0 * k[sells].sum() / (g + 1.0)[sells].sum()), 90.0, 110.0)
        load = np.clip(k / price - 1.0, (1.0 - s.flexibility) * base, np.minimum((1.0 + s.flexibility) * base, g))
        np.testing.assert_allclose(info["load"][sells], load[sells], atol=1e-9)
        np.testing.assert_allclose(info["load"][~sells], base[~sells], atol=1e-9)
        seen += 1
    assert seen > 3


def test_grid_only_loads_are_the_best_against_the_grid():
    """No load within the flexibility does better at 80 and 120 cents, searched on a grid."""
    env = community(response="agent")
    s = env.scenario
    _, _, infos = day(baselines.make(env, "grid_only"), env)
    share = np.linspace(-1.0, 1.0, 401)[:, None]

    def worth(t, load):
        net = s.generation[t] - load
        return s.preference[t] * np.log1p(load) + np.where(net > 0.0, 80.0, 120.0) * net

    for t, info in enumerate(infos):
        tried = worth(t, s.load[t] * (1.0 + share * s.flexibility)).max(axis=0)
        assert (worth(t, info["load"]) >= tried - 1e-9).all()


def test_battery_takes_what_is_left_over_and_gives_what_is_missing():
    env = community(response="agent")
    s = env.scenario
    _, charges, infos = day(baselines.make(env, "battery"), env)
    h = s.hours
    for t, info in enumerate(infos):
        surplus = s.generation[t] - s.load[t]
        room = (s.battery_capacity - charges[t]) / (s.charge_efficiency * h)
        least = (1.0 - s.flexibility) * s.load[t]
        stored = np.minimum(charges[t] * s.discharge_efficiency / h, (least + 0.9) / s.loss)
        b = np.where(
            surplus > 0.0,
            np.minimum(np.minimum(surplus, s.battery_power), room),
            -np.minimum(np.minimum(-surplus, s.battery_power), stored),
        )
        np.testing.assert_allclose(info["net"], surplus - b, atol=1e-9)
        change = h * np.where(b > 0.0, s.charge_efficiency * b, b / s.discharge_efficiency)
        np.testing.assert_allclose(charges[t + 1], charges[t] + change, atol=1e-9)
    assert np.ptp(charges, axis=0).max() > 1.0


@pytest.mark.parametrize("response", ["agent", "best"])
@pytest.mark.parametrize("seed", [1, 2])
def test_fixed_prices_are_those_of_truthful_play(seed, response):
    env = community(seed, response=response)
    rewards, charges, _ = day(baselines.make(env, "truthful"), env)
    path = price_path(env)
    assert (path.sell <= path.buy).all()
    value = env.scenario.charge_value * charges[-1]
    for agent in range(6):
        pays, _ = payoff(env, agent, path, np.zeros((24, 1)), env.scenario.load[:24, agent, None])
        wanted = rewards[:, agent] - np.append(np.zeros(23), value[agent])
        np.testing.assert_allclose(pays[:, 0], wanted, atol=1e-9)


@pytest.mark.parametrize("charge", [0.0, 0.6])
def test_linear_program_meets_brute_force(charge):
    """Three windows of an hour, every power of a fine grid in each; the reward written out from the model."""
    g, load, k = np.array([2.0, 0.0, 0.1]), np.array([0.5, 0.8, 1.2]), np.array([110.0, 150.0, 190.0])
    profile = np.stack([g, 0.0 * g], axis=1)
    scenario = Scenario(
        generation=np.append(profile, profile[-1:], axis=0),
        load=np.stack([np.append(load, 1.0)] * 2, axis=1),
        preference=np.stack([np.append(k, 100.0)] * 2, axis=1),
        battery_capacity=np.array([1.0, 0.0]),
        battery_power=np.array([1.0, 0.0]),
        initial_charge=np.array([charge, 0.0]),
        loss=0.1,
        flexibility=0.0,
        minutes=60.0,
    )
    env = p2penv.make_functional("pem_v0", scenario=scenario, response="agent")
    path = Path(np.array([82.0, 95.0, 80.0]), np.array([90.0, 101.0, 120.0]))

    def value(b):
        net = g - load - b
        reward = k * np.log(1.0 + load + 0.1 * b) + np.where(net > 0.0, path.sell, path.buy) * net
        after = charge + np.cumsum(np.where(b > 0.0, 0.95 * b, b / 0.95), axis=-1)
        inside = ((after > -1e-9) & (after < 1.0 + 1e-9)).all(axis=-1)
        return np.where(inside, reward.sum(axis=-1) + 80.0 * after[..., -1], -np.inf)

    powers = np.linspace(-1.0, 1.0, 101)
    best = max(
        value(np.stack(np.broadcast_arrays(first, *np.meshgrid(powers, powers)), axis=-1)).max() for first in powers
    )
    plan = hindsight(env, 0, path)
    assert plan.value >= best - 0.02  # straight lines between knots
    assert plan.value <= best + 1.5  # the grid's own step of 0.02 kW
    attained = float(value(plan.charging))
    assert attained >= plan.value - 1e-9  # concave between knots
    finer = hindsight(env, 0, path, knots=257)
    assert finer.value == pytest.approx(float(value(finer.charging)), abs=1e-3)
    assert finer.value == pytest.approx(attained, abs=0.02)


@pytest.mark.parametrize("response", ["agent", "best"])
def test_best_load_at_fixed_prices(response):
    """No load that the home or its environment can choose pays more, nor does the mean of two powers pay less."""
    env = community(3, response=response)
    path, s = price_path(env), env.scenario
    rng = np.random.default_rng(0)
    for agent in range(6):
        b = np.sort(rng.uniform(-0.5, 1.0, (24, 8)) * s.battery_power[agent], axis=1)
        best, load = payoff(env, agent, path, b)
        for _ in range(20):
            tried = s.load[:24, agent, None] * (1.0 + s.flexibility[agent] * rng.uniform(-1.0, 1.0, b.shape))
            pays, _ = payoff(env, agent, path, b, tried)
            assert (best >= pays - 1e-9).all()
        middle, _ = payoff(env, agent, path, 0.5 * (b[:, 1:] + b[:, :-1]))
        assert (middle >= 0.5 * (best[:, 1:] + best[:, :-1]) - 1e-9).all()
        assert (load >= (1.0 - s.flexibility[agent]) * s.load[:24, agent, None] - 1e-12).all()


def test_hindsight_beats_the_rule_and_the_rule_beats_rest():
    """For each home with a battery, at the prices of truthful play, on measured profiles."""
    env = p2penv.make_functional("pem_v0", homes=20)
    path, s = price_path(env), env.scenario
    _, charges, _ = day(baselines.make(env, "battery"), env)
    change = np.diff(charges, axis=0) / s.hours
    ruled = np.where(change > 0.0, change / s.charge_efficiency, change * s.discharge_efficiency)
    for agent in np.flatnonzero(s.battery_capacity):
        base = s.load[:720, agent, None]
        value = [
            payoff(env, agent, path, b[:, None], base)[0].sum() + 80.0 * final
            for b, final in ((0.0 * ruled[:, agent], charges[0, agent]), (ruled[:, agent], charges[-1, agent]))
        ]
        plan = hindsight(env, int(agent), path)
        assert plan.value > value[1] + 1.0
        assert value[1] > value[0] + 1.0
        played, _ = payoff(env, agent, path, plan.charging[:, None])
        assert played.sum() + 80.0 * plan.charge[-1] >= plan.value - 1e-6


def test_hindsight_is_played_as_planned():
    env = p2penv.make_functional("pem_v0", homes=20)
    policy = baselines.make(env, "hindsight")
    truth, _, _ = day(baselines.make(env, "truthful"), env)
    rewards, charges, _ = day(policy, env)
    assert env.scenario.battery_capacity[policy.agent] == env.scenario.battery_capacity.max()
    np.testing.assert_allclose(charges[:, policy.agent], policy.schedule.charge, atol=1e-6)
    assert rewards[:, policy.agent].sum() > truth[:, policy.agent].sum()


CAPS = {"preference_cap": 0.7, "capacity_cap": 0.7, "demand_cap": 0.7}


@pytest.mark.parametrize("pricing", ["paper", "exact"])
def test_liars_gain_by_every_move(pricing):
    """Recorded gains are what playing the first sweep pays, home by home."""
    env = community(5, homes=4, windows=6, pricing=pricing, **CAPS)
    state = env.initial(env.params, {}, 2)._replace(time=np.array([2, 3], np.int32))
    trace = best_misreport_dynamics(env, state, sweeps=2, tolerance=1e-2)
    assert trace.scale.shape[1:] == (2, 4, 3)
    assert trace.converged.shape == (2,)
    assert (trace.gain[1:] >= 0.0).all()
    assert trace.gain[1].max() > 0.1
    assert (np.abs(np.log(trace.scale)) <= 0.7 + 1e-12).all()
    actions = np.array(baselines.make(env, "truthful").act(env.params, None, state, {}))
    before = env.step(env.params, state, actions, {}).reward
    largest = np.zeros(2)
    for agent in range(4):
        actions[:, agent, 2:] = np.log(trace.scale[1, :, agent]) / 0.7
        after = env.step(env.params, state, np.clip(actions, -1.0, 1.0), {}).reward
        gain = (after - before)[:, agent]
        assert (gain >= -1e-9).all()
        largest, before = np.maximum(largest, gain), after
    # Gains up to the tolerance are not worth a lie.
    np.testing.assert_allclose(largest, np.where(trace.gain[1] > 1e-2, trace.gain[1], largest), atol=1e-9)
    policy = baselines.make(env, "liars", sweeps=2, tolerance=1e-2)
    told = policy.act(env.params, None, state, {})[..., 2:]
    np.testing.assert_allclose(np.exp(0.7 * told), trace.scale[-1], rtol=1e-9)


def test_without_caps_nobody_lies():
    env = community()
    trace = best_misreport_dynamics(env)
    assert trace.converged.all()
    assert (trace.scale == 1.0).all()
    assert (trace.gain[1] == 0.0).all()


def test_every_policy_plays_every_rule():
    for pricing, response in itertools.product(("paper", "exact", "exact_bound"), ("agent", "best")):
        buyback = 0.0 if response == "best" else 80.0
        env = community(windows=6, pricing=pricing, response=response, buyback=buyback)
        for name in NAMES:
            rewards, _, _ = day(baselines.make(env, name), env)
            assert np.isfinite(rewards).all()
