"""The best known distance: the shortest that any of several attacks finds."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks.rows import choose_rows
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
class BestDistance(Metric):
    """The best known distance: the shortest that any of several attacks finds.

    All attacks are run on all samples; for each sample, the shortest
    perturbation that changes the decision counts. Like that of any attack, its
    length is an upper bound of the distance to the decision boundary, but a
    tighter one: a network may resist just the attack it was trained against.

    Arrays and numbers, for the norm p of the attacks: `rho<p>_best`, the
    relative size ||perturbation||_p / ||x||_p (Eq. 7); `l<p>_best`, the length
    in units of the inputs; and `rho<p>_best_fooled`. Array: the int
    `rho<p>_best_found_by`, the index of the best attack, or -1 if no attack
    changed the decision (then the perturbation is that of the first attack).
    Numbers: `rho<p>_best_by_<attack>`, the share of samples on which each
    attack is best, or the first of equally good ones.

    `RobustnessReport.robust_accuracy` derives the robust accuracy at any eps
    from these distances.

    Args:
        attacks_by_name: dict from names to untargeted attacks with a `norm`,
            which must be the same for all.
        prefix: prefix of all names, as in `Distance`.
        keep_perturbations: as in `Distance`.
        keep_classes: as in `Distance`.

    Raises:
        ValueError: if an attack is not such an attack, if norms differ, or if
            there is no attack.

    Example:
        >>> best = dd_keras.evaluation.BestDistance({
        ...     "deepfool": dd_keras.attacks.DeepFool(),
        ...     "ddn": dd_keras.attacks.DDN(steps=50),
        ... })
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, best, verbose=0
        ... )
        >>> sorted(report.summary())
        ['l2_best', 'rho2_best', 'rho2_best_by_ddn', 'rho2_best_by_deepfool',
         'rho2_best_fooled', 'samples']
    """

    def __init__(
        self,
        attacks_by_name: Mapping[str, Any],
        prefix: str = "",
        keep_perturbations: bool = False,
        keep_classes: bool = False,
    ):
        self._attacks: dict[str, Any] = {
            str(name): validate_attack(attack, "norm")
            for name, attack in attacks_by_name.items()
        }
        orders = {attack.norm for attack in self._attacks.values()}
        if len(orders) != 1:
            raise ValueError(
                "attacks_by_name: expected attacks of one norm; received the "
                f"norms {sorted(orders)}."
            )
        self.norm = orders.pop()
        self.prefix = str(prefix)
        self.keep_perturbations = bool(keep_perturbations)
        self.keep_classes = bool(keep_classes)
        self.name = f"{prefix}rho{self.norm:g}_best"
        self.distance_name = f"{prefix}l{self.norm:g}_best"

    @classmethod
    def standard(cls, norm: float = 2, bounds: tuple | None = None) -> Any:
        """DeepFool, DDN (in l_2 only) and targeted FAB, all within bounds.

        Args:
            norm: the order p, in [1, inf].
            bounds: (low, high) of valid inputs; None for no bounds.
        """
        chosen: dict[str, attacks.Attack] = {
            "deepfool": attacks.DeepFool(norm, bounds=bounds)
        }
        if norm == 2:
            chosen["ddn"] = attacks.DDN(bounds=bounds)
        chosen["fab"] = attacks.FAB(norm, bounds=bounds)
        return cls(chosen)

    @property
    def all_attacks(self) -> dict[str, attacks.Attack]:
        """The attacks by name."""
        return self._attacks

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        serialised = {
            name: keras.saving.serialize_keras_object(attack)
            for name, attack in self._attacks.items()
        }
        return {
            "attacks_by_name": serialised,
            "prefix": self.prefix,
            "keep_perturbations": self.keep_perturbations,
            "keep_classes": self.keep_classes,
        }

    @classmethod
    def from_config(cls, config: dict) -> "BestDistance":
        """The metric that `get_config` describes."""
        restored = {
            name: keras.saving.deserialize_keras_object(attack)
            for name, attack in config["attacks_by_name"].items()
        }
        return cls(**{**config, "attacks_by_name": restored})

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        best: tuple = ()
        for number, attack in enumerate(self._attacks.values()):
            after = tf.nest.flatten(best)
            with tf.control_dependencies(after):  # memory of one at a time
                found = attack.search(network, x, forward=forward)
            length = norms.sample_norm(found.perturbation, self.norm)
            length = tf.where(found.fooled, length, math.inf)
            new = (
                found.perturbation,
                length,
                tf.where(found.fooled, number, -1),
            )
            best = choose_rows(new[1] < best[1], new, best) if best else new
        perturbation, _, found_by = best
        arrays = {
            self.name: norms.rho(perturbation, x, self.norm),
            self.distance_name: norms.sample_norm(perturbation, self.norm),
            f"{self.name}_fooled": found_by >= 0,
            f"{self.name}_found_by": found_by,
        }
        if self.keep_perturbations:
            arrays[self.name + PERTURBATION] = perturbation
        if self.keep_classes:
            arrays[self.name + REACHED] = reached(network, x, perturbation)
        return arrays

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The means, the share fooled, and the share of each attack."""
        found_by = samples.values[f"{self.name}_found_by"]
        return {
            self.name: mean(samples.distances(self.name)),
            self.distance_name: mean(samples.distances(self.distance_name)),
            f"{self.name}_fooled": proportion(found_by >= 0),
            **{
                f"{self.name}_by_{name}": proportion(found_by == number)
                for number, name in enumerate(self._attacks)
            },
        }

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Warns if there are samples that no attack fooled."""
        return not_fooled(self.name, samples)

    def explanations(self) -> dict[str, Explanation]:
        """What each number means."""
        order = order_of(self.norm)
        names = ", ".join(self._attacks)
        return {
            self.name: Explanation(
                "The mean size of the shortest perturbation that any of "
                f"{names} finds to change the decision, over the size of the "
                f"input, both in {order}. The closest upper bound here of how "
                "far the decision boundary is.",
                True,
            ),
            self.distance_name: Explanation(
                f"The mean length, in {order} and in units of the inputs, of "
                f"the shortest perturbation that any of {names} finds.",
                True,
            ),
            f"{self.name}_fooled": Explanation(
                "The share of samples whose decision any of the attacks "
                "changed."
            ),
            **{
                f"{self.name}_by_{name}": Explanation(
                    f"The share of samples on which {name} found the shortest "
                    "perturbation of all, the first of equals."
                )
                for name in self._attacks
            },
        }
