"""Images, and the smallest perturbations that several classifiers fall for.

    python apps/picture.py --model=reference=FILE.keras --model=defended=FILE.keras --dataset=mnist --images=0,3

DeepFool as in the paper, without bounds, from the predicted classes. Draws
adversarial_images.png, and writes pictured.json, the classes and rho_2 of each
model, and pictured.npz, images and perturbations in pixels of 0 to 255, to
--output_dir. Figure 7 of the paper is made of these: apps/reproduce.py.
"""  # noqa: E501

import os
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from shared import cli, named_models, pictures
from shared.flags import define_classifier_flags, define_output_dir
from shared.provenance import provenance, write_json

from dd_keras import attacks, plots
from dd_keras.classifier import logits
from dd_keras.utils import files, norms

FLAGS = flags.FLAGS
named_models.define_flag()
flags.DEFINE_list("images", ["0"], "Which of the --split, from 0.")
define_classifier_flags()
define_output_dir("runs/picture")
flags.register_validator(
    "images",
    lambda given: (
        given
        and all(text.isdecimal() for text in given)
        and len(set(given)) == len(given)
    ),
    message="--images must be numbers from 0, each once.",
)


@cli.main
def main():
    """Draws images under attack, from flags to files."""
    started = time.time()
    named_models.paths()  # checked before anything is written
    output_dir = cli.own_directory(FLAGS.output_dir)
    classifiers, data = named_models.load()
    images, labels = _chosen(data)
    found = {
        name: _attacked(classifier, images, data)
        for name, classifier in classifiers.items()
    }
    written = [
        os.path.join(output_dir, name)
        for name in ("adversarial_images.png", "pictured.npz", "pictured.json")
    ]
    with files.atomic_write(written[0]) as part:
        plots.adversarial_images(images, labels, found, part, data.class_names)
    with files.atomic_write(written[1]) as part, open(part, "wb") as file:
        np.savez_compressed(
            file,
            images=images,
            **{name: each["perturbation"] for name, each in found.items()},
        )
    write_json(
        {
            "dataset": FLAGS.dataset,
            "images": [int(text) for text in FLAGS.images],
            "labels": labels.tolist(),
            "class_names": data.class_names,
            "models": {
                name: {
                    key: each[key].tolist()
                    for key in ("clean", "adversarial", "rho")
                }
                for name, each in found.items()
            },
            "total_seconds": time.time() - started,
            **provenance(),
        },
        written[2],
    )
    cli.print_written(written, started)


def _chosen(data):
    """The images of --images, and their labels."""
    split = getattr(data, FLAGS.split)
    places = [int(text) for text in FLAGS.images]
    count = int(split.cardinality())
    if max(places) >= count:
        cli.fail(
            f"--images: expected numbers below {count}, the images there are; "
            f"received {max(places)}."
        )
    return pictures.images_of(split, places)


def _attacked(classifier, images, data):
    """What DeepFool makes of the images, as `plots` take it."""
    behind = classifier.data(data)
    network = logits.logits_model(classifier.model, classifier.activation)
    prepared = behind.preprocessing or tf.identity
    x = logits.cast_inputs(network, prepared(images))
    found = pictures.attacked(network, x, attacks.DeepFool())
    rho = norms.rho(tf.constant(found["perturbation"]), x).numpy()
    low, high = behind.bounds
    pixels = found["perturbation"] * (255 / np.subtract(high, low))
    return {**found, "perturbation": pixels, "rho": rho}


if __name__ == "__main__":
    app.run(main)
