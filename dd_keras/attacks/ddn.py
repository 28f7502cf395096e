"""DDN, decoupled direction and norm (Rony et al., CVPR 2019): shortest l_2.

Algorithm 1 of "Decoupling Direction and Norm for Efficient Gradient-Based L2
Adversarial Attacks and Defenses", without its rounding to 8 bits.
"""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, lp_ball, rows
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation

# The length of a step, in units of the scale: first, and at last as a share
# of it; in between as a cosine.
_FIRST_STEP, _LAST_SHARE = 1.0, 0.01


@keras.saving.register_keras_serializable("dd_keras")
class DDN(base.Attack):
    """A small l_2 perturbation, with decoupled direction and norm.

    From delta = 0 and radius r = 1, `steps` times

        r <- r (1 - gamma) where x + delta fools the network, else r (1 + gamma)
        delta <- delta + alpha g / ||g||_2,   delta <- r delta / ||delta||_2

    and delta is clipped to `bounds`. g is the gradient of the cross-entropy
    (from `decisions.cross_entropy_logit_gradient`, which does not vanish where
    the softmax saturates), and alpha decreases from 1 to 0.01 as a cosine. The
    result is the shortest perturbation found that fools the network; if none
    does, the one with the smallest margin. An already misclassified sample
    (with `targeted`, one already in its target class) is not perturbed.

    r and alpha are in units of high - low of `bounds` (its mean if they are
    arrays), or without bounds of each sample's own max x - min x.

    Args:
        steps: number of steps, at least 1; 300 to 1,000 for the shortest
            perturbations.
        gamma: relative change of the radius at each step, in (0, 1).
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.
        targeted: whether `y` holds target classes instead of true labels.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.DDN(steps=50, bounds=(0, 1))
        >>> found = attack.run(classifier, x_test, y_test)
        >>> print(np.all(found.fooled))
        True
        >>> l2 = tf.norm(tf.reshape(found.perturbation, (100, -1)), axis=1)
        >>> print(0 < np.mean(l2) < 2)
        True
    """

    norm = 2.0

    def __init__(
        self,
        steps: int = 300,
        gamma: float = 0.05,
        bounds: tuple | None = None,
        targeted: bool = False,
    ):
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.gamma = validation.validate_number("gamma", gamma, above=0)
        if self.gamma >= 1:
            raise ValueError(
                f"gamma: expected a number below 1; received {gamma!r}."
            )
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
        fooled = decisions.is_fooled(clean.logits, clean.y, self.targeted)
        scale = self.scale(x)
        state = _State(
            active=~fooled,
            perturbation=tf.zeros_like(x),
            radius=scale,
            iterations=tf.zeros_like(clean.y),
            best=tf.zeros_like(x),
            length=tf.where(fooled, tf.zeros_like(scale), math.inf),
            margin=decisions.margin(clean.logits, clean.y, self.targeted),
        )
        state = rows.repeat_on_active(
            lambda i, samples, now: self._step(clean.f, i, samples, now),
            _Samples(x, clean.y, scale),
            state,
            self.steps + 1,  # the last one evaluates where the last step ended
        )
        return base.AttackResult(
            state.best,
            clean.predictions,
            tf.math.is_finite(state.length),
            state.iterations,
        )

    def _step(self, f, i, samples, now):
        """Evaluates where the samples are, and takes a step from there."""
        at = Forward.of(f, samples.x + now.perturbation)
        fooled = decisions.is_fooled(at.logits, samples.y, self.targeted)
        now = self._keep_best(now, samples, at.logits, fooled)

        gradient = at.gradient(
            decisions.cross_entropy_logit_gradient(
                at.logits, samples.y, self.targeted
            )
        )
        alpha = norms.expand_like(self._step_size(i, samples.scale), samples.x)
        ahead = now.perturbation + alpha * lp_ball.steepest_ascent(gradient, 2)
        change = tf.where(
            fooled, -self.gamma * tf.ones_like(now.radius), self.gamma
        )
        radius = now.radius * (1 + change)
        radius = tf.minimum(radius, self._farthest(samples.x))
        moved = norms.expand_like(radius, ahead) * lp_ball.steepest_ascent(
            ahead, 2
        )
        return now._replace(
            perturbation=self.within_bounds(samples.x, moved),
            radius=radius,
            iterations=now.iterations + tf.cast(i < self.steps, tf.int32),
        )

    def _keep_best(self, now, samples, logits, fooled):
        """The state with what the evaluation of a step has shown."""
        length = norms.sample_norm(now.perturbation)
        margin = decisions.margin(logits, samples.y, self.targeted)
        better = tf.where(
            fooled,
            length < now.length,
            tf.math.is_inf(now.length) & (margin < now.margin),
        )
        return now._replace(
            best=rows.choose_rows(better, now.perturbation, now.best),
            length=tf.where(better & fooled, length, now.length),
            margin=tf.where(better, margin, now.margin),
        )

    def _step_size(self, i, scale):
        """The length of step i: (A,)."""
        progress = tf.cast(i, scale.dtype) / self.steps
        cosine = (1 + tf.cos(math.pi * progress)) / 2
        share = _LAST_SHARE + (1 - _LAST_SHARE) * cosine
        return _FIRST_STEP * share * scale

    def _farthest(self, x):
        """The length of the longest perturbation within bounds: (A,)."""
        if self.bounds is None:
            return tf.constant(math.inf, x.dtype)
        low, high = self.limits(x)
        return norms.sample_norm(tf.maximum(x - low, high - x))


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave, or to reach
    scale: tf.Tensor  # (B,): the unit of length


class _State(NamedTuple):
    """The samples of a batch, between two steps."""

    active: tf.Tensor  # (B,) bool: not fooled without any perturbation
    perturbation: tf.Tensor  # (B, ...): to be evaluated next
    radius: tf.Tensor  # (B,): its length, before bounds
    iterations: tf.Tensor  # (B,) int32: steps taken
    best: tf.Tensor  # (B, ...): the result
    length: tf.Tensor  # (B,): its length; inf if it does not fool
    margin: tf.Tensor  # (B,): its margin
