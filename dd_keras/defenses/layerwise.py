"""The regulariser on some layers alone (Figure 4 of the Deep Defense paper)."""

import contextlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from dd_keras.utils import keras_internals


def validate_layers(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None
) -> list[str] | None:
    """The names of layers that have trainable weights; None stays None.

    Args:
        model: a built `keras.Model`.
        layers: names of its layers, nested ones too, or the layers.

    Raises:
        ValueError: if there are none, or one is no such layer.
    """
    if layers is None:
        return None
    names = [getattr(layer, "name", layer) for layer in layers]
    known = [
        layer.name
        for layer in keras_internals.layers_of(model, include_self=False)
        if layer.trainable_weights
    ]
    unknown = [name for name in names if name not in known]
    if unknown or not names or isinstance(layers, str):
        raise ValueError(
            "regularized_layers: expected a list of names of layers of "
            f"{model.name!r} with trainable weights, of {known}; received "
            f"{layers!r}."
        )
    return names


def gradient_only_to(
    model: keras.Model, names: Sequence[str] | None
) -> contextlib.AbstractContextManager:
    """A context in which all weights but those of some layers are constants.

    Args:
        model: a built `keras.Model`.
        names: names of the layers that gradients reach; None: all of them.
    """
    if names is None:
        return contextlib.nullcontext()
    reached = {
        id(weight)
        for layer in keras_internals.layers_of(model, include_self=False)
        if layer.name in names
        for weight in layer.weights
    }
    return keras.StatelessScope(
        [
            (weight, tf.stop_gradient(weight.value))
            for weight in model.trainable_weights
            if id(weight) not in reached
        ]
    )
