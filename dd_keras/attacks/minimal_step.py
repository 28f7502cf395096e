"""The step of DeepFool (Eq. 1 of the Deep Defense paper), in any l_p norm.

    |f_k - f_s| / ||w||_q^q * |w|^(q-1) sign(w),   1/p + 1/q = 1,

as the distance |f_k - f_s| / ||w||_q times a direction of l_p norm 1, which
is all that differs between norms: one small function each.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from dd_keras.utils import norms


def minimal_step(
    gap: tf.Tensor, w: tf.Tensor, q: float, direction: Callable
) -> tf.Tensor:
    """The smallest l_p step that closes `gap` along the gradient w (Eq. 1).

    Args:
        gap: (A,), |f_k - f_s|.
        w: (A, ...), grad f_k - grad f_s.
        q: the order of the dual norm.
        direction: from w and w / ||w||_q to the vector of l_p norm 1 with the
            largest product with w, see `steepest_direction`.

    Returns:
        gap / ||w||_q * direction, of the shape of w; zero where w is zero,
        with a zero gradient there.
    """
    slope = norms.sample_norm(w, q)
    steep = slope > norms.ZERO_NORM
    slope = tf.where(steep, slope, 1.0)
    distance = tf.where(steep, gap / slope, 0.0)
    unit = w / norms.expand_like(slope, w)
    return norms.expand_like(distance, w) * direction(w, unit)


def steepest_direction(p: float) -> Callable:
    """The function that gives |w|^(q-1) sign(w) / ||w||_q^(q-1), by the norm.

    It takes w and `unit` = w / ||w||_q, which is zero where w is, both
    (A, ...); its result has l_p norm 1.
    """
    if p == 1:
        return _l1_direction
    if p == 2:
        return _l2_direction
    if p == math.inf:
        return _linf_direction
    return functools.partial(_lp_direction, q=norms.dual_norm(p))


def _l1_direction(w, unit):
    """All on the coordinate with the largest gradient."""
    del unit
    size = tf.reshape(tf.abs(w), (tf.shape(w)[0], -1))  # (A, D)
    largest = tf.one_hot(tf.argmax(size, -1), tf.shape(size)[1], dtype=w.dtype)
    return tf.sign(w) * tf.reshape(largest, tf.shape(w))


def _l2_direction(w, unit):
    """The gradient over its length, w / ||w||_2."""
    del w
    return unit


def _linf_direction(w, unit):
    """The same in every coordinate, sign(w)."""
    del unit
    return tf.sign(w)


def _lp_direction(w, unit, q):
    """For 1 < p < inf, |unit|^(q-1) sign(w)."""
    size = tf.abs(unit)
    nonzero = size > 0  # at 0, |w|^(q-1) has an infinite slope if p > 2
    power = tf.where(nonzero, size, 1.0) ** (q - 1)
    return tf.sign(w) * tf.where(nonzero, power, 0.0)
