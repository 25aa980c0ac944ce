"""Pictures: what they show, at every size, without a display."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.collections import PathCollection

import p2penv
from p2penv import communication_v0
from p2penv.communication import Scenario, equilibrium, load_scenario, rules
from p2penv.communication.render import COLOURS, draw, network_figure
from p2penv.core.random import NumpyStream
from p2penv.dpvcg import Scenario as VCGScenario
from p2penv.dpvcg.render import draw as draw_vcg
from p2penv.faces.window import pixels
from p2penv.grid import Scenario as Feeder
from p2penv.grid import rules as feeder_rules
from p2penv.grid.render import draw as draw_grid
from p2penv.pem import Scenario as Day
from p2penv.pem.render import _headline as draw_headline
from p2penv.pem.render import draw as draw_energy


def played(policy="ve", num_envs=2, **options):
    env = p2penv.make_functional("communication_v0", **options)
    stream = NumpyStream(1)
    state = env.initial(env.params, stream.draw(env.initial_noise, num_envs), num_envs)
    actions = env.policy(policy).act(env.params, None, state, {})
    return env, state, env.step(env.params, state, actions, stream.draw(env.noise, num_envs))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [t.get_text() for t in figure.texts]


def node_colours(figure):
    groups = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    ordered = [groups[1], groups[0]]  # the root is drawn last
    return np.concatenate([group.get_facecolors() for group in ordered])


def test_headline_and_labels():
    env, _, step = played()
    figure = draw(env, step.state, step.info)
    assert pixels(figure).shape == (450, 900, 3)
    headline = figure.texts[0].get_text()
    # λ* = 6.321045, λ at truth 6.961329, Σx = −20.418959.
    for part in ("6.321 $/MWh", "truthful 6.961", "imbalance +20.42 MWh", "slack 10.22 MWh"):
        assert part in headline
    shown = texts(figure)
    assert {str(n) for n in range(13)} <= set(shown)
    assert shown.count("▼3.0") == 9
    assert shown.count("▲3.0") == 3
    assert shown.count("▼2.4") == 1
    assert shown.count("root") == 1


def test_nodes_are_coloured_by_privacy_price():
    env, _, step = played()
    price = step.info["privacy_price"][0]
    share = (price - price.min()) / np.ptp(price)
    np.testing.assert_allclose(node_colours(draw(env, step.state, step.info)), colormaps[COLOURS](share))


def test_reports_and_error_bars():
    env, _, step = played()
    upper = draw(env, step.state, step.info).axes[2]
    y, x = env.scenario.private_information, step.info["shift"][0]
    np.testing.assert_allclose(upper.lines[-1].get_ydata(), y)
    bars, points = upper.collections
    np.testing.assert_allclose(points.get_offsets()[:, 1], y + x)
    deviation = np.abs(x) / np.sqrt(20.0)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.stack([y + x - deviation, y + x + deviation], axis=1))


@pytest.mark.parametrize("size", [2, 40, 41, 200])
def test_any_number_of_agents(size):
    env, _, step = played(scenario=Scenario.random(size, 0))
    figure = draw(env, step.state, step.info)
    assert np.ptp(pixels(figure)) > 200
    assert ("1" in texts(figure)) == (size <= 40)
    assert len(node_colours(figure)) == size


@pytest.mark.parametrize(
    "options",
    [
        {"settlement": "physical", "scenario": "ieee14-bound"},
        {"horizon": 3, "reward": "realised"},
        {"policy": "truthful"},
        {"privacy": "floor"},
    ],
)
def test_every_mode_is_drawn(options):
    env, state, step = played(**options)
    for shown, info in ((state, env.initial_info(env.params, state)), (state, step.info), (step.state, step.info)):
        assert np.ptp(pixels(draw(env, shown, info))) > 200


def test_truthful_price_belongs_to_the_step_that_was_played():
    env, state, step = played(horizon=3)
    expected = float(rules.clearing_price(env.scenario, state.private_information)[0])
    assert f"truthful {expected:.3f}" in draw(env, state, step.info).texts[0].get_text()


def test_faces_draw_the_step_that_was_played():
    env = communication_v0.parallel_env(horizon=3, render_mode="rgb_array")
    env.reset(seed=0)
    state = env.runner.state
    env.step({agent: np.full(2, 0.5, np.float32) for agent in env.agents})
    shown = pixels(
        draw(
            env.functional,
            state,
            env.functional.step(
                env.runner.params, state, np.full((1, 13, 2), 0.5), {"renewable": np.zeros((1, 13))}
            ).info,
        )
    )
    np.testing.assert_array_equal(env.render(), shown)


def test_violation_is_named():
    env = p2penv.make_functional("communication_v0", scenario="ieee14-bound")
    state = env.initial(env.params, {}, 1)
    step = env.step(env.params, state, np.stack([-np.ones((1, 13)), -np.ones((1, 13))], axis=-1), {})
    # Y − Σα = 66 − 39, the interval starts at 6.0005·B − β.
    violation = 6.0005 * 31.890463 - 156.0 - 27.0
    assert f"violated by {violation:.2f} MWh" in draw(env, step.state, step.info).texts[0].get_text()


def test_without_infos_the_state_is_drawn():
    env, _, step = played(infos="none")
    assert step.info == {}
    figure = draw(env, step.state, step.info)
    assert "6.321" in figure.texts[0].get_text()
    assert "slack" not in figure.texts[0].get_text()
    assert "shifts are not in the infos" in texts(figure)
    assert np.ptp(node_colours(figure), axis=0).max() == 0


def test_network_figure_shares_the_drawing():
    scenario = load_scenario("ieee14")
    price = rules.privacy_price(scenario, equilibrium.variational_equilibrium(scenario).shift)
    figure = network_figure(scenario, price, title="Prices")
    env, _, step = played()
    np.testing.assert_array_equal(node_colours(figure), node_colours(draw(env, step.state, step.info)))
    assert "Prices" in texts(figure)
    assert len(figure.axes[0].collections[0].get_segments()) == 19


def test_missing_matplotlib_names_the_extra_and_pyplot_is_never_loaded():
    code = (
        "import sys\n"
        "import p2penv.communication.render\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "for name in [n for n in sys.modules if n.startswith(('matplotlib', 'p2penv.communication.render'))]:\n"
        "    del sys.modules[name]\n"
        "sys.modules['matplotlib'] = None\n"
        "import p2penv.communication.render\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: rendering needs matplotlib: pip install 'p2penv[render]'" in result.stderr


# The VCG market.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mechanism": "vcg", "types": "fixed"}, ["community6: VCG", "welfare 1.568", "budget -0.837"]),
        ({"support": "finite", "epsilon": 0.5, "report": "coefficients"}, ["exponential mechanism", "ε = 0.5"]),
        ({"mechanism": "laplace", "laplace_samples": 4, "horizon": 3}, ["laplace mechanism", "ε = 1"]),
        ({"mechanism": "vcg", "infos": "none"}, ["community6: VCG"]),
        ({"mechanism": "vcg", "scenario": VCGScenario.random(20, 20, 0)}, ["random-20-20-0"]),
    ],
)
def test_the_vcg_market_is_drawn(options, words):
    env = p2penv.make_functional("dpvcg_v0", **options)
    stream = NumpyStream(1)
    state = env.initial(env.params, stream.draw(env.initial_noise, 2), 2)
    actions = env.policy("truthful").act(env.params, None, state, {})
    step = env.step(env.params, state, actions, stream.draw(env.noise, 2))
    for info in (env.initial_info(env.params, state), step.info):
        figure = draw_vcg(env, state, info)
        assert pixels(figure).shape == (450, 900, 3)
        assert np.ptp(pixels(figure)) > 200
        assert words[0] in figure.texts[0].get_text()
    assert all(word in figure.texts[0].get_text() for word in words)
    if options.get("types") == "fixed":
        curves, upper, lower = figure.axes
        # What was cleared: 47.626 kWh at 0.048 $/kWh, and each quantity as a dot.
        point = next(line for line in curves.lines if line.get_marker() == "o")
        np.testing.assert_allclose(np.ravel(point.get_data()), [47.626297, 0.047956], atol=1e-6)
        dots = next(c for c in upper.collections if isinstance(c, PathCollection)).get_offsets()
        np.testing.assert_allclose(dots[:, 1], np.abs(step.info["quantity"][0]))
        heights = [patch.get_height() for patch in lower.patches]
        np.testing.assert_allclose(heights[6:], step.info["payment"][0])
        np.testing.assert_allclose(np.subtract(heights[:6], heights[6:]), step.reward[0])


# The private energy market.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scenario": Day.random(6, 12, 3)}, ["random-6-12-3, ", "sellers, "]),
        (
            {"scenario": Day.random(6, 12, 3), "leader": "agent", "forecast": 2},
            ["random-6-12-3, ", "general market, price 100.00"],
        ),
        ({"homes": 20, "windows": 5, "start": 19.0, "infos": "none"}, ["day300, 19:04"]),
        ({"scenario": Day.random(2, 1, 0)}, ["random-2-1-0"]),
        ({"scenario": Day.random(200, 2, 0), "pricing": "paper"}, ["random-200-2-0"]),
    ],
)
def test_the_energy_market_is_drawn(options, words):
    env = p2penv.make_functional("pem_v0", **options)
    stream, size = NumpyStream(1), env.scenario.size
    state = env.initial(env.params, stream.draw(env.initial_noise, 2), 2)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (2, len(env.context), 5))
    actions[:, -1] *= not env.led  # the middle of the range
    for time in range(min(env.horizon, 6)):
        step = env.step(env.params, state, actions, stream.draw(env.noise, 2))
        if step.info and step.info["case"][0] == 1 and step.info["sellers"][0]:
            break
        state = step.state if time + 1 < min(env.horizon, 6) else state
    for info in (env.initial_info(env.params, state), step.info):
        figure = draw_energy(env, state, info)
        assert pixels(figure).shape == (450, 900, 3)
        assert np.ptp(pixels(figure)) > 200
        assert words[0] in figure.texts[0].get_text()
    headline = figure.texts[0].get_text()
    assert all(word in headline for word in words), headline
    assert np.ptp(pixels(draw_energy(env, step.state, step.info))) > 200  # after the last window, too
    if step.info:
        curves, upper, lower = figure.axes
        order = np.argsort(-step.info["net"][0, :size])
        heights = np.array([bar.get_height() for bar in upper.patches])
        np.testing.assert_allclose(heights[:size], step.info["net"][0, :size][order])
        traded = (step.info["sold"] - step.info["bought"])[0, :size][order] / env.scenario.hours
        np.testing.assert_allclose(heights[size:], traded)
        np.testing.assert_allclose(lower.lines[-1].get_ydata(), step.info["charge"][0, :size][order])
        net, role = step.info["net"][0, :size], step.info["role"][0, :size]
        lines = {line.get_label(): line for line in curves.lines}
        np.testing.assert_allclose(lines["demand"].get_xdata(), -net[role < 0].sum(), rtol=1e-12)
        # Where sellers answer the price, the curve meets it at what they supply: also with batteries in use.
        if step.info["case"][0] == 1 and env.pricing == "exact" and not env.led:
            drawn = np.interp(step.info["price"][0], lines["supply"].get_ydata(), lines["supply"].get_xdata())
            assert drawn == pytest.approx(net[role > 0].sum(), rel=2e-3)


@pytest.mark.parametrize("buyback", [0.0, 80.0])
def test_the_picture_agrees_with_the_case_while_batteries_work(buyback):
    """Supply left of demand at p_l is a general market, right of it an extreme one."""
    scenario = Day.random(6, 24, 1).replace(initial_charge=0.8, buyback=buyback)
    env = p2penv.make_functional("pem_v0", scenario=scenario, infos="full")
    state, rng, seen = env.initial(env.params, {}, 1), np.random.default_rng(2), set()
    for _ in range(env.horizon - 1):
        step = env.step(env.params, state, rng.uniform(-1.0, 1.0, (1, 6, 5)), {})
        lines = {line.get_label(): line for line in draw_energy(env, state, step.info).axes[0].lines}
        case, at_low = int(step.info["case"][0]), 0.0
        if "supply" in lines and case:
            at_low = np.interp(env.scenario.low, lines["supply"].get_ydata(), lines["supply"].get_xdata())
            missing = lines["demand"].get_xdata()[0] - at_low
            assert (missing > 0.0) == (case == 1) or abs(missing) < 1e-3
            seen.add(case)
        state = step.state
    assert seen == {1, 2}


def test_the_clock_of_the_energy_market():
    """Whole minutes, whatever rounding does to hours, and over midnight."""
    env = p2penv.make_functional("pem_v0", scenario=Day.random(2, 720, 0).replace(start=0.1, minutes=7.0))
    state = env.initial(env.params, {}, 1)
    for time in range(721):
        total = 6 + 7 * time
        shown = draw_headline(env, state._replace(time=np.array([time])), {})
        assert shown.endswith(f", {total // 60 % 24:02d}:{total % 60:02d}")


def test_faces_of_the_energy_market_draw():
    face = p2penv.make_parallel("pem_v0", render_mode="rgb_array", scenario=Day.random(4, 3, 3), leader="agent")
    face.reset(seed=0)
    before = face.render()
    face.step({agent: np.full(face.action_space(agent).shape, 0.5, np.float32) for agent in face.agents})
    assert before.shape == face.render().shape
    assert (before != face.render()).any()


# The network-constrained market.


@pytest.mark.parametrize("infos", ["full", "network", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"prosumers": 5, "seed": 1},
        {"scenario": Feeder.random(6, 2), "dno": "agent", "trade_price": "bilateral", "forecast": 2},
        {"scenario": Feeder.random(6, 2).replace(power_factor=0.95), "network": "curtail"},
    ],
)
def test_the_grid_market_is_drawn(options, infos):
    if options.get("network") == "curtail":
        options = {**options, "scenario": tightened(options["scenario"])}
    env = p2penv.make_functional("grid_v0", **options, infos=infos)
    stream, case, size = NumpyStream(1), env.scenario, env.scenario.size
    state = env.initial(env.params, stream.draw(env.initial_noise, 2), 2)
    shape = (2, len(env.context), len(env.action_names))
    rng = np.random.default_rng(0)
    for hour in range(env.horizon):
        step = env.step(env.params, state, rng.uniform(-1.0, 1.0, shape), stream.draw(env.noise, 2))
        if hour + 1 == env.horizon or (
            step.info["cut"][0] > 0.0 if env.network == "curtail" and step.info else hour == 12
        ):
            break
        state = step.state
    for info in (env.initial_info(env.params, state), step.info):
        figure = draw_grid(env, state, info)
        assert pixels(figure).shape == (450, 1000, 3)
        assert np.ptp(pixels(figure)) > 200
        assert figure.texts[0].get_text().startswith(f"{case.name}, {hour:02d}:00")
    assert np.ptp(pixels(draw_grid(env, step.state, step.info))) > 200  # after the last hour, too
    if infos == "none":
        return
    feeder, upper, lower = figure.axes
    lowest = step.info["voltage_low"][0]
    assert feeder.texts[0].get_text().endswith(f": {lowest:.4f} p.u.")
    if env.network == "curtail":
        assert step.info["cut"][0] > 0.0
    # Bars from own power, partners and the grid add up to what is served.
    heights = np.array([bar.get_height() for bar in upper.patches]).reshape(3, 2, size).sum(axis=(0, 1))
    served = case.demand[hour] - step.info["unserved"][0, :size] / case.step_hours
    spilled = np.maximum(-step.info["cut"][0] / (1.0 - step.info["cut"][0]) * step.info["net"][0, :size], 0.0)
    np.testing.assert_allclose(heights, served + spilled, atol=1e-9)
    held = case.storage_power > 0.0
    np.testing.assert_allclose(lower.lines[-1].get_ydata(), step.info["charge"][0, :size][held])


def tightened(case):
    """Lines that carry the passive loads and little more."""
    alone = feeder_rules.state_of(case.params, np.zeros((case.hours + 1, case.size)), np.arange(case.hours + 1))
    return case.replace(line_limit=np.hypot(alone.active, alone.reactive).max(axis=0) + 1e-3)
