"""Base of defences that penalise distances, as Eq. 6 of the paper does."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras.classifier import logits
from dd_keras.defenses import aggregation as aggregations
from dd_keras.defenses import steepness
from dd_keras.defenses.regularized import RegularizedDefenseModel
from dd_keras.defenses.split_penalty import SHRINKAGES
from dd_keras.utils import validation


class SplitPenaltyModel(RegularizedDefenseModel):
    """Base of defences that penalise rho, with c and d that may change.

    A subclass implements `mean_penalty`, which calls `penalize`, and has an
    `attack`, from whose rho `choose_c` computes c.

    Args:
        model: a built Keras classifier, see `logits_model`.
        c: steepness for correctly classified samples, above 0, or `"auto"`.
        d: steepness for misclassified samples, above 0.
        shrinkage: the penalty, `"exponential"` (Eq. 6), `"inverse"`,
            `"hinge"` or `"linear"`, see split_penalty.py.
        aggregation: `"mean"`: over all samples; or `"min"`: for each class in
            the batch, or in a replica's part of it, only the sample nearest
            to the boundary, see aggregation.py. Either way the sum is divided
            by the number of samples in the batch.
        kwargs: see `RegularizedDefenseModel`.

    Raises:
        TypeError, ValueError: as `RegularizedDefenseModel`, or if an argument
            is outside of its range.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        c: float | str,
        d: float,
        shrinkage: str = "exponential",
        aggregation: str = "mean",
        **kwargs: Any,
    ):
        validation.validate_choice("shrinkage", shrinkage, SHRINKAGES)
        validation.validate_choice(
            "aggregation", aggregation, aggregations.AGGREGATIONS
        )
        super().__init__(model, **kwargs)
        self.shrinkage = shrinkage
        self.aggregation = aggregation
        self._c_was_auto = False
        self._set_penalty(c, d)

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

    def choose_c(self, x: object, batch_size: int | None = None) -> float:
        """Sets `c` to 1 / median rho, by the classifier's current weights.

        rho is that of `attack`, from the predicted classes, on the first four
        batches of a data set, or on as many samples spread evenly over arrays.

        Args:
            x: inputs, or a data set, as for `fit`.
            batch_size: samples per batch of arrays; None: 32, as in `fit`.

        Returns:
            The new `c`.

        Raises:
            TypeError: if `x` can be iterated only once.
            ValueError: if the median rho is 0 or not finite.
        """
        batches = steepness.first_batches(x, batch_size)
        self.c = steepness.measure(self, batches)
        return self.c

    @property
    def chosen(self) -> dict[str, float | str]:
        """Settings that `fit` chose; a resumed training restores them."""
        return {"c": self.c} if self._c_was_auto else {}

    def own_callbacks(
        self, x: object, batch_size: int | None
    ) -> list[keras.callbacks.Callback]:
        """One that chooses `c` if it is `"auto"`, and warns of a bad one."""
        return [steepness.SteepnessCallback(self, x, batch_size)]

    def penalize(
        self,
        correct: tf.Tensor,
        rho: tf.Tensor,
        labels: tf.Tensor,
        sample_weight: tf.Tensor | None,
    ) -> tf.Tensor:
        """The penalty of a batch, a scalar.

        Args:
            correct: bool, (B,): whether samples are correctly classified.
            rho: (B,): their distances.
            labels: int32, (B,).
            sample_weight: (B,), or None.
        """
        if self.aggregation == "min":
            weight = tf.cast(self.counted(correct, rho, labels), rho.dtype)
            if sample_weight is not None:
                weight *= tf.cast(sample_weight, rho.dtype)
            sample_weight = weight
        return self.penalty(correct, rho, sample_weight)

    def counted(
        self, correct: tf.Tensor, rho: tf.Tensor, labels: tf.Tensor
    ) -> tf.Tensor:
        """Which samples the penalty is taken over, (B,) bool."""
        if self.aggregation == "mean":
            return tf.ones_like(correct)
        return aggregations.weakest_of_each_class(
            rho, labels, correct, logits.num_classes(self.model)
        )

    def _set_penalty(self, c, d):
        """Replaces the penalty."""
        self.penalty = SHRINKAGES[self.shrinkage](
            c, d, dtype=logits.working_dtype(self.model)
        )
        self._retrace()

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "c": self.c,
            "d": self.d,
            "shrinkage": self.shrinkage,
            "aggregation": self.aggregation,
        }
