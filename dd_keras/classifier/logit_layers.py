"""The layers that `logits_model` puts in the place of an activation.

They are registered with Keras: what `logits_model` returns can be saved.
"""

from typing import Any, Self

import keras
import tensorflow as tf

# Smallest probability that is distinguished from zero. The logarithm of less
# is -inf in float32 arithmetic that flushes denormal numbers.
_SMALLEST_PROBABILITY = 1e-37
# Largest distance of a sigmoid's value from 1 that float32 cannot resolve.
_SIGMOID_MARGIN = 6e-8


@keras.saving.register_keras_serializable("dd_keras")
class WithoutActivation(keras.layers.Layer):
    """Applies a layer with its activation left out, sharing its weights.

    Args:
        layer: a built Keras layer with an `activation` attribute.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        # Of a quantised layer the precision, not the way of computing: that
        # is the inner layer's.
        super().__init__(dtype=layer.compute_dtype, **kwargs)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the layer's pre-activation outputs."""
        activation = self.layer.activation
        self.layer.activation = keras.activations.linear
        try:
            return self.layer(inputs)
        finally:
            self.layer.activation = activation

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the layer from what `get_config` returned."""
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        config.pop("dtype", None)
        return cls(layer, **config)


@keras.saving.register_keras_serializable("dd_keras")
class Logits(keras.layers.Layer):
    """Marks its inputs as logits, and returns them unchanged."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the inputs."""
        return inputs


@keras.saving.register_keras_serializable("dd_keras")
class ProbabilitiesToLogits(keras.layers.Layer):
    """Recovers logits from probabilities.

    Args:
        activation: what made the probabilities, `"softmax"` or `"sigmoid"`.
    """

    def __init__(self, activation: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = activation

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps p, (B, n), to its logits."""
        return probabilities_to_logits(inputs, self.activation)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "activation": self.activation}


def probabilities_to_logits(p: tf.Tensor, activation: str) -> tf.Tensor:
    """Log p (softmax) or log p - log(1 - p) (sigmoid): (B, n), as p."""
    if p.dtype != tf.float64:
        p = tf.cast(p, tf.float32)
    log_p = tf.math.log(tf.maximum(p, _SMALLEST_PROBABILITY))
    if activation == "softmax":
        return log_p
    return log_p - tf.math.log(tf.maximum(1.0 - p, _SIGMOID_MARGIN))
