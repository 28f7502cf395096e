"""Random numbers that follow from a seed and from the sample itself.

Stateless, as tf.random.stateless_uniform, but with a key for each sample: its
numbers depend on its values, its shape and the seed, and on nothing else. Not
on the batch that it is in, on its row there, or on which samples left the
batch before. Equal samples get equal numbers. They are the same under XLA,
but for the rounding of logarithm and cosine in `normal`.
"""

import math

import tensorflow as tf

# The arithmetic is modulo 2^32, in int64, which TensorFlow has kernels for on
# every device (of uint32 it has not): a product wraps at 64 bits, and its
# lowest 32 bits are the right ones.
_MASK_32 = 0xFFFFFFFF
_GOLDEN_RATIO = 0x9E3779B9  # 2^32 over the golden ratio: spreads a counter


def uniform(x: tf.Tensor, seed: int, stream: int | tf.Tensor) -> tf.Tensor:
    """Numbers uniform in (0, 1), for each entry of each sample.

    Args:
        x: (B, ...), float32 or float64: the samples.
        seed: an integer of at least 0.
        stream: an integer, or an integer tensor of shape (): numbers of
            different streams are independent.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    return _to_unit_interval(_entry_hashes(x, seed, stream), x.dtype)


def first_stream(step: tf.Tensor) -> tf.Tensor:
    """Where the streams of a training step begin: int64, ().

    Args:
        step: an integer tensor of shape (). The streams of step 0 begin at 0.
    """
    return (tf.cast(step, tf.int64) * _GOLDEN_RATIO) & _MASK_32


def uniform_per_sample(
    x: tf.Tensor, seed: int, stream: int | tf.Tensor
) -> tf.Tensor:
    """One number uniform in (0, 1) for each sample: (B,). See `uniform`."""
    return _to_unit_interval(_sample_hashes(x, seed, stream), x.dtype)


def keys(x: tf.Tensor, seed: int) -> tf.Tensor:
    """A key for each sample, (B,) int64, for many calls of `from_keys`.

    Making it reads every entry of a sample; drawing from it does not.
    """
    # 0.0 and -0.0 are one value.
    x = tf.where(tf.equal(x, 0), tf.zeros_like(x), x)
    bits = tf.bitcast(x, tf.int64 if x.dtype == tf.float64 else tf.int32)
    bits = tf.cast(bits, tf.int64)
    low, high = bits & _MASK_32, tf.bitwise.right_shift(bits, 32) & _MASK_32
    mixed = _hash(_hash(low ^ _position_hashes(x)) ^ high)
    # The sum of integers does not depend on their order.
    total = tf.reduce_sum(mixed, axis=list(range(1, x.shape.rank)))
    for number in (seed & _MASK_32, seed >> 32 & _MASK_32):
        total = _hash(total ^ number)
    return total


def from_keys(
    keys: tf.Tensor, stream: int | tf.Tensor, count: int, dtype: tf.DType
) -> tf.Tensor:
    """Numbers uniform in (0, 1), as many for each sample as are asked for.

    Args:
        keys: (B,), see `keys`.
        stream: as in `uniform`; other numbers than `uniform`'s.
        count: how many.
        dtype: float32 or float64.

    Returns:
        (B, count).
    """
    positions = tf.range(1, count + 1, dtype=tf.int64) * _GOLDEN_RATIO
    # A stream of their own: `uniform` hashes positions another way.
    hashes = _hash(_hash(keys ^ tf.cast(stream, tf.int64)) ^ _GOLDEN_RATIO)
    return _to_unit_interval(
        _hash(hashes[:, None] ^ (positions & _MASK_32)), dtype
    )


def normal(x: tf.Tensor, seed: int, stream: int | tf.Tensor) -> tf.Tensor:
    """Standard normal numbers, for each entry of each sample.

    By the Box-Muller transform; uses `stream` and the next. See `uniform`.
    """
    radius = tf.sqrt(-2.0 * tf.math.log(uniform(x, seed, stream)))
    return radius * tf.cos(2 * math.pi * uniform(x, seed, stream + 1))


def _entry_hashes(x, seed, stream):
    """A hash for each entry: int64 in [0, 2^32), of the shape of x."""
    hashes = tf.reshape(
        _sample_hashes(x, seed, stream), [-1] + [1] * (x.shape.rank - 1)
    )
    return _hash(hashes ^ _position_hashes(x))


def _sample_hashes(x, seed, stream):
    """A hash for each sample, of its values: int64 in [0, 2^32), (B,)."""
    return _hash(keys(x, seed) ^ tf.cast(stream, tf.int64))


def _position_hashes(x):
    """A hash of each entry's position in its sample: (1, ...), int64."""
    shape = tf.shape(x)[1:]
    positions = tf.range(1, tf.cast(tf.reduce_prod(shape), tf.int64) + 1)
    positions = (positions * _GOLDEN_RATIO) & _MASK_32
    return tf.reshape(positions, tf.concat([[1], shape], axis=0))


def _hash(values):
    """The finalizer of MurmurHash3: int64 to int64 in [0, 2^32)."""
    values &= _MASK_32
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        values ^= tf.bitwise.right_shift(values, shift)
        values = values * multiplier & _MASK_32
    return values ^ tf.bitwise.right_shift(values, 16)


def _to_unit_interval(values, dtype):
    """int64 in [0, 2^32) to (0, 1): half a step from the ends, at least."""
    if dtype == tf.float64:
        return (tf.cast(values, dtype) + 0.5) * 2.0**-32
    # 23 bits: with half a step more, float32 still distinguishes them from 1.
    return (tf.cast(tf.bitwise.right_shift(values, 9), dtype) + 0.5) * 2.0**-23
