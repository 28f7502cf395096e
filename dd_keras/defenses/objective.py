"""What a training step minimises, and how replicas share it."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from dd_keras import distribution
from dd_keras.attacks import Forward


class Objective(NamedTuple):
    """What a training step makes of a batch.

    Attributes:
        y_pred: (B, ...): the classifier's outputs.
        forward: the attacks' `Forward` at the inputs, where there is one.
        loss: scalar: the task's loss.
        regularizer: scalar: what is added to it; None for nothing.
        rho: (B,): relative sizes of the perturbations; None without an attack.
    """

    y_pred: tf.Tensor
    forward: Forward | None
    loss: tf.Tensor
    regularizer: tf.Tensor | None
    rho: tf.Tensor | None

    @property
    def total(self) -> tf.Tensor:
        """Scalar: what is minimised."""
        if self.regularizer is None:
            return self.loss
        return self.loss + tf.cast(self.regularizer, self.loss.dtype)

    def replica_share(self, loss_is_sum: bool) -> tf.Tensor:
        """What this replica adds to the objective of the whole batch.

        Args:
            loss_is_sum: whether the loss is a sum over the samples. A sum is
                what it is, however many samples a replica has.

        Returns:
            A scalar: `total`, where the batch is not divided among replicas.
        """
        share = distribution.batch_share(tf.shape(self.y_pred)[0])
        if share is None:
            return self.total
        loss, regularizer = self.loss, self.regularizer
        if not loss_is_sum:
            loss *= tf.cast(share, loss.dtype)
        if regularizer is not None:
            regularizer *= tf.cast(share, regularizer.dtype)
        return self._replace(loss=loss, regularizer=regularizer).total


def all_computed(
    gradients: Sequence[tf.Tensor | None],
) -> list[tf.Tensor | None]:
    """The gradients, none of them usable before all are computed.

    The gradient of a weight that the regulariser does not reach is computed
    while the attack still runs. The weight must not be updated by then:
    TensorFlow's graph optimizer now and then lets an update overtake the
    attack's reads of that weight.

    Args:
        gradients: tensors; None where a weight has no gradient.

    Returns:
        list of the same tensors.
    """
    with tf.control_dependencies([g for g in gradients if g is not None]):
        return [None if g is None else tf.identity(g) for g in gradients]
