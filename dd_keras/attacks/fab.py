"""FAB, the fast adaptive boundary attack (Croce and Hein, ICML 2020).

Section 2 of "Minimally distorted adversarial examples with a fast adaptive
boundary attack", in the targeted form in which AutoAttack uses it.
"""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base, box, decisions, lp_ball, rows
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation

# The paper's eta, alpha_max and beta: by how much a step overshoots the
# hyperplane, the largest weight of the step from the clean input, and how far
# an adversarial point is pulled back to the clean input.
_OVERSHOOT, _LARGEST_WEIGHT, _PULL_BACK = 1.05, 0.1, 0.9
# Random restarts begin at this share of the best length, or of eps.
_RESTART_SHARE = 0.5


@keras.saving.register_keras_serializable("dd_keras")
class FAB(base.Attack):
    """A small perturbation, by projections onto linearised boundaries.

    At x_k, the boundary between the class y and a target t is linearised. d is
    the shortest step onto this hyperplane from x_k, and d_0 that from the
    clean input x, both exact and within `bounds` (box.py). Then

        x_(k+1) = (1 - a) (x_k + 1.05 d) + a (x + 1.05 d_0),
        a = min(||d|| / (||d|| + ||d_0||), 0.1),

    clipped to `bounds`. If x_(k+1) fools the network and is closer than the
    best point so far, it is kept. An adversarial point is pulled back: the
    search continues from x + 0.9 (x_(k+1) - x). The targets are the
    `num_targets` most probable other classes in turn; in the untargeted form,
    each step goes to the nearest of all boundaries at x_k.

    With `eps`, only perturbations up to this length count, and a sample stops
    once it has one; without, all steps are taken. A sample that is not fooled
    has a zero perturbation, and so has an already misclassified one.

    Args:
        norm: the order p of the norm that is minimised, in [1, inf]; in the
            paper 1, 2 and inf.
        eps: the largest length of a perturbation, above 0, in units of the
            inputs; None for the shortest, whatever its length.
        steps: number of steps for each target and restart, at least 1.
        num_targets: number of target classes, at least 1, capped at the number
            of other classes. None for the untargeted form, whose steps cost a
            backward pass for each class.
        restarts: number of starts for each target, at least 1. All but the
            first are at a random point half as far away as the best found, or
            as `eps`.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.
        seed: seed of the random restarts, as in `PGD`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.FAB(norm=1, steps=20, bounds=(0, 1))
        >>> found = attack.run(classifier, x_test[:20], y_test[:20])
        >>> print(np.all(found.fooled))
        True
        >>> changed = np.sum(np.abs(found.perturbation) > 1e-6, axis=(1, 2, 3))
        >>> print(np.mean(changed) < 16)  # few of 64 pixels
        True
    """

    def __init__(
        self,
        norm: float = 2,
        eps: float | None = None,
        steps: int = 100,
        num_targets: int | None = 9,
        restarts: int = 1,
        bounds: tuple | None = None,
        seed: int = 0,
    ):
        self.norm = validation.validate_norm(norm)
        if eps is not None:
            eps = validation.validate_number("eps", eps, above=0)
        self.eps = eps
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        if num_targets is not None:
            num_targets = validation.validate_integer(
                "num_targets", num_targets, at_least=1
            )
        self.num_targets = num_targets
        self.restarts = validation.validate_integer(
            "restarts", restarts, at_least=1
        )
        self.bounds = validation.validate_bounds(bounds)
        self.seed = validation.validate_integer("seed", seed, at_least=0)

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        others = clean.logits.shape[-1] - 1
        targets = decisions.most_probable_others(
            clean.logits, clean.y, self.num_targets or others
        )
        fooled = decisions.is_fooled(clean.logits, clean.y)
        state = _State(
            active=~fooled,
            perturbation=tf.zeros_like(x),
            iterations=tf.zeros_like(clean.y),
            best=tf.zeros_like(x),
            length=tf.where(
                fooled, tf.zeros_like(clean.logits[:, 0]), math.inf
            ),
        )
        runs = self.restarts
        if self.num_targets is not None:
            runs *= targets.shape[1]
        state = rows.repeat_on_active(
            lambda i, samples, now: self._step(clean.f, i, samples, now),
            _Samples(x, clean.y, targets),
            state,
            runs * self.steps,
        )
        fooled = self._is_found(state.length)
        return base.AttackResult(
            rows.choose_rows(fooled, state.best, tf.zeros_like(x)),
            clean.predictions,
            fooled,
            state.iterations,
        )

    def _step(self, f, i, samples, now):
        """One step, evaluated, and pulled back where it fools."""
        run = i // self.steps
        perturbation = tf.cond(
            i % self.steps == 0,
            lambda: self._start(samples.x, now.length, run),
            lambda: now.perturbation,
        )
        at = Forward.of(f, samples.x + perturbation)
        gap, w = self._hyperplane(at, samples, run)
        moved = self._approach(samples.x, perturbation, gap, w)
        logits = f(samples.x + moved)
        fooled = decisions.is_fooled(logits, samples.y)
        length = norms.sample_norm(moved, self.norm)
        shorter = fooled & (length < now.length)
        length = tf.where(shorter, length, now.length)
        searching = self.eps is None or ~self._is_found(length)
        return now._replace(
            active=now.active & searching,
            perturbation=rows.choose_rows(fooled, _PULL_BACK * moved, moved),
            iterations=now.iterations + 1,
            best=rows.choose_rows(shorter, moved, now.best),
            length=length,
        )

    def _hyperplane(self, at, samples, run):
        """f_t - f_y and its gradient where the samples are: (A,), (A, ...)."""

        def boundary_to(target):
            difference = decisions.logit_difference(
                target, samples.y, at.logits
            )
            gap = tf.reduce_sum(difference * at.logits, axis=1)
            return gap, at.gradient(difference)

        if self.num_targets is not None:
            return boundary_to(
                tf.gather(samples.targets, run // self.restarts, axis=1)
            )

        def nearer(j, distance, nearest):
            gap, w = boundary_to(tf.gather(samples.targets, j, axis=1))
            slope = norms.sample_norm(w, norms.dual_norm(self.norm))
            new = tf.where(
                slope > norms.ZERO_NORM, tf.abs(gap) / slope, math.inf
            )
            return (
                j + 1,
                tf.minimum(new, distance),
                rows.choose_rows(new < distance, (gap, w), nearest),
            )

        zero = tf.zeros_like(at.logits[:, 0])
        _, _, nearest = tf.while_loop(
            lambda j, *_: j < samples.targets.shape[1],
            nearer,
            (0, zero + math.inf, (zero, tf.zeros_like(at.x))),
            parallel_iterations=1,
        )
        return nearest

    def _approach(self, x, perturbation, gap, w):
        """The next perturbation: both projections, overshot and averaged."""
        axes = list(range(1, x.shape.rank))
        from_x = tf.reduce_sum(w * perturbation, axes) - gap
        low, high = self.limits(x)
        both = tf.concat([x + perturbation, x], axis=0)  # one search for both
        steps = box.step_to_hyperplane(
            tf.concat([-gap, from_x], axis=0),
            tf.concat([w, w], axis=0),
            both - low,
            high - both,
            self.norm,
        )
        d, d_0 = tf.split(steps, 2)
        length, length_0 = tf.split(norms.sample_norm(steps, self.norm), 2)
        a = tf.minimum(
            tf.math.divide_no_nan(length, length + length_0), _LARGEST_WEIGHT
        )
        a = norms.expand_like(a, x)
        moved = (1 - a) * (perturbation + _OVERSHOOT * d) + a * _OVERSHOOT * d_0
        return self.within_bounds(x, moved)

    def _start(self, x, length, run):
        """Where a run begins: the clean input, or in restarts near it."""
        if self.restarts == 1:
            return tf.zeros_like(x)
        reach = length if self.eps is None else tf.minimum(length, self.eps)
        # Where nothing was found, of any length, there is no scale.
        begins_near = (run % self.restarts > 0) & tf.math.is_finite(reach)
        reach = tf.where(begins_near, _RESTART_SHARE * reach, 0.0)
        direction = lp_ball.random_direction(
            x, self.norm, self.seed, lp_ball.STREAMS_OF_A_POINT * run
        )
        return self.within_bounds(x, norms.expand_like(reach, x) * direction)

    def _is_found(self, length):
        """Whether perturbations of these lengths count: (A,) bool."""
        if self.eps is None:
            return tf.math.is_finite(length)
        return length <= self.eps


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave
    targets: tf.Tensor  # (B, m) int32: those to reach


class _State(NamedTuple):
    """The samples of a batch, between two steps."""

    active: tf.Tensor  # (B,) bool
    perturbation: tf.Tensor  # (B, ...): where they are
    iterations: tf.Tensor  # (B,) int32: steps taken
    best: tf.Tensor  # (B, ...): the shortest that fools
    length: tf.Tensor  # (B,): its length; inf if there is none
