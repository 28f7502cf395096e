"""What DeepFool keeps of its samples, from iteration to iteration."""

from typing import Any, NamedTuple, Self

import tensorflow as tf


class Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: their labels
    correct: tf.Tensor  # (B,) bool: whether the network predicts these
    candidates: tf.Tensor  # (B, m) int32: the target classes considered


class Boundary(NamedTuple):
    """The boundary each sample steps onto, from class s to class k."""

    k: tf.Tensor  # (A,) int32
    s: tf.Tensor  # (A,) int32
    gap: tf.Tensor | None = None  # (A,): |f_k - f_s|
    w: tf.Tensor | None = None  # (A, ...): grad f_k - grad f_s


class State(NamedTuple):
    """The samples of the batch, between two iterations."""

    active: tf.Tensor  # (B,) bool: neither across nor stuck
    fooled: tf.Tensor  # (B,) bool: across the boundary
    iterations: tf.Tensor  # (B,) int32: steps taken
    perturbation: tf.Tensor  # (B, ...): the sum of the steps


class Path(NamedTuple):
    """What each iteration did, for the backward pass to recompute it."""

    rows: tf.TensorArray  # (A,): the samples that it moved
    is_active: tf.TensorArray  # (A,): 1 for those that were active, else 0
    x: tf.TensorArray  # (A, ...): from where
    k: tf.TensorArray  # (A,): to which class
    s: tf.TensorArray  # (A,): from which class

    @classmethod
    def empty(cls, size: int, x: tf.Tensor) -> Self:
        """Room for `size` iterations on inputs like `x`."""

        def array(dtype, *shape):
            return tf.TensorArray(
                dtype, size, element_shape=[None, *shape], infer_shape=False
            )

        return cls(
            rows=array(tf.int32),
            is_active=array(x.dtype),
            x=array(x.dtype, *x.shape[1:]),
            k=array(tf.int32),
            s=array(tf.int32),
        )

    def write(self, i: tf.Tensor, *values: tf.Tensor) -> "Path":
        """The path with iteration `i` recorded."""
        pairs = zip(self, values, strict=True)
        return Path(*(array.write(i, value) for array, value in pairs))

    def read(self, i: tf.Tensor) -> list[Any]:
        """What iteration `i` did."""
        return [array.read(i) for array in self]
