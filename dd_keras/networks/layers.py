"""Layers of the paper's networks that Keras does not have."""

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops


@keras.saving.register_keras_serializable("dd_keras")
class LocalResponseNormalization(layers.Layer):
    """Local response normalisation over neighbouring channels (AlexNet).

        y_c = x_c / (bias + alpha / n * sum of x_i^2)^beta,

    with the sum over the n = 2 depth_radius + 1 channels around c, fewer at
    the ends. Unlike TensorFlow's own operation it has second derivatives.
    Inputs are (B, H, W, C).

    Args:
        depth_radius: number of neighbouring channels on each side, at least 0.
        bias: Caffe's k, above 0.
        alpha: Caffe's alpha, at least 0; TensorFlow's is alpha / n.
        beta: the exponent.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> layer = dd_keras.networks.LocalResponseNormalization(
        ...     depth_radius=1, alpha=3.0, beta=1.0
        ... )
        >>> y = layer(np.ones((1, 1, 1, 3)))  # 1 / (1 + 2), 1 / (1 + 3), ...
        >>> print(y.numpy().ravel())
        [0.33333334 0.25       0.33333334]
    """

    def __init__(
        self,
        depth_radius: int = 2,
        bias: float = 1.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for argument, value, valid, expected in (
            (
                "depth_radius",
                depth_radius,
                isinstance(depth_radius, int) and depth_radius >= 0,
                "a whole number of at least 0",
            ),
            ("bias", bias, bias > 0, "a number above 0"),
            ("alpha", alpha, alpha >= 0, "a number of at least 0"),
        ):
            if not valid:
                raise ValueError(
                    f"{argument}: expected {expected}; received {value!r}."
                )
        self.depth_radius = depth_radius
        self.bias = bias
        self.alpha = alpha
        self.beta = beta

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The normalised responses, (B, H, W, C)."""
        radius, channels = self.depth_radius, inputs.shape[-1]
        size = 2 * radius + 1
        x = inputs
        if keras.backend.standardize_dtype(x.dtype) != "float64":
            x = ops.cast(x, "float32")  # squares overflow float16
        squares = ops.pad(ops.square(x), [[0, 0]] * 3 + [[radius, radius]])
        total = sum(squares[..., i : i + channels] for i in range(size))
        scale = self.bias + self.alpha / size * total
        return ops.cast(x * scale**-self.beta, inputs.dtype)

    def compute_output_shape(
        self, input_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "depth_radius": self.depth_radius,
            "bias": self.bias,
            "alpha": self.alpha,
            "beta": self.beta,
        }


@keras.saving.register_keras_serializable("dd_keras")
class GroupedConv2D(layers.Conv2D):
    """`keras.layers.Conv2D` with one convolution for each of a few groups.

    Weights and outputs are those of Keras' layer. That one compiles grouped
    convolutions with XLA, which on a CPU is ten times slower, and compiles
    again for each batch size.

    Args: those of `keras.layers.Conv2D`; inputs must be (B, H, W, C).

    Example:
        >>> layer = dd_keras.networks.GroupedConv2D(8, kernel_size=3, groups=2)
        >>> layer(np.zeros((2, 5, 5, 4))).shape
        TensorShape([2, 3, 3, 8])
        >>> tuple(layer.kernel.shape)  # half of the 4 channels for each filter
        (3, 3, 2, 8)
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
        """The convolutions of all groups, concatenated."""
        return ops.concatenate(
            [
                ops.conv(
                    x,
                    part,
                    strides=self.strides,
                    padding=self.padding,
                    dilation_rate=self.dilation_rate,
                    data_format="channels_last",
                )
                for x, part in zip(
                    ops.split(inputs, self.groups, axis=-1),
                    ops.split(kernel, self.groups, axis=-1),
                    strict=True,
                )
            ],
            axis=-1,
        )
