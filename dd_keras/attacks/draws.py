"""Random numbers that follow from a seed and from the sample itself.

A sample's numbers depend on its values, its shape and the seed, and on
nothing else: not on the batch it is in, its place there, or who left the
batch before. Equal samples get equal numbers. They are the same under XLA,
but for the rounding of logarithm and cosine in `normal`.
"""

import math

import tensorflow as tf

# Multiplications wrap at 64 bits, whose lowest 32 are those of the product.
# int64, as TensorFlow has it on every device; of uint32 it has not.
_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads a counter


def uniform(x, seed, stream):
    """Numbers uniform in (0, 1), for each entry of each sample.

    Args:
        x: (B, ...), float32 or float64: the samples.
        seed: an integer of at least 0.
        stream: an integer, or an integer tensor of shape (): numbers of
            different streams are independent.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    return _uniform(_entries(x, seed, stream), x.dtype)


def one_each(x, seed, stream):
    """One number uniform in (0, 1) for each sample: (B,). See `uniform`."""
    return _uniform(_keys(x, seed, stream), x.dtype)


def normal(x, seed, stream):
    """Standard normal numbers, for each entry of each sample.

    By Box and Muller; takes `stream` and the next. See `uniform`.
    """
    radius = tf.sqrt(-2.0 * tf.math.log(uniform(x, seed, stream)))
    return radius * tf.cos(2 * math.pi * uniform(x, seed, stream + 1))


def _entries(x, seed, stream):
    """A hash for each entry: int64 in [0, 2^32), of the shape of x."""
    keys = tf.reshape(_keys(x, seed, stream), [-1] + [1] * (x.shape.rank - 1))
    return _mix(keys ^ _places(x))


def _keys(x, seed, stream):
    """A hash for each sample, of its values: int64 in [0, 2^32), (B,)."""
    # Both zeros are one value.
    x = tf.where(tf.equal(x, 0), tf.zeros_like(x), x)
    bits = tf.bitcast(x, tf.int64 if x.dtype == tf.float64 else tf.int32)
    bits = tf.cast(bits, tf.int64)
    low, high = bits & _LOW, tf.bitwise.right_shift(bits, 32) & _LOW
    mixed = _mix(_mix(low ^ _places(x)) ^ high)
    # A sum of integers is the same in any order.
    total = tf.reduce_sum(mixed, axis=list(range(1, x.shape.rank)))
    for number in (seed & _LOW, seed >> 32 & _LOW, stream):
        total = _mix(total ^ tf.cast(number, tf.int64))
    return total


def _places(x):
    """A hash of the place of each entry in its sample: (1, ...), int64."""
    shape = tf.shape(x)[1:]
    places = tf.range(1, tf.cast(tf.reduce_prod(shape), tf.int64) + 1)
    places = (places * _GOLDEN) & _LOW
    return tf.reshape(places, tf.concat([[1], shape], axis=0))


def _mix(values):
    """MurmurHash3's last step: int64 to int64 in [0, 2^32)."""
    values &= _LOW
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        values ^= tf.bitwise.right_shift(values, shift)
        values = values * multiplier & _LOW
    return values ^ tf.bitwise.right_shift(values, 16)


def _uniform(values, dtype):
    """int64 in [0, 2^32) to (0, 1): half a step from the ends, at least."""
    if dtype == tf.float64:
        return (tf.cast(values, dtype) + 0.5) * 2.0**-32
    # 23 bits: with half a step more, float32 still tells them from 1.
    return (tf.cast(tf.bitwise.right_shift(values, 9), dtype) + 0.5) * 2.0**-23
