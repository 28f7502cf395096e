"""How long a whole evaluation takes, and what memory, by number of images.

    python benchmarks/evaluation.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR

`evaluate_robustness` with accuracy, rho_2, l_2, rho_inf (fgsm_rho), eps_ref, FGSM at 20
eps and PGD with 40 steps, on MNIST's test images, in a process of its own for
each number of images. `evaluation_mib` is the largest resident memory less
what it was with data and model loaded. About 2 minutes.
"""  # noqa: E501

import json
import time

import harness
import keras
from absl import app, flags

import dd_keras
from dd_keras import datasets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("batch_size", 500, "Images a batch.", lower_bound=1)
flags.DEFINE_multi_integer(
    "images", [5000, 10_000], "Numbers of test images.", lower_bound=1
)
flags.DEFINE_string(
    "output", "results/benchmarks/evaluation.json", "Where the JSON goes."
)
flags.DEFINE_integer("worker", None, "Set by the script itself.")

METRICS = ("accuracy", "rho2", "fgsm_rho", "fgsm", "pgd")


def work(images):
    """One evaluation: its time, memory and numbers."""
    model = keras.saving.load_model(FLAGS.model, compile=False)
    data = datasets.load("mnist", FLAGS.data_dir)
    batches = datasets.batches(
        data.test.take(images),
        data.preprocessing,
        FLAGS.batch_size,
        cache=False,
    )
    next(iter(batches))
    before, started = harness.resident_mib(), time.perf_counter()
    report = dd_keras.evaluate_robustness(
        model, batches, metrics=METRICS, bounds=data.bounds, verbose=0
    )
    return {
        "images": images,
        "seconds": time.perf_counter() - started,
        "evaluation_mib": harness.peak_mib() - before,
        "peak_mib": harness.peak_mib(),
        "summary": report.summary(),
    }


def main(argv):
    """Starts the processes, or is one."""
    del argv
    if FLAGS.worker is not None:
        print(json.dumps(work(FLAGS.worker)))
        return
    rows = {
        f"{images} images": harness.in_own_process(f"--worker={images}")
        for images in FLAGS.images
    }
    harness.print_table(
        rows,
        {
            "seconds": "{:.1f} s",
            "evaluation_mib": "{:.0f} MiB more",
            "peak_mib": "{:.0f} MiB",
        },
    )
    harness.save(FLAGS.output, "evaluation", rows, metrics=METRICS)


if __name__ == "__main__":
    app.run(main)
