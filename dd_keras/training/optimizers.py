"""The paper's optimizer: SGD with momentum and coupled weight decay."""

import math
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("dd_keras")
class CoupledSGD(keras.optimizers.SGD):
    """SGD with momentum and coupled weight decay, which equals an L2 penalty.

    Adds `coupled_weight_decay * w` to the gradient of every weight w, biases
    included, before the momentum. This is the weight decay of Caffe,
    MatConvNet and PyTorch, and of the Deep Defense paper. Keras' own
    `weight_decay` is decoupled from the gradient, which is another update.

    Args:
        learning_rate: a number or a `keras.optimizers.schedules` object.
        momentum: in [0, 1].
        coupled_weight_decay: at least 0.
        name: name of the optimizer.
        **kwargs: the other arguments of `keras.optimizers.SGD`.

    Raises:
        ValueError: if `coupled_weight_decay` is negative or not finite.

    Example:
        >>> optimizer = dd_keras.CoupledSGD(
        ...     0.1, momentum=0.0, coupled_weight_decay=0.5
        ... )
        >>> w = keras.Variable([2.0])
        >>> optimizer.apply([tf.constant([0.0])], [w])  # w - 0.1 * (0 + 0.5 w)
        >>> print(w.numpy())
        [1.9]
    """

    def __init__(
        self,
        learning_rate: float
        | keras.optimizers.schedules.LearningRateSchedule = 5e-4,
        momentum: float = 0.9,
        coupled_weight_decay: float = 5e-4,
        name: str = "coupled_sgd",
        **kwargs: Any,
    ):
        super().__init__(learning_rate, momentum, name=name, **kwargs)
        is_number = isinstance(coupled_weight_decay, (int, float))
        if not is_number or not 0 <= coupled_weight_decay < math.inf:
            raise ValueError(
                "coupled_weight_decay: expected a finite number >= 0; "
                f"received {coupled_weight_decay!r}."
            )
        self.coupled_weight_decay = float(coupled_weight_decay)

    def update_step(
        self,
        gradient: tf.Tensor,
        variable: keras.Variable,
        learning_rate: tf.Tensor,
    ) -> None:
        """Updates one weight from its gradient."""
        decay = self.coupled_weight_decay * keras.ops.convert_to_tensor(
            variable
        )
        super().update_step(gradient + decay, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "coupled_weight_decay": self.coupled_weight_decay,
        }
