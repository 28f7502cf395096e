"""A classifier asked about one image: its class, and how near another is."""

import base64
import binascii
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from shared.inputs import Classifier

from dd_keras import attacks
from dd_keras.attacks.decisions import predicted_class
from dd_keras.classifier import logits
from dd_keras.datasets import images
from dd_keras.evaluation.html_report.images import (
    data_uris,
    shown_perturbation,
)
from dd_keras.serving import encoded_images, endpoints
from dd_keras.utils import norms

# What finds the adversarial image, by name.
ATTACKS = {
    "ddn": attacks.DDN,
    "fab": functools.partial(attacks.FAB, 2),
    "super_deepfool": attacks.SuperDeepFool,
    "deepfool": attacks.DeepFool,
}
MOST_UPLOADED = 5 * 2**20  # bytes of a file
_MOST_PIXELS = 2**24  # of a file, as in an export
_LARGEST_SIDE = 512  # of what a classifier takes: its pixels travel as JSON
_SHOWN = 5  # most probable classes
# An adversarial image lies just behind the boundary, and rounding to whole
# pixels may lead back. Then a perturbation a little longer is taken; a much
# longer one where nearly all of it is lost in rounding.
_LENGTHENED = np.float32([1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20])
_NEAR = 1.0  # of a pixel, by which preprocessing, turned back, may miss


class Boundary(NamedTuple):
    """What a network says of inputs, and where DeepFool leads from them.

    Attributes:
        probabilities: float32 (B, n).
        predicted: int (B,), the classes of the inputs.
        behind: int (B,), those that the perturbations lead to.
        perturbation: (B, ...).
    """

    probabilities: np.ndarray
    predicted: np.ndarray
    behind: np.ndarray
    perturbation: tf.Tensor


def to_boundary(network: keras.Model, x: tf.Tensor) -> Boundary:
    """Looks for the decision boundary around inputs (B, ...), by DeepFool."""
    perturbation = attacks.DeepFool().run(network, x).perturbation
    scores = _scores(network, tf.concat([x, x + perturbation], 0))
    predicted, behind = np.split(predicted_class(scores).numpy(), 2)
    probabilities = tf.nn.softmax(scores).numpy()[: len(predicted)]
    return Boundary(probabilities, predicted, behind, perturbation)


def _scores(network, x):
    """The logits of (B, ...) inputs: float32 (B, n)."""
    found = network(x, training=False)
    return tf.cast(logits.class_logits(found), tf.float32)


class Probe:
    """A classifier, its names of classes, and what attacks it.

    Attributes:
        name: what people call it.
        image_shape: (H, W, 1 or 3), of one image.
        num_classes: how many classes it has.
    """

    def __init__(
        self,
        name: str,
        classifier: Classifier,
        class_names: Sequence[str] | None = None,
        attack: str = "ddn",
    ) -> None:
        """Prepares a classifier.

        Args:
            name: what people call it.
            classifier: `Classifier`, from pixels 0 to 255.
            class_names: of all classes; None for their numbers.
            attack: a key of `ATTACKS`.

        Raises:
            ValueError: if it takes no images of one size and 1 or 3 channels,
                or the names are not as many as its classes.
        """
        self.name = name
        self._network = logits.logits_model(
            classifier.model, classifier.activation
        )
        self._preprocessing = classifier.preprocessing
        first = classifier.preprocessing or classifier.model
        self.image_shape = tuple(logits.input_shape(first)[1:])
        if (
            not endpoints.can_be_encoded(self.image_shape)
            or max(self.image_shape[:2]) > _LARGEST_SIDE
        ):
            raise ValueError(
                "expected a classifier of images (height, width, 1 or 3), at "
                f"most {_LARGEST_SIDE} pixels a side; received one of "
                f"{self.image_shape}."
            )
        self.num_classes = logits.num_classes(self._network)
        self._names = class_names or list(map(str, range(self.num_classes)))
        if len(self._names) != self.num_classes:
            raise ValueError(
                f"expected {self.num_classes} names of classes; received "
                f"{len(self._names)}."
            )
        self._range = self._pixel_range()
        if self._range is not None:
            self._finder = ATTACKS[attack](bounds=self._range)

    def ask(self, image: np.ndarray) -> dict[str, Any]:
        """What the classifier makes of an image.

        Args:
            image: float32 (H, W, C), pixels 0 to 255.

        Returns:
            dict that JSON can hold:
            - `name`; `class`: its name; `probability`; `most_probable`: list of
              the same two, falling.
            - `rho`, `l2`: of the smallest perturbation that DeepFool finds, in
              units of the network's inputs; `nearest_class`: what it leads to.
              All None if it finds none.
            - `adversarial`: see `_adversarial`, or None.
        """
        x = self._inputs(image[None])
        found = to_boundary(self._network, x)
        before, after = found.predicted[0], found.behind[0]
        probabilities = found.probabilities[0]
        order = np.argsort(-probabilities, kind="stable")[:_SHOWN]
        crossed = before != after
        return {
            "name": self.name,
            **self._class(before, probabilities),
            "most_probable": [self._class(k, probabilities) for k in order],
            **(_lengths(found.perturbation, x) if crossed else _NO_LENGTHS),
            "nearest_class": self._names[after] if crossed else None,
            "adversarial": self._adversarial(image, x, before),
        }

    def _adversarial(self, image, x, predicted):
        """The nearest adversarial image found: a dict, or None without one.

        It has whole pixels of 0 to 255, so that what is seen is what the
        classifier was asked about: `image` and `perturbation`, as data URIs,
        the latter amplified by `amplified`; its `class` and `probability`; its
        `rho` and `l2`; and `largest`, of the changes of a pixel.
        """
        if self._range is None:
            return None
        low, high = self._range
        change = self._finder.run(self._network, x).perturbation.numpy()[0]
        change = change * 255 / (high - low)
        lengthened = _LENGTHENED[:, None, None, None] * change
        tried = np.clip(np.rint(image + lengthened), 0, 255)
        tried = tried.astype(np.float32)
        inputs = self._inputs(tried)
        scores = _scores(self._network, inputs)
        classes = predicted_class(scores).numpy()
        places = np.flatnonzero(classes != predicted)
        if not len(places):
            return None
        place = places[0]
        change = tried[place] - image
        picture, amplified = shown_perturbation(change)
        probabilities = tf.nn.softmax(scores).numpy()[place]
        return {
            "image": data_uri(tried[place]),
            "perturbation": data_uri(picture),
            "amplified": amplified,
            "largest": float(np.abs(change).max()),
            **self._class(classes[place], probabilities),
            **_lengths(inputs[place : place + 1] - x, x),
        }

    def _class(self, number, probabilities):
        return {
            "class": self._names[number],
            "probability": float(probabilities[number]),
        }

    def _inputs(self, pixels):
        """Images (B, H, W, C), to what the network takes."""
        pixels = tf.constant(pixels, tf.float32)
        if self._preprocessing is not None:
            pixels = self._preprocessing(pixels, training=False)
        return logits.cast_inputs(self._network, pixels)

    def _pixel_range(self):
        """The inputs that are pixels 0 and 255; None where none are.

        Preprocessing that only scales and shifts each pixel can be turned back,
        so that a perturbation of inputs is one of pixels.
        """
        noise = np.random.RandomState(0).uniform(0, 255, self.image_shape)
        tried = np.stack([np.zeros_like(noise), 255 + 0 * noise, noise])
        low, high, middle = self._inputs(tried).numpy()
        if low.shape != self.image_shape or not np.all(high > low):
            return None
        back = 255 * (middle - low) / (high - low)
        return (low, high) if np.abs(back - noise).max() < _NEAR else None


_NO_LENGTHS = {"rho": None, "l2": None}


def _lengths(perturbation, x):
    """`rho` and `l2` of one perturbation; what is not finite is None."""
    found = {
        "rho": float(norms.rho(perturbation, x)[0]),
        "l2": float(norms.sample_norm(perturbation)[0]),
    }
    return {k: v if math.isfinite(v) else None for k, v in found.items()}


def title(attack: str) -> str:
    """What an attack of `ATTACKS` is called in prose."""
    return type(ATTACKS[attack]()).__name__


def image_of(request: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The image of a request.

    Args:
        request: what JSON held: a dict of either `pixels`, nested lists of
            `shape`, numbers 0 to 255, or `encoded`, a PNG or JPEG file in
            base64, which is resized as an export does.
        shape: (H, W, C).

    Returns:
        float32 (H, W, C), 0 to 255.

    Raises:
        ValueError: if it is anything else.
    """
    if not isinstance(request, dict) or len(request) != 1:
        raise ValueError("expected an object of either 'pixels' or 'encoded'.")
    if "encoded" in request:
        try:
            data = base64.b64decode(request["encoded"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError("encoded: expected a file in base64.") from error
        return decoded(data, shape)
    if "pixels" not in request:
        raise ValueError("expected an object of either 'pixels' or 'encoded'.")
    try:
        pixels = np.array(request["pixels"])
    except ValueError as error:  # lists of several lengths
        raise _other_pixels(shape) from error
    if pixels.shape != shape or pixels.dtype.kind not in "iuf":
        raise _other_pixels(shape)
    if not np.all((pixels >= 0) & (pixels <= 255)):  # NaN is neither
        raise ValueError("pixels: expected numbers from 0 to 255.")
    return pixels.astype(np.float32)


def _other_pixels(shape):
    return ValueError(f"pixels: expected lists of numbers, of shape {shape}.")


def decoded(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A PNG or JPEG file as an image, as an export decodes it.

    Returns:
        float32 (H, W, C), whole numbers 0 to 255.

    Raises:
        ValueError: if it is no such file, or too large.
    """
    try:
        if len(data) > MOST_UPLOADED:
            raise ValueError("too many bytes")
        found = _decoder(shape)(tf.constant([data]))
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise ValueError(
            "encoded: expected a PNG or JPEG file of at most "
            f"{MOST_UPLOADED / 2**20:g} MiB and {_MOST_PIXELS / 1e6:.1f} "
            "million pixels; it is none, or damaged."
        ) from error
    return np.rint(found.numpy()[0])


@functools.cache
def _decoder(shape):
    """A graph that decodes a batch of files as images of a shape."""
    limits = encoded_images.Limits(1, _MOST_PIXELS, _MOST_PIXELS)
    resize = functools.partial(images.resize, size=shape[:2])
    files = tf.TensorSpec((None,), tf.string)

    @tf.function(input_signature=[files], autograph=False)
    def decode(encoded):
        return encoded_images.decode(encoded, shape, resize, limits)

    return decode


def blank(shape: tuple[int, ...]) -> np.ndarray:
    """A black image."""
    return np.zeros(shape, np.float32)


def data_uri(image: np.ndarray) -> str:
    """An image of pixels 0 to 255, as a data URI."""
    [uri], _ = data_uris([image])
    return uri
