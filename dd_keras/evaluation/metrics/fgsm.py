"""The paper's two measures by the fast gradient sign method.

`SmallestEps`: rho_inf and eps_ref of its tables; `EpsSweep`: its Figure 5.
Both are there twice: by the gradient as it is, and, named `paper_...`, by the
one that float32 rounds, which the paper's numbers agree with.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.evaluation.metrics.base import (
    Explanation,
    Metric,
    Samples,
    not_fooled,
    validate_attack,
)
from dd_keras.evaluation.statistics import Estimate, mean, median, proportion
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class SmallestEps(Metric):
    """The smallest eps at which FGSM fools each sample.

    Arrays: `fgsm_eps`, that eps in units of the inputs; `fgsm_rho`, the
    paper's rho_inf (supplement, Eq. 2), ||perturbation||_inf / ||x||_inf; and
    `fgsm_rho_fooled`. Numbers: the means `fgsm_rho` and `fgsm_eps`, and
    `eps_ref`, the smallest eps at which half of all samples are
    misclassified. In `eps_ref` a sample that is misclassified without an
    attack counts from eps 0 on, whatever `misclassified` is. The precision is
    the attack's `tolerance`. If the attack has `float32_gradient=True`, all
    names begin with `paper_`.

    Args:
        attack: `attacks.MinimalFGSM()` by default.

    Example:
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, dd_keras.evaluation.SmallestEps(),
        ...     verbose=0,
        ... )
        >>> sorted(report.summary())
        ['eps_ref', 'fgsm_eps', 'fgsm_rho', 'samples']
    """

    def __init__(self, attack: attacks.Attack | None = None):
        self.attack = validate_attack(attack or attacks.MinimalFGSM())
        self._prefix = _prefix(getattr(self.attack, "float32_gradient", False))
        self.name = f"{self._prefix}fgsm_rho"
        self.distance_name = f"{self._prefix}fgsm_eps"

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        return {"attack": keras.saving.serialize_keras_object(self.attack)}

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        return {
            self.name: norms.rho(found.perturbation, x, math.inf),
            self.distance_name: norms.sample_norm(found.perturbation, math.inf),
            f"{self.name}_fooled": found.fooled,
        }

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The means `fgsm_rho` and `fgsm_eps`, and the median `eps_ref`."""
        eps = np.where(
            samples.values[f"{self.name}_fooled"],
            samples.values[self.distance_name],
            np.inf,
        )
        return {
            self.name: mean(samples.distances(self.name)),
            self.distance_name: mean(samples.distances(self.distance_name)),
            f"{self._prefix}eps_ref": median(np.where(samples.correct, eps, 0)),
        }

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Warns if there are samples that no eps fooled."""
        return not_fooled(self.name, samples)

    def explanations(self) -> dict[str, Explanation]:
        """What the three numbers mean."""
        return {
            self.name: Explanation(
                "The mean of the smallest eps at which FGSM changes the "
                "decision, over the largest value of the input: the paper's "
                f"rho_inf{_rounded(self._prefix)}.",
                True,
            ),
            self.distance_name: Explanation(
                "The mean of the smallest eps at which FGSM changes the "
                f"decision, in units of the inputs{_rounded(self._prefix)}.",
                True,
            ),
            f"{self._prefix}eps_ref": Explanation(
                "The smallest eps at which FGSM leaves half of all samples "
                f"misclassified{_rounded(self._prefix)}.",
                True,
            ),
        }


@keras.saving.register_keras_serializable("dd_keras")
class EpsSweep(Metric):
    """Accuracy under FGSM at several eps.

    All eps share one direction, that of the gradient at the clean input.
    Array: `fgsm_fooled`, bool (N, E). Numbers: `fgsm_accuracy@<eps>`. With
    `float32_gradient` all names begin with `paper_`.

    Args:
        eps: a number or a sequence of E numbers, above 0 and different, in
            units of the inputs.
        bounds: as in `attacks.FGSM`; None, as in the paper, for no bounds.
        float32_gradient: as in `attacks.FGSM`.

    Example:
        >>> sweep = dd_keras.evaluation.EpsSweep([0.05, 0.2], bounds=(0, 1))
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, sweep, verbose=0
        ... )
        >>> at = report.summary()
        >>> at["fgsm_accuracy@0.2"] < at["fgsm_accuracy@0.05"]
        True
    """

    def __init__(
        self,
        eps: float | Sequence[float],
        bounds: tuple | None = None,
        float32_gradient: bool = False,
    ):
        given = np.atleast_1d(eps).tolist()
        self.eps = [
            validation.validate_number("eps", e, above=0) for e in given
        ]
        if not self.eps or len({f"{e:g}" for e in self.eps}) < len(self.eps):
            raise ValueError(
                "eps: expected one or more numbers, each once; received "
                f"{given}."
            )
        self.attack = attacks.FGSM(
            1.0, bounds, float32_gradient=float32_gradient
        )
        self.name = f"{_prefix(self.attack.float32_gradient)}fgsm"

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        return {
            "eps": self.eps,
            "bounds": self.attack.bounds,
            "float32_gradient": self.attack.float32_gradient,
        }

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        unit_step = attacks.FGSM(
            1.0, float32_gradient=self.attack.float32_gradient
        ).search(network, x, forward=forward)
        fooled = []
        for eps in self.eps:
            step = self.attack.within_bounds(x, eps * unit_step.perturbation)
            logits = attacks.inference_form(network)(x + step)
            classes = decisions.predicted_class(logits)
            fooled.append(classes != unit_step.predictions)
        return {f"{self.name}_fooled": tf.stack(fooled, axis=1)}  # (B, E)

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """`fgsm_accuracy@<eps>` for each eps."""
        correct = samples.correct_under(f"{self.name}_fooled")  # (M, E)
        return {
            f"{self.name}_accuracy@{eps:g}": proportion(column)
            for eps, column in zip(self.eps, correct.T, strict=True)
        }

    def explanations(self) -> dict[str, Explanation]:
        """What the number of each eps means."""
        return {
            f"{self.name}_accuracy@{eps:g}": Explanation(
                "The share of samples that are correctly classified and stay "
                f"so under one step of FGSM, l_inf {eps:g} in units of the "
                f"inputs{_rounded(_prefix(self.attack.float32_gradient))}.",
                True,
            )
            for eps in self.eps
        }


def _rounded(prefix):
    """Of the paper's form, what differs."""
    return ", by the gradient that float32 rounds" if prefix else ""


def _prefix(float32_gradient):
    return "paper_" if float32_gradient else ""
