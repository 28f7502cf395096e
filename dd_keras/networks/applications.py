"""Any network of `keras.applications`, from raw pixels to logits.

    model = applications.build("MobileNetV2", (224, 224, 3), 1000, "imagenet")
    model = dd_keras.DeepDefenseModel(model, lam=5.0, c=500.0, d=5.0)

A network's preprocessing is its first layer, so that perturbations are those
of pixels, and what is exported takes pixels.
"""

import difflib
import os
import re
import zipfile
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

IMAGENET_CLASSES = 1000

_BUILDERS = {
    name: value
    for name, value in sorted(vars(keras.applications).items())
    if callable(value) and not name.startswith("_")
}
# What reading a file that does not fit may raise.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)

# All networks there are, sorted.
NAMES = tuple(_BUILDERS)


def family(name: str) -> str:
    """The family of a network: the name of its `keras.applications` module.

    Args:
        name: one of `NAMES`.

    Returns:
        str, such as `"mobilenet_v2"`.

    Raises:
        ValueError: if there is no such network.

    Example:
        >>> dd_keras.networks.applications.family("ResNet50V2")
        'resnet_v2'
    """
    return _builder(name).__module__.rpartition(".")[2]


def _builder(name):
    """Keras' function that makes a network."""
    if name in _BUILDERS:
        return _BUILDERS[name]
    known = {known.lower(): known for known in NAMES}
    close = difflib.get_close_matches(str(name).lower(), known)
    meant = " or ".join(repr(known[match]) for match in close)
    expected = f"Did you mean {meant}?" if meant else f"There are {NAMES}."
    raise ValueError(
        f"name: expected a network of keras.applications; received {name!r}. "
        f"{expected}"
    )


def _families():
    found = {}
    in_order = sorted(
        NAMES, key=lambda name: _BUILDERS[name].__code__.co_firstlineno
    )
    for name in in_order:
        found.setdefault(family(name), []).append(name)
    return {key: tuple(found[key]) for key in sorted(found)}


# Family to its networks, in the order Keras defines them: the smallest first.
FAMILIES = _families()


@keras.saving.register_keras_serializable("dd_keras")
class ApplicationPreprocessing(layers.Layer):
    """The preprocessing of a network of `keras.applications`, as a layer.

    It is the `preprocess_input` of the network's family, which for some
    families does nothing, since the network itself begins with preprocessing.
    It computes in float32 also under mixed precision.

    Args:
        application: one of `NAMES`.

    Raises:
        ValueError: if there is no such network.

    Example:
        >>> applications = dd_keras.networks.applications
        >>> layer = applications.ApplicationPreprocessing("MobileNetV2")
        >>> pixels = np.array([0.0, 127.5, 255.0]).reshape(1, 1, 1, 3)
        >>> print(layer(pixels).numpy().ravel())
        [-1.  0.  1.]
    """

    def __init__(self, application: str, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.application = application
        self._module = getattr(keras.applications, family(application))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """From pixels in [0, 255], (B, H, W, 3), to the network's inputs."""
        precise = keras.backend.standardize_dtype(inputs.dtype) == "float64"
        pixels = ops.cast(inputs, "float64" if precise else "float32")
        return ops.cast(
            self._module.preprocess_input(pixels), self.compute_dtype
        )

    def compute_output_shape(
        self, input_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "application": self.application}


def build(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    weights: str | os.PathLike[str] | None = None,
) -> keras.Model:
    """A network of `keras.applications`, from raw pixels to logits.

    With 1,000 classes it has all of Keras' layers. With another number it ends
    in global average pooling and a new dense layer, `predictions`.

    Args:
        name: one of `NAMES`.
        input_shape: (height, width, 3).
        num_classes: number of logits, at least 2.
        weights: None for random ones; `"imagenet"` for those that Keras
            downloads; or the path of a weights file of the network
            (`.weights.h5`, `.h5` or `.keras`). If `num_classes` is not 1,000,
            the file may be that of the network with or without its last layer.

    Returns:
        A functional `keras.Model` from pixels, floating, (B, *input_shape) in
        [0, 255], to (B, num_classes) logits.

    Raises:
        ValueError: if an argument is not as above, the network does not take
            the shape, or the file does not hold its weights.
        RuntimeError: if ImageNet's weights could not be downloaded.

    Example:
        >>> network = dd_keras.networks.applications.build(
        ...     "MobileNet", (32, 32, 3), num_classes=10
        ... )
        >>> network.output_shape
        (None, 10)
    """
    _builder(name)
    input_shape = _validate_shape(input_shape)
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(
            "num_classes: expected a whole number of at least 2; received "
            f"{num_classes!r}."
        )
    path = _validate_weights(weights)
    whole = num_classes == IMAGENET_CLASSES
    imagenet = None if path else weights
    backbone = _keras_network(name, input_shape, whole, imagenet)
    if path:
        _load(backbone, name, whole, path)
    inputs = keras.Input(input_shape, name="pixels")
    x = ApplicationPreprocessing(name, name="preprocessing")(inputs)
    x = backbone(x)
    if not whole:
        x = layers.Dense(num_classes, name="predictions")(x)
    return keras.Model(inputs, x, name=name)


def _validate_shape(input_shape):
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    sizes = all(isinstance(size, int) and size > 0 for size in shape)
    if len(shape) != 3 or not sizes or shape[-1] != 3:
        raise ValueError(
            "input_shape: expected (height, width, 3), colours in the last "
            f"place; received {input_shape!r}."
        )
    return shape


def _validate_weights(weights):
    """The path of a weights file, or None if `weights` is none."""
    if weights is None or weights == "imagenet":
        return None
    expected = (
        "expected None, 'imagenet' or the path of a .weights.h5, .h5 or "
        ".keras file"
    )
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(f"weights: {expected}; received {weights!r}.")
    path = os.fspath(weights)
    if not path.endswith((".h5", ".keras")):
        raise ValueError(f"weights: {expected}; received {path!r}.")
    if not os.path.isfile(path):
        raise ValueError(f"weights: {expected}; there is no file {path!r}.")
    return path


def _keras_network(name, input_shape, whole, weights):
    """Keras' network, without its last layer unless `whole`.

    Args:
        name: one of `NAMES`.
        input_shape: (height, width, 3), or None for the network's own.
        whole: with 1,000 logits; else without the last layer.
        weights: None or `"imagenet"`.
    """
    ending = {"classifier_activation": None} if whole else {"pooling": "avg"}
    try:
        return _BUILDERS[name](
            input_shape=input_shape,
            include_top=whole,
            weights=weights,
            **ending,
        )
    except ValueError as error:
        raise ValueError(
            f"input_shape: Keras has no {name} of {input_shape} with weights="
            f"{weights!r}: {error}"
        ) from error
    except Exception as error:
        # Keras raises nothing more special where a download fails.
        failed = re.search(r"URL fetch failure on (\S+):", str(error))
        if weights is None or not (failed or isinstance(error, OSError)):
            raise
        file = failed[1].rpartition("/")[2] if failed else "its file"
        folder = os.path.join(
            os.environ.get("KERAS_HOME", "~/.keras"), "models"
        )
        raise RuntimeError(
            f"weights: the ImageNet weights of {name} could not be downloaded "
            f"({error}). Get {file} where there is a network, and put it in "
            f"{folder}, where Keras looks for it, or pass weights=PATH_OF_FILE."
        ) from error


def _load(network, name, whole, path):
    """Loads a weights file into a network of Keras.

    Raises:
        ValueError: if the file holds other weights.
    """
    try:
        network.load_weights(path)
        return
    except _UNREADABLE as error:
        reason = error
    if not whole:
        values = _weights_of_whole(name, path)
        weights = network.weights
        values = values[: len(weights)]
        if [v.shape for v in values] == [tuple(w.shape) for w in weights]:
            network.set_weights(values)
            return
    layout = (
        f"with {IMAGENET_CLASSES:,} classes (include_top=True)"
        if whole
        else "without its last layer (include_top=False), or all of it"
    )
    raise ValueError(
        f"weights: expected a file of the weights of Keras' {name}, {layout}; "
        f"{os.path.basename(path)} does not fit: {reason}"
    ) from reason


def _weights_of_whole(name, path):
    """The arrays in a file of a network with its last layer; [] if none.

    Those of the layers before come first.
    """
    network = _keras_network(name, None, True, None)
    try:
        network.load_weights(path)
    except _UNREADABLE:
        return []
    return network.get_weights()
