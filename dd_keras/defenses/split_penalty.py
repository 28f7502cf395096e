"""Penalties of a distance, by whether the sample is correctly classified.

`SplitExponential` is that of the Deep Defense paper (Eq. 6). The other three
are those of the authors' later work, Adversarial Margin Maximization Networks
(Yan, Guo, Zhang, TPAMI 2019), which calls them shrinkage functions.
"""

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
# Largest d * rho of `SplitInverse`, whose pole is at 1; also constant above.
_MAX_SHARE = 0.98


class SplitPenalty(keras.losses.Loss):
    """Base of penalties of c * rho or, if misclassified, of d * rho.

    Minimising the penalty pushes the decision boundary away from correctly
    classified samples, and towards misclassified ones. `y_true` is 1 where a
    sample is correctly classified, else 0; `y_pred` is rho. Both have shape
    (B,). A subclass implements `of_correct` and `of_misclassified`.

    Args:
        c: steepness for correctly classified samples, above 0; or `"auto"`:
            not chosen yet, see `with_c_for`.
        d: steepness for misclassified samples, above 0.
        reduction, name, dtype: as for `keras.losses.Loss`.

    Raises:
        ValueError: if `c` or `d` is not above 0 and finite; when called, if
            `c` is still `"auto"`.
    """

    NAME = "split_penalty"

    def __init__(
        self,
        c: float | str = 25.0,
        d: float = 5.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: str | keras.DTypePolicy | None = None,
    ):
        super().__init__(
            name=name or self.NAME, reduction=reduction, dtype=dtype
        )
        if c != steepness.AUTO:
            c = validation.validate_number("c", c, above=0)
        self.c: Any = c
        self.d = validation.validate_number("d", d, above=0)

    def of_correct(self, scaled: tf.Tensor) -> tf.Tensor:
        """The penalty of correctly classified samples, (B,), by c * rho."""
        raise NotImplementedError

    def of_misclassified(self, scaled: tf.Tensor) -> tf.Tensor:
        """The penalty of misclassified samples, (B,), by d * rho."""
        raise NotImplementedError

    def call(self, y_true: ArrayLike, y_pred: ArrayLike) -> tf.Tensor:
        """The penalty of each sample, (B,)."""
        if isinstance(self.c, str):
            raise ValueError(
                "c: expected a number by now; received 'auto', which `fit` "
                "chooses from its inputs. Before it, call `choose_c(x)`."
            )
        y_true = ops.convert_to_tensor(y_true)
        y_pred = ops.convert_to_tensor(y_pred)
        return ops.where(
            y_true > 0.5,
            self.of_correct(self.c * y_pred),
            self.of_misclassified(self.d * y_pred),
        )

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


@keras.saving.register_keras_serializable("dd_keras")
class SplitExponential(SplitPenalty):
    """Penalises small perturbations of correctly classified samples (Eq. 6).

    For each sample, with rho = ||perturbation|| / ||x||:

        exp(-c * rho)   if correctly classified,
        exp( d * rho)   if misclassified.

    Minimising it pushes the decision boundary away from correctly classified
    samples, most from the nearest, and towards misclassified ones, most
    towards the farthest. `y_true` is 1 where a sample is correctly
    classified, else 0; `y_pred` is rho. Both have shape (B,). Exponents are
    clipped at 30.

    Args:
        c: steepness for correctly classified samples, above 0; or `"auto"`:
            not chosen yet, see `with_c_for`.
        d: steepness for misclassified samples, above 0.
        reduction, name, dtype: as for `keras.losses.Loss`.

    Raises:
        ValueError: if `c` or `d` is not above 0 and finite; when called, if
            `c` is still `"auto"`.

    Example:
        >>> penalty = dd_keras.SplitExponential(c=25.0, d=5.0, reduction=None)
        >>> correct, rho = [1.0, 1.0, 0.0], [0.0, 0.2, 0.2]
        >>> print(np.round(penalty(correct, rho), 3))
        [1.    0.007 2.718]
    """

    NAME = "split_exponential"

    def of_correct(self, scaled: tf.Tensor) -> tf.Tensor:
        """exp(-c * rho)."""
        return ops.exp(ops.minimum(-scaled, MAX_EXPONENT))

    def of_misclassified(self, scaled: tf.Tensor) -> tf.Tensor:
        """exp(d * rho)."""
        return ops.exp(ops.minimum(scaled, MAX_EXPONENT))


@keras.saving.register_keras_serializable("dd_keras")
class SplitInverse(SplitPenalty):
    """1 / (1 + c * rho) if correctly classified, else 1 / (1 - d * rho).

    It decreases more slowly than the exponential. Above d * rho = 0.98, just
    below the pole at 1, it is constant. Args and errors: as
    `SplitExponential`.

    Example:
        >>> penalty = dd_keras.defenses.SplitInverse(c=5.0, reduction=None)
        >>> print(np.round(penalty([1.0, 1.0], [0.0, 0.2]), 3))
        [1.  0.5]
    """

    NAME = "split_inverse"

    def of_correct(self, scaled: tf.Tensor) -> tf.Tensor:
        """1 / (1 + c * rho)."""
        return 1.0 / (1.0 + scaled)

    def of_misclassified(self, scaled: tf.Tensor) -> tf.Tensor:
        """1 / (1 - d * rho)."""
        return 1.0 / (1.0 - ops.minimum(scaled, _MAX_SHARE))


@keras.saving.register_keras_serializable("dd_keras")
class SplitHinge(SplitPenalty):
    """max(0, 1 - c * rho) if correctly classified, else 1 + d * rho.

    Correctly classified samples farther away than 1 / c have no penalty. (The
    authors' form is max(0, m - rho), which is 1 / c times this for a margin m
    of 1 / c.) Args and errors: as `SplitExponential`.

    Example:
        >>> penalty = dd_keras.defenses.SplitHinge(c=5.0, reduction=None)
        >>> print(np.round(penalty([1.0, 1.0], [0.1, 0.3]), 3))
        [0.5 0. ]
    """

    NAME = "split_hinge"

    def of_correct(self, scaled: tf.Tensor) -> tf.Tensor:
        """max(0, 1 - c * rho)."""
        return ops.relu(1.0 - scaled)

    def of_misclassified(self, scaled: tf.Tensor) -> tf.Tensor:
        """1 + d * rho."""
        return 1.0 + scaled


@keras.saving.register_keras_serializable("dd_keras")
class SplitLinear(SplitPenalty):
    """-c * rho if correctly classified, else d * rho.

    Its slope is the same for near and far samples, and it has no lower bound.
    Args and errors: as `SplitExponential`.

    Example:
        >>> penalty = dd_keras.defenses.SplitLinear(5.0, 2.0, reduction=None)
        >>> print(np.round(penalty([1.0, 0.0], [0.1, 0.1]), 3))
        [-0.5  0.2]
    """

    NAME = "split_linear"

    def of_correct(self, scaled: tf.Tensor) -> tf.Tensor:
        """-c * rho."""
        return -scaled

    def of_misclassified(self, scaled: tf.Tensor) -> tf.Tensor:
        """The distance, scaled: d * rho."""
        return scaled


SHRINKAGES = {
    "exponential": SplitExponential,
    "inverse": SplitInverse,
    "hinge": SplitHinge,
    "linear": SplitLinear,
}
