"""A small market unlike the shipped ones: unequal roles, episodes of different lengths, uniform noise."""

from typing import NamedTuple

import numpy as np

from p2penv.core.arrays import namespace
from p2penv.core.contract import Draw, Role, Step


class Params(NamedTuple):
    scale: np.ndarray  # (N,)


class State(NamedTuple):
    level: np.ndarray  # (E, N)
    left: np.ndarray  # (E,) steps left


class ToyScenario:
    def params(self, xp=np, dtype=None):
        return Params(xp.asarray([1.0, 2.0, 3.0], dtype=xp.float64 if dtype is None else dtype))


class Toy:
    name = "toy_v0"
    metadata = {"name": name, "render_modes": [], "render_fps": 1}
    action_names = ("price", "volume")
    roles = (Role("seller", 2, 1), Role("operator", 1, 2))
    noise = {"shock": Draw("uniform", (3,))}
    initial_noise = {"length": Draw("uniform", ())}
    info_axes = {"total": "env", "own": "agent"}
    context = np.array([[0.1], [0.2], [0.3]])
    reward_scale = np.ones(3)
    policies = ()
    reference = "truthful"
    money = "$"
    episodic = False
    discount = 0.0
    dtypes = ("float64", "float32")
    features = ("size", "level", "left")

    def __init__(self, horizon=4):
        self.scenario = ToyScenario()
        self.params = self.scenario.params()
        self.parameters = self.scenario.params
        self.horizon = horizon

    def initial(self, params, noise, num_envs):
        xp = namespace(params.scale)
        left = 1 + xp.astype(noise["length"] * self.horizon, xp.int32)
        return State(0.0 * params.scale + 0.0 * noise["length"][:, None], left)

    def initial_info(self, params, state):
        return {"total": state.level.sum(-1), "own": state.level}

    def step(self, params, state, actions, noise):
        level = 0.5 * state.level + 0.25 * noise["shock"] + 0.1 * actions.sum(-1)
        left = state.left - 1
        ended = left <= 0
        info = {"total": level.sum(-1), "own": level}
        return Step(
            State(level, left), params.scale * level, ended & (self.horizon == 1), ended & (self.horizon > 1), info
        )

    def observe(self, params, state):
        xp = namespace(state.level)
        return xp.clip(state.level, -1.0, 1.0), xp.astype(state.left, state.level.dtype)[:, None] / self.horizon
