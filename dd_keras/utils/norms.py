"""Norms of samples, with safe gradients, and rho (Eq. 7)."""

import math

import tensorflow as tf

# Norms below this are taken as zero: dividing by them overflows float32 once
# the quotient is squared, and no network trained in float32 resolves them.
ZERO_NORM = 1e-12


def dual_norm(p: float) -> float:
    """The order q of the dual norm, 1/p + 1/q = 1, for p in [1, inf]."""
    if p == 1:
        return math.inf
    if p == math.inf:
        return 1.0
    return p / (p - 1)


def sample_norm(x: tf.Tensor, p: float = 2.0) -> tf.Tensor:
    """The l_p norm of each sample.

    Its gradient is zero, not NaN, where a sample is zero: there the norm has
    a kink, and zero is one of its subgradients.

    Args:
        x: floating tensor of shape (B, ...).
        p: order of the norm, in [1, inf].

    Returns:
        Tensor of shape (B,), of the dtype of `x`.
    """
    size = tf.abs(x)
    axes = list(range(1, x.shape.rank))
    if p == 1:
        return tf.reduce_sum(size, axes)
    largest = tf.reduce_max(size, axes)
    if p == math.inf:
        return largest
    # Scaled by its largest entry, so that squares neither overflow nor vanish.
    # The value does not depend on the scale, so neither does the gradient.
    nonzero = largest != 0
    scale = tf.stop_gradient(tf.where(nonzero, largest, 1.0))
    size = size / expand_like(scale, x)  # in [0, 1]
    if p == 2:
        total = tf.reduce_sum(tf.square(size), axes)
    else:
        power = tf.where(size != 0, size, 1.0) ** p  # its slope at 0 is 0
        total = tf.reduce_sum(tf.where(size != 0, power, 0.0), axes)
    root = tf.where(nonzero, total, 1.0) ** (1 / p)
    return tf.where(nonzero, scale * root, 0.0)


def rho(perturbation: tf.Tensor, x: tf.Tensor, p: float = 2.0) -> tf.Tensor:
    """The relative size of perturbations, ||perturbation||_p / ||x||_p.

    Eq. 7 of the Deep Defense paper, sample by sample. A zero input has no
    scale to compare with; its rho is 0, with a zero gradient.

    Args:
        perturbation: floating tensor of shape (B, ...).
        x: the clean inputs, of the same shape and dtype.
        p: order of the norm, in [1, inf].

    Returns:
        Tensor of shape (B,), at least 0.
    """
    return tf.math.divide_no_nan(
        sample_norm(perturbation, p), sample_norm(x, p)
    )


def expand_like(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshapes `values` of shape (B,) to (B, 1, ...), of the rank of `x`."""
    return tf.reshape(values, [-1] + [1] * (x.shape.rank - 1))
