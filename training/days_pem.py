"""How much a home could gain by another plan for its day in the private energy market: a lower bound, and a check.

What a report gains in a window is exact (``p2penv.pem.equilibrium``). Over a day a home also moves its battery and its
load; its best answer to the others is no convex program, since its own trade moves prices. Here every home is given
the plan of the linear program that takes the prices it met as fixed, and plays it against the others: what it gains so
is gained for certain, and the best deviation gains no less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.pem import Path, day_of_actions, hindsight, paid_on_average
from p2penv.core.contract import Policy
from p2penv.core.random import NumpyStream
from p2penv.faces.runner import Runner
from p2penv.pem import PEM
from training.evaluate import HELD_OUT

Floats = NDArray[np.float64]


class Played(NamedTuple):
    """A day of E environments side by side."""

    reward: Floats  # (E, N) of the day [cents]
    path: Path  # what a kWh brought and cost on average in the first environment
    violation: float  # largest breach of a balance [kWh, cents] or of a battery's limits [kWh]


def gains(env: PEM, policy: Policy, seed: int = 0) -> Floats:
    """What each home gains ``(n,)`` at least by a plan of its own for the day, the others' policies given [cents].

    The reports of the policy are kept. Zero where the plan does not do better; a leading buyer has no plan.

    Args:
        env: the functional environment.
        policy: the joint policy.
        seed: of the held-out day.
    """
    before = play(env, policy, seed)
    homes = np.arange(env.scenario.size)
    plans = day_of_actions(env, [hindsight(env, int(home), before.path) for home in homes])
    after = play(env, policy, seed, plans)
    return np.asarray(np.maximum(after.reward[homes, homes] - before.reward[0, homes], 0.0))


def play(env: PEM, policy: Policy, seed: int = 0, plans: Floats | None = None) -> Played:
    """A held-out day of a policy; with plans ``(T, N, 5)`` n days, in the k-th of which home k follows its plan.

    All days draw the same. Reports stay those of the policy.
    """
    envs = 1 if plans is None else env.scenario.size
    runner = Runner(env, envs)
    drawn = NumpyStream(HELD_OUT + seed)
    params, state = env.params, env.initial(env.params, _same(env.initial_noise, drawn, envs), envs)
    total, paid, violation = np.zeros((envs, len(runner.agents))), [], 0.0
    stream = NumpyStream(HELD_OUT + seed + 1)
    for time in range(env.horizon):
        known = state if policy.full_information else None
        noise = _same(policy.noise, stream, envs)
        actions = np.array(policy.act(params, runner.observations(state), known, noise), np.float64)
        if plans is not None:
            homes = np.arange(envs)
            actions[homes, homes, :2] = plans[time, homes, :2]
        actions = runner.check(actions)
        window = env.play(params, *env.decode(params, state, actions), env._offer(params, actions))
        paid.append([float(price[0]) for price in paid_on_average(params, window)])
        step = env.step(params, state, actions, _same(env.noise, drawn, envs))
        total += step.reward
        violation = max(violation, _violation(env, window, step.state.charge))
        state = step.state
    return Played(total, Path(*np.array(paid).T), violation)


def _same(spec: Mapping[str, Any], stream: NumpyStream, envs: int) -> dict[str, Any]:
    """One draw for all environments."""
    return {name: np.broadcast_to(each, (envs, *each.shape[1:])) for name, each in stream.draw(spec, 1).items()}


def _violation(env: PEM, window: Any, charge: Floats) -> float:
    settled, hours, scenario = window.settled, env.scenario.hours, env.scenario
    breaches = (
        hours * np.abs(settled.bought.sum(-1) - settled.sold.sum(-1)),
        hours * np.abs(settled.payment.sum(-1) - settled.grid_account),
        hours * np.abs(window.net.sum(-1) + settled.grid_power),
        np.maximum(-charge, charge - scenario.battery_capacity),
    )
    return max(0.0, *(float(each.max()) for each in breaches))
