"""What an evaluation found: numbers, their intervals, and every sample."""

import dataclasses
import functools
import json
import math
import os
from typing import Self

import keras
import numpy as np

from dd_keras.evaluation.metrics import EpsSweep, Metric, Samples
from dd_keras.evaluation.statistics import Estimate
from dd_keras.utils import files, tables

# Arrays that have another name now, in reports of before.
_NAMES_UP_TO_0_1 = {"fgs_fooled": "fgsm_fooled"}


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one ==
class RobustnessReport:
    """What the metrics found on each sample of a data set.

    Attributes:
        metrics: tuple of `Metric`, what was measured.
        misclassified: how samples that are misclassified without attack
            count, see `evaluate_robustness`.
        values: dict of name to array, (N, ...), a row a sample, in the order
            of the data set: int `labels` and `predictions` (of the clean
            inputs), bool `zero_gradient`, and what each metric measures, as
            `rho2`, `l2`, `rho2_fooled`, `rho2_iterations`.
        warnings: tuple of str, the reliability warnings: why a number is not
            to be trusted. Empty where nothing was noticed.
    """

    metrics: tuple[Metric, ...]
    misclassified: str
    values: dict[str, np.ndarray]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> np.ndarray:
        """The true classes, int (N,)."""
        return self.values["labels"]

    @property
    def predictions(self) -> np.ndarray:
        """The classes predicted for the clean inputs, int (N,)."""
        return self.values["predictions"]

    @functools.cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The numbers with their intervals, by name."""
        samples = Samples(
            self.values, self.labels == self.predictions, self.misclassified
        )
        found = {}
        for metric in self.metrics:
            found.update(metric.estimates(samples))
        return found

    def summary(self) -> dict[str, float | None]:
        """The numbers alone.

        Returns:
            dict of name to float; None where no sample counts, and `eps_ref`
            where half the samples withstand every eps. `samples` is N.
        """
        numbers = {
            name: _or_none(estimate.value)
            for name, estimate in self.estimates.items()
        }
        return {**numbers, "samples": len(self)}

    def intervals(self) -> dict[str, list[float | None]]:
        """The 95 % confidence intervals: dict of name to [low, high].

        Wilson's for proportions, a normal approximation for means, order
        statistics for `eps_ref`. They say how far the numbers would move with
        other samples of the same kind, not with a stronger attack.
        """
        return {
            name: [_or_none(estimate.low), _or_none(estimate.high)]
            for name, estimate in self.estimates.items()
        }

    def success_rate(self) -> dict[str, np.ndarray]:
        """The success rate of FGSM against eps (Figure 5 of the paper).

        Returns:
            dict of arrays (E,): `eps`, `success_rate` (the share of samples
            misclassified at it), and the ends of its interval `low`, `high`.

        Raises:
            ValueError: if the report has no "fgsm".
        """
        for metric in self.metrics:
            if isinstance(metric, EpsSweep):
                break
        else:
            raise ValueError(
                "success_rate: expected a report with the metric 'fgsm'; "
                f"received one with {[m.name for m in self.metrics]}."
            )
        order = np.argsort(metric.eps)
        accuracy = np.array(
            [self.estimates[f"fgsm_accuracy@{eps:g}"][:3] for eps in metric.eps]
        )[order]
        return {
            "eps": np.array(metric.eps)[order],
            "success_rate": 1 - accuracy[:, 0],
            "low": 1 - accuracy[:, 2],
            "high": 1 - accuracy[:, 1],
        }

    def table(self, form: str = "text") -> str:
        """All numbers with their intervals, and the reliability warnings.

        Args:
            form: `"text"`, `"markdown"` or `"csv"`; csv has no warnings.

        Raises:
            ValueError: if `form` is none of these.
        """
        rows = [
            (name, estimate.text(), estimate.interval_text())
            for name, estimate in self.estimates.items()
        ]
        header = (f"{len(self):,} samples", "value", "95 % interval")
        table = tables.render(header, rows, form)
        if form == "csv":
            return table
        return "\n\n".join([table, *(f"Warning: {w}" for w in self.warnings)])

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes numbers, samples and settings, atomically."""
        content = {"summary": self.summary(), **self._settings()}
        content["dtypes"] = {k: v.dtype.name for k, v in self.values.items()}
        content["samples"] = {k: v.tolist() for k, v in self.values.items()}
        files.write_text(json.dumps(content, allow_nan=False), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Self:
        """The report that `to_json` wrote.

        Raises:
            ValueError: if the file is no such report.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            values = {
                _NAMES_UP_TO_0_1.get(name, name): np.array(
                    rows, content["dtypes"][name]
                )
                for name, rows in content["samples"].items()
            }
            report = cls(
                tuple(map(_restored, content["metrics"])),
                content["misclassified"],
                values,
                tuple(content["warnings"]),
            )
            report.summary()  # fails where something is missing
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"path: expected a report written by to_json; {path} is none: "
                f"{type(error).__name__}: {error}"
            ) from error
        return report

    def to_npz(self, path: str | os.PathLike) -> None:
        """Writes the arrays, and as `report` all else as JSON; atomically.

        `numpy.load(path)["rho2"]` is an array as in `values`.
        """
        content = json.dumps(
            {"summary": self.summary(), **self._settings()}, allow_nan=False
        )
        with files.atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, report=np.array(content), **self.values)

    def _settings(self):
        return {
            "intervals": self.intervals(),
            "warnings": list(self.warnings),
            "misclassified": self.misclassified,
            "metrics": [
                _finite(keras.saving.serialize_keras_object(metric))
                for metric in self.metrics
            ],
        }


def _or_none(number):
    return number if math.isfinite(number) else None


# JSON has no infinity; the norm of an attack may be infinite.
_INFINITY = "Infinity"


def _finite(config):
    """A config with infinity as a word."""
    return _replaced(config, math.inf, _INFINITY)


def _restored(config):
    """The metric of a config as `_finite` made it."""
    config = _replaced(config, _INFINITY, math.inf)
    return keras.saving.deserialize_keras_object(config)


def _replaced(config, old, new):
    if isinstance(config, dict):
        return {k: _replaced(v, old, new) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [_replaced(v, old, new) for v in config]
    return new if type(config) is type(old) and config == old else config
