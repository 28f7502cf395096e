"""The regulariser of Deep Defense (Yan, Guo, Zhang, NeurIPS 2018), Eq. 6."""

from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops
from numpy.typing import ArrayLike

from dd_keras.defenses import steepness
from dd_keras.utils import validation

# Largest exponent. A misclassified sample of a degenerate network can be any
# distance away from its class; exp of that would overflow and end the
# training. Above it the penalty is constant, and its gradient zero.
MAX_EXPONENT = 30.0


@keras.saving.register_keras_serializable("dd_keras")
class SplitExponential(keras.losses.Loss):
    """Penalises small perturbations of correctly classified samples.

    For each sample, with rho = ||perturbation|| / ||x||:

        exp(-c * rho)   if correctly classified,
        exp( d * rho)   if misclassified.

    Minimising it pushes the decision boundary away from correctly classified
    samples, the nearest ones most, and towards misclassified ones, the
    farthest ones most. `y_true` is 1 where a sample is correctly classified,
    else 0; `y_pred` is rho. Both have shape (B,). Exponents are cut at 30.

    Args:
        c: steepness for correctly classified samples, above 0; or `"auto"`:
            not chosen yet, see `with_c_for`.
        d: steepness for misclassified samples, above 0.
        reduction, name, dtype: as for `keras.losses.Loss`.

    Raises:
        ValueError: if `c` or `d` is not above 0 and finite; by a call, if
            `c` is `"auto"` still.

    Example:
        penalty = dd_keras.SplitExponential(c=25.0, d=5.0)
        assert penalty([1.0, 0.0], [0.0, 0.0]) == 1.0
    """

    def __init__(
        self,
        c: float | str = 25.0,
        d: float = 5.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "split_exponential",
        dtype: str | keras.DTypePolicy | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if c != steepness.AUTO:
            c = validation.validate_number("c", c, above=0)
        self.c: Any = c
        self.d = validation.validate_number("d", d, above=0)

    def call(self, y_true: ArrayLike, y_pred: ArrayLike) -> tf.Tensor:
        """The penalty of each sample, (B,)."""
        if isinstance(self.c, str):
            raise ValueError(
                "c: expected a number by now; received 'auto', which `fit` "
                "chooses from its inputs. Before it, call `choose_c(x)`."
            )
        y_true = ops.convert_to_tensor(y_true)
        y_pred = ops.convert_to_tensor(y_pred)
        exponent = ops.where(y_true > 0.5, -self.c * y_pred, self.d * y_pred)
        return ops.exp(ops.minimum(exponent, MAX_EXPONENT))

    def with_c_for(self, rho: ArrayLike) -> Self:
        """The same with the `c` that fits a classifier: 1 / median rho.

        Args:
            rho: (N,), relative distances of samples from its boundary (Eq. 7),
                before it is defended.

        Raises:
            ValueError: if their median is not above 0 and finite.
        """
        config = {**self.get_config(), "c": steepness.choose(rho)}
        return self.from_config(config)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "c": self.c, "d": self.d}
