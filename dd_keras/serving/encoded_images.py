"""PNG and JPEG files to images, in the graph; safe for files of attackers."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from dd_keras.datasets.image_headers import stated_pixels
from dd_keras.serving.checks import require, require_shape

# Images decoded side by side; they share the memory there is.
_AT_ONCE = 4
_LARGEST_SHOWN = 2.0**62  # of the pixels that headers state, as an int64


class Limits(NamedTuple):
    """What a request of encoded images may hold.

    Attributes:
        images: most images.
        pixels: most pixels of an image.
        request_pixels: most pixels of all its images together.
    """

    images: int
    pixels: int
    request_pixels: int

    def images_of(self, pixels: int) -> int:
        """How many images of so many pixels a request may hold."""
        if pixels > self.pixels:
            return 0
        return min(self.images, self.request_pixels // pixels)


def decode(
    encoded: tf.Tensor,
    image_shape: tuple[int, int, int],
    resize: Callable[[tf.Tensor], tf.Tensor],
    limits: Limits,
) -> tf.Tensor:
    """Decodes a batch of files, as `datasets` decodes those it reads.

    The sizes that the files' headers state are checked before any memory is
    allocated for pixels.

    Args:
        encoded: (B,) strings, the bytes of PNG or JPEG files.
        image_shape: (height, width, channels), 1 or 3 channels; colours
            become greys or the reverse, and transparency is left out.
        resize: function from an image, uint8 (H, W, channels), to one of
            `image_shape`, in [0, 255].
        limits: what the batch may hold.

    Returns:
        float32, (B, *image_shape), in [0, 255].

    Raises:
        tf.errors.InvalidArgumentError: when run, if there are none, one is no
            whole file of this kind, or the batch is beyond a limit.
    """
    channels = image_shape[-1]

    def decode_one(data):
        image = tf.io.decode_image(data, channels, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, channels))
        return tf.ensure_shape(tf.cast(resize(image), tf.float32), image_shape)

    return tf.map_fn(
        decode_one,
        _within(limits, require_shape("encoded", encoded, ())),
        fn_output_signature=tf.TensorSpec(image_shape, tf.float32),
        parallel_iterations=_AT_ONCE,
    )


def _within(limits, encoded):
    """A batch of files, once they are checked against all limits."""
    count = tf.shape(encoded)[0]
    encoded = require(
        encoded,
        count <= limits.images,
        f"encoded: expected at most {limits.images} images; received",
        count,
    )
    pixels = tf.map_fn(
        _stated_pixels,
        encoded,
        fn_output_signature=tf.TensorSpec((), tf.float64),
    )
    for most, of_what, stated in (
        (limits.pixels, "each", tf.reduce_max(pixels)),
        (limits.request_pixels, "together", tf.reduce_sum(pixels)),
    ):
        encoded = require(
            encoded,
            stated <= most,
            f"encoded: expected images of at most {most} pixels {of_what}; "
            "received headers that state",
            tf.cast(tf.minimum(stated, _LARGEST_SHOWN), tf.int64),
        )
    return encoded


def _stated_pixels(data):
    """The pixels of a file, once it is checked to be a PNG or JPEG one."""
    pixels = stated_pixels(data, ("png", "jpeg"))
    return require(
        pixels,
        pixels >= 0,
        "encoded: expected PNG or JPEG files; received one of another kind, "
        "its length in bytes",
        tf.strings.length(data),
    )
