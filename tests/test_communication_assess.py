"""Rewards and the measures of ``assess``, against the model of the paper written out and against dense search."""

import numpy as np
import pytest

from p2penv import make_functional
from p2penv.core.random import NumpyStream

NAME = "communication_v0"
PHYSICAL = {"settlement": "physical", "privacy_budget": 0.2}  # noise of 14 MWh reaches bounds of the devices
GAMES = {
    "plain": {},
    "interior": {"scenario": "ieee14-interior", "variance_max": 2.5},
    "bound": {"scenario": "ieee14-bound"},
    "penalised": {"scenario": "ieee14-bound", "shared_penalty": 7.0},
    "floor": {"privacy": "floor"},
    "penalised floor": {"scenario": "ieee14-bound", "privacy": "floor", "shared_penalty": 7.0},
    "physical": PHYSICAL,
    "physical floor": PHYSICAL | {"privacy": "floor"},
}


def root(function, low, high):
    """Where an increasing function of ``(E, 1)`` turns positive."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = np.where(function(middle) > 0, low, middle), np.where(function(middle) > 0, middle, high)
    return high


class Written:
    """The stage game in contexts y ``(E, N)``; report totals and their variances are ``(E, …, N)``, one an agent."""

    def __init__(self, market, y):
        self.case, self.y, self.penalty = market.scenario, y, market.shared_penalty
        self.physical = market.settlement == "physical"
        case = self.case
        self.floor = case.privacy == "floor"
        self.slope = 1 / case.generation_curvature + 1 / (2 * case.discomfort)
        self.intercept = (case.generation_price / case.generation_curvature).sum()
        # (8b), (8c): generation and demand at the expected price stay ω inside their bounds.
        least = self.ends(case.generation_min + case.margin, case.nominal_demand - case.demand_max + case.margin)
        most = self.ends(case.generation_max - case.margin, case.nominal_demand - case.demand_min - case.margin)
        self.low = max(least) * self.slope.sum() - self.intercept
        self.high = min(most) * self.slope.sum() - self.intercept

    def ends(self, generation, cut):
        """Prices at which devices reach these levels."""
        case = self.case
        return np.concatenate(
            [case.generation_price + case.generation_curvature * generation, 2 * case.discomfort * cut]
        )

    def devices(self, price):
        """Generation and demand cut at a price ``(…, N)``, within their bounds under physical settlement."""
        case = self.case
        generation = (price - case.generation_price) / case.generation_curvature
        cut = price / (2 * case.discomfort)
        if self.physical:
            generation = np.clip(generation, case.generation_min, case.generation_max)
            cut = np.clip(cut, case.nominal_demand - case.demand_max, case.nominal_demand - case.demand_min)
        return generation, cut

    def settle(self, total):
        """Cost at drawn report totals ``(E, …, N)``: devices, trade (3), and a share of the operator's bill."""
        case = self.case
        y = self.y.reshape(len(self.y), *[1] * (total.ndim - 2), case.size)
        served = total
        if self.physical:
            # Between the prices at which a device reaches a bound what is served is linear.
            low = self.ends(case.generation_min, case.nominal_demand - case.demand_max)
            high = self.ends(case.generation_max, case.nominal_demand - case.demand_min)
            prices = np.sort(np.concatenate([low, high]))
            amounts = sum(self.devices(prices[:, None])).sum(axis=1)
            price, served = np.interp(total, amounts, prices), np.clip(total, amounts[0], amounts[-1])
        else:
            price = (total + self.intercept) / self.slope.sum()
        generation, cut = self.devices(price)
        return (
            case.generation_curvature * generation**2 / 2 + case.generation_price * generation + case.fixed_cost
            + case.discomfort * cut**2 - case.usage_benefit
            + case.root_price * (y - generation - cut)
            + case.wholesale_price / case.size * (y.sum(axis=-1, keepdims=True) - served)
        )  # fmt: skip

    def violation(self, total):
        return np.maximum(np.maximum(self.low - total, total - self.high), 0)

    def cost(self, total, variance, nodes=6001):
        """Expected cost, penalty included, where report totals are normal."""
        if self.physical:
            z = np.linspace(-7, 7, nodes)
            weights = np.exp(-(z**2) / 2)
        else:  # quadratic: three nodes are exact
            z, weights = np.polynomial.hermite_e.hermegauss(3)
        drawn = total[..., None, :] + np.sqrt(variance)[..., None, :] * z[:, None]
        mean = np.einsum("z,...zn->...n", weights / weights.sum(), self.settle(drawn))
        return mean + self.penalty / 2 * self.violation(total) ** 2

    def least(self, shift):
        kept = self.case.max_shift + 0 * shift if self.floor else shift
        return kept**2 / (2 * self.case.privacy_budget)

    def played(self, shift, variance):
        """Report totals and their variances where shifts and variances are ``(E, N)``."""
        ones = np.ones_like(shift)
        return (self.y + shift).sum(axis=1, keepdims=True) * ones, variance.sum(axis=1, keepdims=True) * ones

    def solved(self, planner):
        """Shifts ``(E, N)`` of the variational equilibrium, or of the least social cost within (8b)-(8e)."""
        case, total_slope, y = self.case, self.slope.sum(), self.y.sum(axis=1, keepdims=True)
        ratio = total_slope**2 / self.slope
        aim = case.root_price * total_slope + case.wholesale_price * ratio / case.size - self.intercept
        if planner:
            aim = total_slope * (case.root_price + case.wholesale_price) - self.intercept
        # With a floor the own variance is fixed, and agents go to an end of their range or stand at the aim itself.
        rate = 1e6 if self.floor else 2 * case.privacy_budget

        def shift(total, push):
            distance = aim + push * (total_slope if planner else ratio) - total
            return np.clip(rate * distance, -case.max_shift, case.max_shift)

        reach = case.max_shift.sum()
        free = root(lambda total: total - y - shift(total, 0).sum(axis=1, keepdims=True), y - reach, y + reach)
        total = np.clip(free, self.low, self.high)
        push = root(lambda push: y + shift(total, push).sum(axis=1, keepdims=True) - total, 0 * y - 1e3, 0 * y + 1e3)
        own = shift(total, np.where(free == total, 0, push))
        np.testing.assert_allclose(y + own.sum(axis=1, keepdims=True), total, atol=1e-5)
        return own

    def gain(self, shift, variance):
        """What the best of many own shifts saves; with (8b), (8c) as constraints unless a penalty stands for them."""
        total, noise = self.played(shift, variance)
        points, nodes = (201, 801) if self.physical else (4001, 3)
        own = np.linspace(-1, 1, points)[:, None] * self.case.max_shift
        others, shown = (total - shift)[:, None], total[:, None]
        if not self.physical and not self.penalty:
            own = np.clip(own, np.minimum(self.low, shown) - others, np.maximum(self.high, shown) - others)
        costs = self.cost(others + own, (noise - variance)[:, None] + self.least(own), nodes)
        return self.cost(total, noise, nodes) - costs.min(axis=1)


def written(market, envs, seed=0):
    """A state of moving contexts, joint actions of which half report too little, and the game written out in it."""
    state = market.initial(market.params, NumpyStream(seed).draw(market.initial_noise, envs), envs)
    actions = np.random.default_rng(seed).uniform(-1, 1, (envs, 13, 2))
    actions[::2, :, 0] = -(np.abs(actions[::2, :, 0]) ** 0.2)
    game = Written(market, state.private_information)
    shift = 3.0 * actions[..., 0]
    variance = game.least(shift) * (1 + market.variance_max * (actions[..., 1] + 1) / 2)
    return state, actions, game, shift, variance


@pytest.mark.parametrize("options", GAMES.values(), ids=GAMES)
def test_assess_measures_the_game_as_it_is_played(options):
    market = make_functional(NAME, horizon=2, renewable_sd=5.0, **options)
    state, actions, game, shift, variance = written(market, 2 if options.get("settlement") else 8)
    found = market.assess(market.params, state, actions)
    assert not found["nearest"].any()
    quiet = {"truthful": 0 * shift, "equilibrium": game.solved(planner=False), "coordinated": game.solved(planner=True)}
    profiles = {"cost": (shift, variance)} | {f"cost_{name}": (own, game.least(own)) for name, own in quiet.items()}
    for key, profile in profiles.items():
        cost = game.cost(*game.played(*profile))
        np.testing.assert_allclose(found[key], cost, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(found[f"social_{key}"], cost.sum(axis=1), atol=1e-4, err_msg=key)
    # The certified search stops within 1e-4 of the best response.
    np.testing.assert_allclose(
        found["exploitability"], game.gain(shift, variance), atol=3e-4 if game.physical else 1e-5
    )
    # Prior and report are two measurements of y: their precisions add up.
    np.testing.assert_allclose(found["posterior_variance"], 1 / (1 / 5.0**2 + 1 / variance), rtol=1e-9)


@pytest.mark.parametrize("reward", ["expected", "realised"])
@pytest.mark.parametrize("options", GAMES.values(), ids=GAMES)
def test_rewards_are_the_cost_at_truthful_play_minus_the_cost(options, reward):
    """In contexts that move so far that even truthful play may leave the shared interval."""
    market = make_functional(NAME, horizon=2, renewable_sd=12.0, reward=reward, **options)
    state, actions, game, shift, variance = written(market, 32, seed=1)
    noise = NumpyStream(2).draw(market.noise, 32)
    truthful = game.cost(*game.played(0 * shift, game.least(0 * shift)))
    total, spread = game.played(shift, variance)
    if reward == "expected":
        cost = game.cost(total, spread)
    else:
        drawn = total + (np.sqrt(variance) * noise["report"]).sum(axis=1, keepdims=True)
        cost = game.settle(drawn) + game.penalty / 2 * game.violation(total) ** 2
    gap = market.step(market.params, state, actions, noise).reward
    np.testing.assert_allclose(gap, truthful - cost, rtol=1e-9, atol=1e-5 if game.physical else 1e-9)
    assert (game.violation(game.y.sum(axis=1)) > 0).any()


@pytest.mark.parametrize("reward", ["expected", "realised"])
@pytest.mark.parametrize("settlement", ["analytic", "physical"])
def test_price_and_imbalance_features_start_at_zero_and_span_what_reports_can_do(reward, settlement):
    """At a total of 20 MWh generators stand still: the true price is 3.395, where the interior formula says 5.519."""
    market = make_functional(NAME, reward=reward, settlement=settlement, net_load=20.0)
    state = market.initial(market.params, {}, 3)
    truthful = 3.395 if settlement == "physical" else 5.519
    np.testing.assert_allclose(state.price, truthful, atol=5e-4)
    price, imbalance = market.observe(market.params, state)
    np.testing.assert_allclose(price, 0.0, atol=1e-12)
    np.testing.assert_allclose(imbalance, 0.0, atol=1e-12)
    # All shifts at their ends, and three standard deviations of the least noise there where it is drawn.
    noise = np.sqrt(13 * 3.0**2 / (2 * 10.0)) if reward == "realised" else 0.0
    reach, total_slope = 39.0 + 3 * noise, 31.890463
    share = np.array([0.9, -0.5, -1.5])
    moved = state._replace(price=state.price + share * reach / total_slope, imbalance=share * reach)
    for feature in market.observe(market.params, moved):
        np.testing.assert_allclose(feature[:, 0], [0.9, -0.5, -1.0], atol=1e-7)
