"""Rows of a batch: an attack drops the samples that it is done with."""

from typing import Any

import tensorflow as tf

from dd_keras.utils import keras_internals


def active_rows(is_active: tf.Tensor) -> tf.Tensor:
    """The rows, (A,) int32, of the samples that are attacked further.

    Under XLA, which needs static shapes, these are all rows; the caller masks
    what it changes.
    """
    if keras_internals.compiled_by_xla():
        return tf.range(tf.size(is_active))
    return tf.cast(tf.where(is_active)[:, 0], tf.int32)


def gather_rows(state: Any, rows: tf.Tensor) -> Any:
    """The given rows of each tensor (B, ...) of a nested structure."""
    return tf.nest.map_structure(lambda values: tf.gather(values, rows), state)


def scatter_rows(state: Any, rows: tf.Tensor, new: Any) -> Any:
    """A nested structure of tensors (B, ...) with `new` in the given rows."""
    return tf.nest.map_structure(
        lambda values, rows_of_new: tf.tensor_scatter_nd_update(
            values, rows[:, None], rows_of_new
        ),
        state,
        new,
    )
