"""What a model server reads: SavedModels, its configuration, examples."""

import os
from typing import Any

import tensorflow as tf

from shared.inputs import Classifier

import dd_keras
from dd_keras import datasets
from dd_keras.serving import endpoints, server_config
from dd_keras.utils import files

_EXAMPLES = 4  # test images beside an export


def export(
    classifier: Classifier,
    data: datasets.Data | None,
    export_dir: str,
    name: str,
    **options: Any,
) -> str:
    """Writes EXPORT_DIR/NAME/<version>/ for TensorFlow Serving.

    Args:
        classifier: `Classifier`.
        data: `datasets.Data` it is for; None: not known.
        export_dir: directory of all models of a server.
        name: of the model, see `dd_keras.serving.validate_name`.
        **options: further ones of `dd_keras.export`.

    Returns:
        str: the path of the version.

    Raises:
        ValueError: if the name cannot be one, or an option is bad.
    """
    path = os.path.join(export_dir, server_config.validate_name(name))
    if data is not None:
        options = {
            "preprocessing": data.preprocessing,
            "class_names": data.class_names,
            "image_shape": data.image_shape,
            "resize": data.resize,
            **options,
        }
    return dd_keras.export(
        classifier.model,
        path,
        activation=classifier.activation,
        **options,
    )


def write_server_files(
    data: datasets.Data | None, export_dir: str
) -> list[str]:
    """Writes the server's configuration, and images to ask it about.

    Args:
        data: `datasets.Data` of the images; None for no images.
        export_dir: directory of all models of a server.

    Returns:
        list of str: what was written.
    """
    dd_keras.serving.write_server_config(export_dir)
    written = [f"{export_dir}: models.config, batching.config"]
    if data is not None and endpoints.can_be_encoded(data.image_shape):
        written.append(_write_examples(data, export_dir))
    return written


def _write_examples(data, export_dir):
    """Writes the first test images as PNG files; returns their folder."""
    folder = os.path.join(export_dir, server_config.EXAMPLES)
    for place, (image, label) in enumerate(data.test.take(_EXAMPLES)):
        pixels = tf.cast(tf.round(image), tf.uint8)
        path = os.path.join(folder, f"{place}_class_{int(label)}.png")
        with files.atomic_write(path) as part:
            tf.io.write_file(part, tf.io.encode_png(pixels))
    return folder
