"""Attacks along the gradient of the loss: FGSM, BIM and PGD.

FGSM is the fast gradient sign method (Goodfellow et al., ICLR 2015), BIM its
basic iterative form (Kurakin et al., 2017), PGD projected gradient descent
from random starts (Madry et al., ICLR 2018).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base, draws
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class FGSM(base.Attack):
    """One step of size eps along the sign of the gradient of the loss.

        perturbation = eps * sign(grad_x CE(f(x), y))

    and its negative, towards y, if `targeted`. Every sample takes the step,
    also one that is misclassified already.

    Args:
        eps: the l_inf length of the step, above 0, in units of the inputs.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None, as in the paper, for no bounds.
        targeted: whether `y` holds the classes to reach, not to leave.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    norm = math.inf

    def __init__(self, eps, bounds=None, targeted=False):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps": self.eps,
            "bounds": self.bounds,
            "targeted": self.targeted,
        }

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        start = _Start.at(self, network, x, y, forward)
        perturbation = self.within_bounds(x, self.eps * start.direction())
        logits = start.f(x + perturbation)
        return base.AttackResult(
            perturbation,
            start.predictions,
            base.reached(logits, start.y, self.targeted),
            tf.ones_like(start.y),
        )


@keras.saving.register_keras_serializable("dd_keras")
class MinimalFGSM(base.Attack):
    """The smallest eps at which FGSM fools each sample.

    The direction is FGSM's, the sign of the gradient at the clean input; eps
    grows from 0 in equal steps until the decision changes, and is then
    narrowed down by halving. Its l_inf length is what the Deep Defense
    supplement's rho_inf (Eq. 2) averages, over that of the input. A sample
    whose label is not the class predicted is fooled at eps 0; one that no eps
    fools gets the largest.

    Args:
        eps_max: the largest eps tried, above 0; by default the width of
            `bounds`, or without these that of each input, max x - min x.
        steps: number of equal steps up to `eps_max`, at least 1. An interval
            of eps between two steps that fools and does not is missed.
        tolerance: to which eps is found, as a share of `eps_max`, above 0.
        bounds: as in `FGSM`.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    norm = math.inf

    def __init__(self, eps_max=None, steps=32, tolerance=1e-4, bounds=None):
        if eps_max is not None:
            eps_max = validation.validate_number("eps_max", eps_max, above=0)
        self.eps_max = eps_max
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.tolerance = validation.validate_number(
            "tolerance", tolerance, above=0
        )
        self.bounds = validation.validate_bounds(bounds)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps_max": self.eps_max,
            "steps": self.steps,
            "tolerance": self.tolerance,
            "bounds": self.bounds,
        }

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        start = _Start.at(self, network, x, y, forward)
        direction = start.direction()
        eps_max = self._largest(x)  # (B,)
        wrong = tf.not_equal(start.predictions, start.y)

        def fools(rows, share):
            """Whether the given shares of eps_max fool these samples."""
            clean, sign = tf.gather(x, rows), tf.gather(direction, rows)
            eps = norms.expand_like(share * tf.gather(eps_max, rows), clean)
            logits = start.f(clean + self.within_bounds(clean, eps * sign))
            return base.reached(logits, tf.gather(start.y, rows), False)

        def climb(i, found, share):
            rows = base.rows_to_move(~found)
            tried = tf.cast(i / self.steps, x.dtype)
            fooled = fools(rows, tried) | tf.gather(found, rows)
            old = tf.gather(share, rows)
            new = tf.where(tf.gather(found, rows), old, tried)
            return (
                i + 1,
                base.put(found, rows, fooled),
                base.put(share, rows, new),
            )

        _, fooled, high = tf.while_loop(
            lambda i, found, _: ~tf.reduce_all(found),
            climb,
            (1, wrong, tf.zeros_like(eps_max)),
            maximum_iterations=self.steps,
        )

        def halve(low, high):
            middle = (low + high) / 2
            rows = tf.range(tf.size(middle))
            below = fools(rows, middle) & fooled
            return tf.where(below, low, middle), tf.where(below, middle, high)

        low = tf.maximum(high - 1 / self.steps, 0.0)
        halvings = math.ceil(-math.log2(self.tolerance * self.steps))
        _, narrowed = tf.while_loop(
            lambda *_: True,
            halve,
            (low, high),
            maximum_iterations=max(halvings, 0),
        )
        # Halving moves only what was fooled, and by a step, not at 0.
        eps = tf.where(fooled & ~wrong, narrowed, high) * eps_max
        perturbation = norms.expand_like(eps, x) * direction
        return base.AttackResult(
            self.within_bounds(x, perturbation),
            start.predictions,
            fooled,
            tf.where(wrong, 0, tf.ones_like(start.y)),
        )

    def _largest(self, x):
        """The largest eps tried, for each sample: (B,)."""
        if self.eps_max is not None:
            return tf.fill(tf.shape(x)[:1], tf.constant(self.eps_max, x.dtype))
        if self.bounds is not None:
            low, high = self.limits(x)
            return tf.fill(tf.shape(x)[:1], tf.reduce_max(high - low))
        axes = list(range(1, x.shape.rank))
        return tf.reduce_max(x, axes) - tf.reduce_min(x, axes)


class _ProjectedGradient(base.Attack):
    """Steps up the loss, each projected back into the ball of radius eps.

    A sample leaves the batch once it is fooled; one that is misclassified
    already gets a zero perturbation. Of a sample that never is fooled, the
    result is the perturbation that came closest. Subclasses set `eps`,
    `norm`, `steps`, `step_size`, `random_start`, `restarts`, `seed`,
    `bounds` and `targeted`.
    """

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        start = _Start.at(self, network, x, y, forward)
        state = _State(
            active=~base.reached(start.logits, start.y, self.targeted),
            iterations=tf.zeros_like(start.y),
            perturbation=tf.zeros_like(x),
            best=tf.zeros_like(x),
            margin=base.margin(start.logits, start.y, self.targeted),
        )
        # Each restart looks at its start and at what every step came to.
        looks = self.steps + 1

        def iterate(i, state):
            rows = base.rows_to_move(state.active)  # (A,)
            now = _State(*(tf.gather(t, rows) for t in state))
            clean, y = tf.gather(x, rows), tf.gather(start.y, rows)
            perturbation = tf.cond(
                i % looks == 0,
                lambda: self._start(clean, i // looks),
                lambda: now.perturbation,
            )
            perturbation = self.within_bounds(clean, perturbation)
            here = base.Forward.of(start.f, clean + perturbation)
            margin = base.margin(here.logits, y, self.targeted)
            fooled = base.reached(here.logits, y, self.targeted)
            # Where classes tie, a decision may change at the same margin.
            better = now.active & (fooled | (margin < now.margin))
            uphill = here.gradient(base.ascent(here.logits, y, self.targeted))
            step = self.step_size * _steepest(uphill, self.norm)
            new = _State(
                active=now.active & ~fooled,
                iterations=now.iterations
                + tf.cast(now.active & (i % looks > 0), tf.int32),
                perturbation=_project(perturbation + step, self.eps, self.norm),
                best=tf.where(
                    norms.expand_like(better, clean), perturbation, now.best
                ),
                margin=tf.where(better, margin, now.margin),
            )
            return i + 1, _State(
                *(
                    base.put(old, rows, part)
                    for old, part in zip(state, new, strict=True)
                )
            )

        _, state = tf.while_loop(
            lambda i, state: tf.reduce_any(state.active),
            iterate,
            (0, state),
            maximum_iterations=self.restarts * looks,
            parallel_iterations=1,
        )
        return base.AttackResult(
            state.best, start.predictions, ~state.active, state.iterations
        )

    def _start(self, x, restart):
        """Where a restart begins: within the ball, or at its centre."""
        if not self.random_start:
            return tf.zeros_like(x)
        stream = 3 * restart  # each start takes up to three
        if self.norm == math.inf:
            return self.eps * (2 * draws.uniform(x, self.seed, stream) - 1)
        # Uniform in the l_2 ball of D dimensions: radius eps * u^(1/D).
        way = draws.normal(x, self.seed, stream)
        u = draws.one_each(x, self.seed, stream + 2)
        size = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), x.dtype)
        radius = self.eps * u ** (1 / size)
        return norms.expand_like(radius, x) * _steepest(way, self.norm)


@keras.saving.register_keras_serializable("dd_keras")
class BIM(_ProjectedGradient):
    """FGSM in small steps: the basic iterative method.

    From the clean input, `steps` times

        perturbation <- clip(perturbation + step_size * sign(gradient)),

    to an l_inf ball of radius eps and to `bounds`. A sample stops as soon as
    it is fooled; one that is misclassified already is left as it is.

    Args:
        eps: the largest perturbation in l_inf, above 0, in units of the
            inputs.
        steps: most steps a sample takes, at least 1.
        step_size: of each step, above 0; by default 2.5 * eps / steps.
        bounds: as in `FGSM`.
        targeted: whether `y` holds the classes to reach, not to leave.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    norm = math.inf
    random_start = False
    restarts = 1

    def __init__(
        self, eps, steps=10, step_size=None, bounds=None, targeted=False
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        if step_size is None:
            step_size = _USUAL_REACH * self.eps / self.steps
        self.step_size = validation.validate_number(
            "step_size", step_size, above=0
        )
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps": self.eps,
            "steps": self.steps,
            "step_size": self.step_size,
            "bounds": self.bounds,
            "targeted": self.targeted,
        }


@keras.saving.register_keras_serializable("dd_keras")
class PGD(_ProjectedGradient):
    """Projected gradient descent, from random starts; the best of them.

    From a point drawn uniformly from the l_p ball of radius eps, `steps`
    times

        perturbation <- project(perturbation + step_size * direction),

    to the ball and to `bounds`; the direction is the sign of the gradient of
    the loss for p = inf, and the gradient over its l_2 norm for p = 2. A
    sample stops as soon as it is fooled, in whichever restart; one that is
    misclassified already is left as it is. Of a sample that is never fooled
    the result is the perturbation that came closest.

    Args:
        eps: the largest perturbation in l_p, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        steps: steps of a restart, at least 1.
        step_size: of each step in l_p, above 0; by default 2.5 * eps / steps,
            as in Madry et al.
        random_start: whether to start at random, or at the clean input.
        restarts: number of starts, at least 1; one if none is random.
        bounds: as in `FGSM`.
        targeted: whether `y` holds the classes to reach, not to leave.
        seed: of the random starts, an integer of at least 0. A sample's
            starts follow from it and from the sample itself, not from the
            batch that it is in; equal samples have equal starts.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    def __init__(
        self,
        eps,
        norm=math.inf,
        steps=40,
        step_size=None,
        random_start=True,
        restarts=1,
        bounds=None,
        targeted=False,
        seed=0,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        if norm not in (2, math.inf):
            raise ValueError(f"norm: expected 2 or inf; received {norm!r}.")
        self.norm = float(norm)
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        if step_size is None:
            step_size = _USUAL_REACH * self.eps / self.steps
        self.step_size = validation.validate_number(
            "step_size", step_size, above=0
        )
        self.random_start = bool(random_start)
        self.restarts = validation.validate_integer(
            "restarts", restarts, at_least=1
        )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                "restarts: expected 1 without random_start, since all would "
                f"be the same; received {restarts}."
            )
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)
        self.seed = validation.validate_integer("seed", seed, at_least=0)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "bounds": self.bounds,
            "targeted": self.targeted,
            "seed": self.seed,
        }


# All steps together reach this many times the radius, as in Madry et al.: far
# enough to get from any start to anywhere on the ball.
_USUAL_REACH = 2.5


class _Start(NamedTuple):
    """The clean inputs, and what a network makes of them."""

    f: Callable  # x -> class logits
    forward: base.Forward
    predictions: tf.Tensor  # (B,) int32
    y: tf.Tensor  # (B,) int32: the classes to leave, or to reach
    norm: float
    targeted: bool

    @classmethod
    def at(cls, settings, network, x, y, forward):
        """Looks at the clean inputs of an attack."""
        f = base.inference_form(network)
        forward = forward or base.Forward.of(f, x)
        predictions = base.decide(forward.logits)
        classes = forward.logits.shape[-1]
        y = predictions if y is None else sparse_labels(y, classes)
        return cls(f, forward, predictions, y, settings.norm, settings.targeted)

    @property
    def logits(self):
        """Of the clean inputs, (B, n)."""
        return self.forward.logits

    def direction(self):
        """The steepest way up the loss, of the shape of x."""
        uphill = base.ascent(self.logits, self.y, self.targeted)
        return _steepest(self.forward.gradient(uphill), self.norm)


class _State(NamedTuple):
    """Where each sample of a batch stands."""

    active: tf.Tensor  # (B,) bool: not fooled yet
    iterations: tf.Tensor  # (B,) int32: steps taken
    perturbation: tf.Tensor  # (B, ...): to look at next
    best: tf.Tensor  # (B, ...): the one of the smallest margin
    margin: tf.Tensor  # (B,): that margin


def _steepest(gradient, norm):
    """The vector of l_p length 1 that goes up a gradient the most."""
    if norm == math.inf:
        return tf.sign(gradient)
    length = norms.sample_norm(gradient)
    return tf.math.divide_no_nan(gradient, norms.expand_like(length, gradient))


def _project(perturbation, eps, norm):
    """The closest point of the l_p ball of radius eps, p = inf or 2."""
    if norm == math.inf:
        return tf.clip_by_value(perturbation, -eps, eps)
    length = norms.sample_norm(perturbation)
    shrink = eps / tf.maximum(length, eps)
    return norms.expand_like(shrink, perturbation) * perturbation
