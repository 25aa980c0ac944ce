"""How far from equilibrium is a policy profile, and what does it cost? Exact measures.

Each context is a state of the market, or a whole episode where the market is judged by those. Exploitability and costs
of what a profile plays there come from ``MarketEnv.assess``; nothing is estimated by a grid. Averages over contexts
carry a 95 % interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.contract import MarketEnv, Policy
from p2penv.core.random import NumpyStream
from p2penv.faces.runner import Runner

Floats = NDArray[np.float64]
HELD_OUT = 2**31  # contexts come from seeds that training does not use
EPISODES = 2  # played to the end where what is done in one step pays in others


@dataclass(frozen=True)
class Evaluation:
    """Measures per agent, averaged over contexts; money in the market's unit.

    What is called truthful belongs to the market's reference: truthful play, or what stands in for it.
    """

    agents: list[str]
    contexts: int
    cost: Floats
    """(N,) expected cost of the profile"""
    cost_truthful: Floats
    """(N,) at truthful play"""
    cost_equilibrium: Floats
    """(N,) at the exact equilibrium"""
    cost_coordinated: Floats
    """(N,) under the planner"""
    social_cost: float
    """of everybody, the operator included"""
    social_cost_truthful: float
    social_cost_equilibrium: float
    social_cost_coordinated: float
    exploitability: Floats
    """(N,) gain of the best unilateral deviation"""
    nashconv_samples: Floats
    """(contexts,) sum of the gains in each context"""
    nearest: int
    """contexts whose joint feasible set is empty, where the nearest profile stands in for the equilibrium"""
    equilibrium: str
    """what ``cost_equilibrium`` belongs to"""
    reference: str
    """what ``cost_truthful`` belongs to"""
    money: str
    """unit of costs"""
    info: Mapping[str, Floats]
    """what else the market measures and, unless it has ``infos="none"``, reports; averaged: (N,) or ()"""
    regret_bound: Floats | None = None
    """(N,) proven bound on the exploitability, where the market has one"""
    deviations: str | None = None
    """what the exploitability is over, if not all an agent can do; empty if nothing the options allow"""

    @property
    def nashconv(self) -> float:
        """Mean NashConv."""
        return float(self.nashconv_samples.mean())

    @property
    def interval(self) -> float:
        """Half width of the 95 % interval of the mean NashConv over contexts; 0 with one context."""
        if self.contexts < 2:
            return 0.0
        return float(1.96 * self.nashconv_samples.std(ddof=1) / np.sqrt(self.contexts))

    @property
    def utility_gap(self) -> Floats:
        """(N,) cost at truthful play minus cost."""
        return self.cost_truthful - self.cost

    @property
    def social_gap(self) -> float:
        """Social cost at truthful play minus social cost."""
        return self.social_cost_truthful - self.social_cost

    @property
    def price_of_anarchy(self) -> float | None:
        """Social cost at the equilibrium over the planner's, or the inverse ratio of welfares; None if signs differ."""
        return _ratio(self.social_cost_equilibrium, self.social_cost_coordinated)

    @property
    def price_of_anarchy_played(self) -> float | None:
        """The same of the profile."""
        return _ratio(self.social_cost, self.social_cost_coordinated)

    def summary(self) -> dict[str, Any]:
        """Numbers as plain data."""
        return {
            "nashconv": self.nashconv,
            "nashconv_interval_95": self.interval,
            "social_cost": self.social_cost,
            "social_cost_truthful": self.social_cost_truthful,
            "social_cost_equilibrium": self.social_cost_equilibrium,
            "social_cost_coordinated": self.social_cost_coordinated,
            "price_of_anarchy": self.price_of_anarchy,
            "price_of_anarchy_played": self.price_of_anarchy_played,
            "contexts": self.contexts,
            "contexts_without_feasible_set": self.nearest,
            "equilibrium": self.equilibrium,
            "reference": self.reference,
            "money": self.money,
            "deviations": self.deviations,
            "agents": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row an agent."""
        return [
            {
                "agent": agent,
                "cost_truthful": float(self.cost_truthful[n]),
                "cost_equilibrium": float(self.cost_equilibrium[n]),
                "cost": float(self.cost[n]),
                "utility_gap": float(self.utility_gap[n]),
                "exploitability": float(self.exploitability[n]),
            }
            | ({} if self.regret_bound is None else {"regret_bound": float(self.regret_bound[n])})
            for n, agent in enumerate(self.agents)
        ]


def _ratio(cost: float, best: float) -> float | None:
    """Cost over least cost, or best welfare over welfare where costs are negative; ≥ 1 either way."""
    if cost > 0 and best > 0:
        return float(cost / best)
    return float(best / cost) if cost < 0 and best < 0 else None


def evaluate(env: MarketEnv, policy: Policy, contexts: int = 100, seed: int = 0) -> Evaluation:
    """Play a policy in held-out contexts and measure its joint actions exactly.

    A deterministic policy in a one-shot game has one context. Otherwise context k is the state an episode of its
    own reaches under the policy after k mod horizon steps, or after k·horizon/contexts where there are fewer contexts
    than steps, so that all hours of an episode count. In an episodic market it is that whole episode, and infos are
    averaged over its steps; one episode is all there is where neither market nor policy draws anything.

    Args:
        env: the functional environment.
        policy: the joint policy.
        contexts: number of contexts.
        seed: of the held-out contexts.
    """
    contexts = validation.count("contexts", contexts)
    validation.number("seed", seed, 0, 2**31 - 1)
    if not env.initial_noise and not policy.noise and (env.horizon == 1 or not env.noise):
        contexts = min(contexts, 1 if env.episodic else env.horizon)  # every episode is the same
    runner = Runner(env, contexts)
    runner.reset(HELD_OUT + seed)
    stream = NumpyStream(HELD_OUT + seed + 1)
    # Episodes shorter than the number of contexts are gone through over and over, longer ones at even distances.
    when = (
        np.arange(contexts) % env.horizon if contexts >= env.horizon else np.arange(contexts) * env.horizon // contexts
    )
    if env.episodic:
        when = np.full(contexts, env.horizon - 1)
    played: list[tuple[Any, Floats, Mapping[str, Floats]]] = []
    parts: list[tuple[NDArray[np.intp], dict[str, Floats], dict[str, Floats]]] = []
    for time in range(int(when.max()) + 1):
        state = runner.state
        noise = stream.draw(policy.noise, contexts)
        known = state if policy.full_information else None
        actions = np.asarray(policy.act(runner.params, runner.observations(state), known, noise), np.float64)
        runner.check(actions)
        index = np.flatnonzero(when == time)
        chosen = type(state)(*(leaf[index] for leaf in state))
        info = runner.step(actions).info
        if env.episodic:
            played.append((state, actions, info))
            continue
        parts.append((index, env.assess(runner.params, chosen, actions[index]), {k: v[index] for k, v in info.items()}))
    if env.episodic:
        states, joint, told = zip(*played, strict=True)
        stacked = type(states[0])(*map(np.stack, zip(*states, strict=True)))
        means_over_time = {key: np.mean([each[key] for each in told], axis=0) for key in told[0]}
        parts = [(np.arange(contexts), env.assess(runner.params, stacked, np.stack(joint)), means_over_time)]
    order = np.argsort(np.concatenate([index for index, _, _ in parts]))
    measures = {key: np.concatenate([part[key] for _, part, _ in parts])[order] for key in parts[0][1]}
    infos = {key: np.concatenate([part[key] for _, _, part in parts]).mean(axis=0) for key in parts[0][2]}
    nearest = int(measures.pop("nearest").sum())
    known = {field.name for field in dataclasses.fields(Evaluation)}
    infos |= {key: value.mean(axis=0) for key, value in measures.items() if key not in known}
    means: dict[str, Any] = {
        key: value.mean(axis=0) if value.ndim > 1 else float(value.mean())
        for key, value in measures.items()
        if key in known
    }
    return Evaluation(
        agents=runner.agents,
        contexts=contexts,
        nashconv_samples=measures["exploitability"].sum(axis=1),
        nearest=nearest,
        equilibrium=env.equilibrium,
        reference=env.reference,
        money=env.money,
        deviations=getattr(env, "deviations", None),
        info=infos,
        **means,
    )


def returns(env: MarketEnv, policy: Policy, episodes: int = 1, seed: int = 0) -> Floats:
    """Undiscounted reward ``(E, N)`` of each agent over whole held-out episodes.

    Args:
        env: the functional environment.
        policy: the joint policy.
        episodes: E; where neither the market nor the policy draws anything, all are the same.
        seed: of the held-out episodes.
    """
    validation.number("seed", seed, 0, 2**31 - 1)
    runner = Runner(env, validation.count("episodes", episodes))
    runner.reset(HELD_OUT + seed)
    stream = NumpyStream(HELD_OUT + seed + 1)
    total = np.zeros((episodes, len(runner.agents)))
    for _ in range(env.horizon):
        state, noise = runner.state, stream.draw(policy.noise, episodes)
        known = state if policy.full_information else None
        actions = np.asarray(policy.act(runner.params, runner.observations(state), known, noise), np.float64)
        total += runner.step(runner.check(actions)).reward
    return total


@dataclass(frozen=True)
class Episodes:
    """Rewards of whole episodes, averaged over them, beside those of the market's reference; in its unit of money."""

    agents: list[str]
    reward: Floats
    """(N,) undiscounted"""
    reward_reference: Floats
    """(N,) in the same episodes"""
    reference: str
    money: str

    @property
    def gain(self) -> Floats:
        """(N,) reward over that of the reference."""
        return self.reward - self.reward_reference

    @property
    def numbers(self) -> dict[str, float]:
        """Means over agents, and the gain of the one who gains least."""
        return {
            "episode_reward": float(self.reward.mean()),
            "episode_reward_reference": float(self.reward_reference.mean()),
            "episode_gain": float(self.gain.mean()),
            "least_gain": float(self.gain.min()),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row an agent."""
        return [
            {"episode_reward": float(reward), "episode_reference": float(usual), "episode_gain": float(reward - usual)}
            for reward, usual in zip(self.reward, self.reward_reference, strict=True)
        ]


def whole(env: MarketEnv) -> bool:
    """Whether a market is played through while ``assess`` judges single steps: then these do not tell it all."""
    return env.discount > 0.0 and not env.episodic


def episodes(env: MarketEnv, policy: Policy, count: int = EPISODES, seed: int = 0) -> Episodes:
    """Play held-out episodes to the end, by a policy and by the market's reference.

    Args:
        env: the functional environment.
        policy: the joint policy.
        count: number of episodes; one is all there is where neither market nor policy draws anything.
        seed: of the held-out episodes.
    """
    usual = env.policy(env.reference)
    drawn = any((env.initial_noise, env.noise, policy.noise))
    played, expected = (returns(env, each, count if drawn else 1, seed).mean(axis=0) for each in (policy, usual))
    agents = [f"{role.name}_{n}" for role in env.roles for n in range(role.count)]
    return Episodes(agents, played, expected, env.reference, env.money)


def marl_eval(
    market: str, task: str, algorithm: str, seed: int, curve: list[dict[str, float]], final: dict[str, float]
) -> dict[str, Any]:
    """Nest measurements the way marl-eval reads them: environment, task, algorithm, run, step, metrics.

    Args:
        market: environment name.
        task: scenario name.
        algorithm: name of the method.
        seed: of the run.
        curve: one row an evaluation with ``agent_steps``, ``seconds`` and metrics.
        final: metrics of the final policy.
    """
    steps: dict[str, Any] = {}
    for index, row in enumerate(curve):
        metrics = {key: [value] for key, value in row.items() if key not in ("agent_steps", "seconds")}
        steps[f"step_{index}"] = {"step_count": int(row["agent_steps"]), "elapsed_time": row["seconds"]} | metrics
    steps["absolute_metrics"] = {key: [value] for key, value in final.items()}
    return {market: {task: {algorithm: {f"seed_{seed}": steps}}}}
