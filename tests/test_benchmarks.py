"""The benchmark's instruments: result files, resuming, the shared queue, statistics and evidence."""

import itertools
import json
import os
import pickle
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch as th

pytest.importorskip("rl_zoo3")
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import evidence  # noqa: E402
import learning  # noqa: E402
import memb_figures  # noqa: E402
import mpdp_figures  # noqa: E402
import report  # noqa: E402
import single_run  # noqa: E402
from records import EVAL_SEED, Job, cpu_model, read_csv, write_csv  # noqa: E402

SMALL = {"learning_starts": 60, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
SMALL_MODEL = {"model_net_arch": [8], "model_gradient_steps": 5, "rollout_batch_size": 50, "model_train_freq": 40}
SAC = Job("Pendulum-v1", "sac", seed=3, steps=120, hyperparams=SMALL, eval_every=50, eval_episodes=2)
MAAC = replace(SAC, algo="maac", hyperparams=SMALL | SMALL_MODEL)


def quiet(text: str) -> None:
    """Report no progress."""


def train(job, folder, say=quiet, **kwargs):
    return single_run.train(job, folder / "results", folder / "runs", say=say, **kwargs)


def result_of(job, folder):
    return read_csv(folder / "results" / f"{job.name}.csv")


# -- Result files ---------------------------------------------------------------------------------------------------------


def test_the_machine_names_what_is_preloaded(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    plain = cpu_model()
    assert f"{os.cpu_count()} cores" in plain
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/libone.so:/elsewhere/libtwo.so")
    assert cpu_model() == f"{plain}, libone.so preloaded, libtwo.so preloaded"


def test_result_file_is_what_a_reader_expects(tmp_path):
    rows = [
        {"env_step": 0, "return_mean": 1.5, "return_10": 3.0, "return_9": 2.0},
        {"env_step": 7, "return_mean": -1234.56789, "train/loss": 0.1, "model/elites": "[1, 2]"},
    ]
    write_csv(tmp_path / "a.csv", {"algo": "sac", "error": "two\nlines: here"}, rows)
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "# algo: sac",
        "# error: two lines: here",
        "env_step,return_mean,return_9,return_10,length_mean,wall_s,cpu_s,eval_wall_s,eval_cpu_s,checkpoint_wall_s,updates,"
        "imagined_transitions,model_error,model/elites,train/loss",
        "0,1.5,2,3,,,,,,,,,,,",
        '7,-1234.57,,,,,,,,,,,,"[1, 2]",0.1',
    ]
    header, cells = read_csv(tmp_path / "a.csv")
    assert header == {"algo": "sac", "error": "two lines: here"}
    assert [row["train/loss"] for row in cells] == ["", "0.1"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"], "no temporary file is left"


def test_recorded_command_makes_the_same_run():
    job = replace(MAAC, label="small", eval_every=77, hyperparams={"gamma": 0.9, "ent_coef": "auto", "model_net_arch": [8, 8]})
    program, script, *arguments = shlex.split(job.command)
    assert (program, script) == ("python", "benchmarks/learning.py")
    arguments = learning.parse_arguments(arguments)
    assert learning.make_jobs(arguments) == [job]
    assert job.name == "Pendulum-v1_maac_small_s3"


def test_evaluation_seeds_cannot_be_trained_on():
    with pytest.raises(SystemExit):
        learning.parse_arguments(["--algo", "sac", "--env", "Pendulum-v1", "--steps", "9", "--seeds", str(EVAL_SEED + 4)])


# -- A run ----------------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_zoo():
    run = single_run.Run(Job("HalfCheetah-v4", "crossq", seed=0, steps=10, eval_episodes=1))
    assert run.constructor["policy_delay"] == 3
    assert run.constructor["policy_kwargs"] == {"net_arch": {"pi": [256, 256], "qf": [2048, 2048]}}
    assert run.constructor["learning_rate"](0.3) == 1e-3
    assert run.hyperparams["policy_kwargs"].startswith("dict("), "the file's own words are recorded"
    run.close()


def test_evaluation_is_ten_separate_episodes_from_fixed_seeds():
    run = single_run.Run(replace(SAC, eval_episodes=3))
    model = run.new_model()
    for _ in range(2):  # the second time from the same initial states
        returns, lengths = single_run.evaluate(model, run.eval_env, EVAL_SEED)
    expected = []
    for index in range(3):
        env = gym.make("Pendulum-v1")
        observation, _ = env.reset(seed=EVAL_SEED + index)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        expected.append(total)
    assert lengths == [200, 200, 200]
    np.testing.assert_allclose(returns, expected, rtol=1e-3)
    assert len(set(returns)) == 3
    run.close()


def test_run_leaves_one_complete_file_and_is_not_repeated(tmp_path):
    assert train(SAC, tmp_path) == "finished"
    header, rows = result_of(SAC, tmp_path)
    assert header["status"] == "finished"
    assert json.loads(header["hyperparameters"])["batch_size"] == 16
    assert [int(row["env_step"]) for row in rows] == [0, 50, 100, 120]
    # One update behind every step after the 60 random ones
    assert [int(row["updates"]) for row in rows] == [0, 0, 40, 60]
    for row in rows:
        assert float(row["return_mean"]) == pytest.approx((float(row["return_0"]) + float(row["return_1"])) / 2, abs=0.01)
    assert str(Path.home()) not in str(header)
    assert str(tmp_path) not in str(header)

    before = (tmp_path / "results" / f"{SAC.name}.csv").stat().st_mtime_ns
    assert train(SAC, tmp_path) == "skipped"
    assert (tmp_path / "results" / f"{SAC.name}.csv").stat().st_mtime_ns == before

    with pytest.raises(ValueError, match="--label"):
        train(replace(SAC, hyperparams=SMALL | {"gamma": 0.5}), tmp_path)
    # More steps add to what there is
    assert train(replace(SAC, steps=160), tmp_path) == "finished"
    header, rows = result_of(SAC, tmp_path)
    assert [int(row["env_step"]) for row in rows] == [0, 50, 100, 120, 150, 160]
    assert header["resumed_at"] == "[120]"


def test_measuring_does_not_change_the_run(tmp_path):
    for every, checkpoint in ((120, "600s"), (10, "15")):
        train(replace(SAC, label=f"every{every}", eval_every=every, checkpoint_every=checkpoint), tmp_path)
    seldom, often = (result_of(replace(SAC, label=f"every{every}"), tmp_path)[1][-1] for every in (120, 10))
    assert seldom["return_0"] == often["return_0"]
    assert seldom["train/critic_loss"] == often["train/critic_loss"]


def test_stopped_run_goes_on_from_its_checkpoint(tmp_path):
    def stop_at_50(text):
        if "50/120" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(SAC, tmp_path, say=stop_at_50) == "stopped"
    header, rows = result_of(SAC, tmp_path)
    assert header["status"] == "stopped"
    stopped_at = int(single_run.latest_checkpoint(tmp_path / "runs" / SAC.name).stem.split("_")[1])
    assert 50 <= stopped_at <= 51

    assert train(SAC, tmp_path) == "finished"
    header, more = result_of(SAC, tmp_path)
    assert header["resumed_at"] == f"[{stopped_at}]"
    for before, after in zip(rows, more, strict=False):
        assert before.items() <= after.items(), "what was measured before is kept"
    assert [int(row["env_step"]) for row in more] == [0, 50, 100, 120]
    assert int(more[-1]["updates"]) == 60
    clocks = [float(row["cpu_s"]) for row in more]
    assert clocks == sorted(clocks)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(SAC, tmp_path)
    (tmp_path / "results" / f"{SAC.name}.csv").unlink()  # the settings are known from the checkpoint alone
    other = replace(SAC, hyperparams=SAC.hyperparams | {"gamma": 0.5})
    with pytest.raises(ValueError, match="other hyperparameters"):
        train(other, tmp_path)
    assert train(SAC, tmp_path) == "finished"


def test_two_processes_cannot_make_the_same_run(tmp_path):
    import fcntl

    folder = tmp_path / "runs" / SAC.name
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another process"):
            train(SAC, tmp_path)


def test_failure_is_written_down(tmp_path, monkeypatch):
    def fail(*_):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr(single_run, "evaluate", fail)
    with pytest.raises(FloatingPointError):
        train(SAC, tmp_path)
    header, _ = result_of(SAC, tmp_path)
    assert (header["status"], header["error"]) == ("failed", "FloatingPointError: the loss is NaN")


# -- Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        SAC,
        MAAC,
        replace(SAC, label="vec", hyperparams=SMALL | {"normalize": True, "n_envs": 2}),
    ],
    ids=lambda job: job.name,
)
def test_checkpoint_brings_back_every_part(job, tmp_path):
    run, again = single_run.Run(job), single_run.Run(job)
    model = run.new_model()
    model.learn(job.steps, log_interval=None)
    path = single_run.save_checkpoint(tmp_path, model, {"rows": [1]})
    assert path.stat().st_size < 1_000_000, "a buffer for a million transitions is not written in full"

    def draws(from_model, env):
        """What the run would do next: exploration, environment, world model, buffers, optimisers, updates."""
        from_model.train(gradient_steps=3, batch_size=16)
        numbers = [parameter.detach().numpy().ravel().copy() for parameter in from_model.policy.parameters()]
        numbers += [generator.random(2) for generator in single_run.env_generators(env)]
        numbers += [from_model.action_space.sample(), np.random.random(2), th.rand(2).numpy()]  # noqa: NPY002
        if from_model.get_vec_normalize_env() is not None:
            numbers += [from_model.get_vec_normalize_env().obs_rms.mean]
        return np.concatenate(numbers)

    expected = draws(model, run.env)
    loaded, measurements = single_run.load_checkpoint(path, again.env)
    assert loaded.replay_buffer.observations.shape == model.replay_buffer.observations.shape
    assert loaded.get_env() is again.env
    assert measurements == {"rows": [1]}
    if job.algo == "maac":
        assert len(loaded.imaginary_buffer) == len(model.imaginary_buffer) > 0
        assert loaded.real_data._source is loaded.replay_buffer, "else the model's holdout would be drawn anew"
    np.testing.assert_array_equal(draws(loaded, again.env), expected)
    run.close()
    again.close()


def test_half_written_checkpoint_is_never_used(tmp_path, monkeypatch):
    run = single_run.Run(SAC)
    model = run.new_model()
    complete = single_run.save_checkpoint(tmp_path, model, {})

    class Killed(pickle.Pickler):
        def __init__(self, file, env):
            super().__init__(file)
            self.out = file

        def dump(self, state):
            self.out.write(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(single_run, "CheckpointPickler", Killed)
    model.num_timesteps = 99
    with pytest.raises(KeyboardInterrupt):
        single_run.save_checkpoint(tmp_path, model, {})
    assert single_run.latest_checkpoint(tmp_path) == complete
    assert single_run.load_checkpoint(complete, run.env)[0].num_timesteps == 0
    run.close()


# -- Several runs ---------------------------------------------------------------------------------------------------------


def test_machines_share_a_queue_without_doing_anything_twice(tmp_path):
    jobs = [replace(SAC, seed=seed) for seed in range(4)]
    storage = str(tmp_path / "journal.log")
    queues = [learning.SharedQueue(storage, jobs) for _ in range(2)]
    tickets = [queue.take() for queue in (queues[0], queues[1], queues[1], queues[0])]
    assert sorted(ticket.job.seed for ticket in tickets) == [0, 1, 2, 3]
    assert queues[0].take() is None
    assert queues[1].take() is None

    queues[0].give_back(tickets[0], 0)
    queues[1].give_back(tickets[1], learning.STOPPED)
    queues[1].give_back(tickets[2], 1)
    # A stopped job waits again, a failed one only when somebody asks for it again, the others are done or under way
    assert queues[0].take().job == tickets[1].job
    assert queues[0].take() is None
    later = learning.SharedQueue(storage, jobs)
    assert later.take().job == tickets[2].job
    assert later.take() is None
    # The machines that hold three jobs are gone
    rescue = learning.SharedQueue(storage, [], retry=True)
    assert sorted(rescue.take().job.seed for _ in range(3)) == sorted({0, 1, 2, 3} - {tickets[0].job.seed})


def test_a_configuration_inside_the_checkout_has_the_same_name_on_every_machine(tmp_path):
    command = ["--algo", "maac", "--env", "Hopper-v4", "--steps", "10", "--seeds", "0", "--conf-file"]
    (job,) = learning.make_jobs(learning.parse_arguments([*command, str(learning.ROOT / "hyperparams/paper/maac.yml")]))
    assert job.conf_file == "hyperparams/paper/maac.yml"
    assert single_run.config_file(job) == learning.ROOT / job.conf_file
    elsewhere = tmp_path / "mine.yml"
    elsewhere.write_text("{}")
    (job,) = learning.make_jobs(learning.parse_arguments([*command, str(elsewhere)]))
    assert single_run.config_file(job) == elsewhere


def test_a_run_that_is_stopped_before_it_trains_waits_again():
    given_back = []

    class Queue(learning.LocalQueue):
        def give_back(self, ticket, exit_status):
            given_back.append(exit_status)

    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    learning.work(Queue([SAC]), 1, lambda job: [sys.executable, "-c", code])
    assert given_back == [learning.STOPPED]


def test_each_run_is_a_process_with_one_thread(tmp_path, capsys):
    code = "import os, sys; open(sys.argv[2], 'w').write(os.environ['OMP_NUM_THREADS']); sys.exit(int(sys.argv[1]) * 3)"
    jobs = [replace(SAC, seed=seed) for seed in (0, 1)]

    def command(job):
        return [sys.executable, "-c", code, str(job.seed), str(tmp_path / f"threads{job.seed}")]

    unfinished = learning.work(learning.LocalQueue(jobs), 2, command)
    out = capsys.readouterr().out
    assert unfinished == 1
    assert [(tmp_path / f"threads{seed}").read_text() for seed in (0, 1)] == ["1", "1"]
    assert "Pendulum-v1_sac_s0: done" in out
    assert "Pendulum-v1_sac_s1: stopped" in out


# -- Report ---------------------------------------------------------------------------------------------------------------


def make_result(algo, seed, returns, env="Hopper-v4", every=10_000, label=""):
    header = {"env": env, "algo": algo, "label": label, "seed": str(seed), "resumed_at": "[]", "git_commit": "abc"}
    header |= {"machine": "a machine", "command": f"python benchmarks/learning.py --seeds {seed}"}
    steps = np.arange(len(returns)) * every
    columns = {"env_step": steps, "return_mean": np.array(returns, dtype=float), "updates": steps, "cpu_s": steps / 100}
    columns |= {name: steps / 100 for name in ("wall_s", "eval_wall_s", "eval_cpu_s")}
    return report.Result(f"{algo}{seed}.csv", header, columns)


def test_interquartile_mean_against_scipy():
    scores = np.random.default_rng(0).normal(size=(7, 3, 4))
    expected = [scipy.stats.trim_mean(scores[..., point], 0.25, axis=None) for point in range(4)]
    np.testing.assert_allclose(report.interquartile_mean(scores), expected)


def test_interval_of_three_seeds_is_worst_to_best():
    # Of the 27 resamples one repeats the worst seed three times: 3.7 % is more than the tail of 2.5 %
    np.testing.assert_allclose(report._bootstrap(np.array([[[1.0]], [[5.0]], [[2.0]]]), report.interquartile_mean), [[1], [5]])


def test_interval_against_all_resamples():
    scores = np.array([0.0, 1.0, 4.0, 9.0, 16.0])
    means = [np.mean(resample) for resample in itertools.product(scores, repeat=5)]
    expected = np.percentile(means, [2.5, 97.5])
    found = report._bootstrap(scores[:, None, None], lambda sample: sample.mean(axis=(0, 1)))[:, 0]
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_interval_is_that_of_rliable():
    try:
        import rliable.library  # noqa: F401
    except Exception as error:
        pytest.skip(f"rliable cannot be imported: {error}")
    scores = np.random.default_rng(1).normal(size=(4, 2, 3))
    np.testing.assert_array_equal(
        report._bootstrap_rliable(scores, report.interquartile_mean), report._bootstrap(scores, report.interquartile_mean)
    )


def test_profile_by_hand():
    scores = np.array([[0.1, 0.9], [0.5, 1.5]])
    np.testing.assert_allclose(report.profile(scores, np.array([0.0, 0.5, 1.0, 2.0])), [1, 0.5, 0.25, 0])


def test_goal_needs_the_return_and_every_later_evaluation_above_the_baselines():
    task = report.TASKS["Hopper-v4"]
    ours = [make_result("maac", seed, [0, 400, 2000, 3100 + seed]) for seed in range(3)]
    sac = [make_result("sac", seed, [0, 300, 2500, 900]) for seed in range(3)]
    crossq = [make_result("crossq", seed, [50, 300, 1000, 900]) for seed in range(3)]
    row = report.goal_row("Hopper-v4", task, report.grouped([*ours, *sac, *crossq], "Hopper-v4"))
    assert row[2:4] == ["MAAC", "3101 (3 seeds)"]
    assert row[4] == "return: reached; **above SAC at 2 of 3 evaluations**; above CrossQ at 3 of 3 evaluations"
    worse = [make_result("maac", seed, [0, 400, 2000, 2800]) for seed in range(3)]
    row = report.goal_row("Hopper-v4", task, report.grouped([*worse, *sac], "Hopper-v4"))
    assert row[4].startswith("return: **not reached**")
    assert row[4].endswith("CrossQ: not run")
    # One lucky seed is not the best of ours
    lucky = [*worse, make_result("memb", 0, [0, 400, 2000, 3500])]
    assert report.goal_row("Hopper-v4", task, report.grouped(lucky, "Hopper-v4"))[2:4] == ["MAAC", "2800 (3 seeds)"]
    pendulum = report.TASKS["InvertedPendulum-v4"]
    two_of_three = [make_result("memb", seed, [9, 1000 - (seed == 1)], "InvertedPendulum-v4", 5000) for seed in range(3)]
    row = report.goal_row("InvertedPendulum-v4", pendulum, report.grouped(two_of_three, "InvertedPendulum-v4"))
    assert row[3:] == ["worst seed 999 (3 seeds)", "return: **not reached**"]


def test_page_keeps_its_words_and_leaves_out_what_is_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "choose_bootstrap", lambda: report._bootstrap)
    (tmp_path / "results").mkdir()
    evaluation = {"seeds_from": EVAL_SEED}
    for seed, status, seeds_from in ((0, "finished", EVAL_SEED), (1, "running", EVAL_SEED), (2, "finished", 5)):
        header = make_result("sac", seed, [0]).header | {"status": status}
        header["evaluation"] = json.dumps(evaluation | {"seeds_from": seeds_from})
        rows = [
            {
                "env_step": step,
                "return_mean": 10.0 * step + seed,
                "cpu_s": step,
                "wall_s": step,
                "eval_wall_s": 0,
                "eval_cpu_s": 0,
            }
            | {"updates": step}
            for step in (0, 10_000, 30_000)
        ]
        write_csv(tmp_path / "results" / f"sac{seed}.csv", header, rows)
    page = tmp_path / "docs" / "benchmark.md"
    arguments = ["--results", str(tmp_path / "results"), "--page", str(page)]
    report.main(arguments)
    page.write_text(page.read_text().replace("## Goals", "## Goals\n\nWhat we conclude."))
    report.main(arguments)
    text = page.read_text()
    assert "What we conclude." in text
    assert "| SAC | 1 | 100000 | – | 300000 | 300000 | 500.0 | 1 |" in text
    assert "sac1.csv: running" in text
    assert "sac2.csv: measured on other evaluation seeds" in text
    assert {path.name for path in (tmp_path / "docs" / "images").iterdir()} == {
        "benchmark_Hopper-v4.png",
        "benchmark_profiles.png",
    }


# -- Evidence -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminated", [True, False])
def test_soft_returns_against_the_sum(terminated):
    rng = np.random.default_rng(0)
    rewards, log_probs, gamma, alpha, last = rng.normal(size=5), rng.normal(size=5), 0.9, 0.3, 7.0
    nothing = np.zeros(0)
    episode = evidence.Episode(nothing, nothing, nothing, log_probs, rewards, rewards, terminated)
    expected = []
    for start in range(5):
        total = sum(gamma ** (t - start) * rewards[t] for t in range(start, 5))
        total -= alpha * sum(gamma ** (t - start) * log_probs[t] for t in range(start + 1, 5))
        expected.append(total + (0 if terminated else gamma ** (5 - start) * last))
    np.testing.assert_allclose(evidence.soft_returns(episode, gamma, alpha, last), expected)


def test_evidence_of_a_run(tmp_path):
    # With the entry's discount no step of an episode of 200 sees enough of its return
    job = replace(MAAC, steps=130, hyperparams=MAAC.hyperparams | {"gamma": 0.99})
    train(job, tmp_path)
    path = evidence.measure(job.name, tmp_path / "results", tmp_path / "runs", episodes=2)
    header, rows = read_csv(path)
    values = {(row["quantity"], row["k"]): float(row["value"]) for row in rows}
    assert header["env_step"] == "130"
    assert values["value_bias", ""] == pytest.approx(values["value", ""] - values["return", ""], rel=1e-3)
    # Untrained critics are near 0, returns are far below
    assert values["value_bias_share", ""] > 0.5
    assert values["model_error_no_change", "1"] < values["model_error_no_change", "5"]
    assert 0 < values["model_error", "1"] < values["model_error", "10"]
    assert {int(k) for quantity, k in values if quantity == "state_distance"} == set(evidence.HORIZONS)


def test_model_error_of_a_perfect_model_is_zero():
    """A model that is the environment: x' = x + a, and a policy that always does what was done."""

    class Perfect:
        device = "cpu"

        class world_model:
            @staticmethod
            def step(states, actions):
                return evidence.argparse.Namespace(
                    next_observations=states + actions, rewards=actions[:, 0], terminated=th.zeros(len(states))
                )

        @staticmethod
        def _policy_fn(states, step):
            return th.full_like(states, 0.5), None

    def episode(start):
        states = start + 0.5 * np.arange(31)[:, None]
        actions = np.full((30, 1), 0.5)
        return evidence.Episode(states, states, actions, np.zeros(30), actions[:, 0], actions[:, 0], False)

    rows = evidence.model_errors(Perfect, [episode(0.0), episode(3.0)], np.random.default_rng(0))
    values = {(row["quantity"], row["k"]): row["value"] for row in rows}
    std = np.concatenate([episode(0.0).observations, episode(3.0).observations]).std()
    for k in evidence.HORIZONS:
        assert values["model_error", k] == pytest.approx(0, abs=1e-5)
        assert values["state_distance", k] == pytest.approx(0, abs=1e-5)
        assert values["model_error_no_change", k] == pytest.approx(0.5 * k / std)


# -- Figures of the papers ------------------------------------------------------------------------------------------------


def test_figure_scripts_train_with_the_settings_of_the_zoo(tmp_path):
    small = ["learning_starts=60", "batch_size=16", "model_gradient_steps=5", "model_net_arch=[8]"]
    overrides = [word for text in small for word in ("--override", text)]
    folders = ["--results", str(tmp_path), "--images", str(tmp_path)]
    memb_figures.main(
        ["--only", "true_model", "expansion2", "svg1", "--seeds", "0", "--steps", "80", "--interval", "40", "--episodes", "1"]
        + overrides
        + folders
    )
    header, rows = read_csv(tmp_path / "memb_figures_expansion2_s0.csv")
    assert "critic_layer_norm" in header["settings"]
    assert "SiLU" in header["settings"]
    assert [int(row["env_step"]) for row in rows] == [40, 80]
    assert rows[0]["w1_state"] == ""  # before the first fit
    dimensions = [float(rows[1][f"w1_{i}"]) for i in range(3)]
    # The file has six digits
    assert float(rows[1]["w1_state"]) == pytest.approx(np.mean(dimensions), rel=2e-5)
    # A true model is never fitted
    assert read_csv(tmp_path / "memb_figures_true_model_s0.csv")[1][1]["w1_state"] == ""
    svg1 = read_csv(tmp_path / "memb_figures_svg1_s0.csv")[0]["settings"]
    assert "'imagination_horizon': 1" in svg1  # SVG(1) refuses the entry's longer horizon
    assert (tmp_path / "memb_figures.png").exists()


def test_mpdps_figure_script(tmp_path):
    small = ["learning_starts=250", "batch_size=16", "model_gradient_steps=5", "model_net_arch=[8]", "gradient_steps=1"]
    overrides = [word for text in small for word in ("--override", text)]
    folders = ["--results", str(tmp_path), "--images", str(tmp_path)]
    mpdp_figures.main(["--only", "beta0.5", "--seeds", "0", "--steps", "500", "--episodes", "1", *overrides, *folders])
    header, rows = read_csv(tmp_path / "mpdp_figures_beta0.5_s0.csv")
    assert [int(row["env_step"]) for row in rows] == [250, 500]
    # 250 transitions that the model has not seen, after its first fit
    assert rows[0]["visited_error"] == ""
    assert float(rows[1]["visited_error"]) > 0
    assert 0 <= float(rows[1]["horizon_mean"]) <= float(rows[1]["horizon_max"]) <= 5
    assert "critic_layer_norm" in header["settings"]
    assert "--override gradient_steps=1" in header["command"]
    assert (tmp_path / "mpdp_figures.png").exists()
