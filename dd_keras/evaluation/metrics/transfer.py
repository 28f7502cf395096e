"""Accuracy on adversarial inputs that were made for another classifier."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.classifier import logits
from dd_keras.evaluation.metrics.base import (
    Explanation,
    Metric,
    Samples,
    order_of,
    validate_attack,
)
from dd_keras.evaluation.statistics import Estimate, proportion
from dd_keras.utils import config


@keras.saving.register_keras_serializable("dd_keras")
class AccuracyUnderTransfer(Metric):
    """Accuracy on adversarial examples made for another classifier.

    If the evaluation is sound, examples made for the undefended classifier
    fool the defended one less often than examples made for itself. Array:
    `<name>_fooled`. Number: `<name>_accuracy`.

    Args:
        source: the classifier to attack, a built `keras.Model` with the same
            inputs and classes, usually the one before the defence. In a metric
            read from a file, a str, the digest of its weights; such a metric
            cannot measure.
        attack: an untargeted attack with an `eps` and a `norm`.
        name: name of the metric.

    Raises:
        ValueError: if `attack` is not such an attack.

    Example:
        >>> defended = keras.models.clone_model(classifier)
        >>> defended.set_weights([0.9 * w for w in classifier.get_weights()])
        >>> pgd = dd_keras.attacks.PGD(eps=0.1, steps=10, bounds=(0, 1))
        >>> transfer = dd_keras.evaluation.AccuracyUnderTransfer(
        ...     source=classifier, attack=pgd
        ... )
        >>> report = dd_keras.evaluate_robustness(
        ...     defended, x_test, y_test, ["accuracy", transfer], verbose=0
        ... )
        >>> report.summary()["transfer_accuracy"] < report.summary()["accuracy"]
        True
    """

    def __init__(
        self,
        source: keras.Model | str,
        attack: Any,
        name: str = "transfer",
    ):
        self.attack = validate_attack(attack, "eps", "norm")
        self.source, self.name = source, name
        self._digest = (
            source
            if isinstance(source, str)
            else config.digest_of_arrays(source.weights)
        )

    def get_config(self) -> dict:
        """The constructor's arguments, the source's weights as a digest."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {"source": self._digest, "attack": attack, "name": self.name}

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks the source from the classes that the network predicts."""
        if isinstance(self.source, str):
            raise ValueError(
                "source: expected a classifier to attack; received the digest "
                "of one. Make the metric anew."
            )
        y = decisions.predicted_class(forward.logits)
        source = logits.logits_model(self.source)
        found = self.attack.search(source, x, y)
        fooled = decisions.is_fooled(
            attacks.inference_form(network)(x + found.perturbation), y
        )
        return {f"{self.name}_fooled": fooled}

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """`<name>_accuracy`."""
        correct = samples.correct_under(f"{self.name}_fooled")
        return {f"{self.name}_accuracy": proportion(correct)}

    def explanations(self) -> dict[str, Explanation]:
        """What `<name>_accuracy` means."""
        attack = self.attack
        return {
            f"{self.name}_accuracy": Explanation(
                f"Accuracy on what {type(attack).__name__}, "
                f"{order_of(attack.norm)} up to {attack.eps:g}, finds on "
                "another classifier. It should not be below that of a direct "
                "attack.",
                True,
            )
        }
