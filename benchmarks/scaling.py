"""How time and memory of a training step grow, one dimension at a time.

    python benchmarks/scaling.py

Classes, iterations, batch, input size and depth are varied from one base. The
network is built so that no sample is ever fooled: sines all over, and one
class far above the others, so that every sample takes exactly `max_iter` steps
and the figures do not depend on training. Each setting has a process of its
own, for its peak memory; within it, clean and Deep Defense steps take turns.
About 8 minutes on 2 cores.
"""

import json

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import dd_keras
from dd_keras import attacks

FLAGS = flags.FLAGS
flags.DEFINE_integer("turns", 7, "Timed steps of each.", lower_bound=2)
flags.DEFINE_multi_enum(
    "dimension",
    ["classes", "candidates=10", "max_iter", "batch_size", "size", "depth"],
    ["classes", "candidates=10", "max_iter", "batch_size", "size", "depth"],
    "What to vary.",
)
flags.DEFINE_string(
    "output", "results/benchmarks/scaling.json", "Where the JSON goes."
)
flags.DEFINE_string("setting", None, "One setting only, as JSON: a worker.")

BASE = {
    "classes": 10,
    "candidates": None,
    "max_iter": 5,
    "batch_size": 32,
    "size": 32,
    "depth": 4,
}
VALUES = {
    "classes": (10, 100, 1000),
    "max_iter": (1, 5, 20, 50),
    "batch_size": (8, 32, 128),
    "size": (16, 32, 64),
    "depth": (2, 4, 8),
}
FILTERS = 32
LEAD = 1e3  # of the class that is always decided for
SLOW_CLASSES = 1000  # all of them: a minute a step


def never_fooled(size, depth, classes):
    """A convolutional network that decides for class 0 everywhere."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((size, size, 3))]
    for _ in range(depth):
        layers.append(
            keras.layers.Conv2D(
                FILTERS, 3, padding="same", activation=keras.ops.sin
            )
        )
    layers += [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ]
    network = keras.Sequential(layers)
    kernel, bias = network.layers[-1].get_weights()
    bias[0] = LEAD
    network.layers[-1].set_weights([kernel, bias])
    return network


def measure(setting):
    """The worker: times one setting, and looks at its own peak memory."""
    network = never_fooled(
        setting["size"], setting["depth"], setting["classes"]
    )
    x = np.random.default_rng(0).normal(
        size=(setting["batch_size"], setting["size"], setting["size"], 3)
    )
    batch = tf.constant(x, tf.float32), tf.zeros(len(x), tf.int32)
    before = harness.resident_mib()
    attack = attacks.DeepFool(
        max_iter=setting["max_iter"], candidates=setting["candidates"]
    )
    found = attack.run(network, *batch)
    assert set(found.iterations.numpy()) == {setting["max_iter"]}
    variants = {}
    for name, lam in (("clean", 0.0), ("deep_defense", 1.0)):
        model = dd_keras.DeepDefenseModel(network, lam=lam, attack=attack)
        step = tf.function(harness.compiled(model).train_step, autograph=False)
        variants[name] = harness.Variant(
            lambda turn, step=step: step(batch), baselines=("clean",)
        )
    rows = harness.take_turns(variants, FLAGS.turns, warm_up=1)
    row = rows["deep_defense"]
    return {
        **setting,
        **row,
        "clean_ms": rows["clean"]["median_ms"],
        "peak_mib": harness.peak_mib(),
        "before_mib": before,
    }


def settings():
    """All settings by name: the base, and one dimension varied at a time."""
    found = {}
    for dimension in FLAGS.dimension:
        if dimension == "candidates=10":
            for classes in VALUES["classes"][1:]:
                name = f"classes={classes}, candidates=10"
                found[name] = {**BASE, "classes": classes, "candidates": 10}
            continue
        for value in VALUES[dimension]:
            found[f"{dimension}={value}"] = {**BASE, dimension: value}
    return found


def main(argv):
    """Starts a process for each setting, or is one."""
    del argv
    if FLAGS.setting is not None:
        print(json.dumps(measure(json.loads(FLAGS.setting))))
        return
    rows = {}
    columns = {
        "median_ms": "{:.1f} ms",
        "ratio": "{:.1f} x clean",
        "peak_mib": "peak {:.0f} MiB",
    }
    for name, setting in settings().items():
        turns = FLAGS.turns
        if setting["classes"] >= SLOW_CLASSES and not setting["candidates"]:
            turns = 2
        rows[name] = harness.in_own_process(
            f"--turns={turns}", f"--setting={json.dumps(setting)}"
        )
        harness.print_table({name: rows[name]}, columns)
    harness.save(FLAGS.output, "scaling", rows, turns=FLAGS.turns)


if __name__ == "__main__":
    app.run(main)
