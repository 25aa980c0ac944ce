"""Reference policies of the private energy market."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from baselines.uniform import UniformPolicy
from p2penv.core.contract import Policy
from p2penv.pem.env import PEM


def _exact(name: str, env: PEM) -> Policy:
    return env.policy(name)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    "truthful": partial(_exact, "truthful"),
    "stackelberg": partial(_exact, "stackelberg"),
    "random": UniformPolicy,
}
