"""Base of defences that add lam times a penalty to the loss."""

import functools
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import Forward, inference_form
from dd_keras.classifier import logits
from dd_keras.defenses.base import DefenseModel
from dd_keras.utils import validation


class RegularizedDefenseModel(DefenseModel):
    """Base of defences that add a penalty to the loss, weighted by lam.

    Each training step minimises mean loss + lam * mean penalty. A subclass
    implements `penalties`, the penalty of each sample of a batch. The logs
    hold its mean, not multiplied by lam, as `regularization`. `DefenseModel`
    describes what all defences share.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        kwargs: see `DefenseModel`.

    Raises:
        TypeError, ValueError: as `DefenseModel`, or if `lam` is below 0.

    Example:
        >>> class SmallLogits(dd_keras.RegularizedDefenseModel):
        ...     def penalties(self, x, labels, forward):
        ...         return keras.ops.sum(forward.logits**2, axis=-1)
        >>> model = SmallLogits(classifier, lam=0.01)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=2, verbose=0)
        >>> penalty = history.history["regularization"]
        >>> penalty[-1] < penalty[0]
        True
    """

    def __init__(self, model: keras.Model, *, lam: float, **kwargs: Any):
        super().__init__(model, **kwargs)
        self.regularization_tracker = keras.metrics.Mean("regularization")
        self._mean = _Mean("mean", dtype=logits.working_dtype(model))
        self._lam = validation.validate_number("lam", lam, at_least=0)
        self._lam_share = 1.0
        # No Keras weight: models saved without it load, too.
        self._lam_now = tf.Variable(self._lam, False, dtype=tf.float64)
        self._regularizes = self._lam > 0

    @property
    def lam(self) -> float:
        """Weight of the regulariser; a new value holds from the next step."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        self._lam = validation.validate_number("lam", value, at_least=0)
        self._update_lam()

    def scale_lam(self, share: float) -> None:
        """Multiplies `lam` by `share` from the next step on.

        With a share of 0 no attack is run, and a step costs as much as one of
        plain training. Meant for callbacks such as `RegularizationWarmup`.

        Args:
            share: a number in [0, 1].

        Raises:
            ValueError: if `share` is outside of its range.
        """
        self._lam_share = validation.validate_number(
            "share", share, at_least=0, at_most=1
        )
        self._update_lam()

    def _update_lam(self):
        now = self._lam * self._lam_share
        self._lam_now.assign(now)
        if (now > 0) != self._regularizes:  # a graph with, or without an attack
            self._regularizes = now > 0
            self._retrace()

    def lam_in_use(self, dtype: tf.DType) -> tf.Tensor:
        """`lam` times its share, a scalar; see `scale_lam`."""
        return tf.cast(self._lam_now, dtype)

    @property
    def regularizes(self) -> bool:
        """Whether `lam` times its share is above 0."""
        return self._regularizes

    def shares_forward_pass(self) -> bool:
        """Whether the training penalty can reuse the loss' forward pass."""
        return self.regularizes

    def regularizer(
        self,
        x: tf.Tensor,
        labels: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Lam times the penalty, a scalar; and rho, (B,), if there is one."""
        samples = tf.size(labels)
        if not self.regularizes:
            self.regularization_tracker.update_state(0.0, samples)
            return None, None
        penalty, rho = self.mean_penalty(x, labels, forward, sample_weight)
        self.regularization_tracker.update_state(
            self.unscaled(penalty), samples
        )
        return self.lam_in_use(penalty.dtype) * penalty, rho

    def mean_penalty(
        self,
        x: tf.Tensor,
        labels: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The weighted mean of the penalties, a scalar; and rho, or None.

        Args: see `DefenseModel.task_loss`.
        """
        if forward is None:
            x = logits.cast_inputs(self.model, x)
            forward = Forward.of(inference_form(self.logits_model()), x)
        penalties = self.penalties(forward.x, labels, forward)
        return self._mean(penalties, penalties, sample_weight), None

    def penalties(
        self, x: tf.Tensor, labels: tf.Tensor, forward: Forward
    ) -> tf.Tensor:
        """The penalty of each sample, (B,), floating.

        Args:
            x: floating, (B, ...), the inputs.
            labels: int32, (B,).
            forward: the `attacks.Forward` at `x`, in inference mode: the
                logits, and their gradients with respect to the inputs.
        """
        raise NotImplementedError

    @functools.wraps(keras.Model.fit, assigned=())  # the same signature
    def fit(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; after an error, `lam` is restored.

        A callback may have scaled it, and Keras tells callbacks of no error.
        """
        share = self._lam_share
        try:
            return super().fit(*args, **kwargs)
        except BaseException:
            self.scale_lam(share)
            raise

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "lam": self.lam}


class _Mean(keras.losses.Loss):
    """The weighted mean, as Keras takes it of losses, of what is given."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """What is given, (B,)."""
        del y_true
        return y_pred
