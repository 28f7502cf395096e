"""The figures of a training: adversarial images, and convergence."""

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from shared.training import REFERENCE, title_of
from shared.training_flags import settings

from dd_keras import attacks, datasets, plots
from dd_keras.classifier import logits
from dd_keras.evaluation import RobustnessReport
from dd_keras.utils import files

FLAGS = flags.FLAGS

_PICTURED = 4  # images in the picture, of different classes


def draw_convergence(curves: dict[str, dict], path: str) -> None:
    """Draws accuracy and rho of each defence over its epochs."""
    with files.atomic_write(path) as part:
        plots.convergence_curves(
            {title_of(name): curve for name, curve in curves.items()},
            part,
            FLAGS.norm,
        )


def draw_adversarial_images(
    models: dict[str, keras.Model],
    reports: dict[str, RobustnessReport],
    data: datasets.Data,
    path: str,
) -> list[dict]:
    """Draws typical test images of different classes under two of the models.

    Typical: correctly classified by all, and at distances from the boundary
    that are near to the medians.

    Returns:
        list of dicts: which images they are, and the rho of the models drawn.
    """
    shown = "deep_defense" if "deep_defense" in models else FLAGS.defense[-1]
    chosen = _choose(
        list(reports.values()), (reports[REFERENCE], reports[shown])
    )
    labels = reports[REFERENCE].labels[chosen]
    images, _ = images_of(data.test, chosen)
    found = {
        title_of(name): attacked(
            logits.logits_model(models[name]),
            data.preprocessing(images),
            settings().evaluation_attack,
        )
        | {"rho": reports[name].values[f"rho{FLAGS.norm:g}"][chosen]}
        for name in (REFERENCE, shown)
    }
    with files.atomic_write(path) as part:
        plots.adversarial_images(images, labels, found, part, data.class_names)
    return [
        {
            "test_image": int(index),
            "label": int(labels[place]),
            "rho": {
                name: float(each["rho"][place]) for name, each in found.items()
            },
        }
        for place, index in enumerate(chosen)
    ]


def _choose(reports, shown):
    """Indices of typical images of different classes, in their order on disk.

    Args:
        reports: of all models.
        shown: those of the models that are drawn.
    """
    labels = reports[0].labels
    correct = np.logical_and.reduce(
        [report.predictions == report.labels for report in reports]
    )
    if not correct.any():  # untrained models
        return list(range(min(_PICTURED, len(labels))))
    strange = sum(_strangeness(report, correct) for report in shown)
    chosen = {}  # by class, the most typical
    for index in np.argsort(strange, kind="stable"):
        if correct[index]:
            chosen.setdefault(labels[index], int(index))
    return sorted(list(chosen.values())[:_PICTURED])


def _strangeness(report, correct):
    """How far each image's rho is from the median, as |log of their ratio|."""
    rho = np.maximum(report.values[f"rho{FLAGS.norm:g}"], 1e-12)
    return np.abs(np.log(rho / np.median(rho[correct])))


def images_of(
    split: tf.data.Dataset, places: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split at these places, in their order, and labels."""
    first = split.take(max(places) + 1).as_numpy_iterator()
    found = {
        place: one for place, one in enumerate(first) if place in set(places)
    }
    images, labels = zip(*(found[place] for place in places), strict=True)
    return np.stack(images), np.stack(labels)


def attacked(
    network: keras.Model, x: tf.Tensor, attack: attacks.DeepFool
) -> dict[str, np.ndarray]:
    """What an attack makes of inputs, as `plots.adversarial_images` has it.

    Args:
        network: it gives logits.
        x: (N, ...), its inputs.
        attack: what finds the perturbations.
    """
    found = attack.run(network, x)
    scores = logits.class_logits(network(x + found.perturbation))
    return {
        "perturbation": found.perturbation.numpy(),
        "clean": found.predictions.numpy(),
        "adversarial": np.argmax(scores, axis=-1),
    }
