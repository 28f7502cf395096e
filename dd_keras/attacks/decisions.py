"""What attacks read off the logits: decisions, margins and their gradients.

`Forward.gradient` takes a loss' gradient by the logits to its gradient by the
inputs. A new loss for an attack is one more gradient by the logits here.
"""

import tensorflow as tf

# Added to differences of logits that are divided by, as the authors' code has.
_LEAST_SPREAD = 1e-12


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


def float32_cross_entropy_logit_gradient(
    logits: tf.Tensor, y: tf.Tensor
) -> tf.Tensor:
    """The cross-entropy's gradient by the logits as float32 rounds it.

    p - onehot(y), which loses its entry of y where the softmax saturates: see
    `cross_entropy_logit_gradient`. To reproduce what was measured with it.

    Args:
        logits: (B, n).
        y: (B,) int32.
    """
    p = tf.nn.softmax(tf.cast(logits, tf.float32))
    return tf.cast(p - tf.one_hot(y, logits.shape[-1]), logits.dtype)


def cross_entropy_odds(
    logits: tf.Tensor, y: tf.Tensor, targeted: bool = False
) -> tf.Tensor:
    """The logarithm of the odds against y, (B,); of those for it if targeted.

    log((1 - p_y) / p_y) = log sum_(k != y) exp(f_k) - f_y grows with the
    cross-entropy -log(p_y), so that both order points alike. In float32 the
    cross-entropy is zero from logits 17 apart; this is never rounded away.
    """
    own = tf.gather(logits, y, batch_dims=1)
    odds = tf.reduce_logsumexp(mask_class(logits, y), axis=-1) - own
    return -odds if targeted else odds


def difference_of_logits_ratio(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """DLR, the loss of Croce and Hein (ICML 2020, Eq. 6): (B,).

    -(f_y - max_(k != y) f_k) / (f_1st - f_3rd): it neither saturates nor
    changes with the scale of the logits.

    Args:
        logits: (B, n), of at least three classes.
        y: (B,) int32, the class to leave.

    Raises:
        ValueError: if there are fewer than three classes.
    """
    _require_classes(logits, 3, "the difference of logits ratio (DLR)")
    ranked = tf.math.top_k(logits, 3)[0]
    spread = ranked[:, 0] - ranked[:, 2]
    return -margin(logits, y) / (spread + _LEAST_SPREAD)


def targeted_difference_of_logits_ratio(
    logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor
) -> tf.Tensor:
    """DLR towards a class (Croce and Hein, Eq. 7): (B,).

    -(f_y - f_target) / (f_1st - (f_3rd + f_4th) / 2).

    Args:
        logits: (B, n), of at least four classes.
        y: (B,) int32, the class to leave.
        target: (B,) int32, the class to reach.

    Raises:
        ValueError: if there are fewer than four classes.
    """
    _require_classes(logits, 4, "the targeted difference of logits ratio (DLR)")
    ranked = tf.math.top_k(logits, 4)[0]
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    difference = tf.reduce_sum(
        logit_difference(target, y, logits) * logits, axis=-1
    )
    return difference / (spread + _LEAST_SPREAD)


def most_probable_others(logits: tf.Tensor, y: tf.Tensor, m: int) -> tf.Tensor:
    """The m classes most probable of all but y, in this order: (B, m) int32.

    All others, n - 1, if m is larger.
    """
    m = min(m, logits.shape[-1] - 1)
    return tf.math.top_k(mask_class(logits, y), m)[1]


def _require_classes(logits, least, loss):
    """Raises if a loss needs more classes than there are."""
    if logits.shape[-1] < least:
        raise ValueError(
            f"loss: {loss} needs at least {least} classes; received a model "
            f"of {logits.shape[-1]}."
        )


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
