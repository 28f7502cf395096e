"""From raw images to what a classifier takes: preprocessing and shapes."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras.classifier import logits
from dd_keras.classifier.inputs import has_preprocessor, prepare


def preprocessing_of(
    preprocessing: keras.Layer | None, model: keras.Model
) -> keras.Layer | None:
    """The layer that prepares raw images: the given one, or the model's own."""
    if not isinstance(preprocessing, (keras.layers.Layer, type(None))):
        raise TypeError(
            "preprocessing: expected a Keras layer or model, or None; "
            f"received {preprocessing!r}."
        )
    if not has_preprocessor(model):
        return preprocessing
    if preprocessing is not None:
        raise ValueError(
            f"preprocessing: expected None, as {model.name!r} has a "
            "preprocessor of its own, which is exported with it; received "
            f"{preprocessing!r}."
        )
    return _OwnPreprocessing(model)


class _OwnPreprocessing(keras.layers.Layer):
    """The preprocessor of a KerasHub task as a layer.

    Args:
        model: the task, or a `DefenseModel` of it.
    """

    def __init__(self, model: keras.Model):
        super().__init__(name="preprocessing")
        self._prepare = lambda images: prepare(model, images)[0]

    def call(self, images):
        """Raw images to what the model's `call` takes."""
        return self._prepare(images)


def shape_of(
    image_shape: Sequence[int | None] | None,
    preprocessing: keras.Layer | None,
    network: keras.Model,
) -> tuple[int | None, ...]:
    """The shape of one raw image, once it fits what the network takes."""
    taken = logits.input_shape(network)
    if image_shape is None:
        first = (
            preprocessing if isinstance(preprocessing, keras.Model) else network
        )
        image_shape = tuple(logits.input_shape(first)[1:])
    sizes = tuple(image_shape) if np.iterable(image_shape) else (0,)
    if not all(s is None or (isinstance(s, int) and s > 0) for s in sizes):
        raise ValueError(
            "image_shape: expected positive sizes, None for any; received "
            f"{image_shape!r}."
        )
    if preprocessing is None:
        made = tf.TensorShape((None, *sizes))
    else:
        made = _shape_after(preprocessing, sizes)
    if not taken.is_compatible_with(made):
        raise ValueError(
            "image_shape: expected images that the classifier, behind the "
            f"preprocessing, can take: {tuple(taken)}; received images of "
            f"{sizes}, which become {tuple(made)}."
        )
    return sizes


def _shape_after(preprocessing, sizes):
    """The shape of a batch of images after preprocessing."""
    prepare = tf.function(
        lambda x: preprocessing(x, training=False), autograph=False
    )
    batch = tf.TensorSpec((None, *sizes), tf.float32)
    try:
        prepared = prepare.get_concrete_function(batch).structured_outputs
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            "preprocessing: expected a layer that takes images of shape "
            f"{sizes}; received {preprocessing.name!r}, which does not: {error}"
        ) from error
    if not tf.is_tensor(prepared):
        raise ValueError(
            "preprocessing: expected a layer with one output; received "
            f"{preprocessing.name!r}, which gives a {type(prepared).__name__}."
        )
    return prepared.shape
