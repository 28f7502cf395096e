"""What headers state is what the decoder makes of a file."""

import functools
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from dd_keras.datasets.image_headers import stated_pixels

KINDS = ["png", "jpeg", "gif", "bmp"]


@functools.cache
def graph_of(formats):
    return tf.function(
        lambda data: stated_pixels(data, formats),
        input_signature=[tf.TensorSpec((), tf.string)],
    )


def pixels_of(data, formats=("png", "jpeg", "gif", "bmp")):
    """As data sets ask: in a graph."""
    return float(graph_of(tuple(formats))(data))


def written(path, kind, size, frames=1, **options):
    """The bytes of an image of noise."""
    random = np.random.default_rng(0)
    images = [
        PIL.Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
        for _ in range(frames)
    ]
    if frames > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    images[0].save(path, kind, **options)
    return path.read_bytes()


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (260, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_size_is_that_of_the_decoded_image(tmp_path, kind, size):
    data = written(tmp_path / "image", kind, size)
    shape = tf.io.decode_image(data, 3, expand_animations=False).shape
    assert tuple(shape) == (*size, 3)
    assert pixels_of(data) == size[0] * size[1]


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"exif": b"Exif\0\0" + bytes(60_000)}]
)
def test_size_of_a_jpeg_may_stand_far_behind(tmp_path, options):
    data = written(tmp_path / "image", "jpeg", (9, 5), **options)
    assert pixels_of(data) == 45


def test_all_frames_of_an_animation_count(tmp_path):
    """With a comment before them, and colours of their own."""
    data = written(
        tmp_path / "image", "gif", (40, 30), frames=5, comment=b"c" * 700
    )
    assert len(tf.io.decode_gif(data)) == 5
    assert pixels_of(data) == 5 * 40 * 30


def test_frames_that_are_cut_short_count_as_far_as_they_are_there(tmp_path):
    data = written(tmp_path / "image", "gif", (40, 30), frames=3)
    found = {pixels_of(data[:end]) for end in range(13, len(data), 97)}
    assert found == {0, 1200, 2400, 3600}


def test_sizes_that_overflow_integers():
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\xff" * 8
    assert pixels_of(png) == (2.0**32 - 1) ** 2
    frame = b"," + bytes(4) + b"\xff" * 4 + b"\0\2\0"
    gif = b"GIF89a" + bytes(7) + frame * 3 + b";"
    assert pixels_of(gif) == 3 * (2**16 - 1) ** 2


@pytest.mark.parametrize("height", [300, -300])
def test_bitmap_from_its_top(height):
    size = struct.pack("<ii", 20, height)
    assert pixels_of(b"BM" + bytes(16) + size) == 6000


@pytest.mark.parametrize("kind", KINDS)
def test_headers_that_are_cut_short(tmp_path, kind):
    """Nothing is made up, and nothing but TensorFlow's own error raised."""
    data = written(tmp_path / "image", kind, (9, 5))
    for end in range(30):
        try:
            assert pixels_of(data[:end]) in (-1, 0, 45)
        except tf.errors.InvalidArgumentError:
            assert kind == "jpeg"


def test_other_files_and_formats_that_are_not_asked_for(tmp_path):
    assert pixels_of(b"") == pixels_of(b"no image") == -1
    for kind in KINDS:
        data = written(tmp_path / "image", kind, (9, 5))
        for asked in KINDS:
            assert pixels_of(data, [asked]) == (45 if asked == kind else -1)
