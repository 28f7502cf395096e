"""Data sets and classifiers as the flags name them; bad ones end the program.

Every error is one line that names the file or the flag.
"""

import os
import zipfile
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import flags

from shared import cli

import dd_keras
from dd_keras import datasets
from dd_keras.classifier import logits
from dd_keras.serving import endpoints
from dd_keras.utils import files

FLAGS = flags.FLAGS

# Images whose pixels are looked at where a pass over all may take an hour.
_CHECKED = 10_000

# What a SavedModel may call its outputs, and what these then are.
_OUTPUTS = {"logits": "linear", "probabilities": "softmax"}


def load_data(name: str, **options: Any) -> datasets.Data:
    """The data set of the flags, limited to --limit, its pixels checked.

    Args:
        name: of the data set, see `dd_keras.datasets.load`.
        **options: further ones of `datasets.load`.

    Raises:
        SystemExit: with a message, if it cannot be had.
    """
    try:
        data = datasets.load(
            name,
            FLAGS.data_dir,
            image_size=FLAGS.image_size,
            max_image_pixels=FLAGS.max_image_pixels,
            **options,
        )
        if FLAGS.limit is not None:
            data = data.limited(FLAGS.limit)
        for split in ("train", "test", "validation"):
            if getattr(data, split) is None:
                continue
            datasets.check_images(
                getattr(data, split),
                f"{name} {split}",
                None if data.cache else _CHECKED,
            )
    except (RuntimeError, ValueError) as error:
        cli.fail(error)
    except tf.errors.OpError as error:  # damaged files, streamed
        cli.fail(datasets.tfds_sets.unavailable(name, FLAGS.data_dir, error))
    return data


def load_evaluation_data() -> datasets.Data:
    """The data set of the flags, with the preprocessing of the flags."""
    preprocessing = None
    if FLAGS.preprocessing not in ("dataset", "none"):
        preprocessing = load_model(FLAGS.preprocessing)
    data = load_data(FLAGS.dataset, recipe=FLAGS.recipe)
    if FLAGS.preprocessing == "dataset":
        return data
    return data._replace(preprocessing=preprocessing)


def load_model(path: str) -> keras.Model:
    """A Keras model from a .keras file; fails where it cannot be read."""
    if not os.path.isfile(path):
        cli.fail(
            f"{path}: expected a Keras model file (.keras); there is none."
        )
    damage = _damage(path)
    if damage:
        cli.fail(
            f"{path}: expected a whole Keras model file (.keras); it is "
            f"damaged: {damage}."
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever else a bad file provokes in Keras
        cli.fail(
            f"{path}: expected a whole Keras model file (.keras); it cannot "
            f"be read: {type(error).__name__}: {cli.first_line(error)}"
        )


def _damage(path):
    """What is wrong with the archive that a .keras file is; None: nothing.

    Keras says of one that is cut off that it is not there.
    """
    if not path.endswith(".keras"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except files.DAMAGED as error:
        return f"{type(error).__name__}: {cli.first_line(error)}"
    return None if broken is None else f"its part {broken!r} cannot be read"


class Classifier(NamedTuple):
    """A finished classifier.

    Attributes:
        model: from the network's inputs to classes.
        activation: what it ends in; None: its graph tells.
        preprocessing: from images to the network's inputs, of an export that
            has its own; None: that of the flags.
    """

    model: keras.Model
    activation: str | None
    preprocessing: keras.Model | None = None

    def data(self, data: datasets.Data) -> datasets.Data:
        """The data, behind its own preprocessing where it has one."""
        if self.preprocessing is None:
            return data
        return data._replace(preprocessing=self.preprocessing)


def load_classifier(
    path: str, data: datasets.Data | None, activation: str | None = None
) -> Classifier:
    """A classifier, checked against the data it is for.

    Args:
        path: a .keras file or the directory of a SavedModel.
        data: `datasets.Data`; None: checked against nothing.
        activation: what it ends in, see `dd_keras.logits_model`.

    Returns:
        `Classifier`.

    Raises:
        SystemExit: with a message, if it cannot be read or does not fit.
    """
    preprocessing = None
    if os.path.isdir(path):
        model, activation, preprocessing = _saved_model(path, activation)
    else:
        model = load_model(path)
    if isinstance(model, dd_keras.DefenseModel):
        model = model.model
    try:
        logits.num_classes(model)
        logits.input_shape(model)
    except (TypeError, ValueError) as error:
        cli.fail(f"{path}: {error}")
    found = Classifier(model, activation, preprocessing)
    if data is not None:
        check_fits(path, found, data)
    return found


def check_fits(path: str, classifier: Classifier, data: datasets.Data) -> None:
    """Fails where a classifier is not one of the data's images and classes."""
    classes = logits.num_classes(classifier.model)
    first = classifier.preprocessing or classifier.model
    shape = tuple(logits.input_shape(first)[1:])
    if shape != data.image_shape or classes != data.num_classes:
        cli.fail(
            f"{path}: expected a classifier of {data.image_shape} images into "
            f"{data.num_classes} classes; received one of {shape} into "
            f"{classes}."
        )


def _saved_model(path, activation):
    """A SavedModel's `serving_default` as a `Classifier`."""
    endpoint = "serving_default"
    try:
        loaded = tf.saved_model.load(path)
        if hasattr(loaded, endpoints.NETWORK):
            return _own_export(path, loaded)
        layer = keras.layers.TFSMLayer(path, call_endpoint=endpoint)
        signature = loaded.signatures[endpoint]
    except Exception as error:  # whatever a damaged directory provokes
        cli.fail(
            f"{path}: expected the directory of a SavedModel with the "
            f"signature {endpoint!r}; it cannot be read: "
            f"{type(error).__name__}: {cli.first_line(error)}"
        )
    inputs = list(signature.structured_input_signature[1].values())
    outputs = list(signature.structured_outputs)
    named = [name for name in _OUTPUTS if name in outputs]
    if len(inputs) != 1 or (len(outputs) != 1 and not named):
        cli.fail(
            f"{path}: expected a signature {endpoint!r} with one input, and "
            f"one output or one of {list(_OUTPUTS)}; received {len(inputs)} "
            f"inputs and the outputs {outputs}."
        )
    name = named[0] if named else outputs[0]
    given = keras.Input(inputs[0].shape[1:], dtype=inputs[0].dtype.name)
    return Classifier(
        keras.Model(given, layer(given)[name]),
        activation or _OUTPUTS.get(name),
    )


def _own_export(path, loaded):
    """A SavedModel of `dd_keras.export`: attacked between its two parts.

    So its rho is that of the .keras file, and of its signature `robustness`.
    """
    own = hasattr(loaded, endpoints.PREPROCESSING)
    given = "preprocessing" in FLAGS and FLAGS["preprocessing"].present
    if own and given and FLAGS.preprocessing != "none":
        cli.fail(
            "--preprocessing: expected none, or no such flag, as "
            f"{path} has its own inside; received {FLAGS.preprocessing}, which "
            "would be applied twice."
        )
    network = _part(path, loaded, endpoints.NETWORK)
    preprocessing = (
        _part(path, loaded, endpoints.PREPROCESSING) if own else None
    )
    return Classifier(network, "linear", preprocessing)


def _part(path, loaded, name):
    """A part of an export as a Keras model."""
    (function,) = getattr(loaded, name).concrete_functions
    (spec,), _ = function.structured_input_signature
    given = keras.Input(spec.shape[1:], dtype=spec.dtype.name)
    layer = keras.layers.TFSMLayer(path, call_endpoint=name)
    return keras.Model(given, layer(given))
