"""Auto-PGD (Croce and Hein, ICML 2020): PGD that finds its own step size.

Section 3 of "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks"; the losses are those of its Section 4.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import decisions, lp_ball, pgd, rows
from dd_keras.utils import norms, validation

LOSSES = ("cross_entropy", "dlr", "targeted_dlr")

# Lengths of the windows between checkpoints, as shares of all steps: the
# first, by how much each is shorter than the last, and the shortest.
_FIRST_WINDOW, _WINDOW_DECREASE, _SHORTEST_WINDOW = 0.22, 0.03, 0.06
# The step is halved if the loss grew in at most this share of a window's steps.
_SHARE_OF_INCREASES = 0.75
_FIRST_STEP = 2.0  # in radii: across the ball
# How much of a step is new; the rest is the last one, gone again.
_SHARE_OF_STEP = 0.75


class _Memory(NamedTuple):
    """What the step rule remembers of a restart."""

    step_size: tf.Tensor  # (A,)
    previous: tf.Tensor  # (A, ...): the perturbation before the last step
    loss: tf.Tensor  # (A,): at the last evaluation
    increases: tf.Tensor  # (A,) int32: steps of this window that raised it
    best: tf.Tensor  # (A, ...): the perturbation of the highest loss
    best_gradient: tf.Tensor  # (A, ...): the gradient there
    best_loss: tf.Tensor  # (A,)
    best_loss_before: tf.Tensor  # (A,): at the last checkpoint
    halved: tf.Tensor  # (A,) bool: at the last checkpoint


@keras.saving.register_keras_serializable("dd_keras")
class APGD(pgd.ProjectedGradient):
    """PGD with momentum and an adaptive step size, halved without progress.

    From a random point at distance eps, and with a first step of 2 eps,

        z = P(x_k + step * direction(grad loss(x_k))),
        x_(k+1) = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_(k-1))),

    where P is the projection to the ball and to `bounds`. The steps are
    divided into windows of decreasing length. At the end of a window, a sample
    halves its step and returns to its best point if the loss increased in at
    most 75 % of the window's steps, or if the step was not halved at the last
    checkpoint and the best loss has not improved since (the paper's Conditions
    1 and 2).

    The loss is one of

    - `"cross_entropy"`. Where the softmax saturates, its gradient vanishes in
      float32, and attacks that use it make no progress. Here the direction is
      that of `decisions.cross_entropy_logit_gradient`, and checkpoints compare
      `decisions.cross_entropy_odds`, which orders points as the cross-entropy
      does; neither saturates.
    - `"dlr"`, the difference of logits ratio, for three or more classes.
    - `"targeted_dlr"`, towards each of the most probable other classes in
      turn, for four or more classes; the strongest.

    A sample stops as soon as it is fooled; an already misclassified one is not
    perturbed. For a sample that is never fooled, the result is the
    perturbation with the smallest margin.

    Args:
        eps: radius of the l_p ball, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        loss: `"cross_entropy"`, `"dlr"` or `"targeted_dlr"`.
        steps: number of steps of a restart, at least 1.
        restarts: number of starts, at least 1; with `"targeted_dlr"`, for each
            target.
        num_targets: number of target classes of `"targeted_dlr"`, at least 1,
            capped at the number of other classes. No effect with other losses.
        bounds: as in `FGSM`.
        seed: seed of the random starts, as in `PGD`.

    Raises:
        ValueError: if an argument is outside its range, or, when a model is
            attacked, if it has too few classes for the loss.

    Example:
        >>> attack = dd_keras.attacks.APGD(
        ...     eps=0.1, loss="dlr", steps=20, bounds=(0, 1)
        ... )
        >>> found = attack.run(classifier, x_test, y_test)
        >>> print(1 - np.mean(found.fooled) < 0.9)  # robust accuracy
        True
    """

    random_start = True

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        loss: str = "cross_entropy",
        steps: int = 100,
        restarts: int = 1,
        num_targets: int = 9,
        bounds: tuple | None = None,
        seed: int = 0,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.norm = lp_ball.validate_order(norm)
        if loss not in LOSSES:
            raise ValueError(
                f"loss: expected one of {', '.join(LOSSES)}; received {loss!r}."
            )
        self.loss = loss
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.restarts = validation.validate_integer(
            "restarts", restarts, at_least=1
        )
        self.num_targets = validation.validate_integer(
            "num_targets", num_targets, at_least=1
        )
        self.bounds = validation.validate_bounds(bounds)
        self.seed = validation.validate_integer("seed", seed, at_least=0)

    def targets(self, logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The most probable other classes, (B, m), if the loss is targeted."""
        if self.loss != "targeted_dlr":
            return super().targets(logits, y)
        return decisions.most_probable_others(logits, y, self.num_targets)

    def loss_value(
        self, logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor
    ) -> tf.Tensor:
        """The value that checkpoints compare: (A,), increasing in the loss."""
        if self.loss == "cross_entropy":
            return decisions.cross_entropy_odds(logits, y)
        if self.loss == "dlr":
            return decisions.difference_of_logits_ratio(logits, y)
        return decisions.targeted_difference_of_logits_ratio(logits, y, target)

    def loss_gradient(
        self, logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor
    ) -> tf.Tensor:
        """The gradient of the maximised loss by the logits, (A, n)."""
        if self.loss == "cross_entropy":
            return decisions.cross_entropy_logit_gradient(logits, y)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = self.loss_value(logits, y, target)
        return tape.gradient(loss, logits)

    def start(self, x: tf.Tensor, restart: tf.Tensor) -> tf.Tensor:
        """A perturbation of length eps in a random direction, (A, ...)."""
        return self.eps * lp_ball.random_direction(
            x, self.norm, self.seed, self.stream_of(restart)
        )

    def initial_memory(self, x: tf.Tensor) -> Any:
        """The memory at the start of a restart; any first point improves it."""
        zero = tf.zeros_like(x)
        none = tf.zeros_like(tf.reshape(x, (tf.shape(x)[0], -1))[:, 0])
        return _Memory(
            step_size=none + _FIRST_STEP * self.eps,
            previous=zero,
            loss=none + math.inf,
            increases=tf.zeros_like(none, tf.int32),
            best=zero,
            best_gradient=zero,
            best_loss=none - math.inf,
            best_loss_before=none - math.inf,
            halved=tf.ones_like(none, tf.bool),
        )

    def step(self, here: pgd.Iterate) -> tuple[tf.Tensor, Any]:
        """One step, before its final projection."""
        memory = self._evaluate(here)
        point, gradient, memory = self._check(here, memory)
        direction = lp_ball.steepest_ascent(gradient, self.norm)
        eta = norms.expand_like(memory.step_size, point)
        z = self.within_bounds(here.x, self.project(point + eta * direction))
        share = tf.where(here.step == 0, 1.0, _SHARE_OF_STEP)
        share = tf.cast(share, point.dtype)
        moved = share * (z - point) + (1 - share) * (point - memory.previous)
        return point + moved, memory._replace(previous=point)

    def _evaluate(self, here):
        """The memory with the loss of this iterate."""
        memory = here.memory
        loss = self.loss_value(here.logits, here.y, here.target)
        best, best_gradient, best_loss = rows.choose_rows(
            loss > memory.best_loss,
            (here.perturbation, here.gradient, loss),
            (memory.best, memory.best_gradient, memory.best_loss),
        )
        return memory._replace(
            loss=loss,
            increases=memory.increases + tf.cast(loss > memory.loss, tf.int32),
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            best_loss_before=tf.where(
                here.step == 0, loss, memory.best_loss_before
            ),
        )

    def _check(self, here, memory):
        """Where to go on from, its gradient, and the memory; at a checkpoint.

        Elsewhere, from where the samples are.
        """
        window = tf.gather(windows(self.steps), here.step)
        unchanged = here.perturbation, here.gradient, memory

        def checkpoint():
            most = tf.cast(window, here.x.dtype) * _SHARE_OF_INCREASES
            rarely = tf.cast(memory.increases, here.x.dtype) <= most
            stuck = memory.best_loss <= memory.best_loss_before
            halve = rarely | (stuck & ~memory.halved)
            point, gradient = rows.choose_rows(
                halve, (memory.best, memory.best_gradient), unchanged[:2]
            )
            size = memory.step_size
            return (
                point,
                gradient,
                memory._replace(
                    step_size=tf.where(halve, size / 2, size),
                    increases=tf.zeros_like(memory.increases),
                    best_loss_before=memory.best_loss,
                    halved=halve,
                ),
            )

        return tf.cond(window > 0, checkpoint, lambda: unchanged)


def windows(steps: int) -> np.ndarray:
    """The windows between checkpoints: (steps + 1,) int32.

    After step k, the length of the window that ends there; 0 where none does.
    """
    lengths = np.zeros(steps + 1, np.int32)
    decrease = max(int(_WINDOW_DECREASE * steps), 1)
    shortest = max(int(_SHORTEST_WINDOW * steps), 1)
    length = max(int(_FIRST_WINDOW * steps), 1)
    end = length
    while end <= steps:
        lengths[end] = length
        length = max(length - decrease, shortest)
        end += length
    return lengths
