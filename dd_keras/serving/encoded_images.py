"""PNG and JPEG files to images, in the graph; safe for files of attackers."""

from collections.abc import Callable

import tensorflow as tf

from dd_keras.serving.checks import require, require_shape

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_HEADER = 24  # bytes up to the end of width and height
# Images decoded side by side; they share the memory there is.
_AT_ONCE = 4


def decode(
    encoded: tf.Tensor,
    image_shape: tuple[int, int, int],
    resize: Callable[[tf.Tensor], tf.Tensor],
    max_pixels: int,
) -> tf.Tensor:
    """Decodes a batch of files, as `datasets` decodes those it reads.

    The size that a file's header states is checked before any memory is
    allocated for its pixels.

    Args:
        encoded: (B,) strings, the bytes of PNG or JPEG files.
        image_shape: (height, width, channels), 1 or 3 channels; colours
            become greys or the reverse, and transparency is left out.
        resize: function from an image, uint8 (H, W, channels), to one of
            `image_shape`, in [0, 255].
        max_pixels: most pixels an image may have.

    Returns:
        float32, (B, *image_shape), in [0, 255].

    Raises:
        tf.errors.InvalidArgumentError: when run, if there are none, one is no
            whole file of this kind, or has more pixels.
    """
    channels = image_shape[-1]

    def decode_one(data):
        data = _known_format(data)
        data = _of_size(data, max_pixels)
        image = tf.io.decode_image(data, channels, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, channels))
        return tf.ensure_shape(tf.cast(resize(image), tf.float32), image_shape)

    return tf.map_fn(
        decode_one,
        require_shape("encoded", encoded, ()),
        fn_output_signature=tf.TensorSpec(image_shape, tf.float32),
        parallel_iterations=_AT_ONCE,
    )


def _known_format(data):
    """A string, once it is checked to begin as a PNG or JPEG file does."""
    return require(
        data,
        _is_png(data) | tf.equal(_start(data, _JPEG), _JPEG),
        "encoded: expected PNG or JPEG files; received one of another kind, "
        "its length in bytes",
        tf.strings.length(data),
    )


def _of_size(data, max_pixels):
    """A PNG or JPEG file, once its header states at most `max_pixels`."""

    def png_size():
        stated = tf.strings.substr(data, _PNG_HEADER - 8, 8)  # width, height
        return tf.io.decode_raw(stated, tf.int32, little_endian=False)

    def jpeg_size():
        return tf.io.extract_jpeg_shape(data)[:2]

    size = tf.cond(_is_png(data), png_size, jpeg_size)
    return require(
        data,
        tf.reduce_prod(tf.cast(size, tf.int64)) <= max_pixels,
        f"encoded: expected images of at most {max_pixels} pixels; received "
        "one whose header states the sides",
        size,
    )


def _is_png(data):
    whole_header = tf.strings.length(data) >= _PNG_HEADER
    return tf.equal(_start(data, _PNG), _PNG) & whole_header


def _start(data, prefix):
    return tf.strings.substr(data, 0, len(prefix))
