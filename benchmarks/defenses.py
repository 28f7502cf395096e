"""What a training step of each defence costs, in time and memory.

    python benchmarks/defenses.py --data_dir=DIR

On four networks, in batches of 100, beside Keras' own clean step: Deep Defense
by either gradient, with three candidates; PGD adversarial training with ten
steps, once as Madry et al. have it and once with samples that leave the batch
when they are fooled; and the others. The cost depends on how many iterations
an attack takes, so all networks are trained: LeNet and ConvNet are those of
savedmodels/, ResNet-18 and MobileNetV2 (with 1,000 logits) are trained here for
--train_steps on CIFAR-10, enlarged for MobileNetV2. The learning rate of what
is timed is tiny, so that they stay as they are. Each network has a process of
its own, in which the defences take turns; each peak of memory has one, too.
About 40 minutes on 2 cores.
"""

import json
import os
import tempfile

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import dd_keras
from dd_keras import attacks, datasets, networks
from dd_keras.networks import applications

NETWORKS = ("lenet", "convnet", "resnet18", "mobilenet_v2")
CLEAN = "clean"

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST and CIFAR-10.")
flags.DEFINE_string("models_dir", "savedmodels", "Where the networks are.")
flags.DEFINE_multi_enum(
    "network", NETWORKS, NETWORKS, "Which; may be repeated. Default: all."
)
flags.DEFINE_integer("turns", 15, "Timed steps of each.", lower_bound=2)
flags.DEFINE_integer("batch_size", 100, "Images.", lower_bound=1)
flags.DEFINE_integer(
    "train_steps", 300, "Steps of networks trained here.", lower_bound=1
)
flags.DEFINE_string(
    "output", "results/benchmarks/defenses.json", "Where the JSON goes."
)
flags.DEFINE_string("trained", None, "Where networks trained here are kept.")
flags.DEFINE_enum("worker", None, ["times", "memory"], "One measurement only.")
flags.DEFINE_enum("of", None, NETWORKS, "The worker's network.")
flags.DEFINE_string("defense", CLEAN, "Of the worker that measures memory.")

# The eps of PGD and FGSM, in units of the inputs: 0.1, and 8 of 255.
EPS = {"lenet": 25.5}
OTHER_EPS = 8.0


def deepfool():
    """Deep Defense's attack in training."""
    return attacks.DeepFool(max_iter=5, candidates=3)


def deep_defense(**kwargs):
    """From a classifier to Deep Defense."""
    return lambda model, eps: dd_keras.DeepDefenseModel(
        model, attack=deepfool(), **kwargs
    )


def pgd(early_stop):
    """From a classifier to adversarial training on PGD images alone."""
    return lambda model, eps: dd_keras.AdversarialTrainingModel(
        model,
        adversary=attacks.PGD(eps, steps=10, early_stop=early_stop),
        alpha=0.0,
    )


DEFENSES = {
    CLEAN: lambda model, eps: model,
    "deep_defense, unrolled": deep_defense(),
    "deep_defense, implicit": deep_defense(gradient="implicit"),
    "deep_defense, implicit, min": deep_defense(
        gradient="implicit", aggregation="min"
    ),
    "pgd, 10 steps": pgd(early_stop=False),
    "pgd, 10 steps, early stop": pgd(early_stop=True),
    "adv_train_2": lambda model, eps: dd_keras.AdversarialTrainingModel(
        model, adversary=attacks.FGSM(eps)
    ),
    "trades, 10 steps": lambda model, eps: dd_keras.TRADESModel(
        model, adversary=attacks.PGD(eps, steps=10)
    ),
    "mma": lambda model, eps: dd_keras.MMAModel(
        model, d_max=510.0, adversary=deepfool()
    ),
    "input_gradient": lambda model, eps: dd_keras.InputGradientModel(
        model, lam=1.0
    ),
}
# The peaks of memory that are held against the clean step's.
OF_MEMORY = (
    CLEAN,
    "deep_defense, unrolled",
    "deep_defense, implicit",
    "pgd, 10 steps",
)


def classifier(network):
    """A fresh copy of a trained network, of logits."""
    name = {
        "lenet": "mnist_lenet_reference",
        "convnet": "cifar10_convnet_reference",
    }.get(network)
    folder = FLAGS.models_dir if name else FLAGS.trained
    path = os.path.join(folder, f"{name or network}.keras")
    return keras.saving.load_model(path, compile=False)


def batches(network, count):
    """The first training batches of a network, as a list in memory."""
    if network == "lenet":
        return harness.mnist_batches(
            "train", FLAGS.data_dir, FLAGS.batch_size, count
        )
    data = datasets.load("cifar10", FLAGS.data_dir)
    images = data.train.take(FLAGS.batch_size * count)
    if network != "mobilenet_v2":
        return list(
            datasets.batches(images, data.preprocessing, FLAGS.batch_size)
        )
    enlarged = images.map(
        lambda image, label: (
            tf.image.resize(tf.cast(image, tf.float32), (96, 96)),
            label,
        )
    )
    return list(enlarged.batch(FLAGS.batch_size))


def train(network, path):
    """Trains a network of random weights, and writes it."""
    keras.utils.set_random_seed(0)
    if network == "resnet18":
        model = networks.resnet18((32, 32, 3), 10)
    else:
        model = applications.build("MobileNetV2", (96, 96, 3), 1000)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    x, y = (
        np.concatenate(column)
        for column in zip(*batches(network, FLAGS.train_steps), strict=True)
    )
    model.fit(x, y, batch_size=FLAGS.batch_size, verbose=2)
    first = tf.constant(x[: FLAGS.batch_size])
    harness.settle(model, first)  # its moving statistics are young
    model.save(path)


def step_of(network, defense):
    """A compiled training step."""
    eps = EPS.get(network, OTHER_EPS)
    model = DEFENSES[defense](classifier(network), eps)
    model = harness.compiled(model, metrics=["accuracy"])
    return tf.function(model.train_step, autograph=False)


def times(network):
    """The worker: rows of all defences on a network, by name."""
    given = batches(network, FLAGS.turns)
    variants = {}
    for name in DEFENSES:
        step = step_of(network, name)
        variants[name] = harness.Variant(
            lambda turn, step=step: step(given[turn]),
            baselines=() if name == CLEAN else (CLEAN, "pgd, 10 steps"),
        )
    rows = harness.take_turns(variants, FLAGS.turns, warm_up=2)
    model = classifier(network)
    found = [deepfool().run(model, *batch) for batch in given[:3]]
    iterations = tf.concat([each.iterations for each in found], 0)
    correct = tf.concat(
        [
            tf.cast(each.predictions, tf.int64) == tf.cast(batch[1], tf.int64)
            for each, batch in zip(found, given, strict=False)
        ],
        0,
    )
    for row in rows.values():
        row["network"] = network
    rows["deep_defense, implicit"] |= {
        "mean_iterations": float(tf.reduce_mean(tf.cast(iterations, "float"))),
        "accuracy": float(tf.reduce_mean(tf.cast(correct, "float"))),
    }
    return rows


def memory(network, defense):
    """The worker: the process' memory before the first step, and its peak."""
    given = batches(network, 4)
    step = step_of(network, defense)
    step.get_concrete_function(given[0])
    before = harness.resident_mib()
    for batch in given:
        step(batch)
    return {"before_mib": before, "peak_mib": harness.peak_mib()}


def main(argv):
    """Starts a process for each measurement, or is one."""
    del argv
    if FLAGS.worker is not None:
        done = (
            times(FLAGS.of)
            if FLAGS.worker == "times"
            else memory(FLAGS.of, FLAGS.defense)
        )
        print(json.dumps(done))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        FLAGS.trained = FLAGS.trained or folder
        os.makedirs(FLAGS.trained, exist_ok=True)
        for network in dict.fromkeys(FLAGS.network):
            path = os.path.join(FLAGS.trained, f"{network}.keras")
            untrained = network not in NETWORKS[:2]
            if untrained and not os.path.exists(path):
                train(network, path)
            one = (f"--of={network}", f"--trained={FLAGS.trained}")
            found = harness.in_own_process("--worker=times", *one)
            for defense in OF_MEMORY:
                found[defense] |= harness.in_own_process(
                    "--worker=memory", f"--defense={defense}", *one
                )
            clean = found[CLEAN]["peak_mib"]
            for row in found.values():
                if "peak_mib" in row:
                    row["memory"] = row["peak_mib"] / clean
            rows |= {f"{network}: {name}": row for name, row in found.items()}
            harness.print_table(
                found,
                {
                    "median_ms": "{:.1f} ms",
                    "ratio": "{:.2f} x clean",
                    "memory": "{:.2f} x memory",
                },
            )
            harness.save(FLAGS.output, "defenses", rows, turns=FLAGS.turns)


if __name__ == "__main__":
    app.run(main)
