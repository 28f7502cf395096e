"""What a record of `RobustnessBoard` costs, beside validation and an epoch.

    python benchmarks/board.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR

A record attacks the first 500 of MNIST's test images by DeepFool, and writes
histograms and 8 images. Beside it `evaluate` on the same images, which runs
the same attack for `val_rho2`, and an epoch of Deep Defense on some images,
with DeepFool of five steps. About 2 minutes.
"""  # noqa: E501

import tempfile

import harness
import keras
import numpy as np
from absl import app, flags

import dd_keras
from dd_keras import attacks, datasets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("images", 6000, "Of an epoch.", lower_bound=1)
flags.DEFINE_integer("samples", 500, "Attacked for a record.", lower_bound=1)
flags.DEFINE_integer("batch_size", 100, "Images a batch.", lower_bound=1)
flags.DEFINE_integer("turns", 10, "Turns.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/board.json", "Where the JSON goes."
)


def main(argv):
    """Times the three, turn by turn."""
    del argv
    data = datasets.load("mnist", FLAGS.data_dir)
    train, test = (
        datasets.batches(
            split.take(count), data.preprocessing, FLAGS.batch_size
        )
        for split, count in (
            (data.train, FLAGS.images), (data.test, FLAGS.samples)
        )
    )  # fmt: skip
    classifier = keras.saving.load_model(FLAGS.model, compile=False)
    model = harness.compiled(
        dd_keras.DeepDefenseModel(
            classifier, attack=attacks.DeepFool(max_iter=5)
        ),
        ["accuracy"],
    )
    fixed = [np.concatenate(part) for part in zip(*test, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        board = dd_keras.RobustnessBoard(
            folder, *fixed, bounds=data.bounds, samples=FLAGS.samples
        )
        board.set_model(model)
        board.on_train_begin()
        validation, epoch = "validation on the same images", "epoch"
        rows = harness.take_turns(
            {
                "record": harness.Variant(
                    board.on_epoch_end, (validation, epoch)
                ),
                validation: harness.Variant(
                    lambda _: model.evaluate(test, verbose=0)
                ),
                epoch: harness.Variant(
                    lambda _: model.fit(train, verbose=0).history
                ),
            },
            FLAGS.turns,
            warm_up=1,
        )
        board.on_train_end()
    harness.print_table(
        rows, {"median_ms": "{:.0f} ms", "ratio": "{:.2f} x validation"}
    )
    harness.save(
        FLAGS.output,
        "board",
        rows,
        turns=FLAGS.turns,
        images=FLAGS.images,
        samples=FLAGS.samples,
        batch_size=FLAGS.batch_size,
    )


if __name__ == "__main__":
    app.run(main)
