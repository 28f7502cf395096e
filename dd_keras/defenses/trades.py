"""TRADES (Zhang et al., ICML 2019): one trade-off between two losses."""

from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import (
    PGD,
    Forward,
    decisions,
    inference_form,
    lp_ball,
    stateless_random,
)
from dd_keras.classifier import logits
from dd_keras.defenses.base import DefenseModel
from dd_keras.utils import validation

# The standard deviation of the noise that the search starts with, of eps: the
# paper's 0.001 on MNIST, where its eps is 0.3.
_START = 1 / 300


@keras.saving.register_keras_serializable("dd_keras")
class TRADESModel(DefenseModel):
    """Any Keras classifier, trained for equal outputs all around its inputs.

    Each training step minimises (Zhang et al., Eq. 5)

        loss(x, y) + beta * KL(p(x) || p(x')),

    where p are the classifier's probabilities. x' maximises the KL divergence
    within the ball of `adversary`: from x plus Gaussian noise, `steps` steps
    of gradient ascent, in inference mode. Gradients with respect to the
    weights flow through both terms, through the second at x and at x'.
    `DefenseModel` describes what all defences share.

    Args:
        model: a built Keras classifier, see `logits_model`.
        adversary: an untargeted `attacks.PGD`, for its `eps`, `norm`,
            `steps`, `step_size`, `bounds` and `seed`. (Its loss is replaced
            by the KL divergence, its start by that of TRADES; there is one
            restart and no early stop.) The paper's, in l_inf and for pixels
            in [0, 1]: on MNIST eps 0.3, 40 steps of 0.01; on CIFAR-10 eps
            0.031, 10 steps of 0.007.
        beta: weight of the second term, at least 0; the paper's 1 / lambda,
            there from 1 to 6.
        evaluation_attack, batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `adversary` is not an untargeted PGD, or `model` not a
            Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> pgd = dd_keras.attacks.PGD(eps=0.1, steps=5, bounds=(0, 1))
        >>> model = dd_keras.TRADESModel(classifier, adversary=pgd, beta=6.0)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=3, verbose=0)
        >>> loss = history.history["loss"]
        >>> loss[-1] < loss[0]
        True
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        adversary: PGD,
        beta: float = 6.0,
        **kwargs: Any,
    ):
        if not isinstance(adversary, PGD) or adversary.targeted:
            raise TypeError(
                "adversary: expected an untargeted dd_keras.attacks.PGD; "
                f"received {adversary!r}."
            )
        super().__init__(model, **kwargs)
        self.adversary = adversary
        self.beta = validation.validate_number("beta", beta, at_least=0)
        self._divergence = Divergence(dtype=logits.working_dtype(model))

    def shares_forward_pass(self) -> bool:
        """Whether the training attack can reuse the loss' forward pass."""
        return True

    def task_loss(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        labels: tf.Tensor,
        y_pred: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
        training: bool,
    ) -> tf.Tensor:
        """The objective above, a scalar."""
        clean = super().task_loss(
            x, y, labels, y_pred, forward, sample_weight, training
        )
        x = logits.cast_inputs(self.model, x)
        found = self._most_different(x, forward, training)
        moved = self(found, training=training)
        return clean + self.beta * self._divergence(
            logits.log_probabilities(y_pred, self.activation),
            logits.log_probabilities(moved, self.activation),
            sample_weight,
        )

    def _most_different(self, x, forward, training):
        """The inputs of the largest divergence found: (B, ...)."""
        attack = self._adversary_of_step(self.adversary, training)
        f = inference_form(self.logits_model())
        p = tf.nn.softmax(forward.logits if forward else f(x))

        def ascend(i, perturbation):
            at = Forward.of(f, x + perturbation)
            gradient = at.gradient(_divergence_logit_gradient(p, at.logits))
            direction = lp_ball.steepest_ascent(gradient, attack.norm)
            moved = attack.project(perturbation + attack.step_size * direction)
            return i + 1, attack.within_bounds(x, moved)

        noise = stateless_random.normal(x, attack.seed, attack.stream_of(0))
        start = attack.within_bounds(x, _START * attack.eps * noise)
        _, perturbation = tf.while_loop(
            lambda i, _: i < attack.steps,
            ascend,
            (0, start),
            parallel_iterations=1,
        )
        return tf.stop_gradient(x + perturbation)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "adversary": keras.saving.serialize_keras_object(self.adversary),
            "beta": self.beta,
        }


class Divergence(keras.losses.Loss):
    """KL(p || q) by the logarithms of probabilities, each (B, n)."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The divergence of each sample, (B,)."""
        return tf.reduce_sum(tf.exp(y_true) * (y_true - y_pred), axis=-1)


def _divergence_logit_gradient(p, class_logits):
    """The gradient of KL(p || softmax(logits)) by the logits: (B, n).

    It is softmax(logits) - p, and sums to zero. Where one class has nearly
    all the probability, float32 rounds its entry away; the others have it.
    """
    difference = tf.nn.softmax(class_logits) - p
    largest = tf.one_hot(
        decisions.predicted_class(p), p.shape[-1], dtype=p.dtype
    )
    others = (1.0 - largest) * difference
    return others - largest * tf.reduce_sum(others, axis=-1, keepdims=True)
