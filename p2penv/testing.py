"""Conformance checks, for markets and environments of your own too.

>>> import p2penv
>>> from p2penv import communication_v0, testing
>>> market = p2penv.make_functional("communication_v0", horizon=3, reward="realised")
>>> testing.check_functional(market)
>>> testing.check_batch(market)
>>> testing.check_parallel(lambda: communication_v0.parallel_env(horizon=3))

Every check returns None or raises an AssertionError that says what is wrong. They complement the upstream checks of
PettingZoo and Gymnasium, which look at types and at one or two steps: these play whole episodes. Use a short
horizon.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from p2penv.core.arrays import merge
from p2penv.core.contract import MarketEnv, Step
from p2penv.core.random import NumpyStream
from p2penv.faces.vector import MarketVectorEnv

Floats = NDArray[Any]


def check_functional(env: MarketEnv, num_envs: int = 3, seed: int = 0) -> None:
    """Check a market against the functional contract, in each of its dtypes, over one episode of random actions.

    Declarations agree with each other; ``initial``, ``step`` and ``observe`` are pure (same inputs, same outputs,
    inputs untouched) and keep shapes and dtype; rewards are finite, observations lie in [−1, 1], info keys are
    constant; one-shot games terminate, longer ones truncate by the horizon at the latest; every environment of a
    batch equals a single one given the same actions and noise.

    Args:
        env: the market.
        num_envs: E ≥ 2, batch to play.
        seed: of actions and noise.

    Raises:
        AssertionError: says what is wrong.
    """
    _check_declarations(env)
    for dtype in map(np.dtype, env.dtypes):
        params, stream = env.parameters(np, dtype), NumpyStream(seed, dtype)
        noise = stream.draw(env.initial_noise, num_envs)
        state = _pure("initial", env.initial, params, noise, num_envs)
        _check_rows("initial", state, lambda row: env.initial(params, _row(noise, row), 1), num_envs)  # noqa: B023
        _check_state(env, params, state, dtype)
        _check_infos(env, _pure("initial_info", env.initial_info, params, state), num_envs)
        rng, ended = np.random.default_rng(seed), np.zeros(num_envs, bool)
        for time in range(1, env.horizon + 1):
            actions = random_actions(env, rng, num_envs).astype(dtype)
            noise = stream.draw(env.noise, num_envs)
            step: Step = _pure("step", env.step, params, state, actions, noise)
            inputs = (state, actions, noise)
            _check_rows("step", step, lambda row: env.step(params, *_row(inputs, row)), num_envs)  # noqa: B023
            _check_step(env, step, dtype, num_envs)
            _check_state(env, params, step.state, dtype)
            _check_infos(env, step.info, num_envs)
            ended |= step.terminated | step.truncated
            _require(time < env.horizon or ended.all(), f"episodes go on after the horizon, {env.horizon} steps")
            state = step.state


def check_batch(env: MarketEnv, num_envs: int = 3, episodes: int = 2, seed: int = 0) -> None:
    """Check a market behind the batched face against its functional core, through resets within the step.

    The same seed gives the same batch; step noise is drawn before reset noise; ``final_obs`` and ``_final_obs``
    hold the last observations of what ended; nothing that was returned is overwritten later.

    Args:
        env: the market.
        num_envs: E ≥ 1.
        episodes: steps to play, in horizons.
        seed: of actions and noise.

    Raises:
        AssertionError: says what is wrong.
    """
    face, stream, rng = MarketVectorEnv(env, num_envs), NumpyStream(seed), np.random.default_rng(seed)
    fresh = lambda: env.initial(env.params, stream.draw(env.initial_noise, num_envs), num_envs)  # noqa: E731
    state = fresh()
    returned: list[Any] = [face.reset(seed=seed)]
    copies = copy.deepcopy(returned)
    _equal(returned[0][0], observations(env, env.params, state), "reset: observations")
    for time in range(1, episodes * env.horizon + 1):
        actions = random_actions(env, rng, num_envs)
        outcome = face.step(actions)
        core = env.step(env.params, state, face.runner.check(actions), stream.draw(env.noise, num_envs))
        info, done, where = dict(core.info), core.terminated | core.truncated, f"step {time}: "
        last = observations(env, env.params, core.state)
        state = core.state
        if done.any():
            info |= {"final_obs": last, "_final_obs": done}
            state = merge(done, fresh(), core.state)
        expected = (observations(env, env.params, state), core.reward, core.terminated, core.truncated, info)
        for name, got, wanted in zip(
            ("observations", "rewards", "terminated", "truncated", "infos"), outcome, expected, strict=True
        ):
            _equal(got, wanted, where + name)
        returned.append(outcome)
        copies.append(copy.deepcopy(outcome))
    _equal(returned, copies, "arrays returned earlier have been overwritten: learners may keep them")


def check_parallel(
    make_env: Callable[[], ParallelEnv[Any, Any, Any]], episodes: int = 3, seed: int = 0, max_steps: int = 10_000
) -> None:
    """Check a PettingZoo parallel environment over whole episodes of random actions.

    The same seed gives the same episodes, on a second environment and after seeding the first one anew; space
    objects stay the same, observations and ``state()`` lie in their spaces, infos keep their keys from reset on;
    rewards are finite Python floats, terminations and truncations Python bools and never both.

    Args:
        make_env: makes a fresh environment.
        episodes: how many to play from one seed.
        seed: of the environment and the actions.
        max_steps: an episode that takes longer is an error.

    Raises:
        AssertionError: says what is wrong.
    """
    env = make_env()
    first = _play(env, episodes, seed, max_steps)
    _equal(_play(make_env(), episodes, seed, max_steps), first, "a second environment with the same seed differs")
    _equal(_play(env, episodes, seed, max_steps), first, "the same environment, seeded again, differs")
    env.close()


def random_actions(env: MarketEnv, rng: np.random.Generator, num_envs: int) -> NDArray[np.float32]:
    """Uniform actions ``(E, N, A)`` in [−1, 1]; environment 0 plays ends of the range only, 1 the middle."""
    agents, size = sum(role.count for role in env.roles), max(role.actions for role in env.roles)
    actions = rng.uniform(-1.0, 1.0, (num_envs, agents, size))
    actions[0] = np.where(actions[0] < 0, -1.0, 1.0)
    actions[1:2] = 0.0
    return actions.astype(np.float32)


def observations(env: MarketEnv, params: Any, state: Any) -> NDArray[np.float32]:
    """Observations ``(E, N, F)`` as the contract defines them: constant features, then the changing ones."""
    changing = env.observe(params, state)
    num_envs, agents = len(state[0]), len(env.context)
    columns = [np.broadcast_to(env.context, (num_envs, *env.context.shape))]
    columns += [np.broadcast_to(feature, (num_envs, agents))[..., None] for feature in changing]
    return np.concatenate(columns, axis=-1).astype(np.float32)


def _require(condition: object, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not condition:
        raise AssertionError(message)


def _equal(got: Any, wanted: Any, what: str) -> None:
    np.testing.assert_equal(got, wanted, err_msg=what)


def _pure(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a call that must leave its arguments alone and give the same again."""
    before = copy.deepcopy(arguments)
    result = function(*arguments)
    kept = copy.deepcopy(result)
    _equal(function(*arguments), kept, f"{name} gave two results for the same inputs: it must be pure")
    _equal(result, kept, f"{name} overwrote what it had returned")
    _equal(arguments, before, f"{name} changed its inputs: it must be pure")
    return result


def _row(tree: Any, row: int) -> Any:
    """Environment ``row`` of arrays, mappings and tuples of arrays, as a batch of one."""
    if isinstance(tree, Mapping):
        return {key: _row(value, row) for key, value in tree.items()}
    if isinstance(tree, tuple):
        rows = [_row(value, row) for value in tree]
        return type(tree)(*rows) if hasattr(tree, "_fields") else tuple(rows)
    return tree[row : row + 1]


def _leaves(tree: Any) -> list[Floats]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, tuple) else [np.asarray(tree)]


def _check_rows(name: str, batch: Any, alone: Callable[[int], Any], num_envs: int) -> None:
    for row in range(num_envs):
        for single, part in zip(_leaves(alone(row)), _leaves(_row(batch, row)), strict=True):
            # Up to rounding: sums over rows of different batches may run in another order.
            scale = 1e4 * np.finfo(part.dtype).eps if part.dtype.kind == "f" else 0.0
            size = max(1.0, float(np.abs(part, where=np.isfinite(part), out=np.zeros(part.shape)).max(initial=0.0)))
            message = f"{name}: environment {row} of the batch differs from a single one"
            np.testing.assert_allclose(single, part, rtol=scale, atol=scale * size, err_msg=message)


def _check_declarations(env: MarketEnv) -> None:
    agents = sum(role.count for role in env.roles)
    names = [role.name for role in env.roles]
    _require(len(set(names)) == len(names), f"roles share a name: {names}")
    _require(
        all(role.count > 0 and role.actions > 0 for role in env.roles), f"a role without agents or actions: {env.roles}"
    )
    _require(env.horizon >= 1, f"horizon is {env.horizon}, must be at least 1")
    most = max(role.actions for role in env.roles)
    _require(len(env.action_names) == most, f"{len(env.action_names)} action_names for {most} actions")
    for role in env.roles:
        named = len(role.action_names)
        _require(named in (0, role.actions), f"{named} action_names for {role.actions} actions of role {role.name!r}")
    context = np.asarray(env.context)
    _require(context.ndim == 2 and len(context) == agents, f"context has shape {context.shape}, must be ({agents}, Fs)")
    _require(np.all(np.abs(context) <= 1.0), "context leaves [-1, 1]")
    scale = np.asarray(env.reward_scale)
    _require(scale.shape == (agents,) and np.all(scale > 0), f"reward_scale must be ({agents},) and > 0, is {scale}")
    _require(len(set(env.features)) == len(env.features), "features share a name")
    for name, draw in [*env.noise.items(), *env.initial_noise.items()]:
        _require(draw.kind in ("normal", "uniform"), f"noise {name!r} has unknown kind {draw.kind!r}")
    _require(set(env.info_axes.values()) <= {"env", "agent"}, f"info_axes must be 'env' or 'agent': {env.info_axes}")


def _check_state(env: MarketEnv, params: Any, state: Any, dtype: Any) -> None:
    agents, constant = np.asarray(env.context).shape
    for name, leaf in zip(state._fields, state, strict=True):
        kept = leaf.dtype == dtype or leaf.dtype.kind != "f"
        _require(kept, f"state.{name} is {leaf.dtype} with {np.dtype(dtype)} parameters")
        _require(len(leaf) == len(state[0]), f"state.{name} has shape {leaf.shape}: its first axis must be E")
    changing = _pure("observe", env.observe, params, state)
    wanted = len(env.features) - constant
    _require(len(changing) == wanted, f"observe gave {len(changing)} features, {wanted} are declared")
    for name, feature in zip(env.features[constant:], changing, strict=True):
        values = np.broadcast_to(feature, (len(state[0]), agents))
        _require(np.all(np.abs(values) <= 1.0), f"feature {name!r} leaves [-1, 1] or is not a number: {values}")


def _check_infos(env: MarketEnv, info: Mapping[str, Floats], num_envs: int) -> None:
    agents = len(env.context)
    _require(info.keys() == env.info_axes.keys(), f"info keys {sorted(info)} are not those of info_axes")
    for key, values in info.items():
        shape = (num_envs,) if env.info_axes[key] == "env" else (num_envs, agents)
        _require(np.shape(values) == shape, f"info {key!r} has shape {np.shape(values)}, must be {shape}")
        _require(not np.isnan(values).any(), f"info {key!r} is not a number: {values}")


def _check_step(env: MarketEnv, step: Step, dtype: Any, num_envs: int) -> None:
    shape = (num_envs, len(env.context))
    _require(step.reward.shape == shape, f"reward has shape {step.reward.shape}, must be {shape}")
    _require(step.reward.dtype == dtype, f"reward is {step.reward.dtype} with {np.dtype(dtype)} parameters")
    _require(np.isfinite(step.reward).all(), f"reward is not finite: {step.reward}")
    for name, flag in (("terminated", step.terminated), ("truncated", step.truncated)):
        right = flag.shape == (num_envs,) and flag.dtype == bool
        _require(right, f"{name} is {flag.dtype} of shape {flag.shape}, must be bool of shape ({num_envs},)")
    never = step.truncated if env.horizon == 1 else step.terminated
    _require(not never.any(), "one-shot games must terminate and repeated ones truncate")


def _play(env: ParallelEnv[Any, Any, Any], episodes: int, seed: int, max_steps: int) -> list[Any]:
    """Everything an environment returned in some episodes, checked on the way."""
    rng, record = np.random.default_rng(seed), []
    spaces = {agent: (env.observation_space(agent), env.action_space(agent)) for agent in env.possible_agents}
    for episode in range(episodes):
        received, infos = env.reset(seed=seed if episode == 0 else None)
        keys = {agent: info.keys() for agent, info in infos.items()}
        record.append(copy.deepcopy((received, infos)))
        for _ in range(max_steps):
            _check_received(env, spaces, received)
            if not env.agents:
                break
            live = list(env.agents)
            actions = {}
            for agent in live:
                spaces[agent][1].seed(int(rng.integers(2**31)))
                actions[agent] = spaces[agent][1].sample()
            outcome = env.step(actions)
            received, rewards, terminated, truncated, infos = outcome
            for agent in live:
                reward, flags = rewards[agent], (terminated[agent], truncated[agent])
                finite = type(reward) is float and np.isfinite(reward)
                _require(finite, f"reward of {agent} must be a finite Python float, is {reward!r}")
                _require(
                    all(type(flag) is bool for flag in flags), f"terminated, truncated of {agent} are no bools: {flags}"
                )
                _require(not all(flags), f"{agent} is both terminated and truncated")
                _require(agent in env.agents or any(flags), f"{agent} left without being terminated or truncated")
                changed = keys.setdefault(agent, infos[agent].keys()) ^ infos[agent].keys()
                _require(not changed, f"info keys of {agent} change during the episode: {sorted(changed)}")
            record.append(copy.deepcopy(outcome))
        else:
            raise AssertionError(f"episode {episode} has not ended after {max_steps} steps")
    return record


def _check_received(env: ParallelEnv[Any, Any, Any], spaces: Mapping[Any, Any], received: Mapping[Any, Any]) -> None:
    for agent, observation in received.items():
        same = env.observation_space(agent) is spaces[agent][0] and env.action_space(agent) is spaces[agent][1]
        _require(same, f"the spaces of {agent} must be the same objects each time")
        _require(spaces[agent][0].contains(observation), f"observation of {agent} is outside its space: {observation}")
    if hasattr(env, "state_space"):
        _require(env.state_space.contains(env.state()), "state() is outside state_space")
