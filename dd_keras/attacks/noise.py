"""Random noise: what every attack must do better than."""

import math

import keras
import tensorflow as tf

from dd_keras.attacks import base, draws
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class RandomNoise(base.Attack):
    """A random perturbation of l_p length eps.

    For p = inf every entry is eps or -eps; for p = 2 the direction is
    uniform. An attack that fools fewer samples than this follows gradients
    that lead nowhere. A sample's noise follows from the seed and from the
    sample itself, not from the batch that it is in; equal samples have equal
    noise.

    Args:
        eps: the length, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample, or None.
        seed: an integer of at least 0.

    Raises:
        ValueError: if an argument is outside of its range.
    """

    def __init__(self, eps, norm=math.inf, bounds=None, seed=0):
        self.eps = validation.validate_number("eps", eps, above=0)
        if norm not in (2, math.inf):
            raise ValueError(f"norm: expected 2 or inf; received {norm!r}.")
        self.norm = float(norm)
        self.bounds = validation.validate_bounds(bounds)
        self.seed = validation.validate_integer("seed", seed, at_least=0)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "bounds": self.bounds,
            "seed": self.seed,
        }

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        f = base.inference_form(network)
        logits = forward.logits if forward else f(x)
        predictions = base.decide(logits)
        y = predictions if y is None else sparse_labels(y, logits.shape[-1])
        if self.norm == math.inf:
            way = tf.sign(draws.uniform(x, self.seed, 0) - 0.5)  # never 0
        else:
            way = draws.normal(x, self.seed, 0)
            way /= norms.expand_like(norms.sample_norm(way), way)
        perturbation = self.within_bounds(x, self.eps * way)
        return base.AttackResult(
            perturbation,
            predictions,
            base.reached(f(x + perturbation), y),
            tf.zeros_like(y),
        )
