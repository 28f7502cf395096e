"""What a published classifier is here, and the list of them."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

CLASSIFIERS = {}
layer = keras.saving.register_keras_serializable("published")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published classifier, written small.

    Attributes:
        build: builds it, with random weights.
        source: where it was published.
        kind: how it is written: "sequential", "functional", "subclassed", or
            "nested", each with what is special about its end or its layers.
        shape: of one input.
        low, high: inputs are drawn uniformly between these.
        activation: what it ends in, where a user has to tell; else None.
    """

    build: Callable
    source: str
    kind: str
    shape: tuple
    low: float
    high: float
    activation: str | None

    def inputs(self, count, seed=0):
        """Random inputs, float32, (count, *shape)."""
        x = np.random.default_rng(seed).uniform(
            self.low, self.high, (count, *self.shape)
        )
        return x.astype("float32")


def classifier(source, kind, shape, low=0.0, high=1.0, activation=None):
    """Puts the function that builds a classifier into `CLASSIFIERS`."""

    def add(build):
        CLASSIFIERS[build.__name__] = Published(
            build, source, kind, shape, low, high, activation
        )
        return build

    return add
