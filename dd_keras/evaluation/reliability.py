"""Reliability warnings: signs that a measured robustness is an illusion.

Each metric tells of its own (`Metric.reliability_warnings`); here are those
that take the model, or several metrics, to be seen.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation.metrics import (
    AccuracyUnderAttack,
    AccuracyUnderTransfer,
    BestDistance,
    Distance,
    Metric,
    Samples,
)
from dd_keras.evaluation.metrics.base import SUSPICIOUS

# Outputs of one batch, taken twice, may differ by rounding, relative to the
# largest of them; random ones differ by far more.
_SAME_OUTPUTS = 1e-3


RANDOM_OUTPUTS = (
    "model: its outputs are random (two passes over one batch differ). Attacks "
    "that do not average over this noise make it look more robust than it is."
)


def random_outputs(model: keras.Model, x: tf.Tensor) -> list[str]:
    """A reliability warning, where outputs change from one pass to the next.

    Args:
        model: the classifier.
        x: (B, ...), a batch of inputs.

    Returns:
        list of at most one str.
    """
    one, other = (model(x, training=False).numpy() for _ in range(2))
    if np.max(np.abs(one - other)) <= _SAME_OUTPUTS * np.max(np.abs(one)):
        return []
    return [RANDOM_OUTPUTS]


def reliability_warnings(
    metrics: Sequence[Metric], samples: Samples
) -> list[str]:
    """Why the numbers of a report are not to be trusted, by its samples.

    Args:
        metrics: what was measured.
        samples: what it was measured on.

    Returns:
        list of str, empty where nothing was noticed.
    """
    found = []
    zero_gradient = samples.values["zero_gradient"]
    share = np.mean(zero_gradient)
    if share > SUSPICIOUS:
        found.append(
            f"model: the gradient of its logits is zero on {100 * share:.1f} "
            "% of the samples (a saturated softmax inside, or units that are "
            "dead), so that attacks by gradients cannot move there. That is "
            "no robustness."
        )
    at_boundary = samples.values["tied"] & ~zero_gradient
    for metric in metrics:
        found += metric.reliability_warnings(samples)
        found += _not_moved(metric, samples, at_boundary)
    return [
        *found,
        *contradictions(metrics, samples),
        *_transfers(metrics, samples),
    ]


def _not_moved(metric, samples, at_boundary):
    """A reliability warning, where an attack by distance did not move."""
    if not metric.distance_name:
        return []
    distances = samples.values[metric.distance_name]
    share = np.mean((distances == 0) & ~at_boundary)
    if share <= SUSPICIOUS:
        return []
    return [
        f"{metric.name}: the attack could not move {100 * share:.1f} % of the "
        "samples at all: it finds no way there (a gradient of zero, or steps "
        "lost to rounding), and their distance counts as 0. This 0 does not "
        "mean that the smallest perturbation fools the classifier, nor "
        "anything else of how robust it is."
    ]


def contradictions(metrics: Sequence[Metric], samples: Samples) -> list[str]:
    """Reliability warnings for distances that another attack finds shorter.

    The other attack is in the same norm, within the same bounds or within
    bounds where the first has none: what it finds the first could have found.
    """
    distances = [m for m in metrics if isinstance(m, (BestDistance, Distance))]
    found = []
    for one in distances:
        for other in distances:
            if _strength(one) == _strength(other):
                continue
            if not _could_have_found(one, other):
                continue
            longer = np.mean(samples.values[one.distance_name])
            shorter = np.mean(samples.values[other.distance_name])
            if longer > (1 + SUSPICIOUS) * shorter:
                found.append(
                    f"{one.distance_name}: {longer:.4g} is longer than the "
                    f"{shorter:.4g} of {_contradiction(one, other)}"
                )
    return found


def _contradiction(one, other):
    """Who finds less than whom, and what follows."""
    if _strength(one) > _strength(other):
        return (
            f"the weaker attack behind {other.distance_name}. Gradients "
            "mislead it, or it needs more steps."
        )
    confined = "" if _bounds(one) == _bounds(other) else ", within bounds"
    return (
        f"{other.distance_name}{confined}. It is not the distance to the "
        "nearest decision boundary: compare classifiers by the shortest that "
        "any attack finds (the metric 'rho2_best')."
    )


def _could_have_found(one, other):
    """Whether what one attack finds is among what the other looks through."""
    bounds = _bounds(one)
    return _norm(one) == _norm(other) and (
        bounds is None or bounds == _bounds(other)
    )


def _norm(metric):
    """The norm of its attacks, which is one."""
    first, *_ = metric.all_attacks.values()
    return first.norm


def _bounds(metric):
    """The bounds that all its attacks keep to; None if one has none."""
    first, *others = (a.bounds for a in metric.all_attacks.values())
    return first if all(bounds == first for bounds in others) else None


def _strength(metric):
    """Of DeepFool and the like 0, of Carlini and Wagner's 1, of the best 2."""
    if isinstance(metric, BestDistance):
        return 2
    return int(isinstance(metric.attack, attacks.CarliniWagnerL2))


def _transfers(metrics, samples):
    """Where inputs made for another classifier fool what an attack does not."""
    found = []
    for transfer in metrics:
        if not isinstance(transfer, AccuracyUnderTransfer):
            continue
        for direct in metrics:
            if not isinstance(direct, AccuracyUnderAttack) or (
                direct.attack.eps,
                direct.attack.norm,
            ) != (transfer.attack.eps, transfer.attack.norm):
                continue
            missed = np.mean(
                samples.values[f"{transfer.name}_fooled"]
                & ~samples.values[f"{direct.name}_fooled"]
            )
            if missed > SUSPICIOUS:
                found.append(
                    f"{direct.name}: it misses {missed:.1%} of the samples "
                    "that inputs made for another classifier fool "
                    f"({transfer.name}). The gradients mislead it: report the "
                    "lower of both, or the metric 'autoattack'."
                )
    return found
