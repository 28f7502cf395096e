"""The l_2 attack of Carlini and Wagner (IEEE S&P 2017), batched.

Sections V and VI-A of "Towards Evaluating the Robustness of Neural Networks".
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import norms, validation

# Adam's constants, as in its paper.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# A descent is looked at this often, and has stalled if its objective has not
# fallen by this share since; both as in the authors' code.
_CHECKS = 10
_FALL = 1e-4
# The tanh is stretched by this share, so that pixels at a bound, many in black
# and white images, still move. (The authors' code: 1e-6.)
_SLACK = 0.02
# What an affine classifier needs, times this: enough on networks, mostly.
_FIRST_CONST = 3.0
# While all of a sample's consts fail, or all succeed, the next is this far off.
_GROWTH = 4.0
# Where the smallest const that succeeds is known to this factor, its search
# ends: the perturbation at the boundary hardly depends on it.
_KNOWN = 2.0
# Adam's step, in every pixel, as a share of the way to the boundary: shorter
# ones do not arrive, longer ones overshoot and come back too late.
_STRIDE = 0.1
# From how many times this length on a step is too long for the way.
_COARSE = 2.0


@keras.saving.register_keras_serializable("dd_keras")
class CarliniWagnerL2(base.Attack):
    """The smallest l_2 perturbation, by gradient descent on a penalty.

    For each sample, Adam minimises

        ||delta||_2^2 / scale^2 + const * max(margin(x + delta) + confidence, 0)

    where the margin is f_y - max_(k != y) f_k, or its negative if `targeted`
    (the paper's objective f_6), and a search finds the smallest const that
    succeeds: that brings the margin to -`confidence` or below. With `bounds`,
    the descent is in w, delta = width / 2 * (tanh(w) - tanh(w_0)), from w_0
    on, where tanh(w_0) is the place of x in them; so x + delta keeps to them.
    The result is the smallest perturbation seen that succeeded, in
    whichever descent; of a sample that never did, the one of the smallest
    margin. One that succeeds without gets none, such as, at confidence 0, one
    that is misclassified.

    Lengths are in units of a scale: the width of `bounds` (its mean if they
    are arrays), or without bounds each sample's own max x - min x. So `const`
    and `learning_rate` mean the same for pixels up to 1 and up to 255, and for
    bounds (0, 1) what they mean in the paper.

    Every sample has its own const, Adam and early stopping, and its result
    does not depend on the others'. Those that are done leave the batch (under
    XLA, where shapes are static, they are masked). No gradient travels back
    through the result.

    Other than in the paper, to find as small ones in a tenth of the steps:

    - The first const and the learning rate are each sample's own, from what
      an affine classifier with its margin and gradient would need. Once a
      descent has succeeded, the way it found sets the learning rate.
    - The const grows and shrinks by factors of 4, not of 10, until one fails
      and one succeeds; then comes their geometric mean, and the search ends
      when they are within a factor of 2.
    - The tanh reaches 2 % beyond the bounds, so that pixels at one move at
      once; the last 2 % of the way to the other are out of their reach.

    Args:
        confidence: by how much the logit of the class reached must exceed that
            left, or the next, at least 0.
        binary_search_steps: most descents a sample takes, at least 1.
        max_iter: most Adam steps of a descent, at least 1.
        learning_rate: of Adam, at most, in w, or without bounds in units of
            the scale; above 0.
        initial_const: the first const, above 0; None: each sample's own.
        abort_early: whether a descent ends once it has stalled.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.
        targeted: whether `y` holds the classes to reach, not to leave.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    norm = 2.0

    def __init__(
        self,
        confidence=0.0,
        binary_search_steps=9,
        max_iter=200,
        learning_rate=0.1,
        initial_const=None,
        abort_early=True,
        bounds=None,
        targeted=False,
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

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "confidence": self.confidence,
            "binary_search_steps": self.binary_search_steps,
            "max_iter": self.max_iter,
            "learning_rate": self.learning_rate,
            "initial_const": self.initial_const,
            "abort_early": self.abort_early,
            "bounds": self.bounds,
            "targeted": self.targeted,
        }

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        f = base.inference_form(network)
        forward = forward or base.Forward.of(f, x)
        predictions = base.decide(forward.logits)
        classes = forward.logits.shape[-1]
        y = predictions if y is None else sparse_labels(y, classes)
        scale = self._scale(x)
        origin = self._variable(x, scale, tf.zeros_like(x))
        samples = _Samples(x, y, scale, origin)

        def advance(state):
            rows = base.rows_to_move(state.active)  # (A,)
            here = _Samples(*(tf.gather(t, rows) for t in samples))
            before = _State(*(tf.gather(t, rows) for t in state))
            after = self._check(here, self._descend(f, here, before))
            after = _choose(before.active, after, before)  # all, but under XLA
            return _State(
                *(
                    base.put(old, rows, new)
                    for old, new in zip(state, after, strict=True)
                )
            )

        state = _repeat(
            advance,
            self._begin(samples, forward),
            self.binary_search_steps * _CHECKS,
            lambda state: tf.reduce_any(state.active),
        )
        perturbation = self._perturbation(samples, state.best)
        perturbation = tf.stop_gradient(perturbation)
        # Asked anew: in a batch of another size, results round differently.
        fooled = self._succeeds(f(x + perturbation), y)
        return base.AttackResult(
            perturbation, predictions, fooled, state.iterations
        )

    def _begin(self, samples, forward):
        """The state before the first descent."""
        margin = self._margin(forward.logits, samples.y)
        done = self._succeeds(forward.logits, samples.y)
        zero = tf.zeros_like(margin)
        infinite = zero + math.inf
        none, nowhere = tf.zeros_like(samples.y), tf.zeros_like(samples.x)
        const, length = self._affine_estimate(samples, forward)
        if self.initial_const is not None:
            const = zero + self.initial_const
        return _State(
            active=~done,
            searches=none,
            iterations=none,
            const=const,
            fails=zero,
            succeeds=infinite,
            length=length,
            found=tf.zeros_like(done),
            steps=none,
            w=samples.origin,
            mean=nowhere,
            square=nowhere,
            lowest=infinite,
            lowest_before=infinite,
            best=samples.origin,
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
            _margin_gradient(forward.logits, samples.y, self.targeted)
        )
        size = norms.sample_norm(gradient)
        steep = size > norms.ZERO_NORM
        step = tf.where(steep, margin / size**2, 0.0)  # (B,)
        delta = -norms.expand_like(step, gradient) * gradient
        delta = self.within_bounds(samples.x, delta)
        w = self._variable(samples.x, samples.scale, delta)
        const = _FIRST_CONST * 2 * step / samples.scale**2
        return (
            tf.where(const > 0, const, 1.0),
            tf.where(steep, self._length(samples, w), self.learning_rate),
        )

    def _length(self, samples, w):
        """Adam's learning rate, where `w` is about how far it is: (B,)."""
        axes = list(range(1, w.shape.rank))
        way = tf.reduce_mean(tf.square(w - samples.origin), axes) ** 0.5
        return tf.minimum(_STRIDE * way, self.learning_rate)

    def _descend(self, f, samples, state):
        """Adam's steps up to the next check."""
        return _repeat(
            lambda now: self._step(f, samples, now),
            state,
            math.ceil((self.max_iter + 1) / _CHECKS),  # ends with a look
        )

    def _step(self, f, samples, now):
        """Looks at w, and takes a step of Adam from it."""
        with tf.GradientTape() as tape:
            tape.watch(now.w)
            delta = self._perturbation(samples, now.w)
            logits = f(samples.x + delta)
            margin = self._margin(logits, samples.y)
            share = delta / norms.expand_like(samples.scale, delta)
            axes = list(range(1, share.shape.rank))
            distance = tf.reduce_sum(tf.square(share), axes)
            penalty = tf.nn.relu(margin + self.confidence)
            objective = distance + now.const * penalty
        gradient = tape.gradient(objective, now.w)

        succeeds = self._succeeds(logits, samples.y)
        better = tf.where(
            succeeds,
            distance < now.distance,
            tf.math.is_inf(now.distance) & (margin < now.margin),
        )
        best = norms.expand_like(better, now.w)

        mean = _BETA_1 * now.mean + (1 - _BETA_1) * gradient
        square = _BETA_2 * now.square + (1 - _BETA_2) * tf.square(gradient)
        t = tf.cast(now.steps + 1, now.w.dtype)
        unbias = tf.sqrt(1 - _BETA_2**t) / (1 - _BETA_1**t)
        moving = now.steps < self.max_iter  # the last look takes no step
        rate = tf.where(moving, now.length * unbias, 0.0)
        step = mean / (tf.sqrt(square) + _EPSILON)
        return now._replace(
            iterations=now.iterations + tf.cast(moving, tf.int32),
            found=now.found | succeeds,
            steps=now.steps + 1,
            w=self._inside(now.w - norms.expand_like(rate, step) * step),
            mean=mean,
            square=square,
            lowest=tf.minimum(now.lowest, objective),
            best=tf.where(best, now.w, now.best),
            distance=tf.where(better & succeeds, distance, now.distance),
            margin=tf.where(better, margin, now.margin),
        )

    def _check(self, samples, now):
        """Goes on to the next const, or to the end, where a descent is over."""
        over = now.steps > self.max_iter
        if self.abort_early:
            over |= ~(now.lowest <= (1 - _FALL) * now.lowest_before)
        length = tf.where(
            tf.math.is_inf(now.distance),
            tf.minimum(now.length * _GROWTH, self.learning_rate),
            self._length(samples, now.best),
        )
        # Steps too long for the way succeed with any const: it says nothing.
        coarse = now.found & (now.length > _COARSE * length)
        fails = tf.where(now.found, now.fails, now.const)
        succeeds = tf.where(now.found & ~coarse, now.const, now.succeeds)
        middle = tf.where(
            fails > 0, tf.sqrt(fails * succeeds), succeeds / _GROWTH
        )
        const = tf.where(tf.math.is_inf(succeeds), fails * _GROWTH, middle)
        searches = now.searches + 1
        more = searches < self.binary_search_steps
        infinite = tf.zeros_like(now.const) + math.inf
        restarted = now._replace(
            active=more & (succeeds > _KNOWN * fails),
            searches=searches,
            const=tf.where(coarse, now.const, const),
            fails=fails,
            succeeds=succeeds,
            length=length,
            found=tf.zeros_like(now.found),
            steps=tf.zeros_like(now.steps),
            w=samples.origin,
            mean=tf.zeros_like(now.mean),
            square=tf.zeros_like(now.square),
            lowest=infinite,
            lowest_before=infinite,
        )
        same = now._replace(lowest=infinite, lowest_before=now.lowest)
        return _choose(over, restarted, same)

    def _margin(self, logits, y):
        return base.margin(logits, y, self.targeted)

    def _succeeds(self, logits, y):
        """Whether the decision is brought about, with confidence."""
        return base.reached(logits, y, self.targeted) & (
            self._margin(logits, y) <= -self.confidence
        )

    def _scale(self, x):
        """The unit of length of each sample: (B,)."""
        if self.bounds is not None:
            low, high = self.limits(x)
            return tf.fill(tf.shape(x)[:1], tf.reduce_mean(high - low))
        axes = list(range(1, x.shape.rank))
        width = tf.reduce_max(x, axes) - tf.reduce_min(x, axes)
        return tf.where(width > 0, width, 1.0)

    def _variable(self, x, scale, delta):
        """The w that stands for x + delta."""
        if self.bounds is None:
            return delta / norms.expand_like(scale, x)
        low, high = self.limits(x)
        place = (2 * (x + delta) - low - high) / (high - low)  # in [-1, 1]
        return tf.atanh((1 - _SLACK) * place)

    def _perturbation(self, samples, w):
        """The delta that w stands for: 0 where it is the origin."""
        if self.bounds is None:
            return norms.expand_like(samples.scale, w) * w
        low, high = self.limits(w)
        moved = tf.tanh(w) - tf.tanh(samples.origin)
        # Within the bounds already, but for rounding: see `_inside`.
        return self.within_bounds(samples.x, (high - low) / 2 * moved)

    def _inside(self, w):
        """w, no further out than what stands for the bounds.

        Beyond, delta is cut, and a pixel without gradient would not come back.
        """
        if self.bounds is None:
            return w
        limit = math.atanh(1 - _SLACK)
        return tf.clip_by_value(w, -limit, limit)


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave, or to reach
    scale: tf.Tensor  # (B,): the unit of length
    origin: tf.Tensor  # (B, ...): the w that stands for x


class _State(NamedTuple):
    """Where each sample of a batch stands."""

    active: tf.Tensor  # (B,) bool: goes on
    searches: tf.Tensor  # (B,) int32: descents that are over
    iterations: tf.Tensor  # (B,) int32: steps, of all descents
    # Of the search for const:
    const: tf.Tensor  # (B,)
    fails: tf.Tensor  # (B,): the largest that failed, or 0
    succeeds: tf.Tensor  # (B,): the smallest that succeeded, or inf
    length: tf.Tensor  # (B,): Adam's learning rate
    # Of this descent:
    found: tf.Tensor  # (B,) bool: has succeeded
    steps: tf.Tensor  # (B,) int32: looks, one more than the steps so far
    w: tf.Tensor  # (B, ...): where to look next
    mean: tf.Tensor  # (B, ...): Adam's, of the gradient
    square: tf.Tensor  # (B, ...): Adam's, of its square
    lowest: tf.Tensor  # (B,): objective since the last check
    lowest_before: tf.Tensor  # (B,): and before it
    # Of all descents:
    best: tf.Tensor  # (B, ...): the w to return
    distance: tf.Tensor  # (B,): its ||delta / scale||_2^2; inf if it fails
    margin: tf.Tensor  # (B,): its margin


def _choose(condition, state, other):
    """Sample by sample, one state or the other."""
    return _State(
        *(
            tf.where(norms.expand_like(condition, one), one, two)
            for one, two in zip(state, other, strict=True)
        )
    )


def _repeat(body, state, times, condition=lambda state: True):
    """Applies `body` to a state, as often as this or until `condition` ends."""
    (state,) = tf.while_loop(
        condition,
        lambda state: (body(state),),
        (state,),
        maximum_iterations=times,
        parallel_iterations=1,
    )
    return state


def _margin_gradient(logits, y, targeted):
    """The gradient of `base.margin` by the logits: (B, n)."""
    n = logits.shape[-1]
    rival = base.decide(base.mask_class(logits, y))
    difference = tf.one_hot(y, n, dtype=logits.dtype) - tf.one_hot(
        rival, n, dtype=logits.dtype
    )
    return -difference if targeted else difference
