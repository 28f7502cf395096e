"""Convolutions whose gradient by their input is fast on the CPU.

Attacks take the gradient by the network's input once for each class, and all
of them end in the first convolution. Libraries for CPUs compute in vectors of
16 channels; an image has one or three, so that most of the work of that last
step is on padding. Here neighbouring columns of the image stand in for
the missing channels. Values are the same up to rounding, to any order of
differentiation.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from dd_keras import numerics

# Image channels up to which, and kernel sizes from which, this is faster than
# the stock gradient (measured: benchmarks/NOTES.md).
_MOST_CHANNELS = 4
_SMALLEST_KERNEL = 3


@contextlib.contextmanager
def fast_input_gradients(network):
    """While it is open, convolutions of images in `network` work as above.

    Under XLA, and where there is a GPU, nothing changes.

    Args:
        network: a `keras.Model`. Its plain `Conv2D` layers of stride 1 are
            looked at; subclasses of `Conv2D` are left alone.
    """
    if numerics.compiled_by_xla() or tf.config.get_visible_devices("GPU"):
        yield
        return
    layers = [layer for layer in network._flatten_layers() if _suits(layer)]
    for layer in layers:
        layer.convolution_op = _convolution_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.convolution_op


def _suits(layer):
    """Whether the stock gradient by this layer's input is slow."""
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
    def convolve(x, kernel):
        kernel = tf.cast(tf.convert_to_tensor(kernel), x.dtype)
        return convolution(x, kernel, layer.padding.upper())

    return convolve


def convolution(x, kernel, padding):
    """A convolution of stride 1.

    Args:
        x: (B, H, W, C), of known H and W.
        kernel: (kh, kw, C, D).
        padding: `"VALID"` or `"SAME"`.

    Returns:
        (B, H', W', D).
    """

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(upstream):
            return transposed(upstream, kernel), by_kernel(x, upstream)

        return tf.nn.conv2d(x, kernel, 1, padding), gradient

    @tf.custom_gradient
    def transposed(y, kernel):
        def gradient(upstream):
            return convolve(upstream, kernel), by_kernel(upstream, y)

        return transposed_convolution(y, kernel, padding, x.shape), gradient

    def by_kernel(x, y):
        return tf.raw_ops.Conv2DBackpropFilter(
            input=x,
            filter_sizes=kernel.shape,
            out_backprop=y,
            strides=[1, 1, 1, 1],
            padding=padding,
        )

    return convolve(x, kernel)


def transposed_convolution(y, kernel, padding, shape):
    """The adjoint of `convolution` in its first argument.

        x[i, j] = sum over a, b of kernel[a, b]^T y[i + top - a, j + left - b]

    One convolution, over blocks of columns, does all of it but the sum over
    the kernel's rows a: its output channels are (a, column in the block, C).

    Args:
        y: (B, H', W', D).
        kernel: (kh, kw, C, D).
        padding: that of the convolution.
        shape: that of its input, (B, H, W, C).

    Returns:
        (B, H, W, C).
    """
    height, width, channels = shape[1:]
    kh, kw, _, filters = kernel.shape
    same = padding == "SAME"
    top, left = ((kh - 1) // 2, (kw - 1) // 2) if same else (0, 0)
    size = _MOST_CHANNELS // channels  # columns a block
    y = tf.pad(y, [[0, 0], [0, 0], [0, -y.shape[2] % size], [0, 0]])
    given, wanted = y.shape[2] // size, -(-width // size)  # blocks
    # Block p of x needs the blocks p + first to p + last of y.
    first = -((kw - 2 + size - left) // size)
    last = (left + size - 1) // size
    blocks = tf.nn.conv2d(
        tf.reshape(y, [-1, y.shape[1], given, size * filters]),
        _block_kernel(kernel, size, left, first, last),
        strides=1,
        padding=[[0, 0], [0, 0], [-first, wanted - given + last], [0, 0]],
    )
    rows = tf.unstack(
        tf.reshape(blocks, [-1, y.shape[1], wanted, kh, size * channels]),
        axis=3,
    )
    full = tf.add_n(
        [
            tf.pad(row, [[0, 0], [a, kh - 1 - a], [0, 0], [0, 0]])
            for a, row in enumerate(rows)
        ]
    )
    full = tf.reshape(full, [-1, full.shape[1], wanted * size, channels])
    return full[:, top : top + height, :width]


def _block_kernel(kernel, size, left, first, last):
    """The kernel over blocks: (1, last - first + 1, size D, kh size C)."""
    kh, kw, channels, filters = kernel.shape
    block = np.arange(first, last + 1)[:, None, None]
    given = np.arange(size)[None, :, None]  # column in the block of y
    wanted = np.arange(size)[None, None, :]  # column in the block of x
    tap = wanted + left - given - block * size
    beyond = kw  # a column of zeros
    tap = np.where((tap >= 0) & (tap < kw), tap, beyond)
    padded = tf.pad(kernel, [[0, 0], [0, 1], [0, 0], [0, 0]])
    taps = tf.gather(padded, tap, axis=1)  # (kh, blocks, size, size, C, D)
    taps = tf.transpose(taps, [1, 2, 5, 0, 3, 4])
    return tf.reshape(
        taps, [1, len(tap), size * filters, kh * size * channels]
    )
