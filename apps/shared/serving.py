"""What a model server reads: SavedModels, its configuration, examples."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shared import probe
from shared.inputs import Classifier

import dd_keras
from dd_keras import datasets
from dd_keras.classifier import logits
from dd_keras.serving import endpoints, server_config
from dd_keras.utils import files, norms, tables, text

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
    data: datasets.Data | None,
    export_dir: str,
    classifiers: Mapping[str, Classifier],
) -> list[str]:
    """Writes the server's configuration, and images to ask it about.

    Args:
        data: `datasets.Data` of the images; None for no images.
        export_dir: directory of all models of a server.
        classifiers: by the name of the model in the server, those exported:
            examples.md tells what they say of the images.

    Returns:
        list of str: what was written.
    """
    dd_keras.serving.write_server_config(export_dir)
    written = [f"{export_dir}: models.config, batching.config"]
    if data is not None and endpoints.can_be_encoded(data.image_shape):
        written.append(_write_examples(data, export_dir, classifiers))
    return written


def _write_examples(data, export_dir, classifiers):
    """Writes the first test images as PNG files; returns their folder."""
    folder = os.path.join(export_dir, server_config.EXAMPLES)
    examples = list(data.test.take(_EXAMPLES).as_numpy_iterator())
    pictures = []
    for place, (image, label) in enumerate(examples):
        pixels = tf.cast(tf.round(image), tf.uint8)
        pictures.append(f"{place}_class_{int(label)}.png")
        with files.atomic_write(os.path.join(folder, pictures[-1])) as part:
            tf.io.write_file(part, tf.io.encode_png(pixels))
    names = data.class_names or [str(k) for k in range(data.num_classes)]
    names = [text.markdown(name) for name in names]
    columns = {
        "image": [
            f"![]({server_config.EXAMPLES}/{picture})" for picture in pictures
        ],
        "label": [names[label] for _, label in examples],
        **{
            name: _answers(classifier, data, examples, names)
            for name, classifier in classifiers.items()
        },
    }
    rows = list(zip(*columns.values(), strict=True))
    table = tables.render(list(columns), rows, "markdown")
    files.write_text(
        "# Examples\n\nWhat the models said when they were exported: class and "
        "probability; rho, the smallest relative change that DeepFool finds; "
        f"and the class that it leads to.\n\n{table}\n",
        os.path.join(export_dir, f"{server_config.EXAMPLES}.md"),
    )
    return folder


def _answers(classifier, data, examples, names):
    """What a classifier says of each image: a list of str."""
    network = logits.logits_model(classifier.model, classifier.activation)
    x = tf.constant(np.round([image for image, _ in examples]), tf.float32)
    if data.preprocessing is not None:
        x = data.preprocessing(x)
    x = logits.cast_inputs(network, x)
    found = probe.to_boundary(network, x)
    return [
        f"{names[k]}, {100 * p.max():.1f} %; rho {rho:.3f} to {names[j]}"
        for k, p, rho, j in zip(
            found.predicted,
            found.probabilities,
            norms.rho(found.perturbation, x).numpy(),
            found.behind,
            strict=True,
        )
    ]
