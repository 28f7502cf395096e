"""Checks of what is to be drawn; errors name the argument and its entry."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROUNDING = 1e-6  # of a share near 0 or 1, computed in float32


def check_series(name: str, series: Any, keys: Sequence[str] = ()) -> None:
    """Checks a dict of at least one series, each a dict with the keys."""
    if not isinstance(series, Mapping) or not series:
        raise ValueError(
            f"{name}: expected a dict with at least one entry; received "
            f"{reprlib.repr(series)}."
        )
    for label, entry in series.items():
        if any(key not in entry for key in keys):
            raise ValueError(
                f"{name}[{label!r}]: expected the keys {list(keys)}; received "
                f"{list(entry)}."
            )


def numbers(
    name: str, values: Any, high: float = math.inf, low: float = 0.0
) -> np.ndarray:
    """The values as an array (n,), checked to be finite and in [low, high]."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != 1 or not array.size:
        raise ValueError(
            f"{name}: expected at least one number, in one dimension; received "
            f"{reprlib.repr(values)}."
        )
    within = (low - ROUNDING <= array) & (array <= high + ROUNDING)
    wrong = ~(np.isfinite(array) & within)
    if wrong.any():
        raise ValueError(
            f"{name}: expected finite numbers in [{low:g}, {high:g}]; received "
            f"{array[wrong][0]:g}."
        )
    return array


def check_lengths(name: str, values: Mapping[str, Any]) -> None:
    """Checks that all in a dict of sequences have the same length."""
    lengths = {key: len(value) for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{name}: expected the same length of all; received {lengths}."
        )
