"""From labels in any form that Keras takes to class numbers."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# By how much the entries of a one-hot row may miss a sum of 1.
_ROUNDING = 1e-2


def sparse_labels(
    y: tf.Tensor | np.ndarray | Sequence[int], num_classes: int
) -> tf.Tensor:
    """Labels as class numbers, whatever form they came in.

    Args:
        y: classes of shape (B,) or (B, 1), of any number dtype, or one-hot
            (also smoothed) rows of shape (B, num_classes).
        num_classes: number of classes n.

    Returns:
        int32 tensor of shape (B,), in [0, n).

    Raises:
        ValueError: if the shape is another.
        tf.errors.InvalidArgumentError: if a label is outside [0, n), no
            whole number, or not finite, or if a row does not sum to 1, as
            those of several labels a sample do not. XLA has no assertions:
            there this is not checked.
    """
    y = tf.convert_to_tensor(y)
    width = y.shape[-1] if y.shape.rank == 2 else 1
    if y.shape.rank not in (1, 2) or width not in (1, num_classes):
        known = y.shape.rank is not None
        raise ValueError(
            "y: expected labels of shape (batch,), (batch, 1) or one-hot "
            f"(batch, {num_classes}); received shape "
            f"{tuple(y.shape) if known else 'unknown'}."
        )
    if width == num_classes and num_classes > 1:
        if y.dtype.is_floating:
            y = tf.debugging.assert_all_finite(y, "y: expected finite labels.")
        total = tf.reduce_sum(tf.cast(y, tf.float32), axis=-1)
        one = tf.debugging.assert_less(
            tf.abs(total - 1.0),
            _ROUNDING,
            "y: expected one-hot rows, or shares of classes that sum to 1; "
            "several labels a sample are not supported, as a perturbation "
            "changes the one class decided for.",
        )
        with tf.control_dependencies([one]):
            return tf.argmax(y, axis=-1, output_type=tf.int32)
    labels = tf.cast(tf.reshape(y, [-1]), tf.int64)
    limit = tf.constant(num_classes, tf.int64)
    message = f"y: expected labels in [0, {num_classes})."
    # Before they are cast to int32, where 2^32 + 1 is 1.
    assertions = [
        tf.debugging.assert_non_negative(labels, message),
        tf.debugging.assert_less(labels, limit, message),
    ]
    if y.dtype.is_floating:
        assertions.append(
            tf.debugging.assert_equal(
                tf.cast(labels, y.dtype),
                tf.reshape(y, [-1]),
                "y: expected whole numbers as labels.",
            )
        )
    with tf.control_dependencies(assertions):
        return tf.cast(labels, tf.int32)
