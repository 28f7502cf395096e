"""Every attack by dd_keras and by Foolbox, on the same classifier and images.

    pip install -e '.[benchmark]'
    python benchmarks/attacks.py --model=savedmodels/mnist_lenet_reference.keras --preprocessing=savedmodels/mnist_preprocessing.keras --data_dir=DIR

Both attack the first test images, in the same batches, through one Keras model
of pixels in [0, 1]; FGSM and PGD from the labels, the others from the
decision. Quality stands beside time: the accuracy that is left under FGSM and
PGD (the mean over the turns, in which random starts differ), and the mean l_2
of DeepFool's perturbations. Carlini and Wagner's attack has a benchmark of its
own, carlini_wagner.py.

Foolbox is also run on the same network in float64, for what FGSM finds: in
float32 the gradient of its loss vanishes on images that the network is very
sure of (1 - p of the softmax rounds to 0), and there it takes no step, or a
wrong one. About 3 minutes.
"""  # noqa: E501

from typing import NamedTuple

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
flags.DEFINE_integer("images", 1000, "Test images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 500, "Images a batch.", lower_bound=1)
flags.DEFINE_integer("turns", 3, "Timed runs of each.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/attacks.json", "Where the JSON goes."
)

OURS, FOOLBOX = "dd_keras", "Foolbox, TensorFlow"
DEEPFOOL = "DeepFool"
BOUNDS = (0.0, 1.0)
WIDE = (-10.0, 11.0)  # none, as in the paper; Foolbox must have some
FGSM_EPS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)
PGD_STEPS = 40
STEP = 2.5 / PGD_STEPS  # of PGD, relative to eps


def accuracy(model, batches, found):
    """The share of images still classified right."""
    right = [
        model.predict_on_batch(np.asarray(adversarial)).argmax(-1) == y
        for (_, y), adversarial in zip(batches, found, strict=True)
    ]
    return float(np.mean(np.concatenate(right)))


def quality(model, batches, found):
    """Accuracy under attack, and the mean l_2 of the perturbations."""
    lengths = [
        np.sqrt(np.sum((np.asarray(adversarial) - x) ** 2, (1, 2, 3)))
        for (x, _), adversarial in zip(batches, found, strict=True)
    ]
    return {
        "accuracy": accuracy(model, batches, found),
        "l2": float(np.mean(np.concatenate(lengths))),
    }


class Pair(NamedTuple):
    """One attack by both libraries.

    Attributes:
        ours: our attacks, one a turn, in a circle.
        theirs: Foolbox' attack.
        eps: of Foolbox' call, or None.
        bounds: of Foolbox' model.
    """

    ours: list
    theirs: object
    eps: float = None
    bounds: tuple = BOUNDS


def pairs():
    """All attacks, by name."""
    import foolbox

    theirs = foolbox.attacks
    found = {
        f"FGSM, eps {eps:g}": Pair(
            [attacks.FGSM(eps, bounds=BOUNDS)],
            theirs.LinfFastGradientAttack(),
            eps,
        )
        for eps in FGSM_EPS
    }
    for norm, name, eps in (
        (np.inf, "PGD, l_inf, eps 0.1", 0.1),
        (2, "PGD, l_2, eps 1.5", 1.5),
    ):
        attack = theirs.LinfPGD if norm == np.inf else theirs.L2PGD
        found[name] = Pair(
            [  # Foolbox draws its start anew each time
                attacks.PGD(eps, norm, PGD_STEPS, bounds=BOUNDS, seed=seed)
                for seed in range(FLAGS.turns)
            ],
            attack(steps=PGD_STEPS, rel_stepsize=STEP),
            eps,
        )
    deepfool = theirs.L2DeepFoolAttack(steps=50, overshoot=0.02)
    found[DEEPFOOL] = Pair([attacks.DeepFool()], deepfool, bounds=WIDE)
    found[f"{DEEPFOOL} within bounds"] = Pair(
        [attacks.DeepFool(bounds=BOUNDS)], deepfool
    )
    return found


def compare(name, pair, model, batches):
    """The rows of one attack, both libraries in turns."""
    import foolbox

    judge = foolbox.TensorFlowModel(model, pair.bounds)
    inputs = [(tf.constant(x), tf.constant(y)) for x, y in batches]
    qualities = {OURS: [], FOOLBOX: []}
    found = {}

    def ours(turn):
        attack = pair.ours[turn % len(pair.ours)]
        found[OURS, turn] = [attack(model, x, y) for x, y in batches]

    def theirs(turn):
        found[FOOLBOX, turn] = [
            pair.theirs(judge, x, y, epsilons=pair.eps)[1].numpy()
            for x, y in inputs
        ]

    for attack in pair.ours:
        attack(model, *batches[0])  # traces
    rows = harness.take_turns(
        {
            OURS: harness.Variant(ours, baselines=(OURS,)),
            FOOLBOX: harness.Variant(theirs, baselines=(OURS,)),
        },
        FLAGS.turns,
        warm_up=0,
    )
    for (library, _), adversarial in found.items():
        qualities[library].append(quality(model, batches, adversarial))
    images = sum(len(y) for _, y in batches)
    return {
        f"{name}: {library}": {
            "attack": name,
            "library": library,
            "images": images,
            "ms_per_image": row["median_ms"] / images,
            **row,
            **{
                key: float(np.mean([one[key] for one in qualities[library]]))
                for key in ("accuracy", "l2")
            },
        }
        for library, row in rows.items()
    }


def in_double_precision(batches):
    """What Foolbox' FGSM leaves right on the network in float64."""
    import foolbox

    model = harness.pixel_model(FLAGS.model, FLAGS.preprocessing, "float64")
    judge = foolbox.TensorFlowModel(model, BOUNDS)
    attack = foolbox.attacks.LinfFastGradientAttack()
    rows = {}
    for eps in FGSM_EPS:
        found = [
            attack(
                judge,
                tf.constant(x, tf.float64),
                tf.constant(y),
                epsilons=eps,
            )[1].numpy()
            for x, y in batches
        ]
        rows[f"FGSM, eps {eps:g}: Foolbox, float64"] = {
            "attack": f"FGSM, eps {eps:g}",
            "library": "Foolbox, float64",
            "accuracy": accuracy(model, batches, found),
        }
    return rows


def main(argv):
    """Compares the libraries, attack by attack."""
    del argv
    data = datasets.load("mnist", FLAGS.data_dir)
    images = data.test.take(FLAGS.images).batch(FLAGS.batch_size)
    batches = [(x.numpy() / 255, y.numpy()) for x, y in images]
    model = harness.pixel_model(FLAGS.model, FLAGS.preprocessing)
    columns = {
        "ms_per_image": "{:.2f} ms an image",
        "ratio": "{:.2f} x ours",
        "accuracy": "right {:.4f}",
        "l2": "l_2 {:.4f}",
    }
    rows = in_double_precision(batches)
    harness.print_table(rows, columns)
    # Those that look for the nearest decision start from the one there is.
    decided = [(x, model.predict_on_batch(x).argmax(-1)) for x, _ in batches]
    for name, pair in pairs().items():
        chosen = decided if name.startswith(DEEPFOOL) else batches
        found = compare(name, pair, model, chosen)
        harness.print_table(found, columns)
        rows.update(found)
    harness.save(
        FLAGS.output,
        "attacks",
        rows,
        images=FLAGS.images,
        batch_size=FLAGS.batch_size,
        turns=FLAGS.turns,
    )


if __name__ == "__main__":
    app.run(main)
