"""What a server computes: functions of raw or encoded images."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import Attack
from dd_keras.attacks.decisions import predicted_class
from dd_keras.classifier import logits
from dd_keras.serving import encoded_images
from dd_keras.serving.checks import require_finite, require_shape
from dd_keras.utils import norms

# The signature that TF Serving takes where a request names none.
DEFAULT = "serving_default"


# The attributes of a SavedModel that hold its two parts, no signatures: raw
# images to the network's inputs, where there is a step before it, and these to
# logits. Perturbations are measured in between, as training does.
PREPROCESSING = "dd_keras_preprocessing"
NETWORK = "dd_keras_network"


class Endpoint(NamedTuple):
    """A signature of a SavedModel.

    Attributes:
        function: from its input to a dict of named outputs, traced.
        spec: `tf.TensorSpec` of the input, with its name.
    """

    function: tf.types.experimental.ConcreteFunction
    spec: tf.TensorSpec


def make(
    network: keras.Model,
    preprocessing: keras.Layer | None,
    attack: Attack,
    image_shape: tuple[int | None, ...],
    image_dtype: str,
    class_names: Sequence[str] | None,
    resize: Callable[[tf.Tensor], tf.Tensor],
    limits: encoded_images.Limits,
) -> dict[str, Endpoint]:
    """All endpoints of a classifier, by the names of their signatures.

    Args: see `dd_keras.export`; `network` gives logits, and `limits` are those
        of encoded images.

    Returns:
        dict of name to `Endpoint`. Those of encoded images are there if
        images have a fixed size and 1 or 3 channels.
    """
    batch = tf.TensorSpec((None, *image_shape), tf.float32)
    inputs = functools.partial(_network_inputs, network, preprocessing)

    @tf.function(input_signature=[batch], autograph=False)
    def classify(images):
        scores = logits.class_logits(network(inputs(images), training=False))
        classes = predicted_class(scores)
        outputs = {
            "logits": scores,  # (B, n)
            "probabilities": tf.nn.softmax(scores),  # (B, n)
            "classes": classes,  # (B,)
        }
        if class_names is not None:
            outputs["labels"] = tf.gather(tf.constant(class_names), classes)
        return outputs

    @tf.function(input_signature=[batch], autograph=False)
    def robustness(images):
        x = inputs(images)
        found = attack.run(network, x)
        adversarial = network(x + found.perturbation, training=False)
        return {
            "classes": found.predictions,  # (B,)
            "rho": norms.rho(found.perturbation, x, attack.norm),  # (B,)
            f"l{attack.norm:g}": norms.sample_norm(
                found.perturbation, attack.norm
            ),  # (B,)
            "nearest_class": predicted_class(logits.class_logits(adversarial)),
        }

    def raw(images):
        images = require_shape("images", images, image_shape)
        if images.dtype.is_floating:
            images = require_finite("images", images)
        return tf.cast(images, tf.float32)

    def decoded(encoded):
        return encoded_images.decode(encoded, image_shape, resize, limits)

    images = tf.TensorSpec((None, *image_shape), image_dtype, "images")
    encoded = tf.TensorSpec((None,), tf.string, "encoded")
    endpoints = {
        DEFAULT: _endpoint(classify, raw, images),
        "robustness": _endpoint(robustness, raw, images),
    }
    if can_be_encoded(image_shape):
        endpoints["serve_encoded"] = _endpoint(classify, decoded, encoded)
        endpoints["robustness_encoded"] = _endpoint(
            robustness, decoded, encoded
        )
    return endpoints


def parts(
    network: keras.Model,
    preprocessing: keras.Layer | None,
    image_shape: tuple[int | None, ...],
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """The parts of a classifier, by the attributes that hold them.

    Args: see `make`.
    """
    images = tf.TensorSpec((None, *image_shape), tf.float32)

    @tf.function(input_signature=[images], autograph=False)
    def prepare(images):
        return _network_inputs(network, preprocessing, images)

    @tf.function(
        input_signature=[logits.working_spec(network)], autograph=False
    )
    def class_logits(x):
        return logits.class_logits(network(x, training=False))

    found = {NETWORK: class_logits}
    if preprocessing is not None:
        found[PREPROCESSING] = prepare
    for function in found.values():
        function.get_concrete_function()  # traced, to be saved
    return found


def _network_inputs(network, preprocessing, images):
    """Raw images, float32, to what the network takes."""
    if preprocessing is not None:
        images = preprocessing(images, training=False)
    return logits.cast_inputs(network, images)


def can_be_encoded(image_shape: tuple[int | None, ...]) -> bool:
    """Whether a PNG or JPEG file can be made an image of a shape."""
    return (
        len(image_shape) == 3
        and None not in image_shape
        and image_shape[-1] in (1, 3)
    )


def _endpoint(function, prepare, spec):
    """The endpoint of `function` after `prepare`."""

    @tf.function(input_signature=[spec], autograph=False)
    def endpoint(batch):
        return function(prepare(batch))

    return Endpoint(endpoint.get_concrete_function(), spec)
