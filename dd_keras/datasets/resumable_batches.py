"""Training batches in an order that can be resumed at any step."""

import numbers
from collections.abc import Callable, Iterator
from typing import Any, Self

import keras
import tensorflow as tf

from dd_keras.datasets.data import (
    EVERY_SAMPLE,
    Data,
    batched,
    preprocessed,
    shuffle_buffer,
)
from dd_keras.utils import config


class ResumableBatches:
    """Shuffled training batches that can be resumed at any step.

    The order of an epoch depends only on its number and on `seed`. So after an
    interruption the same batches follow, see `resumable_fit`.

    Iteration yields the first epoch; `len` is the number of its batches.

    Args:
        images: unbatched `tf.data.Dataset` of (image, label), its cardinality
            known; or, as `Data.epoch`, a function from the number of an
            epoch, an int64 scalar, to such a data set.
        preprocessing: Keras layer or model applied to batches of images; None
            for none.
        batch_size: images per batch; the last of an epoch may be smaller.
        seed: seed of the orders, an integer.
        cache: whether to keep all preprocessed inputs in memory, as in
            `batches`; False if `images` is a function.

    Raises:
        ValueError: if the number of images is unknown or zero, or if
            `batch_size` is not a positive integer.

    Example:
        >>> train = dd_keras.datasets.ResumableBatches.of_arrays(
        ...     x_train, y_train, batch_size=100
        ... )
        >>> len(train)
        10
        >>> batches = list(train.starting_at(epoch=4).take(10))
        >>> x, y = next(iter(train.starting_at(epoch=4, step=7)))
        >>> print(np.array_equal(x, batches[7][0]))
        True
    """

    def __init__(
        self,
        images: tf.data.Dataset | Callable[[tf.Tensor], tf.data.Dataset],
        preprocessing: keras.layers.Layer | None,
        batch_size: int,
        seed: int = 0,
        cache: bool = True,
    ):
        if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
            raise ValueError(
                "batch_size: expected a positive integer; received "
                f"{batch_size!r}."
            )
        self.batch_size = batch_size
        self.seed = seed
        if isinstance(images, Callable):
            self._images = images
        else:
            if cache:
                images = preprocessed(images, preprocessing)
                preprocessing = None
            self._images = lambda number: images
        self._preprocessing: keras.layers.Layer | None = preprocessing
        first = self._images(tf.constant(0, tf.int64))
        size = int(first.cardinality())
        if size <= 0:
            raise ValueError(
                "images: expected a data set of one or more, whose "
                f"cardinality is known; received {size}."
            )
        self._buffer = shuffle_buffer(first, bounded=not cache)
        self._steps: int = -(-size // batch_size)

    @classmethod
    def of(cls, data: Data, batch_size: int, seed: int = 0) -> Self:
        """The training images of a `Data`."""
        return cls(
            data.epoch or data.train,
            data.preprocessing,
            batch_size,
            seed,
            data.cache,
        )

    @classmethod
    def of_arrays(
        cls,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        batch_size: int = config.DEFAULT_BATCH_SIZE,
        seed: int = 0,
    ) -> Self:
        """Batches of arrays, of NumPy or TensorFlow.

        Args:
            x: (N, ...), the model's inputs, already preprocessed.
            y: (N, ...), their labels.
            sample_weight: (N,), or None. With weights, batches are triples.
            batch_size: samples per batch.
            seed: see `ResumableBatches`.

        Raises:
            TypeError: if one of them is not an array.
            ValueError: if they differ in length, or are empty.
        """
        arrays = {"x": x, "y": y}
        if sample_weight is not None:
            arrays["sample_weight"] = sample_weight
        for name, array in arrays.items():
            try:
                arrays[name] = tf.convert_to_tensor(array)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name}: expected an array; received a "
                    f"{type(array).__name__}."
                ) from error
        shapes = {name: tuple(a.shape) for name, a in arrays.items()}
        if not all(shapes.values()) or len({s[0] for s in shapes.values()}) > 1:
            raise ValueError(
                f"{', '.join(shapes)}: expected arrays of one length; received "
                f"shapes {', '.join(map(str, shapes.values()))}."
            )
        samples = tf.data.Dataset.from_tensor_slices(tuple(arrays.values()))
        return cls(samples, None, batch_size, seed, cache=False)  # they are

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator:
        return iter(self.starting_at(0).take(self._steps))

    def starting_at(self, epoch: int, step: int = 0) -> tf.data.Dataset:
        """All batches from a given one on, of endlessly many epochs.

        Args:
            epoch: number of the epoch, from 0.
            step: number of the batch in it, from 0.

        Returns:
            A `tf.data.Dataset` of (B, H, W, C) inputs and (B,) labels.
        """

        def one(number):
            # The order follows `seed` alone, whatever TensorFlow's own is.
            tf.compat.v1.get_default_graph().seed = None
            seed = tf.random.stateless_uniform(
                (), (self.seed, number), None, None, tf.int64
            )
            images = self._images(number).shuffle(
                self._buffer, seed, reshuffle_each_iteration=False
            )
            done = tf.where(number == epoch, step * self.batch_size, 0)
            return images.skip(tf.cast(done, tf.int64)).batch(self.batch_size)

        # `Dataset.counter` leaves a function behind at each call.
        batches = tf.data.Dataset.range(epoch, tf.int64.max)
        batches = batches.flat_map(one).with_options(EVERY_SAMPLE)
        return batched(batches, self._preprocessing)
