"""What attacks read off the logits: decisions, margins and their gradients.

`Forward.gradient` takes a loss' gradient by the logits to its gradient by the
inputs. A new loss for an attack is one more gradient by the logits here.
"""

import tensorflow as tf


def predicted_class(logits: tf.Tensor) -> tf.Tensor:
    """The class with the largest logit, the first of equals: (B,) int32."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def mask_class(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The logits, (B, n), with those of the classes y, (B,), at -infinity."""
    others = tf.range(logits.shape[-1]) != y[:, None]  # (B, n)
    return tf.where(others, logits, float("-inf"))


def runner_up(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The class with the largest logit of all but y: (B,) int32."""
    return predicted_class(mask_class(logits, y))


def is_fooled(
    logits: tf.Tensor, y: tf.Tensor, targeted: bool = False
) -> tf.Tensor:
    """Whether an attack has succeeded: (B,) bool. Arguments as in `margin`."""
    return tf.equal(predicted_class(logits), y) == targeted


def margin(
    logits: tf.Tensor, y: tf.Tensor, targeted: bool = False
) -> tf.Tensor:
    """What an attack brings below zero.

    Args:
        logits: (B, n).
        y: (B,) int32, the class to leave, or to reach if `targeted`.
        targeted: which of the two.

    Returns:
        (B,): f_y - max_(k != y) f_k, or its negative if `targeted`.
    """
    own = tf.gather(logits, y, batch_dims=1)
    difference = own - tf.reduce_max(mask_class(logits, y), axis=-1)
    return -difference if targeted else difference


def margin_logit_gradient(
    logits: tf.Tensor, y: tf.Tensor, targeted: bool = False
) -> tf.Tensor:
    """The gradient of `margin` by the logits: (B, n)."""
    gradient = logit_difference(y, runner_up(logits, y), logits)
    return -gradient if targeted else gradient


def cross_entropy_logit_gradient(
    logits: tf.Tensor, y: tf.Tensor, targeted: bool = False
) -> tf.Tensor:
    """The cross-entropy's gradient by the logits, up to a positive factor.

    It is p - onehot(y) = (1 - p_y) * (r - onehot(y)), with p the softmax and
    r the softmax over all classes but y. Attacks need its direction only;
    without the factor it does not vanish where the softmax saturates, and in
    float32 1 - p_y is zero from logits 17 apart.

    Args:
        logits: (B, n).
        y: (B,) int32.
        targeted: whether the attack descends to the class y; then the
            gradient has the other sign.

    Returns:
        (B, n): the direction that the attack ascends.
    """
    others = tf.nn.softmax(mask_class(logits, y))
    own = tf.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    return own - others if targeted else others - own


def logit_difference(
    k: tf.Tensor, s: tf.Tensor, logits: tf.Tensor
) -> tf.Tensor:
    """The gradient of f_k - f_s by the logits: onehot(k) - onehot(s), (B, n).

    Args:
        k: (B,) int32.
        s: (B,) int32.
        logits: (B, n), for their dtype and number.
    """
    n = logits.shape[-1]
    return tf.one_hot(k, n, dtype=logits.dtype) - tf.one_hot(
        s, n, dtype=logits.dtype
    )
