"""How far the nearest other decision is: rho and l of the paper's tables."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation.metrics.base import (
    PERTURBATION,
    REACHED,
    Explanation,
    Metric,
    Samples,
    not_fooled,
    order_of,
    reached,
    validate_attack,
)
from dd_keras.evaluation.statistics import Estimate, mean, proportion
from dd_keras.utils import norms


@keras.saving.register_keras_serializable("dd_keras")
class Distance(Metric):
    """The distance to the decision boundary that an attack finds.

    Arrays and numbers, for the norm p of the attack: `rho<p>`, the relative
    size ||perturbation||_p / ||x||_p (Eq. 7); `l<p>`, the length of the
    perturbation in units of the inputs (Eq. 1 of the supplement); and
    `rho<p>_fooled`. Array: `rho<p>_iterations`.

    Args:
        attack: an untargeted attack with a `norm` that searches for the
            smallest perturbation, such as `DeepFool`.
        prefix: prefix of all names, to tell apart attacks of the same norm in
            one report.
        keep_perturbations: whether to keep them, as `rho<p>_perturbation`.
        keep_classes: whether to keep the classes of the perturbed inputs, as
            `rho<p>_reached`, int (N,).

    Raises:
        ValueError: if `attack` is targeted or has no `norm`.

    Example:
        >>> ddn = dd_keras.attacks.DDN(steps=50, bounds=(0, 1))
        >>> metric = dd_keras.evaluation.Distance(ddn, prefix="ddn_")
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, metric, verbose=0
        ... )
        >>> sorted(report.summary())
        ['ddn_l2', 'ddn_rho2', 'ddn_rho2_fooled', 'samples']
    """

    def __init__(
        self,
        attack: Any,
        prefix: str = "",
        keep_perturbations: bool = False,
        keep_classes: bool = False,
    ):
        self.attack = validate_attack(attack, "norm")
        self.keep_perturbations = bool(keep_perturbations)
        self.keep_classes = bool(keep_classes)
        self.prefix = str(prefix)
        self.name = f"{prefix}rho{attack.norm:g}"
        self.distance_name = f"{prefix}l{attack.norm:g}"

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {
            "attack": attack,
            "prefix": self.prefix,
            "keep_perturbations": self.keep_perturbations,
            "keep_classes": self.keep_classes,
        }

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        p = self.attack.norm
        arrays = {
            self.name: norms.rho(found.perturbation, x, p),
            self.distance_name: norms.sample_norm(found.perturbation, p),
            f"{self.name}_fooled": found.fooled,
            f"{self.name}_iterations": found.iterations,
        }
        if self.keep_perturbations:
            arrays[self.name + PERTURBATION] = found.perturbation
        if self.keep_classes:
            arrays[self.name + REACHED] = reached(
                network, x, found.perturbation
            )
        return arrays

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The means `rho<p>` and `l<p>`, and the share `rho<p>_fooled`."""
        fooled = f"{self.name}_fooled"
        return {
            self.name: mean(samples.distances(self.name)),
            self.distance_name: mean(samples.distances(self.distance_name)),
            fooled: proportion(samples.values[fooled]),
        }

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Warns if there are samples that the attack did not fool."""
        return not_fooled(self.name, samples)

    def explanations(self) -> dict[str, Explanation]:
        """What the three numbers mean."""
        kind, order = type(self.attack).__name__, order_of(self.attack.norm)
        return {
            self.name: Explanation(
                f"The mean size of the perturbation that {kind} needs to "
                f"change the decision, over the size of the input, both in "
                f"{order} (Eq. 7 of the Deep Defense paper). Shorter ones may "
                "exist: read it as an upper bound.",
                True,
            ),
            self.distance_name: Explanation(
                f"The mean length, in {order} and in units of the inputs, of "
                f"the perturbation that {kind} needs to change the decision.",
                True,
            ),
            f"{self.name}_fooled": Explanation(
                f"The share of samples whose decision {kind} changed. Below "
                "100 % the distances say less than they seem to."
            ),
        }
