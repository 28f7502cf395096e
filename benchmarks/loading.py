"""Loads what `published.check` wrote, in this new process, and compares.

    python benchmarks/loading.py keras FOLDER
    python benchmarks/loading.py savedmodel FOLDER

The second is a process that has neither dd_keras nor Keras, as a server.
Prints a JSON of name to None, or to what went wrong.
"""

import json
import sys
from pathlib import Path

import numpy as np

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def block():
    """Lets imports of what a server does not have fail."""
    for name in ("dd_keras", "keras", "published", "tf_keras"):
        sys.modules[name] = None


def keras_outputs(folder, name, x):
    """The predictions of a wrapped classifier, loaded from its file."""
    import keras
    import published  # noqa: F401  registers the layers

    import dd_keras  # noqa: F401  registers the wrapper

    model = keras.saving.load_model(folder / f"{name}.keras")
    return model.predict(x, verbose=0)


def savedmodel_outputs(folder, name, x):
    """The probabilities of an exported classifier."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(folder / name / "1")).signatures
    found = signatures["robustness"](images=tf.constant(x))
    if not np.all(np.isfinite(found["rho"])):
        raise ValueError(f"rho: {found['rho']}")
    return signatures["serving_default"](images=tf.constant(x))["probabilities"]


def difference(kind, folder, name):
    """What is wrong with a loaded classifier, or None."""
    expected = np.load(folder / f"{name}.npz")
    load, key = {
        "keras": (keras_outputs, "outputs"),
        "savedmodel": (savedmodel_outputs, "probabilities"),
    }[kind]
    try:
        np.testing.assert_allclose(
            load(folder, name, expected["x"]), expected[key], **TOLERANCE
        )
    except Exception as error:  # whatever it is, the next one is to be loaded
        return f"{type(error).__name__}: {error}"
    return None


def main(kind, folder):
    """Compares all classifiers in a folder."""
    if kind == "savedmodel":
        block()
    folder = Path(folder)
    names = {
        "keras": [path.stem for path in folder.glob("*.keras")],
        "savedmodel": [p.parent.name for p in folder.glob("*/1")],
    }[kind]
    found = {name: difference(kind, folder, name) for name in sorted(names)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
