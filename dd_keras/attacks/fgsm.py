"""FGSM, one step along the sign of the gradient, and the smallest that fools.

The fast gradient sign method is of Goodfellow et al., ICLR 2015.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, lp_ball, rows
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class FGSM(base.Attack):
    """One step of size eps along the sign of the gradient of the loss.

        perturbation = eps * sign(grad_x CE(f(x), y))

    or, if `targeted`, its negative, towards y. Every sample takes the step,
    even if it is already misclassified. CE is the cross-entropy.

    Args:
        eps: the l_inf length of the step, above 0, in units of the inputs.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None, as in the paper, for no bounds.
        targeted: whether `y` holds target classes instead of true labels.
        float32_gradient: whether to compute the gradient of the cross-entropy
            in plain float32, where rounding errors dominate once the softmax
            saturates (for about half of the images of a good network). This
            is a weaker attack, and agrees with the numbers of the Deep
            Defense paper. Not with `targeted`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.FGSM(eps=0.1, bounds=(0, 1))
        >>> adversarial = attack(classifier, x_test, y_test)
        >>> _, clean = classifier.evaluate(x_test, y_test, verbose=0)
        >>> _, robust = classifier.evaluate(adversarial, y_test, verbose=0)
        >>> robust < clean
        True
    """

    norm = math.inf

    def __init__(
        self,
        eps: float,
        bounds: tuple | None = None,
        targeted: bool = False,
        float32_gradient: bool = False,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)
        self.float32_gradient = bool(float32_gradient)
        if self.targeted and self.float32_gradient:
            raise ValueError(
                "float32_gradient: expected False with targeted=True; received "
                "True."
            )

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        step = self.eps * _gradient_sign(
            clean, self.targeted, self.float32_gradient
        )
        perturbation = self.within_bounds(x, step)
        logits = clean.f(x + perturbation)
        return base.AttackResult(
            perturbation,
            clean.predictions,
            decisions.is_fooled(logits, clean.y, self.targeted),
            tf.ones_like(clean.y),
        )


@keras.saving.register_keras_serializable("dd_keras")
class MinimalFGSM(base.Attack):
    """The smallest eps at which FGSM fools each sample.

    The direction is FGSM's, the sign of the gradient at the clean input. eps
    grows from 0 in equal steps until the decision changes, and is then refined
    by bisection. The rho_inf of the Deep Defense supplement (Eq. 2) is the
    mean of ||perturbation||_inf / ||x||_inf. A misclassified sample is fooled
    at eps 0; one that no eps fools gets the largest.

    Args:
        eps_max: the largest eps to try, above 0, in units of the inputs; by
            default high - low of `bounds`, or without bounds max x - min x of
            each input.
        steps: number of equal steps up to `eps_max`, at least 1. A range of
            eps that fools is missed if it lies between two steps.
        tolerance: precision of eps, as a fraction of `eps_max`, above 0.
        bounds: as in `FGSM`.
        float32_gradient: as in `FGSM`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.MinimalFGSM(bounds=(0, 1))
        >>> found = attack.run(classifier, x_test, y_test)
        >>> eps = np.max(np.abs(found.perturbation), axis=(1, 2, 3))
        >>> print(np.median(eps) < 0.2)  # the paper's eps_ref
        True
    """

    norm = math.inf

    def __init__(
        self,
        eps_max: float | None = None,
        steps: int = 32,
        tolerance: float = 1e-4,
        bounds: tuple | None = None,
        float32_gradient: bool = False,
    ):
        if eps_max is not None:
            eps_max = validation.validate_number("eps_max", eps_max, above=0)
        self.eps_max = eps_max
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.tolerance = validation.validate_number(
            "tolerance", tolerance, above=0
        )
        self.bounds = validation.validate_bounds(bounds)
        self.float32_gradient = bool(float32_gradient)

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        direction = _gradient_sign(
            clean, targeted=False, float32_gradient=self.float32_gradient
        )
        eps_max = self._largest_eps(x)  # (B,)
        misclassified = tf.not_equal(clean.predictions, clean.y)

        def fools(chosen, share):
            """Whether these shares of eps_max fool the chosen rows."""
            x_chosen, sign = rows.gather_rows((x, direction), chosen)
            eps = norms.expand_like(
                share * tf.gather(eps_max, chosen), x_chosen
            )
            logits = clean.f(
                x_chosen + self.within_bounds(x_chosen, eps * sign)
            )
            return decisions.is_fooled(logits, tf.gather(clean.y, chosen))

        def grow(i, fooled, share):
            """Tries step i on the samples that no smaller one fooled."""
            active = rows.active_rows(~fooled)
            tried = tf.cast(i / self.steps, x.dtype)
            was_fooled, old_share = rows.gather_rows((fooled, share), active)
            now_fooled = fools(active, tried) | was_fooled
            new_share = tf.where(was_fooled, old_share, tried)
            return i + 1, *rows.scatter_rows(
                (fooled, share), active, (now_fooled, new_share)
            )

        _, fooled, high = tf.while_loop(
            lambda i, fooled, _: ~tf.reduce_all(fooled),
            grow,
            (1, misclassified, tf.zeros_like(eps_max)),
            maximum_iterations=self.steps,
        )

        def bisect(low, high):
            middle = (low + high) / 2
            every = tf.range(tf.size(middle))
            below = fools(every, middle) & fooled
            return tf.where(below, low, middle), tf.where(below, middle, high)

        low = tf.maximum(high - 1 / self.steps, 0.0)
        bisections = math.ceil(-math.log2(self.tolerance * self.steps))
        _, smallest = tf.while_loop(
            lambda *_: True,
            bisect,
            (low, high),
            maximum_iterations=max(bisections, 0),
        )
        # The bisection is of those that a step fooled, not of those at eps 0.
        eps = tf.where(fooled & ~misclassified, smallest, high) * eps_max
        perturbation = norms.expand_like(eps, x) * direction
        return base.AttackResult(
            self.within_bounds(x, perturbation),
            clean.predictions,
            fooled,
            tf.where(misclassified, 0, tf.ones_like(clean.y)),
        )

    def _largest_eps(self, x):
        """The largest eps tried, for each sample: (B,)."""
        if self.eps_max is not None:
            return tf.fill(tf.shape(x)[:1], tf.constant(self.eps_max, x.dtype))
        if self.bounds is not None:
            low, high = self.limits(x)
            return tf.fill(tf.shape(x)[:1], tf.reduce_max(high - low))
        axes = list(range(1, x.shape.rank))
        return tf.reduce_max(x, axes) - tf.reduce_min(x, axes)


def _gradient_sign(clean, targeted, float32_gradient):
    """The sign of the loss' gradient at the clean inputs, of their shape."""
    if float32_gradient:
        by_logits = decisions.float32_cross_entropy_logit_gradient(
            clean.logits, clean.y
        )
    else:
        by_logits = decisions.cross_entropy_logit_gradient(
            clean.logits, clean.y, targeted
        )
    return lp_ball.steepest_ascent(clean.forward.gradient(by_logits), math.inf)
