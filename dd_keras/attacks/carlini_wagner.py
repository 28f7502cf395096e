"""The l_2 attack of Carlini and Wagner (IEEE S&P 2017), batched.

Sections V and VI-A of "Towards Evaluating the Robustness of Neural Networks".
"""

import math
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, passes, rows
from dd_keras.attacks.carlini_wagner_state import (
    Samples,
    State,
    choose,
    repeat,
)
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation

# Adam's constants, as in its paper.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# A descent is checked this many times, and has stalled if its objective has
# not decreased by this share since the last check; as in the authors' code.
_CHECKS_PER_DESCENT = 10
_STALLED_DECREASE = 1e-4
# The tanh is stretched by this share, so that pixels at a bound, many in black
# and white images, still move. (The authors' code: 1e-6.)
_TANH_STRETCH = 0.02
# The first const, as a multiple of what an affine classifier needs: enough for
# most samples of a network.
_INITIAL_CONST_FACTOR = 3.0
# While all consts of a sample fail, or all succeed, the next one is larger, or
# smaller, by this factor.
_CONST_GROWTH = 4.0
# The search for const ends where the smallest that succeeds is within this
# factor of the largest that fails: the perturbation hardly depends on it.
_CONST_PRECISION = 2.0
# Adam's learning rate as a share of the distance to the boundary, in w and by
# pixel: with smaller steps a descent does not arrive, with larger ones it
# overshoots and returns too late.
_STEP_PER_DISTANCE = 0.1
# A learning rate is too large for the distance found from this multiple of the
# one that suits it.
_TOO_LARGE_STEP = 2.0


@keras.saving.register_keras_serializable("dd_keras")
class CarliniWagnerL2(base.Attack):
    """A small l_2 perturbation, by gradient descent on a penalty.

    For each sample, Adam minimises

        ||delta||_2^2 / scale^2 + const * max(margin(x + delta) + confidence, 0)

    where the margin is f_y - max_(k != y) f_k, or its negative if `targeted`
    (the paper's objective f_6). A search finds the smallest const with which
    the attack succeeds, that is, the margin is at most -`confidence`. With
    `bounds`, the variable is w, with delta = width / 2 * (tanh(w) - tanh(w_0))
    and tanh(w_0) the position of x within the bounds, so x + delta keeps to
    them. The result is the smallest successful perturbation of all descents,
    or, if there is none, the one with the smallest margin. A sample that needs
    no perturbation, such as a misclassified one at confidence 0, gets a zero
    one.

    Lengths are in units of a scale: high - low of `bounds` (its mean if they
    are arrays), or without bounds each sample's own max x - min x. So `const`
    and `learning_rate` mean the same for pixels up to 1 and up to 255, and for
    bounds (0, 1) the same as in the paper.

    Every sample has its own const, Adam state and early stopping, and its
    result does not depend on the rest of the batch. Finished samples leave the
    batch (under XLA, where shapes are static, they are masked). The result is
    not differentiable.

    Three changes to the paper's attack find perturbations as small in a tenth
    of the steps:

    - Each sample has its own first const and learning rate: those that an
      affine classifier with its margin and gradient would need. Once a descent
      has succeeded, its distance sets the learning rate.
    - The const grows and shrinks by factors of 4 instead of 10, until one
      fails and one succeeds. Then their geometric mean is tried, and the
      search ends when they are within a factor of 2.
    - The tanh reaches 2 % beyond the bounds, so that pixels at a bound move
      from the first step; they cannot reach the last 2 % before the other one.

    Args:
        confidence: the margin, in logits, by which the adversarial class must
            win, at least 0.
        binary_search_steps: maximum number of descents, at least 1.
        max_iter: maximum number of Adam steps in a descent, at least 1.
        learning_rate: upper limit of Adam's learning rate, in w, or without
            bounds in units of the scale; above 0.
        initial_const: the first const, above 0; None: each sample's own.
        abort_early: whether a descent ends once it has stalled.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.
        targeted: whether `y` holds target classes instead of true labels.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.CarliniWagnerL2(bounds=(0, 1))
        >>> found = attack.run(classifier, x_test[:20], y_test[:20])
        >>> print(np.all(found.fooled))
        True
        >>> adversarial = x_test[:20] + found.perturbation
        >>> print(np.min(adversarial) >= 0 and np.max(adversarial) <= 1)
        True
    """

    norm = 2.0

    def __init__(
        self,
        confidence: float = 0.0,
        binary_search_steps: int = 9,
        max_iter: int = 200,
        learning_rate: float = 0.1,
        initial_const: float | None = None,
        abort_early: bool = True,
        bounds: tuple | None = None,
        targeted: bool = False,
    ):
        self.confidence = validation.validate_number(
            "confidence", confidence, at_least=0
        )
        self.binary_search_steps = validation.validate_integer(
            "binary_search_steps", binary_search_steps, at_least=1
        )
        self.max_iter = validation.validate_integer(
            "max_iter", max_iter, at_least=1
        )
        self.learning_rate = validation.validate_number(
            "learning_rate", learning_rate, above=0
        )
        if initial_const is not None:
            initial_const = validation.validate_number(
                "initial_const", initial_const, above=0
            )
        self.initial_const = initial_const
        self.abort_early = bool(abort_early)
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        scale = self.scale(x)
        origin = self._variable(x, scale, tf.zeros_like(x))
        samples = Samples(x, clean.y, scale, origin)

        def advance(state):
            """Every active sample's descent, up to its next check."""
            active = rows.active_rows(state.active)  # (A,)
            chosen = rows.gather_rows(samples, active)
            before = rows.gather_rows(state, active)
            after = self._check(chosen, self._descend(clean.f, chosen, before))
            after = choose(before.active, after, before)  # masks, under XLA
            return rows.scatter_rows(state, active, after)

        state = repeat(
            advance,
            self._initial_state(samples, clean.forward),
            self.binary_search_steps * _CHECKS_PER_DESCENT,
            lambda state: tf.reduce_any(state.active),
        )
        perturbation = self._perturbation(samples, state.best_w)
        perturbation = tf.stop_gradient(perturbation)
        # Evaluated once more: in a batch of another size, logits may round
        # differently.
        fooled = self._succeeds(clean.f(x + perturbation), clean.y)
        return base.AttackResult(
            perturbation, clean.predictions, fooled, state.iterations
        )

    def _initial_state(self, samples, forward):
        """The state before the first descent."""
        margin = self._margin(forward.logits, samples.y)
        done = self._succeeds(forward.logits, samples.y)
        zero = tf.zeros_like(margin)
        infinite = zero + math.inf
        no_steps, no_moment = tf.zeros_like(samples.y), tf.zeros_like(samples.x)
        const, learning_rate = self._affine_estimate(samples, forward)
        if self.initial_const is not None:
            const = zero + self.initial_const
        return State(
            active=~done,
            descents=no_steps,
            iterations=no_steps,
            const=const,
            largest_failing=zero,
            smallest_succeeding=infinite,
            learning_rate=learning_rate,
            found=tf.zeros_like(done),
            evaluations=no_steps,
            w=samples.origin,
            first_moment=no_moment,
            second_moment=no_moment,
            lowest=infinite,
            lowest_before=infinite,
            best_w=samples.origin,
            distance=tf.where(done, zero, infinite),
            margin=margin,
        )

    def _affine_estimate(self, samples, forward):
        """The const that affine classifiers need, and the learning rate.

        With the margin m + g . delta, the objective is smallest on the
        boundary, at delta = -m g / ||g||^2, from const = 2 m / ||g||^2 on.
        """
        margin = self._margin(forward.logits, samples.y) + self.confidence
        gradient = forward.gradient(
            decisions.margin_logit_gradient(
                forward.logits, samples.y, self.targeted
            )
        )
        slope = norms.sample_norm(gradient)
        steep = slope > norms.ZERO_NORM
        step = tf.where(steep, margin / slope**2, 0.0)  # (B,)
        delta = -norms.expand_like(step, gradient) * gradient
        delta = self.within_bounds(samples.x, delta)
        w = self._variable(samples.x, samples.scale, delta)
        const = _INITIAL_CONST_FACTOR * 2 * step / samples.scale**2
        return (
            tf.where(const > 0, const, 1.0),
            tf.where(
                steep, self._learning_rate_to(samples, w), self.learning_rate
            ),
        )

    def _learning_rate_to(self, samples, w):
        """Adam's learning rate, where the boundary is about at `w`: (B,)."""
        axes = list(range(1, w.shape.rank))
        distance = tf.reduce_mean(tf.square(w - samples.origin), axes) ** 0.5
        return tf.minimum(_STEP_PER_DISTANCE * distance, self.learning_rate)

    def _descend(self, f, samples, state):
        """Adam's steps up to the next check."""
        # max_iter steps, and the evaluation of where the last one ends.
        evaluations = self.max_iter + 1
        return repeat(
            lambda now: self._step(f, samples, now),
            state,
            math.ceil(evaluations / _CHECKS_PER_DESCENT),
        )

    def _step(self, f, samples, now):
        """Evaluates the objective at w, and takes a step of Adam from it."""
        with tf.GradientTape() as tape:
            tape.watch(now.w)
            delta = self._perturbation(samples, now.w)
            logits = f(samples.x + delta)
            margin = self._margin(logits, samples.y)
            scaled = delta / norms.expand_like(samples.scale, delta)
            axes = list(range(1, scaled.shape.rank))
            distance = tf.reduce_sum(tf.square(scaled), axes)
            penalty = tf.nn.relu(margin + self.confidence)
            objective = distance + now.const * penalty
        passes.count_backward(now.w)
        gradient = tape.gradient(objective, now.w)

        succeeds = self._succeeds(logits, samples.y)
        better = tf.where(
            succeeds,
            distance < now.distance,
            tf.math.is_inf(now.distance) & (margin < now.margin),
        )
        first_moment = _BETA_1 * now.first_moment + (1 - _BETA_1) * gradient
        second_moment = _BETA_2 * now.second_moment + (1 - _BETA_2) * tf.square(
            gradient
        )
        t = tf.cast(now.evaluations + 1, now.w.dtype)
        bias_correction = tf.sqrt(1 - _BETA_2**t) / (1 - _BETA_1**t)
        has_step = now.evaluations < self.max_iter  # the last one has none
        rate = tf.where(has_step, now.learning_rate * bias_correction, 0.0)
        step = first_moment / (tf.sqrt(second_moment) + _EPSILON)
        return now._replace(
            iterations=now.iterations + tf.cast(has_step, tf.int32),
            found=now.found | succeeds,
            evaluations=now.evaluations + 1,
            w=self._clip(now.w - norms.expand_like(rate, step) * step),
            first_moment=first_moment,
            second_moment=second_moment,
            lowest=tf.minimum(now.lowest, objective),
            best_w=tf.where(
                norms.expand_like(better, now.w), now.w, now.best_w
            ),
            distance=tf.where(better & succeeds, distance, now.distance),
            margin=tf.where(better, margin, now.margin),
        )

    def _check(self, samples, now):
        """Where a descent is over, the next const, or the end of the search."""
        over = now.evaluations > self.max_iter
        if self.abort_early:
            enough = (1 - _STALLED_DECREASE) * now.lowest_before
            over |= ~(now.lowest <= enough)
        learning_rate = tf.where(
            tf.math.is_inf(now.distance),
            tf.minimum(now.learning_rate * _CONST_GROWTH, self.learning_rate),
            self._learning_rate_to(samples, now.best_w),
        )
        # Steps too large for the distance succeed with any const; a success
        # with them says nothing about const.
        too_large = now.found & (
            now.learning_rate > _TOO_LARGE_STEP * learning_rate
        )
        failing = tf.where(now.found, now.largest_failing, now.const)
        succeeding = tf.where(
            now.found & ~too_large, now.const, now.smallest_succeeding
        )
        smaller = tf.where(
            failing > 0,
            tf.sqrt(failing * succeeding),
            succeeding / _CONST_GROWTH,
        )
        const = tf.where(
            tf.math.is_inf(succeeding), failing * _CONST_GROWTH, smaller
        )
        descents = now.descents + 1
        more = descents < self.binary_search_steps
        infinite = tf.zeros_like(now.const) + math.inf
        next_descent = now._replace(
            active=more & (succeeding > _CONST_PRECISION * failing),
            descents=descents,
            const=tf.where(too_large, now.const, const),
            largest_failing=failing,
            smallest_succeeding=succeeding,
            learning_rate=learning_rate,
            found=tf.zeros_like(now.found),
            evaluations=tf.zeros_like(now.evaluations),
            w=samples.origin,
            first_moment=tf.zeros_like(now.first_moment),
            second_moment=tf.zeros_like(now.second_moment),
            lowest=infinite,
            lowest_before=infinite,
        )
        same_descent = now._replace(lowest=infinite, lowest_before=now.lowest)
        return choose(over, next_descent, same_descent)

    def _margin(self, logits, y):
        return decisions.margin(logits, y, self.targeted)

    def _succeeds(self, logits, y):
        """Whether the network is fooled, and with confidence: (B,) bool."""
        return decisions.is_fooled(logits, y, self.targeted) & (
            self._margin(logits, y) <= -self.confidence
        )

    def _variable(self, x, scale, delta):
        """The w that stands for x + delta."""
        if self.bounds is None:
            return delta / norms.expand_like(scale, x)
        low, high = self.limits(x)
        position = (2 * (x + delta) - low - high) / (high - low)  # in [-1, 1]
        return tf.atanh((1 - _TANH_STRETCH) * position)

    def _perturbation(self, samples, w):
        """The delta that w stands for: 0 where it is the origin."""
        if self.bounds is None:
            return norms.expand_like(samples.scale, w) * w
        low, high = self.limits(w)
        moved = tf.tanh(w) - tf.tanh(samples.origin)
        # Within the bounds already, but for rounding: see `_clip`.
        return self.within_bounds(samples.x, (high - low) / 2 * moved)

    def _clip(self, w):
        """w, clipped to what stands for the bounds.

        Beyond, delta is clipped, and a pixel without gradient would not return.
        """
        if self.bounds is None:
            return w
        limit = math.atanh(1 - _TANH_STRETCH)
        return tf.clip_by_value(w, -limit, limit)
