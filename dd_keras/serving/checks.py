"""Checks that run in the server: bad requests get `InvalidArgument`."""

from collections.abc import Sequence

import tensorflow as tf


def require(
    tensor: tf.Tensor, condition: tf.Tensor, message: str, received: tf.Tensor
) -> tf.Tensor:
    """A tensor, once a condition is checked.

    Args:
        tensor: what must not be used before.
        condition: scalar, bool.
        message: what was expected; ends in what is said of `received`.
        received: tensor shown behind it.

    Returns:
        `tensor`.

    Raises:
        tf.errors.InvalidArgumentError: when run, if it does not hold.
    """
    check = tf.debugging.Assert(condition, [message, received], summarize=-1)
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def require_shape(
    name: str, batch: tf.Tensor, sample_shape: Sequence[int | None]
) -> tf.Tensor:
    """A batch, once its shape is checked.

    TensorFlow's C++ runtime does not compare what it is fed with the shape that
    a signature states, and empty batches end in errors of convolutions.

    Args:
        name: what the error calls it.
        batch: (B, *sample_shape) tensor.
        sample_shape: sequence of sizes, None for any.

    Returns:
        `batch`.

    Raises:
        tf.errors.InvalidArgumentError: when run, if it is empty or of another
            shape.
    """
    # As text: one pattern checks rank, sizes and that there is an image.
    # A comparison of numbers would fix the rank while this is traced.
    received = tf.strings.format("{}", tf.shape(batch), summarize=-1)
    sizes = " ".join(str(s or r"[1-9]\d*") for s in (None, *sample_shape))
    expected = ", ".join(["batch", *(str(s or "any") for s in sample_shape)])
    return require(
        batch,
        tf.strings.regex_full_match(received, rf"\[{sizes}\]"),
        f"{name}: expected shape ({expected}), batch at least 1; received",
        received,
    )


def require_finite(name: str, batch: tf.Tensor) -> tf.Tensor:
    """A floating batch, once it is checked for NaN and infinity.

    Raises:
        tf.errors.InvalidArgumentError: when run, if one is.
    """
    others = tf.math.count_nonzero(~tf.math.is_finite(batch))
    return require(
        batch,
        tf.equal(others, 0),
        f"{name}: expected finite numbers; received NaN or infinity, so often",
        others,
    )
