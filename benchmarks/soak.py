"""An hour of training and evaluation in one process: does anything grow?

    python benchmarks/soak.py --data_dir=DATA_DIR

Each round trains LeNet on MNIST by Deep Defense for one more epoch of 100
steps, with validation and checkpoints, and evaluates it; every tenth saves and
loads it as well. Noted are the memory that the process holds and the time of a
step. The learning rate is so small that all rounds do the same work. What
grows shows in the slopes, which leave out the first quarter, while caches
fill. Without --data_dir it is a small network on the digits.
"""

import gc
import os
import statistics
import tempfile
import time

import harness
import keras
import numpy as np
from absl import app, flags

import dd_keras
from dd_keras import datasets, networks

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 60.0, "How long.", lower_bound=0.01)
flags.DEFINE_string("data_dir", None, "TFDS data_dir that holds MNIST.")
flags.DEFINE_integer(
    "images", 10_000, "Training images of a round.", lower_bound=1
)
flags.DEFINE_integer(
    "evaluated", 500, "Images of an evaluation.", lower_bound=1
)
flags.DEFINE_integer("reload_every", 10, "Rounds.", lower_bound=1)
flags.DEFINE_string(
    "output", "results/benchmarks/soak.json", "Where the JSON goes."
)

SAVE_EVERY = 60.0  # seconds: a soak that is killed leaves its rounds
BATCH = 100


class StepTimes(keras.callbacks.Callback):
    """Times the steps of an epoch, in seconds."""

    def on_epoch_begin(self, epoch, logs=None):
        """Starts anew."""
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        """Notes the time."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Notes what it took; the logs were waited for before."""
        self.seconds.append(time.perf_counter() - self._started)


def slope(hours, values):
    """Least squares: growth an hour, and its standard error."""
    hours, values = np.asarray(hours), np.asarray(values)
    centred = hours - hours.mean()
    growth = centred @ values / (centred @ centred)
    rest = values - values.mean() - growth * centred
    freedom = max(1, len(hours) - 2)
    error = np.sqrt(rest @ rest / freedom / (centred @ centred))
    return float(growth), float(error)


def summary(rounds):
    """What the rounds come to, without their first quarter."""
    kept = rounds[len(rounds) // 4 :]
    if len(kept) < 3:
        return {}
    hours = [row["seconds"] / 3600 for row in kept]
    quarter = max(1, len(kept) // 3)
    found = {"rounds": len(rounds)}
    for key in ("resident_mib", "step_ms", "evaluation_ms", "objects"):
        values = [row[key] for row in kept]
        growth, error = slope(hours, values)
        found[key] = {
            "growth_an_hour": growth,
            "standard_error": error,
            "second_quarter": statistics.median(values[:quarter]),
            "last_quarter": statistics.median(values[-quarter:]),
        }
    return found


def setting():
    """The model, its training and test images, and their batches' size."""
    keras.utils.set_random_seed(0)
    if FLAGS.data_dir:
        data = datasets.load("mnist", FLAGS.data_dir)
        network = keras.models.load_model(
            "savedmodels/mnist_lenet_reference.keras", compile=False
        )
    else:
        data, network = datasets.load("digits"), networks.digits_cnn()
    model = dd_keras.DeepDefenseModel(network)
    model.compile(
        dd_keras.CoupledSGD(1e-12, 0.0, 0.0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, data.limited(FLAGS.images)


def reloaded(model, directory):
    """Saves a model, and loads it again; it must be the same."""
    path = os.path.join(directory, "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def main(argv):
    """Soaks, from flags to JSON."""
    del argv
    model, data = setting()
    train = datasets.ResumableBatches.of(data, BATCH)
    test = datasets.batches(
        data.test.take(FLAGS.evaluated), data.preprocessing, BATCH
    )
    times, rounds, saved = StepTimes(), [], time.time()
    started = time.perf_counter()  # the clock of the day may be set back
    with tempfile.TemporaryDirectory() as directory:
        while time.perf_counter() - started < 60 * FLAGS.minutes:
            dd_keras.resumable_fit(
                model,
                train,
                len(rounds) + 1,
                os.path.join(directory, "checkpoints"),
                validation_data=test,
                callbacks=[times],
                verbose=0,
            )
            before = time.perf_counter()
            dd_keras.evaluate_robustness(
                model.model,
                test,
                metrics=("accuracy", "rho2", "fgsm"),
                bounds=data.bounds,
                verbose=0,
            )
            evaluation = time.perf_counter() - before
            if len(rounds) % FLAGS.reload_every == FLAGS.reload_every - 1:
                reloaded(model, directory)
            gc.collect()  # what is left is held by somebody
            rounds.append(
                {
                    "seconds": time.perf_counter() - started,
                    "resident_mib": harness.resident_mib(),
                    "step_ms": 1e3 * statistics.median(times.seconds),
                    "evaluation_ms": 1e3 * evaluation,
                    "objects": len(gc.get_objects()),
                }
            )
            if time.time() - saved > SAVE_EVERY:
                saved = time.time()
                save(rounds, finished=False)
    save(rounds, finished=True)
    for name, row in (summary(rounds) or {}).items():
        print(name, row)


def save(rounds, finished):
    """Writes the rounds so far."""
    harness.save(
        FLAGS.output,
        "soak",
        {str(place): row for place, row in enumerate(rounds)},
        finished=finished,
        steps=len(rounds) * -(-FLAGS.images // BATCH),
        summary=summary(rounds),
    )


if __name__ == "__main__":
    app.run(main)
