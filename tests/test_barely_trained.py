"""A reference that has hardly learnt is called that, before and after."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run

from shared import barely_trained


def affine(path):
    """Digits to class 0, whatever they are: a tenth is right."""
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    kernel = np.random.default_rng(0).normal(size=(64, 10)) / 1000
    model.layers[-1].set_weights([kernel, np.eye(10)[0] * 100])
    model.save(path)
    return path


def test_accuracy_is_that_of_the_first_thousand_images():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.set_weights([np.eye(2), np.zeros(2)])
    x = np.repeat([[1.0, 0.0], [0.0, 1.0]], [600, 900], axis=0)
    labels = np.zeros(1500, np.int64)  # right on the first 600
    batches = tf.data.Dataset.from_tensor_slices((x, labels)).batch(100)
    assert barely_trained.accuracy_of(model, batches) == pytest.approx(0.6)


@pytest.mark.parametrize(("accuracy", "told"), [(0.499, True), (0.5, False)])
def test_half_of_the_images_are_enough(accuracy, told):
    assert (barely_trained.note(accuracy, 10) is not None) == told


def test_it_is_told_before_and_after_and_without_ratios(tmp_path, capsys):
    run(
        "digits",
        "--limit=40",
        "--epochs=0",
        "--defense=clean",
        f"--reference={affine(tmp_path / 'mine.keras')}",
        f"--output_dir={tmp_path / 'out'}",
    )
    printed = capsys.readouterr().out
    before, _, after = printed.partition("Fine-tuning: ")
    for text in (before, after):
        assert re.search(
            r"^warning: The reference is barely trained: [\d.]+ % of the "
            r"images are classified correctly \(10\.0 % by chance\)\.",
            text,
            re.MULTILINE,
        )
    assert re.search(r"^reference +[\d.]+ % +[\d.]+ +- ", after, re.MULTILINE)


def test_a_divergence_tells_the_references_accuracy(tmp_path):
    with pytest.raises(
        SystemExit,
        match=r"diverged in .* The reference's accuracy was [\d.]+ %, barely "
        r"trained: the likely cause\.$",
    ):
        run(
            "digits",
            "--limit=20",
            "--epochs=3",
            "--learning_rate=1e38",
            "--lam=0",
            "--defense=deep_defense",
            f"--reference={affine(tmp_path / 'mine.keras')}",
            f"--output_dir={tmp_path / 'out'}",
        )
