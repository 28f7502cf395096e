"""Checks of arguments: each returns what it was given, or raises."""

import math
import numbers
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def validate_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Checks that a value is one of a few.

    Args:
        name: of the argument, for the error.
        value: what was received.
        choices: what there is.

    Raises:
        ValueError: if it is none of them.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name}: expected one of {choices}; received {value!r}."
        )


def validate_number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float | None = None,
    at_most: float | None = None,
) -> float:
    """Checks a finite number against its bounds.

    Args:
        name: of the argument, for the error.
        value: what was received.
        at_least: smallest value allowed, or
        above: a value that is just too small.
        at_most: largest value allowed; None for any.

    Returns:
        `value` as a float.

    Raises:
        ValueError: if it is not a finite number within the bounds.
    """
    bound = f">= {at_least:g}" if above is None else f"> {above:g}"
    if at_most is not None:
        bound += f" and <= {at_most:g}"
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    if (
        not math.isfinite(number)
        or (above is None and number < at_least)
        or (above is not None and number <= above)
        or (at_most is not None and number > at_most)
    ):
        raise ValueError(
            f"{name}: expected a finite number {bound}; received {value!r}."
        )
    return number


def validate_integer(name: str, value: Any, *, at_least: int) -> int:
    """Checks an integer against its lower bound; see `validate_number`."""
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or value < at_least
    ):
        raise ValueError(
            f"{name}: expected an integer of at least {at_least}; received "
            f"{value!r}."
        )
    return int(value)


def validate_norm(norm: Any) -> float:
    """Checks the order of an l_p norm.

    Args:
        norm: a number in [1, inf].

    Returns:
        `norm` as a float.

    Raises:
        ValueError: if it is not a number or is less than 1.
    """
    is_number = isinstance(norm, numbers.Real) and not isinstance(norm, bool)
    if not is_number or not norm >= 1:
        raise ValueError(
            "norm: expected a number in [1, inf], the order p of an l_p norm;"
            f" received {norm!r}."
        )
    return float(norm)


def validate_bounds(bounds: Any) -> tuple[Any, Any] | None:
    """Checks the range of valid inputs.

    Args:
        bounds: None, or a pair (low, high), each a number or an array that
            broadcasts against one sample, and against the other.

    Returns:
        None, or the pair as floats or nested lists of floats, which JSON can
        hold.

    Raises:
        ValueError: if it is no such pair, or low is not below high.
    """
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(b, np.float64) for b in bounds)
        valid = np.all(low < high) and all(
            np.all(np.isfinite(end)) for end in (low, high)
        )
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "bounds: expected a pair (low, high) of finite numbers or arrays "
            "that broadcast, low below high everywhere, or None; received "
            f"{reprlib.repr(bounds)}."
        )
    return low.tolist(), high.tolist()
