"""Batch normalisation in fine-tuning: trained, or frozen.

Attacks see a network in inference mode, with its moving statistics. Where
training normalises by each batch's own statistics, loss and attack see two
networks; with frozen statistics they see one, and share a forward pass.
"""

import contextlib
from collections.abc import Iterator, Sequence

import keras

from dd_keras.utils import keras_internals

TRAINED, FROZEN_STATISTICS, FROZEN = MODES = (
    "trained",
    "frozen_statistics",
    "frozen",
)


@contextlib.contextmanager
def frozen_statistics(model: keras.Model, mode: str) -> Iterator[None]:
    """In this context, calls of `model` treat moving statistics by `mode`.

    Args:
        model: a `keras.Model`.
        mode: one of `MODES`; all but `"trained"` freeze the moving statistics
            and normalise by them, in training too.
    """
    frozen = [] if mode == TRAINED else _layers(model)
    for layer in frozen:
        layer.call = _in_inference(layer)
    try:
        yield
    finally:
        for layer in frozen:
            # Another replica's thread may have deleted it already.
            with contextlib.suppress(AttributeError):
                del layer.call


def trainable(
    model: keras.Model, weights: Sequence[keras.Variable], mode: str
) -> list[keras.Variable]:
    """Those of the trainable weights of `model` that `mode` lets train."""
    if mode != FROZEN:
        return list(weights)
    frozen = {id(w) for layer in _layers(model) for w in layer.weights}
    return [w for w in weights if id(w) not in frozen]


def differs_in_training(model: keras.Model, mode: str) -> bool:
    """Whether training normalises by each batch's own statistics."""
    return mode == TRAINED and any(layer.trainable for layer in _layers(model))


def _layers(model):
    return [
        layer
        for layer in keras_internals.layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def _in_inference(layer):
    def call(inputs, training=None, mask=None):
        del training
        return type(layer).call(layer, inputs, training=False, mask=mask)

    return call
