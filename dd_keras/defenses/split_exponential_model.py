"""Base of defences whose penalty is the split exponential of Eq. 6."""

from typing import Any

import keras

from dd_keras.classifier import logits
from dd_keras.defenses import steepness
from dd_keras.defenses.regularized import RegularizedDefenseModel
from dd_keras.defenses.split_exponential import SplitExponential


class SplitExponentialModel(RegularizedDefenseModel):
    """A defence with the penalty of Eq. 6, whose c and d may change.

    A subclass gives `regularizer`, which calls `penalty`, and has an `attack`,
    by whose rho `choose_c` goes.

    Args:
        model: a built Keras classifier, see `logits_model`.
        c: steepness for correctly classified samples, above 0, or `"auto"`.
        d: steepness for misclassified samples, above 0.
        kwargs: see `RegularizedDefenseModel`.

    Raises:
        TypeError, ValueError: as `RegularizedDefenseModel`, or if `c` or `d`
            is outside of its range.
    """

    def __init__(
        self, model: keras.Model, *, c: float | str, d: float, **kwargs: Any
    ):
        super().__init__(model, **kwargs)
        self.penalty = SplitExponential(c, d, dtype=logits.working_dtype(model))
        self._c_was_auto = False

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
        batches = steepness.first_batches(x, batch_size)
        self.c = steepness.measure(self, batches)
        return self.c

    @property
    def chosen(self) -> dict[str, float | str]:
        """Settings that `fit` chose; a resumed training takes them over."""
        return {"c": self.c} if self._c_was_auto else {}

    def own_callbacks(
        self, x: object, batch_size: int | None
    ) -> list[keras.callbacks.Callback]:
        """One that chooses `c` where it is `"auto"`, and warns of bad ones."""
        return [steepness.SteepnessCallback(self, x, batch_size)]

    def _set_penalty(self, c, d):
        """Replaces the penalty of Eq. 6."""
        dtype = logits.working_dtype(self.model)
        self.penalty = SplitExponential(c, d, dtype=dtype)
        self._retrace()

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "c": self.c, "d": self.d}
