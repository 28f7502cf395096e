"""Small models and data that several test files share."""

import contextlib
import gc
import importlib
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import forked
import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from tensorflow.python.framework import ops
from tensorflow.python.ops import variable_scope

from dd_keras import datasets, networks
from dd_keras.training import optimizers

ROOT = pathlib.Path(__file__).parents[1]
# Set to 1: also what one example of its kind covers otherwise, such as each
# form of each layer, and each published classifier.
THOROUGH = os.environ.get("DD_KERAS_TEST_ALL", "0") != "0"
# The files that take longest, longest first. They start first, so that at the
# end of the run no worker waits for another's long file.
LONGEST_FILES = (
    "test_resume.py",
    "test_reproduce.py",
    "test_benchmarks.py",
    "test_evaluation_apps.py",
    "test_distribution.py",
    "test_layers.py",
    "test_training_apps.py",
    "test_training.py",
    "test_deep_defense.py",
    "test_deepfool.py",
    "test_examples.py",
    "test_published.py",
    "test_applications.py",
    "test_apps.py",
    "test_frontier.py",
    "test_every_attack.py",
    "test_evaluate.py",
    "test_serving_benchmark.py",
    "test_readme.py",
    "test_datasets.py",
    "test_endpoints.py",
    "test_keras_io_example.py",
    "test_export_app.py",
    "test_board.py",
    "test_carlini_wagner.py",
    "test_corrupt_inputs.py",
    "test_client.py",
    "test_sweep.py",
    "test_model_server.py",
    "test_soak.py",
    "test_training_as_keras.py",
)


# Marks of tests that are not of the core, though their files are.
LEFT_OUT = {"slow", "thorough"}
# The test files of `make test-fast` and `make matrix`: the library itself,
# without its programs, servers and data sets. tests/test_packaging.py asserts
# that every test file is in one of the two lists. A test that takes many
# seconds, or starts a process, is marked `slow`. saved_before is not in the
# core: Keras 3.8 does not read files that Keras 3.15 wrote.
CORE = {
    "adversarial_training", "apgd", "attack", "autoattack", "batch_norm",
    "best_known", "box", "carlini_wagner", "compiled", "deep_defense",
    "deepfool", "defense", "encoded_images", "evaluate", "every_attack",
    "fgsm", "files", "image_headers", "implicit_gradient", "input_gradient",
    "kernels", "logits", "losses", "methods", "metrics", "minimal_attacks",
    "mma", "model_card", "noise", "norms", "optimizers", "parseval", "pgd",
    "regularization_warmup", "report", "resumable_batches", "saved_model",
    "server_config", "shards", "split_penalty", "square", "steepness",
    "tables", "text", "trades", "training", "warm_up",
}  # fmt: skip
NOT_CORE = {
    "any_classifier", "applications", "apps", "barely_trained", "benchmarks",
    "board", "client", "corrupt_inputs", "datasets", "distribution", "docs",
    "endpoints", "evaluation_apps", "examples", "export_app", "figures",
    "frontier", "html_report", "keras_io_example", "kerashub", "layers",
    "model_server", "mutations", "networks", "packaging", "planted_links",
    "playground", "progress", "properties", "public_names", "published",
    "readme", "reproduce", "results", "resume", "saved_before",
    "serving_benchmark", "similarity", "soak", "sweep", "training_apps",
    "training_as_keras",
}  # fmt: skip


def pytest_xdist_auto_num_workers():
    """One more than cores: one often waits for a process or a disk."""
    return os.cpu_count() + 1


def pytest_configure(config):
    """Workers take whole files in the order in which these are collected.

    By default pytest-xdist hands out the files with the most tests first, but
    the longest have few.
    """
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Marks the tests of the core, and puts the longest files first."""
    place = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in CORE and not LEFT_OUT & {
            m.name for m in item.iter_markers()
        }:
            item.add_marker("core")


@pytest.fixture(autouse=True)
def no_process(request, monkeypatch):
    """A test of the core starts no process."""
    if request.node.get_closest_marker("core"):

        def refuse(*args, **kwargs):
            raise AssertionError(
                "a test of the core starts a process: mark it `slow`."
            )

        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(forked, "Program", refuse)


def thorough_but(quick, values):
    """Parameters of a test: those that are not quick ones `make test` omits.

    Args:
        quick: the values that `make test` tries.
        values: all, iterable, tuples for several arguments;
            `make test-thorough` tries the others.
    """
    return [
        value
        if value in quick
        else pytest.param(
            # A named tuple is one argument.
            *(value if type(value) is tuple else (value,)),
            marks=pytest.mark.thorough,
        )
        for value in values
    ]


def affine_classifier(weights, biases, dtype="float64"):
    """f(x) = x W + b on flat inputs, W of shape (D, n)."""
    weights, biases = np.asarray(weights), np.asarray(biases)
    model = keras.Sequential(
        [
            keras.Input((weights.shape[0],), dtype=dtype),
            keras.layers.Dense(weights.shape[1], dtype=dtype, name="affine"),
        ]
    )
    model.set_weights([weights, biases])
    return model


def train_step(model, *batch, **kwargs):
    """What `train_on_batch` logs: dict of floats.

    Keras 3.8 returns arrays of no dimensions, which `pytest.approx` does not
    take in a dict.
    """
    logs = model.train_on_batch(*batch, **kwargs, return_dict=True)
    return {name: float(value) for name, value in logs.items()}


def _environment():
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # This process may hold the GPU's memory already.
        "CUDA_VISIBLE_DEVICES": "-1",
    }


def shell(*command, cwd=ROOT, timeout=400):
    """Runs Python as a user would, from the root of the repository."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def program(*command, cwd=ROOT, timeout=400):
    """As `shell`, where what is imported before does not matter: quicker."""
    return forked.run(list(map(str, command)), cwd, _environment(), timeout)


def start_program(*command, environment=None, merged=False):
    """A `forked.Program`, as `program` would run it."""
    return forked.Program(
        list(map(str, command)),
        ROOT,
        {**_environment(), **(environment or {})},
        merged,
    )


@contextlib.contextmanager
def imported(name):
    """A program's module with its flags, which are undefined afterwards."""
    with flagsaver.flagsaver():
        try:
            yield importlib.import_module(name)
        finally:
            sys.modules.pop(name, None)


def run(name, *arguments):
    """Runs an app in this process."""
    with imported(name) as module:
        flags.FLAGS([f"{name}.py", *map(str, arguments)])
        module.main([f"{name}.py"])


@pytest.fixture(scope="module", autouse=True)
def tidied():
    """Lets go of the graphs of a file, once all of its tests are through.

    TensorFlow keeps the functions that `tf.custom_gradient` registers while a
    graph is traced for as long as the process lives, and by them the graphs:
    after all files that are 9 GB.
    """
    before = set(ops.gradient_registry.list())
    yield
    registered = ops.gradient_registry._registry
    for name in set(registered) - before:
        if name.startswith("CustomGradient"):
            del registered[name]
    # `tf.map_fn` sets this while it traces, and does not unset it when what it
    # traces raises; after that no strategy of tf.distribute can be made.
    variable_scope.get_variable_scope()._caching_device = None
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def quick_disk():
    """Nothing here waits for the disk, which took up to a minute.

    A killed process loses nothing of what the system has been given; only a
    power cut would.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def float64():
    """What is built meanwhile computes in float64."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def double(float64):
    """Data and losses are in float64, too."""
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def tfds_dir(name, title):
    """A TFDS data directory that holds a set; skips the test without one."""
    beside = pathlib.Path(__file__).parents[2] / "shared/data"
    folder = pathlib.Path(
        os.environ.get("DD_KERAS_TEST_DATA", beside / "tensorflow_datasets")
    )
    if not (folder / name).is_dir():
        pytest.skip(
            f"{title}, as TFDS stores it, is not in {folder}. Set "
            "DD_KERAS_TEST_DATA to a TFDS data_dir that holds it."
        )
    return str(folder)


@pytest.fixture(scope="session")
def mnist_dir():
    """A TFDS data directory that holds MNIST."""
    return tfds_dir("mnist", "MNIST")


@pytest.fixture(scope="session")
def cifar_dir():
    """A TFDS data directory that holds CIFAR-10."""
    return tfds_dir("cifar10", "CIFAR-10")


@pytest.fixture(scope="session")
def mnist_data(mnist_dir):
    """MNIST, as `datasets.load` gives it."""
    return datasets.load("mnist", data_dir=mnist_dir)


@pytest.fixture(scope="session")
def digits():
    """The digits, preprocessed: (x_train, y_train, x_test, y_test)."""
    data = datasets.load("digits")
    arrays = []
    for split in (data.train, data.test):
        batches = datasets.batches(split, data.preprocessing, 2000)
        arrays += [values.numpy() for values in next(iter(batches))]
    return tuple(arrays)


@pytest.fixture(scope="session")
def trained_network(digits):
    """A digits classifier of about 98 % accuracy; not to be trained on."""
    x, y, _, _ = digits
    keras.utils.set_random_seed(0)
    model = networks.digits_cnn()
    model.compile(
        optimizers.CoupledSGD(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch_size=50, epochs=20, verbose=0)
    return model
