"""Capturing updates: what a CPU can test with a stand-in for the graph, and, where there is a GPU, the same numbers."""

import pickle
from contextlib import contextmanager, nullcontext

import pytest
import torch as th

from sb3_modelbased import MAAC, MEMB, MPDP
from sb3_modelbased.common.cuda_graph import WARMUP_CALLS, GraphedCall, prepare_optimizers, set_learning_rate


class RecordedGraph:
    """A graph that counts what is done with it."""

    replays = 0
    captures = 0

    def __reduce__(self):
        raise TypeError("cannot pickle 'CUDAGraph' object")

    def replay(self):
        RecordedGraph.replays += 1


@pytest.fixture
def recorded(monkeypatch):
    RecordedGraph.replays = RecordedGraph.captures = 0

    @contextmanager
    def capture(graph):
        RecordedGraph.captures += 1
        yield

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(th.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(th.cuda, "graph", capture)
    monkeypatch.setattr(th.cuda, "Stream", Stream)
    monkeypatch.setattr(th.cuda, "current_stream", Stream)
    monkeypatch.setattr(th.cuda, "stream", lambda stream: nullcontext())
    return RecordedGraph


def test_each_call_counts_once(recorded):
    ran = []
    call = GraphedCall(lambda: ran.append(1), lambda: 0)
    for _ in range(WARMUP_CALLS):
        call()
    assert (len(ran), recorded.captures, recorded.replays) == (WARMUP_CALLS, 0, 0)
    call()  # the capture runs the Python of the function, the replay is what does the work
    assert (len(ran), recorded.captures, recorded.replays) == (WARMUP_CALLS + 1, 1, 1)
    for _ in range(5):
        call()
    assert (len(ran), recorded.captures, recorded.replays) == (WARMUP_CALLS + 1, 1, 6)


def test_moved_tensors_are_captured_anew(recorded):
    addresses = [0]
    call = GraphedCall(lambda: None, lambda: addresses[0])
    for _ in range(WARMUP_CALLS + 2):
        call()
    addresses[0] = 1
    for _ in range(WARMUP_CALLS + 2):
        call()
    assert (recorded.captures, recorded.replays) == (2, 4)


def test_other_arguments_are_captured_anew(recorded):
    ran = []
    call = GraphedCall(ran.append, lambda: 0)
    for size in (16, 64):
        for _ in range(WARMUP_CALLS + 2):
            call(size)
    assert ran == [16] * (WARMUP_CALLS + 1) + [64] * (WARMUP_CALLS + 1)
    assert (recorded.captures, recorded.replays) == (2, 4)


def test_a_copy_is_captured_anew(recorded):
    call = GraphedCall(int, int)
    for _ in range(WARMUP_CALLS + 1):
        call()
    again = pickle.loads(pickle.dumps(call))
    again()
    assert (recorded.captures, recorded.replays) == (1, 1)
    for _ in range(WARMUP_CALLS):
        again()
    assert (recorded.captures, recorded.replays) == (2, 2)


def test_function_that_cannot_be_captured_runs_eagerly(recorded, monkeypatch):
    @contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(th.cuda, "graph", refuse)
    streams = []
    monkeypatch.setattr(th.cuda, "set_stream", streams.append)
    ran = []
    call = GraphedCall(lambda: ran.append(1), lambda: 0)
    for _ in range(WARMUP_CALLS):
        call()
    with pytest.warns(UserWarning, match="could not be captured"):
        call()
    call()
    assert len(ran) == WARMUP_CALLS + 2
    assert recorded.replays == 0
    assert len(streams) == 1  # the stream that the capture left is current again


def test_learning_rate_moves_into_a_tensor_and_back():
    parameter = th.nn.Parameter(th.ones(2))
    optimizer = th.optim.Adam([parameter], lr=1e-3, fused=True)
    prepare_optimizers([optimizer], captured=True)
    rate = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 5e-4)
    assert optimizer.param_groups[0]["lr"] is rate  # a captured step reads it there
    assert rate.item() == pytest.approx(5e-4)
    parameter.grad = th.ones(2)
    optimizer.step()  # refused on a CPU where it is capturable
    assert th.allclose(parameter, th.full((2,), 1 - 5e-4))

    prepare_optimizers([optimizer], captured=False)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    assert isinstance(optimizer.param_groups[0]["lr"], float)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (MAAC, {"horizon": 2, "on_policy_critic": True}),
        (MAAC, {"horizon": 2}),  # STEVE
        (MAAC, {"horizon": 0, "steve": False}),
        (MEMB, {"gradient_steps": 1}),
        (MEMB, {"gradient_steps": 1, "value_expansion_horizon": 3, "true_model": "gymnasium"}),
        (MPDP, {"horizon": 3}),  # only its model's fits are graphs
    ],
)
def test_graph_and_eager_updates_give_the_same_numbers(algorithm, arguments):
    def trained(cuda_graphs):
        small = {"learning_starts": 64, "batch_size": 32, "buffer_size": 1000, "model_net_arch": [9]}
        agent = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cuda", cuda_graphs=cuda_graphs, **small, **arguments)
        agent.learn(100)
        return {f"{part}.{name}": value for part in ("policy", "world_model")
                for name, value in agent.get_parameters()[part].items() if value.is_floating_point()}  # fmt: skip

    eager, graphed = trained(False), trained(True)
    assert len(eager) > 10
    for name, value in eager.items():
        assert th.allclose(value, graphed[name], rtol=1e-3, atol=1e-4), name
