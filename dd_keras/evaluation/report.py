"""What an evaluation found: numbers, their intervals, and every sample."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from dd_keras.evaluation.metrics import EpsSweep, Metric, Samples
from dd_keras.evaluation.metrics.base import PERTURBATION
from dd_keras.evaluation.statistics import Estimate, proportion
from dd_keras.utils import config, files, tables

# Arrays that have another name now, in reports of before.
_NAMES_UP_TO_0_1 = {"fgs_fooled": "fgsm_fooled"}


class Cost(NamedTuple):
    """What a metric took, over all samples.

    Attributes:
        forward: forward passes of the network, counted sample by sample.
        backward: backward passes, likewise.
    """

    forward: int
    backward: int


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one ==
class RobustnessReport:
    """The result of an evaluation: numbers, intervals, and every sample.

    Attributes:
        metrics: tuple of `Metric`, what was measured.
        misclassified: how samples that are misclassified without an attack
            count, see `evaluate_robustness`.
        values: dict from names to arrays, (N, ...), one row per sample, in the
            order of the data set: int `labels` and `predictions` (of the clean
            inputs), bool `zero_gradient` and `tied` (two classes share the
            highest logit, so the input lies on the decision boundary), and the
            arrays of each metric, such as `rho2`, `l2`, `rho2_fooled` and
            `rho2_iterations`.
        warnings: tuple of str, the reliability warnings: reasons not to trust
            a number.
        costs: dict from names of metrics to their `Cost`, the number of
            forward and backward passes; empty in old reports.
        seconds: dict from names of metrics to their wall-clock time in this
            process; empty in a report read from a file. Only these differ
            between two evaluations of the same model.
        shard: (index, count), if the report is of a part of a data set; else
            None.

    Example:
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, verbose=0
        ... )
        >>> low, high = report.intervals()["rho2"]
        >>> low < report.summary()["rho2"] < high
        True
        >>> report.values["rho2"].shape
        (100,)
        >>> report.to_json("report.json")
        >>> again = dd_keras.RobustnessReport.from_json("report.json")
        >>> again.summary() == report.summary()
        True
    """

    metrics: tuple[Metric, ...]
    misclassified: str
    values: dict[str, np.ndarray]
    warnings: tuple[str, ...] = ()
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shard: tuple[int, int] | None = None

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
        """The numbers with their intervals: dict of name to `Estimate`."""
        found = {}
        for estimates in self.estimates_of_each:
            found.update(estimates)
        return found

    @functools.cached_property
    def estimates_of_each(self) -> list[dict[str, Estimate]]:
        """The estimates of each metric, in the order of `metrics`."""
        samples = self.samples()
        return [metric.estimates(samples) for metric in self.metrics]

    def summary(self) -> dict[str, float | None]:
        """The numbers alone.

        Returns:
            dict of name to float, or to None if no sample counts, or for
            `eps_ref` if half of the samples withstand every eps. `samples` is
            N.
        """
        numbers = {
            name: _or_none(estimate.value)
            for name, estimate in self.estimates.items()
        }
        return {**numbers, "samples": len(self)}

    def intervals(self) -> dict[str, list[float | None]]:
        """The 95 % confidence intervals: dict of name to [low, high].

        Wilson's for proportions, a normal approximation for means, order
        statistics for `eps_ref`. They cover the sampling of the data, not
        stronger attacks.
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

        Example:
            >>> fgsm = dd_keras.evaluation.EpsSweep([0.05, 0.1, 0.2])
            >>> report = dd_keras.evaluate_robustness(
            ...     classifier, x_test, y_test, fgsm, verbose=0
            ... )
            >>> report.success_rate()["success_rate"].shape
            (3,)
        """
        for metric in self.metrics:
            if isinstance(metric, EpsSweep) and metric.name == "fgsm":
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

    def robust_accuracy(
        self, eps: ArrayLike | None = None, distance: str = "l2_best"
    ) -> dict[str, np.ndarray]:
        """The robust accuracy at each eps, from the distances in the report.

        No further attack is run: a sample is robust at eps if it is correctly
        classified, and the perturbation found for it is longer than eps. The
        result is an upper bound; the stronger the attack, the tighter.

        Args:
            eps: (E,), in units of the distance; None: 51 values from 0 to
                slightly above the largest distance.
            distance: name of an array of distances, such as "l2_best", "l2"
                or "fgsm_eps".

        Returns:
            dict of arrays (E,): `eps`, `accuracy`, and the ends of its 95 %
            interval `low`, `high`.

        Raises:
            ValueError: if no metric of the report measures this distance.

        Example:
            >>> report = dd_keras.evaluate_robustness(
            ...     classifier, x_test, y_test, ["accuracy", "l2"], verbose=0
            ... )
            >>> curve = report.robust_accuracy([0.0, 0.5, 5.0], distance="l2")
            >>> print(np.round(curve["accuracy"][[0, -1]]))
            [1. 0.]
        """
        names = {m.distance_name: m.name for m in self.metrics}
        if not distance or distance not in names:
            raise ValueError(
                "distance: expected one that the report has, of "
                f"{sorted(filter(None, names))}; received {distance!r}."
            )
        fooled = f"{names[distance]}_fooled"
        if eps is None:
            found = self.values[distance][self.values[fooled]]
            eps = np.linspace(0, 1.02 * np.max(found, initial=0.0), 51)
        eps = np.atleast_1d(np.asarray(eps, np.float64))
        robust = self.samples().robust_at(eps, distance, fooled)
        accuracy = np.array([proportion(column)[:3] for column in robust.T])
        return {
            "eps": eps,
            "accuracy": accuracy[:, 0],
            "low": accuracy[:, 1],
            "high": accuracy[:, 2],
        }

    def samples(self) -> Samples:
        """The arrays from which metrics compute their numbers."""
        return Samples(
            self.values, self.labels == self.predictions, self.misclassified
        )

    def table(self, form: str = "text") -> str:
        """All numbers with their intervals and costs, and the warnings.

        The row of each metric's first number shows its cost: forward and
        backward passes per sample, and seconds if the report has them.

        Args:
            form: `"text"`, `"markdown"` or `"csv"`; csv has no warnings.

        Raises:
            ValueError: if `form` is none of these.
        """
        costs = self._cost_texts()
        rows = [
            (
                name,
                estimate.text(),
                estimate.interval_text(),
                *costs.get(name, ("", "", "")),
            )
            for name, estimate in self.estimates.items()
        ]
        header = (
            f"{len(self):,} samples",
            "value",
            "95 % interval",
            "forward",
            "backward",
            "seconds",
        )
        shown = [
            i
            for i in range(len(header))
            if i < 3 or any(row[i] for row in rows)
        ]
        table = tables.render(
            [header[i] for i in shown],
            [[row[i] for i in shown] for row in rows],
            form,
        )
        if form == "csv":
            return table
        return "\n\n".join([table, *(f"Warning: {w}" for w in self.warnings)])

    def _cost_texts(self):
        """By the first number of each metric: passes a sample, seconds."""
        texts = {}
        for metric, (first, *_) in zip(
            self.metrics, self.estimates_of_each, strict=True
        ):
            cost = self.costs.get(metric.name, Cost(0, 0))
            seconds = self.seconds.get(metric.name)
            texts[first] = (
                *(f"{n / len(self):,.1f}" if n else "" for n in cost),
                "" if seconds is None or not any(cost) else f"{seconds:,.1f}",
            )
        return texts

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes numbers, samples and settings as JSON, atomically.

        Perturbations kept by a metric are omitted; `to_npz` writes them.
        """
        content = {"summary": self.summary(), **self._settings()}
        kept = {
            name: values
            for name, values in self.values.items()
            if not name.endswith(PERTURBATION)
        }
        content["dtypes"] = {k: v.dtype.name for k, v in kept.items()}
        content["samples"] = {k: v.tolist() for k, v in kept.items()}
        files.write_text(json.dumps(content, allow_nan=False), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Self:
        """Reads a report that `to_json` wrote.

        Raises:
            ValueError: if the file is not such a report.
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
                tuple(
                    keras.saving.deserialize_keras_object(
                        config.from_json(metric)
                    )
                    for metric in content["metrics"]
                ),
                content["misclassified"],
                values,
                tuple(content["warnings"]),
                {
                    name: Cost(*cost)
                    for name, cost in content.get("costs", {}).items()
                },
                shard=tuple(content["shard"]) if "shard" in content else None,
            )
            report.summary()  # fails where something is missing
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"path: expected a report written by to_json; {path} is none: "
                f"{type(error).__name__}: {error}"
            ) from error
        return report

    def to_npz(self, path: str | os.PathLike) -> None:
        """Writes all arrays, and as `report` all else as JSON, atomically.

        `numpy.load(path)["rho2"]` is then the array `values["rho2"]`.
        """
        content = json.dumps(
            {"summary": self.summary(), **self._settings()}, allow_nan=False
        )
        with files.atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, report=np.array(content), **self.values)

    def to_html(self, path: str | os.PathLike, **options: Any) -> None:
        """Writes a page to open, share and print: one file, atomically.

        It loads nothing and runs nothing. Without images it has none.

        Args:
            path: file to write.
            **options: any of `title`, str; `images`, an `AttackedImages`;
                `class_names`, of all classes in their order; `unit` of the
                inputs, as "pixels of 0 to 255"; `provenance` and `about`, dicts
                of what made the report and of the model; `note`, why there are
                no images.

        Raises:
            ImportError: if Jinja2 or matplotlib is not installed.
            ValueError: if an option does not fit the report.
        """
        from dd_keras.evaluation import html_report

        html_report.write(self, path, **options)

    def _settings(self):
        return {
            "intervals": self.intervals(),
            "warnings": list(self.warnings),
            "misclassified": self.misclassified,
            "costs": self.costs,
            **({"shard": self.shard} if self.shard else {}),
            "metrics": [
                config.for_json(keras.saving.serialize_keras_object(metric))
                for metric in self.metrics
            ],
        }


def _or_none(number):
    return number if math.isfinite(number) else None
