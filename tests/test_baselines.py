"""Baselines: parity with the solvers, and the known behaviour of the learning rules."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import baselines
import p2penv
from baselines import communication as learn
from p2penv import communication_v0
from p2penv.communication import Scenario, equilibrium, load_scenario, rules, scenario_names
from p2penv.core.random import NumpyStream

NAMES = (
    "truthful",
    "ve",
    "coordinated",
    "best_response",
    "best_response_damped",
    "diffusion",
    "diffusion_preconditioned",
    "random",
)
QUICK = {"diffusion": {"iterations": 200}, "diffusion_preconditioned": {"iterations": 200}}


def market(**options):
    return p2penv.make_functional("communication_v0", **options)


def first(env, num_envs=1, seed=0):
    return env.initial(env.params, NumpyStream(seed).draw(env.initial_noise, num_envs), num_envs)


def actions(env, policy, state, seed=0):
    noise = NumpyStream(seed).draw(policy.noise, state.price.shape[0])
    return policy.act(env.params, None, state if policy.full_information else None, noise)


def test_names_and_errors():
    env = market()
    assert baselines.names(env) == list(NAMES)
    assert set(baselines.REGISTRY) == set(p2penv.MARKETS)
    with pytest.raises(ValueError, match=r"baseline must be one of 'truthful', 've'.*got 'nash'"):
        baselines.make(env, "nash")
    with pytest.raises(TypeError, match="must be a functional environment or a face of one, got int"):
        baselines.names(3)
    with pytest.raises(TypeError, match="sweep"):
        baselines.make(env, "best_response", sweep=3)
    with pytest.raises(TypeError, match="baseline 've': got an unexpected keyword argument 'sweeps'"):
        baselines.make(env, "ve", sweeps=3)
    with pytest.raises(ValueError, match=r"the rule diverged: shifts of iteration .* take smaller steps"):
        baselines.make(env, "diffusion", step=1e3)
    with pytest.raises(ValueError, match="sweeps must be a whole number >= 1, got 0"):
        baselines.make(env, "best_response", sweeps=0)
    with pytest.raises(ValueError, match=r"damping must be in \(0, 1\], got 1.5"):
        baselines.make(env, "best_response_damped", damping=1.5)
    with pytest.raises(ValueError, match=r"start must have shape \(\.\.\., 13\), got \(2,\)"):
        baselines.make(env, "best_response", start=[0.0, 0.0])
    with pytest.raises(ValueError, match="start of agent 1 must be within ±3 MWh"):
        baselines.make(env, "diffusion", start=[0.0, 3.5] + [0.0] * 11)
    with pytest.raises(ValueError, match=r"step must be finite and > 0, got 0.0"):
        baselines.make(env, "diffusion", step=0)
    with pytest.raises(ValueError, match="penalty must be finite and > 0"):
        baselines.make(env, "diffusion", penalty=-1)


def test_every_face_is_accepted():
    faces = [
        communication_v0.parallel_env(),
        communication_v0.env(),
        communication_v0.solo_vector_env(2, agent="prosumer_0"),
        p2penv.make_vector("communication_v0", 2),
        gymnasium.make("p2penv/Communication-v0", agent="prosumer_3"),
    ]
    for face in faces:
        assert baselines.names(face) == list(NAMES)
        assert baselines.make(face, "ve").full_information


@pytest.mark.parametrize("scenario", scenario_names())
@pytest.mark.parametrize("name", NAMES)
def test_parity_through_the_core(scenario, name):
    """Reward is truthful cost minus cost, so it must give back the solver's own costs."""
    env = market(scenario=scenario)
    scenario = env.scenario
    truthful = rules.expected_cost(scenario, np.zeros(13), np.zeros(13))
    rule = {
        "best_response": learn.best_response_dynamics,
        "best_response_damped": learn.damped_best_response_dynamics,
        "diffusion": lambda s: learn.diffusion(s, 200),
        "diffusion_preconditioned": lambda s: learn.diffusion(s, 200, preconditioned=True),
    }
    state = first(env, 3)
    played = actions(env, baselines.make(env, name, **QUICK.get(name, {})), state)
    if name == "random":
        shift, variance = env.decode(env.params, played)
        cost = rules.expected_cost(scenario, shift, variance)
    elif name == "truthful":
        cost = truthful
    elif name in rule:
        shift = np.clip(rule[name](scenario).shift[-1], -scenario.max_shift, scenario.max_shift)
        cost = rules.expected_cost(scenario, shift, rules.least_variance(scenario, shift))
    else:
        solve = equilibrium.variational_equilibrium if name == "ve" else equilibrium.coordinated
        cost = solve(scenario).cost
    step = env.step(env.params, state, played, NumpyStream(1).draw(env.noise, 3))
    np.testing.assert_allclose(truthful - step.reward, np.broadcast_to(cost, (3, 13)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scenario", [*scenario_names(), "random", "floor"])
@pytest.mark.parametrize("name", NAMES)
def test_actions_stay_in_range_in_moving_contexts(scenario, name):
    special = {"random": Scenario.random(5, 1), "floor": load_scenario(privacy="floor")}
    env = market(scenario=special.get(scenario, scenario), horizon=4, reward="realised")
    policy, stream = baselines.make(env, name, **QUICK.get(name, {})), NumpyStream(5)
    state = first(env, 16, seed=3)
    for seed in range(3):
        played = actions(env, policy, state, seed)
        assert played.shape == (16, env.scenario.size, 2)
        assert (np.abs(played) <= 1.0).all()
        state = env.step(env.params, state, played, stream.draw(env.noise, 16)).state


def test_batch_equals_single_contexts():
    env = market(horizon=3)
    y = first(env, 6, seed=2).private_information
    batch = learn.best_response_dynamics(env.scenario, private_information=y)
    for row, shift in zip(y, batch.shift[-1], strict=True):
        single = learn.best_response_dynamics(env.scenario, private_information=row)
        np.testing.assert_allclose(single.shift[-1], shift, rtol=0, atol=1e-8)


def test_learned_profiles_follow_the_context():
    env = market(horizon=3)
    state = first(env, 8, seed=4)
    exact = equilibrium.variational_equilibrium(env.params, private_information=state.private_information)
    assert np.ptp(exact.price) > 0.3
    for name in ("best_response", "best_response_damped", "diffusion_preconditioned"):
        shift, _ = env.decode(env.params, actions(env, baselines.make(env, name), state))
        np.testing.assert_allclose(shift, exact.shift, rtol=0, atol=1e-6)


def test_sequential_best_response_converges_in_four_sweeps():
    scenario = load_scenario("ieee14")
    trace = learn.best_response_dynamics(scenario)
    assert trace.converged
    assert trace.iteration[-1] == 4
    assert np.abs(np.diff(trace.shift, axis=0)).max(-1)[2] > 1e-3  # the third sweep still moves somebody
    exact = equilibrium.variational_equilibrium(scenario)
    np.testing.assert_allclose(trace.shift[-1], exact.shift, rtol=0, atol=1e-10)
    assert trace.price[-1] == pytest.approx(6.321045, abs=1e-6)


def test_sequential_best_response_is_slower_with_a_small_budget():
    scenario = load_scenario("ieee14-interior")
    loose, tight = (learn.best_response_dynamics(scenario, tolerance=t) for t in (1e-5, 1e-9))
    assert loose.iteration[-1] == 14
    assert tight.iteration[-1] == 23
    assert tight.converged
    exact = equilibrium.variational_equilibrium(scenario)
    np.testing.assert_allclose(tight.shift[-1], exact.shift, rtol=0, atol=1e-8)
    assert not learn.best_response_dynamics(scenario, sweeps=12, tolerance=1e-5).converged


@pytest.mark.parametrize("scenario", scenario_names())
def test_sequential_sweep_is_agent_by_agent(scenario):
    """The one-agent views give what the whole game's best response gives, from inside the interval."""
    scenario = load_scenario(scenario)
    start = np.random.default_rng(1).uniform(-1.0, 1.0, 13)
    expected = start.copy()
    for agent in range(13):
        expected[agent] = equilibrium.best_response(scenario, expected)[agent]
    swept = learn.best_response_dynamics(scenario, start, sweeps=1).shift[-1]
    np.testing.assert_allclose(swept, expected, rtol=0, atol=1e-12)


def test_every_sequential_step_lowers_the_potential():
    scenario = load_scenario("ieee14-interior")
    shifts = learn.best_response_dynamics(scenario, tolerance=1e-6).shift
    values = equilibrium.potential(scenario, shifts, rules.least_variance(scenario, shifts))
    assert (np.diff(values) <= 1e-15).all()
    assert values[0] - values[-1] > 1e-3


def test_binding_bound_stops_best_response_at_the_start_s_own_equilibrium():
    scenario = load_scenario("ieee14-bound")
    exact = equilibrium.variational_equilibrium(scenario)
    assert float(exact.multiplier) == pytest.approx(0.1008, abs=5e-5)
    low = float(scenario.params().report_low)
    ends = []
    for seed in (None, 0, 1):
        start = None if seed is None else np.random.default_rng(seed).uniform(-1.0, 3.0, 13)
        end = learn.best_response_dynamics(scenario, start).shift[-1]
        variance = rules.least_variance(scenario, end)
        gains = equilibrium.exploitability(scenario, end, variance)
        assert np.abs(gains).max() < 1e-9  # a generalised equilibrium …
        assert (scenario.private_information + end).sum() == pytest.approx(low, abs=1e-9)  # … at the bound …
        assert np.abs(end - exact.shift).max() > 1.0  # … and not the variational one
        ends.append(end)
    assert min(np.abs(ends[0] - ends[1]).max(), np.abs(ends[0] - ends[2]).max(), np.abs(ends[1] - ends[2]).max()) > 0.5


@pytest.mark.parametrize("scenario", ["ieee14", "ieee14-interior"])
def test_undamped_simultaneous_best_response_cycles(scenario):
    shift = learn.damped_best_response_dynamics(load_scenario(scenario), damping=1.0, sweeps=60).shift
    np.testing.assert_allclose(shift[-1], shift[-3], rtol=0, atol=1e-12)
    assert np.abs(shift[-1] - shift[-2]).max() == pytest.approx(6.0)  # from one end of (8d) to the other


@pytest.mark.parametrize("damping", [None, 2 / 14])
@pytest.mark.parametrize("scenario", ["ieee14", "ieee14-interior"])
def test_damped_best_response_converges(scenario, damping):
    scenario = load_scenario(scenario)
    trace = learn.damped_best_response_dynamics(scenario, damping=damping)
    assert trace.converged
    exact = equilibrium.variational_equilibrium(scenario)
    np.testing.assert_allclose(trace.shift[-1], exact.shift, rtol=0, atol=1e-7)


def test_damping_by_one_nth_keeps_the_shared_interval():
    scenario = load_scenario("ieee14-bound")
    totals = (scenario.private_information + learn.damped_best_response_dynamics(scenario).shift).sum(-1)
    assert totals.min() >= float(scenario.params().report_low) - 1e-9
    assert totals[-1] == pytest.approx(float(scenario.params().report_low), abs=1e-6)


def test_diffusion_is_as_slow_as_the_paper_s_step_makes_it():
    """With μ = 0.003 and R = 700 the price is off by 0.19 after 10⁴ iterations and by 0.03 after 2·10⁵."""
    scenario = load_scenario("ieee14")
    trace = learn.diffusion(scenario, 200_000, record_every=10_000)
    error = np.abs(trace.price - 6.321045)
    assert trace.iteration[1] == 10_000
    assert error[1] == pytest.approx(0.19, abs=0.005)
    assert error[-1] == pytest.approx(0.03, abs=0.005)


def test_diffusion_step_is_the_gradient_of_cost_and_penalty():
    """One step against numeric derivatives of the expected cost and of the written-out penalty."""
    scenario = load_scenario("ieee14-bound")
    p = scenario.params()
    start = np.random.default_rng(0).uniform(-3.0, -2.0, 13)  # beyond the shared bound

    def cost(x, agent):
        return rules.expected_cost(scenario, x, rules.least_variance(scenario, x))[agent]

    def penalty(x):
        price = (scenario.private_information.sum() + x.sum() + p.intercept) / p.total_slope
        generation = (price - scenario.generation_price) / scenario.generation_curvature
        demand = scenario.nominal_demand - price / (2.0 * scenario.discomfort)
        margin = scenario.margin
        excess = np.concatenate(
            [
                scenario.generation_min + margin - generation,
                generation - scenario.generation_max + margin,
                scenario.demand_min + margin - demand,
                demand - scenario.demand_max + margin,
                np.abs(x) - scenario.max_shift,
            ]
        )
        return 0.5 * (np.maximum(excess, 0.0) ** 2).sum()

    def derivative(function, x, agent, h=1e-4):
        unit = h * np.eye(13)[agent]
        return (function(x + unit) - function(x - unit)) / (2.0 * h)

    step, strength = 0.01, 20.0
    gradient = [derivative(lambda x, n=n: cost(x, n), start, n) for n in range(13)]
    adapted = start - step * np.array(gradient)
    expected = adapted - step * strength * np.array([derivative(penalty, adapted, n) for n in range(13)])
    found = learn.diffusion(scenario, 1, step=step, penalty=strength, start=start).shift[-1]
    assert np.abs(expected - adapted).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("scenario", ["ieee14", "ieee14-interior"])
def test_preconditioned_diffusion_converges(scenario):
    scenario = load_scenario(scenario)
    exact = equilibrium.variational_equilibrium(scenario)
    error = np.abs(learn.diffusion(scenario, 4000, preconditioned=True, record_every=1000).price - exact.price)
    assert error[1] < 1e-4
    assert error[-1] < 1e-9


def test_preconditioned_diffusion_nears_a_binding_bound_with_the_step():
    """The remaining violation is θ·μ·ΣB²/B_n of a penalty in balance with the gradients."""
    scenario = load_scenario("ieee14-bound")
    exact = equilibrium.variational_equilibrium(scenario)
    errors = [
        float(learn.diffusion(scenario, 20_000, step=step, preconditioned=True).price[-1] - exact.price)
        for step in (4e-3, 2e-3, 1e-3)
    ]
    np.testing.assert_allclose(np.abs(errors[:-1]), 2.0 * np.abs(errors[1:]), rtol=0.1)
    assert abs(errors[-1]) < 0.01


def test_stochastic_gradients_end_near_the_equilibrium_and_repeat():
    scenario = load_scenario("ieee14-interior")
    exact = equilibrium.variational_equilibrium(scenario)
    runs = [learn.diffusion(scenario, 4000, step=0.002, preconditioned=True, seed=seed) for seed in (1, 1, 2)]
    assert (runs[0].shift == runs[1].shift).all()
    assert np.abs(runs[0].shift[-1] - runs[2].shift[-1]).max() > 1e-3
    tail = runs[0].price[len(runs[0].price) // 2 :]
    assert tail.mean() == pytest.approx(float(exact.price), abs=0.05)


def test_best_response_plays_the_penalised_game_where_the_environment_charges():
    env = market(scenario="ieee14-bound", shared_penalty=0.05)
    state = first(env)
    played = actions(env, baselines.make(env, "best_response", sweeps=2000), state)
    assert np.abs(env.assess(env.params, state, played)["exploitability"]).max() < 1e-9
    shift, _ = env.decode(env.params, played)
    assert (state.private_information + shift).sum() < float(env.params.report_low) - 0.01


def test_random_actions_are_uniform_and_draw_declared_noise():
    env = market()
    policy = baselines.make(env, "random")
    assert not policy.full_information
    played = actions(env, policy, first(env, 2000))
    assert played.shape == (2000, 13, 2)
    quantiles = np.quantile(played, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, 0.0, 0.8], atol=0.02)
