"""Figures 3 and 4 of the paper: how lam and c, and single layers, matter.

    python apps/sweep.py --dataset=mnist --arch=lenet --reference=FILE.keras
    python apps/sweep.py --figure=3 --epochs=1 --max_runs=4

Figure 3 fine-tunes one reference with each pair of --lams and --cs, Figure 4
with the regulariser on one layer at a time, and on all. Each run ends in
runs/NAME.json in --output_dir; sweep.csv and the figures are brought up to
date after each, and sweep.json holds all of them in the end. Interrupted, or
stopped by --max_runs, the same command goes on with what is missing. A run of
LeNet on MNIST, five epochs, is 3,000 steps of 86 ms on two idle CPU cores
(benchmarks/training_step.py), and there are 27 + 5 of them; --epochs=1 takes a
fifth of that.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import time
from typing import NamedTuple

import common  # before TensorFlow, which it quietens
import runs
import training
from absl import app, flags

from dd_keras.plots import figures
from dd_keras.utils import files

FLAGS = flags.FLAGS
common.define_dataset_flag()
training.define_flags(
    ["lenet", "mlp", "digits_cnn", "convnet", "nin"],
    output_dir="/tmp/dd_keras/sweep",
)
flags.adopt_module_key_flags(common)  # for --help
flags.adopt_module_key_flags(training)
flags.DEFINE_list("figure", ["3", "4"], "Which of the two: 3, 4, or 3,4.")
flags.DEFINE_list("lams", ["5", "15", "25"], "lam of Figure 3.")
flags.DEFINE_list(
    "cs", [str(c) for c in range(5, 50, 5)], "c of Figure 3, for each lam."
)
flags.DEFINE_list(
    "layers", None, "Layers of Figure 4; all with weights by default."
)
flags.register_validator(
    "epochs", lambda epochs: epochs > 0, message="--epochs must be above 0."
)
flags.DEFINE_integer(
    "max_runs", None, "Stop after so many new runs.", lower_bound=0
)
flags.register_validator(
    "figure",
    lambda given: given and sorted(given) in (["3"], ["4"], ["3", "4"]),
    message="--figure must be 3, 4, or 3,4.",
)

flags.register_validator(
    "distribution",
    lambda name: name != "multi_worker",
    message="--distribution must be none or mirrored: several workers do more "
    "with a part of the runs each.",
)
flags.register_validator(
    "keep",
    lambda epoch: epoch == "last",
    message="--keep must be last: the figures are of the last epoch.",
)

ALL_LAYERS = "all"

# What trained the reference.
_OF_REFERENCE = [
    "arch", "weights", "augment", "batch_size", "momentum",
    "weight_decay", "reference_epochs", "reference_learning_rate",
    "reference_weight_decay", "reference_last_epochs",
    "reference_last_rate", "seed",
]  # fmt: skip


class Run(NamedTuple):
    """One fine-tuning.

    Attributes:
        figure: "3" or "4".
        series: what its points are joined by in the figure.
        label: what tells it from others of its series.
        settings: `dd_keras.defenses.Settings`.
    """

    figure: str
    series: str
    label: str
    settings: training.Settings

    @property
    def name(self):
        """Of its files."""
        words = [f"figure{self.figure}", self.series, self.label]
        return "_".join(word for word in words if word)


@common.main
def main():
    """Sweeps, from flags to files."""
    started = time.time()
    strategy = training.start()
    with strategy.scope():
        _sweep(started)


def _sweep(started):
    output_dir = common.own_directory(FLAGS.output_dir)
    os.makedirs(os.path.join(output_dir, "runs"), exist_ok=True)
    data = training.load_data(FLAGS.dataset, recipe=FLAGS.recipe)
    train = training.training_batches(data)
    test = training.test_batches(data)
    path = _reference(data, train, output_dir)
    reference = common.load_classifier(path, data).model
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    first = _evaluated(reference, digest, test, output_dir)
    runs = _runs(reference)
    finished = {
        run.name: _read(_path(output_dir, run.name), _identity(run, digest))
        for run in runs
    }
    missing = [run for run in runs if finished[run.name] is None]
    print(f"{len(runs)} runs, {len(missing)} of them to do.")
    for run in missing[: FLAGS.max_runs]:
        print(f"\nFine-tuning: {run.name}")
        identity = _identity(run, digest)
        progress = _progress(output_dir, run.name, identity)
        finished[run.name] = {
            **identity,
            **_result(
                run,
                training.load_reference(path, data),
                train,
                test,
                progress.checkpoints("training"),
            ),
            **common.provenance(),
        }
        common.write_json(finished[run.name], _path(output_dir, run.name))
        progress.finish()
        _write(runs, finished, first, output_dir)
    written = _write(runs, finished, first, output_dir)
    if all(finished.values()):
        written.append(_write_all(finished, first, output_dir))
    print(
        f"\n{sum(map(bool, finished.values()))} of {len(runs)} runs are done."
    )
    common.finish(written, started)


def _progress(output_dir, name, identity):
    """The `runs.Run` of one fine-tuning."""
    return runs.Run(os.path.join(output_dir, "checkpoints", name), identity)


def _result(run, classifier, train, test, checkpoints):
    """Fine-tunes a classifier: its curve, None if it diverged, and seconds."""
    started = time.time()
    try:
        seconds, curve = training.defend(
            "deep_defense",
            classifier,
            train,
            test,
            checkpoints,
            run.settings,
            # Figure 4 draws the way there, Figure 3 its end.
            validation_freq=1 if run.figure == "4" else FLAGS.epochs,
            log_as=run.name,
        )
    except training.DivergenceError as error:  # a result, too
        print(error)
        seconds, curve = time.time() - started, None
    return {"curve": curve, "seconds": seconds}


def _reference(data, train, output_dir):
    """The path of the classifier that all runs start from."""
    if FLAGS.reference:
        return FLAGS.reference
    path = os.path.join(output_dir, f"{training.REFERENCE}.keras")
    if not os.path.exists(path):
        progress = _progress(
            output_dir, training.REFERENCE, _flags(_OF_REFERENCE)
        )
        reference, _ = training.train_reference(
            data, train, progress.checkpoints("training")
        )
        training.save(reference, path)
        progress.finish()
    return path


def _runs(reference):
    """All runs that the flags ask for."""
    runs = []
    if "3" in FLAGS.figure:
        runs += [
            Run("3", f"lam={lam}", f"c={c}", training.settings(lam=lam, c=c))
            for lam in _numbers("lams")
            for c in _numbers("cs")
        ]
    if "4" in FLAGS.figure:
        weighted = [
            layer.name for layer in reference.layers if layer.trainable_weights
        ]
        names = FLAGS.layers or [*weighted, ALL_LAYERS]
        if not set(names) <= {*weighted, ALL_LAYERS} or len(set(names)) < len(
            names
        ):
            common.fail(
                f"--layers: expected of {weighted} and {ALL_LAYERS!r}, each "
                f"once; received {names}."
            )
        for name in names:
            layers = None if name == ALL_LAYERS else [name]
            settings = training.settings(regularized_layers=layers)
            runs.append(Run("4", f"layer={name}", "", settings))
    return runs


def _numbers(name):
    """The numbers of a flag that lists them, each above 0."""
    try:
        numbers = [float(text) for text in FLAGS[name].value]
    except ValueError:
        numbers = [0]
    valid = all(0 < number < math.inf for number in numbers)
    if not numbers or not valid or len(set(numbers)) < len(numbers):
        common.fail(
            f"--{name}: expected different numbers above 0; received "
            f"{FLAGS[name].value}."
        )
    return [int(n) if n == int(n) else n for n in numbers]


def _identity(run, digest):
    """What a run's numbers depend on; as JSON gives it back."""
    names = (
        "dataset", "recipe", "limit", "image_size", "augment", "epochs",
        "halved_epochs", "last_rate", "learning_rate", "momentum",
        "weight_decay", "lam_start", "regularization_warmup",
    )  # fmt: skip
    return {
        "run": run.name,
        "reference_sha256": digest,
        "flags": _flags(names),
        "settings": common.as_json(dataclasses.asdict(run.settings)),
    }


def _flags(names):
    return common.as_json({name: FLAGS[name].value for name in names})


def _path(output_dir, name):
    return os.path.join(output_dir, "runs", f"{name}.json")


def _read(path, wanted):
    """A result that is there already, or None.

    Args:
        path: of its file.
        wanted: what it must hold, among others.

    Raises:
        SystemExit: with a message, if it was made by other settings, or is
            damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            result = dict(json.load(file))
    except (TypeError, ValueError) as error:
        common.fail(
            f"{path}: expected the JSON of a run; it cannot be read: {error}. "
            "Remove it, and the same command runs it again."
        )
    found = _flat(result)
    for key, value in _flat(wanted).items():
        if found.get(key) != value:
            common.fail(
                f"{path}: expected a run with {key} {value}; it is one with "
                f"{found.get(key)}. Choose another --output_dir."
            )
    return result


def _flat(values):
    """A dict with the entries of the dicts in it as its own."""
    flat = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _evaluated(reference, digest, test, output_dir):
    """Accuracy and rho of the reference, measured once."""
    path = _path(output_dir, training.REFERENCE)
    names = ["dataset", "recipe", "limit", "image_size"]
    names += ["norm", "evaluation_candidates"]
    if not FLAGS.reference:  # what trained it
        names += _OF_REFERENCE
    identity = {"reference_sha256": digest, **_flags(names)}
    found = _read(path, identity)
    if found is not None:
        return found
    print("\nEvaluating: reference")
    summary = training.evaluate(reference, test).summary()
    result = {
        **identity,
        "accuracy": summary["accuracy"],
        "rho": summary[f"rho{FLAGS.norm:g}"],
    }
    common.write_json(result, path)
    return result


def _write_all(finished, first, output_dir):
    """Writes sweep.json, unless it holds these runs already; its path."""
    path = os.path.join(output_dir, "sweep.json")
    with (
        contextlib.suppress(*files.DAMAGED),
        open(path, encoding="utf-8") as file,
    ):
        if json.load(file).get("runs") == finished:
            return path
    common.write_json(
        {
            "reference": first,
            "runs": finished,
            "total_seconds": sum(r["seconds"] for r in finished.values()),
            **common.provenance(),
        },
        path,
    )
    return path


def _write(runs, finished, first, output_dir):
    """Writes the CSV and the figures of all finished runs; their paths."""
    done = [(run, finished[run.name]) for run in runs if finished[run.name]]
    written = [os.path.join(output_dir, "sweep.csv")]
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
    files.write_text(text.getvalue(), written[0])
    for figure in FLAGS.figure:
        points = {}
        for run, result in done:
            if run.figure != figure or not result["curve"]:
                continue
            series = points.setdefault(
                run.series, {"accuracy": [], "rho": [], "labels": []}
            )
            for key in ("accuracy", "rho"):
                # Of Figure 4 the way there, from the reference.
                way = [first[key]] if figure == "4" else []
                series[key] += [*way, *result["curve"][key]]
            series["labels"].append(run.label)
        if not points:
            continue
        if figure == "4":
            for series in points.values():
                del series["labels"]
        written.append(os.path.join(output_dir, f"figure{figure}.png"))
        with files.atomic_write(written[-1]) as part:
            figures.trade_off(
                points,
                part,
                FLAGS.norm,
                (first["rho"], first["accuracy"]),
                width=7.0,
                note=f"{FLAGS.arch} on {FLAGS.dataset}. Trainings: "
                f"{len(done)}; epochs: {FLAGS.epochs} (the paper: 5).",
            )
    return written


if __name__ == "__main__":
    app.run(main)
