"""Random noise: the baseline that every attack must beat."""

import math
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, lp_ball, stateless_random
from dd_keras.attacks.forward import Forward, inference_form, source_classes
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class RandomNoise(base.Attack):
    """A random perturbation of l_p length eps.

    For p = inf every entry is eps or -eps; for p = 2 the direction is
    uniformly distributed. If an attack fools fewer samples than this, its
    gradients are useless. A sample's noise depends on the seed and the sample,
    not on the rest of the batch; equal samples have equal noise.

    Args:
        eps: the length, before clipping to `bounds`, above 0, in units of the
            inputs.
        norm: the order p, inf or 2.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.
        seed: seed of the noise, an integer of at least 0.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> noise = dd_keras.attacks.RandomNoise(eps=0.1, bounds=(0, 1))
        >>> fgsm = dd_keras.attacks.FGSM(eps=0.1, bounds=(0, 1))
        >>> by_noise = np.mean(noise.run(classifier, x_test, y_test).fooled)
        >>> by_fgsm = np.mean(fgsm.run(classifier, x_test, y_test).fooled)
        >>> print(by_noise < by_fgsm)
        True
    """

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        bounds: tuple | None = None,
        seed: int = 0,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.norm = lp_ball.validate_order(norm)
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
        f = inference_form(network)
        logits = forward.logits if forward else f(x)  # no gradient is needed
        predictions = decisions.predicted_class(logits)
        y = source_classes(y, predictions, logits)
        if self.norm == math.inf:
            u = stateless_random.uniform(x, self.seed, self._first_stream)
            direction = tf.sign(u - 0.5)  # u is never 0.5
        else:
            direction = stateless_random.normal(
                x, self.seed, self._first_stream
            )
            length = norms.sample_norm(direction)
            direction /= norms.expand_like(length, direction)
        perturbation = self.within_bounds(x, self.eps * direction)
        return base.AttackResult(
            perturbation,
            predictions,
            decisions.is_fooled(f(x + perturbation), y),
            tf.zeros_like(y),
        )
