"""Input-gradient regularisation (Ross and Doshi-Velez, AAAI 2018)."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import Forward
from dd_keras.defenses.regularized import RegularizedDefenseModel


@keras.saving.register_keras_serializable("dd_keras")
class InputGradientModel(RegularizedDefenseModel):
    """Any Keras classifier, trained for a loss that its inputs hardly change.

    Each training step minimises (Ross and Doshi-Velez, Eq. 2; double
    backpropagation in Drucker and Le Cun, 1992)

        mean loss + lam * mean of ||grad_x CE(f(x), y)||_2^2,

    CE being the cross-entropy of the classifier in inference mode, in nats,
    and x in units of the inputs. The gradient is differentiated by the
    weights, so that models with layers that lack a second derivative are
    refused. See `DefenseModel` for what else there is to a defence.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        evaluation_attack, batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        model = dd_keras.InputGradientModel(classifier, lam=0.1)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(x_train, y_train, validation_data=(x_test, y_test))
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
