"""What a run found, as JSON and as the table that ends the program."""

import math
import time

from absl import flags

from shared import barely_trained
from shared.provenance import provenance
from shared.run import Run
from shared.run_directory import RunDirectory
from shared.training import REFERENCE, title_of

from dd_keras import datasets
from dd_keras.evaluation import RobustnessReport
from dd_keras.utils import tables

FLAGS = flags.FLAGS


def collect(
    run: Run,
    data: datasets.Data,
    reports: dict[str, RobustnessReport],
    trained: dict[str, dict],
    curves: dict[str, dict],
    pictured: list[dict],
    directory: RunDirectory | None,
    started: float,
) -> dict:
    """All numbers of a run, with what made them.

    Args:
        run: what it is made of.
        data: its data set.
        reports: by model.
        trained: by model that was trained, its `"seconds"`.
        curves: by defence, over the epochs.
        pictured: which images the figure shows.
        directory: of the run; None: nothing was trained.
        started: the `time.time()` of the start.
    """
    return {
        "dataset": {"name": run.dataset, **_sizes(data)},
        "models": _summaries(reports),
        "training_seconds": {
            name: result["seconds"]
            for name, result in trained.items()
            if result["seconds"] is not None
        },
        "curves": curves,
        "curves_are_of": "validation images"
        if data.validation
        else "test images",
        "pictured": pictured,
        # Training over all starts, all else in the last.
        "starts": directory.starts if directory else 1,
        "total_seconds": time.time() - started,
        "flags": run.flags,
        **provenance(),
    }


def _sizes(data):
    """The number of images of each split there is."""
    splits = {name: getattr(data, name) for name in ("train", "test")}
    if data.validation:
        splits["validation"] = data.validation
    return {name: int(split.cardinality()) for name, split in splits.items()}


def _summaries(reports):
    """The numbers of each model, and the ratio of its rho to the first."""
    rho = f"rho{FLAGS.norm:g}"
    summaries = {name: report.summary() for name, report in reports.items()}
    first = summaries[REFERENCE][rho]
    return {
        name: {**numbers, "rho_ratio": numbers[rho] / first if first else None}
        for name, numbers in summaries.items()
    }


def table(found: dict) -> str:
    """The closing comparison of what `collect` gives, one row a model.

    Without ratios where the reference is barely trained.
    """
    p = f"{FLAGS.norm:g}"
    header = ("model", "accuracy", f"rho_{p}", "ratio", f"l_{p}", "training")
    rows = []
    seconds = found["training_seconds"]
    known = barely_trained.is_enough(found["models"][REFERENCE]["accuracy"])
    for name, values in found["models"].items():
        ratio = values["rho_ratio"]
        ratio = math.nan if ratio is None else ratio
        rows.append(
            (
                title_of(name),
                f"{100 * values['accuracy']:.2f} %",
                f"{values[f'rho{p}']:.4f}",
                f"{ratio:.2f}" if known else "-",
                f"{values[f'l{p}']:.1f}",
                f"{seconds[name]:.0f} s" if name in seconds else "-",
            )
        )
    return tables.render(header, rows)
