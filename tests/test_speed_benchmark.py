"""The speed benchmark's operations against layer sizes, its parts against their sum, and its files."""

import csv
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch as th

from sb3_modelbased import MAAC, MEMB, MPDP
from sb3_modelbased.common.ensemble import EnsembleMLP

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def speed(monkeypatch):
    """The module of benchmarks/speed.py, small."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("speed", BENCHMARKS / "speed.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "speed", module)
    spec.loader.exec_module(module)
    small = {"STEPS": 4, "LEARNING_STARTS": 20, "DATA_ROWS": 300, "MODEL_STEPS": 2, "MODEL_BATCH": 16, "IMAGINED_ROWS": 100}
    for name, value in {**small, "NET_ARCH": (8, 8)}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_operations_of_a_network(speed):
    members, batch, sizes = 3, 10, (5, 8, 2)
    network = EnsembleMLP(members, 5, 2, (8,))
    flops = speed.count_flops(lambda read: network(th.rand(members, batch, 5)).sum().backward() or read())
    forward = 2 * members * batch * (sizes[0] * sizes[1] + sizes[1] * sizes[2])
    # Backward: as much for the weights, and for the inputs of every layer but the first
    assert flops == 2 * forward + 2 * members * batch * sizes[1] * sizes[2]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (MAAC, {"rollout_freq": 2}),
        (MAAC, {"rollout_freq": 2, "on_policy_critic": True}),
        (MEMB, {}),
        (MPDP, {"uncertainty_threshold": float("inf")}),
    ],
)
def test_parts_make_the_whole(speed, algorithm, arguments):
    agent = algorithm(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=20,
        batch_size=8,
        gradient_steps=1,
        model_net_arch=(8,),
        model_gradient_steps=2,
        model_train_freq=2,
        **arguments,
    )
    agent.learn(22)
    spent = speed.count_flops(lambda read: speed.Meter(agent, read).learn())
    assert spent["batch"] == 0  # reading a batch multiplies nothing
    assert min(spent[part] for part in ("env", "model fit", "critic", "actor")) > 0
    assert (spent["imagination"] > 0) == (algorithm is MAAC)  # of branched rollouts
    assert spent["critic"] + spent["actor"] == spent["updates"]
    assert spent["env"] + spent["model fit"] + spent["imagination"] + spent["updates"] == spent["total"]
    # From outside there is nothing to split
    outside = speed.count_flops(lambda read: speed.Meter(agent, read, inside=False).learn())
    assert outside["critic"] == outside["actor"] == 0 < outside["updates"]


def test_operations_are_counted_without_graphs_and_compiled_code(speed):
    agent = MAAC("MlpPolicy", "Pendulum-v1", device="cpu", compile_updates=True)
    agent.model_trainer.cuda_graphs = True
    assert agent.model_trainer.compiled
    assert speed.is_captured(agent)
    switches = [(agent, "cuda_graphs"), (agent, "compile_updates"), (agent.model_trainer, "cuda_graphs")]
    switches.append((agent.model_trainer, "compiled"))
    with speed.eagerly(agent):
        assert not any(getattr(*switch) for switch in switches)
        assert not speed.is_captured(agent)
    assert all(getattr(*switch) for switch in switches)


def test_files(speed, tmp_path, monkeypatch):
    model = {"model_net_arch": (8,), "model_gradient_steps": 2, "model_train_freq": 4, "rollout_freq": 4}
    monkeypatch.setattr(speed, "SUBJECTS", {speed.BASELINE: ("SAC", {}), "MAAC": ("MAAC", model)})
    monkeypatch.setattr(speed, "AGENT", {"learning_starts": 20, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}})
    threads = th.get_num_threads()
    speed.main(["--rounds", "2", "--env", "Pendulum-v1", "--output", str(tmp_path)])
    th.set_num_threads(threads)
    page, table = (tmp_path / "speed.md").read_text(), (tmp_path / "speed.csv").read_text()
    assert "| imagined rows/s |" in page
    assert "ensemble,ensemble training steps/s over reference," in table
    for subject, parts in ((speed.BASELINE, ("env", "updates")), ("MAAC", speed.PARTS)):
        assert f"| {subject} |" in page
        assert all(f'{subject},"{part}, ms per env step",' in table for part in parts)
    assert f"{speed.BASELINE},updates/s over SAC,1,1,1" in table


def test_cost_of_planning_is_the_ratio_in_each_round(speed):
    results = {
        "SAC (SB3)": ([{"updates": 1.0}, {"updates": 1.0}, {"updates": 1.0}], {}),
        "MAAC, H = 5, one-step targets": ([{"updates": 2.0}, {"updates": 4.0}, {"updates": 8.0}], {}),
        "MPDP, H = 5, nothing stops": ([{"updates": 3.0}, {"updates": 4.0}, {"updates": 16.0}], {}),
    }
    head, rows, records = speed.planning_costs(results)
    assert head == ["an update's time, over that of", "MAAC, H = 5, one-step targets"]
    assert rows == [["MPDP, H = 5, nothing stops", "1.50 (1.25–1.75)"]]
    assert records[0]["median"] == 1.5
    # Nothing to compare with: no table
    assert speed.planning_costs({"MPDP, H = 5, nothing stops": results["MPDP, H = 5, nothing stops"]})[1] == []


@pytest.fixture
def settings(speed):
    """The module of benchmarks/settings.py."""
    spec = importlib.util.spec_from_file_location("settings", BENCHMARKS / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "rate_of_layout", lambda threads, runs, env, steps: 10.0 * threads + runs)
    small = {"learning_starts": 20, "model_net_arch": (8,), "model_gradient_steps": 2}
    monkeypatch.setattr(settings, "zoo_settings", lambda algo, env: small)
    monkeypatch.setattr(settings, "WARM_UP", 2)
    settings.main(["--env", "Pendulum-v1", "--rounds", "1", "--updates", "1", "--output", str(tmp_path)])
    text = (tmp_path / "settings.md").read_text()
    assert "| 1 x 2 thread(s) | 21.0 (21.0–21.0) | 1.91 |" in text
    assert "| 2 x 1 thread(s) | 12.0 (12.0–12.0) | 1.09 |" in text
    with (tmp_path / "settings.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert [row["setting"] for row in rows[3:]] == ["64", "128", "256", "512", "1", "3", "5", "7"]
    milliseconds = {row["setting"]: float(row["median"]) for row in rows if "agent" in row["quantity"]}
    assert 0 < milliseconds["64"] < milliseconds["512"]


def test_the_rate_of_a_run(settings, monkeypatch):
    seconds = iter([10.0, 14.0])
    learned = []
    agent = types.SimpleNamespace(learn=lambda steps, **kwargs: learned.append(steps))
    monkeypatch.setattr(settings, "make_agent", lambda env: agent)
    monkeypatch.setattr(settings.time, "perf_counter", lambda: next(seconds))
    assert settings.env_steps_per_second("Pendulum-v1", 100) == 25.0
    assert learned == [100]
