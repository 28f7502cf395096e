"""Rows of a batch: an attack drops the samples that it is done with."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dd_keras.utils import keras_internals, norms


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


def choose_rows(condition: tf.Tensor, state: Any, other: Any) -> Any:
    """Row by row, `state` where the condition (B,) holds, or `other`."""
    return tf.nest.map_structure(
        lambda one, two: tf.where(norms.expand_like(condition, one), one, two),
        state,
        other,
    )


def repeat_on_active(
    step: Callable[[tf.Tensor, Any, Any], Any],
    samples: Any,
    state: Any,
    times: int,
) -> Any:
    """Applies a step to the samples that are still active, again and again.

    Rows that are no longer active leave the batch; what they were is kept.
    Rows are copied only where some leave. (Under XLA none leave, and what a
    step makes of those that are not active is thrown away.) A step never runs
    on an empty batch.

    Args:
        step: from (i, samples, state) to the new state. `i` is int32, (),
            the number of the repetition, from 0; the others have the active
            rows alone, (A, ...).
        samples: a nested structure of tensors (B, ...) that stay as they are.
        state: a `NamedTuple` of nested structures of tensors (B, ...), one of
            them `active`, bool, (B,).
        times: most repetitions, a Python integer.

    Returns:
        The last state, (B, ...).
    """
    repeat = _repeat_masked if keras_internals.compiled_by_xla() else _repeat
    return repeat(step, samples, state, times)


def _repeat_masked(step, samples, state, times):
    """`repeat_on_active` with static shapes."""
    _, state = tf.while_loop(
        lambda i, state: tf.reduce_any(state.active),
        lambda i, state: (
            i + 1,
            choose_rows(state.active, step(i, samples, state), state),
        ),
        (0, state),
        maximum_iterations=times,
        parallel_iterations=1,
    )
    return state


def _repeat(step, samples, state, times):
    """`repeat_on_active` with rows that leave."""

    def advance(i, rows, chosen, now, state):
        now = step(i, chosen, now)

        def drop():
            left = active_rows(now.active)
            remaining = gather_rows((rows, chosen, now), left)
            return *remaining, scatter_rows(state, rows, now)

        unchanged = rows, chosen, now, state
        return i + 1, *tf.cond(
            tf.reduce_all(now.active), lambda: unchanged, drop
        )

    rows = active_rows(state.active)
    chosen, now = gather_rows((samples, state), rows)
    variables = (0, rows, chosen, now, state)
    _, rows, _, now, state = tf.while_loop(
        lambda i, rows, *_: tf.size(rows) > 0,
        advance,
        variables,
        shape_invariants=tf.nest.map_structure(_any_rows, variables),
        maximum_iterations=times,
        parallel_iterations=1,
    )
    return scatter_rows(state, rows, now)


def _any_rows(value):
    """The shape of a loop's variable whose number of rows may change."""
    shape = tf.convert_to_tensor(value).shape
    return shape if shape.rank == 0 else tf.TensorShape([None, *shape[1:]])
