"""
A whole gradient step as one CUDA graph: hundreds of small kernels are launched by one call, without Python in between.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch as th

# Eager calls on a side stream before the capture, so that lazily made state (optimiser moments, gradients) exists
WARMUP_CALLS = 3


class GraphedCall:
    """
    Calls a function of static tensors through a CUDA graph: eagerly a few times (each call counts), then captured, then
    replayed.

    The function must not read from the device, and work on tensors that stay where they are; ``signature`` tells when
    they did not, and the graph is captured anew. So it is for other arguments, and for a copy: a graph belongs to the
    tensors that it was captured with.

    :param function: what to call; it returns nothing, and its arguments are hashable
    :param signature: anything that changes when the function's tensors were replaced, for example their addresses
    """

    def __init__(self, function: Callable[..., None], signature: Callable[[], Hashable]) -> None:
        self.function = function
        self.signature = signature
        self._graph: th.cuda.CUDAGraph | None = None
        self._captured_for: Hashable = None
        self._calls = 0
        self._failed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graph": None, "_captured_for": None, "_calls": 0}

    def __call__(self, *args: Hashable) -> None:
        """
        Run the function once.

        :param args: of the function
        """
        if self._failed:
            return self.function(*args)
        signature = (args, self.signature())
        if signature != self._captured_for:
            self._graph, self._captured_for, self._calls = None, signature, 0
        if self._graph is None:
            if self._calls < WARMUP_CALLS:
                self._calls += 1
                return self._call_aside(*args)
            stream = th.cuda.current_stream()
            try:
                graph = th.cuda.CUDAGraph()
                with th.cuda.graph(graph):
                    self.function(*args)
                self._graph = graph
            except RuntimeError as error:
                self._failed = True
                th.cuda.set_stream(stream)  # a capture that fails at its end does not put it back
                warnings.warn(
                    "The update could not be captured as a CUDA graph and runs eagerly, which is slower. A `reward_fn` "
                    "or `termination_fn` that copies between host and device (`.item()`, `torch.tensor(...)`) is the usual "
                    f"cause; `cuda_graphs=False` silences this. The error was: {error}",
                    stacklevel=2,
                )
                return self.function(*args)
        self._graph.replay()

    def _call_aside(self, *args: Hashable) -> None:
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            self.function(*args)
        th.cuda.current_stream().wait_stream(stream)


def prepare_optimizers(optimizers: Iterable[th.optim.Optimizer], captured: bool) -> None:
    """
    Make optimisers fit for a graph or for compiled code, or fit for eager updates on any device again: a captured step
    reads its learning rate from a tensor. PyTorch asks for ``capturable`` on a GPU and refuses it on a CPU, where a saved
    agent may be loaded.

    :param optimizers: Adam or AdamW
    :param captured: whether their steps will be captured
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "capturable" not in group:
                continue
            device = group["params"][0].device
            group["capturable"] = captured and device.type == "cuda"
            if captured and not isinstance(group["lr"], th.Tensor):
                group["lr"] = th.tensor(group["lr"], device=device)
            elif not captured:
                group["lr"] = float(group["lr"])
            for parameter in group["params"]:
                step = optimizer.state.get(parameter, {}).get("step")
                if captured and step is not None:
                    optimizer.state[parameter]["step"] = step.to(parameter.device)


def are_capturable(optimizers: Iterable[th.optim.Optimizer]) -> bool:
    """
    :param optimizers: any
    :return: whether a captured step reads what may change, above all the learning rate, from tensors
    """
    return all("capturable" in group for optimizer in optimizers for group in optimizer.param_groups)


def set_learning_rate(optimizer: th.optim.Optimizer, learning_rate: float) -> None:
    """
    :param optimizer: prepared for a graph or not
    :param learning_rate: for all its parameters
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], th.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
