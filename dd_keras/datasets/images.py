"""What is done with images, and the `Data` that most data sets make."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras.datasets.data import CHUNK, MEMORY, Data

flip = tf.image.stateless_random_flip_left_right


def mean_subtracted(
    train: tf.data.Dataset,
    test: tf.data.Dataset,
    class_names: Sequence[str],
    image_size: int | None,
    augment: bool,
    seed: int,
    validation_split: float,
) -> Data:
    """`Data` of two raw splits, in memory if they fit, as `load` has it.

    Args:
        train: unbatched data set of (image, label), of any numbers, pixels 0
            to 255. Its cardinality is known.
        test: the same.
        class_names: in the order of the labels.
        image_size: to resize to; None: not at all.
        augment: whether to mirror training images.
        seed: of `augment`.
        validation_split: share of the training images that is for validation.
    """
    train, validation = split_off(train, validation_split)
    splits = {"train": train, "test": test}
    if validation is not None:
        splits["validation"] = validation
    if image_size is not None:
        splits = {
            name: split.map(
                lambda x, y: (resize(x, (image_size, image_size)), y),
                tf.data.AUTOTUNE,
            )
            for name, split in splits.items()
        }
    shape = splits["test"].element_spec[0].shape
    if not shape.is_fully_defined():
        raise ValueError(
            "image_size: expected a positive integer, as these images differ "
            "in size; received None."
        )
    total = sum(int(split.cardinality()) for split in splits.values())
    fits = total * shape.num_elements() * tf.float32.size <= MEMORY
    if fits:
        splits = {
            name: tf.data.Dataset.from_tensor_slices(
                next(iter(split.batch(int(split.cardinality()))))
            )
            for name, split in splits.items()
        }
    mean, count = np.zeros(shape), 0
    for images, _ in splits["train"].batch(CHUNK):
        mean += images.numpy().sum(axis=0, dtype=np.float64)
        count += len(images)
    mean = (mean / count).astype(np.float32)
    splits = {
        name: split.map(
            lambda x, y: (tf.cast(x, tf.float32), tf.cast(y, tf.int64))
        )
        for name, split in splits.items()
    }
    vary = functools.partial(augmented, splits["train"], flip, seed)
    return Data(
        vary() if augment else splits["train"],
        splits["test"],
        normalization(shape, (1, 2, 3), mean, np.ones_like(mean)),
        len(class_names),
        tuple(class_names),
        cache=fits and not augment,
        epoch=vary if augment else None,
        validation=splits.get("validation"),
    )


def split_off(
    train: tf.data.Dataset, share: float
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """The first training images, and the last share of them or None."""
    if not share:
        return train, None
    size = int(train.cardinality())
    cut = size - max(1, round(share * size))
    if cut < 1:
        raise ValueError(
            "validation_split: expected a share that leaves images to train "
            f"on; received {share} of {size} images."
        )
    return train.take(cut), train.skip(cut)


def normalization(
    shape: tuple[int, ...], axis: Any, mean: Any, variance: Any
) -> keras.layers.Normalization:
    """A layer that standardises batches of images of a shape (H, W, C)."""
    layer = keras.layers.Normalization(
        axis=axis, mean=mean, variance=variance, name="subtract_mean"
    )
    layer.build((None, *shape))
    return layer


def resize(image: tf.Tensor, size: Any) -> tf.Tensor:
    """Resizes an image; (H, W, C) of any dtype to float32 in [0, 255]."""
    image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
    return tf.clip_by_value(image, 0.0, 255.0)  # rounding may lead beyond


def augmented(
    dataset: tf.data.Dataset, vary: Callable, seed: int, epoch: Any = None
) -> tf.data.Dataset:
    """Applies `vary(image, seed)`, seeds (2,) int64, new in each epoch.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        vary: the function.
        seed: of the seeds.
        epoch: the number of one epoch, an int64 scalar, to be had again; None
            for as many as the data set is gone through.
    """
    again = epoch is None
    if not again:
        seed = tf.random.stateless_uniform(
            (), (seed, epoch), None, None, tf.int64
        )
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=again)
    # Seeds belong to elements, not to threads: the order of work is free.
    return tf.data.Dataset.zip(
        dataset, seeds.batch(2, drop_remainder=True)
    ).map(
        lambda element, pair: (vary(element[0], pair), element[1]),
        tf.data.AUTOTUNE,
    )
