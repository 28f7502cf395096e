"""The first step of `fit` traces the training step once, not twice."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from dd_keras.utils import keras_internals


class SingleTraceModel(keras.Model):
    """A compiled model whose variables are there before its step is traced.

    `tf.function` traces once more what creates variables while it is traced.
    Without a distribution strategy Keras creates those of the optimizer and
    of metrics given by name in the first training step. The step of a defence
    takes seconds to trace.
    """

    train_function: Any  # a function, or None before the first `fit`

    def make_train_function(self, force: bool = False) -> None:
        """As Keras; the first call builds the optimizer and the metrics."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        if not self.run_eagerly:
            self.train_function = _Built(self, self.train_function)


class _Built:
    """A train function that builds its model's state in the first call."""

    def __init__(self, model: keras.Model, function: Callable):
        self._model = model
        self._function = function
        self._first = True

    def __call__(self, iterator: Iterable) -> object:
        if self._first:
            self._first = False
            iterator = self._build(iterator)
        return self._function(iterator)

    def _build(self, iterator):
        """Builds the state; returns what iterates over the same batches."""
        if isinstance(iterator, tf.data.Iterator):
            keras_internals.build_training_state(
                self._model, iterator.element_spec
            )
        elif not isinstance(iterator, tf.distribute.DistributedIterator):
            # `train_on_batch`; for a distributed iterator Keras has built.
            batches = iter(iterator)
            batch = next(batches)
            keras_internals.build_training_state(self._model, batch)
            return itertools.chain([batch], batches)
        return iterator
