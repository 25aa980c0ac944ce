"""Upstream and own conformance checks over the options, and what the own checks must refuse."""

import itertools
import warnings
from importlib import import_module

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo import ParallelEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from toy_market import Toy

from p2penv import MARKETS, make_functional, make_parallel, make_solo, testing
from p2penv.communication import Scenario
from p2penv.communication_v0 import env, parallel_env, raw_env, solo_env
from p2penv.core.contract import Draw
from p2penv.faces.aec import MarketAECEnv
from p2penv.faces.parallel import MarketParallelEnv
from p2penv.grid import Scenario as Feeder
from p2penv.pem import Scenario as Day

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # an import within pettingzoo.test
    from pettingzoo.test import (
        api_test,
        parallel_api_test,
        parallel_seed_test,
        render_test,
        seed_test,
        state_test,
    )

RULES = [
    {"settlement": settlement, "reward": reward, "privacy": privacy, "shared_penalty": penalty}
    for settlement, reward, privacy, penalty in itertools.product(
        ("analytic", "physical"), ("expected", "realised"), ("budget", "floor"), (0.0, 10.0)
    )
    if not (settlement == "physical" and penalty)
]
OUTSIDE = [
    {"infos": infos, "dtype": dtype, "out_of_range": bounds}
    for infos, dtype, bounds in itertools.product(("full", "none"), ("float64", "float32"), ("raise", "clip"))
]


def heterogeneous(size=13, seed=3):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2.0, size), rng.uniform(0.5, 2.0, (size, size))


def every_combination():
    """All rules with all options outside them; length, trade and extra noise take turns."""
    trades = ({}, {"bookkeeping": "root"}, {"trading_price": heterogeneous()})
    for (first, rules), (second, outside) in itertools.product(enumerate(RULES), enumerate(OUTSIDE)):
        turns = {
            "horizon": (1, 3)[(first + second + second // 2) % 2],
            "variance_max": (1.0, 0.0, 2.5)[(first + second // 3) % 3],
        }
        yield {**turns, **rules, **outside, **trades[(first + second + second // 3) % 3]}


VCG_MECHANISMS = [
    {"mechanism": "vcg", "payments": "vcg"},
    {"mechanism": "laplace", "payments": "vcg", "laplace_samples": 8},
    *(
        {"mechanism": "exponential", "payments": payments, **support}
        for payments, support in itertools.product(
            ("algorithm3", "entropy"), ({}, {"support": "finite", "range_size": 20})
        )
    ),
]


def every_vcg_combination():
    """All mechanisms, reports and rewards; length, types and the options outside take turns."""
    for index, (mechanism, report, reward) in enumerate(
        itertools.product(VCG_MECHANISMS, ("scale", "coefficients"), ("expected", "realised"))
    ):
        turns = {"horizon": (1, 3)[(index + index // 4) % 2], "types": ("uniform", "fixed")[index // 2 % 2]}
        outside = OUTSIDE[index % len(OUTSIDE)]
        if mechanism["mechanism"] == "laplace":
            outside = outside | {"dtype": "float64"}
        yield {**mechanism, "report": report, "reward": reward, **turns, **outside}


def every_pem_combination():
    """All rules; one window or three, forecasts, caps and the options outside take turns."""
    for index, (pricing, response, leader) in enumerate(
        itertools.product(("paper", "exact", "exact_bound"), ("agent", "best"), ("rule", "agent"))
    ):
        cap = (0.0, 0.5)[index // 2 % 2]
        turns = {"forecast": index // 3 % 2, "preference_cap": cap, "capacity_cap": 0.5 - cap, "demand_cap": cap}
        case = Day.random(4, (3, 1)[index % 5 == 0], index)
        yield {"pricing": pricing, "response": response, "leader": leader, **turns, **OUTSIDE[index % len(OUTSIDE)],
               "scenario": case}  # fmt: skip


def every_grid_combination():
    """All rules; three hours, exports, reactive power, forecasts and the options outside take turns."""
    day = Feeder.random(4, 1)
    names = ("demand", "solar", "passive_active", "passive_reactive", "grid_slope")
    for index, (trade_price, network, dno) in enumerate(
        itertools.product(("contract", "bilateral", "shadow"), ("price", "curtail"), ("rule", "agent"))
    ):
        rows = slice(12 + index % 6, 16 + index % 6)
        turns = {"export": index % 2 == 0, "reactive": index % 3 > 0, "final_charge": index % 4 < 2}
        # All demand can be met; whoever charges or sells on top of it may exceed the limit.
        turns |= {"import_max": float((day.passive_total + day.demand.sum(axis=1))[rows].max())}
        case = day.replace(**{name: getattr(day, name)[rows] for name in names}, **turns)
        outside = OUTSIDE[index % len(OUTSIDE)] | ({"infos": "network"} if index == 3 else {})
        yield {"trade_price": trade_price, "network": network, "dno": dno, "forecast": index // 2 % 2, **outside,
               "scenario": case}  # fmt: skip


COMBINATIONS = [("communication_v0", options) for options in every_combination()]
COMBINATIONS += [("dpvcg_v0", options) for options in every_vcg_combination()]
COMBINATIONS += [("pem_v0", options) for options in every_pem_combination()]
COMBINATIONS += [("grid_v0", options) for options in every_grid_combination()]


def label(value):
    if isinstance(value, str):
        return value
    return "-".join(str(entry) for key, entry in value.items() if key not in ("trading_price", "scenario")) + (
        "-heterogeneous" if "trading_price" in value else ""
    )


def market_options(options):
    return {key: value for key, value in options.items() if key not in ("dtype", "out_of_range")}


every_market_and_option = pytest.mark.parametrize(("name", "options"), COMBINATIONS, ids=label)


def test_turns_leave_no_pair_of_settings_out():
    rows = list(every_combination())
    for row in rows:
        row["trade"] = "heterogeneous" if "trading_price" in row else row.get("bookkeeping", "each")
    fields = ("horizon", "variance_max", *RULES[0], *OUTSIDE[0], "trade")
    for first, second in itertools.combinations(fields, 2):
        wanted = set(itertools.product({row[first] for row in rows}, {row[second] for row in rows}))
        missing = wanted - {(row[first], row[second]) for row in rows}
        assert missing == ({("physical", 10.0)} if (first, second) == ("settlement", "shared_penalty") else set())
    for rules in RULES:  # length and trade also meet all rules at once
        own = [row for row in rows if rules.items() <= row.items()]
        assert len({(row["horizon"], row["trade"]) for row in own}) == 2 * 3


@every_market_and_option
def test_pettingzoo(name, options, capsys):
    module = import_module(f"p2penv.{name}")
    make, make_turns = (lambda: module.parallel_env(**options)), (lambda: module.env(**options))
    parallel_api_test(make(), num_cycles=4)
    api_test(make_turns(), num_cycles=4)
    parallel_seed_test(make, num_cycles=4)
    seed_test(make_turns, num_cycles=4)
    state_test(make_turns(), make(), num_cycles=4)
    assert "Passed API test" in capsys.readouterr().out


@every_market_and_option
def test_gymnasium_and_sb3(name, options):
    agents = {"communication_v0": "prosumer_9", "dpvcg_v0": "producer_1", "pem_v0": "home_2", "grid_v0": "prosumer_3"}
    agent = "dno_0" if options.get("dno") == "agent" else agents[name]
    if options.get("leader") == "agent":
        agent = "buyers_0"
    solo = make_solo(name, agent, **options)
    check_env(solo, skip_render_check=True)
    sb3_check_env(solo, warn=True, skip_render_check=True)


@every_market_and_option
def test_own_checks(name, options):
    testing.check_parallel(lambda: make_parallel(name, **options), episodes=2)
    market = make_functional(name, **market_options(options))
    testing.check_functional(market, num_envs=2)
    testing.check_batch(market, num_envs=2)


@pytest.mark.parametrize("size", [2, 40])
def test_own_checks_on_random_scenarios(size):
    market = make_functional("communication_v0", scenario=Scenario.random(size, seed=5), horizon=2, reward="realised")
    testing.check_functional(market)
    testing.check_batch(market)
    testing.check_parallel(lambda: MarketParallelEnv(market))


@pytest.mark.parametrize("horizon", [1, 4])
def test_a_market_with_unequal_roles_and_lengths(horizon):
    toy = Toy(horizon)
    testing.check_functional(toy, num_envs=8)
    testing.check_batch(toy, num_envs=8)
    testing.check_parallel(lambda: MarketParallelEnv(toy))
    face = MarketParallelEnv(toy)
    assert {agent: face.action_space(agent).shape for agent in face.possible_agents} == {
        "seller_0": (1,), "seller_1": (1,), "operator_0": (2,),
    }  # fmt: skip
    parallel_api_test(MarketParallelEnv(toy), num_cycles=6)
    seed_test(lambda: MarketAECEnv(MarketParallelEnv(toy)), num_cycles=6)


@pytest.mark.parametrize("make", [env, raw_env, parallel_env])
def test_render(make, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    if make is parallel_env:
        face = make(render_mode="rgb_array", horizon=2)
        assert face.render() is None  # before the first reset there is nothing to see
        face.reset(seed=0)
        before = face.render()
        face.step({agent: face.action_space(agent).sample() for agent in face.agents})
        assert before.dtype == np.uint8
        assert before.shape == face.render().shape
        assert (before != face.render()).any()
        assert make().render() is None
    else:
        render_test(lambda **options: make(horizon=2, **options))


def test_render_of_the_solo_face():
    import gymnasium

    check_env(gymnasium.make("p2penv/Communication-v0", agent="prosumer_0", render_mode="rgb_array").unwrapped)
    solo = solo_env(agent="prosumer_0", horizon=2, render_mode="human")
    solo.reset(seed=0)
    solo.step(np.zeros(2, np.float32))
    assert solo.render() is None
    solo.close()


@pytest.mark.parametrize("options", [{"horizon": 3, "infos": "none"}, {"settlement": "physical", "infos": "none"}])
def test_render_without_infos(options):
    face = parallel_env(render_mode="rgb_array", **options)
    face.reset(seed=0)
    assert face.render().ndim == 3


def test_every_market_passes():
    small = {"pem_v0": {"homes": 12, "windows": 4}, "grid_v0": {"prosumers": 4}}  # the whole day takes its time
    for name in MARKETS:
        options = small.get(name, {})
        testing.check_functional(make_functional(name, **options))
        testing.check_batch(make_functional(name, **options))
        testing.check_parallel(lambda name=name, options=options: make_parallel(name, **options))


# What the checks are for: each of these faults must be found.


class Impure(Toy):
    def step(self, params, state, actions, noise):
        state.level[...] += 1e-3
        return super().step(params, state, actions, noise)


class Forgetful(Toy):
    calls = 0

    def step(self, params, state, actions, noise):
        self.calls += 1
        return super().step(params, state, actions + 1e-9 * self.calls, noise)


class Widening(Toy):
    def initial(self, params, noise, num_envs):
        state = super().initial(params, noise, num_envs)
        return state._replace(level=state.level.astype(np.float64))


class Mixing(Toy):
    def step(self, params, state, actions, noise):
        step = super().step(params, state, actions, noise)
        return step._replace(reward=step.reward - step.reward.mean(0))


class Escaping(Toy):
    def observe(self, params, state):
        return 3.0 * state.level, super().observe(params, state)[1]


class Endless(Toy):
    def step(self, params, state, actions, noise):
        step = super().step(params, state, actions, noise)
        return step._replace(truncated=np.zeros_like(step.truncated))


class WrongEnd(Toy):
    def step(self, params, state, actions, noise):
        step = super().step(params, state, actions, noise)
        return step._replace(terminated=step.truncated, truncated=step.terminated)


class Talkative(Toy):
    def initial_info(self, params, state):
        return super().initial_info(params, state) | {"secret": state.left}


class NotANumber(Toy):
    def step(self, params, state, actions, noise):
        step = super().step(params, state, actions, noise)
        return step._replace(reward=step.reward * np.nan)


class Reusing(Toy):
    buffer = np.zeros((3, 3))

    def step(self, params, state, actions, noise):
        step = super().step(params, state, actions, noise)
        if len(step.reward) == len(self.buffer):
            self.buffer[...] = step.reward
            step = step._replace(reward=self.buffer)
        return step


class MissingFeature(Toy):
    def observe(self, params, state):
        return super().observe(params, state)[:1]


class WrongNoise(Toy):
    noise = {"shock": Draw("gumbel", (3,))}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Impure, "step changed its inputs|differs from a single one|two results"),
        (Forgetful, "step gave two results"),
        (Widening, "state.level is float64"),
        (Mixing, "environment 0 of the batch differs"),
        (Escaping, "feature 'level' leaves"),
        (Endless, "go on after the horizon"),
        (WrongEnd, "must terminate and repeated ones truncate"),
        (Talkative, "info keys"),
        (NotANumber, "reward is not finite"),
        (MissingFeature, "observe gave 1 features, 2 are declared"),
        (WrongNoise, "unknown kind 'gumbel'"),
    ],
)
def test_functional_faults_are_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_functional(fault())


def test_overwritten_outputs_are_found():
    with pytest.raises(AssertionError, match="overwritten"):
        testing.check_batch(Reusing())


class Faulty(ParallelEnv):
    """A parallel face with one fault, by name."""

    def __init__(self, fault):
        self.inner = MarketParallelEnv(Toy())
        self.fault = fault
        self.possible_agents = self.inner.possible_agents
        self.rng = np.random.default_rng()
        self.time = 0

    @property
    def agents(self):
        return self.inner.agents

    def action_space(self, agent):
        return self.inner.action_space(agent)

    def observation_space(self, agent):
        import copy

        space = self.inner.observation_space(agent)
        return copy.deepcopy(space) if self.fault == "spaces" else space

    def reset(self, seed=None, options=None):
        self.time = 0
        return self.inner.reset(seed, options)

    def step(self, actions):
        received, rewards, terminated, truncated, infos = self.inner.step(actions)
        self.time += 1
        if self.fault == "seed" and self.time > 1:
            rewards = {agent: self.rng.normal() for agent in rewards}
        if self.fault == "type":
            rewards = {agent: np.float32(value) for agent, value in rewards.items()}
        if self.fault == "flags":
            truncated = {agent: np.bool_(value) for agent, value in truncated.items()}
        if self.fault == "both":
            terminated = truncated
        if self.fault == "keys":
            infos = {agent: info | {str(self.time): 0.0} for agent, info in infos.items()}
        if self.fault == "box":
            received = {agent: value + 2 for agent, value in received.items()}
        return received, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("seed", "second environment with the same seed differs"),
        ("type", "must be a finite Python float"),
        ("flags", "no bools"),
        ("both", "both terminated and truncated"),
        ("keys", "info keys of seller_0 change"),
        ("box", "outside its space"),
        ("spaces", "must be the same objects"),
    ],
)
def test_parallel_faults_are_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_parallel(lambda: Faulty(fault))


def test_endless_episodes_are_found():
    with pytest.raises(AssertionError, match="has not ended after 2 steps"):
        testing.check_parallel(lambda: parallel_env(horizon=3), max_steps=2)
