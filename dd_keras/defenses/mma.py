"""Max-margin adversarial training (MMA; Ding et al., ICLR 2020)."""

import math
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import Attack, DeepFool
from dd_keras.classifier import logits
from dd_keras.defenses import checks
from dd_keras.defenses.adversarial_training import AdversarialTrainingModel
from dd_keras.utils import norms, validation


@keras.saving.register_keras_serializable("dd_keras")
class MMAModel(AdversarialTrainingModel):
    """Any Keras classifier, trained at the nearest points of the boundary.

    Each training step minimises (Ding et al., section 2.4 and Algorithm 1)

        alpha * mean of loss(x, y) + (1 - alpha) * mean of
            [ loss(x*, y) if correctly classified and ||x* - x||_p < d_max,
              0           if correctly classified and farther than that,
              loss(x, y)  if misclassified ],

    where x* is the point nearest to x on the decision boundary, as found by
    `adversary`. Lowering the loss there moves the boundary away, up to
    `d_max`. MMA is the closest relative of Deep Defense, which penalises the
    distance itself. `DefenseModel` describes what all defences share.

    The authors search for x* by PGD within a sample's previous distance,
    followed by a bisection. Here any attack that searches for the smallest
    perturbation will do. A correctly classified sample that the attack does
    not fool counts as farther away than `d_max`.

    Args:
        model: a built Keras classifier, see `logits_model`.
        d_max: distance beyond which correctly classified samples are ignored,
            above 0, in units of the inputs. The authors' values for pixels in
            [0, 1]: on MNIST 2 to 6 in l_2 and 0.45 in l_inf; on CIFAR-10 1 to
            3 in l_2 and 12/255 to 32/255 in l_inf.
        adversary: an untargeted attack with a `norm` and no `eps`, by default
            `DeepFool(max_iter=10)`. Its `norm` is p.
        alpha: weight of the clean loss, in [0, 1]; the authors' is 1/3.
        evaluation_attack: as in `DefenseModel`, of the norm of `adversary`.
        batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `adversary` is not an untargeted attack, or `model` not
            a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> model = dd_keras.MMAModel(classifier, d_max=2.0)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=3, verbose=0)
        >>> loss = history.history["loss"]
        >>> loss[-1] < loss[0]
        True
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        d_max: float,
        adversary: Attack | None = None,
        alpha: float = 1 / 3,
        evaluation_attack: Attack | None = None,
        **kwargs: Any,
    ):
        adversary = adversary or DeepFool(max_iter=10)
        norm = checks.require_distance("adversary", adversary)
        evaluation_attack = evaluation_attack or DeepFool(norm)
        checks.require_norm("evaluation_attack", evaluation_attack, norm)
        super().__init__(
            model,
            adversary=adversary,
            alpha=alpha,
            evaluation_attack=evaluation_attack,
            **kwargs,
        )
        self.d_max = validation.validate_number("d_max", d_max, above=0)

    def _adversarial(self, x, labels, forward, training):
        """What moves a batch, (B, ...), and the samples' weights, (B,)."""
        adversary = self._adversary_of_step(self.adversary, training)
        found, _ = self._attack_batch(adversary, x, labels, forward)
        correct = found.predictions == labels
        # DeepFool moves misclassified samples as well, to their label.
        moves = norms.expand_like(correct, found.perturbation)
        perturbation = tf.where(
            moves, found.perturbation, tf.zeros_like(found.perturbation)
        )
        distance = tf.where(
            found.fooled,
            norms.sample_norm(perturbation, self.norm),
            math.inf,
        )
        counts = ~correct | (distance < self.d_max)
        return perturbation, tf.cast(counts, logits.working_dtype(self.model))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "d_max": self.d_max}
