"""JAX: pure reset and step with autoreset, to be compiled, mapped and scanned on CPU or GPU."""

from __future__ import annotations

from typing import Any

from p2penv.core import validation
from p2penv.core.arrays import Array, merge
from p2penv.core.contract import MarketEnv, Policy
from p2penv.core.random import JaxStream

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:  # pragma: no cover
    raise ImportError("the jax face needs jax: pip install jax") from error


class MarketJaxEnv:
    """E environments as pure functions of a key, a state and actions.

    ``params`` is an argument of every function: compile once, then change scenario, map over scenarios or
    differentiate.

    Args:
        env: the functional environment.
        num_envs: E ≥ 1.
        dtype: ``"float32"``, or ``"float64"`` with JAX's x64 mode.
    """

    def __init__(self, env: MarketEnv, num_envs: int, dtype: str = "float32") -> None:
        self.functional = env
        self.num_envs = validation.count("num_envs", num_envs)
        self.dtype = jnp.dtype(validation.choice("dtype", jnp.dtype(dtype).name, env.dtypes))
        self.params = env.parameters(jnp, self.dtype)
        self.context = jnp.asarray(env.context, self.dtype)

    def observe(self, params: Any, state: Any) -> Array:
        """Observations ``(E, N, F)``."""
        shape = (self.num_envs, self.context.shape[0])
        changing = [jnp.broadcast_to(feature, shape) for feature in self.functional.observe(params, state)]
        constant = jnp.broadcast_to(self.context, (self.num_envs, *self.context.shape))
        return jnp.concatenate([constant, jnp.stack(changing, axis=-1)], axis=-1)

    def reset(self, key: Array, params: Any) -> tuple[Array, Any]:
        """Observations ``(E, N, F)`` and state of fresh episodes."""
        noise = JaxStream(key, self.dtype).draw(self.functional.initial_noise, self.num_envs)
        state = self.functional.initial(params, noise, self.num_envs)
        return self.observe(params, state), state

    def step(
        self, key: Array, state: Any, actions: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, Array, dict[str, Array]]:
        """Observations, state, reward ``(E, N)``, terminated, truncated ``(E,)`` and infos of one step.

        Environments that end are reset; ``info["final_obs"]`` holds the observations before that. Actions must
        lie in [−1, 1]: compiled code cannot refuse them.
        """
        step_key, reset_key = jax.random.split(key)
        noise = JaxStream(step_key, self.dtype).draw(self.functional.noise, self.num_envs)
        step = self.functional.step(params, state, actions, noise)
        final = self.observe(params, step.state)
        fresh_observations, fresh = self.reset(reset_key, params)
        done = step.terminated | step.truncated
        observations = jnp.where(done[:, None, None], fresh_observations, final)
        info = {**step.info, "final_obs": final}
        return observations, merge(done, fresh, step.state), step.reward, step.terminated, step.truncated, info

    def rollout(self, key: Array, policy: Policy, steps: int, params: Any) -> tuple[Any, Array]:
        """Final state and rewards ``(steps, E, N)`` of a policy, by ``lax.scan``."""

        def advance(carry: tuple[Array, Any], step_key: Array) -> tuple[tuple[Array, Any], Array]:
            observations, state = carry
            act_key, env_key = jax.random.split(step_key)
            noise = JaxStream(act_key, self.dtype).draw(policy.noise, self.num_envs)
            actions = policy.act(params, observations, state if policy.full_information else None, noise)
            observations, state, reward, *_ = self.step(env_key, state, actions, params)
            return (observations, state), reward

        start_key, scan_key = jax.random.split(key)
        carry, rewards = jax.lax.scan(advance, self.reset(start_key, params), jax.random.split(scan_key, steps))
        return carry[1], rewards
