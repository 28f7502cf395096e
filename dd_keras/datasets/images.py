"""What is done with images, and the `Data` that most data sets make."""

import functools

import keras
import numpy as np
import tensorflow as tf

from dd_keras.datasets.data import CHUNK, MEMORY, Data

flip = tf.image.stateless_random_flip_left_right


def mean_subtracted(train, test, class_names, image_size, augment, seed):
    """`Data` of two raw splits, in memory if they fit, as `load` has it.

    Args:
        train: unbatched data set of (image, label), of any numbers, pixels 0
            to 255. Its cardinality is known.
        test: the same.
        class_names: in the order of the labels.
        image_size: to resize to; None: not at all.
        augment: whether to mirror training images.
        seed: of `augment`.
    """
    if image_size is not None:
        train, test = (
            split.map(
                lambda x, y: (resize(x, (image_size, image_size)), y),
                tf.data.AUTOTUNE,
            )
            for split in (train, test)
        )
    shape = test.element_spec[0].shape
    if not shape.is_fully_defined():
        raise ValueError(
            "image_size: expected a positive integer, as these images differ "
            "in size; received None."
        )
    total = sum(int(split.cardinality()) for split in (train, test))
    fits = total * shape.num_elements() * tf.float32.size <= MEMORY
    if fits:
        train, test = (
            tf.data.Dataset.from_tensor_slices(
                next(iter(split.batch(int(split.cardinality()))))
            )
            for split in (train, test)
        )
    mean, count = np.zeros(shape), 0
    for images, _ in train.batch(CHUNK):
        mean += images.numpy().sum(axis=0, dtype=np.float64)
        count += len(images)
    mean = (mean / count).astype(np.float32)
    train, test = (
        split.map(lambda x, y: (tf.cast(x, tf.float32), tf.cast(y, tf.int64)))
        for split in (train, test)
    )
    vary = functools.partial(augmented, train, flip, seed)
    return Data(
        vary() if augment else train,
        test,
        normalization(shape, (1, 2, 3), mean, np.ones_like(mean)),
        len(class_names),
        tuple(class_names),
        cache=fits and not augment,
        epoch=vary if augment else None,
    )


def normalization(shape, axis, mean, variance):
    """A layer that standardises batches of images of a shape (H, W, C)."""
    layer = keras.layers.Normalization(
        axis=axis, mean=mean, variance=variance, name="subtract_mean"
    )
    layer.build((None, *shape))
    return layer


def resize(image, size):
    """Resizes an image; (H, W, C) of any dtype to float32 in [0, 255]."""
    image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
    return tf.clip_by_value(image, 0.0, 255.0)  # rounding may lead beyond


def augmented(dataset, vary, seed, epoch=None):
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
