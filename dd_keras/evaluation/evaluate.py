"""Robustness of a classifier on a data set, in one call."""

import dataclasses
import json
import os

import keras
import numpy as np

from dd_keras import logits, numerics
from dd_keras.attacks import DeepFool


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """What an attack found on each sample of a data set.

    Attributes:
        norm: the order p of the norms below.
        labels: int, (N,).
        predictions: int, (N,): classes of the clean inputs.
        rho: float, (N,): ||perturbation||_p / ||x||_p (Eq. 7).
        distance: float, (N,): ||perturbation||_p, in units of the inputs.
        fooled: bool, (N,): whether the perturbation changed the prediction.
        iterations: int, (N,): steps of the attack.
    """

    norm: float
    labels: np.ndarray
    predictions: np.ndarray
    rho: np.ndarray
    distance: np.ndarray
    fooled: np.ndarray
    iterations: np.ndarray

    def summary(self):
        """The means over all samples, as the paper's tables give them.

        Returns:
            dict: `accuracy` in [0, 1], `rho2` and `l2` (`rho1`, `l1`, ... for
            other norms), `fooled` (the share of samples whose prediction the
            attack changed), `samples`.
        """
        return {
            "accuracy": float(np.mean(self.labels == self.predictions)),
            f"rho{self.norm:g}": float(np.mean(self.rho)),
            f"l{self.norm:g}": float(np.mean(self.distance)),
            "fooled": float(np.mean(self.fooled)),
            "samples": len(self.labels),
        }

    def to_json(self, path):
        """Writes the summary and all per-sample values; whole or not at all."""
        values = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in dataclasses.asdict(self).items()
        }
        if np.isinf(self.norm):
            values["norm"] = "inf"  # JSON has no infinity
        values = {"summary": self.summary(), **values}
        part = f"{path}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(values, file, allow_nan=False)
        os.replace(part, path)


def evaluate_robustness(model, dataset, attack=None, verbose=1):
    """Attacks every sample of a data set from its predicted class.

    Every sample counts, also one that is misclassified without attack (the
    paper's convention): its distance is to the nearest class boundary.

    Args:
        model: a built Keras classifier, see `logits_model`.
        dataset: batched `tf.data.Dataset` of (inputs, labels), the inputs
            preprocessed as the model takes them.
        attack: an attack with a `norm`; by default `DeepFool()`.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        `RobustnessReport`.

    Raises:
        ValueError: if `dataset` is empty, has no labels or labels of another
            number of classes.
        tf.errors.InvalidArgumentError: if a label is outside [0, classes).
    """
    attack = attack or DeepFool()
    total = int(dataset.cardinality())
    bar = keras.utils.Progbar(
        total if total > 0 else None, verbose=verbose, unit_name="batch"
    )
    num_classes = logits.num_classes(model)
    parts = []
    for batch in dataset:
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                "dataset: expected batches of (inputs, labels); received "
                f"{type(batch).__name__} of {len(batch)}."
            )
        x, y = logits.cast_inputs(model, batch[0]), batch[1]
        found = attack.run(model, x)
        labels = logits.sparse_labels(y, num_classes)
        parts.append(
            [
                labels,
                found.predictions,
                numerics.rho(found.perturbation, x, attack.norm),
                numerics.sample_norm(found.perturbation, attack.norm),
                found.fooled,
                found.iterations,
            ]
        )
        bar.add(1)
    bar.update(len(parts), finalize=True)
    if not parts:
        raise ValueError("dataset: expected at least one batch; received none.")
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return RobustnessReport(attack.norm, *columns)
