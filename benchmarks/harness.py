"""What the benchmarks share: fair timing, statistics, one form of results.

Variants take turns, so that a busy machine slows them all; a ratio is the
median of the ratios within a turn, not a ratio of medians.
"""

import functools
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import dd_keras
from dd_keras import datasets
from dd_keras.utils import files

# So small that timed steps leave the weights as they are.
_LEARNING_RATE = 1e-12


class Variant(NamedTuple):
    """Something to time.

    Attributes:
        run: does the work of one turn, given the turn's number, and returns
            its tensors.
        baselines: names of the variants it is compared with.
        work: how much a turn does, in any unit; ratios are for equal work.
        details: more about it, for the JSON.
    """

    run: Callable
    baselines: tuple = ()
    work: float = 1.0
    details: Mapping = types.MappingProxyType({})


def take_turns(variants, turns, warm_up=3):
    """Times each variant once a turn.

    Args:
        variants: dict of name to `Variant`.
        turns: number of turns counted, at least 2.
        warm_up: turns before these, which trace and fill caches.

    Returns:
        dict of name to its row: `median_ms`, `quartiles_ms`, and `ratios`, by
        baseline, the medians over the turns; `ratio` is the first of them.
    """
    seconds = {name: [] for name in variants}
    for turn in range(-warm_up, turns):
        _progress(f"turn {max(turn, 0)} of {turns}")
        for name, variant in variants.items():
            started = time.perf_counter()
            tf.nest.map_structure(_finished, variant.run(max(turn, 0)))
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    _progress("")
    rows = {}
    for name, variant in variants.items():
        low, median, high = statistics.quantiles(seconds[name], n=4)
        rows[name] = {
            "median_ms": 1e3 * median,
            "quartiles_ms": [1e3 * low, 1e3 * high],
            **variant.details,
        }
        ratios = {
            other: variants[other].work
            / variant.work
            * statistics.median(
                a / b
                for a, b in zip(seconds[name], seconds[other], strict=True)
            )
            for other in variant.baselines
        }
        if ratios:
            rows[name]["ratios"] = ratios
            rows[name]["ratio"] = next(iter(ratios.values()))
    return rows


def print_table(rows, columns):
    """Prints rows: the name, then some of its figures.

    Args:
        rows: dict of name to dict of figures.
        columns: dict of figure to its format, as "{:.1f} ms".
    """
    width = max(map(len, rows))
    for name, row in rows.items():
        cells = [
            form.format(row[key]) if row.get(key) is not None else "-"
            for key, form in columns.items()
        ]
        print(f"{name:{width}}" + "".join(f"  {cell:>16}" for cell in cells))


def save(path, benchmark, rows, **settings):
    """Writes results as JSON, atomically.

    Args:
        path: where to.
        benchmark: its name.
        rows: what was measured.
        **settings: what else a reader must know.
    """
    results = {
        "benchmark": benchmark,
        **settings,
        "rows": rows,
        "command": shlex.join(["python", *sys.argv]),
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "gpus": [
                tf.config.experimental.get_device_details(gpu).get(
                    "device_name", gpu.name
                )
                for gpu in tf.config.list_physical_devices("GPU")
            ],
        },
        "versions": versions(),
    }
    files.write_text(json.dumps(results, indent=2) + "\n", path)
    print(f"Written: {path}")


def versions():
    """Versions of the packages that matter, of those installed."""
    found = {
        "dd_keras": dd_keras.__version__,
        "python": platform.python_version(),
    }
    for package in (
        "tensorflow",
        "keras",
        "numpy",
        "adv-lib",
        "foolbox",
        "torch",
        "adversarial-robustness-toolbox",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def compiled(model, metrics=None):
    """Compiles a model of logits for steps that leave it as it is."""
    optimizer = dd_keras.CoupledSGD(_LEARNING_RATE)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=metrics, jit_compile=False)
    optimizer.build(model.trainable_variables)
    return model


class RecordingSGD(keras.optimizers.SGD):
    """SGD that remembers how large the last gradients were.

    Attributes:
        sizes: the sum of each gradient's absolute values; NaN for no gradient.
    """

    def build(self, variables):
        """Makes room for the sizes; to be called before the first step."""
        super().build(variables)
        self.sizes = [tf.Variable(np.nan, dtype="float32") for _ in variables]

    def apply(self, grads, trainable_variables=None):
        """Notes the gradients down, and steps."""
        for size, gradient in zip(self.sizes, grads, strict=True):
            if gradient is not None:
                size.assign(tf.reduce_sum(tf.abs(gradient)))
        return super().apply(grads, trainable_variables)


class WeighedCrossentropy(keras.losses.Loss):
    """Cross-entropy times `weight`, a variable; binary for one output."""

    def __init__(self, from_logits):
        super().__init__()
        self.from_logits = from_logits
        self.weight = tf.Variable(1.0)

    def call(self, y_true, y_pred):
        """The loss of each sample."""
        binary = y_pred.shape[-1] == 1
        loss = (
            keras.losses.binary_crossentropy
            if binary
            else keras.losses.sparse_categorical_crossentropy
        )
        if binary:
            y_true = tf.reshape(y_true, (-1, 1))
        return self.weight * loss(y_true, y_pred, from_logits=self.from_logits)


def settle(classifier, x):
    """Gives batch normalisation the statistics of a batch of inputs.

    With those it starts from, what a network of random weights puts out in
    inference hardly depends on its inputs: nothing for an attack to find.
    """
    layers = [
        layer
        for layer in classifier._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    classifier(x, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def one_line(error):
    """An error's type and the first line of its message, cut short.

    Files are named without their folders.
    """
    line = str(error).strip().partition("\n")[0]
    line = re.sub(r"(?:/[\w.+-]+)+/", "", line)[:300]
    return f"{type(error).__name__}: {line}"


def in_own_process(*flags):
    """Runs this script once more, with further flags.

    Returns:
        What it printed last, parsed as JSON.
    """
    worker = subprocess.run(
        [sys.executable, *sys.argv, *flags],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(worker.stdout.splitlines()[-1])


def peak_mib():
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib():
    """Resident memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pixel_model(model, preprocessing, dtype="float32"):
    """A trained classifier of pixels in [0, 1], with weights in `dtype`.

    Args:
        model: a .keras file.
        preprocessing: what stands before it, a .keras file; of pixels 0 to
            255.
        dtype: of all layers.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    parts = [keras.layers.Rescaling(255.0)]
    for path in (preprocessing, model):
        single = keras.saving.load_model(path, compile=False)
        copy = keras.models.clone_model(
            single, clone_function=lambda layer: _recast(layer, dtype)
        )
        copy.set_weights(single.get_weights())
        parts.append(copy)
    shape = parts[1].input_shape[1:]
    whole = keras.Sequential([keras.Input(shape), *parts])
    keras.config.set_dtype_policy(policy)
    return whole


def _recast(layer, dtype):
    """A copy of a layer that computes in another precision."""
    return type(layer).from_config({**layer.get_config(), "dtype": dtype})


_mnist = functools.cache(functools.partial(datasets.load, "mnist"))


def mnist_batches(split, data_dir, batch_size, count):
    """The first batches of MNIST, preprocessed, as a list in memory."""
    data = _mnist(data_dir)
    images = getattr(data, split).take(batch_size * count)
    return list(datasets.batches(images, data.preprocessing, batch_size))


def _finished(value):
    """Waits for a result that may still be on its way."""
    return value.numpy() if tf.is_tensor(value) else value


def _progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _processor():
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
