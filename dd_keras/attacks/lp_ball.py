"""The l_p ball, p = 2 or inf: its steepest direction, projection, and points.

What attacks that search within a radius eps have in common.
"""

import math

import tensorflow as tf

from dd_keras.attacks import stateless_random
from dd_keras.utils import norms

# Streams of random numbers that one call of `uniform_point` uses up.
STREAMS_OF_A_POINT = 3


def validate_order(norm: float) -> float:
    """The order p of the ball as a float.

    Raises:
        ValueError: if it is neither 2 nor inf.
    """
    if norm not in (2, math.inf):
        raise ValueError(f"norm: expected 2 or inf; received {norm!r}.")
    return float(norm)


def steepest_ascent(gradient: tf.Tensor, norm: float) -> tf.Tensor:
    """The vector of l_p norm 1 with the largest product with a gradient.

    Args:
        gradient: (B, ...).
        norm: the order p, 2 or inf.

    Returns:
        (B, ...): sign(g) for p = inf, g / ||g||_2 for p = 2; zero where the
        gradient of a sample is.
    """
    if norm == math.inf:
        return tf.sign(gradient)
    length = norms.sample_norm(gradient)
    return tf.math.divide_no_nan(gradient, norms.expand_like(length, gradient))


def project(perturbation: tf.Tensor, eps: float, norm: float) -> tf.Tensor:
    """The closest point of the l_p ball of radius eps, p = 2 or inf."""
    if norm == math.inf:
        return tf.clip_by_value(perturbation, -eps, eps)
    length = norms.sample_norm(perturbation)
    shrink = eps / tf.maximum(length, eps)
    return norms.expand_like(shrink, perturbation) * perturbation


def uniform_point(
    x: tf.Tensor, eps: float, norm: float, seed: int, stream: int | tf.Tensor
) -> tf.Tensor:
    """A point drawn uniformly from the l_p ball of radius eps, p = 2 or inf.

    Args:
        x: (B, ...), the samples, which the random numbers follow from.
        eps: the radius.
        norm: the order p, 2 or inf.
        seed: see `stateless_random.uniform`.
        stream: the first of `STREAMS_OF_A_POINT` streams.

    Returns:
        (B, ...).
    """
    if norm == math.inf:
        return eps * (2 * stateless_random.uniform(x, seed, stream) - 1)
    # In D dimensions the radius is eps * u^(1/D), u uniform in (0, 1).
    direction = stateless_random.normal(x, seed, stream)
    u = stateless_random.uniform_per_sample(x, seed, stream + 2)
    size = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), x.dtype)
    radius = eps * u ** (1 / size)
    return norms.expand_like(radius, x) * steepest_ascent(direction, norm)


def random_direction(
    x: tf.Tensor, norm: float, seed: int, stream: int | tf.Tensor
) -> tf.Tensor:
    """A random vector of l_p norm 1 for each sample: (B, ...).

    A point of the cube for p = inf, a uniform direction else, each over its
    norm. Arguments as in `uniform_point`, of any order p.
    """
    if norm == math.inf:
        vector = 2 * stateless_random.uniform(x, seed, stream) - 1
    else:
        vector = stateless_random.normal(x, seed, stream)
    return vector / norms.expand_like(norms.sample_norm(vector, norm), x)
