"""Time of a Deep Defense training step beside a clean one, on MNIST.

    python benchmarks/training_step.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR

The cost depends on how many iterations the attack takes, so `--model` must
be trained, and the learning rate is tiny, so that it stays as it is. The first
value of each flag is the base; every further one is a variation of the base
(--batch_size=100 --batch_size=20 --classes=10 --classes=1000). Clean is
Keras' own train_step. About 3 minutes on 2 cores.
"""  # noqa: E501

import pathlib
import sys
import time

import harness
import keras
import tensorflow as tf
from absl import app, flags
from wide_head import with_classes

import dd_keras
from dd_keras import attacks

# The plain formulation is the tests' oracle, and stays with them.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
from plain_formulation import PlainDeepFool

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_multi_integer("batch_size", [100], "Images.", lower_bound=1)
flags.DEFINE_multi_integer("max_iter", [5], "Iterations.", lower_bound=1)
flags.DEFINE_multi_integer("classes", [10], "Logits.", lower_bound=10)
flags.DEFINE_bool("plain", True, "Time the plain formulation too.")
flags.DEFINE_integer("turns", 40, "Timed steps a variant.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/training_step.json", "Where the JSON goes."
)

ALL_CLASSES = "deep_defense"  # the variant without candidates


def training_function(path, classes, attack=None):
    """A compiled training step of a fresh copy of the model."""
    classifier = keras.saving.load_model(path, compile=False)
    model = with_classes(classifier, classes)
    if attack is not None:
        model = dd_keras.DeepDefenseModel(model, attack=attack)
    model = harness.compiled(model, metrics=["accuracy"])
    return tf.function(model.train_step, autograph=False)


def variants_of(path, batch_size, max_iter, classes, others=(), plain=False):
    """Clean and Deep Defense steps for one setting, by name.

    `others` are further variants to compare with, beside the clean one.
    """
    chosen = {ALL_CLASSES: None, "deep_defense, candidates=5": 5}
    if classes > 10:  # all of them would take minutes: see scaling.py
        chosen = {"deep_defense, candidates=10": 10}
    made = {
        name: attacks.DeepFool(max_iter=max_iter, candidates=candidates)
        for name, candidates in chosen.items()
    }
    if plain:
        made["plain formulation"] = PlainDeepFool(max_iter=max_iter)
    batches = harness.mnist_batches(
        "train", FLAGS.data_dir, batch_size, FLAGS.turns
    )
    network = keras.saving.load_model(path, compile=False)
    setting = {
        "network": network.name,
        "batch_size": batch_size,
        "max_iter": max_iter,
        "classes": classes,
    }
    suffix = f" ({', '.join(f'{k}={v}' for k, v in setting.items())})"
    variants = {}
    for name, attack in {"clean": None, **made}.items():
        step = training_function(path, classes, attack)
        details = {"variant": name, **setting}
        if attack is not None:
            wide = with_classes(network, classes)
            details["mean_iterations"] = mean_iterations(attack, wide, batches)
        started = time.perf_counter()
        step.get_concrete_function(batches[0])
        variants[name + suffix] = harness.Variant(
            lambda turn, step=step: step(batches[turn]),
            baselines=("clean" + suffix, *others),
            details={**details, "trace_s": time.perf_counter() - started},
        )
    return variants


def mean_iterations(attack, network, batches):
    """How many iterations a sample takes, over the first batches."""
    first = batches[: max(1, 500 // len(batches[0][0]))]
    found = [attack.run(network, *batch).iterations for batch in first]
    return float(tf.reduce_mean(tf.cast(tf.concat(found, 0), tf.float32)))


def main(argv):
    """Times all variants, taking turns."""
    del argv
    values = (FLAGS.model, FLAGS.batch_size, FLAGS.max_iter, FLAGS.classes)
    base = [choices[0] for choices in values]
    variants = variants_of(*base, plain=FLAGS.plain)
    all_classes = [
        name for name in variants if name.startswith(f"{ALL_CLASSES} (")
    ]
    for i, choices in enumerate(values):
        for other in choices[1:]:
            setting = (*base[:i], other, *base[i + 1 :])
            variants |= variants_of(*setting, others=all_classes)
    rows = harness.take_turns(variants, FLAGS.turns)
    harness.print_table(
        rows, {"median_ms": "{:.1f} ms", "ratio": "{:.2f} x clean"}
    )
    harness.save(FLAGS.output, "training_step", rows, turns=FLAGS.turns)


if __name__ == "__main__":
    app.run(main)
