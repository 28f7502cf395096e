"""Data sets: raw images and labels, and the preprocessing that goes with them.

Images have pixels from 0 to 255, as the paper's. Preprocessing is a Keras
layer, kept apart from the classifier: attacks measure perturbations behind it,
and a server puts it in front.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

# A fixed permutation of the 1,797 digits. scikit-learn orders them by writer;
# a test split off the end would hold other writers than the training split.
_DIGITS_SEED = 20181203
_DIGITS_TEST_SIZE = 360
_DIGITS_LEVELS = 16  # scikit-learn's pixels count ink from 0 to 16

# One large shuffle buffer for small data sets; larger ones shuffle in part.
_SHUFFLE_BUFFER = 60_000


class Data(NamedTuple):
    """A data set, ready for `batches`.

    Attributes:
        train: unbatched `tf.data.Dataset` of (image, label); images float32
            of shape (H, W, C) in [0, 255], labels int64 in [0, classes).
        test: the same, in a fixed order.
        preprocessing: Keras layer from images to the classifier's inputs:
            subtracts the training set's mean image. None for none.
        num_classes: number of classes.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    preprocessing: keras.layers.Layer
    num_classes: int

    @property
    def image_shape(self):
        """Height, width and channels."""
        return tuple(self.train.element_spec[0].shape)

    @property
    def bounds(self):
        """The valid range of the classifier's inputs: (low, high).

        What black and white images become, float32 arrays of `image_shape`.
        Right for preprocessing that keeps each pixel's place and order.
        """
        ends = np.stack(
            [np.full(self.image_shape, v, np.float32) for v in (0, 255)]
        )
        if self.preprocessing is not None:
            ends = np.asarray(self.preprocessing(ends))
        return ends[0], ends[1]


def load(name, data_dir=None):
    """Loads a data set by name.

    Args:
        name: `"digits"` (scikit-learn's 1,797 handwritten digits of 8x8
            pixels, part of the package) or `"mnist"` (through TFDS).
        data_dir: where TFDS keeps its data; None for TFDS' own default.

    Returns:
        `Data`: train and test split, preprocessing, number of classes.

    Raises:
        ValueError: if `name` is not known.
        RuntimeError: if the data can be neither found nor downloaded.
    """
    if name not in _LOADERS:
        raise ValueError(f"name: expected one of {NAMES}; received {name!r}.")
    (x_train, y_train), (x_test, y_test) = _LOADERS[name](data_dir)
    mean = x_train.mean(axis=0, dtype=np.float64).astype(np.float32)
    preprocessing = keras.layers.Normalization(
        axis=(1, 2, 3),
        mean=mean,
        variance=np.ones_like(mean),
        name="subtract_mean",
    )
    preprocessing.build((None, *mean.shape))
    return Data(
        _as_dataset(x_train, y_train),
        _as_dataset(x_test, y_test),
        preprocessing,
        int(y_train.max()) + 1,
    )


def batches(dataset, preprocessing, batch_size, shuffle_seed=None, cache=True):
    """Batches of preprocessed inputs and labels, prefetched.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        preprocessing: Keras layer applied to batches of images; None for none.
        batch_size: images a batch; the last batch holds what is left.
        shuffle_seed: seed of an order that is new in each epoch and the same
            in each run; None keeps the order of `dataset`.
        cache: whether to keep all preprocessed inputs in memory, for data
            that are gone through more than once.

    Returns:
        A `tf.data.Dataset` of (B, H, W, C) float32 inputs and (B,) labels.
    """
    size = dataset.cardinality()
    dataset = dataset.batch(1024)
    if preprocessing is not None:
        dataset = dataset.map(
            lambda x, y: (preprocessing(x), y), tf.data.AUTOTUNE
        )
    dataset = dataset.unbatch().apply(
        tf.data.experimental.assert_cardinality(size)
    )
    if cache:
        dataset = dataset.cache()
    if shuffle_seed is not None:
        dataset = dataset.shuffle(_SHUFFLE_BUFFER, seed=shuffle_seed)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def check_images(dataset, name):
    """Makes sure that no pixel is NaN or infinite.

    Args:
        dataset: unbatched `tf.data.Dataset` of (image, label).
        name: what the error calls it.

    Raises:
        ValueError: if it is empty or holds such a pixel; the error names the
            first image that does.
    """
    seen = 0
    for images, _ in dataset.batch(1024):
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


def _as_dataset(images, labels):
    return tf.data.Dataset.from_tensor_slices(
        (images, labels.astype(np.int64))
    ).map(lambda x, y: (tf.cast(x, tf.float32), y))


def _load_digits(data_dir):
    del data_dir  # part of the installed package
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(_DIGITS_SEED).permutation(len(digits.target))
    images = digits.images[order, ..., None] * (255 / _DIGITS_LEVELS)
    images, labels = images.astype(np.float32), digits.target[order]
    test = slice(-_DIGITS_TEST_SIZE, None)
    train = slice(None, -_DIGITS_TEST_SIZE)
    return (images[train], labels[train]), (images[test], labels[test])


def _load_mnist(data_dir):
    return tuple(_load_tfds("mnist", split, data_dir) for split in _SPLITS)


_SPLITS = ("train", "test")
_LOADERS = {"digits": _load_digits, "mnist": _load_mnist}
NAMES = sorted(_LOADERS)


def _load_tfds(name, split, data_dir):
    """One split of a TFDS data set as arrays, downloaded if it is not there."""
    import tensorflow_datasets as tfds

    try:
        images, labels = tfds.as_numpy(
            tfds.load(
                name,
                split=split,
                data_dir=data_dir,
                batch_size=-1,
                as_supervised=True,
            )
        )
    except Exception as error:  # TFDS raises what its many backends raise
        where = data_dir or "~/tensorflow_datasets"
        raise RuntimeError(
            f"{name}: could be neither read from {where} nor downloaded to "
            f'it. On a machine with access, run `python -c "import '
            f"tensorflow_datasets as tfds; tfds.load('{name}', "
            f"data_dir='DIR')\"`, copy DIR here, and pass it as data_dir "
            f"(--data_dir in the apps). The cause: {type(error).__name__}: "
            f"{error}"
        ) from error
    return images, labels
