"""The evaluation of a classifier as the flags have it, and its files."""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from shared import cli
from shared.inputs import Classifier
from shared.provenance import as_rows, provenance, write_json

import dd_keras
from dd_keras import datasets, plots
from dd_keras.evaluation import RobustnessReport
from dd_keras.utils import files

FLAGS = flags.FLAGS


def evaluate_split(
    classifier: Classifier,
    data: datasets.Data,
    metrics: list,
    checkpoint_dir: str | None,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> RobustnessReport:
    """The `RobustnessReport` of a classifier, as the flags have it.

    Args:
        classifier: `Classifier`.
        data: `datasets.Data`; --split says which part.
        metrics: what to measure, see `evaluate_robustness`.
        checkpoint_dir: where finished batches are kept.
        limit: take the first so many images; None for all.
        shard: (index, count), see `evaluate_robustness`.
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
        shard=shard,
    )


def numbers_of(flag: str) -> list[float]:
    """The numbers of a flag that lists them."""
    given = FLAGS[flag].value
    try:
        return [float(text) for text in given]
    except ValueError:
        cli.fail(f"--{flag}: expected numbers; received {given}.")


def write_report(
    report: RobustnessReport,
    output_dir: str,
    model: str,
    **more: Any,
) -> list[str]:
    """Writes a report in all its forms, and its figures.

    Args:
        report: what was found.
        output_dir: where to.
        model: what was evaluated, as the user named it.
        **more: further entries of evaluation.json.

    Returns:
        The paths written.
    """

    def path(name):
        return os.path.join(output_dir, name)

    report.to_json(path("report.json"))
    report.to_npz(path("report.npz"))
    files.write_text(report.table("markdown") + "\n", path("table.md"))
    written = [path("report.json"), path("report.npz"), path("table.md")]
    name = os.path.basename(os.path.normpath(model))
    for figure, draw in _figures(report, name).items():
        with files.atomic_write(path(figure)) as part:
            draw(part)
        written.append(path(figure))
    write_json(
        {
            "model": model,
            "images": len(report),
            **({"shard": report.shard} if report.shard else {}),
            "numbers": as_rows(report.estimates),
            "columns": ["value", "low", "high"],
            "passes": {
                metric: {"forward": cost.forward, "backward": cost.backward}
                for metric, cost in report.costs.items()
            },
            "seconds": report.seconds,
            "attacks": attacks_of(report),
            "misclassified": report.misclassified,
            "warnings": report.warnings,
            **more,
            **provenance(),
        },
        path("evaluation.json"),
    )
    return [*written, path("evaluation.json")]


def attacks_of(report: RobustnessReport) -> Mapping[str, Any]:
    """The attacks of each metric: as text, of several a dict by name."""
    found: dict[str, Any] = {}
    for metric in report.metrics:
        shown = {name: repr(a) for name, a in metric.all_attacks.items()}
        if shown:
            one = metric.attack is not None
            found[metric.name] = shown[metric.name] if one else shown
    return found


def _figures(report, name):
    """What is drawn of a report: dict of file name to what draws it."""
    found = {}
    if "fgsm_fooled" in report.values:
        found["success_rate.png"] = lambda part: plots.success_rate_curves(
            {name: report.success_rate()}, part
        )
    if "rho2" in report.values:
        found["rho.png"] = lambda part: plots.rho_histogram(
            {name: report.values["rho2"]}, report.labels, part
        )
    if "l2_best" in report.values:
        found["robust_accuracy.png"] = lambda part: (
            plots.robust_accuracy_curves({name: report.robust_accuracy()}, part)
        )
    return found
