"""Baselines of the network-constrained market against its solvers and against their rule in plain Python."""

import numpy as np
import pytest

import baselines
import p2penv
from p2penv.core.random import NumpyStream
from p2penv.grid import Scenario

NAMES = ["vgne", "wardrop", "social_optimum", "no_trade", "vgne_distributed", "greedy", "random"]


def played(env, policy):
    """States, actions and rewards of a day, hour by hour."""
    state, hours = env.initial(env.params, {}, 1), []
    for hour in range(env.horizon):
        noise = NumpyStream(hour).draw(policy.noise, 1)
        actions = policy.act(env.params, None, state, noise)
        step = env.step(env.params, state, actions, {})
        hours.append((state, actions, step.reward))
        state = step.state
    return hours


def test_names():
    assert baselines.names(p2penv.make_functional("grid_v0")) == NAMES


def test_the_distributed_equilibrium_costs_what_the_exact_one_does():
    """Up to the tolerance it stops at."""
    pytest.importorskip("clarabel")
    env = p2penv.make_functional("grid_v0", prosumers=4, seed=3)
    policy = baselines.make(env, "vgne_distributed")
    cost = -np.sum([reward[0] for _, _, reward in played(env, policy)], axis=0)
    np.testing.assert_allclose(cost, env.solution("vgne").cost, rtol=1e-3)
    with pytest.raises(RuntimeError, match=r"has not converged to 0\.0002 after 3 iterations"):
        baselines.make(env, "vgne_distributed", most=3)


@pytest.mark.parametrize("trade_price", ["contract", "bilateral"])
@pytest.mark.parametrize("seed", [0, 3, 5])
def test_greedy_play_is_the_written_rule(seed, trade_price):
    case = Scenario.random(6, seed)
    env = p2penv.make_functional("grid_v0", scenario=case, trade_price=trade_price)
    for hour, (state, actions, _) in enumerate(played(env, baselines.make(env, "greedy"))):
        price = float(state.price[0])
        for i in range(case.size):
            lacking = case.demand[hour, i] - case.solar[hour, i]
            wanted = np.clip(-lacking, -case.storage_power[i], case.storage_power[i])
            split = env.storage(env.params, state, np.full((1, case.size), wanted))
            charge, discharge = (float(each[0, i]) for each in split)
            lacking += charge - discharge
            partners = [k for k, j in enumerate(case.partner[i]) if j >= 0]
            paid = np.mean([case.params.trade_cost[i, k] for k in partners]) - case.tariff if partners else 0.0

            def worth(value, i=i):
                """Most output whose last kWh costs no more."""
                slope = 2.0 * case.dispatch_quadratic[i]
                free = value - case.dispatch_linear[i]
                most = case.dispatch_max[i]
                if slope == 0.0:
                    return most if free > 0.0 else 0.0
                return min(max(free / slope, 0.0), most)

            dispatch = max(min(max(lacking, 0.0), worth(price)), worth(paid))
            lacking -= dispatch
            action = actions[0, i]
            if case.dispatch_max[i] > 0.0:
                assert 0.5 * (action[0] + 1.0) * case.dispatch_max[i] == pytest.approx(dispatch, abs=1e-9)
            assert action[1] * case.storage_power[i] == pytest.approx(charge - discharge, abs=1e-9)
            assert action[2] == -1.0
            for k in partners:
                share = lacking / len(partners)
                most = case.params.trade_max[i, k]
                assert action[4 + k] * most == pytest.approx(np.clip(share, -most, most), abs=1e-9)
            bid = price if lacking > 0.0 else 0.0
            if lacking <= 0.0 and dispatch > 0.0:
                bid = case.dispatch_linear[i] + 2.0 * case.dispatch_quadratic[i] * dispatch
            assert 0.5 * (action[3] + 1.0) * env.limit_price == pytest.approx(min(bid, env.limit_price), abs=1e-9)
