"""Figures 3 and 4 of the paper: how lam and c, and single layers, matter.

    python apps/sweep.py --dataset=mnist --arch=lenet --reference=FILE.keras
    python apps/sweep.py --figure=3 --epochs=1 --max_runs=4

Figure 3 fine-tunes one reference with each pair of --lams and --cs, Figure 4
with the regulariser on one layer at a time, and on all. Each run ends in
runs/NAME.json in --output_dir; sweep.csv and the figures are brought up to
date after each, and sweep.json holds all of them in the end. Interrupted, or
stopped by --max_runs, the same command runs what is missing. A run of
LeNet on MNIST, five epochs, is 3,000 steps of 86 ms on two idle CPU cores
(benchmarks/training_step.py), and there are 27 + 5 of them; --epochs=1 takes a
fifth of that.
"""

import contextlib
import json
import math
import os
import time

from absl import app, flags

from paper import sweep_files
from paper.sweep_files import ALL_LAYERS, FineTuning
from shared import (
    barely_trained,
    cli,
    fine_tunings,
    inputs,
    training,
    training_flags,
)
from shared.flags import define_dataset_flag
from shared.provenance import (
    named_flag_values,
    provenance,
    write_json,
)
from shared.run import Run, test_batches, training_batches
from shared.training_flags import settings

from dd_keras.training import DivergenceError
from dd_keras.utils import files

FLAGS = flags.FLAGS
define_dataset_flag()
training_flags.define(
    ["lenet", "mlp", "digits_cnn", "convnet", "nin"],
    output_dir="runs/sweep",
)
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


@cli.main
def main():
    """Sweeps, from flags to files."""
    started = time.time()
    with training.start().scope():
        _sweep(started)


def _sweep(started):
    output_dir = cli.own_directory(FLAGS.output_dir)
    os.makedirs(os.path.join(output_dir, "runs"), exist_ok=True)
    data = Run.of_flags(__name__, FLAGS.dataset, FLAGS.recipe).load_data()
    train = training_batches(data)
    test = test_batches(data)
    path = fine_tunings.reference_path(data, train, output_dir)
    reference = inputs.load_classifier(path, data).model
    digest = fine_tunings.digest_of(path)
    first = _evaluated(reference, digest, test, output_dir)
    runs = _runs(reference)
    finished = {
        run.name: fine_tunings.read(
            fine_tunings.result_path(output_dir, run.name),
            _identity(run, digest),
        )
        for run in runs
    }
    missing = [run for run in runs if finished[run.name] is None]
    print(f"{len(runs)} runs, {len(missing)} of them to do.")
    poor = barely_trained.note(first["accuracy"], data.num_classes)
    if poor:
        print(f"warning: {poor}")
    for run in missing[: FLAGS.max_runs]:
        print(f"\nFine-tuning: {run.name}")
        identity = _identity(run, digest)
        progress = fine_tunings.progress_of(output_dir, run.name, identity)
        finished[run.name] = {
            **identity,
            **_result(
                run,
                training.load_reference(path, data),
                train,
                test,
                progress.checkpoints("training"),
                first["accuracy"],
                data.bounds,
            ),
            **provenance(),
        }
        write_json(
            finished[run.name], fine_tunings.result_path(output_dir, run.name)
        )
        progress.finish()
        sweep_files.write(runs, finished, first, output_dir)
    written = sweep_files.write(runs, finished, first, output_dir)
    if all(finished.values()):
        written.append(_write_all(finished, first, output_dir))
    print(
        f"\n{sum(map(bool, finished.values()))} of {len(runs)} runs are done."
    )
    cli.print_written(written, started)


def _result(run, classifier, train, test, checkpoints, accuracy, bounds):
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
            bounds,
            # Figure 4 draws every epoch, Figure 3 the last.
            validation_freq=1 if run.figure == "4" else FLAGS.epochs,
            log_as=run.name,
            reference_accuracy=accuracy,
        )
    except DivergenceError as error:  # a result, too
        print(error)
        seconds, curve = time.time() - started, None
    return {"curve": curve, "seconds": seconds}


def _runs(reference):
    """All runs that the flags ask for."""
    runs = []
    if "3" in FLAGS.figure:
        runs += [
            FineTuning("3", f"lam={lam}", f"c={c}", settings(lam=lam, c=c))
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
            cli.fail(
                f"--layers: expected of {weighted} and {ALL_LAYERS!r}, each "
                f"once; received {names}."
            )
        for name in names:
            layers = None if name == ALL_LAYERS else [name]
            chosen = settings(regularized_layers=layers)
            runs.append(FineTuning("4", f"layer={name}", "", chosen))
    return runs


def _numbers(name):
    """The numbers of a flag that lists them, each above 0."""
    try:
        numbers = [float(text) for text in FLAGS[name].value]
    except ValueError:
        numbers = [0]
    valid = all(0 < number < math.inf for number in numbers)
    if not numbers or not valid or len(set(numbers)) < len(numbers):
        cli.fail(
            f"--{name}: expected different numbers above 0; received "
            f"{FLAGS[name].value}."
        )
    return [int(n) if n == int(n) else n for n in numbers]


def _identity(run, digest):
    return fine_tunings.identity_of(run.name, run.settings, digest)


def _evaluated(reference, digest, test, output_dir):
    """Accuracy and rho of the reference, measured once."""
    path = fine_tunings.result_path(output_dir, training.REFERENCE)
    names = ["dataset", "recipe", "limit", "image_size"]
    names += ["norm", "evaluation_candidates"]
    if not FLAGS.reference:  # what trained it
        names += fine_tunings.OF_REFERENCE
    identity = {"reference_sha256": digest, **named_flag_values(names)}
    found = fine_tunings.read(path, identity)
    if found is not None:
        return found
    print("\nEvaluating: reference")
    summary = training.evaluate(reference, test).summary()
    result = {
        **identity,
        "accuracy": summary["accuracy"],
        "rho": summary[f"rho{FLAGS.norm:g}"],
    }
    write_json(result, path)
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
    write_json(
        {
            "reference": first,
            "runs": finished,
            "total_seconds": sum(r["seconds"] for r in finished.values()),
            **provenance(),
        },
        path,
    )
    return path


if __name__ == "__main__":
    app.run(main)
