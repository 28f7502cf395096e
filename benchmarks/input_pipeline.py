"""Whether `fit` ever waits for its data, and what metrics and callbacks cost.

    python benchmarks/input_pipeline.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR

An epoch over a shuffled, cached and prefetched part of MNIST: the pipeline
alone; bare training steps on batches in memory, without metrics; and `fit` on
the pipeline with accuracy. The steps are clean ones, the shortest there are
and so the hungriest, and those of Deep Defense. About 5 minutes on 2 cores.
"""  # noqa: E501

import harness
import keras
import tensorflow as tf
from absl import app, flags

import dd_keras
from dd_keras import attacks, datasets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("batch_size", 100, "Images.", lower_bound=1)
flags.DEFINE_integer("images", 30_000, "Of the training set.", lower_bound=1)
flags.DEFINE_integer("turns", 3, "Timed epochs of each.", lower_bound=2)
flags.DEFINE_string(
    "output", "results/benchmarks/input_pipeline.json", "Where the JSON goes."
)


def compiled_model(attack, metrics=None):
    """A model to train: Deep Defense with an attack, clean without."""
    model = keras.saving.load_model(FLAGS.model, compile=False)
    if attack is not None:
        model = dd_keras.DeepDefenseModel(model, attack=attack)
    return harness.compiled(model, metrics)


def bare_steps(attack, batches):
    """An epoch of training steps on batches in memory."""
    model = compiled_model(attack)
    step = tf.function(model.train_step, autograph=False)

    def run(turn):
        del turn
        for batch in batches:
            logs = step(batch)
        return float(logs["loss"])

    return run


def fit(attack, pipeline):
    """An epoch of `fit`."""
    model = compiled_model(attack, metrics=["accuracy"])
    return lambda turn: model.fit(pipeline, verbose=0).history


def main(argv):
    """Times the pipeline, the steps, and both together."""
    del argv
    data = datasets.load("mnist", FLAGS.data_dir)
    pipeline = datasets.batches(
        data.train.take(FLAGS.images),
        data.preprocessing,
        FLAGS.batch_size,
        shuffle_seed=0,
    )
    batches = list(pipeline)
    variants = {
        "pipeline alone": harness.Variant(
            lambda turn: sum(1 for _ in pipeline),
            baselines=("clean, bare steps",),
        )
    }
    for name, attack in (
        ("clean", None),
        ("deep_defense", attacks.DeepFool(max_iter=5)),
    ):
        bare = f"{name}, bare steps"
        variants[bare] = harness.Variant(bare_steps(attack, batches), (bare,))
        variants[f"{name}, fit"] = harness.Variant(
            fit(attack, pipeline), (bare,)
        )
    rows = harness.take_turns(variants, FLAGS.turns, warm_up=1)
    for row in rows.values():
        row["ms_per_batch"] = row["median_ms"] / len(batches)
    harness.print_table(
        rows,
        {"ms_per_batch": "{:.2f} ms a batch", "ratio": "{:.3f} x bare"},
    )
    harness.save(
        FLAGS.output,
        "input_pipeline",
        rows,
        turns=FLAGS.turns,
        images=FLAGS.images,
        batch_size=FLAGS.batch_size,
    )


if __name__ == "__main__":
    app.run(main)
