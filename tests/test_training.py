"""Training, evaluation, reports and the command line, on short runs."""

import csv
import json
import re

import numpy as np
import pytest
from rich.console import Console
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

import p2penv
from p2penv.communication import equilibrium, load_scenario, rules
from training import runs
from training.cli import app
from training.evaluate import evaluate, marl_eval
from training.policies import MixedPolicy, load_learned, resolve
from training.runs import TrainConfig
from training.train import Run, resume, train

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes):
    return TrainConfig(**({"steps": 40_000, "num_envs": 16, "eval_every": 4} | changes))


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("scenario", "truthful", "share"), [("ieee14", 2.7358, 0.002), ("ieee14-interior", 2.4128, 0.005)]
)
def test_main_job_reaches_the_equilibrium(scenario, truthful, share):
    found = metrics(train(TrainConfig(options={"scenario": scenario}), console=QUIET))
    assert found["nashconv_truthful"] == pytest.approx(truthful, abs=5e-5)
    assert found["nashconv_learned"] <= share * truthful
    assert found["nashconv_untrained"] > 0.5 * truthful
    assert found["social_cost_learned"] == pytest.approx(found["social_cost_equilibrium"], rel=1e-3)


@pytest.mark.parametrize("types", ["fixed", "uniform"])
def test_agents_learn_to_tell_the_truth_under_vcg(types):
    """Truth is dominant: what another report would add to an agent's payoff is what its own forgoes."""
    options = {"mechanism": "vcg", "types": types}
    if types == "fixed":
        options |= {"scale_range": [0.5, 2.5]}  # the untrained policy plays the middle, which is not the truth then
    found = metrics(train(TrainConfig("dpvcg_v0", options, steps=300_000, contexts=50), console=QUIET))
    assert found["nashconv_truthful"] == 0
    assert found["nashconv_ratio"] is None
    assert found["nashconv_learned"] < 0.2 * found["nashconv_untrained"]
    assert found["regret_share"] <= 0.02
    by_hand = max(row["exploitability"] / abs(row["cost_truthful"]) for row in found["agents"])
    assert found["regret_share"] == pytest.approx(by_hand)


def test_repeated_game_one_policy_for_all_contexts():
    run = train(TrainConfig(options={"horizon": 24}, steps=900_000), console=QUIET)
    found = metrics(run)
    assert found["contexts"] == 100
    assert found["nashconv_learned"] <= 0.05 * found["nashconv_truthful"]


def test_run_folder_is_complete_and_consistent():
    run = train(config(seed=3), "short", console=QUIET)
    assert run.as_posix() == "runs/short"
    found = metrics(run)
    wanted = {
        "nashconv_truthful", "nashconv_untrained", "nashconv_learned", "social_cost_truthful",
        "social_cost_equilibrium", "social_cost_learned", "train_seconds", "agent_steps", "seed",
    }  # fmt: skip
    assert wanted <= found.keys()
    assert found["seed"] == 3
    assert found["agent_steps"] >= 40_000
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["agent"] for row in rows] == [f"prosumer_{n}" for n in range(13)]
    # The numbers are those of the stored policy, worked out again from the rules.
    env = p2penv.make_functional("communication_v0")
    scenario = load_scenario("ieee14")
    policy = load_learned(run, env)
    vector = p2penv.make_vector("communication_v0", num_envs=1)
    observations, _ = vector.reset(seed=0)
    actions = policy.act(env.params, observations, None, {})
    shift = 3.0 * actions[0, :, 0].astype(float)
    variance = shift**2 / 20.0 * (1.0 + 0.5 * (actions[0, :, 1].astype(float) + 1.0))
    gain = equilibrium.exploitability(scenario, shift, variance)
    assert gain.sum() == pytest.approx(found["nashconv_learned"], rel=1e-6)
    cost = rules.expected_cost(scenario, shift, variance)
    np.testing.assert_allclose([float(row["cost"]) for row in rows], cost, rtol=1e-9)
    # The page needs no network and no other file.
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "<script" not in page
    assert not list(run.glob(".*"))
    nested = json.loads((run / "marl_eval.json").read_text())
    steps = nested["communication_v0"]["ieee14"]["ppo-shared"]["seed_3"]
    assert steps["absolute_metrics"]["nashconv"] == [found["nashconv_learned"]]
    assert steps["step_0"]["step_count"] == 0


@pytest.mark.parametrize("learners", ["shared", "independent"])
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_same_seed_same_result(algorithm, learners):
    size = {"ppo": 8_000, "sac": 1_500}[algorithm]
    short = config(algorithm=algorithm, learners=learners, steps=size, num_envs=8, options={"horizon": 3}, contexts=6)
    first, second = (metrics(train(short, console=QUIET)) for _ in range(2))
    assert first["nashconv_learned"] == second["nashconv_learned"]
    other = metrics(train(config(**{**short.__dict__, "seed": 1}), console=QUIET))
    assert other["nashconv_learned"] != first["nashconv_learned"]


@pytest.mark.parametrize("learners", ["shared", "independent"])
def test_interrupted_run_resumes_where_it_stopped(learners, monkeypatch):
    from training.train import Watch

    original = Watch._on_rollout_end

    def interrupt(self):
        original(self)
        if self.run.done >= 15_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "_on_rollout_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(learners=learners), "cut", console=QUIET)
    monkeypatch.setattr(Watch, "_on_rollout_end", original)
    rows = runs.read_csv(runs.ROOT / "cut" / "curve.csv")
    assert 15_000 <= rows[-1]["agent_steps"] < 20_000
    run = resume(runs.ROOT / "cut", console=QUIET)
    steps = [row["agent_steps"] for row in runs.read_csv(run / "curve.csv")]
    assert steps == sorted(steps)
    assert steps[: len(rows)] == [row["agent_steps"] for row in rows]
    # One rollout is 8 steps x 16 environments x 13 agents.
    assert 40_000 <= metrics(run)["agent_steps"] < 40_000 + 8 * 16 * 13


@pytest.mark.parametrize("learners", ["shared", "independent"])
def test_a_point_of_the_curve_is_what_its_steps_taught(learners, monkeypatch):
    """Policies are measured when every learner has trained on the steps the point is labelled with."""
    taught, seen = {}, []
    teach, look = PPO.train, Run.measure

    def train_and_count(self):
        teach(self)
        taught[id(self)] = taught.get(id(self), 0) + 1

    def look_and_note(self):
        row = look(self)
        seen.append((row["agent_steps"], [taught.get(id(model), 0) for model in self.models]))
        return row

    monkeypatch.setattr(PPO, "train", train_and_count)
    monkeypatch.setattr(Run, "measure", look_and_note)
    run = train(config(learners=learners, steps=18_000, options={"horizon": 2}, contexts=5), console=QUIET)
    agents, rollout = 13 if learners == "independent" else 1, 8 * 16 * 13
    assert seen == [(steps, [steps // rollout] * agents) for steps in (0, 4 * rollout, 8 * rollout, 11 * rollout)]
    assert [row["agent_steps"] for row in runs.read_csv(run / "curve.csv")] == [steps for steps, _ in seen]
    events = EventAccumulator(str(next((run / "tensorboard").iterdir())))
    events.Reload()
    logged = [(point.step, point.value) for point in events.Scalars("equilibrium/nashconv")]
    rows = [(row["agent_steps"] // agents, row["nashconv"]) for row in runs.read_csv(run / "curve.csv")]
    np.testing.assert_allclose(logged, rows, rtol=1e-6)


def test_run_cut_off_after_its_last_step_is_finished():
    run = train(config(steps=5_000), console=QUIET)
    before = metrics(run)
    (run / "metrics.json").unlink()
    resume(run, console=QUIET)
    after = metrics(run)
    assert after == before


def test_run_cut_off_in_its_first_checkpoint_starts_again():
    run = train(config(steps=5_000), console=QUIET)
    (run / "metrics.json").unlink()
    (run / "curve.csv").unlink()
    resume(run, console=QUIET)
    assert runs.read_csv(run / "curve.csv")[0]["agent_steps"] == 0
    assert metrics(run)["agent_steps"] >= 5_000


def test_moved_run_logs_where_it_is():
    run = train(config(steps=5_000), "old", console=QUIET)
    moved = run.rename(run.with_name("new"))
    resume(moved, 8_000, console=QUIET)
    assert not run.exists()
    assert len(list((moved / "tensorboard").iterdir())) >= 1


@pytest.mark.parametrize("text", ["no json", "{}", '{"training": {"network": [8], "stepz": 3}}'])
def test_broken_configurations_are_named(text):
    run = train(config(steps=2_000), console=QUIET)
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json does not hold the configuration of a run"):
        resume(run, console=QUIET)


def test_options_that_cannot_be_kept_are_refused_at_once():
    with pytest.raises(TypeError, match="option scenario is kept with the run as text"):
        TrainConfig(options={"scenario": load_scenario()})
    assert TrainConfig(options={"privacy_budget": np.ones(13)}).options["privacy_budget"].shape == (13,)


def test_even_one_rollout_is_learned_from():
    found = metrics(train(config(steps=1_000), console=QUIET))
    assert found["nashconv_learned"] < 0.99 * found["nashconv_untrained"]


def test_finished_run_is_resumed_only_for_more_steps():
    run = train(config(steps=5_000), console=QUIET)
    before = metrics(run)
    with pytest.raises(ValueError, match="already has"):
        resume(run, console=QUIET)
    assert runs.load_config(run).steps == 5_000
    resume(run, 12_000, console=QUIET)
    assert metrics(run)["agent_steps"] >= 12_000
    assert metrics(run)["nashconv_learned"] < before["nashconv_learned"]


def test_contexts_without_a_feasible_set_are_counted():
    # The base is barely feasible, so moving generation leaves the feasible range in some states.
    env = p2penv.make_functional("communication_v0", scenario="ieee14", net_load=246.0, horizon=12)
    found = evaluate(env, env.policy("ve"), 60)
    assert 0 < found.nearest < 60


@pytest.mark.parametrize(("contexts", "times"), [(6, [0, 0, 1, 1, 2, 2]), (3, [0, 1, 2]), (2, [0, 1])])
def test_contexts_lie_at_every_time_of_an_episode(contexts, times, monkeypatch):
    env, seen = p2penv.make_functional("communication_v0", horizon=3), []
    assess = env.assess
    monkeypatch.setattr(
        env, "assess", lambda params, state, actions: (seen.extend(state.time), assess(params, state, actions))[1]
    )
    assert evaluate(env, env.policy("ve"), contexts).contexts == contexts
    assert sorted(seen) == times


def test_independent_learners_start_apart():
    models = Run(runs.new_folder("apart"), config(learners="independent")).models
    same = np.ones(models[0].observation_space.shape, np.float32)
    assert len(np.unique([model.predict(same, deterministic=True)[0] for model in models], axis=0)) == 13


def test_failure_of_one_independent_learner_stops_all(monkeypatch):
    from stable_baselines3 import PPO

    original = PPO.train

    def fail(self):
        if self.seed == 2000:
            raise RuntimeError("broken learner")
        original(self)

    monkeypatch.setattr(PPO, "train", fail)
    with pytest.raises(RuntimeError, match="broken learner"):
        train(config(learners="independent", steps=5_000), console=QUIET)


def test_new_runs_never_share_a_folder():
    names = [runs.new_folder("same").name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]


def test_evaluation_of_exact_profiles():
    env = p2penv.make_functional("communication_v0")
    found = evaluate(env, env.policy("ve"))
    assert found.contexts == 1
    assert found.nashconv == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(found.cost, found.cost_equilibrium, rtol=1e-12)
    assert found.utility_gap.sum() == pytest.approx(13.003112, abs=1e-6)
    planner = evaluate(env, env.policy("coordinated"))
    assert planner.price_of_anarchy_played == pytest.approx(1.0, rel=1e-12)
    assert found.price_of_anarchy > 1.0


def test_evaluation_of_a_random_policy_has_an_interval_that_shrinks():
    env = p2penv.make_functional("communication_v0")
    few, many = (evaluate(env, resolve(env, "random"), contexts) for contexts in (50, 800))
    assert 0.0 < many.interval < few.interval
    assert abs(few.nashconv - many.nashconv) < 3 * (few.interval + many.interval)


def test_mixed_policy_changes_only_the_named_agents():
    env = p2penv.make_functional("communication_v0")
    mixed = MixedPolicy(env.policy("ve"), {8: env.policy("truthful"), 3: resolve(env, "random")})
    vector = p2penv.make_vector("communication_v0", num_envs=5)
    observations, _ = vector.reset(seed=0)
    noise = vector.runner.stream.draw(mixed.noise, 5)
    state = vector.runner.state
    actions = mixed.act(env.params, observations, state, noise)
    exact = env.policy("ve").act(env.params, observations, state, {})
    same = [n for n in range(13) if n not in (3, 8)]
    np.testing.assert_array_equal(actions[:, same], exact[:, same])
    np.testing.assert_array_equal(actions[:, 8, 0], 0.0)
    assert np.unique(actions[:, 3, 0]).size == 5


def test_marl_eval_layout():
    curve = [{"agent_steps": 10.0, "seconds": 0.5, "nashconv": 2.0}]
    nested = marl_eval("market", "task", "method", 7, curve, {"nashconv": 1.0})
    assert nested == {
        "market": {
            "task": {
                "method": {
                    "seed_7": {
                        "step_0": {"step_count": 10, "elapsed_time": 0.5, "nashconv": [2.0]},
                        "absolute_metrics": {"nashconv": [1.0]},
                    }
                }
            }
        }
    }


def run_cli(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_cli_train_report_evaluate(folder):
    result = run_cli(
        "train", "communication", "--steps", "20000", "--envs", "8", "--name", "cli", "-o", "privacy_budget=0.2"
    )
    assert result.exit_code == 0, result.output
    assert "NashConv, learned" in result.output
    stored = json.loads((folder / "runs/cli/config.json").read_text())["training"]
    assert stored["options"] == {"privacy_budget": 0.2}
    (folder / "runs/cli/report.html").unlink()
    assert run_cli("report", "runs/cli").exit_code == 0
    assert (folder / "runs/cli/report.html").is_file()
    result = run_cli(
        "evaluate", "communication", "--policy", "ve", "--agent", "prosumer_8=runs/cli",
        "-o", "privacy_budget=0.2", "--json", "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    measured = json.loads((folder / "out.json").read_text())["communication_v0"]["ieee14"]
    (runs_,) = measured.values()
    assert runs_["seed_0"]["absolute_metrics"]["nashconv"][0] >= 0.0


def test_cli_list_and_solve(folder):
    result = run_cli("list")
    assert result.exit_code == 0
    assert "ieee14-bound" in result.output
    assert "best_response" in result.output
    result = run_cli("solve", "communication", "--json", "solved.json")
    assert result.exit_code == 0
    solved = json.loads((folder / "solved.json").read_text())
    assert solved["ve"]["nashconv"] == pytest.approx(0.0, abs=1e-12)
    assert solved["truthful"]["nashconv"] == pytest.approx(2.7358, abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "auction"), "market must be one of"),
        (("train", "communication", "--scenario", "ieee15"), "scenario must be one of"),
        (("train", "communication", "-o", "colour=1"), "unknown option 'colour'"),
        (("train", "communication", "-o", "privacy_budget"), "key=value"),
        (("train", "communication", "--resume", "runs/none"), "not a run"),
        (("train", "communication", "--resume", "runs/none", "--seed", "1"), "drop seed"),
        (("evaluate", "communication", "--policy", "clever"), "policy must be one of"),
        (("evaluate", "communication", "--agent", "prosumer_99=ve"), "--agent must look like"),
        (("report", "runs/none"), "not a run"),
        (("train", "communication", "--envs", "0"), "num_envs must be a whole number >= 1"),
        (("train", "communication", "--seed", "-1"), "seed must be"),
        (("train", "communication", "--learning-rate", "0"), "learning_rate must be"),
        (("train", "communication", "--gamma", "2"), "gamma must be"),
        (("train", "communication", "--steps", "0"), "steps must be"),
        (("train", "communication", "--name", "../out"), "plain folder name"),
        (("train", "communication", "--horizon", "3", "-o", "horizon=4"), "given twice"),
        (("solve", "communication", "-o", "net_load=290"), "empty joint feasible set"),
        (("evaluate", "communication", "--contexts", "0"), "contexts must be"),
        (("evaluate", "communication", "--json", "/dev/null/x.json"), "cannot write"),
    ],
)
def test_cli_refuses_with_one_clear_line(arguments, message, folder):
    result = run_cli(*arguments)
    assert not (folder / "runs").exists()
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
