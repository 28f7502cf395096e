"""What all apps do alike: classifiers and data in, files and errors out."""

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app, flags, logging

# Before TensorFlow is imported: its start-up notes say nothing of the run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import dd_keras
from dd_keras import datasets, distribution
from dd_keras.classifier import logits
from dd_keras.serving import endpoints
from dd_keras.utils import files, tables

FLAGS = flags.FLAGS

# Images whose pixels are looked at where a pass over all may take an hour.
_CHECKED = 10_000

_EXAMPLES = 4  # test images beside an export

# Output directories are this process' own until its app ends.
_OWNED = contextlib.ExitStack()

# How lines of TensorFlow's errors begin that tell of its graph.
_WHERE = ("Graph execution error", "Detected at node", "File ", "[[{{")

# What a SavedModel may call its outputs, and what these then are.
_OUTPUTS = {"logits": "linear", "probabilities": "softmax"}


def define_data_flags():
    """Declares --data_dir, --image_size and --limit, which all apps have."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where TFDS keeps its data; of the data set 'folder', that folder.",
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Resize images to so many pixels a side; as they are by default.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "limit",
        None,
        "Use the first so many images of each split, for a quick look.",
        lower_bound=1,
    )


def define_dataset_flag():
    """Declares --dataset and --recipe, for apps of any data set."""
    flags.DEFINE_string(
        "dataset",
        "mnist",
        f"Data set: {', '.join(datasets.NAMES)}, or any image classification "
        "set of TensorFlow Datasets.",
    )
    flags.DEFINE_enum(
        "recipe",
        None,
        sorted(datasets.imagenet.RECIPES),
        "Whose crops and means images of imagenet2012 get; caffe by default.",
    )


def define_classifier_flags():
    """Declares what the apps share that take finished classifiers."""
    define_data_flags()
    define_dataset_flag()
    flags.DEFINE_enum("split", "test", ["test", "train"], "Which part of it.")
    flags.DEFINE_string(
        "preprocessing",
        "dataset",
        "What stands between images and classifier: 'dataset' subtracts the "
        "training set's mean image; 'none' hands over pixels 0 to 255; or a "
        ".keras file.",
    )
    flags.DEFINE_enum(
        "activation",
        None,
        logits.ACTIVATIONS,
        "What the classifier ends in, where that cannot be told.",
    )
    flags.DEFINE_enum(
        "misclassified",
        "predicted",
        dd_keras.evaluation.POLICIES,
        "How images count that are misclassified without attack: with the "
        "distance from their predicted class (the paper's way), with 0, or "
        "not at all.",
    )
    flags.DEFINE_integer("batch_size", 500, "Images a batch.", lower_bound=1)


def define_evaluation_flags(output_dir):
    """Declares what the apps share that evaluate finished classifiers.

    Args:
        output_dir: default of --output_dir.
    """
    define_classifier_flags()
    flags.DEFINE_enum(
        "format", "text", tables.FORMS, "Of the tables that are printed."
    )
    flags.DEFINE_string("output_dir", output_dir, "Where all results go.")
    flags.register_validator(
        "output_dir", bool, message="--output_dir must not be empty."
    )


def main(run):
    """Makes `run()` what `app.run` takes.

    An argument that is no flag is a usage error; a bad input that `run`
    raises an error for, a full disk or Ctrl-C end the program with one line.
    """

    @functools.wraps(run)
    def checked(argv):
        if len(argv) > 1:
            raise app.UsageError(f"expected only flags; received {argv[1:]}.")
        # TFDS tells of every file it opens, TensorFlow of each signature.
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            with _OWNED:
                run()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            fail(error)
        except tf.errors.OpError as error:
            fail(f"{type(error).__name__}: {_what_was_wrong(error)}")
        except KeyboardInterrupt as interrupt:
            print(f"\n{interrupt or 'Interrupted.'}", file=sys.stderr)
            number = getattr(interrupt, "signal", signal.SIGINT)
            raise SystemExit(128 + number) from None  # as shells have it

    return checked


def load_data(name, **options):
    """The data set of the flags, limited to --limit, its pixels checked.

    Args:
        name: of the data set, see `dd_keras.datasets.load`.
        **options: further ones of `datasets.load`.

    Raises:
        SystemExit: with a message, if it cannot be had.
    """
    try:
        data = datasets.load(
            name, FLAGS.data_dir, image_size=FLAGS.image_size, **options
        )
        if FLAGS.limit is not None:
            data = data.limited(FLAGS.limit)
        for split in ("train", "test", "validation"):
            if getattr(data, split) is None:
                continue
            datasets.check_images(
                getattr(data, split),
                f"{name} {split}",
                None if data.cache else _CHECKED,
            )
    except (RuntimeError, ValueError) as error:
        fail(error)
    except tf.errors.OpError as error:  # damaged files, streamed
        fail(datasets.tfds_sets.unavailable(name, FLAGS.data_dir, error))
    return data


def load_evaluation_data():
    """The data set of the flags, with the preprocessing of the flags."""
    data = load_data(FLAGS.dataset, recipe=FLAGS.recipe)
    if FLAGS.preprocessing == "none":
        return data._replace(preprocessing=None)
    if FLAGS.preprocessing != "dataset":
        return data._replace(preprocessing=load_model(FLAGS.preprocessing))
    return data


def load_model(path):
    """A Keras model from a .keras file; `fail`s where it cannot be read."""
    if not os.path.isfile(path):
        fail(f"{path}: expected a Keras model file (.keras); there is none.")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged file provokes in Keras
        fail(
            f"{path}: expected a whole Keras model file (.keras); it cannot "
            f"be read: {type(error).__name__}: {_first_line(error)}"
        )


class Classifier(NamedTuple):
    """A model, and what it ends in: None where its graph tells."""

    model: keras.Model
    activation: str | None


def load_classifier(path, data, activation=None):
    """A classifier, held against the data it is for.

    Args:
        path: a .keras file or the directory of a SavedModel.
        data: `datasets.Data`; None to hold it against nothing.
        activation: what it ends in, see `dd_keras.logits_model`.

    Returns:
        `Classifier`.

    Raises:
        SystemExit: with a message, if it cannot be read or does not fit.
    """
    if os.path.isdir(path):
        model, activation = _saved_model(path, activation)
    else:
        model = load_model(path)
    if isinstance(model, dd_keras.DefenseModel):
        model = model.model
    try:
        classes = logits.num_classes(model)
        shape = tuple(logits.input_shape(model)[1:])
    except (TypeError, ValueError) as error:
        fail(f"{path}: {error}")
    if data is None:
        return Classifier(model, activation)
    if shape != data.image_shape or classes != data.num_classes:
        fail(
            f"{path}: expected a classifier of {data.image_shape} images into "
            f"{data.num_classes} classes; received one of {shape} into "
            f"{classes}."
        )
    return Classifier(model, activation)


def _saved_model(path, activation):
    """A SavedModel's `serving_default` as a `Classifier`."""
    endpoint = "serving_default"
    try:
        layer = keras.layers.TFSMLayer(path, call_endpoint=endpoint)
        signature = tf.saved_model.load(path).signatures[endpoint]
    except Exception as error:  # whatever a damaged directory provokes
        fail(
            f"{path}: expected the directory of a SavedModel with the "
            f"signature {endpoint!r}; it cannot be read: "
            f"{type(error).__name__}: {_first_line(error)}"
        )
    inputs = list(signature.structured_input_signature[1].values())
    outputs = list(signature.structured_outputs)
    named = [name for name in _OUTPUTS if name in outputs]
    if len(inputs) != 1 or (len(outputs) != 1 and not named):
        fail(
            f"{path}: expected a signature {endpoint!r} with one input, and "
            f"one output or one of {list(_OUTPUTS)}; received {len(inputs)} "
            f"inputs and the outputs {outputs}."
        )
    name = named[0] if named else outputs[0]
    given = keras.Input(inputs[0].shape[1:], dtype=inputs[0].dtype.name)
    return Classifier(
        keras.Model(given, layer(given)[name]),
        activation or _OUTPUTS.get(name),
    )


def evaluate(classifier, data, metrics, checkpoint_dir, limit=None):
    """The `RobustnessReport` of a classifier, as the flags have it.

    Args:
        classifier: `Classifier`.
        data: `datasets.Data`; --split says which part.
        metrics: what to measure, see `evaluate_robustness`.
        checkpoint_dir: where finished batches are kept.
        limit: take the first so many images; None for all.
    """
    images = getattr(data, FLAGS.split)
    return dd_keras.evaluate_robustness(
        classifier.model,
        datasets.batches(
            images if limit is None else images.take(limit),
            data.preprocessing,
            FLAGS.batch_size,
            cache=False,
        ),
        metrics=metrics,
        bounds=data.bounds,
        misclassified=FLAGS.misclassified,
        activation=classifier.activation,
        checkpoint_dir=checkpoint_dir,
    )


def export(classifier, data, export_dir, name, **options):
    """Writes EXPORT_DIR/NAME/<version>/ for TensorFlow Serving.

    Args:
        classifier: `Classifier`.
        data: `datasets.Data` it is for; None: not known.
        export_dir: directory of all models of a server.
        name: of the model.
        **options: further ones of `dd_keras.export`.

    Returns:
        str: the path of the version.
    """
    if data is not None:
        options = {
            "preprocessing": data.preprocessing,
            "class_names": data.class_names,
            "image_shape": data.image_shape,
            "resize": data.resize,
            **options,
        }
    return dd_keras.export(
        classifier.model,
        os.path.join(export_dir, name),
        activation=classifier.activation,
        **options,
    )


def write_server_files(data, export_dir):
    """Writes the server's configuration, and images to ask it about.

    Args:
        data: `datasets.Data` of the images; None for no images.
        export_dir: directory of all models of a server.

    Returns:
        list of str: what was written.
    """
    dd_keras.serving.write_server_config(export_dir)
    written = [f"{export_dir}: models.config, batching.config"]
    if data is not None and endpoints.can_be_encoded(data.image_shape):
        written.append(_write_examples(data, export_dir))
    return written


def _write_examples(data, export_dir):
    """Writes the first test images as PNG files; returns their folder."""
    folder = os.path.join(export_dir, "examples")
    for place, (image, label) in enumerate(data.test.take(_EXAMPLES)):
        pixels = tf.cast(tf.round(image), tf.uint8)
        path = os.path.join(folder, f"{place}_class_{int(label)}.png")
        with files.atomic_write(path) as part:
            tf.io.write_file(part, tf.io.encode_png(pixels))
    return folder


def provenance():
    """What made a file of results: command, versions, machine, date."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "dd_keras": dd_keras.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, "
        f"{len(tf.config.list_physical_devices('GPU'))} GPUs",
        "commit": _COMMIT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        ),
    }


def _commit():
    """The commit of this checkout; None where it is no checkout of Git."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        told = [
            subprocess.run(
                [*git, *command], capture_output=True, check=True, text=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", ":/*.py", ":/*.cfg"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    commit, changes = told
    return f"{commit}, with changes" if changes else commit


# Of the code that runs, also if the checkout is changed meanwhile.
_COMMIT = _commit()


def flag_values(module):
    """The flags that a module defines, as JSON can hold them."""
    return as_json(
        {f.name: f.value for f in FLAGS.get_key_flags_for_module(module)}
    )


def as_rows(estimates):
    """Numbers and the ends of their intervals, as JSON can hold them."""
    return {
        name: [v if math.isfinite(v) else None for v in estimate[:3]]
        for name, estimate in estimates.items()
    }


def as_json(values):
    """A dict of settings as JSON can hold it."""
    return {k: "inf" if v == math.inf else v for k, v in values.items()}


def writable_directory(path, flag="output_dir"):
    """Makes the directory of a flag; fails where it cannot be written."""
    if not distribution.is_chief():
        return path
    try:
        os.makedirs(path, exist_ok=True)
        probe = os.path.join(path, ".writable")
        with open(probe, "w", encoding="utf-8"):
            pass
        os.remove(probe)
    except OSError as error:
        fail(f"--{flag}: expected a directory to write to; {error}.")
    return path


def at_end(callback):
    """Has a function called when the app ends, however it ends."""
    _OWNED.callback(callback)


def own_directory(path):
    """Makes --output_dir, for this process alone until its app ends.

    Raises:
        SystemExit: with a message, if it cannot be written, or another
            process owns it.
    """
    writable_directory(path)
    if distribution.is_chief():
        try:
            _OWNED.enter_context(files.locked(path))
        except BlockingIOError:
            fail(
                f"--output_dir: {path} is in use by another run. Wait for it, "
                "or choose another."
            )
    return path


def write_json(values, path):
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(values, indent=2, allow_nan=False)
    files.write_text(f"{text}\n", path)


def finish(written, started):
    """Says which files there are, and how long it took.

    Args:
        written: their paths.
        started: the `time.time()` of the start.
    """
    print("\nWritten:")
    for path in written:
        print(f"  {path}")
    print(f"Done in {time.time() - started:.0f} s.")


def fail(message):
    """Ends the program with one line."""
    raise SystemExit(f"error: {message}")


def _what_was_wrong(error):
    """The line of an error of TensorFlow's that does not say where it was."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    said = [line for line in lines if line and not line.startswith(_WHERE)]
    return said[0] if said else "no further message"


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), "")
