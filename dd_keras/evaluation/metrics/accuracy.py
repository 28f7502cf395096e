"""Accuracy, without attack and under attacks of a given size.

FGSM at several sizes: `fgsm.EpsSweep`. Attacks made for another classifier:
`transfer.AccuracyUnderTransfer`.
"""

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation.metrics.base import (
    PERTURBATION,
    REACHED,
    SUSPICIOUS,
    Explanation,
    Metric,
    Samples,
    order_of,
    reached,
    validate_attack,
)
from dd_keras.evaluation.statistics import Estimate, proportion


@keras.saving.register_keras_serializable("dd_keras")
class Accuracy(Metric):
    """The share of samples that are correctly classified without an attack.

    Example:
        >>> metric = dd_keras.evaluation.Accuracy()  # or "accuracy"
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, metric, verbose=0
        ... )
        >>> report.summary()["accuracy"] > 0.9
        True
    """

    name = "accuracy"

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """`accuracy`, over all samples."""
        return {"accuracy": proportion(samples.correct)}

    def explanations(self) -> dict[str, Explanation]:
        """What `accuracy` means."""
        text = "The share of samples that are correctly classified, unattacked."
        return {"accuracy": Explanation(text, True)}


# Up to 0.1 its name was AccuracyUnder, and so it stands in saved reports.
@keras.saving.register_keras_serializable("dd_keras", "AccuracyUnder")
class AccuracyUnderAttack(Metric):
    """Accuracy under an attack of a given size, PGD or AutoAttack.

    Number: `<name>_accuracy`. Arrays: `<name>_fooled`, and `<name>_weaker`,
    whether a single step along the gradient or random noise of the same size
    fools the sample. If the attack fools fewer samples than these, a
    reliability warning says so.

    With an `AutoAttack` also the array `<name>_found_by`, int: the index in
    its `attack_names` of the attack that fooled the sample, or -1; and the
    numbers `<name>_accuracy_after_<attack>`, the accuracy after each of them.

    Args:
        attack: an untargeted attack with an `eps` and a `norm` of 2 or inf.
        name: name of the metric; by default the class name of the attack, in
            lower case.
        keep_perturbations: whether to keep them, as `<name>_perturbation`.
        keep_classes: whether to keep the classes of the perturbed inputs, as
            `<name>_reached`, int (N,).

    Raises:
        ValueError: if `attack` is not such an attack.

    Example:
        >>> pgd = dd_keras.attacks.PGD(eps=0.1, steps=10, bounds=(0, 1))
        >>> metric = dd_keras.evaluation.AccuracyUnderAttack(pgd, name="pgd10")
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, ["accuracy", metric], verbose=0
        ... )
        >>> report.summary()["pgd10_accuracy"] < report.summary()["accuracy"]
        True
    """

    def __init__(
        self,
        attack: attacks.Attack,
        name: str | None = None,
        keep_perturbations: bool = False,
        keep_classes: bool = False,
    ):
        self.attack = validate_attack(attack, "eps", "norm")
        self.keep_perturbations = bool(keep_perturbations)
        self.keep_classes = bool(keep_classes)
        self.name = name or type(attack).__name__.lower()

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {
            "attack": attack,
            "name": self.name,
            "keep_perturbations": self.keep_perturbations,
            "keep_classes": self.keep_classes,
        }

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        size = {
            "eps": self.attack.eps,
            "norm": self.attack.norm,
            "bounds": self.attack.bounds,
        }
        step = attacks.PGD(
            **size, steps=1, step_size=self.attack.eps, random_start=False
        ).search(network, x, forward=forward)
        noise = attacks.RandomNoise(**size).search(network, x, forward=forward)
        arrays = {
            f"{self.name}_fooled": found.fooled,
            f"{self.name}_weaker": step.fooled | noise.fooled,
        }
        if isinstance(found, attacks.AutoAttackResult):
            arrays[f"{self.name}_found_by"] = found.found_by
        if self.keep_perturbations:
            arrays[self.name + PERTURBATION] = found.perturbation
        if self.keep_classes:
            arrays[self.name + REACHED] = reached(
                network, x, found.perturbation
            )
        return arrays

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """`<name>_accuracy`; of an `AutoAttack` also that after each attack."""
        correct = samples.correct_under(f"{self.name}_fooled")
        return {
            f"{self.name}_accuracy": proportion(correct),
            **self._after_each(samples),
        }

    def _after_each(self, samples):
        """The accuracy that is left after each attack of an `AutoAttack`."""
        found_by = samples.values.get(f"{self.name}_found_by")
        if found_by is None:
            return {}
        counted = samples.counted
        correct = samples.correct[counted]
        numbers = {}
        for number, name in enumerate(self.attack.attack_names):
            correct = correct & (found_by[counted] != number)
            numbers[f"{self.name}_accuracy_after_{name}"] = proportion(correct)
        return numbers

    def explanations(self) -> dict[str, Explanation]:
        """What each number means."""
        attack = self.attack
        kind = type(attack).__name__
        size = f"{order_of(attack.norm)} up to {attack.eps:g}"
        found = {
            f"{self.name}_accuracy": Explanation(
                f"The share of samples that are correctly classified and stay "
                f"so under {kind}, perturbations of {size} in units of the "
                "inputs.",
                True,
            )
        }
        for name in getattr(attack, "attack_names", ()):
            found[f"{self.name}_accuracy_after_{name}"] = Explanation(
                f"What of that accuracy was left once {name} and the attacks "
                f"before it had been run; the last is that of {kind}.",
                True,
            )
        return found

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Warns if a weaker attack fools more, and of masked gradients."""
        found_by = samples.values.get(f"{self.name}_found_by")
        if found_by is None:
            return self._weaker_found_more(samples)
        return self._weaker_found_more(samples) + [
            f"{self.name}: {warning}"
            for warning in self.attack.masking_warnings(found_by)
        ]

    def _weaker_found_more(self, samples):
        fooled, weaker = (
            int(np.sum(samples.values[f"{self.name}_{which}"]))
            for which in ("fooled", "weaker")
        )
        percent = 100 / len(samples.correct)
        # Not sample by sample: sound attacks miss some that others find.
        if weaker - fooled <= SUSPICIOUS * len(samples.correct):
            return []
        return [
            f"{self.name}: a single step or random noise of the same size "
            f"fools {percent * weaker:.1f} % of the samples, the attack only "
            f"{percent * fooled:.1f} %. The gradients mislead it (gradient "
            "masking), and the classifier is less robust than this number "
            "says."
        ]
