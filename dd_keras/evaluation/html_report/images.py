"""Images that an attack changed, to be shown; and how they are encoded."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras.classifier import logits
from dd_keras.evaluation.html_report import content
from dd_keras.evaluation.metrics import BestDistance
from dd_keras.evaluation.metrics.base import PERTURBATION
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.utils import norms, validation

_SLACK = 0.5  # of a pixel, by which inputs may lie outside of their bounds
# Bytes of all images of a page together, in base64; the page keeps below 5 MB.
_BUDGET = 3_000_000
_QUALITY = 88  # of JPEG, where PNG is too large
_BLUE, _RED = np.array([0, 114, 178.0]), np.array([213, 94, 0.0])  # of plots


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one ==
class AttackedImages:
    """Some samples of a report as images, before and after an attack.

    Attributes:
        index: int (M,), which samples of the report they are.
        clean: float32 (M, H, W, C), pixels 0 to 255; C is 1 or 3.
        perturbation: float32 (M, H, W, C), in pixels of 0 to 255.
        probabilities: (M, n), of the classes, for the clean images.
        adversarial_probabilities: (M, n), for the perturbed ones.
        distance: (M,), the perturbations' length, in units of the inputs.
        norm: the order p of it.
        attack: what made the perturbations, in words; empty: nothing did.

    Raises:
        ValueError: if shapes do not fit together, or pixels are outside of 0
            to 255.

    Example:
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, metrics=["rho2"], verbose=0
        ... )
        >>> images = dd_keras.evaluation.AttackedImages.of(
        ...     report, classifier, x_test, bounds=(0, 1)
        ... )
        >>> images.clean.shape[1:], images.norm
        ((8, 8, 1), 2.0)
        >>> report.to_html("report.html", images=images)
    """

    index: np.ndarray
    clean: np.ndarray
    perturbation: np.ndarray
    probabilities: np.ndarray
    adversarial_probabilities: np.ndarray
    distance: np.ndarray
    norm: float
    attack: str = ""

    def __post_init__(self) -> None:
        shape = self.clean.shape
        if len(shape) != 4 or shape[-1] not in (1, 3):
            raise ValueError(
                "clean: expected images, (M, H, W, 1) or (M, H, W, 3); "
                f"received the shape {shape}."
            )
        if self.perturbation.shape != shape:
            raise ValueError(
                f"perturbation: expected the images' shape {shape}; received "
                f"{self.perturbation.shape}."
            )
        for name in (
            "index", "distance", "probabilities", "adversarial_probabilities"
        ):  # fmt: skip
            if len(getattr(self, name)) != len(self.clean):
                raise ValueError(
                    f"{name}: expected {len(self.clean)} rows, one for each "
                    f"image; received {len(getattr(self, name))}."
                )
        ends = np.min(self.clean, initial=0), np.max(self.clean, initial=0)
        if not (ends[0] >= -_SLACK and ends[1] <= 255 + _SLACK):
            raise ValueError(
                "clean: expected pixels of 0 to 255; received values from "
                f"{ends[0]:g} to {ends[1]:g}. Are the bounds those of the "
                "inputs?"
            )

    @staticmethod
    def wanted(report: RobustnessReport) -> np.ndarray:
        """Which samples a page of the report shows.

        The twenty correctly classified ones that are nearest to another
        decision, and twenty misclassified ones.

        Returns:
            int (M,), increasing, at most 40.
        """
        return np.unique(
            [*content.fragile(report), *content.misclassified(report)]
        ).astype(int)

    @classmethod
    def of(
        cls,
        report: RobustnessReport,
        model: keras.Model,
        x: ArrayLike,
        bounds: tuple,
        *,
        index: ArrayLike | None = None,
        activation: str | None = None,
    ) -> Self:
        """The images that a page shows, attacked as the report's metric did.

        By the metric whose distances the page ranks samples by; perturbations
        that it kept are taken as they are. Without such a metric they are not
        attacked.

        Args:
            report: of the classifier.
            model: the classifier, as `evaluate_robustness` had it.
            x: (N, H, W, C), the inputs of all samples in the report's order;
                with `index`, (M, H, W, C), those of these alone.
            bounds: (low, high), the inputs that are pixels 0 and 255, numbers
                or arrays that broadcast against a sample.
            index: int (M,), which samples of the report `x` holds, those of
                `wanted(report)` at least; None: all.
            activation: as in `evaluate_robustness`.

        Raises:
            ValueError: if `x` are no images of 1 or 3 channels, or outside of
                `bounds`, or their number is not the report's.
        """
        x = np.asarray(x)
        if x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise ValueError(
                "x: expected images, (N, H, W, 1) or (N, H, W, 3); received "
                f"the shape {x.shape}."
            )
        held = np.arange(len(report)) if index is None else np.asarray(index)
        if len(held) != len(x):
            raise ValueError(
                f"x: expected {len(held)} inputs, one for each sample of the "
                f"{'report' if index is None else 'index'}; received {len(x)}."
            )
        limits: Any = validation.validate_bounds(bounds)
        if limits is None:
            raise ValueError(
                "bounds: expected the inputs that are pixels 0 and 255; "
                "received None."
            )
        low, high = map(np.asarray, limits)
        wanted = cls.wanted(report)
        missing = np.setdiff1d(wanted, held)
        if len(missing):
            raise ValueError(
                "index: expected the samples of AttackedImages.wanted(report) "
                f"among them; without {missing[:5].tolist()}."
            )
        places = {int(sample): place for place, sample in enumerate(held)}
        x = x[[places[int(sample)] for sample in wanted]]
        network = logits.logits_model(model, activation)
        change, attack, norm = _perturbations(report, network, x, wanted)
        scale = 255 / (high - low)
        return cls(
            wanted,
            np.asarray(scale * (x - low), np.float32),
            np.asarray(np.broadcast_to(scale, x.shape) * change, np.float32),
            _probabilities(network, x),
            _probabilities(network, x + change),
            norms.sample_norm(tf.constant(change), norm).numpy()
            if len(x)
            else np.zeros(0),
            norm,
            attack,
        )

    def place_of(self, sample: int) -> int | None:
        """The row of a sample of the report; None: it is not among them."""
        found = np.flatnonzero(self.index == sample)
        return int(found[0]) if len(found) else None


def _perturbations(report, network, x, wanted):
    """What the report's metric adds to these inputs; by what, in which norm."""
    metric: Any = content.distance_metric(report)
    if metric is None or not len(x):
        return np.zeros_like(x, np.float32), "", 2.0
    norm = content.norm_of(metric)
    kind = content.kind_of(metric)
    kept = report.values.get(metric.name + PERTURBATION)
    if kept is not None:
        return kept[wanted], kind, norm
    if not isinstance(metric, BestDistance):
        return metric.attack.run(network, x).perturbation.numpy(), kind, norm
    # Of each the one attack that was best: results do not depend on the batch.
    best = report.values[f"{metric.name}_found_by"][wanted]
    change = np.zeros_like(x, np.float32)
    for number, attack in enumerate(metric.all_attacks.values()):
        own = np.maximum(best, 0) == number
        if own.any():
            change[own] = attack.run(network, x[own]).perturbation.numpy()
    return change, kind, norm


def _probabilities(network, x):
    """The softmax of a network's logits: float64, (M, n)."""
    if not len(x):
        return np.zeros((0, 1))
    x = logits.cast_inputs(network, x)
    scores = np.asarray(logits.class_logits(network(x)), np.float64)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def shown_perturbation(change: np.ndarray) -> tuple[np.ndarray, float]:
    """A perturbation as an image, amplified, and the factor.

    Grey or white is no change. Of one channel, blue darkens and red brightens.

    Args:
        change: (H, W, C), in pixels of 0 to 255.

    Returns:
        (uint8 (H, W, 3), factor of two digits): the largest change is as far
        from no change as the colours go.
    """
    largest = float(np.abs(change).max())
    factor = float(f"{127.5 / largest:.2g}") if largest else 1.0
    if change.shape[-1] == 3:
        return as_bytes(127.5 + factor * change), factor
    share = np.clip(factor * change / 127.5, -1, 1)
    end = np.where(share < 0, _BLUE, _RED)  # (H, W, 3)
    return as_bytes(255 + np.abs(share) * (end - 255)), factor


def data_uris(images: Sequence[np.ndarray]) -> tuple[list[str], int]:
    """Images as data URIs, within the bytes that a page may have of them.

    PNG where they fit, else JPEG, else fewer pixels.

    Args:
        images: each (H, W, C), pixels 0 to 255.

    Returns:
        (list of str, n): of each side every n-th pixel was taken.
    """
    shrink = 1
    while True:
        small = [as_bytes(image[::shrink, ::shrink]) for image in images]
        for kind, encode in (
            ("png", tf.io.encode_png),
            ("jpeg", lambda i: tf.io.encode_jpeg(i, quality=_QUALITY)),
        ):
            uris = [
                f"data:image/{kind};base64,"
                + base64.b64encode(encode(image).numpy()).decode("ascii")
                for image in small
            ]
            if sum(map(len, uris)) <= _BUDGET:
                return uris, shrink
        shrink += 1


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Pixels of 0 to 255, rounded and cut to that, as uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
