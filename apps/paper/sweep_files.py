"""The files of a sweep over settings: sweep.csv, and Figures 3 and 4."""

import csv
import io
import os
from typing import NamedTuple

from absl import flags

from dd_keras import plots
from dd_keras.defenses import Settings
from dd_keras.utils import files

FLAGS = flags.FLAGS

ALL_LAYERS = "all"


class FineTuning(NamedTuple):
    """One fine-tuning of a sweep.

    Attributes:
        figure: "3" or "4".
        series: what its points are joined by in the figure.
        label: what tells it from others of its series.
        settings: `dd_keras.defenses.Settings`.
    """

    figure: str
    series: str
    label: str
    settings: Settings

    @property
    def name(self) -> str:
        """Of its files."""
        words = [f"figure{self.figure}", self.series, self.label]
        return "_".join(word for word in words if word)


def write(
    runs: list[FineTuning],
    finished: dict[str, dict | None],
    reference: dict,
    output_dir: str,
) -> list[str]:
    """Writes the CSV and the figures of all finished runs.

    Args:
        runs: all runs of the sweep.
        finished: by name, the result of each; None: not there yet.
        reference: accuracy and rho of the classifier they start from.
        output_dir: where the files go.

    Returns:
        list of str: their paths.
    """
    done = [(run, finished[run.name]) for run in runs if finished[run.name]]
    written = [os.path.join(output_dir, "sweep.csv")]
    files.write_text(_csv(done), written[0])
    for figure in FLAGS.figure:
        points = _points(done, figure, reference)
        if points:
            written.append(os.path.join(output_dir, f"figure{figure}.png"))
            _draw(points, reference, len(done), written[-1])
    return written


def _csv(done):
    """The settings and the last epoch's numbers of each run."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["figure", "lam", "c", "layer", "epochs", "accuracy", "rho", "seconds"]
    )
    for run, result in done:
        curve = result["curve"] or {"accuracy": [""], "rho": ["diverged"]}
        table.writerow(
            [
                run.figure,
                run.settings.lam,
                run.settings.c,
                " ".join(run.settings.regularized_layers or [ALL_LAYERS]),
                FLAGS.epochs,
                curve["accuracy"][-1],
                curve["rho"][-1],
                round(result["seconds"], 1),
            ]
        )
    return text.getvalue()


def _points(done, figure, reference):
    """What `plots.trade_off` draws: the series of a figure's runs."""
    points = {}
    for run, result in done:
        if run.figure != figure or not result["curve"]:
            continue
        series = points.setdefault(
            run.series, {"accuracy": [], "rho": [], "labels": []}
        )
        for key in ("accuracy", "rho"):
            # Figure 4 shows all epochs, from the reference.
            start = [reference[key]] if figure == "4" else []
            series[key] += [*start, *result["curve"][key]]
        series["labels"].append(run.label)
    if figure == "4":
        for series in points.values():
            del series["labels"]
    return points


def _draw(points, reference, trainings, path):
    with files.atomic_write(path) as part:
        plots.trade_off(
            points,
            part,
            FLAGS.norm,
            (reference["rho"], reference["accuracy"]),
            width=7.0,
            note=f"{FLAGS.arch} on {FLAGS.dataset}. Trainings: {trainings}; "
            f"epochs: {FLAGS.epochs} (the paper: 5).",
        )
