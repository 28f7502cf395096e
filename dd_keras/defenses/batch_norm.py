"""Batch normalisation in fine-tuning: trained, or held fast.

Attacks see a network in inference mode, with its moving statistics. Where
training normalises by each batch's own, loss and attack see two networks;
with the statistics held fast they see one, and share a forward pass.
"""

import contextlib

import keras

from dd_keras.utils import keras_internals

TRAINED, FROZEN_STATISTICS, FROZEN = MODES = (
    "trained",
    "frozen_statistics",
    "frozen",
)


@contextlib.contextmanager
def statistics_of(model, mode):
    """While it is open, calls of `model` treat statistics as `mode` says.

    Args:
        model: a `keras.Model`.
        mode: one of `MODES`; all but `"trained"` hold the moving statistics
            fast and normalise by them, in training too.
    """
    held = [] if mode == TRAINED else _layers(model)
    for layer in held:
        layer.call = _in_inference(layer)
    try:
        yield
    finally:
        for layer in held:
            # Another replica's thread may have been here meanwhile.
            with contextlib.suppress(AttributeError):
                del layer.call


def trained(model, weights, mode):
    """The weights that are trained, of those of `model` that could be."""
    if mode != FROZEN:
        return weights
    held = {id(w) for layer in _layers(model) for w in layer.weights}
    return [w for w in weights if id(w) not in held]


def differs_in_training(model, mode):
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
