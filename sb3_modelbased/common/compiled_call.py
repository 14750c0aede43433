"""
A whole update compiled for a CPU. At batches of some hundred rows about half of an update is not its matrix products but
the hundreds of small operations around them; TorchInductor turns those between two products into one loop.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import torch as th
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module
from torch.overrides import TorchFunctionMode

# Of the recorded operations these run as they are: TorchInductor knows no fused optimisers
EAGER_OPERATIONS = (th.ops.aten._fused_adam_, th.ops.aten._fused_adamw_)
# Left by the optimisers' own profiling, and of no effect
PROFILER_OPERATIONS = (th.ops.profiler._record_function_enter_new, th.ops.profiler._record_function_exit)
# What they return is a number or an array of the recorded call, which all later calls would go on with
READS = {
    getattr(th.Tensor, name)
    for name in ("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose")
} | {th.equal, th.allclose, th.is_nonzero}


class CompiledCall:
    """
    Calls a function of a batch as compiled code: once eagerly, so that lazily made state (optimiser moments, means)
    exists, once recorded, then compiled. Each call counts. The random numbers are those of the eager function, and its
    results, up to rounding.

    What :class:`~sb3_modelbased.common.cuda_graph.GraphedCall` asks for holds here, too: the function must not read values
    of tensors, and apart from the batch it works on tensors that stay where they are. A function that reads values runs
    eagerly, with a warning. Python numbers are recorded as they are: the function must not depend on any that change. For
    batches of other shapes it is recorded anew, and so it is for a copy.

    :param function: what to call with a named tuple of tensors, None among them; it returns nothing
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._recorded_for: Hashable = None
        self._failed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_recorded_for": None}

    def __call__(self, batch: tuple[th.Tensor | None, ...]) -> None:
        """
        Run the function once.

        :param batch: what the function learns from, a named tuple
        """
        if self._failed:
            return self.function(batch)
        signature = tuple(None if field is None else (field.shape, field.stride(), field.dtype) for field in batch)
        if signature != self._recorded_for:
            self._compiled, self._recorded_for = None, signature
            return self.function(batch)
        random_state = th.get_rng_state() if self._compiled is None else None
        try:
            if self._compiled is None:
                self._compiled = compile_recorded(*record(self.function, batch))
            else:
                with th.no_grad():  # the gradients are among the recorded operations
                    self._compiled(*_tensors(batch))
        except Exception as error:
            # Whatever the compiler lacks, training can go on. An update that broke off is repeated as a whole.
            self._failed, self._compiled = True, None
            if random_state is not None:
                th.set_rng_state(random_state)
            warnings.warn(
                "The update could not be compiled and runs eagerly, which is slower. The usual causes are a missing C++ "
                "compiler and a `reward_fn` or `termination_fn` that reads values (`.item()`, `.numpy()`, `if` on a tensor). "
                f"`compile_updates=False` silences this. The error was: {type(error).__name__}: {str(error)[:1000]}",
                stacklevel=2,
            )
            self.function(batch)


class ValueReadError(RuntimeError):
    """A function that is being recorded reads values, which are other ones in the next call."""


class _NoReads(TorchFunctionMode):
    """Refuses to turn tensors into numbers and arrays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise ValueReadError(f"`{func.__name__}` reads the values of a tensor.")
        return func(*args, **(kwargs or {}))


class Recording(NamedTuple):
    """
    What a function did.

    :param graph: its operations, as a function of the batch's tensors and of all the others that it touched
    :param others: those others
    """

    graph: fx.GraphModule
    others: list[th.Tensor]


def record(function: Callable[[Any], None], batch: tuple[th.Tensor | None, ...]) -> Recording:
    """
    Run a function once and write down every operation on tensors, those of the backward passes and of the optimisers
    included.

    :param function: of a named tuple of tensors
    :param batch: the argument
    :return: the operations
    :raises ValueReadError: if the function reads values
    """

    def of_tensors(*tensors: th.Tensor) -> None:
        given = iter(tensors)
        fields = (None if field is None else next(given) for field in batch)
        with _NoReads():
            function(type(batch)(*fields))  # type: ignore[arg-type]

    recorded = make_fx(of_tensors, tracing_mode="real")(*_tensors(batch))
    graph = recorded.graph
    for node in reversed(list(graph.nodes)):
        if _is_one_of(node, PROFILER_OPERATIONS):
            graph.erase_node(node)
    # Parameters, moments and statistics became constants of the graph; as arguments they can change
    others: dict[int, tuple[th.Tensor, fx.Node]] = {}
    last_argument = list(graph.find_nodes(op="placeholder"))[-1]
    for node in list(graph.find_nodes(op="get_attr")):
        tensor = cast(th.Tensor, getattr(recorded, str(node.target)))
        if id(tensor) not in others:
            with graph.inserting_after(last_argument):
                last_argument = graph.placeholder(f"other_{len(others)}")
            others[id(tensor)] = tensor, last_argument
        node.replace_all_uses_with(others[id(tensor)][1])
        graph.erase_node(node)
    recorded.recompile()
    return Recording(recorded, [tensor for tensor, _ in others.values()])


def compile_recorded(graph: fx.GraphModule, others: list[th.Tensor]) -> Callable[..., Any]:
    """
    Compile what lies between the optimisers' steps.

    :param graph: operations on the batch's tensors, followed by the others
    :param others: the other tensors, of which the values may change and the storage may not
    :return: a function of the batch's tensors; it compiles at its first call
    """
    parts: dict[fx.Node, int] = {}
    eager_parts = set()
    was_eager: bool | None = None
    part = -1
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        is_eager = _is_one_of(node, EAGER_OPERATIONS)
        if is_eager != was_eager:
            part, was_eager = part + 1, is_eager
        parts[node] = part
        if is_eager:
            eager_parts.add(part)
    split = split_module(graph, None, lambda node: parts[node], keep_original_order=True)  # type: ignore[arg-type]
    for index in set(parts.values()) - eager_parts:
        split.register_module(f"submod_{index}", _Compiled(split.get_submodule(f"submod_{index}")))
    return lambda *tensors: split(*tensors, *others)


class _Compiled(th.nn.Module):
    """
    A function of tensors that keep their shapes, compiled at its first call.

    :param function: what to compile
    """

    def __init__(self, function: th.nn.Module) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "fallback_random": True,  # torch's own random numbers
            # Whether the code fits its arguments is known: it always does
            "guard_filter_fn": lambda guards: [False for _ in guards],
        }
        self.compiled = th.compile(function, dynamic=False, options=options)

    def forward(self, *tensors: th.Tensor) -> Any:
        """
        :param tensors: the function's arguments
        :return: what it returns
        """
        return self.compiled(*tensors)


def _tensors(batch: tuple[th.Tensor | None, ...]) -> list[th.Tensor]:
    """
    :param batch: a named tuple
    :return: its fields that are tensors
    """
    return [field for field in batch if field is not None]


def _is_one_of(node: fx.Node, operations: tuple[Any, ...]) -> bool:
    """
    :param node: of a graph
    :param operations: with all their overloads
    :return: whether the node calls one of them
    """
    return node.op == "call_function" and getattr(node.target, "overloadpacket", None) in operations
