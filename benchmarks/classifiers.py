"""Can any Keras classifier be defended? Published ones, stage by stage.

    python benchmarks/classifiers.py --output_dir=results

Classifiers of the Keras code examples, the TensorFlow tutorials and papers,
written small (benchmarks/published/). Each is wrapped, predicts as it did,
takes two steps of `fit` (every weight that the loss depends on has a gradient,
of the whole objective and of the regulariser alone), is evaluated, saved, and
exported; in the end all are loaded in a new process, and the exported ones in
one without Keras and dd_keras. What fails is a row with an error. Rows in
which all worked are kept (--rerun measures them again).

About 10 minutes on 2 cores.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import keras
from absl import app, flags
from published import CLASSIFIERS
from published.check import BATCH_SIZE, STAGES, check, loss_by_name, problem

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "results", "Where classifiers.json goes.")
flags.DEFINE_list("only", None, "Names of classifiers. Default: all.")
flags.DEFINE_bool("rerun", False, "Measures finished rows again.")

# What is known only at the end, from other processes, by what does it.
LOADED = {"loads": "keras", "is served": "savedmodel"}
COLUMNS = {
    "kind": "{:.40}",
    "worked": "{}",
    "parameters": "{:,}",
    "clean_step_s": "{:.1f} s",
    "step_s": "{:.1f} s",
    "ratio": "{:.1f} x",
    "error": "{:.60}",
}


def clean_step(name):
    """Seconds of the first step of the classifier's own `fit`."""
    keras.utils.set_random_seed(0)
    classifier, x, y = problem(name)
    classifier.compile("sgd", loss_by_name(classifier(x[:1]).shape[-1]))
    started = time.perf_counter()
    classifier.fit(x, y, batch_size=BATCH_SIZE, verbose=0)
    return time.perf_counter() - started


def measure(name, folder):
    """A classifier's row, but for what is known only at the end."""
    row = {"source": CLASSIFIERS[name].source, "kind": CLASSIFIERS[name].kind}
    row |= {"worked": [], "error": None}
    keras.backend.clear_session()
    try:
        check(name, folder, row)
        row["clean_step_s"] = clean_step(name)
        row["ratio"] = row["step_s"] / row["clean_step_s"]
    except Exception as error:  # whatever it is, the next one is to run
        row["error"] = harness.one_line(error)
    return row


def add_loaded(rows, folder):
    """Loads all files in new processes; adds to `worked`, or an error."""
    script = Path(__file__).with_name("loading.py")
    for stage, kind in LOADED.items():
        done = subprocess.run(
            [sys.executable, script, kind, folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        for name, error in found.items():
            if error is None:
                rows[name]["worked"].append(stage)
            else:
                rows[name]["error"] = f"{stage}: {error}"


def passed(row):
    """Whether all that is asked of a classifier worked."""
    return row["error"] is None and row["worked"] == [*STAGES, *LOADED]


def main(argv):
    """Measures, and writes the table."""
    del argv
    unknown = set(FLAGS.only or ()) - set(CLASSIFIERS)
    if unknown:
        sys.exit(f"--only: expected of {list(CLASSIFIERS)}; got {unknown}.")
    names = FLAGS.only or list(CLASSIFIERS)
    path = Path(FLAGS.output_dir, "classifiers.json")
    rows = {}
    if path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    if not FLAGS.rerun:
        names = [n for n in names if n not in rows or not passed(rows[n])]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, start=1):
            print(f"{number} of {len(names)}: {name}", flush=True)
            rows[name] = measure(name, folder)
        add_loaded(rows, folder)
    rows = dict(sorted(rows.items()))
    harness.save(
        path,
        "classifiers",
        rows,
        batch_size=BATCH_SIZE,
        stages=[*STAGES, *LOADED],
    )
    shown = {
        name: {**row, "worked": f"{len(row['worked'])} of 8"}
        for name, row in rows.items()
    }
    harness.print_table(shown, COLUMNS)
    failed = [name for name, row in rows.items() if not passed(row)]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
