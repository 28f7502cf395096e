"""Counts the forward and backward passes of a network, sample by sample.

What an attack costs, whatever the machine: a batch of B samples counts B.
"""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

_active = threading.local()


class PassCounter:
    """Counts passes of the networks that are traced within `counting`.

    Make it outside of the `tf.function` that counts. Passes of a compiled part
    of an attack that the graph repeats count at each repetition.
    """

    def __init__(self) -> None:
        # One of its own for each replica, which the reader adds up.
        self._counts = tf.Variable(
            [0, 0],
            dtype=tf.int64,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what is traced within, from 0 on."""
        self._counts.assign(tf.zeros_like(self._counts))
        with _using(self):
            yield

    def read(self) -> tf.Tensor:
        """The passes so far, int64 (2,): forward and backward."""
        return tf.identity(self._counts)

    def add(self, forward: tf.Tensor, backward: tf.Tensor) -> None:
        """Adds passes: two numbers, int32 ()."""
        self._counts.assign_add(tf.cast([forward, backward], tf.int64))


@contextlib.contextmanager
def _using(counter):
    before = getattr(_active, "counter", None)
    _active.counter = counter
    try:
        yield
    finally:
        _active.counter = before


def not_counted() -> contextlib.AbstractContextManager:
    """For passes that are traced but whose value nothing asks for."""
    return _using(None)


def count_forward(x: tf.Tensor) -> None:
    """Notes a forward pass of the samples x, (B, ...), if anyone counts."""
    counter = getattr(_active, "counter", None)
    if counter is not None:
        counter.add(tf.shape(x)[0], 0)


def count_backward(x: tf.Tensor) -> None:
    """Notes a backward pass of the samples x, (B, ...), if anyone counts."""
    counter = getattr(_active, "counter", None)
    if counter is not None:
        counter.add(0, tf.shape(x)[0])
