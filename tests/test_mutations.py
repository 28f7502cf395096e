"""Files and answers, changed at random: none does harm.

`make check-mutations` tries 1,000 of each kind, `make test` some.
"""

import contextlib
import functools
import io
import json
import os
import resource
import time
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from broken_server import answering, asked

from dd_keras.datasets import images
from dd_keras.datasets.image_headers import stated_pixels
from dd_keras.serving import encoded_images

COUNT = int(os.environ.get("DD_KERAS_MUTATIONS", "50"))
MOST_PIXELS = 2**16
# What one of them may take; most take a millisecond, and nothing.
SECONDS, MIB = 5, 300
PNG = b"\x89PNG\r\n\x1a\n"
EXTREMES = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xff" * 4,
]


def mutated(data, rng):
    """Bytes, changed in one to four places, often in the header."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.5 else min(64, len(data))
        at = int(rng.integers(end)) if end else 0
        length = int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            extreme = EXTREMES[rng.integers(len(EXTREMES))]
            data[at : at + len(extreme)] = extreme
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = rng.bytes(length)
    return bytes(data)


def with_checksums(data):
    """A PNG whose chunks are whole; else nothing behind them is reached."""
    if not data.startswith(PNG):
        return data
    whole, at = PNG, len(PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        whole += data[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4)
        at += length + 12
    return whole


@contextlib.contextmanager
def within_bounds(what):
    """Fails if what is done takes too much time or memory."""
    before, started = peak_mib(), time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS, what
    assert peak_mib() - before < MIB, what


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def written(kind):
    """Files of a kind: small, of several forms."""
    rng = np.random.default_rng(0)
    forms = {
        "png": [{}, {"interlace": True}],
        "jpeg": [{}, {"progressive": True}],
        "gif": [{}, {"save_all": True}],
        "bmp": [{}],
    }
    for options in forms[kind]:
        pictures = [
            PIL.Image.fromarray(rng.integers(0, 256, (13, 21, 3), np.uint8))
            for _ in range(3)
        ]
        if "save_all" in options:
            options |= {"append_images": pictures[1:]}
        file = io.BytesIO()
        pictures[0].save(file, kind, **options)
        yield file.getvalue()


def mutants(seeds):
    """Pairs of a number and the mutant of it; that of 0 is a whole file."""
    seeds = list(seeds)
    yield 0, seeds[0]
    for number in range(1, COUNT):
        rng = np.random.default_rng(number)
        data = mutated(seeds[number % len(seeds)], rng)
        yield number, with_checksums(data) if rng.random() < 0.7 else data


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp"])
def test_no_file_has_more_pixels_than_its_header_states(kind):
    """As the folder of images reads them."""
    stated = tf.function(
        stated_pixels, input_signature=[tf.TensorSpec((), tf.string)]
    )
    decoded = 0
    for number, data in mutants(written(kind)):
        with within_bounds(number):
            try:
                pixels = float(stated(data))
                if 0 <= pixels <= MOST_PIXELS:
                    image = tf.io.decode_image(data, 3, expand_animations=False)
                    assert np.prod(image.shape[:2]) <= pixels, number
                    decoded += 1
            except tf.errors.InvalidArgumentError:
                pass
    assert 0 < decoded < COUNT


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_no_file_harms_a_server(kind):
    """It becomes an image of the right shape, or `InvalidArgument`."""
    shape, limits = (
        (8, 8, 1),
        encoded_images.Limits(4, MOST_PIXELS, MOST_PIXELS),
    )
    resize = functools.partial(images.resize, size=shape[:2])

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def run(encoded):
        return encoded_images.decode(encoded, shape, resize, limits)

    decoded = 0
    for number, data in mutants(written(kind)):
        with within_bounds(number):
            try:
                image = run([data]).numpy()
                assert image.shape == (1, *shape)
                assert np.all((image >= 0) & (image <= 255)), number
                decoded += 1
            except tf.errors.InvalidArgumentError:
                pass
    assert 0 < decoded < COUNT


FOUND = {
    "predictions": [
        {
            "classes": 1,
            "logits": [-0.5, 1.5],
            "probabilities": [0.25, 0.75],
            "labels": "\x1b[1mcat",
        }
    ]
}
ROBUST = {
    "predictions": [{"classes": 1, "rho": 0.1, "l2": 2.0, "nearest_class": 0}]
}


def said(web, path, answers):
    """What the client prints, or ends with."""
    try:
        return asked(web, [path], *((200, answer) for answer in answers))
    except SystemExit as end:
        return str(end)


def test_no_answer_harms_the_client(tmp_path):
    """It prints a table, or ends with one line."""
    path = tmp_path / "image.png"
    path.write_bytes(b"any")
    answers = [json.dumps(answer).encode() for answer in (FOUND, ROBUST)]
    printed = 0
    with answering() as web:
        for number in range(COUNT):
            rng = np.random.default_rng(number)
            sent = list(answers)
            sent[number % 2] = mutated(answers[number % 2], rng)
            with within_bounds(number):
                text = said(web, path, sent)
            if text.startswith("error: "):
                assert text.isprintable(), number
                continue
            lines = text.splitlines()
            assert len(lines) == 2, number
            assert all(line.isprintable() for line in lines), number
            printed += 1
    assert 0 < printed < COUNT
