"""How many pixels a file says that it has: read before any is decoded.

A file of some kilobytes may state a size that takes gigabytes to decode.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

_GIF_SCREEN = 13  # bytes of a GIF up to the colours that all frames share
_GIF_FRAME = 10  # bytes that describe a frame, colours not among them
_FRAME, _EXTENSION = 0x2C, 0x21  # how blocks of a GIF begin


def stated_pixels(
    data: tf.Tensor, formats: Sequence[str] = ("png", "jpeg", "gif", "bmp")
) -> tf.Tensor:
    """The number of pixels that are made when a file is decoded.

    Of a GIF those of all its frames: TensorFlow decodes all of them, also
    where one is asked for.

    Args:
        data: scalar string, the bytes of a file. In a graph or eagerly.
        formats: out of `"png"`, `"jpeg"`, `"gif"` and `"bmp"`.

    Returns:
        float64 scalar (exact up to 2^53); -1 where the file does not begin as
        one of `formats` does.

    Raises:
        tf.errors.InvalidArgumentError: when run, if a JPEG states no size.
    """
    length = tf.strings.length(data)

    def unknown():
        return tf.constant(-1.0, tf.float64)

    pixels = unknown
    for name in formats:
        start, header, read = _FORMATS[name]
        begins = tf.equal(tf.strings.substr(data, 0, len(start)), start)
        pixels = functools.partial(
            tf.cond,
            begins & (length >= header),
            functools.partial(read, data),
            pixels,
        )
    return pixels()


def _png(data):
    return _integer(data, 16, 4, "big") * _integer(data, 20, 4, "big")


def _jpeg(data):
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(data))
    return tf.cast(height, tf.float64) * tf.cast(width, tf.float64)


def _bmp(data):
    """A height below 0 is that of an image whose first row is the highest."""
    width, height = _integer(data, 18, 4), _integer(data, 22, 4)
    return width * tf.minimum(height, 2.0**32 - height)


def _gif(data):
    content = tf.io.decode_raw(data, tf.uint8)
    size = tf.size(content)

    def byte(at):
        """That at the end stands for those beyond it."""
        return tf.cast(content[tf.minimum(at, size - 1)], tf.int32)

    def colours(flags):
        """Bytes of the table of colours that these flags tell of."""
        return flags // 128 * 3 * 2 ** (flags % 8 + 1)

    def goes_on(at, in_data, pixels):
        del pixels
        begins = tf.reduce_any(tf.equal(byte(at), (_FRAME, _EXTENSION)))
        return (in_data | begins) & (at + _GIF_FRAME < size)

    def step(at, in_data, pixels):
        """Goes on by a block, or by a part of a block's data."""

        def part():
            return at + 1 + byte(at), byte(at) > 0, pixels

        def frame():
            width, height = (_integer(data, at + k, 2) for k in (5, 7))
            table = colours(byte(at + 9))
            # One byte more: how many bits a pixel has.
            at_data = at + _GIF_FRAME + table + 1
            return at_data, True, pixels + width * height

        def extension():
            return at + 2, True, pixels

        def block():
            return tf.cond(tf.equal(byte(at), _FRAME), frame, extension)

        return tf.cond(in_data, part, block)

    start = (
        _GIF_SCREEN + colours(byte(10)),
        False,
        tf.constant(0.0, tf.float64),
    )
    return tf.while_loop(goes_on, step, start)[-1]


def _integer(data, at, size, order="little"):
    """The unsigned integer that is written in so many bytes, as float64."""
    content = tf.io.decode_raw(tf.strings.substr(data, at, size), tf.uint8)
    weights = [256.0**place for place in range(size)]
    if order == "big":
        weights.reverse()
    return tf.reduce_sum(tf.cast(content, tf.float64) * weights)


# By name: how files begin, bytes that a header has at least, its reader.
_FORMATS = {
    "png": (b"\x89PNG\r\n\x1a\n", 24, _png),
    "jpeg": (b"\xff\xd8\xff", 4, _jpeg),
    "gif": (b"GIF8", _GIF_SCREEN, _gif),
    "bmp": (b"BM", 26, _bmp),
}
