"""Deep Defense (Yan, Guo, Zhang, NeurIPS 2018) as a Keras model."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import Attack, DeepFool, Forward, rows
from dd_keras.classifier import logits
from dd_keras.defenses import checks, implicit, layerwise
from dd_keras.defenses.split_penalty_model import SplitPenaltyModel
from dd_keras.utils import norms, validation

GRADIENTS = ("unrolled", "implicit")


@keras.saving.register_keras_serializable("dd_keras")
class DeepDefenseModel(SplitPenaltyModel):
    """Any Keras classifier, trained to resist adversarial perturbations.

    Each training step minimises (Eq. 6 of the paper)

        mean loss + lam * mean of [ exp(-c * rho) if correctly classified,
                                    exp(d * rho) otherwise ],

    where rho = ||perturbation||_p / ||x||_p (Eq. 7) is the relative size of
    the perturbation that DeepFool finds. `DefenseModel` describes what all
    defences share.

    `gradient="unrolled"` differentiates rho through all of DeepFool's
    iterations, as the paper does. `"implicit"` differentiates the distance to
    the boundary point that the attack found (implicit.py): one more forward
    and backward pass, and no second derivatives. So it supports layers that
    have none, and any attack that searches for the smallest perturbation.

    Sample and class weights also weight the regulariser. Besides the compiled
    metrics the logs hold `loss`, the objective above; `regularization`, the
    mean penalty, not multiplied by lam; and `rho2` (`rho1`, `rhoinf`, ... for
    other norms), the mean over all samples. In training, rho is that of the
    training attack; `val_rho2` is that of `evaluation_attack`.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        c: steepness for correctly classified samples, above 0. Larger values
            concentrate on the least robust samples. `"auto"`: `fit` chooses
            it before the first regularised step, see `choose_c`.
        d: steepness for misclassified samples, above 0.
        shrinkage, aggregation: the form of the penalty, and the samples it is
            taken over, see `SplitPenaltyModel`; by default the paper's.
        attack: the training attack, `DeepFool(max_iter=5)` by default. With
            the unrolled gradient, its `search` must be differentiable with
            respect to the network's weights (the paper's footnote 1); with
            the implicit one, any untargeted attack with a `norm` and no
            `eps` will do. Its `norm` is p.
        gradient: `"unrolled"` or `"implicit"`, see above.
        regularized_layers: names of layers of `model`. The regulariser's
            gradient reaches only their weights; all others are trained by
            the loss alone (Figure 4). None for all layers.
        evaluation_attack: as in `DefenseModel`, of the norm of `attack`.
        batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> model = dd_keras.DeepDefenseModel(classifier, lam=1.0, c="auto")
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=3, verbose=0)
        >>> rho2 = history.history["rho2"]
        >>> rho2[-1] > rho2[0]  # more robust with each epoch
        True
        >>> classifier.save("robust.keras")  # it shares the model's weights
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        lam: float = 15.0,
        c: float | str = 25.0,
        d: float = 5.0,
        attack: Attack | None = None,
        gradient: str = "unrolled",
        regularized_layers: Sequence[str | keras.Layer] | None = None,
        evaluation_attack: Attack | None = None,
        **kwargs: Any,
    ):
        attack = attack or DeepFool(max_iter=5)
        norm = getattr(attack, "norm", 2.0)
        evaluation_attack = evaluation_attack or DeepFool(norm)
        checks.require_norm("evaluation_attack", evaluation_attack, norm)
        validation.validate_choice("gradient", gradient, GRADIENTS)
        if gradient == "implicit":
            checks.require_distance("attack", attack)
        super().__init__(
            model,
            lam=lam,
            c=c,
            d=d,
            evaluation_attack=evaluation_attack,
            needs_second_derivatives=gradient == "unrolled",
            **kwargs,
        )
        self.gradient = gradient
        self._attack = attack
        self.regularized_layers = layerwise.validate_layers(
            model, regularized_layers
        )

    @property
    def attack(self) -> Attack:
        """The training attack; it may be replaced by one of the same norm."""
        return self._attack

    @attack.setter
    def attack(self, value: Attack) -> None:
        checks.require_norm("attack", value, self.norm)
        if self.gradient == "implicit":
            checks.require_distance("attack", value)
        self._attack = value
        self._retrace()

    def shares_forward_pass(self) -> bool:
        """Whether the training attack can reuse the loss' forward pass."""
        # On some layers alone, all others must get the loss' own gradient.
        return self.regularizes and self.regularized_layers is None

    def mean_penalty(
        self,
        x: tf.Tensor,
        labels: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The mean penalty of Eq. 6, a scalar, and rho of Eq. 7, (B,)."""
        if self.regularized_layers is not None:
            forward = None  # the loss' pass is open to all weights
        with layerwise.gradient_only_to(self.model, self.regularized_layers):
            # Eq. 7: rho = ||perturbation||_p / ||x||_p, by each sample.
            found, rho = self._attack_batch(self.attack, x, labels, forward)
            # Eq. 6: exp(-c * rho) if correctly classified, else exp(d * rho).
            correct = found.predictions == labels
            if self.gradient == "implicit":
                counts = self.counted(correct, rho, labels)
                rho = self._implicit_rho(x, labels, found, rho, counts)
        return self.penalize(correct, rho, labels, sample_weight), rho

    def _implicit_rho(self, x, labels, found, rho, counts):
        """Rho of Eq. 7, whose gradient is that of the distance itself.

        Of samples that do not count it has none, and costs nothing.
        """
        x = logits.cast_inputs(self.model, x)
        chosen = rows.active_rows(counts)
        x, labels, found = rows.gather_rows((x, labels, found), chosen)
        length = implicit.distance(
            self.logits_model(), x, labels, found, self.attack
        )
        of_chosen = tf.math.divide_no_nan(
            length, norms.sample_norm(x, self.norm)
        )
        return rows.scatter_rows(tf.stop_gradient(rho), chosen, of_chosen)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "gradient": self.gradient,
            "attack": keras.saving.serialize_keras_object(self.attack),
            "regularized_layers": self.regularized_layers,
        }
