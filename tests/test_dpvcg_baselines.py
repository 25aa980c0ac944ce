"""Baselines of the VCG market: where best misreports lead, and parity of the policies with the mechanisms."""

import numpy as np
import pytest

import baselines
import p2penv
from baselines.dpvcg import best_misreport_dynamics
from p2penv.core.random import NumpyStream
from p2penv.dpvcg import rules
from p2penv.dpvcg.equilibrium import gains

NAMES = ("truthful", "dp_vcg", "best_response", "random")
MECHANISMS = {
    "vcg": {"mechanism": "vcg"},
    "entropy": {"payments": "entropy"},
    "algorithm3": {"support": "finite", "range_size": 20, "epsilon": 5.0},
    "continuous": {"epsilon": 5.0, "calibration": "paper"},
    "laplace": {"mechanism": "laplace", "laplace_samples": 8},
}
both_reports = pytest.mark.parametrize("report", ["scale", "coefficients"])


def market(name, **options):
    return p2penv.make_functional("dpvcg_v0", **(MECHANISMS[name] | options))


def first(env, num_envs=1, seed=0):
    return env.initial(env.params, NumpyStream(seed).draw(env.initial_noise, num_envs), num_envs)


def act(env, policy, state):
    noise = NumpyStream(0).draw(policy.noise, len(state.types))
    return policy.act(env.params, None, state if policy.full_information else None, noise)


def test_names_and_errors():
    env = market("vcg")
    assert baselines.names(env) == list(NAMES)
    with pytest.raises(ValueError, match=r"baseline must be one of 'truthful', 'dp_vcg'.*got 've'"):
        baselines.make(env, "ve")
    with pytest.raises(ValueError, match="sweeps must be a whole number >= 1, got 0"):
        baselines.make(env, "best_response", sweeps=0)
    with pytest.raises(ValueError, match=r"tolerance must be finite and >= 0, got -1\.0"):
        best_misreport_dynamics(env, tolerance=-1)
    with pytest.raises(TypeError, match="sweep"):
        baselines.make(env, "best_response", sweep=3)


@both_reports
@pytest.mark.parametrize("name", MECHANISMS)
def test_truthful_policies_get_the_mechanism_s_payoffs(name, report):
    env = market(name, report=report, types="fixed")
    state = first(env, 2)
    for policy in ("truthful", "dp_vcg"):
        reward = env.step(env.params, state, act(env, baselines.make(env, policy), state), {}).reward
        wanted = env.mechanism.payoffs(env.payments)
        np.testing.assert_allclose(reward, np.broadcast_to(wanted, (2, 6)), atol=1e-9)


@both_reports
@pytest.mark.parametrize("name", MECHANISMS)
def test_actions_stay_in_range(name, report):
    env = market(name, report=report)
    state = first(env, 2, seed=3)
    for policy in NAMES:
        played = act(env, baselines.make(env, policy, **({"sweeps": 1} if policy == "best_response" else {})), state)
        assert played.shape == (2, 6, len(env.action_names))
        assert (np.abs(played) <= 1.0).all()


@both_reports
@pytest.mark.parametrize("name", ["vcg", "entropy"])
def test_nobody_leaves_the_truth_where_it_is_optimal(name, report):
    env = market(name, report=report)
    state = first(env, 3, seed=1)
    trace = best_misreport_dynamics(env, state.types)
    assert trace.converged.all()
    assert len(trace.reports) == 2
    np.testing.assert_array_equal(trace.reports[-1], state.types)
    assert (trace.gain[1] <= 1e-12).all()
    played = act(env, baselines.make(env, "best_response"), state)
    np.testing.assert_allclose(env.decode(env.params, played), state.types, rtol=1e-12)


@pytest.mark.parametrize(("name", "report"), [("algorithm3", "scale"), ("algorithm3", "coefficients"),
                                              ("continuous", "scale")])  # fmt: skip
def test_best_misreports_end_where_nobody_gains(name, report):
    """Under Algorithm 3; recorded gains are what moving from report to report paid."""
    env = market(name, report=report)
    state = first(env, 2, seed=1)
    trace = best_misreport_dynamics(env, state.types, tolerance=1e-7)
    assert trace.converged.all()
    assert np.abs(trace.reports[-1] - state.types).max() > 1e-4
    assert ((trace.reports >= env.space.low - 1e-12) & (trace.reports <= env.space.high + 1e-12)).all()
    true = rules.report_bids(env.scenario.bids, state.types)
    end = rules.report_bids(env.scenario.bids, trace.reports[-1])
    assert gains(env.mechanism, end, true, env.payments).gain.max() <= 2e-7
    # The first move, by playing it.
    truth = env.encode(env.params, state.types)
    moved = truth.copy()
    moved[:, 0] = env.encode(env.params, trace.reports[1])[:, 0]
    gain = [env.step(env.params, state, joint, {}).reward[:, 0] for joint in (truth, moved)]
    assert (gain[1] - gain[0] >= -1e-12).all()
    assert (gain[1] - gain[0] <= trace.gain[1] + 1e-9).all()


def test_batched_dynamics_equal_single_ones():
    env = market("algorithm3")
    types = first(env, 3, seed=5).types
    batch = best_misreport_dynamics(env, types, sweeps=2)
    for row in range(3):
        single = best_misreport_dynamics(env, types[row], sweeps=2)
        np.testing.assert_allclose(batch.reports[:, row], single.reports, atol=1e-5)


def test_random_actions_know_nothing():
    env = market("vcg")
    policy = baselines.make(env, "random")
    assert not policy.full_information
    quantiles = np.quantile(act(env, policy, first(env, 3000)), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, 0.0, 0.8], atol=0.03)
