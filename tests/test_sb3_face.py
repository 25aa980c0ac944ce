"""The Stable-Baselines3 face: order of sub-environments, endings, and a rollout buffer that holds what was played."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from toy_market import Toy

from p2penv import make_functional, make_vector
from p2penv.faces.sb3 import MarketVecEnv
from p2penv.faces.vector import MarketVectorEnv
from p2penv.pem import Scenario as Day

NAME = "communication_v0"
SIZES = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_order_is_environments_then_agents():
    market = make_functional(NAME, horizon=3, reward="realised")
    face, batch = MarketVecEnv(market, 4), make_vector(NAME, 4, horizon=3, reward="realised")
    face.seed(3)
    seen, wanted = face.reset(), batch.reset(seed=3)[0]
    width = wanted.shape[-1]
    assert face.num_envs == 52
    for _ in range(5):
        assert face.observation_space.contains(seen[0])
        np.testing.assert_array_equal(seen.reshape(4, 13, -1)[..., :width], wanted)
        np.testing.assert_array_equal(seen.reshape(4, 13, -1)[..., width:], np.tile(np.eye(13), (4, 1, 1)))
        joint = np.random.default_rng(0).uniform(-1, 1, (4, 13, 2)).astype(np.float32)
        seen, reward, done, infos = face.step(joint.reshape(52, 2))
        wanted, rewards, terminated, truncated, info = batch.step(joint)
        np.testing.assert_array_equal(reward.reshape(4, 13), rewards.astype(np.float32))
        np.testing.assert_array_equal(done.reshape(4, 13), np.repeat((terminated | truncated)[:, None], 13, 1))
        if done.any():
            last = np.stack([one["terminal_observation"] for one in infos]).reshape(4, 13, -1)
            np.testing.assert_array_equal(last[..., :width], info["final_obs"])
            assert all(one["TimeLimit.truncated"] is True for one in infos)
        else:
            assert infos == [{}] * 52


def test_one_shot_games_are_not_truncated():
    face = MarketVecEnv(make_functional(NAME), 2)
    face.reset()
    *_, done, infos = face.step(np.zeros((26, 2)))
    assert done.all()
    assert [one["TimeLimit.truncated"] for one in infos] == [False] * 26


def test_identity_is_optional():
    market = make_functional(NAME)
    with_code, without = MarketVecEnv(market, 1), MarketVecEnv(market, 1, identity=False)
    assert with_code.observation_space.shape[0] == without.observation_space.shape[0] + 13
    np.testing.assert_array_equal(with_code.reset()[:, : without.observation_space.shape[0]], without.reset())


def test_scaled_rewards_are_those_of_the_common_potential():
    """Divided by B_n, one's own deviation changes the reward by the same multiple of the potential for everybody."""
    from p2penv.communication import equilibrium

    market = make_functional(NAME)
    face, plain = MarketVecEnv(market, 1, scale_rewards=True), MarketVecEnv(market, 1)
    face.reset(), plain.reset()
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, (13, 2))
    first, _, _, _ = (face.step(start)[1], face.reset(), plain.step(start), plain.reset())
    before = equilibrium.potential(market.scenario, *market.decode(market.params, start))
    ratios = []
    for agent in range(13):
        other = start.copy()
        other[agent] = rng.uniform(-1, 1, 2)
        after = equilibrium.potential(market.scenario, *market.decode(market.params, other))
        ratios.append((first[agent] - face.step(other)[1][agent]) / (after - before))
    np.testing.assert_allclose(ratios, ratios[0], rtol=2e-3)
    np.testing.assert_allclose(plain.step(start)[1], first * market.reward_scale, rtol=1e-5)


def test_endings_at_different_times():
    face = MarketVecEnv(Toy(4), 16, identity=False)
    face.seed(0)
    face.reset()
    lengths = face.runner.state.left.copy()
    seen, _, done, infos = face.step(np.zeros((48, 2)))
    np.testing.assert_array_equal(done.reshape(16, 3), np.repeat((lengths == 1)[:, None], 3, 1))
    for index, ended in enumerate(done):
        assert ("terminal_observation" in infos[index]) == ended
        if ended:
            assert infos[index]["terminal_observation"][-1] == 0.0  # nothing left
            assert seen[index, -1] > 0.0


class Recorder(BaseCallback):
    """Keeps copies of what the learner saw, did and got, and the buffers it learned from."""

    def __init__(self):
        super().__init__()
        self.seen, self.rewards, self.dones, self.last, self.buffers = [], [], [], [], []

    def _on_step(self):
        self.seen.append(self.locals["obs_tensor"].numpy().copy())
        self.rewards.append(np.array(self.locals["rewards"], copy=True))
        self.dones.append(self.locals["dones"].copy())
        self.last.append([one.get("terminal_observation") for one in self.locals["infos"]])
        return True

    def _on_rollout_end(self):
        buffer = self.locals["rollout_buffer"]
        self.buffers.append((buffer.observations.copy(), buffer.actions.copy(), buffer.rewards.copy()))


class Spying:
    """Copies observations at the moment the face hands them out and actions as they arrive, played anew afterwards."""

    def __init__(self, face):
        self.handed, self.played = [], []
        step_async, step_wait, reset = face.step_async, face.step_wait, face.reset

        def spy_async(actions):
            self.played.append(np.array(actions))
            return step_async(actions)

        def spy_wait():
            result = step_wait()
            self.handed.append(result[0].copy())
            return result

        def spy_reset():
            self.handed.append(reset())
            return self.handed[-1].copy()

        face.step_async, face.step_wait, face.reset = spy_async, spy_wait, spy_reset


@pytest.mark.parametrize("reward", ["expected", "realised"])
def test_the_rollout_buffer_holds_what_was_seen(reward):
    """Horizon 24, two episodes a rollout; the trajectory is replayed on the batched face from the same seed."""
    gamma, horizon = 0.9, 24
    face = MarketVecEnv(make_functional(NAME, horizon=horizon, reward=reward), 2)
    spy, recorder = Spying(face), Recorder()
    model = PPO("MlpPolicy", face, n_steps=48, n_epochs=1, batch_size=624, gamma=gamma, seed=1, **SIZES)
    initial = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(48 * 26, callback=recorder)
    (seen, actions, rewards), *rest = recorder.buffers
    assert not rest
    assert seen.shape == (48, 26, face.observation_space.shape[0])
    np.testing.assert_array_equal(seen, np.stack(recorder.seen))
    np.testing.assert_array_equal(seen, np.stack(spy.handed[:48]))
    np.testing.assert_array_equal(np.clip(actions, -1, 1), np.stack(spy.played))

    batch = make_vector(NAME, 2, horizon=horizon, reward=reward)
    wanted, _ = batch.reset(seed=1)
    width = wanted.shape[-1]
    model.policy.load_state_dict(initial)
    for time in range(48):
        np.testing.assert_array_equal(seen[time, :, :width], wanted.reshape(26, width))
        wanted, reward_now, _, truncated, info = batch.step(spy.played[time].reshape(2, 13, 2))
        assert truncated.all() == ((time + 1) % horizon == 0)
        expected = reward_now.reshape(-1).astype(np.float32)
        np.testing.assert_array_equal(recorder.dones[time], np.repeat(truncated, 13))
        if truncated.any():
            # A truncated episode goes on: its last observation's value is added, by the networks of that rollout.
            last = np.stack(recorder.last[time])
            np.testing.assert_array_equal(last[:, :width], info["final_obs"].reshape(26, width))
            with torch.no_grad():
                value = model.policy.predict_values(torch.as_tensor(last))[:, 0].numpy()
            assert np.abs(value).max() > 1e-4
            np.testing.assert_allclose(rewards[time], expected + gamma * value, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(rewards[time], expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (NAME, {"horizon": 4, "reward": "realised"}),
        ("dpvcg_v0", {"horizon": 4, "reward": "realised", "support": "finite", "report": "coefficients"}),
        ("pem_v0", {"scenario": Day.random(4, 4, 0), "leader": "agent", "forecast": 1, "demand_cap": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_training_is_reproducible(name, options):
    def weights(seed):
        face = MarketVecEnv(make_functional(name, **options), 2)
        rollout = 8 * face.num_envs
        model = PPO("MlpPolicy", face, n_steps=8, n_epochs=2, batch_size=rollout // 2, seed=seed, **SIZES)
        model.learn(2 * rollout)
        return torch.cat([value.flatten() for value in model.policy.state_dict().values()]).numpy()

    first = weights(5)
    np.testing.assert_array_equal(weights(5), first)
    assert (weights(6) != first).any()


def test_wrappers_of_sb3_work():
    face = VecNormalize(VecMonitor(MarketVecEnv(make_functional(NAME, horizon=2), 2)), norm_obs=False)
    face.reset()
    face.step(np.zeros((26, 2)))
    *_, done, infos = face.step(np.zeros((26, 2)))
    assert done.all()
    assert all(one["episode"]["l"] == 2 for one in infos)
    assert face.get_attr("render_mode") == [None] * 26


def test_single_sub_environments_cannot_be_reached_into():
    face = MarketVecEnv(make_functional(NAME), 1)
    with pytest.raises(ValueError, match="share one market"):
        face.set_attr("runner", None)
    with pytest.raises(ValueError, match="share one market"):
        face.env_method("reset")
    assert face.env_is_wrapped(VecMonitor) == [False] * 13
    with pytest.raises(RuntimeError, match="step_async before step_wait"):
        face.step_wait()


def test_homes_and_their_leader_side_by_side():
    """One space for all: a leader's action is padded to a home's width, its reward is minus the buyers' bill."""
    market = make_functional("pem_v0", scenario=Day.random(4, 3, 1), leader="agent")
    face, batch = MarketVecEnv(market, 3), MarketVectorEnv(market, 3)
    face.seed(3)
    seen, wanted = face.reset(), batch.reset(seed=3)[0]
    width = wanted.shape[-1]
    assert face.action_space.shape == (5,)
    assert face.num_envs == 15
    rng = np.random.default_rng(0)
    for _ in range(4):  # over the end of a day
        assert face.observation_space.contains(seen[0])
        np.testing.assert_array_equal(seen.reshape(3, 5, -1)[..., :width], wanted)
        joint = rng.uniform(-1, 1, (3, 5, 5)).astype(np.float32)
        seen, reward, done, infos = face.step(joint.reshape(15, 5))
        wanted, rewards, _, truncated, info = batch.step(joint)
        np.testing.assert_array_equal(reward.reshape(3, 5), rewards.astype(np.float32))
        np.testing.assert_array_equal(done.reshape(3, 5), np.repeat(truncated[:, None], 5, 1))
        bill = np.where(info["role"] < 0, info["payment"], 0.0).sum(1)
        np.testing.assert_allclose(rewards[:, 4], -bill, atol=1e-9)
        if done.any():
            last = np.stack([one["terminal_observation"] for one in infos]).reshape(3, 5, -1)
            np.testing.assert_array_equal(last[..., :width], info["final_obs"])
