"""Compiled updates: the same numbers as eager ones, call by call."""

import pickle
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_modelbased import MAAC, MEMB, MPDP, SVG1
from sb3_modelbased.common.compiled_call import CompiledCall, record
from sb3_modelbased.common.cuda_graph import prepare_optimizers, set_learning_rate

# torch's compiler imports what torch calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")


class Batch(NamedTuple):
    """What :class:`Regression` learns from."""

    inputs: th.Tensor
    absent: None
    targets: th.Tensor


class Regression:
    """A network, its optimiser and a running sum: what an update has, in small."""

    def __init__(self, factor: float = 1.0) -> None:
        th.manual_seed(0)
        self.factor = factor
        self.network = th.nn.Sequential(th.nn.Linear(3, 5), th.nn.ReLU(inplace=True), th.nn.Linear(5, 1))
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=1e-2, fused=True)
        prepare_optimizers([self.optimizer], captured=True)
        self.total = th.zeros(())
        self.ran = 0

    def update(self, batch: Batch) -> None:
        """A gradient step on noisy inputs."""
        assert batch.absent is None
        self.ran += 1
        outputs = self.network(batch.inputs + 0.1 * th.randn_like(batch.inputs))
        loss = self.factor * (outputs - batch.targets).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        # After the step: the values of now
        self.total += self.network(batch.inputs).detach().mean()

    def numbers(self) -> list[th.Tensor]:
        """Everything that an update changes."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [self.total, *self.network.state_dict().values(), *moments]

    def steps(self) -> float:
        """How often the optimiser stepped."""
        return self.optimizer.state[self.network[0].weight]["step"].item()


def batches(n, rows=4):
    generator = th.Generator().manual_seed(1)
    return [Batch(th.randn(rows, 3, generator=generator), None, th.randn(rows, 1, generator=generator)) for _ in range(n)]


@pytest.fixture
def uncompiled(monkeypatch):
    """What was recorded runs as it is, without a compiler."""
    compiled = []
    monkeypatch.setattr(th, "compile", lambda function, **_: compiled.append(function) or function)
    return compiled


def assert_same(some, others, **tolerance):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert th.allclose(one, other, **tolerance)


def check_five_calls(**tolerance):
    eager, compiled = Regression(), Regression()
    call = CompiledCall(compiled.update)
    for index, batch in enumerate(batches(5)):
        for regression, run in ((eager, eager.update), (compiled, call)):
            set_learning_rate(regression.optimizer, 0.01 / (index + 1))
            th.manual_seed(index)
            run(batch)
        assert_same(eager.numbers(), compiled.numbers(), **tolerance)
    assert (eager.ran, compiled.ran) == (5, 2)  # eagerly, and to be recorded


def test_every_call_counts_and_gives_the_eager_numbers(uncompiled):
    check_five_calls(rtol=0, atol=0)
    # In front of the optimiser's step and behind it
    assert len(uncompiled) == 2


def test_compiled_calls_give_the_eager_numbers():
    check_five_calls(rtol=1e-5, atol=1e-6)


def test_compiled_calls_of_one_process_are_told_apart():
    regressions = [Regression(factor) for factor in (0.5, 2.0)]
    calls = [CompiledCall(regression.update) for regression in regressions]
    expected = [Regression(factor) for factor in (0.5, 2.0)]
    for batch in batches(4):
        for call, other in zip(calls, expected, strict=True):
            for run in (call, other.update):
                th.manual_seed(0)
                run(batch)
    for regression, other in zip(regressions, expected, strict=True):
        assert_same(regression.numbers(), other.numbers(), rtol=1e-5, atol=1e-6)


def test_what_was_recorded_reads_the_values_of_now(uncompiled):
    regression = Regression()
    first, second = batches(2)
    regression.update(first)
    graph, others = record(regression.update, second)
    assert not list(graph.graph.find_nodes(op="get_attr"))
    tensors = {other.data_ptr() for other in others}
    assert {value.data_ptr() for value in regression.numbers()} <= tensors


def test_other_shapes_are_recorded_anew(uncompiled):
    regression = Regression()
    call = CompiledCall(regression.update)
    for rows in (4, 7):
        for batch in batches(4, rows):
            call(batch)
    assert regression.ran == 4
    assert regression.steps() == 8


def test_a_copy_is_recorded_anew(uncompiled):
    call = CompiledCall(Regression().update)
    for batch in batches(3):
        call(batch)
    again = pickle.loads(pickle.dumps(call))
    for batch in batches(3):
        again(batch)
    regression = again.function.__self__
    assert regression is not call.function.__self__
    assert regression.ran == 4
    assert regression.steps() == 6


def test_other_strides_are_recorded_anew(uncompiled):
    regression = Regression()
    call = CompiledCall(regression.update)
    strided = [batch._replace(inputs=batch.inputs.T.contiguous().T) for batch in batches(3)]
    for batch in (*batches(3), *strided):
        call(batch)
    assert regression.ran == 4


FLAG = th.ones(())


@pytest.mark.parametrize(
    "read",
    [
        lambda batch: bool(batch.inputs.sum() > 1e9),
        lambda batch: batch.inputs.sum().item(),
        lambda batch: batch.inputs.tolist(),
        lambda batch: batch.inputs.numpy(),
        lambda batch: np.abs(batch.inputs.detach().numpy()),
        lambda batch: np.asarray(batch.inputs),
        lambda batch: th.equal(batch.inputs, batch.inputs),
        lambda batch: FLAG.item(),  # no part of the batch, and it may change all the same
        lambda batch: bool(FLAG),
        lambda batch: float(FLAG),
    ],
)
def test_what_reads_values_runs_eagerly(read, uncompiled):
    regression = Regression()

    def function(batch):
        read(batch)
        regression.update(batch)

    check_eager_fallback(regression, function, match="ValueReadError")
    assert not uncompiled


def test_what_cannot_be_compiled_runs_eagerly(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(th, "compile", lambda *args, **kwargs: fail)
    regression = Regression()
    check_eager_fallback(regression, regression.update, match="no compiler")


def check_eager_fallback(regression, function, match):
    call = CompiledCall(function)

    def call_five_times():
        for batch in batches(5):
            call(batch)

    with pytest.warns(UserWarning, match=match) as warned:
        call_five_times()
    assert len(warned) == 1
    # One call may have been recorded before it failed
    assert regression.ran in (5, 6)
    assert regression.steps() == 5  # each call once


UPDATES = [
    (MAAC, {"horizon": 2, "on_policy_critic": True, "critic_batch_size": 20}),
    (MAAC, {"horizon": 2, "model_bfloat16": True}),  # STEVE
    (MAAC, {"horizon": 0, "steve": False, "ent_coef": 0.1}),
    (MEMB, {"reward_net_arch": None, "policy_kwargs": {"critic_layer_norm": True, "critic_dropout": 0.1}}),
    (MEMB, {"value_expansion_horizon": 3, "true_model": "gymnasium", "policy_kwargs": {"activation_fn": th.nn.ReLU}}),
    (SVG1, {}),
    (MPDP, {"horizon": 3}),  # only its model's fits are compiled
]


def trained(algorithm, compile_updates, arguments, n_steps=120):
    """
    :return: networks and counts after some updates, of which one fit precedes all
    """
    small = {"learning_starts": 90, "batch_size": 32, "gradient_steps": 1, "buffer_size": 1000}
    # Learning rates that a float32 holds as they are: compiled code reads them from one
    small |= dict.fromkeys(("learning_rate", "model_learning_rate"), 2.0**-10) | {"value_learning_rate": None}
    small |= {"model_net_arch": [9], "ensemble_size": 3, "n_elites": 2, "model_batch_size": 16, "model_gradient_steps": 20}
    agent = algorithm("MlpPolicy", "Pendulum-v1", seed=0, compile_updates=compile_updates, **{**small, **arguments})
    agent.learn(n_steps)
    return agent


def numbers(agent):
    return [value for part in ("policy", "world_model") for value in agent.get_parameters()[part].values()]


@pytest.mark.parametrize(("algorithm", "arguments"), UPDATES)
def test_recorded_updates_give_the_eager_numbers(algorithm, arguments, uncompiled):
    eager = trained(algorithm, False, arguments)
    assert not uncompiled
    recorded = trained(algorithm, True, arguments)
    assert uncompiled
    assert recorded._n_updates == eager._n_updates > 10
    assert_same(numbers(eager), numbers(recorded), rtol=0, atol=0)
    assert recorded.metrics.means() == eager.metrics.means()


def test_compiled_updates_give_the_eager_numbers():
    eager, compiled = trained(MEMB, False, {}), trained(MEMB, True, {})
    assert compiled._captured_update._compiled is not None
    assert compiled.model_trainer._captured_step.call._compiled is not None
    assert_same(numbers(eager), numbers(compiled), rtol=1e-3, atol=1e-4)


def test_gsde_runs_eagerly(uncompiled):
    agent = trained(MEMB, True, {"use_sde": True, "true_model": "gymnasium"})
    assert agent._captured_update is None
    assert not uncompiled


def test_learning_goes_on_after_loading(uncompiled, tmp_path):
    agent = trained(MEMB, True, {})
    agent.save(tmp_path / "agent")
    loaded = MEMB.load(tmp_path / "agent", env=gym.make("Pendulum-v1"))
    assert loaded.compile_updates
    assert_same(numbers(agent), numbers(loaded), rtol=0, atol=0)
    before = len(uncompiled)
    loaded.learn(120)
    assert len(uncompiled) > before
    # ... and without, with learning rates that are numbers again
    eager = MEMB.load(tmp_path / "agent", env=gym.make("Pendulum-v1"), compile_updates=False)
    eager.learn(120)
    assert isinstance(eager.actor.optimizer.param_groups[0]["lr"], float)


def test_learning_rates_follow_their_schedule(uncompiled):
    agent = trained(MEMB, True, {"learning_rate": lambda progress: 1e-3 * progress, "value_learning_rate": None})
    rate = agent.actor.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, th.Tensor)
    assert rate.item() == pytest.approx(1e-3 * agent._current_progress_remaining, abs=1e-9)


def test_a_reward_function_that_leaves_torch_gives_the_eager_numbers(uncompiled):
    def reward_fn(observations, actions, next_observations):
        return th.as_tensor(np.abs(next_observations.detach().numpy()[..., 0])) - actions[..., 0].square()

    # With a learned entropy coefficient, this would be updated once more in the update that broke off
    arguments = {"horizon": 2, "on_policy_critic": True, "ent_coef": 0.1, "reward_fn": reward_fn}
    eager = trained(MAAC, False, arguments)
    with pytest.warns(UserWarning, match="reward_fn"):
        recorded = trained(MAAC, True, arguments)
    assert_same(numbers(eager), numbers(recorded), rtol=0, atol=0)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}},
        {"optimizer_kwargs": {"foreach": True}},
        {"optimizer_kwargs": {"eps": 1e-5}},
    ],
)
def test_optimisers_that_keep_their_learning_rate_are_refused(policy_kwargs):
    with pytest.raises(ValueError, match="fused=True"):
        MEMB("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, compile_updates=True)
    MEMB("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)
    # Its updates are not compiled
    MPDP("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, compile_updates=True)


def test_switched_off_and_on_again(uncompiled):
    def learned(*switches):
        falling = {"learning_rate": lambda progress: 2.0**-10 if progress > 0.5 else 2.0**-12}
        agent = trained(MEMB, switches[0], falling, n_steps=100)
        for compile_updates in switches[1:]:
            agent.compile_updates = agent.model_trainer.compiled = compile_updates
            agent.learn(20, reset_num_timesteps=False)
            assert (agent._captured_update is not None) == compile_updates
        return agent

    assert_same(numbers(learned(False, False, False)), numbers(learned(True, False, True)), rtol=0, atol=0)
