"""PNG and JPEG files become what `datasets` makes of them."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from dd_keras.datasets import images
from dd_keras.serving import encoded_images

RANDOM = np.random.RandomState(0)


def pixels(height, width, channels):
    size = (height, width, channels)
    return RANDOM.randint(0, 256, size).astype(np.uint8)


def decode(files, image_shape, resize=None, limits=(20, 10_000, 100_000)):
    """As the server does it: in a graph, with a free batch size."""
    resize = resize or functools.partial(images.resize, size=image_shape[:2])
    limits = encoded_images.Limits(*limits)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def run(encoded):
        return encoded_images.decode(encoded, image_shape, resize, limits)

    return run(files).numpy()


def test_image_of_the_right_size_is_kept_to_the_bit():
    image = pixels(28, 20, 1)
    found = decode([tf.io.encode_png(image)], (28, 20, 1))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, image[None])


@pytest.mark.parametrize("size", [(8, 8), (30, 50), (100, 7), (1, 1)])
@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_other_sizes_are_resized_as_by_datasets(size, encode):
    data = encode(pixels(*size, 3))
    [found] = decode([data], (20, 16, 3))
    image = tf.io.decode_image(data, 3)
    np.testing.assert_array_equal(found, images.resize(image, (20, 16)))
    assert found.min() >= 0
    assert found.max() <= 255


@pytest.mark.slow
def test_batch_of_different_files():
    files = [
        tf.io.encode_png(pixels(10, 12, 1)),
        tf.io.encode_jpeg(pixels(40, 12, 3)),
        tf.io.encode_png(pixels(9, 9, 4)),
    ] * 5
    together = decode(files, (9, 9, 3))
    assert together.shape == (15, 9, 9, 3)
    for file, image in zip(files, together, strict=True):
        np.testing.assert_array_equal(decode([file], (9, 9, 3))[0], image)


def test_greys_colours_transparency_and_depth():
    grey, colour = pixels(6, 5, 1), pixels(6, 5, 3)
    alpha = pixels(6, 5, 1)
    [found] = decode([tf.io.encode_png(grey)], (6, 5, 3))
    np.testing.assert_array_equal(found, np.repeat(grey, 3, -1))
    with_alpha = tf.io.encode_png(np.concatenate([colour, alpha], -1))
    [found] = decode([with_alpha], (6, 5, 3))
    np.testing.assert_array_equal(found, colour)
    deep = tf.io.encode_png(grey.astype(np.uint16) * 257)
    [found] = decode([deep], (6, 5, 1))
    np.testing.assert_array_equal(found, grey)
    [found] = decode([tf.io.encode_png(colour)], (6, 5, 1))
    luma = colour @ [0.299, 0.587, 0.114]
    assert np.abs(found[..., 0] - luma).max() < 30


def test_resize_of_the_callers_own():
    image = pixels(10, 10, 1)

    def middle(image):
        return image[3:7, 3:7]

    [found] = decode([tf.io.encode_png(image)], (4, 4, 1), middle)
    np.testing.assert_array_equal(found, image[3:7, 3:7])


def test_resize_that_gives_another_shape_is_told_at_once():
    with pytest.raises(ValueError, match=r"not compatible|Incompatible|shape"):
        decode(
            [tf.io.encode_png(pixels(4, 4, 1))],
            (4, 4, 1),
            functools.partial(images.resize, size=(5, 5)),
        )


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_largest_image_and_one_pixel_more(encode):
    fits, larger = (encode(pixels(20, width, 1)) for width in (5, 6))
    limits = (2, 100, 1000)
    assert decode([fits], (4, 4, 1), limits=limits).shape == (1, 4, 4, 1)
    message = (
        r"expected images of at most 100 pixels each; received headers that "
        r"state\] \[120\]"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode([fits, larger], (4, 4, 1), limits=limits)


def test_largest_request_and_one_pixel_more():
    """Of PNG and JPEG files together."""
    files = [
        tf.io.encode_png(pixels(9, 9, 1)),
        tf.io.encode_jpeg(pixels(3, 5, 1)),
    ]
    assert len(decode(files, (4, 4, 1), limits=(2, 100, 96))) == 2
    message = r"of at most 95 pixels together; .* that state\] \[96\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode(files, (4, 4, 1), limits=(2, 100, 95))


def test_most_images_and_one_more():
    files = [tf.io.encode_png(pixels(3, 3, 1))] * 3
    assert len(decode(files, (4, 4, 1), limits=(3, 9, 27))) == 3
    message = r"expected at most 2 images; received\] \[3\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode(files, (4, 4, 1), limits=(2, 9, 27))


@pytest.mark.parametrize("together", [False, True])
def test_nothing_is_decoded_beyond_a_limit(together):
    """Else the first file would be told: its pixels are cut short."""
    files = [tf.io.encode_png(pixels(30, 30, 1)).numpy()[:-60]]
    files += [tf.io.encode_png(pixels(30, 31, 1)).numpy()]
    with pytest.raises(tf.errors.InvalidArgumentError, match="PNG"):
        decode(files, (4, 4, 1))
    limits = (2, 1000, 1829) if together else (2, 929, 10_000)
    with pytest.raises(tf.errors.InvalidArgumentError, match="headers that"):
        decode(files, (4, 4, 1), limits=limits)


def test_sizes_beyond_all_integers_are_beyond_the_limits():
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\xff" * 8
    with pytest.raises(tf.errors.InvalidArgumentError, match="pixels each"):
        decode([png] * 3, (4, 4, 1), limits=(9, 2**62, 2**62))


def test_images_that_fit_into_a_request():
    limits = encoded_images.Limits(8, 100, 350)
    found = [limits.images_of(n) for n in (1, 43, 44, 100, 101)]
    assert found == [8, 8, 7, 3, 0]
