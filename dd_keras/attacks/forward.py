"""Networks as attacks see them: in inference mode, giving class logits.

A network as a function (`functional_form`, `inference_form`), one forward pass
that can be differentiated (`Forward`), and the one at the clean inputs, where
attacks begin (`CleanInputs`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import keras
import tensorflow as tf

from dd_keras.attacks import decisions, kernels, passes
from dd_keras.classifier import graphs, logits
from dd_keras.classifier.labels import sparse_labels


def functional_form(
    network: keras.Model,
) -> tuple[Callable, list[tf.Tensor]]:
    """A network as a function of its inputs and of its weights.

    The weights are read once, outside, and passed in. So a gradient reaches
    them through `tf.custom_gradient`, and the network's losses, seeds and
    statistics stay as they are.

    Args:
        network: a built `keras.Model` that gives logits.

    Returns:
        (f, weights): `f(x, weights)` gives the `class_logits` in inference
        mode; `weights` is a list of the network's floating weights' values.
    """
    variables = [v for v in network.variables if "float" in v.dtype]

    def f(x, weights):
        passes.count_forward(x)
        mapping = list(zip(variables, weights, strict=True))
        with (
            keras.StatelessScope(state_mapping=mapping),
            kernels.better_gradients(network),
        ):
            return logits.class_logits(network(x, training=False))

    return f, [tf.convert_to_tensor(v.value) for v in variables]


def inference_form(
    network: keras.Model,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A network as a function from inputs to class logits, in inference mode.

    For attacks whose result is not differentiated with respect to the weights.

    Args:
        network: a built `keras.Model` that gives logits.

    Returns:
        A function from inputs, (B, ...), to logits, (B, n); one logit becomes
        two, n = 2.

    Example:
        >>> network = dd_keras.logits_model(classifier)
        >>> f = dd_keras.attacks.inference_form(network)
        >>> f(x_test[:5]).shape
        TensorShape([5, 10])
    """
    f, weights = functional_form(network)
    return lambda x: f(x, weights)


def trace_inference(network: keras.Model) -> Any:
    """Traces a network in inference mode, as attacks see it.

    Args:
        network: a built `keras.Model` that gives logits.

    Returns:
        A concrete function of the inputs.
    """
    spec = logits.working_spec(network)
    with kernels.better_gradients(network):
        return graphs.trace(lambda x: network(x, training=False), spec)


class Forward(NamedTuple):
    """A forward pass that can be differentiated with respect to its inputs.

    Attributes:
        x: floating, (B, ...), the inputs.
        logits: floating, (B, n): the network's class logits at `x`.
        tape: the persistent `tf.GradientTape` that recorded the pass.

    Example:
        >>> network = dd_keras.logits_model(classifier)
        >>> f = dd_keras.attacks.inference_form(network)
        >>> forward = dd_keras.attacks.Forward.of(f, tf.constant(x_test[:5]))
        >>> own_logit = tf.one_hot(y_test[:5], 10)
        >>> forward.gradient(own_logit).shape  # of each sample's own logit
        TensorShape([5, 8, 8, 1])
    """

    x: tf.Tensor
    logits: tf.Tensor
    tape: tf.GradientTape

    @classmethod
    def of(cls, f: Callable, x: tf.Tensor) -> Self:
        """The forward pass of the function `f` at `x`."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits = f(x)
        return cls(x, logits, tape)

    @classmethod
    def of_model(
        cls, model: keras.Model, x: tf.Tensor, training: bool
    ) -> tuple[Any, Self]:
        """(outputs, `Forward`) of a model whose outputs are logits."""
        with (
            tf.GradientTape(persistent=True) as tape,
            kernels.better_gradients(model),
        ):
            tape.watch(x)
            outputs = model(x, training=training)
            class_logits = logits.class_logits(outputs)
        return outputs, cls(x, class_logits, tape)

    def gradient(self, upstream: tf.Tensor) -> tf.Tensor:
        """The gradient of sum(upstream * logits) with respect to `x`.

        Args:
            upstream: (B, n), the gradient of a loss with respect to the
                logits.

        Returns:
            (B, ...), the gradient of that loss with respect to `x`.

        Raises:
            ValueError: if the logits do not depend differentiably on `x`.
        """
        passes.count_backward(self.x)
        gradient = self.tape.gradient(self.logits, self.x, upstream)
        if gradient is None:
            raise ValueError(
                "model: expected logits that depend on the inputs in a "
                "differentiable way; received one whose gradient is none, as "
                "behind an Embedding, an argmax or any rounding to integers. "
                "Wrap the part behind it."
            )
        return gradient


class CleanInputs(NamedTuple):
    """The inputs of an attack, and what a network makes of them.

    Attributes:
        f: from inputs to class logits, see `inference_form`.
        forward: the `Forward` at the clean inputs.
        predictions: int32, (B,): the classes predicted there.
        y: int32, (B,): the classes to leave, or to reach.
    """

    f: Callable
    forward: Forward
    predictions: tf.Tensor
    y: tf.Tensor

    @classmethod
    def of(
        cls,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> Self:
        """From the arguments of `Attack.search`."""
        f = inference_form(network)
        forward = forward or Forward.of(f, x)
        predictions = decisions.predicted_class(forward.logits)
        y = source_classes(y, predictions, forward.logits)
        return cls(f, forward, predictions, y)

    @property
    def logits(self) -> tf.Tensor:
        """Those of the clean inputs, (B, n)."""
        return self.forward.logits


def source_classes(
    y: Any, predictions: tf.Tensor, class_logits: tf.Tensor
) -> tf.Tensor:
    """The labels `y` of an attack as classes; without any, the predictions.

    Args:
        y: as in `Attack.run`, or None.
        predictions: int32, (B,).
        class_logits: (B, n), for the number of classes.

    Returns:
        (B,) int32.
    """
    if y is None:
        return predictions
    return sparse_labels(y, class_logits.shape[-1])
