"""DeepFool by dd_keras, Foolbox and ART: milliseconds an image, and rho_2.

    pip install -e '.[benchmark]'
    python benchmarks/deepfool.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR

All attack the same LeNet on the same MNIST test images (ART: the first 500 of
them) from the predicted classes, to convergence (at most 50 steps), and take
turns. Ratios are to the fastest of ours. rho_2, the mean of ||perturbation|| /
||image||, shows what the time bought: less is a better attack, as long as all
images are fooled. What is not installed is left out. About 15 minutes.
"""  # noqa: E501

import functools
import importlib.util

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from dd_keras import attacks

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained LeNet.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("images", 2000, "Test images.", lower_bound=1)
flags.DEFINE_multi_integer(
    "batch_size", [100, 500], "Images a batch.", lower_bound=1
)
flags.DEFINE_integer("turns", 3, "Timed runs of each.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/deepfool.json", "Where the JSON goes."
)

OURS, ART = "dd_keras", "ART, PyTorch"
ART_IMAGES = 500  # it takes minutes for 2,000
STEPS = 50
OVERSHOOT = 0.02
BOUNDS = (-255.0, 255.0)  # of pixels less the mean image


def ours(network, candidates=None):
    """dd_keras: (x, y) to perturbed images."""
    attack = attacks.DeepFool(
        max_iter=STEPS, overshoot=OVERSHOOT, candidates=candidates
    )
    return lambda x, y: attack(network, x, y)


def foolbox_tensorflow(network):
    """Foolbox on the Keras model."""
    import foolbox

    model = foolbox.TensorFlowModel(network, BOUNDS)
    attack = foolbox.attacks.L2DeepFoolAttack(steps=STEPS, overshoot=OVERSHOOT)
    return lambda x, y: attack(model, x, y, epsilons=None)[0]


def foolbox_pytorch(network):
    """Foolbox on the same network in PyTorch."""
    import foolbox
    import torch

    model = foolbox.PyTorchModel(pytorch_network(network), BOUNDS, device="cpu")
    attack = foolbox.attacks.L2DeepFoolAttack(steps=STEPS, overshoot=OVERSHOOT)

    def run(x, y):
        x = torch.from_numpy(np.transpose(x, (0, 3, 1, 2)).copy())
        found = attack(model, x, torch.from_numpy(y).long(), epsilons=None)
        return np.transpose(found[0].numpy(), (0, 2, 3, 1))

    return run


def art_pytorch(network):
    """ART on the same network in PyTorch.

    Without clip_values: given these, it multiplies its step by their range.
    """
    import torch
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        pytorch_network(network),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        device_type="cpu",
    )
    attack = DeepFool(
        classifier,
        max_iter=STEPS,
        epsilon=OVERSHOOT,
        nb_grads=10,
        batch_size=max(FLAGS.batch_size),
        verbose=False,
    )

    def run(x, y):
        del y  # it starts from the predicted classes
        found = attack.generate(np.transpose(x, (0, 3, 1, 2)).copy())
        return np.transpose(found, (0, 2, 3, 1))

    return run


@functools.cache
def pytorch_network(network):
    """The network in PyTorch, with the same weights."""
    import in_pytorch

    module = in_pytorch.converted(network)
    x = np.random.default_rng(0).normal(0, 50, (8, *network.input_shape[1:]))
    in_pytorch.checked_difference(network, module, x.astype(np.float32))
    return module


def judge(network, batches, found):
    """rho_2 and the share of images fooled, by the Keras model."""
    rho, fooled = [], []
    for (x, y), adversarial in zip(batches, found, strict=True):
        axes = (1, 2, 3)
        difference = np.asarray(adversarial) - x
        length = np.sqrt(np.sum(difference**2, axes))
        rho.append(length / np.sqrt(np.sum(x**2, axes)))
        decided = network.predict_on_batch(np.asarray(adversarial)).argmax(-1)
        fooled.append(decided != y)
    return {
        "rho2": float(np.mean(np.concatenate(rho))),
        "fooled": float(np.mean(np.concatenate(fooled))),
    }


def predicted(network, batches):
    """The batches as arrays, with the predicted classes as labels."""
    return [
        (x.numpy(), network.predict_on_batch(x).argmax(-1)) for x, _ in batches
    ]


def attackers_of(network):
    """What is installed: name to (x, y) -> perturbed images."""
    found = {
        OURS: ours(network),
        f"{OURS}, candidates=5": ours(network, candidates=5),
    }
    has = {
        name: importlib.util.find_spec(name) is not None
        for name in ("foolbox", "torch", "art")
    }
    if has["foolbox"]:
        found["Foolbox, TensorFlow"] = foolbox_tensorflow(network)
    if has["foolbox"] and has["torch"]:
        found["Foolbox, PyTorch"] = foolbox_pytorch(network)
    if has["art"] and has["torch"]:
        found[ART] = art_pytorch(network)
    return found


def main(argv):
    """Times and judges each library at each batch size."""
    del argv
    network = keras.saving.load_model(FLAGS.model, compile=False)
    variants = {}
    for size in FLAGS.batch_size:
        labeled = predicted(
            network,
            harness.mnist_batches(
                "test", FLAGS.data_dir, size, FLAGS.images // size
            ),
        )
        for name, attacker in attackers_of(network).items():
            count = ART_IMAGES if name == ART else FLAGS.images
            batches = labeled[: max(1, count // size)]
            if name == "Foolbox, TensorFlow":
                inputs = [(tf.constant(x), tf.constant(y)) for x, y in batches]
            else:
                inputs = batches
            images = sum(len(y) for _, y in batches)
            found = [attacker(x, y) for x, y in inputs]
            variants[f"{name} (batch {size})"] = harness.Variant(
                lambda turn, attacker=attacker, inputs=inputs: [
                    attacker(x, y) for x, y in inputs
                ],
                baselines=tuple(
                    f"{OURS} (batch {size})" for size in FLAGS.batch_size
                ),
                work=images,
                details={
                    "library": name,
                    "batch_size": size,
                    "images": images,
                    **judge(network, batches, found),
                },
            )
    rows = harness.take_turns(variants, FLAGS.turns, warm_up=0)
    for row in rows.values():
        row["ms_per_image"] = row["median_ms"] / row["images"]
        # Against our fastest: every library may have its best batch size.
        row["ratio"] = max(row["ratios"].values())
    harness.print_table(
        rows,
        {
            "ms_per_image": "{:.2f} ms an image",
            "ratio": "{:.2f} x ours",
            "rho2": "rho_2 {:.4f}",
            "fooled": "fooled {:.4f}",
        },
    )
    harness.save(
        FLAGS.output, "deepfool", rows, turns=FLAGS.turns, network=network.name
    )


if __name__ == "__main__":
    app.run(main)
