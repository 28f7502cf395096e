"""A classifier in, a SavedModel for TensorFlow Serving out."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import attacks
from dd_keras.classifier import logits
from dd_keras.datasets import images
from dd_keras.serving import endpoints as server_endpoints
from dd_keras.serving import model_card, raw_images, warm_up
from dd_keras.serving.encoded_images import Limits
from dd_keras.serving.server_config import LARGEST_BATCH, versions
from dd_keras.utils import files, validation

_DTYPES = ("float32", "uint8")
_LARGEST_VERSION = 2**63 - 1  # the server's int64
_EXTRA = "assets.extra"
# The size of a photograph, which takes 250 MB while it is resized.
_MAX_PIXELS = 2**24
_LARGEST_IMAGES = 4  # in a request; a second or so to decode them

# What `robustness` may find its distances by.
_DISTANCE_ATTACKS = (
    attacks.DeepFool,
    attacks.SuperDeepFool,
    attacks.DDN,
    attacks.FAB,
)


def export(
    model: keras.Model,
    path: str | os.PathLike,
    preprocessing: keras.Layer | None = None,
    *,
    version: int | None = None,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int | None] | None = None,
    image_dtype: str = "float32",
    resize: Callable[[tf.Tensor], tf.Tensor] | None = None,
    max_images: int = LARGEST_BATCH,
    max_pixels: int = _MAX_PIXELS,
    max_request_pixels: int | None = None,
    attack: attacks.Attack | None = None,
    activation: str | None = None,
    examples: ArrayLike | None = None,
    warm_up_requests: bool | None = None,
    report: object = None,
    card: dict | None = None,
) -> str:
    """Writes a classifier to `path/<version>/`, for TensorFlow Serving.

    The SavedModel has the preprocessing and the network, but no optimizer or
    other training state, and does not need dd_keras to be loaded. It has these
    signatures, for any batch size B of at least 1:

    - `serving_default`: `images`, (B, *image_shape), before preprocessing, to
      `logits` and `probabilities`, float32, (B, n), `classes`, int32, (B,),
      and if `class_names` are given `labels`, strings, (B,). A binary
      classifier with one output has n = 2.
    - `robustness`: `images` to `classes`; `l2`, float32, (B,): the length of
      the smallest perturbation that `attack` finds, in units of the network's
      inputs, an upper bound of the distance to the decision boundary; `rho`,
      float32, (B,): the same over the norm of the input (Eq. 7 of the Deep
      Defense paper); and `nearest_class`, int32, (B,): the class of the
      perturbed input, which equals `classes` if the attack found no boundary.
      With a norm p other than 2, `l2` is called `l<p>`.
    - `serve_encoded` and `robustness_encoded`: the same from `encoded`,
      strings, (B,), the bytes of PNG or JPEG files, resized to `image_shape`.
      Only if this is (height, width, 1 or 3).

    Bad requests get the error `InvalidArgument`, which says what was expected.
    assets.extra/ of the SavedModel has warm-up requests, which the server
    replays when it loads the version, and a model card (model_card.json, .md;
    with a report and the extra `apps` also its figures, .png, and a page,
    .html).

    A version appears atomically, even if the process is killed, and none is
    ever overwritten; several processes may export to the same `path`.

    Args:
        model: a built Keras classifier, see `logits_model`; of a
            `DefenseModel` its classifier is exported.
        path: local directory of the model, which holds its versions.
        preprocessing: Keras layer or model from raw images to the inputs of
            `model`; None for none, or for the `preprocessor` of a KerasHub
            task.
        version: positive integer; None for the next one.
        class_names: names of all classes, in order; None: no `labels`.
        image_shape: shape of one raw image, with None for any size; by default
            the input shape of `preprocessing`, if it is a model, or else of
            `model`.
        image_dtype: dtype of `images`, `"float32"` or `"uint8"` (a quarter of
            the bytes by gRPC).
        resize: for encoded images: TensorFlow function from uint8
            (H, W, channels) to an image of `image_shape` in [0, 255]; by
            default bilinear with antialiasing, each side scaled on its own.
        max_images: maximum number of encoded images in a request.
        max_pixels: maximum number of pixels of an encoded image.
        max_request_pixels: maximum number of pixels of all encoded images in a
            request; None: four times `max_pixels`. Requests beyond one of
            these limits are refused before anything is decoded. Requests that
            a server runs as one batch count as one.
        attack: the attack of `robustness`: `attacks.DeepFool`, with its
            `max_iter` and `candidates` (by default 50 iterations, all
            classes), or a slower one that finds shorter perturbations:
            `SuperDeepFool`, `DDN`, or `FAB` without `eps`.
        activation: the final activation of `model`, see `logits_model`.
        examples: raw images for the warm-up requests, (N, *image_shape), at
            most 64; by default one image of noise.
        warm_up_requests: whether to write warm-up requests, which needs
            tensorflow-serving-api (the extra `serving`). None: write them if
            it is installed, else warn.
        report: `RobustnessReport` of the model, for the card; None: the card
            says that nothing was measured.
        card: dict of values that JSON can hold, for the card: `name`,
            `dataset`, `defense`, `intended_use`, `limits`, and anything else.
            In model_card.md names and values are shown literally, but
            `intended_use` and `limits` may be Markdown without HTML.

    Returns:
        str: the path of the version.

    Raises:
        TypeError: if `model` is not a Keras model, `preprocessing` not a
            layer, `attack` not one of these, `resize` not a function, or
            `report` not a report.
        ValueError: if an argument is not as above, or `path` cannot be
            written to. Nothing has been written then.
        ImportError: if `warm_up_requests` is True without the extra.

    Example:
        >>> path = dd_keras.export(
        ...     classifier, "models/digits", class_names=list("0123456789"),
        ...     warm_up_requests=False,
        ... )
        >>> path
        'models/digits/1'
        >>> served = tf.saved_model.load(path).signatures["serving_default"]
        >>> served(images=tf.constant(x_test))["classes"].shape
        TensorShape([100])
    """
    path = _validate_path(path)
    version = _validate_version(version, path)
    network = logits.logits_model(model, activation)
    preprocessing = raw_images.preprocessing_of(preprocessing, model)
    image_shape = raw_images.shape_of(image_shape, preprocessing, network)
    validation.validate_choice("image_dtype", image_dtype, _DTYPES)
    attack = attacks.DeepFool() if attack is None else attack
    if (
        not isinstance(attack, _DISTANCE_ATTACKS)
        or attack.targeted
        or getattr(attack, "eps", None) is not None
    ):
        raise TypeError(
            "attack: expected an untargeted attacks.DeepFool, SuperDeepFool, "
            f"DDN or FAB without eps; received {attack!r}."
        )
    _validate_interfaces(resize, report)
    limits = _validate_limits(max_images, max_pixels, max_request_pixels)
    class_names = _validate_names(class_names, logits.num_classes(network))
    endpoints = server_endpoints.make(
        network,
        preprocessing,
        attack,
        image_shape,
        image_dtype,
        class_names,
        resize or functools.partial(images.resize, size=image_shape[:2]),
        limits,
    )
    if not _warm_up_wanted(warm_up_requests):
        examples = None
    elif examples is None:
        examples = _noise(image_shape)
    else:
        examples = _validate_examples(examples, image_shape)
    card = model_card.describe(model, network, endpoints, attack, report, card)

    parts = server_endpoints.parts(network, preprocessing, image_shape)
    with files.atomic_directory(path) as part:
        _write(endpoints, parts, part)
        extra = os.path.join(part, _EXTRA)
        model_card.write(card, extra, report, class_names)
        if examples is not None:
            warm_up.write(endpoints, examples, extra, limits)
        return _place(part, path, version)


def _write(endpoints, parts, directory):
    """Writes a SavedModel that holds the endpoints and their variables.

    And, as attributes, the parts that `apps/evaluate.py` attacks between.

    `keras.export.ExportArchive` would trace each endpoint twice.
    """
    signatures = {name: one.function for name, one in endpoints.items()}
    holder = tf.Module()
    holder.variables_used = sorted(
        {v.ref(): v for f in signatures.values() for v in f.variables}.values(),
        key=lambda variable: variable.name,
    )
    for name, function in parts.items():
        setattr(holder, name, function)
    tf.saved_model.save(
        holder,
        directory,
        signatures,
        # What is served is not differentiated, and DeepFool's custom gradient
        # cannot be saved.
        tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


def _place(part, path, version):
    """Makes a finished directory a version; returns its path."""
    while True:
        number = version or max(versions(path), default=0) + 1
        target = os.path.join(path, str(number))
        try:
            files.place(part, target)
            return target
        except FileExistsError as error:
            if version is not None:
                raise _taken(version, path) from error
            # Another export has taken this number: the next one.


def _validate_path(path):
    path = os.fspath(path)
    if not path or "://" in path:
        raise ValueError(
            "path: expected a local directory, whose finished versions can be "
            f"copied to wherever they are served from; received {path!r}."
        )
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ValueError(
            f"path: expected a directory; received {path!r}, but {existing!r} "
            "is none."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            "path: expected a directory that can be written to; received "
            f"{path!r}, but nothing can be written in {existing!r}."
        )
    return path


def _validate_version(version, path):
    if version is None:
        return None
    version = validation.validate_integer("version", version, at_least=1)
    if version > _LARGEST_VERSION:
        raise ValueError(
            f"version: expected at most {_LARGEST_VERSION}; received {version}."
        )
    if version in versions(path):
        raise _taken(version, path)
    return version


def _taken(version, path):
    return ValueError(
        f"version: expected one that {path!r} does not hold yet; received "
        f"{version}. Versions are never overwritten."
    )


def _validate_interfaces(resize, report):
    if resize is not None and not callable(resize):
        raise TypeError(
            f"resize: expected a function of an image; received {resize!r}."
        )
    # Checked by a method it has: serving may not import evaluation.
    if report is not None and not hasattr(report, "intervals"):
        raise TypeError(
            f"report: expected a RobustnessReport; received {report!r}."
        )


def _validate_limits(max_images, max_pixels, max_request_pixels):
    one_or_more = functools.partial(validation.validate_integer, at_least=1)
    images = one_or_more("max_images", max_images)
    pixels = one_or_more("max_pixels", max_pixels)
    if max_request_pixels is None:
        return Limits(images, pixels, _LARGEST_IMAGES * pixels)
    together = one_or_more("max_request_pixels", max_request_pixels)
    return Limits(images, pixels, together)


def _validate_names(class_names, num_classes):
    if class_names is None:
        return None
    names = list(class_names)
    if len(names) != num_classes or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"class_names: expected {num_classes} strings, one for each "
            f"class; received {class_names!r}."
        )
    return names


def _warm_up_wanted(wanted):
    hint = (
        "Warm-up requests take tensorflow-serving-api: pip install "
        "'dd_keras[serving]'."
    )
    if wanted is False:
        return False
    there = warm_up.available()
    if not there and wanted:
        raise ImportError(f"warm_up_requests: {hint}")
    if not there:
        warnings.warn(
            f"Exported without them. {hint} The first requests to a server "
            "will be slow; warm_up_requests=False accepts this.",
            stacklevel=3,
        )
    return there


def _noise(image_shape):
    if None in image_shape:
        raise ValueError(
            "examples: expected raw images for the warm-up requests, as "
            f"images may be of any size, {image_shape}; received None. "
            "warm_up_requests=False does without."
        )
    return warm_up.noise(image_shape)


def _validate_examples(examples, image_shape):
    examples = np.asarray(examples)
    if (
        not tf.TensorShape((None, *image_shape)).is_compatible_with(
            examples.shape
        )
        or not 1 <= len(examples) <= LARGEST_BATCH
        or not np.issubdtype(examples.dtype, np.number)
        or not np.all(np.isfinite(examples))
    ):
        raise ValueError(
            f"examples: expected 1 to {LARGEST_BATCH} images of shape "
            f"{image_shape}, finite numbers; received an array of shape "
            f"{examples.shape} and dtype {examples.dtype}."
        )
    return examples
