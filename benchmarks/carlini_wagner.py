"""Carlini and Wagner's l_2 attack by dd_keras and by Foolbox, twice.

    pip install -e '.[benchmark]'
    python benchmarks/carlini_wagner.py --model=savedmodels/mnist_lenet_reference.keras --preprocessing=savedmodels/mnist_preprocessing.keras --data_dir=DIR

All attack the same first test images, as one batch, from the decision, on the
same network of pixels in [0, 1]: dd_keras, Foolbox on the Keras model, and
Foolbox on the same weights in PyTorch, which leaves TensorFlow's cost of
thousands of eager steps out. They take turns. Time is by the clock and by the
processor, all threads together: a busy machine disturbs the latter less.
Foolbox takes 500 steps for each of 9 constants: with fewer its perturbations
are longer (NOTES.md). What is not installed is left out. About 25 minutes.
"""  # noqa: E501

import importlib.util
import statistics
import time

import harness
import numpy as np
import tensorflow as tf
from absl import app, flags

from dd_keras import attacks, datasets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string(
    "preprocessing",
    None,
    "What stands before it, a .keras file.",
    required=True,
)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("images", 200, "Test images.", lower_bound=1)
flags.DEFINE_integer("turns", 2, "Timed runs of each.", lower_bound=1)
flags.DEFINE_integer(
    "steps", 500, "Foolbox' steps for each constant.", lower_bound=1
)
flags.DEFINE_string(
    "output", "results/benchmarks/carlini_wagner.json", "Where the JSON goes."
)

OURS = "dd_keras"
BOUNDS = (0.0, 1.0)


def ours(network, images):
    """A function that attacks these images."""
    attack = attacks.CarliniWagnerL2(bounds=BOUNDS)
    classes = network.predict_on_batch(images).argmax(-1)
    attack(network, images[:1], classes[:1])  # traces
    return lambda: attack(network, images, classes).numpy()


def foolbox_tensorflow(network, images):
    """The same by Foolbox, on the Keras model."""
    import foolbox

    model = foolbox.TensorFlowModel(network, BOUNDS)
    attack = foolbox.attacks.L2CarliniWagnerAttack(steps=FLAGS.steps)
    classes = network.predict_on_batch(images).argmax(-1)
    x, y = tf.constant(images), tf.constant(classes)
    return lambda: attack(model, x, y, epsilons=None)[0].numpy()


def foolbox_pytorch(network, images):
    """The same by Foolbox, on the network in PyTorch."""
    import foolbox
    import in_pytorch
    import torch

    module = in_pytorch.converted(network)
    in_pytorch.checked_difference(network, module, images)
    model = foolbox.PyTorchModel(module, BOUNDS, device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(steps=FLAGS.steps)
    x = in_pytorch.channels_first(images)
    with torch.no_grad():
        y = module(x).argmax(-1)
    return lambda: in_pytorch.channels_last(
        attack(model, x, y, epsilons=None)[0]
    )


def sides(network, images):
    """The attacks that can be run here, by the name of their library."""
    found = {OURS: ours(network, images)}
    if importlib.util.find_spec("foolbox"):
        found["Foolbox, TensorFlow"] = foolbox_tensorflow(network, images)
        if importlib.util.find_spec("torch"):
            found["Foolbox, PyTorch"] = foolbox_pytorch(network, images)
    return found


def timed(attack):
    """(the images it finds, seconds by the clock, those of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    found = attack()
    return found, time.perf_counter() - clock, time.process_time() - processor


def measured(network, images):
    """Each library's row."""
    clean = network.predict_on_batch(images).argmax(-1)
    found = {}
    runs = sides(network, images)
    for turn in range(FLAGS.turns):
        for name, attack in runs.items():
            print(f"turn {turn + 1} of {FLAGS.turns}: {name}", flush=True)
            found.setdefault(name, []).append(timed(attack))
    rows = {}
    for name, turns in found.items():
        adversarial = turns[0][0]
        rows[name] = {
            "ms_per_image": _median(turns, 1) * 1e3 / len(images),
            "processor_ms_per_image": _median(turns, 2) * 1e3 / len(images),
            "ratio": _ratio(turns, found[OURS], 1),
            "processor_ratio": _ratio(turns, found[OURS], 2),
            "l2": float(
                np.mean(np.linalg.norm(_flat(adversarial - images), axis=1))
            ),
            "fooled": float(
                np.mean(
                    network.predict_on_batch(adversarial).argmax(-1) != clean
                )
            ),
        }
    return rows


def _median(turns, place):
    return statistics.median(turn[place] for turn in turns)


def _ratio(turns, baseline, place):
    """The median over the turns of what both take in the same turn."""
    return statistics.median(
        a[place] / b[place] for a, b in zip(turns, baseline, strict=True)
    )


def _flat(images):
    return images.reshape(len(images), -1)


def main(argv):
    """Compares the libraries."""
    del argv
    data = datasets.load("mnist", FLAGS.data_dir)
    (images,) = data.test.take(FLAGS.images).batch(FLAGS.images)
    network = harness.pixel_model(FLAGS.model, FLAGS.preprocessing)
    rows = measured(network, images[0].numpy() / 255)
    harness.print_table(
        rows,
        {
            "ms_per_image": "{:.1f} ms an image",
            "processor_ms_per_image": "{:.1f} of CPU",
            "ratio": "{:.1f} x ours",
            "processor_ratio": "{:.1f} x of CPU",
            "l2": "l_2 {:.4f}",
            "fooled": "fooled {:.3f}",
        },
    )
    harness.save(
        FLAGS.output,
        "carlini_wagner",
        rows,
        images=FLAGS.images,
        turns=FLAGS.turns,
        steps=FLAGS.steps,
    )


if __name__ == "__main__":
    app.run(main)
