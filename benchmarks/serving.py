"""What a server pays for an export: size, start, first request, latency.

    pip install -e '.[serving]'
    python benchmarks/serving.py --model=savedmodels/mnist_lenet_deep_defense.keras --preprocessing=savedmodels/mnist_preprocessing.keras --data_dir=DIR

The SavedModel of `dd_keras.export` beside the one that Keras' own
`model.export` writes of the same classifier: no preprocessing, no checks, only
what the model ends in. Both are run through sessions, as in TensorFlow
Serving, but without its network protocols and batching:

- `dd_keras.export`, `keras export`: how long exporting took, once; sizes; how
  long loading took, the median over fresh processes; and how long the warm-up
  requests of the export, with which a server starts.
- `first request: ...`: the first after loading, of as many images as the first
  `--batch_size` says: `first_ms` without warm-up, each in fresh processes,
  `warmed_ms` with it.
- `... (batch B)`: latency, requests taking turns, and throughput of one client
  that waits for each answer. `ratios` are to `keras export` and to
  `serving_default`, of the same images.

In `load_s` Python imports the graph into the session; in the server C++ does.
With images of noise the attack behind `robustness` takes other numbers of steps
than with images of the data set. About 2 minutes on 2 cores.
"""  # noqa: E501

import json
import os
import statistics
import tempfile
import time

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from tensorflow.core.protobuf import saved_model_pb2

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.classifier import logits
from dd_keras.serving import warm_up

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Trained classifier.", required=True)
flags.DEFINE_string(
    "preprocessing", None, "What stands before it, a .keras file."
)
flags.DEFINE_multi_integer(
    "batch_size",
    [1, 8, 64],
    "Images a request.",
    lower_bound=1,
    upper_bound=1024,
)
flags.DEFINE_multi_integer(
    "candidates",
    [],
    "Also times `robustness` with so many candidates.",
    lower_bound=1,
)
flags.DEFINE_integer("turns", 100, "Timed requests of each.", lower_bound=2)
flags.DEFINE_integer(
    "processes", 3, "Fresh processes for each first request.", lower_bound=1
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Where TFDS keeps MNIST, whose test images are sent; without it, noise.",
)
flags.DEFINE_string(
    "output", "results/benchmarks/serving.json", "Where the JSON goes."
)
flags.DEFINE_string("worker", None, "Set by the script itself.")

OURS, KERAS = "dd_keras.export", "keras export"
DEFAULT = "serving_default"
ENCODED = SERVE_ENCODED, ROBUSTNESS_ENCODED = (
    "serve_encoded",
    "robustness_encoded",
)
BATCHES = 4  # of the largest size: requests differ from turn to turn
WARM_UP_IMAGES = 64  # most that an export takes


class Server:
    """A SavedModel in a session, as a model server holds it."""

    def __init__(self, path):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            self.signatures = tf.compat.v1.saved_model.load(
                self._session, [tf.saved_model.SERVING], path
            ).signature_def

    def function(self, name):
        """A signature: from its input to a list of all its outputs."""
        signature = self.signatures[name]
        [taken] = signature.inputs.values()
        given = [output.name for output in signature.outputs.values()]
        return self._session.make_callable(given, [taken.name])


def raw_images(shape):
    """Images as clients send them, float32, whole numbers from 0 to 255."""
    count = BATCHES * max(FLAGS.batch_size)
    if FLAGS.data_dir is None:
        noise = np.random.default_rng(0).integers(0, 256, (count, *shape))
        return noise.astype(np.float32)
    test = datasets.load("mnist", FLAGS.data_dir).test.take(count)
    return np.stack([image for image, _ in test.as_numpy_iterator()])


def encoded(images):
    """The bytes of a PNG file for each image, (B,) objects."""
    files = [
        tf.io.encode_png(image).numpy() for image in images.astype(np.uint8)
    ]
    return np.array(files, object)


def size(path):
    """Bytes of a SavedModel, and nodes of its graph and functions."""
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        content = file.read()
    saved = saved_model_pb2.SavedModel.FromString(content)
    graph = saved.meta_graphs[0].graph_def
    return {
        "bytes": _bytes(path),
        "saved_model_pb_bytes": len(content),
        "variables_bytes": _bytes(os.path.join(path, "variables")),
        "graph_nodes": len(graph.node),
        "function_nodes": sum(len(f.node_def) for f in graph.library.function),
    }


def _bytes(directory):
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(directory)
        for name in names
    )


def replay(path, server):
    """Answers the warm-up requests of an export; returns the seconds taken."""
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(
        os.path.join(path, "assets.extra", warm_up.NAME)
    )
    logs = map(
        prediction_log_pb2.PredictionLog.FromString,
        list(records.as_numpy_iterator()),
    )
    requests = [log.predict_log.request for log in logs]
    started = time.perf_counter()
    for request in requests:
        [batch] = request.inputs.values()
        server.function(request.model_spec.signature_name)(
            tf.make_ndarray(batch)
        )
    return time.perf_counter() - started


def work(path, requests, warmed):
    """Loads a SavedModel and sends the first requests.

    Args:
        path: of the SavedModel.
        requests: dict of signature to the file of the images that it gets, or
            gets encoded.
        warmed: whether the warm-up requests come before.

    Returns:
        dict of seconds: `load`, `warm_up` if there is one, each signature.
    """
    batches = {
        name: encoded(np.load(file)) if name in ENCODED else np.load(file)
        for name, file in requests.items()
    }
    started = time.perf_counter()
    server = Server(path)
    seconds = {"load": time.perf_counter() - started}
    if warmed:
        seconds["warm_up"] = replay(path, server)
    for name, batch in batches.items():
        started = time.perf_counter()
        server.function(name)(batch)
        seconds[name] = time.perf_counter() - started
    return seconds


def in_fresh_processes(*setting):
    """The medians of `work`, each time by a new process."""
    worker = f"--worker={json.dumps(setting)}"
    found = [harness.in_own_process(worker) for _ in range(FLAGS.processes)]
    return {
        key: statistics.median(one[key] for one in found) for key in found[0]
    }


def starts(ours, theirs, requests, directory):
    """What happens until a server has answered its first requests.

    Args:
        ours: the SavedModel of `dd_keras.export`.
        theirs: that of Keras.
        requests: dict of signature, and of `KERAS`, to the images that it
            gets, or gets encoded.
        directory: where to leave them for the processes.

    Returns:
        (dict of `OURS` and `KERAS` to what their rows say of loading; dict of
        rows, of the first requests).
    """
    files = {name: os.path.join(directory, f"{name}.npy") for name in requests}
    for name, batch in requests.items():
        np.save(files[name], batch)
    keras_file = files.pop(KERAS)
    cold = {
        name: in_fresh_processes(ours, {name: file}, False)
        for name, file in files.items()
    }
    baseline = in_fresh_processes(theirs, {DEFAULT: keras_file}, False)
    loads = {
        OURS: {
            "load_s": statistics.median(one["load"] for one in cold.values())
        },
        KERAS: {"load_s": baseline["load"]},
    }
    seconds = {KERAS: baseline[DEFAULT]}
    seconds.update({name: cold[name][name] for name in files})
    rows = {
        name: {"batch_size": len(requests[name]), "first_ms": 1e3 * first}
        for name, first in seconds.items()
    }
    if warm_up.available():
        # All in one process: each has been answered in it before.
        warmed = in_fresh_processes(ours, files, True)
        loads[OURS]["warm_up_s"] = warmed["warm_up"]
        for name in files:
            rows[name]["warmed_ms"] = 1e3 * warmed[name]
    return loads, {f"first request: {name}": row for name, row in rows.items()}


def latencies(functions, inputs, batch_size):
    """The rows of one batch size.

    Args:
        functions: dict of name to a signature, as `Server.function` gives it.
        inputs: dict of the same names to all that can be sent.
        batch_size: images a request.
    """

    def variant(name):
        def run(turn):
            first = turn % (len(inputs[name]) // batch_size) * batch_size
            return functions[name](inputs[name][first : first + batch_size])

        return harness.Variant(
            run,
            baselines=tuple(
                f"{b} (batch {batch_size})" for b in (KERAS, DEFAULT)
            ),
            details={"request": name, "batch_size": batch_size},
        )

    rows = harness.take_turns(
        {f"{name} (batch {batch_size})": variant(name) for name in functions},
        FLAGS.turns,
    )
    for row in rows.values():
        row["images_per_s"] = 1e3 * batch_size / row["median_ms"]
    return rows


def measure(directory):
    """All rows, with the exports in a directory."""
    model = keras.saving.load_model(FLAGS.model, compile=False)
    preprocessing = FLAGS.preprocessing and keras.saving.load_model(
        FLAGS.preprocessing, compile=False
    )
    first = preprocessing if isinstance(preprocessing, keras.Model) else model
    images = raw_images(logits.input_shape(first)[1:])
    prepared = images
    if preprocessing is not None:
        prepared = preprocessing(images, training=False)

    def export(name, candidates=None):
        return dd_keras.export(
            model,
            os.path.join(directory, name),
            preprocessing,
            attack=attacks.DeepFool(candidates=candidates),
            examples=images[: min(WARM_UP_IMAGES, max(FLAGS.batch_size))],
            max_images=max(FLAGS.batch_size),
        )

    seconds = {}
    started = time.perf_counter()
    ours = export("dd_keras")
    seconds[OURS] = time.perf_counter() - started
    theirs = os.path.join(directory, "keras")
    started = time.perf_counter()
    model.export(theirs, verbose=False)
    seconds[KERAS] = time.perf_counter() - started

    server = Server(ours)
    inputs = {KERAS: np.asarray(prepared), DEFAULT: images}
    if SERVE_ENCODED in server.signatures:
        inputs[SERVE_ENCODED] = images
    inputs["robustness"] = images
    if SERVE_ENCODED in inputs:
        inputs[ROBUSTNESS_ENCODED] = images
    loads, firsts = starts(
        ours,
        theirs,
        {name: x[: FLAGS.batch_size[0]] for name, x in inputs.items()},
        directory,
    )
    inputs |= {name: encoded(images) for name in ENCODED if name in inputs}
    rows = {
        name: {"export_s": seconds[name], **loads[name], **size(path)}
        for name, path in {OURS: ours, KERAS: theirs}.items()
    }
    harness.print_table(
        rows,
        {
            "export_s": "exported {:.1f} s",
            "load_s": "loaded {:.2f} s",
            "warm_up_s": "warm-up {:.1f} s",
            "bytes": "{:,} bytes",
            "graph_nodes": "{} nodes",
            "function_nodes": "{} in functions",
        },
    )
    harness.print_table(
        firsts,
        {"first_ms": "{:.1f} ms", "warmed_ms": "{:.1f} ms warmed up"},
    )
    rows.update(firsts)

    functions = {
        name: Server(theirs).function(DEFAULT)
        if name == KERAS
        else server.function(name)
        for name in inputs
    }
    for candidates in FLAGS.candidates:
        name = f"robustness, candidates={candidates}"
        fewer = Server(export(f"candidates_{candidates}", candidates))
        functions[name] = fewer.function("robustness")
        inputs[name] = images
    for batch_size in FLAGS.batch_size:
        found = latencies(functions, inputs, batch_size)
        harness.print_table(
            found,
            {
                "median_ms": "{:.2f} ms",
                "ratio": "{:.2f} x keras",
                "images_per_s": "{:,.0f} images/s",
            },
        )
        rows.update(found)
    return rows


def main(argv):
    """Measures, or is one of the fresh processes."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of each export
    tf.get_logger().setLevel("ERROR")  # each load says that it is deprecated
    if FLAGS.worker is not None:
        print(json.dumps(work(*json.loads(FLAGS.worker))))
        return
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(directory)
    harness.save(
        FLAGS.output,
        "serving",
        rows,
        images="noise" if FLAGS.data_dir is None else "mnist",
        turns=FLAGS.turns,
        processes=FLAGS.processes,
    )


if __name__ == "__main__":
    app.run(main)
