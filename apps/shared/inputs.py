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
            name, FLAGS.data_dir, image_size=FLAGS.image_size, **options
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
    """A model, and what it ends in: None where its graph tells."""

    model: keras.Model
    activation: str | None


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
    if os.path.isdir(path):
        model, activation = _saved_model(path, activation)
    else:
        model = load_model(path)
    if isinstance(model, dd_keras.DefenseModel):
        model = model.model
    try:
        logits.num_classes(model)
        logits.input_shape(model)
    except (TypeError, ValueError) as error:
        cli.fail(f"{path}: {error}")
    found = Classifier(model, activation)
    if data is not None:
        check_fits(path, found, data)
    return found


def check_fits(path: str, classifier: Classifier, data: datasets.Data) -> None:
    """Fails where a classifier is not one of the data's images and classes."""
    classes = logits.num_classes(classifier.model)
    shape = tuple(logits.input_shape(classifier.model)[1:])
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
        layer = keras.layers.TFSMLayer(path, call_endpoint=endpoint)
        signature = tf.saved_model.load(path).signatures[endpoint]
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
