"""Which samples of a batch a penalty of their distances is about."""

import math

import tensorflow as tf

AGGREGATIONS = ("mean", "min")
# Of the batch: how many of the samples nearest to a boundary "min" considers,
# the default of the code of Adversarial Margin Maximization (TPAMI 2019).
_SHARE = 0.2


def weakest_of_each_class(
    rho: tf.Tensor, labels: tf.Tensor, correct: tf.Tensor, classes: int
) -> tf.Tensor:
    """The samples by which the `min` aggregation goes.

    Of each class the correctly classified sample nearest to the decision
    boundary, if it is among the nearest fifth of the batch, and likewise the
    misclassified sample that is farthest from its class.

    Args:
        rho: floating, (B,): their distances.
        labels: int32, (B,).
        correct: bool, (B,): whether they are correctly classified.
        classes: how many there are.

    Returns:
        bool, (B,).
    """
    return _smallest(rho, labels, correct, classes) | _smallest(
        -rho, labels, ~correct, classes
    )


def _smallest(values, labels, considered, classes):
    """The smallest of each class, if among the smallest of all: (B,) bool."""
    values = tf.where(considered, values, math.inf)
    of_class = tf.range(classes)[:, None] == labels  # (n, B)
    rows = tf.argmin(tf.where(of_class, values, math.inf), axis=1)
    samples = tf.size(values)
    is_smallest = tf.reduce_any(
        tf.one_hot(rows, samples, on_value=True, off_value=False) & of_class,
        axis=0,
    )
    most = tf.maximum(
        1, tf.cast(_SHARE * tf.cast(samples, tf.float32), tf.int32)
    )
    ranks = tf.argsort(tf.argsort(values, stable=True))
    return considered & is_smallest & (ranks < most)
