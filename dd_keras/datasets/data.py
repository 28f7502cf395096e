"""The form that all data sets have, batches of it, and a check."""

from collections.abc import Callable
from typing import NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

# Those with a recipe of their own; `load` knows all that TFDS has besides.
NAMES = ["cifar10", "digits", "folder", "imagenet2012", "mnist"]

# One large shuffle buffer for small data sets; larger ones shuffle in part.
_SHUFFLE_BUFFER = 60_000
# Bytes that a cache, or a buffer of large images to shuffle, may fill.
MEMORY = 2 * 2**30
CHUNK = 256  # images at once in a pass over all; 200 MB of ImageNet's
# Several workers share each batch, as several devices do: they compute what
# one would. TensorFlow's default would deal out files where there are some.
EVERY_SAMPLE = tf.data.Options()
EVERY_SAMPLE.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
)


class Data(NamedTuple):
    """A data set, ready for `batches`.

    Attributes:
        train: unbatched `tf.data.Dataset` of (image, label); images float32
            of shape (H, W, C) in [0, 255], labels int64 in [0, classes).
        test: the same, in a fixed order.
        preprocessing: Keras layer from images to the classifier's inputs; it
            subtracts the training set's mean, see `load`. None for none.
        num_classes: number of classes.
        class_names: names of the classes, in the order of the labels; None if
            unknown.
        cache: whether all passes over `train` are alike and fit in memory, an
            argument of `batches`. False if images are augmented or streamed.
        resize: TensorFlow function that resizes an image of any size, (H, W,
            C) in [0, 255], to `image_shape`, like the test images. None:
            `images.resize`, each side on its own.
        epoch: TensorFlow function from the number of an epoch to its training
            images, if these are augmented; see `ResumableBatches`. None: they
            are always those of `train`.
        validation: held-out training images, in a fixed order; None for none.

    Example:
        >>> data = dd_keras.datasets.load("digits")
        >>> data.class_names[:3]
        ('0', '1', '2')
        >>> low, high = data.bounds  # of inputs, for attacks and evaluation
        >>> low.shape
        (8, 8, 1)
        >>> len(data.limited(50).train)
        50
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    preprocessing: keras.layers.Layer
    num_classes: int
    class_names: tuple[str, ...] | None = None
    cache: bool = True
    resize: Callable | None = None
    epoch: Callable | None = None
    validation: tf.data.Dataset | None = None

    def limited(self, images: int) -> Self:
        """The same with only the first `images` images of each split."""
        vary, validation = self.epoch, self.validation
        return self._replace(
            train=self.train.take(images),
            test=self.test.take(images),
            epoch=vary and (lambda number: vary(number).take(images)),
            validation=None if validation is None else validation.take(images),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        train, test = (
            split.element_spec[0].shape for split in (self.train, self.test)
        )
        return tuple(train if train.is_fully_defined() else test)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The valid range of the classifier's inputs: (low, high).

        These are the preprocessed black and white images, float32 arrays of
        `image_shape`. Correct for preprocessing that is increasing in each
        pixel by itself.
        """
        ends = np.stack(
            [np.full(self.image_shape, v, np.float32) for v in (0, 255)]
        )
        if self.preprocessing is not None:
            ends = np.asarray(self.preprocessing(ends))
        return ends[0], ends[1]


def batches(
    dataset: tf.data.Dataset,
    preprocessing: keras.layers.Layer | None,
    batch_size: int,
    shuffle_seed: int | None = None,
    cache: bool = True,
) -> tf.data.Dataset:
    """Batches of preprocessed inputs and labels, prefetched.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        preprocessing: Keras layer or model applied to batches of images; None
            for none.
        batch_size: images per batch; the last batch may be smaller.
        shuffle_seed: seed of an order that is new in each epoch and the same
            in each run; None keeps the order of `dataset`. The shuffle buffer
            holds 60,000 images, and without `cache` at most 2 GiB; larger data
            sets are only partly shuffled.
        cache: whether to keep all preprocessed inputs in memory, for data
            that are iterated more than once. Not for augmented images, which
            would stay the same in every epoch.

    Returns:
        A `tf.data.Dataset` of (B, H, W, C) float32 inputs and (B,) labels.

    Example:
        >>> data = dd_keras.datasets.load("digits")
        >>> train = dd_keras.datasets.batches(
        ...     data.train, data.preprocessing, batch_size=32, shuffle_seed=0
        ... )
        >>> x, y = next(iter(train))
        >>> x.shape, y.shape
        (TensorShape([32, 8, 8, 1]), TensorShape([32]))
    """
    if cache:
        dataset, preprocessing = preprocessed(dataset, preprocessing), None
    if shuffle_seed is not None:
        buffer = shuffle_buffer(dataset, bounded=not cache)
        dataset = dataset.shuffle(buffer, seed=shuffle_seed)
    dataset = dataset.batch(batch_size).with_options(EVERY_SAMPLE)
    return batched(dataset, preprocessing)


def preprocessed(
    dataset: tf.data.Dataset, preprocessing: keras.layers.Layer | None
) -> tf.data.Dataset:
    """All preprocessed inputs, kept in memory from the first pass on."""
    size = dataset.cardinality()
    dataset = _mapped(dataset.batch(1024), preprocessing).unbatch()
    if size >= 0:  # neither unknown nor infinite
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
    return dataset.cache()


def shuffle_buffer(dataset: tf.data.Dataset, bounded: bool) -> int:
    """How many images to shuffle at once.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        bounded: whether they may be too large to keep in memory.
    """
    if not bounded:
        return _SHUFFLE_BUFFER
    image = dataset.element_spec[0]
    numbers = image.shape.num_elements() or 1  # unknown: taken for small
    return min(_SHUFFLE_BUFFER, max(1, MEMORY // (numbers * image.dtype.size)))


def batched(
    batches: tf.data.Dataset, preprocessing: keras.layers.Layer | None
) -> tf.data.Dataset:
    """Batches as training takes them: preprocessed, and prefetched."""
    return _mapped(batches, preprocessing).prefetch(tf.data.AUTOTUNE)


def _mapped(batches, preprocessing):
    if preprocessing is None:
        return batches
    return batches.map(lambda x, y: (preprocessing(x), y), tf.data.AUTOTUNE)


def check_images(
    dataset: tf.data.Dataset, name: str, limit: int | None = None
) -> None:
    """Checks that no pixel is NaN or infinite.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        name: the data set's name in the error message.
        limit: number of images to check, from the first on; None for all.

    Raises:
        ValueError: if the data set is empty, or a pixel is NaN or infinite;
            the error names the first image with one.

    Example:
        >>> images = np.zeros((3, 8, 8, 1))
        >>> images[2] = np.nan
        >>> dataset = tf.data.Dataset.from_tensor_slices((images, [0, 1, 2]))
        >>> dd_keras.datasets.check_images(dataset, "my images")
        Traceback (most recent call last):
            ...
        ValueError: my images: expected finite pixels; received ... in image 2.
    """
    seen = 0
    if limit is not None:
        dataset = dataset.take(limit)
    for images, _ in dataset.batch(CHUNK):
        finite = tf.reduce_all(
            tf.math.is_finite(tf.cast(images, tf.float32)),
            axis=list(range(1, images.shape.rank)),
        )
        if not tf.reduce_all(finite):
            first = seen + int(tf.where(~finite)[0, 0])
            raise ValueError(
                f"{name}: expected finite pixels; received NaN or infinity "
                f"in image {first}."
            )
        seen += int(tf.shape(images)[0])
    if seen == 0:
        raise ValueError(f"{name}: expected at least one image; received none.")
