"""Settings: a default that packages share, equality by configuration."""

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

DEFAULT_BATCH_SIZE = 32  # of arrays, as in Keras
# JSON has no infinity; the norm of an attack may be infinite.
_INFINITY = "Infinity"


class EqualByConfig:
    """Base of objects that are their configuration, and never change.

    Two of one type with equal `get_config()` are equal, so that they share
    what is compiled for them.
    """

    @functools.cached_property
    def _identity(self):
        return type(self), _digest(self.get_config())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EqualByConfig)
            and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return hash(self._identity)


def digest_of_arrays(arrays: Iterable[Any]) -> str:
    """A short stand-in for arrays, tensors or weights: their SHA-256.

    Args:
        arrays: what `keras.ops.convert_to_numpy` takes, each; their dtypes,
            shapes, entries and order count.
    """
    digest = hashlib.sha256()
    for array in map(keras.ops.convert_to_numpy, arrays):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def for_json(config: Any) -> Any:
    """A nested configuration with infinity as a word."""
    return _replaced(config, math.inf, _INFINITY)


def from_json(config: Any) -> Any:
    """The configuration that `for_json` was given."""
    return _replaced(config, _INFINITY, math.inf)


def _replaced(config, old, new):
    if isinstance(config, dict):
        return {k: _replaced(v, old, new) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [_replaced(v, old, new) for v in config]
    return new if type(config) is type(old) and config == old else config


def _digest(config):
    """A short stand-in for a configuration: a str.

    Lists of numbers, as bounds of each pixel are, may hold a million.
    """
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key, part in value.items():
                digest.update(f"{key!r}: ".encode())
                add(part)
        elif isinstance(value, (list, tuple)):
            array = _numbers(value)
            if array is None:
                digest.update(f"{len(value)} of ".encode())
                for part in value:
                    add(part)
            else:
                digest.update(f"{array.shape}: ".encode())
                digest.update(array.tobytes())
        else:
            digest.update(f"{value!r}, ".encode())

    add(config)
    return digest.hexdigest()


def _numbers(values):
    """A nested list of floats as an array; None if it is anything else."""
    first = values
    while isinstance(first, list) and first:
        first = first[0]
    if type(first) is not float:
        return None
    try:
        array = np.array(values)
    except ValueError:  # ragged
        return None
    return array if array.dtype == np.float64 else None
