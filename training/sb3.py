"""Stable-Baselines3 learners on a market: one shared network, or one learner per agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from baselines.uniform import UniformPolicy
from p2penv.core.contract import MarketEnv, Policy
from p2penv.core.random import NumpyStream
from p2penv.faces.runner import Runner
from p2penv.faces.sb3 import MarketVecEnv, OneMarketVecEnv
from training.policies import ALGORITHMS
from training.runs import TrainConfig

Floats = NDArray[Any]


class Decay:
    """Learning rate that falls linearly over the whole run.

    Learners ask after a rollout how much remains; the rollout is counted as still to come, so that the last one, which
    may overshoot the end, is learned from too.
    """

    def __init__(self, start: float, rollout: float) -> None:
        self.start = start
        self.rollout = rollout
        """Share of the run that one rollout is"""

    def __call__(self, remaining: float) -> float:
        """Rate at the share of the run that remains."""
        return self.start * min(1.0, max(remaining, 0.0) + self.rollout)


class Relay:
    """Lets N single-agent learners step one market together, strictly in turn.

    Each learner runs in its own thread, but only the one that holds the turn works, so a seed gives the same run
    every time. The last one of a round plays the joint action; the others pick up their results when it is their
    turn again.
    """

    def __init__(self, joint: MarketVecEnv) -> None:
        self.joint = joint
        self.size = len(joint.agents)
        self.envs = joint.runner.num_envs
        self.turns = [threading.Semaphore(0) for _ in range(self.size)]
        self.actions = np.zeros((self.envs, self.size, joint.runner.actions), np.float32)
        self.observations: Floats = np.zeros(0)
        self.outcome: tuple[Any, ...] = ()
        self.failure: BaseException | None = None

    def reset(self, agent: int) -> Floats:
        """Own observations; the first learner starts the episode for all."""
        if agent == 0:
            self.observations = self.joint.reset()
        return self._own(self.observations, agent)

    def step(self, agent: int, actions: Floats) -> tuple[Floats, Floats, Floats, list[dict[str, Any]]]:
        """Add an own action, wait for the round to end, return the own outcome."""
        self.actions[:, agent] = actions
        if agent == self.size - 1:
            self.outcome = self.joint.step(self.actions.reshape(-1, self.actions.shape[-1]))
        self.pass_on(agent)
        self.wait(agent)
        observations, rewards, done, infos = self.outcome
        own = infos[agent :: self.size]
        return self._own(observations, agent), self._own(rewards, agent), self._own(done, agent), own

    def wait(self, agent: int) -> None:
        """Wait for the turn."""
        self.turns[agent].acquire()
        if self.failure is not None:
            raise RuntimeError("another learner failed") from self.failure

    def pass_on(self, agent: int) -> None:
        """Give the turn to the next learner."""
        self.turns[(agent + 1) % self.size].release()

    def fail(self, error: BaseException) -> None:
        """Stop everybody at their next turn."""
        self.failure = self.failure or error
        for turn in self.turns:
            turn.release()

    def _own(self, rows: Floats, agent: int) -> Floats:
        return rows.reshape(self.envs, self.size, *rows.shape[1:])[:, agent].copy()


class AgentVecEnv(OneMarketVecEnv):
    """One agent's place in a relay, as the VecEnv its learner sees."""

    def __init__(self, relay: Relay, agent: int) -> None:
        self.relay = relay
        self.agent = agent
        joint = relay.joint
        super().__init__(relay.envs, joint.observation_space, joint.runner.action_spaces[joint.agents[agent]])

    def reset(self) -> Floats:
        """Own observations of a fresh episode."""
        return self.relay.reset(self.agent)

    def step_async(self, actions: Floats) -> None:
        """Keep the own actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Floats, Floats, Floats, list[dict[str, Any]]]:
        """Own outcome of the joint step."""
        return self.relay.step(self.agent, self._actions)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the joint stream, once for all."""
        if self.agent == 0:
            self.relay.joint.seed(seed)
        return [seed] * self.num_envs


# Longest episode that learners see whole before they learn from it.
WHOLE = 1024


class EpisodeVecEnv(MarketVecEnv):
    """A market whose episodes settle what is left when they end, with rewards that leave little to fit.

    Every step pays its reward and the change of what the state would be worth at the end (``worth`` of the
    environment), less what the market's reference gets in the same step; the last one settles. Over an episode
    that adds up to the reward of the market less a constant, but what is stored now and used later counts at once, so
    that learners may look less far ahead. It is divided by how much random play moves it, home by home: one network for
    all would else learn only from those with most at stake. The end is one: learners do not bootstrap beyond it.
    Shaping by differences of a potential: Ng, Harada, Russell (1999).

    Args:
        env: the functional environment, with ``worth``.
        num_envs: E ≥ 1.
        discount: γ of the learners; rewards are multiplied by 1 − γ, so that returns are of the order of one step's.
        identity: as of ``MarketVecEnv``.
    """

    def __init__(self, env: MarketEnv, num_envs: int, discount: float, *, identity: bool = True) -> None:
        super().__init__(env, num_envs, identity=identity)
        trial = rehearsal(env)
        self._usual = _path(trial, env.policy(env.reference)).mean(axis=1)
        moved = np.sqrt(((_path(trial, UniformPolicy(env)) - self._usual[:, None]) ** 2).mean(axis=(0, 1)))
        # Who moves nothing has nothing to learn.
        self._share = max(1.0 - discount, 1.0 / env.horizon) / np.where(moved > 1e-9, moved, env.reward_scale)
        self._step = 0
        self._worth: Floats = np.zeros(0)

    def reset(self) -> NDArray[np.float32]:
        """Start fresh episodes everywhere."""
        observations = super().reset()
        self._step, self._worth = 0, _worth(self.runner)
        return observations

    def step_wait(self) -> tuple[NDArray[np.float32], Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        """Play the actions."""
        observations, rewards, ended, infos = super().step_wait()
        done = bool(ended.any())
        for info in infos if done else ():
            info.pop("TimeLimit.truncated", None)
        worth = _worth(self.runner)
        gained = rewards.reshape(worth.shape) - self._worth + (0.0 if done else worth) - self._usual[self._step]
        self._step, self._worth = 0 if done else self._step + 1, worth
        return observations, (gained * self._share).astype(np.float32).reshape(-1), ended, infos


def _worth(runner: Runner) -> Floats:
    return np.asarray(runner.env.worth(runner.params, runner.state))  # type: ignore[attr-defined]


def _path(env: MarketEnv, policy: Policy, episodes: int = 4) -> Floats:
    """Reward and change of worth ``(T, E, N)`` in each step of seeded episodes of a policy."""
    runner, stream = Runner(env, episodes), NumpyStream(1)
    runner.reset(0)
    gained, before = [], _worth(runner)
    for step in range(env.horizon):
        state, noise = runner.state, stream.draw(policy.noise, episodes)
        known = state if policy.full_information else None
        actions = np.asarray(policy.act(runner.params, runner.observations(state), known, noise), np.float64)
        reward = runner.step(runner.check(actions)).reward
        worth = _worth(runner) if step < env.horizon - 1 else 0.0 * before
        gained.append(reward + worth - before)
        before = worth
    return np.stack(gained)


def rehearsal(env: MarketEnv) -> MarketEnv:
    """The market to measure in: its faster equal, if it has one."""
    return env.rehearsal() if hasattr(env, "rehearsal") else env


def discount(env: MarketEnv, config: TrainConfig) -> float:
    """γ of a run."""
    return env.discount if config.gamma is None else config.gamma


def make_env(env: MarketEnv, config: TrainConfig) -> MarketVecEnv:
    """The batched market a run trains on."""
    shared = config.learners == "shared"
    if hasattr(env, "worth"):
        return EpisodeVecEnv(env, config.num_envs, discount(env, config), identity=shared)
    return MarketVecEnv(env, config.num_envs, identity=shared, scale_rewards=True)


def settings(config: TrainConfig, env: MarketEnv, sub_envs: int, learners: int) -> dict[str, Any]:
    """Arguments of the SB3 algorithm for one of so many learners, which plays ``sub_envs`` sub-environments."""
    # Where what is done in the morning pays in the evening, learners see whole episodes.
    whole = hasattr(env, "worth")
    steps = 1 if config.algorithm == "sac" else max(8, min(env.horizon, WHOLE if whole else 32))
    common: dict[str, Any] = {
        "learning_rate": Decay(config.learning_rate, steps * sub_envs * learners / config.steps),
        "gamma": discount(env, config),
        "device": "cpu",
        "policy_kwargs": {"net_arch": list(config.network)},
    }
    if config.algorithm == "sac":
        common["policy_kwargs"] |= {"log_std_init": -1.0}
        return common | {
            "buffer_size": max(200_000, 16 * sub_envs),
            "learning_starts": 4 * sub_envs,
            "batch_size": 1024,
            "gradient_steps": 4,
            "ent_coef": "auto_0.1",
        }
    common["policy_kwargs"] |= {"log_std_init": -0.5}
    rollout = steps * sub_envs
    # Few rollouts of many steps: more is learned from each.
    parts = max(part for part in range(1, 11) if rollout % part == 0) if whole else 4
    epochs, trace = (6, 0.9) if whole else (4, 0.95)
    return common | {"n_steps": steps, "batch_size": max(rollout // parts, 2), "n_epochs": epochs, "gae_lambda": trace}


def make_models(config: TrainConfig, market: MarketEnv, envs: Sequence[VecEnv], log: str | None) -> list[BaseAlgorithm]:
    """Fresh learners for the given VecEnvs: one shared, or one an agent with a seed of its own."""
    torch.set_num_threads(config.threads)
    kind = ALGORITHMS[config.algorithm]
    return [
        kind(
            "MlpPolicy",
            env,
            seed=config.seed + 1000 * index,
            tensorboard_log=log if index == 0 else None,
            **settings(config, market, env.num_envs, len(envs)),
        )
        for index, env in enumerate(envs)
    ]


def learn(models: Sequence[BaseAlgorithm], steps: int, done: int, callback: BaseCallback) -> None:
    """Train for ``steps`` agent-steps in all, ``done`` of which lie behind; the callback follows the first learner.

    Raises:
        BaseException: whatever a learner or the callback raised; all learners have stopped then.
    """
    rest = max(0, steps - done) // len(models)
    if len(models) == 1:
        models[0].learn(rest, callback=callback, reset_num_timesteps=done == 0)
        return
    envs = [model.get_env() for model in models]
    relay = envs[0].relay  # type: ignore[union-attr]

    def run(index: int, target: Callable[..., Any]) -> None:
        try:
            relay.wait(index)
            target(rest, callback=callback if index == 0 else None, reset_num_timesteps=done == 0)
            relay.pass_on(index)
        except BaseException as error:
            relay.fail(error)

    threads = [
        threading.Thread(target=run, args=(index, model.learn), daemon=True) for index, model in enumerate(models)
    ]
    for thread in threads:
        thread.start()
    relay.turns[0].release()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        relay.fail(error)
        for thread in threads:
            thread.join()
        raise
    if relay.failure is not None:
        raise relay.failure
