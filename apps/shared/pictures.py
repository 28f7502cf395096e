"""The figures of a training: adversarial images, and convergence."""

import keras
import numpy as np
from absl import flags

from shared.training import REFERENCE, title_of
from shared.training_flags import settings

from dd_keras import datasets, plots
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
    images = _images(data, chosen)
    attacked = {
        title_of(name): _attacked(models[name], data.preprocessing(images))
        | {"rho": reports[name].values[f"rho{FLAGS.norm:g}"][chosen]}
        for name in (REFERENCE, shown)
    }
    with files.atomic_write(path) as part:
        plots.adversarial_images(
            images, labels, attacked, part, data.class_names
        )
    return [
        {
            "test_image": int(index),
            "label": int(labels[place]),
            "rho": {
                name: float(found["rho"][place])
                for name, found in attacked.items()
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


def _images(data, chosen):
    """The test images of these indices."""
    images = data.test.take(max(chosen) + 1).as_numpy_iterator()
    wanted = set(chosen)
    return np.stack(
        [image for place, (image, _) in enumerate(images) if place in wanted]
    )


def _attacked(model, x):
    """What the DeepFool of the evaluation makes of the inputs."""
    network = logits.logits_model(model)
    found = settings().evaluation_attack.run(network, x)
    scores = logits.class_logits(network(x + found.perturbation))
    return {
        "perturbation": found.perturbation.numpy(),
        "clean": found.predictions.numpy(),
        "adversarial": np.argmax(scores, axis=-1),
    }
