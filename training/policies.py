"""Trained models and mixtures as joint policies of the functional contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

import baselines
from p2penv.core.contract import Draw, MarketEnv, Noise, Policy
from p2penv.faces.runner import Runner
from training.runs import load_config

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC}
Floats = NDArray[Any]


class LearnedPolicy:
    """Deterministic actions of one shared model, or of one model per agent."""

    full_information = False

    def __init__(self, models: Sequence[BaseAlgorithm], agents: int) -> None:
        if len(models) not in (1, agents):
            raise ValueError(f"need 1 model or one for each of {agents} agents, got {len(models)}")
        self.models = list(models)
        self.noise: Mapping[str, Draw] = {}
        self._code = np.eye(agents, dtype=np.float32)

    def act(self, params: Any, observations: Floats, state: Any, noise: Noise) -> Floats:
        """Actions ``(E, N, A)`` for observations ``(E, N, F)``."""
        del params, state, noise
        envs, agents, _ = observations.shape
        if len(self.models) == 1:
            code = np.broadcast_to(self._code, (envs, agents, agents))
            rows = np.concatenate([observations, code], axis=-1).reshape(envs * agents, -1)
            return self.models[0].predict(rows, deterministic=True)[0].reshape(envs, agents, -1)
        actions = [
            model.predict(observations[:, index], deterministic=True)[0] for index, model in enumerate(self.models)
        ]
        return np.stack(actions, axis=1)


class MixedPolicy:
    """One joint policy for everybody, with other ones for some agents."""

    def __init__(self, default: Policy, others: Mapping[int, Policy]) -> None:
        self.default = default
        self.others = dict(others)
        self._parts = [default, *self.others.values()]
        self.full_information = any(part.full_information for part in self._parts)
        self.noise: Mapping[str, Draw] = {
            f"{index}.{name}": draw for index, part in enumerate(self._parts) for name, draw in part.noise.items()
        }

    def act(self, params: Any, observations: Floats, state: Any, noise: Noise) -> Floats:
        """Actions ``(E, N, A)``."""
        played = []
        for index, part in enumerate(self._parts):
            own = {name: noise[f"{index}.{name}"] for name in part.noise}
            played.append(np.asarray(part.act(params, observations, state if part.full_information else None, own)))
        actions = np.array(played[0])
        for agent, joint in zip(self.others, played[1:], strict=True):
            actions[:, agent] = joint[:, agent]
        return actions


def model_paths(folder: Path, learners: str, agents: Sequence[str]) -> list[Path]:
    """Files of the models of a run."""
    return [folder / "policy.zip"] if learners == "shared" else [folder / f"policy_{agent}.zip" for agent in agents]


def load_learned(folder: Path, env: MarketEnv) -> LearnedPolicy:
    """Policy of a finished run for an environment with the same agents.

    Raises:
        FileNotFoundError: not a run, or not finished.
        ValueError: trained for another number of agents.
    """
    config = load_config(folder)
    agents = Runner(env).agents
    paths = model_paths(folder, config.learners, agents)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"run {folder} has no {path.name}: not finished, or trained for other agents")
    models = [ALGORITHMS[config.algorithm].load(path, device="cpu") for path in paths]
    size = len(env.features) + (len(agents) if len(models) == 1 else 0)
    expected = models[0].observation_space.shape
    if expected != (size,):
        raise ValueError(f"run {folder} was trained on observations {expected}, this market has ({size},)")
    return LearnedPolicy(models, len(agents))


def resolve(env: MarketEnv, name: str) -> Policy:
    """A policy by name: a baseline of the market, or the folder of a run.

    Raises:
        ValueError: neither.
    """
    if name in baselines.names(env):
        return baselines.make(env, name)
    if (Path(name) / "config.json").is_file():
        return load_learned(Path(name), env)
    raise ValueError(f"policy must be one of {', '.join(baselines.names(env))} or the folder of a run; got {name!r}")
