"""Errors that tell the user what to do, raised before training where that is possible."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


class NonFiniteError(ValueError):
    """
    Training produced or met a number that is not finite. The agent's parameters are back at their last finite values,
    so it can still be saved.

    A ``ValueError``, because that is what makes rl-zoo3 prune an Optuna trial instead of stopping the search.
    """


def constructor_arguments(cls: type) -> list[str]:
    """
    :param cls: an algorithm
    :return: every argument that its constructors accept, those it forwards to its bases included
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values() if "__init__" in vars(base) else []
        names.update({p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)})
        # What a constructor takes as **kwargs it forwards; **unknown it refuses
        if parameters and not any(p.kind is p.VAR_KEYWORD and p.name == "kwargs" for p in parameters):
            break
    names.pop("self", None)
    return list(names)


def nearest_name(name: str, candidates: Iterable[str]) -> str:
    """
    :param name: what the user wrote
    :param candidates: what exists
    :return: a hint at the nearest name, or nothing
    """
    nearest = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def check_known_arguments(cls: type, given: dict[str, Any]) -> None:
    """
    :param cls: the algorithm under construction
    :param given: keyword arguments
    :raises TypeError: if one does not exist, with the nearest that does
    """
    known = constructor_arguments(cls)
    for name in given:
        if name not in known:
            raise TypeError(
                f"{cls.__name__} has no argument `{name}` (got {name}={given[name]!r}).{nearest_name(name, known)} "
                f"Remove it, or use one of: {', '.join(known)}."
            )


@contextmanager
def keys_of(name: str, given: dict[str, Any], cls: type, reserved: Iterable[str] = ()) -> Iterator[None]:
    """
    For the construction of something from a dictionary of the user's: Python's error for a keyword that does not exist
    becomes one that names the dictionary.

    :param name: argument that holds keyword arguments for another constructor
    :param given: these
    :param cls: what they construct
    :param reserved: its arguments that are given otherwise
    :raises ValueError: if one does not exist, with the nearest that does
    """
    try:
        yield
    except TypeError as error:
        found = re.search(r"(?:unexpected keyword argument|multiple values for(?: keyword)? argument) '(\w+)'", str(error))
        if found is None or (key := found.group(1)) not in given:
            raise
        known = [known for known in constructor_arguments(cls) if known not in reserved]
        raise ValueError(
            f"`{name}` must hold arguments of {cls.__name__}, but it has {key!r} (with the value {given[key]!r})."
            f"{nearest_name(key, known)} Remove it, or use one of: {', '.join(known)}."
        ) from error


def check_at_least(name: str, value: float, minimum: float) -> None:
    """
    :param name: argument
    :param value: what came
    :param minimum: smallest value allowed
    :raises ValueError: if the value is smaller, or no number
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= minimum:
        raise ValueError(f"`{name}` must be a number >= {minimum}, but it is {value!r}. Pass {name}={minimum} or more.")


def check_count(name: str, value: int, minimum: int) -> None:
    """
    :param name: argument
    :param value: what came
    :param minimum: smallest value allowed
    :raises ValueError: if the value is smaller, or no whole number
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not value >= minimum:
        raise ValueError(f"`{name}` must be a whole number >= {minimum}, but it is {value!r}. Pass {name}={minimum} or more.")


def check_share(name: str, value: float) -> None:
    """
    :param name: argument
    :param value: what came
    :raises ValueError: if it is not within [0, 1]
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a share within [0, 1], but it is {value!r}. Pass for example {name}=0.5.")
