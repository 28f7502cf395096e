"""The derivative of a distance by the weights, at the boundary point found.

Let x* = x + delta be the point of the decision boundary nearest to x, where
g = f_k - f_s, the difference of the logits of the classes on both sides, is
zero. By the envelope theorem

    d ||delta||_p / dW = -(dg(x*; W) / dW) / ||grad_x g(x*)||_q,

q being the order of the dual norm; within bounds, that of the coordinates that
are free to move. All but g is constant: no second derivative, and whatever
attack found x*.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import (
    AttackResult,
    Forward,
    decisions,
    inference_form,
)
from dd_keras.attacks import base as attacks_base
from dd_keras.utils import norms


def distance(
    network: keras.Model,
    x: tf.Tensor,
    labels: tf.Tensor,
    found: AttackResult,
    attack: Any,
) -> tf.Tensor:
    """The lengths of perturbations, with their derivatives by the weights.

    Correctly classified samples are moved off their label, misclassified ones
    onto it. A sample whose perturbation ends short of the boundary has the
    derivative of the distance by the linearisation where it ends; so have
    misclassified ones of attacks other than DeepFool, which leave them where
    they are.

    Args:
        network: a built `keras.Model` that gives logits.
        x: (B, ...), the clean inputs.
        labels: int32, (B,).
        found: what `attack` found from there.
        attack: an `attacks.Attack` with a `norm`.

    Returns:
        (B,): ||perturbation||_p. A tape that watches the weights differentiates
        it as above; it has no derivative by `x`.
    """
    perturbation = tf.stop_gradient(found.perturbation)
    at = Forward.of(inference_form(network), tf.stop_gradient(x) + perturbation)
    margin = decisions.margin(at.logits, labels)  # 0 at the boundary
    slope = norms.sample_norm(
        _free(
            at.gradient(decisions.margin_logit_gradient(at.logits, labels)),
            at.x,
            attack,
        ),
        norms.dual_norm(attack.norm),
    )
    slope = tf.stop_gradient(slope)
    steep = slope > norms.ZERO_NORM
    moved = tf.where(
        steep,
        (margin - tf.stop_gradient(margin)) / tf.where(steep, slope, 1.0),
        0.0,
    )  # zero, but not its derivative
    # DeepFool lengthens what it found, so as to cross the boundary.
    moved *= 1.0 + getattr(attack, "overshoot", 0.0)
    correct = found.predictions == labels
    return norms.sample_norm(perturbation, attack.norm) + tf.where(
        correct, moved, -moved
    )


def _free(w: tf.Tensor, x: tf.Tensor, attack: Any) -> tf.Tensor:
    """w, (B, ...), but zero where x is at a bound of the attack."""
    if attack.bounds is None:
        return w
    low, high = attack.limits(x)
    slack = attacks_base.ROUNDING * np.subtract(high, low)
    inside = (x > low + slack) & (x < high - slack)
    return tf.where(inside, w, tf.zeros_like(w))
