"""Input-gradient regularisation (Ross and Doshi-Velez, AAAI 2018)."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import Forward
from dd_keras.defenses.regularized import RegularizedDefenseModel


@keras.saving.register_keras_serializable("dd_keras")
class InputGradientModel(RegularizedDefenseModel):
    """Any Keras classifier, trained with a penalty on the input gradient.

    Each training step minimises (Ross and Doshi-Velez, Eq. 2; the double
    backpropagation of Drucker and Le Cun, 1992)

        mean loss + lam * mean of ||grad_x CE(f(x), y)||_2^2,

    where CE is the cross-entropy of the classifier in inference mode, in
    nats. The input gradient is differentiated with respect to the weights, so
    models with layers that lack second derivatives are refused.
    `DefenseModel` describes what all defences share.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0, in squared units of the
            inputs.
        evaluation_attack, batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> model = dd_keras.InputGradientModel(classifier, lam=0.1)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=3, verbose=0)
        >>> squared_gradient = history.history["regularization"]
        >>> squared_gradient[-1] < squared_gradient[0]
        True
    """

    def __init__(self, model: keras.Model, *, lam: float, **kwargs: Any):
        super().__init__(
            model, lam=lam, needs_second_derivatives=True, **kwargs
        )

    def penalties(
        self, x: tf.Tensor, labels: tf.Tensor, forward: Forward
    ) -> tf.Tensor:
        """||grad_x CE(f(x), y)||_2^2 of each sample, (B,)."""
        z = forward.logits
        own = tf.one_hot(labels, z.shape[-1], dtype=z.dtype)
        gradient = forward.gradient(tf.nn.softmax(z) - own)
        return tf.reduce_sum(gradient**2, axis=list(range(1, x.shape.rank)))
