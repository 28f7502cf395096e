"""Reliability warnings: signs that a measured robustness is an illusion.

Each metric tells of its own (`Metric.reliability_warnings`); here are those
that take the model, or several metrics, to be seen.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation.metrics import Distance, Metric, Samples
from dd_keras.evaluation.metrics.base import SUSPICIOUS

# Outputs of one batch, taken twice, may differ by rounding, relative to the
# largest of them; random ones differ by far more.
_SAME_OUTPUTS = 1e-3


def reliability_warnings(
    model: keras.Model,
    metrics: Sequence[Metric],
    samples: Samples,
    tied: np.ndarray,
    x: tf.Tensor,
) -> list[str]:
    """Why the numbers of a report are not to be trusted.

    Args:
        model: the classifier.
        metrics: what was measured.
        samples: what it was measured on.
        tied: bool, (N,): where two classes have the same logit, so that the
            sample lies on the decision boundary.
        x: (B, ...), a batch of inputs.

    Returns:
        list of str, empty where nothing was noticed.
    """
    found = []
    one, other = (model(x, training=False).numpy() for _ in range(2))
    if np.max(np.abs(one - other)) > _SAME_OUTPUTS * np.max(np.abs(one)):
        found.append(
            "model: its outputs are random (two passes over one batch "
            "differ). Attacks that do not average over this noise make it "
            "look more robust than it is."
        )
    zero_gradient = samples.values["zero_gradient"]
    share = np.mean(zero_gradient)
    if share > SUSPICIOUS:
        found.append(
            f"model: the gradient of its logits is zero on {100 * share:.1f} "
            "% of the samples (a saturated softmax inside, or units that are "
            "dead), so that attacks by gradients cannot move there. That is "
            "no robustness."
        )
    at_boundary = tied & ~zero_gradient
    for metric in metrics:
        found += metric.reliability_warnings(samples)
        found += _not_moved(metric, samples, at_boundary)
    return found + contradictions(metrics, samples)


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
    """Reliability warnings for distances that a weaker attack finds shorter."""
    distances = [m for m in metrics if isinstance(m, Distance)]
    found = []
    for strong in distances:
        if not isinstance(strong.attack, attacks.CarliniWagnerL2):
            continue
        for weak in distances:
            alike = (weak.attack.norm, weak.attack.bounds) == (
                strong.attack.norm,
                strong.attack.bounds,
            )
            if not alike or isinstance(weak.attack, attacks.CarliniWagnerL2):
                continue
            longer = np.mean(samples.values[strong.distance_name])
            shorter = np.mean(samples.values[weak.distance_name])
            if longer > (1 + SUSPICIOUS) * shorter:
                found.append(
                    f"{strong.distance_name}: {longer:.4g} is longer than the "
                    f"{shorter:.4g} of the weaker attack behind "
                    f"{weak.distance_name}. Gradients mislead it, or it needs "
                    "more steps."
                )
    return found
