"""Deep Defense (Yan, Guo, Zhang, NeurIPS 2018) as a Keras model."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras import distribution
from dd_keras.attacks import Attack, DeepFool, Forward
from dd_keras.classifier import logits
from dd_keras.defenses import layerwise, steepness
from dd_keras.defenses.regularized import RegularizedDefenseModel
from dd_keras.defenses.split_exponential import SplitExponential
from dd_keras.utils import norms


@keras.saving.register_keras_serializable("dd_keras")
class DeepDefenseModel(RegularizedDefenseModel):
    """Any Keras classifier, trained to resist adversarial perturbations.

    Each training step minimises (Eq. 6 of the paper)

        mean loss + lam * mean of [ exp(-c * rho) if correctly classified,
                                    exp(d * rho) otherwise ],

    where rho = ||perturbation||_p / ||x||_p is the relative size of the
    perturbation that DeepFool finds, differentiated through all of its
    iterations. See `DefenseModel` for what else there is to a defence.

    Sample and class weights also weigh the regulariser. The logs hold, beside
    the compiled metrics: `loss`, the objective above; `regularization`, its
    mean penalty, before lam; and `rho2` (`rho1`, `rhoinf`, ... for other
    norms). In training, rho is that of the training attack, and its mean
    leaves out nothing; as `val_rho2` it is that of `evaluation_attack`.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        c: steepness for correctly classified samples, above 0. Larger values
            work on the least robust samples only. `"auto"`: `fit` chooses it
            before the first step that is regularised, see `choose_c`.
        d: steepness for misclassified samples, above 0.
        attack: the differentiable attack; `DeepFool(max_iter=5)` by default.
            Any `attacks.Attack` serves whose `search` is differentiable by
            the network's weights (the paper's footnote 1). Its `norm` is p.
        regularized_layers: names of layers of `model`: the regulariser's
            gradient reaches only their weights, all others are trained by
            the loss alone (Figure 4). None for all layers.
        evaluation_attack: as in `DefenseModel`, of the norm of `attack`.
        batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        model = dd_keras.DeepDefenseModel(classifier, lam=15.0, c=25.0, d=5.0)
        model.compile(
            "sgd", "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(x_train, y_train, validation_data=(x_test, y_test))
        classifier.save("robust.keras")  # the weights are shared
    """

    needs_second_derivatives = True

    def __init__(
        self,
        model: keras.Model,
        *,
        lam: float = 15.0,
        c: float | str = 25.0,
        d: float = 5.0,
        attack: Attack | None = None,
        regularized_layers: Sequence[str | keras.Layer] | None = None,
        evaluation_attack: Attack | None = None,
        **kwargs: Any,
    ):
        attack = attack or DeepFool(max_iter=5)
        norm = getattr(attack, "norm", 2.0)
        evaluation_attack = evaluation_attack or DeepFool(norm)
        if getattr(evaluation_attack, "norm", norm) != norm:
            raise ValueError(
                f"evaluation_attack: expected one of the norm of attack, "
                f"{norm:g}; received {evaluation_attack!r}."
            )
        super().__init__(
            model, lam=lam, evaluation_attack=evaluation_attack, **kwargs
        )
        self.penalty = SplitExponential(c, d, dtype=logits.working_dtype(model))
        self._c_was_auto = False
        self._attack = attack
        self.regularized_layers = layerwise.validate_layers(
            model, regularized_layers
        )

    @property
    def c(self) -> float | str:
        """Steepness for correctly classified samples; may be changed."""
        return self.penalty.c

    @c.setter
    def c(self, value: float | str) -> None:
        self._c_was_auto |= self.c == steepness.AUTO
        self._set_penalty(value, self.d)

    @property
    def d(self) -> float:
        """Steepness for misclassified samples; may be changed."""
        return self.penalty.d

    @d.setter
    def d(self, value: float) -> None:
        self._set_penalty(self.c, value)

    @property
    def attack(self) -> Attack:
        """The attack in training; one of the same norm may replace it."""
        return self._attack

    @attack.setter
    def attack(self, value: Attack) -> None:
        if getattr(value, "norm", self.norm) != self.norm:
            raise ValueError(
                f"attack: expected one of the norm {self.norm:g}, as before; "
                f"received {value!r}."
            )
        self._attack = value
        self._retrace()

    def choose_c(self, x: object, batch_size: int | None = None) -> float:
        """Sets `c` to 1 / median rho of the classifier as it is now.

        rho is that of `attack`, from the predicted classes, on the first four
        batches of a data set, or on as many samples taken evenly from arrays.

        Args:
            x: inputs, or a data set, as for `fit`.
            batch_size: samples a batch, of arrays; None: 32, as in `fit`.

        Returns:
            `c`.

        Raises:
            TypeError: if `x` can be gone through only once.
            ValueError: if the median rho is 0 or not finite.
        """
        return self._choose_c(steepness.first_batches(x, batch_size))

    def _choose_c(self, batches):
        rho = [self._rho_of(self._batch(batch)[0]) for batch in batches]
        chosen = steepness.choose(np.concatenate(rho or [[]]))
        self.c = distribution.from_chief(chosen)
        return self.c

    def _rho_of(self, x):
        """Eq. 7 under the training attack, from the predicted classes, (B,)."""
        x = logits.cast_inputs(self.model, x)
        perturbation = self.attack.perturb(self.logits_model(), x)
        return norms.rho(perturbation, x, self.norm)

    @property
    def chosen(self) -> dict[str, float | str]:
        """Settings that `fit` chose; a resumed training takes them over."""
        return {"c": self.c} if self._c_was_auto else {}

    def own_callbacks(
        self, x: object, batch_size: int | None
    ) -> list[keras.callbacks.Callback]:
        """One that chooses `c` where it is `"auto"`, and warns of bad ones."""
        batches: Iterator = iter(())
        if self.c == steepness.AUTO:
            batches = steepness.first_batches(x, batch_size)
        choose = functools.partial(self._choose_c, batches)
        return [steepness.SteepnessCallback(self.rho_tracker.name, choose)]

    def _set_penalty(self, c, d):
        """Replaces the penalty of Eq. 6."""
        dtype = logits.working_dtype(self.model)
        self.penalty = SplitExponential(c, d, dtype=dtype)
        self._retrace()

    def shares_forward_pass(self) -> bool:
        """Whether the attack in training can use the loss' forward pass."""
        # On some layers alone, all others must get the loss' own gradient.
        return self.regularizes and self.regularized_layers is None

    def regularizer(
        self,
        x: tf.Tensor,
        labels: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """The second term of Eq. 6, a scalar; and rho of Eq. 7, (B,)."""
        samples = tf.size(labels)
        if not self.regularizes:
            self.regularization_tracker.update_state(0.0, samples)
            return None, None
        if self.regularized_layers is not None:
            forward = None  # the loss' pass is open to all weights
        with layerwise.gradient_only_to(self.model, self.regularized_layers):
            # Eq. 7: rho = ||perturbation||_p / ||x||_p, by each sample.
            found, rho = self._attack_batch(self.attack, x, labels, forward)
        # Eq. 6: exp(-c * rho) if correctly classified, else exp(d * rho).
        correct = found.predictions == labels
        penalty = self.penalty(correct, rho, sample_weight)
        self.regularization_tracker.update_state(
            self.unscaled(penalty), samples
        )
        return self.lam_in_use(penalty.dtype) * penalty, rho

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "c": self.c,
            "d": self.d,
            "attack": keras.saving.serialize_keras_object(self.attack),
            "regularized_layers": self.regularized_layers,
        }
