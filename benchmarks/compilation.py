"""How long the first training step takes: traced, and compiled by XLA.

    python benchmarks/compilation.py --model=savedmodels/mnist_lenet_reference.keras --data_dir=DIR
    python benchmarks/compilation.py --model=savedmodels/mnist_lenet_reference.keras --kind=lenet --kind=lstm --kind=vit --kind=mobilenet_v2 --output=results/benchmarks/first_steps.json

Each in a process of its own, since a second trace in one process is faster.
Also how far XLA's losses, rho_2 and gradients are from the plain graph's,
relative to the largest entry of each. For LeNet and for untrained networks of
other kinds, the CPU seconds of the first step of `fit`, wrapping included,
over those of the network without a defence. About 6 minutes on 2 cores.
"""  # noqa: E501

import json
import statistics
import time

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import dd_keras

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_integer("batch_size", 100, "Images.", lower_bound=1)
flags.DEFINE_integer("runs", 5, "Processes of each kind.", lower_bound=1)
flags.DEFINE_string(
    "output", "results/benchmarks/compilation.json", "Where the JSON goes."
)

# Networks whose first step is held against the clean one's, of ten classes.
FIRST_STEPS = ("lenet", "lstm", "vit", "mobilenet_v2")
KINDS = ["fit", "graph", "xla", *FIRST_STEPS]

flags.DEFINE_multi_enum(
    "kind", KINDS, KINDS, "What to measure; may be repeated. Default: all."
)
flags.DEFINE_enum("worker", None, KINDS, "One run only.")

# So large that the weights' rounding vanishes in the step: the difference of
# the weights is the gradient.
LEARNING_RATE = 1e6


def fresh_model(**kwargs):
    """A compiled Deep Defense model of the trained classifier."""
    classifier = keras.saving.load_model(FLAGS.model, compile=False)
    model = dd_keras.DeepDefenseModel(classifier)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE),
        "sparse_categorical_crossentropy",
        **kwargs,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def first_step_of_fit(batch):
    """Seconds of `fit` on one batch: tracing, and one step."""
    model = fresh_model(jit_compile=False, metrics=["accuracy"])
    started = time.perf_counter()
    model.fit(*batch, batch_size=len(batch[0]), verbose=0)
    return {"first_step_s": time.perf_counter() - started}


def step(batch, xla):
    """Times of tracing, the first step and the next; what it computed."""
    model = fresh_model(jit_compile=xla)
    before = [v.numpy() for v in model.trainable_variables]
    train_step = tf.function(model.train_step, autograph=False, jit_compile=xla)
    times = [time.perf_counter()]
    train_step.get_concrete_function(batch)
    times.append(time.perf_counter())
    logs = {k: float(v) for k, v in train_step(batch).items()}
    times.append(time.perf_counter())
    after = [v.numpy() for v in model.trainable_variables]
    gradients = [a - b for a, b in zip(after, before, strict=True)]
    for variable, value in zip(model.trainable_variables, before, strict=True):
        variable.assign(value)
    started = time.perf_counter()
    float(train_step(batch)["loss"])
    return {
        "trace_s": times[1] - times[0],
        "compile_s": times[2] - times[1],
        "next_step_s": time.perf_counter() - started,
    }, [*map(np.float32, logs.values()), *gradients]


def network(name):
    """An untrained network of ten classes, and the shape of its inputs."""
    layers = keras.layers
    if name == "lenet":
        return dd_keras.networks.lenet(), (28, 28, 1)
    if name == "lstm":
        shape = (12, 4)
        stack = [keras.Input(shape), layers.LSTM(8), layers.Dense(10)]
        return keras.Sequential(stack), shape
    if name == "mobilenet_v2":
        shape = (160, 160, 3)
        build = dd_keras.networks.applications.build
        return build("MobileNetV2", shape, 10), shape
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 4, 4)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(y, y)])
        y = layers.Dense(32, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(y)])
    logits = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, logits), (16, 16, 3)


def first_steps(name):
    """CPU seconds of the first step of `fit`: clean, and of Deep Defense."""
    model, shape = network(name)
    rng = np.random.default_rng(0)
    x = rng.random((8, *shape), np.float32)
    y = rng.integers(0, 10, 8)

    def seconds(wrap):
        fresh = keras.models.clone_model(model)
        started = time.process_time()
        fresh = wrap(fresh)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        fresh.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
        fresh.fit(x, y, batch_size=8, verbose=0)
        return time.process_time() - started

    def defended(candidates):
        attack = dd_keras.attacks.DeepFool(max_iter=5, candidates=candidates)
        return lambda clean: dd_keras.DeepDefenseModel(clean, attack=attack)

    seconds(lambda clean: clean)  # what the process does once
    row = {
        "clean_s": seconds(lambda clean: clean),
        "candidates_5_s": seconds(defended(5)),
        "ten_classes_s": seconds(defended(None)),
    }
    row["candidates_5_ratio"] = row["candidates_5_s"] / row["clean_s"]
    row["ten_classes_ratio"] = row["ten_classes_s"] / row["clean_s"]
    return row


def work(kind):
    """One process' work, its result printed as JSON."""
    if kind in FIRST_STEPS:
        return first_steps(kind)
    (batch,) = harness.mnist_batches(
        "train", FLAGS.data_dir, FLAGS.batch_size, 1
    )
    if kind == "fit":
        return first_step_of_fit([part.numpy() for part in batch])
    row, found = step(batch, kind == "xla")
    if kind == "xla":
        _, expected = step(batch, False)
        row["relative_difference"] = max(
            float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
            for a, b in zip(found, expected, strict=True)
        )
    return row


def main(argv):
    """Starts the processes, or is one."""
    del argv
    if FLAGS.worker is not None:
        print(json.dumps(work(FLAGS.worker)))
        return
    rows = {}
    for kind in FLAGS.kind:
        runs = [
            harness.in_own_process(f"--worker={kind}")
            for _ in range(FLAGS.runs)
        ]
        rows[kind] = {
            key: statistics.median(run[key] for run in runs) for key in runs[0]
        }
        rows[kind]["runs"] = runs
    harness.print_table(
        rows,
        {
            "first_step_s": "first step {:.2f} s",
            "trace_s": "trace {:.2f} s",
            "compile_s": "compile {:.2f} s",
            "next_step_s": "next {:.2f} s",
            "relative_difference": "differs {:.1e}",
            "clean_s": "clean {:.2f} s",
            "candidates_5_ratio": "5 candidates {:.1f} x",
            "ten_classes_ratio": "ten classes {:.1f} x",
        },
    )
    harness.save(FLAGS.output, "compilation", rows)


if __name__ == "__main__":
    app.run(main)
