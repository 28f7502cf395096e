"""Evaluates on one device and on several, and writes what each found.

python tests/evaluation_worker.py REPLICAS FILE.npz
"""

import sys
import unittest.mock

import numpy as np

import dd_keras
from dd_keras import distribution

REPLICAS, PATH = int(sys.argv[1]), sys.argv[2]
STRATEGY = distribution.strategy("mirrored", replicas=REPLICAS)

import keras  # noqa: E402  # after the CPU is parted

SAMPLES, BATCH = 41, 20  # the last batch is of one sample
METRICS = ["accuracy", "rho2", "pgd", "fgsm", "fgsm_rho", "l2_best"]


def classifier():
    """A small convolutional network, always the same."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype="float64"),
            keras.layers.Conv2D(4, 3, activation="relu", dtype="float64"),
            keras.layers.Flatten(dtype="float64"),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )


def evaluated(model):
    """All that is found, by name."""
    rng = np.random.default_rng(0)
    report = dd_keras.evaluate_robustness(
        model,
        rng.uniform(size=(SAMPLES, 6, 6, 1)),
        rng.integers(5, size=SAMPLES),
        METRICS,
        bounds=(0, 1),
        batch_size=BATCH,
        verbose=0,
    )
    costs = {
        f"costs of {name}": np.array(cost)
        for name, cost in report.costs.items()
    }
    return report.values | costs


found = {f"one/{k}": v for k, v in evaluated(classifier()).items()}
with STRATEGY.scope():
    found |= {f"replicas/{k}": v for k, v in evaluated(classifier()).items()}
    with unittest.mock.patch.object(
        distribution, "num_workers", return_value=2
    ):
        try:
            evaluated(classifier())
        except ValueError as error:
            found["several workers"] = np.array(str(error))
np.savez(PATH, **found)
