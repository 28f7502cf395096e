"""Does Deep Defense train every network of `keras.applications`?

    python benchmarks/applications.py --output_dir=results

Two steps of `fit` on random pixels, the first down the whole objective, the
second down the regulariser alone, whose gradient is the second derivative of
every layer; then the classifier is saved, loaded and compared. Each network
in a process of its own, at the smallest input it takes; one that crashes is a
row with an error. Finished rows are kept (--rerun measures them again).

By default the smallest network of every family: about 15 minutes on 2 cores.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import keras
import numpy as np
from absl import app, flags

import dd_keras
from dd_keras import attacks
from dd_keras.networks import applications

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "results", "Where applications.json goes.")
flags.DEFINE_list("only", None, "Names of networks. Default: see --all.")
flags.DEFINE_bool("all", False, "All networks, not the smallest of a family.")
flags.DEFINE_bool("rerun", False, "Measures finished rows again.")
flags.DEFINE_integer(
    "timeout", 3600, "Most seconds for a network.", lower_bound=1
)
flags.DEFINE_string("worker", None, "One network only, printed as JSON.")

BATCH_SIZE = 2
CLASSES = 3
# Two iterations: the second is differentiated by a way of its own.
ATTACK = attacks.DeepFool(max_iter=2, candidates=2)
LEARNING_RATE = 1e-3
# Random networks of many layers have gradients of any size.
LONGEST_GRADIENT = 1.0
# The first that a network takes is used.
SIZES = (32, 71, 75, 96, 128, 224)
COLUMNS = {
    "input_size": "{} px",
    "parameters": "{:,}",
    "first_step_s": "{:.1f} s",
    "second_step_s": "{:.2f} s",
    "variables": "{} variables",
    "with_gradient": "{} gradients",
    "with_regularizer_gradient": "{} by penalty",
    "peak_mib": "{:.0f} MiB",
    "error": "{:.60}",
}


def smallest_input(name):
    """A network of random weights on the smallest input, and its size."""
    for size in SIZES:
        try:
            return applications.build(name, (size, size, 3), CLASSES), size
        except ValueError as error:
            reason = error
    raise reason


def check(name):
    """Trains a network by two steps; saves, loads and compares it.

    Args:
        name: one of `applications.NAMES`.

    Returns:
        dict, the figures of its row.
    """
    keras.utils.set_random_seed(0)
    classifier, size = smallest_input(name)
    x = np.random.default_rng(0).uniform(
        0, 255, (BATCH_SIZE, size, size, 3)
    ).astype("float32")  # fmt: skip
    y = np.arange(BATCH_SIZE)
    pixels = np.random.default_rng(1).uniform(0, 255, (16, size, size, 3))
    harness.settle(classifier, pixels.astype("float32"))
    model = dd_keras.DeepDefenseModel(classifier, attack=ATTACK)
    loss = harness.WeighedCrossentropy(from_logits=True)
    optimizer = harness.RecordingSGD(
        LEARNING_RATE, global_clipnorm=LONGEST_GRADIENT
    )
    model.compile(optimizer, loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    row = {
        "input_size": size,
        "parameters": classifier.count_params(),
        "variables": len(model.trainable_variables),
    }
    found = []
    for step, weight in {"first_step_s": 1.0, "second_step_s": 0.0}.items():
        loss.weight.assign(weight)
        started = time.perf_counter()
        logs = model.fit(x, y, batch_size=BATCH_SIZE, verbose=0).history
        row[step] = time.perf_counter() - started
        sizes = np.array([float(size) for size in optimizer.sizes])
        found.append(int(np.sum(sizes > 0)))
        row["finite"] = row.get("finite", True) and bool(
            np.isfinite(sizes).all() and np.isfinite(logs["loss"]).all()
        )
    row["with_gradient"], row["with_regularizer_gradient"] = found
    row["finite"] &= all(np.isfinite(w).all() for w in classifier.get_weights())
    row["rho2"] = logs["rho2"][0]
    row["saved_and_loaded"] = same_after_saving(classifier, x)
    return row


def same_after_saving(classifier, x):
    """Whether a classifier gives the same outputs once saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "classifier.keras")
        classifier.save(path)
        loaded = keras.saving.load_model(path)
    return bool(np.allclose(loaded(x), classifier(x), rtol=1e-5, atol=1e-6))


def work(name):
    """One process' work: its row, with an error if there was one."""
    try:
        row = {**check(name), "error": None}
    except Exception as error:  # whatever it is, the next network is to run
        row = {"error": harness.one_line(error)}
    return {**row, "peak_mib": harness.peak_mib()}


def measure(name):
    """A network's row, from a process of its own."""
    row = {"family": applications.family(name)}
    command = [sys.executable, sys.argv[0], f"--worker={name}"]
    try:
        worker = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            timeout=FLAGS.timeout,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        return {**row, "error": f"exit status {error.returncode}"}
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not done after {FLAGS.timeout} s"}
    return {**row, **json.loads(worker.stdout.splitlines()[-1])}


def passed(row):
    """Whether a network trains, and every variable by all of the objective."""
    return row["error"] is None and (
        row["finite"]
        and row["saved_and_loaded"]
        and row["variables"]
        == row["with_gradient"]
        == row["with_regularizer_gradient"]
    )


def chosen():
    """The names of the networks to measure."""
    if FLAGS.only:
        for name in FLAGS.only:
            applications.family(name)  # raises if there is none
        return FLAGS.only
    if FLAGS.all:
        return list(applications.NAMES)
    return [names[0] for names in applications.FAMILIES.values()]


def main(argv):
    """Starts the processes, or is one."""
    del argv
    if FLAGS.worker is not None:
        print(json.dumps(work(FLAGS.worker)))
        return
    path = Path(FLAGS.output_dir, "applications.json")
    rows = {}
    if path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    names = chosen()
    for number, name in enumerate(names, start=1):
        done = rows.get(name, {"error": "not measured"})
        if FLAGS.rerun or done["error"] is not None:
            print(f"{number} of {len(names)}: {name}", flush=True)
            rows[name] = measure(name)
            harness.print_table({name: rows[name]}, COLUMNS)
            harness.save(
                path,
                "applications",
                dict(sorted(rows.items())),
                batch_size=BATCH_SIZE,
                classes=CLASSES,
                attack=repr(ATTACK),
            )
    harness.print_table({name: rows[name] for name in names}, COLUMNS)
    failed = [name for name in names if not passed(rows[name])]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
