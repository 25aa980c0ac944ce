"""Is truth optimal? Exact regret of misreporting, the bound that is proven, and what a learner finds alone.

Two routes to the same number: the best misreport of each agent against truthful others, with a certificate, and a
learner trained against truthful others. What the learner gains, measured exactly, cannot exceed the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from p2penv.core import validation
from p2penv.dpvcg import DPVCG, rules
from p2penv.dpvcg.env import State
from p2penv.dpvcg.equilibrium import Gains, gains
from p2penv.dpvcg.mechanisms import ExponentialMechanism
from p2penv.dpvcg.rules import Bids
from p2penv.faces.runner import Runner
from p2penv.faces.sb3 import OneMarketVecEnv
from p2penv.faces.solo import MarketSoloVectorEnv
from training.evaluate import HELD_OUT
from training.privacy import plain
from training.runs import TrainConfig
from training.sb3 import make_models

Floats = NDArray[np.float64]
# Agent-steps an attacker learns for, and environments it learns in.
STEPS, ENVS = 5_000, 16


@dataclass(frozen=True)
class Truthfulness:
    """Regret per context and agent at truthful play of everybody; money in $."""

    agents: list[str]
    parameters: tuple[str, ...]
    """names of a report's parameters"""
    epsilon: float
    """ε asked for, the paper's bound on regret; infinite under VCG"""
    regret: Floats
    """(C, n) gain of the best misreport found"""
    certificate: Floats
    """(C, n) no misreport gains more"""
    bound: Floats
    """(C, n) proven without looking at the others' reports"""
    report: Floats
    """(C, n, k) the best report"""
    learned: Floats | None
    """(C, n) exact gain of what learners report, negative where one loses; None without learners"""

    @property
    def interval(self) -> Floats:
        """(n,) half width of the 95 % interval of the mean regret over contexts; 0 with one context."""
        contexts = len(self.regret)
        if contexts < 2:
            return np.zeros(len(self.agents))
        return np.asarray(1.96 * self.regret.std(axis=0, ddof=1) / np.sqrt(contexts))

    @property
    def agree(self) -> bool | None:
        """Whether no learner gains more than is possible; None without learners."""
        if self.learned is None:
            return None
        return bool((self.learned <= self.certificate + 1e-9).all())

    def summary(self) -> dict[str, Any]:
        """Numbers as plain data."""
        agree = {} if self.agree is None else {"learned_within_exact": self.agree}
        return {"epsilon": plain(self.epsilon), "contexts": len(self.regret), **agree, "agents": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One row an agent, averages over contexts; the report is that of the first context."""
        columns = {"regret": self.regret, "certificate": self.certificate, "bound": self.bound}
        means = {name: values.mean(axis=0) for name, values in columns.items()}
        if self.learned is not None:
            means["learned"] = self.learned.mean(axis=0)
        return [
            {"agent": agent, "interval_95": float(self.interval[n])}
            | {name: float(values[n]) for name, values in means.items()}
            | {f"report_{name}": float(self.report[0, n, k]) for k, name in enumerate(self.parameters)}
            for n, agent in enumerate(self.agents)
        ]


def audit(
    env: DPVCG,
    contexts: int = 1,
    seed: int = 0,
    *,
    learn: bool = False,
    steps: int = STEPS,
    report: Callable[[str], None] = lambda part: None,
) -> Truthfulness:
    """Regret of misreporting at truthful play.

    Args:
        env: the environment; mechanism, payments, report and type space are its own.
        contexts: types to average over, held out from training; 1 where types are fixed.
        seed: of contexts and learners.
        learn: also train a learner for each agent, alone against truthful others.
        steps: of experience of each learner.
        report: called with the name of each part before it is made.

    Raises:
        ValueError: contexts, seed or steps outside their range.
    """
    if validation.count("contexts", contexts) > 1 and not env.initial_noise:
        raise ValueError(f"contexts must be 1 where types are fixed, got {contexts}; set types='uniform'")
    report("best misreports")
    validation.number("seed", seed, 0, 2**31 - 1)
    runner = Runner(env, contexts)
    runner.reset(HELD_OUT + seed)
    state: State = runner.state
    types = np.asarray(state.types)
    true = rules.report_bids(env.params.base, types)
    found = gains(env.mechanism, true, true, env.payments)
    learned = np.full(found.gain.shape, np.nan) if learn else None
    if learned is not None:
        for agent, name in enumerate(runner.agents):
            report(f"attacker for {name}")
            learned[:, agent] = learned_gain(env, runner, agent, attack(env, agent, steps, seed))
    return Truthfulness(
        agents=runner.agents,
        parameters=env.action_names,
        epsilon=env.mechanism.nominal_epsilon,
        regret=found.gain,
        certificate=found.bound,
        bound=_proven(env, true, found),
        report=types if env.payments == "entropy" or env.mechanism.kind == "vcg" else found.report,  # truth is best
        learned=learned,
    )


def _proven(env: DPVCG, true: Bids, found: Gains) -> Floats:
    """Bound ``(C, n)``: osc(W)·tanh(βω/4) under Algorithm 3, zero where truth is optimal."""
    if isinstance(env.mechanism, ExponentialMechanism):
        if env.payments == "algorithm3":
            return env.mechanism.regret_bound_of(true, true)
        return np.zeros_like(found.gain)
    # Under Laplace noise what an agent would gain if its own report went in without noise; zero under VCG.
    return found.bound


class SoloVecEnv(OneMarketVecEnv):
    """The solo face as the VecEnv a learner sees: one agent in E markets, the others truthful.

    Args:
        env: the functional environment.
        num_envs: E ≥ 1.
        agent: name of the learner.
    """

    def __init__(self, env: DPVCG, num_envs: int, agent: str) -> None:
        self.solo = MarketSoloVectorEnv(env, num_envs, agent, "truthful")
        super().__init__(num_envs, self.solo.single_observation_space, self.solo.single_action_space)
        self._seed: int | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset."""
        self._seed = seed
        return [seed] * self.num_envs

    def reset(self) -> Floats:
        """Observations ``(E, F)`` of fresh episodes."""
        observations, _ = self.solo.reset(seed=self._seed)
        self._seed = None
        return np.asarray(observations)

    def step_async(self, actions: Floats) -> None:
        """Keep the actions ``(E, A)``."""
        self._actions = actions

    def step_wait(self) -> tuple[Floats, Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        """Play them."""
        observations, rewards, terminated, truncated, info = self.solo.step(self._actions)
        done = np.asarray(terminated | truncated)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(done):
            infos[index] = {
                "terminal_observation": info["final_obs"][index],
                "TimeLimit.truncated": bool(truncated[index]),
            }
        return np.asarray(observations), np.asarray(rewards, np.float32), done, infos


def attack(env: DPVCG, agent: int, steps: int = STEPS, seed: int = 0) -> BaseAlgorithm:
    """A learner (PPO) trained for one agent alone against truthful others.

    Args:
        env: the environment.
        agent: number, consumers first.
        steps: of experience.
        seed: of learner and market.
    """
    name = Runner(env).agents[agent]
    config = TrainConfig(market=env.name, seed=seed, steps=steps, num_envs=ENVS)
    (model,) = make_models(config, env, [SoloVecEnv(env, ENVS, name)], None)
    return model.learn(steps)


def learned_gain(env: DPVCG, runner: Runner, agent: int, model: BaseAlgorithm) -> Floats:
    """Exact gain ``(C,)`` of the reports of a model in the states of a runner ``(C,)``, the others truthful [$]."""
    state: State = runner.state
    types = np.asarray(state.types)
    true = rules.report_bids(env.params.base, types)
    actions, _ = model.predict(runner.observations(state)[:, agent], deterministic=True)
    reports = types.copy()
    reports[:, agent] = env.decode(env.params, np.asarray(actions, np.float64)[:, None])[:, agent]
    payoffs = []
    for played in (reports, types):
        outcome = env.play(env.params, true, played)
        payoffs.append((outcome.value - outcome.payment)[:, agent])
    return np.asarray(payoffs[0] - payoffs[1])
