"""The evaluation of a finished classifier, as the flags have it."""

from absl import flags

from shared import cli
from shared.inputs import Classifier

import dd_keras
from dd_keras import datasets
from dd_keras.evaluation import RobustnessReport

FLAGS = flags.FLAGS


def evaluate_split(
    classifier: Classifier,
    data: datasets.Data,
    metrics: list,
    checkpoint_dir: str | None,
    limit: int | None = None,
) -> RobustnessReport:
    """The `RobustnessReport` of a classifier, as the flags have it.

    Args:
        classifier: `Classifier`.
        data: `datasets.Data`; --split says which part.
        metrics: what to measure, see `evaluate_robustness`.
        checkpoint_dir: where finished batches are kept.
        limit: take the first so many images; None for all.
    """
    data = classifier.data(data)
    images = getattr(data, FLAGS.split)
    return dd_keras.evaluate_robustness(
        classifier.model,
        datasets.batches(
            images if limit is None else images.take(limit),
            data.preprocessing,
            FLAGS.batch_size,
            cache=False,
        ),
        metrics=metrics,
        bounds=data.bounds,
        misclassified=FLAGS.misclassified,
        activation=classifier.activation,
        checkpoint_dir=checkpoint_dir,
    )


def numbers_of(flag: str) -> list[float]:
    """The numbers of a flag that lists them."""
    given = FLAGS[flag].value
    try:
        return [float(text) for text in given]
    except ValueError:
        cli.fail(f"--{flag}: expected numbers; received {given}.")
