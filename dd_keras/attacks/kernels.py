"""Layers with faster or more precise derivatives, and the same values.

Attacks take the gradient by the network's input once for each class, and
training differentiates that gradient again. Four stock kernels are slow,
imprecise or unsafe there, and are replaced during a forward pass:

- The gradient by the input of a convolution of images. Libraries for CPUs
  compute in vectors of 16 channels; an image has one or three, so most of the
  work is on padding. `convolution` uses neighbouring columns of the image as
  the missing channels.
- The second derivative of max pooling, `MaxPoolGradGrad`. On the CPU it
  searches for every maximum again; XLA's rounds to bfloat16, which leaves two
  or three digits of the weights' gradient, and has no float64. `max_pooling`
  makes it a product and an average where windows do not overlap.
- Convolutions in groups, which Keras has XLA compile. The number of active
  samples changes from one iteration of an attack to the next, and XLA compiles
  again for each number; its kernels are slow on CPUs (measured: 5 to 40 times
  slower). `grouped_convolution` uses TensorFlow's own kernels.
- Convolutions of 1 x 1 with strides, the shortcuts of residual networks. Their
  gradients by oneDNN write past their memory where the number of samples
  changes from one iteration to the next, and most trainings of a small ResNet
  crash (TensorFlow 2.21). Here the input is strided first, then convolved.

Values are the same up to rounding, to any order of differentiation.
"""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import derivatives
from dd_keras.utils import keras_internals

# Image channels up to which, and kernel sizes from which, `convolution` is
# faster than the stock gradient (measured: benchmarks/NOTES.md).
_MOST_CHANNELS = 4
_SMALLEST_KERNEL = 3


@contextlib.contextmanager
def better_gradients(network: keras.Model) -> Iterator[None]:
    """A context in which the layers of a network use the kernels above.

    Where they gain nothing, the stock kernels stay: with a GPU but without
    XLA, all but convolutions in groups; under XLA, convolutions; on the CPU,
    overlapping max pooling. They also stay in subclasses of Keras' layers, and
    in layers with settings that are not supported here.

    Args:
        network: a `keras.Model`.
    """
    xla = keras_internals.compiled_by_xla()
    cpu = not xla and not tf.config.get_visible_devices("GPU")
    replaced = []
    for layer in keras_internals.layers_of(network):
        if cpu and _is_image_convolution(layer):
            layer.convolution_op = _convolution_of(layer)
            replaced.append((layer, "convolution_op"))
        elif cpu and _is_strided_pointwise(layer):
            layer.convolution_op = _strided_pointwise_of(layer)
            replaced.append((layer, "convolution_op"))
        elif not xla and _is_grouped_convolution(layer):
            layer.convolution_op = _grouped_convolution_of(layer)
            replaced.append((layer, "convolution_op"))
        elif _is_max_pooling(layer) and (xla or (cpu and _tiles(layer))):
            layer.call = _max_pooling_of(layer)
            replaced.append((layer, "call"))
    try:
        with derivatives.exact_moments():
            yield
    finally:
        for layer, name in replaced:
            # Another replica's thread may have restored it already.
            with contextlib.suppress(AttributeError):
                delattr(layer, name)


def _is_image_convolution(layer):
    return (
        type(layer) is keras.layers.Conv2D
        and layer.strides == layer.dilation_rate == (1, 1)
        and layer.groups == 1
        and layer.padding in ("valid", "same")
        and layer.data_format == "channels_last"
        and layer.input_spec.axes[-1] <= _MOST_CHANNELS
        and min(layer.kernel_size) >= _SMALLEST_KERNEL
    )


def _convolution_of(layer):
    def convolution_op(x, kernel):
        kernel = tf.cast(tf.convert_to_tensor(kernel), x.dtype)
        return convolution(x, kernel, layer.padding.upper())

    return convolution_op


def _is_strided_pointwise(layer):
    convolutions = (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
    )
    return (
        type(layer) in convolutions
        and {*layer.kernel_size, *layer.dilation_rate} == {1}
        and {*layer.strides} != {1}
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def _strided_pointwise_of(layer):
    def convolution_op(x, kernel):
        kernel = tf.cast(tf.convert_to_tensor(kernel), x.dtype)
        strided = (slice(None), *(slice(None, None, s) for s in layer.strides))
        # Derivatives need the format in eager execution.
        data_format = {1: "NWC", 2: "NHWC", 3: "NDHWC"}[layer.rank]
        return tf.nn.convolution(x[strided], kernel, data_format=data_format)

    return convolution_op


def _is_grouped_convolution(layer):
    return (
        type(layer) is keras.layers.Conv2D
        and layer.groups > 1
        and layer.dilation_rate == (1, 1)
        and layer.strides[0] == layer.strides[1]
        and layer.padding in ("valid", "same")
        and layer.data_format == "channels_last"
    )


def _grouped_convolution_of(layer):
    def convolution_op(x, kernel):
        kernel = tf.cast(tf.convert_to_tensor(kernel), x.dtype)
        return grouped_convolution(
            x, kernel, layer.strides[0], layer.padding.upper()
        )

    return convolution_op


def _is_max_pooling(layer):
    return (
        type(layer) is keras.layers.MaxPooling2D
        and layer.data_format == "channels_last"
    )


def _tiles(layer):
    """Whether the windows of a pooling layer tile its input, unpadded."""
    strides, size = tuple(layer.strides), tuple(layer.pool_size)
    return strides == size and layer.padding == "valid"


def _max_pooling_of(layer):
    def call(inputs):
        return max_pooling(
            inputs, layer.pool_size, layer.strides, layer.padding.upper()
        )

    return call


def convolution(x: tf.Tensor, kernel: tf.Tensor, padding: str) -> tf.Tensor:
    """A convolution of stride 1.

    Args:
        x: (B, H, W, C), C up to 4.
        kernel: (kh, kw, C, D).
        padding: `"VALID"` or `"SAME"`.

    Returns:
        (B, H', W', D).
    """
    if None in x.shape[1:3]:  # blocks of columns need to know the width
        return tf.nn.conv2d(x, kernel, 1, padding)
    blocks = _Blocks(kernel, padding, x.shape)

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(upstream):
            return transpose(upstream, kernel), by_kernel(x, upstream)

        return tf.nn.conv2d(x, kernel, 1, padding), gradient

    @tf.custom_gradient
    def transpose(y, kernel):
        def gradient(upstream):
            return convolve(upstream, kernel), by_kernel(upstream, y)

        return blocks.transpose(y), gradient

    def by_kernel(x, y):
        return tf.raw_ops.Conv2DBackpropFilter(
            input=x,
            filter_sizes=kernel.shape,
            out_backprop=y,
            strides=[1, 1, 1, 1],
            padding=padding,
        )

    return convolve(x, kernel)


def grouped_convolution(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str
) -> tf.Tensor:
    """A convolution of each group of channels with its share of the filters.

    TensorFlow's own convolution in groups has no gradient on CPUs without
    oneDNN.

    Args:
        x: (B, H, W, C).
        kernel: (kh, kw, C / groups, D).
        stride: from one window to the next, in both directions.
        padding: `"VALID"` or `"SAME"`.

    Returns:
        (B, H', W', D).
    """
    channels, filters = x.shape[-1], kernel.shape[-1]
    groups = channels // kernel.shape[2]
    if groups == channels:
        size = [*kernel.shape[:2], channels, filters // channels]
        return tf.nn.depthwise_conv2d(
            x, tf.reshape(kernel, size), [1, stride, stride, 1], padding
        )
    return tf.concat(
        [
            tf.nn.conv2d(part, share, stride, padding)
            for part, share in zip(
                tf.split(x, groups, axis=-1),
                tf.split(kernel, groups, axis=-1),
                strict=True,
            )
        ],
        axis=-1,
    )


class _Blocks:
    """The adjoint of a convolution, by blocks of the image's columns.

        x[i, j] = sum over a, b of kernel[a, b] y[i + top - a, j + left - b]

    One convolution, over blocks of columns, does all but the sum over the
    kernel's rows a: its output channels are (a, column in the block, C).

    Args:
        kernel: (kh, kw, C, D).
        padding: that of the convolution.
        shape: that of its input, (B, H, W, C).
    """

    def __init__(self, kernel: tf.Tensor, padding: str, shape: tf.Tensor):
        self.height, self.width, self.channels = shape[1:]
        self.rows, columns = kernel.shape[:2]
        same = padding == "SAME"
        self.top = (self.rows - 1) // 2 if same else 0
        left = (columns - 1) // 2 if same else 0
        self.size = _MOST_CHANNELS // self.channels  # columns a block
        # Block p of x needs the blocks p + first to p + last of y.
        self.first = -((columns - 2 + self.size - left) // self.size)
        self.last = (left + self.size - 1) // self.size
        self.kernel = self._block_kernel(kernel, left)

    def _block_kernel(self, kernel, left):
        """(1, last - first + 1, size D, kh size C): from blocks to blocks."""
        columns = kernel.shape[1]
        block = np.arange(self.first, self.last + 1)[:, None, None]
        given = np.arange(self.size)[None, :, None]  # column in a block of y
        wanted = np.arange(self.size)[None, None, :]  # column in a block of x
        tap = wanted + left - given - block * self.size
        beyond = columns  # a column of zeros
        tap = np.where((tap >= 0) & (tap < columns), tap, beyond)
        padded = tf.pad(kernel, [[0, 0], [0, 1], [0, 0], [0, 0]])
        taps = tf.gather(padded, tap, axis=1)  # (kh, blocks, size, size, C, D)
        taps = tf.transpose(taps, [1, 2, 5, 0, 3, 4])
        inputs = self.size * kernel.shape[3]
        outputs = self.rows * self.size * self.channels
        return tf.reshape(taps, [1, len(block), inputs, outputs])

    def transpose(self, y):
        """From (B, H', W', D) to (B, H, W, C)."""
        y = tf.pad(y, [[0, 0], [0, 0], [0, -y.shape[2] % self.size], [0, 0]])
        height, inputs = y.shape[1], self.kernel.shape[2]
        given, wanted = y.shape[2] // self.size, -(-self.width // self.size)
        blocks = tf.nn.conv2d(
            tf.reshape(y, [-1, height, given, inputs]),
            self.kernel,
            strides=1,
            padding=[
                [0, 0],
                [0, 0],
                [-self.first, wanted - given + self.last],
                [0, 0],
            ],
        )
        outputs = self.size * self.channels
        blocks = tf.reshape(blocks, [-1, height, wanted, self.rows, outputs])
        full = tf.add_n(
            [
                tf.pad(row, [[0, 0], [a, self.rows - 1 - a], [0, 0], [0, 0]])
                for a, row in enumerate(tf.unstack(blocks, axis=3))
            ]
        )
        columns = wanted * self.size
        full = tf.reshape(full, [-1, full.shape[1], columns, self.channels])
        return full[:, self.top : self.top + self.height, : self.width]


def max_pooling(
    x: tf.Tensor, size: Sequence[int], strides: Sequence[int], padding: str
) -> tf.Tensor:
    """Max pooling.

    Args:
        x: (B, H, W, C).
        size: (height, width) of a window.
        strides: (vertical, horizontal), from one window to the next.
        padding: `"VALID"` or `"SAME"`.

    Returns:
        (B, H', W', C). Of equal maxima the first has the gradient.
    """
    tiles = tuple(strides) == tuple(size) and padding == "VALID"
    if not tiles and None in x.shape[1:3]:  # margins need to know the size
        return tf.nn.max_pool2d(x, size, strides, padding)

    @tf.custom_gradient
    def pool(x):
        y = tf.nn.max_pool2d(x, size, strides, padding)

        def place(values):
            """Values to where the maxima are, sums where windows overlap."""
            return tf.raw_ops.MaxPoolGrad(
                orig_input=x,
                orig_output=y,
                grad=values,
                ksize=[1, *size, 1],
                strides=[1, *strides, 1],
                padding=padding,
            )

        @tf.custom_gradient
        def unpool(values):
            return place(values), pick

        @tf.custom_gradient
        def pick(values):
            """Values from where the maxima are; the adjoint of `unpool`."""
            if tiles:
                there = values * place(tf.ones_like(y))
                mean = tf.nn.avg_pool2d(there, size, size, "VALID")
                picked = float(np.prod(size)) * mean
            else:
                picked = _at_maxima(values, x, y, size, strides, padding)
            return picked, unpool

        return y, unpool

    return pool(x)


def _at_maxima(values, x, y, size, strides, padding):
    """For each window of x, the value at the first place where x is y."""
    rows, columns = y.shape[1], y.shape[2]
    margins = [
        _margins(given, window, stride, wanted) if padding == "SAME" else (0, 0)
        for given, window, stride, wanted in zip(
            x.shape[1:3], size, strides, (rows, columns), strict=True
        )
    ]
    margins = [(0, 0), *margins, (0, 0)]
    x = tf.pad(x, margins, constant_values=x.dtype.min)
    values = tf.pad(values, margins)
    found, free = tf.zeros_like(y), tf.ones_like(y, tf.bool)
    for i, j in np.ndindex(*size):
        places = (
            slice(None),
            slice(i, i + (rows - 1) * strides[0] + 1, strides[0]),
            slice(j, j + (columns - 1) * strides[1] + 1, strides[1]),
        )
        here = free & (x[places] == y)
        found += tf.where(here, values[places], 0.0)
        free &= ~here
    return found


def _margins(given, window, stride, wanted):
    """What `SAME` pads a side of length `given` with, before and after."""
    total = max(0, (wanted - 1) * stride + window - given)
    return total // 2, total - total // 2
