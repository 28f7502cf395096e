"""Batches to evaluate on, from whatever `fit` takes."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import attacks
from dd_keras.classifier.inputs import unpack
from dd_keras.evaluation import metrics
from dd_keras.utils import config, validation


class Stream(NamedTuple):
    """Batches in an order that does not change.

    Attributes:
        starting_at: function from a number of batches to an iterator over
            those that come after them.
        batches: their number; None: not known.
    """

    starting_at: Callable[[int], Iterator[tuple]]
    batches: int | None

    def shard(self, index: int, count: int) -> "Stream":
        """The `index`-th of `count` parts, from 1, of consecutive batches.

        Raises:
            ValueError: if there are fewer batches than parts, or if their
                number is not known.
        """
        if self.batches is None:
            raise ValueError(
                "shard: expected data of a known number of batches; received "
                "a data set that does not tell it. Give it one by "
                "tf.data.experimental.assert_cardinality."
            )
        if count > self.batches:
            raise ValueError(
                f"shard: expected at most {self.batches} shards, the number of "
                f"batches; received {count}."
            )
        first, end = (self.batches * k // count for k in (index - 1, index))
        return Stream(
            lambda start: itertools.islice(
                self.starting_at(first + start), end - first - start
            ),
            end - first,
        )


def of(
    data: Any,
    y: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Stream:
    """The batches of (inputs, labels) of what a user has.

    Args and Raises: see `evaluate_robustness`.
    """
    if _names_metrics(y):
        raise TypeError(
            "y: expected labels; received metrics. Pass these by name: "
            f"metrics={y!r}."
        )
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        for name, value in (("y", y), ("batch_size", batch_size)):
            if value is not None:
                raise ValueError(
                    f"{name}: expected None, as a {_kind(data)} comes in "
                    f"batches, with labels; received {_kind(value)}."
                )
        if isinstance(data, tf.data.Dataset):
            total = int(data.cardinality())
            return Stream(
                lambda start: iter(data.skip(start)),
                total if total > 0 else None,
            )
        return _of_py_dataset(data)
    if isinstance(data, tuple):
        if len(data) != 2 or y is not None:
            raise ValueError(
                "data: expected a tuple (inputs, labels), without y; received "
                f"one of {len(data)}{' beside y' if y is not None else ''}."
            )
        data, y = data
    if isinstance(data, dict) or (
        isinstance(data, list) and len(data) == 1 and _is_array(data[0])
    ):
        data = unpack(data)
    if not _is_array(data):
        raise TypeError(
            "data: expected an array of inputs, a tuple (inputs, labels), a "
            "batched tf.data.Dataset or a keras.utils.PyDataset; received "
            f"{_kind(data)}."
        )
    return _of_arrays(data, y, batch_size)


def _of_arrays(x, y, batch_size):
    """Slices of arrays."""
    if y is None:
        raise ValueError(
            "y: expected labels, one for each input; received None."
        )
    y = y if _is_array(y) else np.asarray(y)
    for name, values in (("data", x), ("y", y)):
        if len(values.shape) == 0:
            raise ValueError(
                f"{name}: expected an array of samples; received a number."
            )
    if len(x) != len(y):
        raise ValueError(
            f"y: expected {len(x)} labels, one for each input; received "
            f"{len(y)}."
        )
    size = validation.validate_integer(
        "batch_size",
        config.DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
        at_least=1,
    )

    def starting_at(number):
        for start in range(number * size, len(x), size):
            end = start + size
            yield x[start:end], y[start:end]

    return Stream(starting_at, -(-len(x) // size) or None)


def _of_py_dataset(data):
    """Items of a `PyDataset`, by number."""
    total = data.num_batches
    if total is None:
        raise ValueError(
            "data: expected a PyDataset of a known number of batches; received "
            "one without end."
        )

    def starting_at(number):
        for index in range(number, total):
            batch = data[index]
            yield tuple(batch) if isinstance(batch, list) else batch

    return Stream(starting_at, total or None)


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _names_metrics(y):
    """Whether metrics were given in the place of labels."""
    if isinstance(y, np.ndarray):
        return y.dtype.kind in "US"
    kinds = (str, attacks.Attack, metrics.Metric)
    if isinstance(y, kinds):
        return True
    return isinstance(y, (list, tuple)) and any(
        isinstance(value, kinds) for value in y
    )


def _kind(value):
    return type(value).__name__
