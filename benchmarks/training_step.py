"""Time of a Deep Defense training step beside a clean one, on MNIST.

    python benchmarks/training_step.py --model=LENET.keras --data_dir=DIR

`--model` is a trained classifier (reference.keras of apps/mnist.py): the cost
depends on how many iterations the attack takes, so an untrained network says
little. Variants take turns on the same batches, so that a busy machine slows
them all; the learning rate is tiny, so that the network stays as it is.
Prints medians and ratios to the clean step, and writes them as JSON.
"""

import json
import os
import platform
import shlex
import statistics
import sys
import time

import keras
import tensorflow as tf
from absl import app, flags

import dd_keras
from dd_keras import attacks, datasets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained MNIST classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("batch_size", 100, "Images a step.", lower_bound=1)
flags.DEFINE_integer("max_iter", 5, "DeepFool iterations.", lower_bound=1)
flags.DEFINE_integer("steps", 40, "Timed steps a variant.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/training_step.json", "Where the JSON goes."
)

WARM_UP = 3  # steps that trace and fill caches


def training_function(**kwargs):
    """A compiled training step of a fresh copy of the model."""
    classifier = keras.saving.load_model(FLAGS.model, compile=False)
    model = dd_keras.DeepDefenseModel(classifier, **kwargs)
    model.compile(
        dd_keras.CoupledSGD(1e-12),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    return tf.function(model.train_step, autograph=False)


def main(argv):
    """Times all variants on the same batches, taking turns."""
    del argv
    data = datasets.load("mnist", FLAGS.data_dir)
    batches = list(
        datasets.batches(
            data.train.take(FLAGS.batch_size * FLAGS.steps),
            data.preprocessing,
            FLAGS.batch_size,
        )
    )
    attack = attacks.DeepFool(max_iter=FLAGS.max_iter)
    likeliest = attacks.DeepFool(max_iter=FLAGS.max_iter, candidates=5)
    variants = {
        "clean": training_function(lam=0.0),
        "deep_defense": training_function(attack=attack),
        "deep_defense, candidates=5": training_function(attack=likeliest),
    }
    seconds = {name: [] for name in variants}
    for step in variants.values():
        for batch in batches[:WARM_UP]:
            step(batch)
    for batch in batches:
        for name, step in variants.items():
            started = time.perf_counter()
            tf.nest.map_structure(lambda t: t.numpy(), step(batch))
            seconds[name].append(time.perf_counter() - started)
    rows = {}
    for name, times in seconds.items():
        ratios = [
            t / clean for t, clean in zip(times, seconds["clean"], strict=True)
        ]
        quartiles = statistics.quantiles(times, n=4)
        rows[name] = {
            "median_ms": 1e3 * statistics.median(times),
            "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "median_ratio_to_clean": statistics.median(ratios),
        }
        print(
            f"{name:28} {rows[name]['median_ms']:8.1f} ms "
            f"{rows[name]['median_ratio_to_clean']:6.2f} x clean"
        )
    results = {
        "benchmark": "training_step",
        "network": keras.saving.load_model(FLAGS.model, compile=False).name,
        "batch_size": FLAGS.batch_size,
        "max_iter": FLAGS.max_iter,
        "steps": FLAGS.steps,
        "variants": rows,
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {
            "dd_keras": dd_keras.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }
    os.makedirs(os.path.dirname(FLAGS.output) or ".", exist_ok=True)
    part = FLAGS.output + ".part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2)
        file.write("\n")
    os.replace(part, FLAGS.output)
    print(f"Written: {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
