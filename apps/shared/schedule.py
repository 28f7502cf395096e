"""How a model is trained: epochs, learning rate, weight decay."""

import dataclasses

import keras
from absl import flags

import dd_keras

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What SGD does, epoch by epoch.

    Attributes:
        epochs: how many.
        learning_rate: in all but the last epochs.
        last_epochs: number of those at the lower rate.
        last_rate: factor of the learning rate there.
        momentum: of SGD.
        weight_decay: coupled, see `dd_keras.CoupledSGD`.
    """

    epochs: int
    learning_rate: float
    last_epochs: int
    last_rate: float
    momentum: float
    weight_decay: float

    @classmethod
    def of_reference(cls) -> "Schedule":
        """That of the flags for the training of the reference."""
        decay = FLAGS.reference_weight_decay
        return cls(
            FLAGS.reference_epochs,
            FLAGS.reference_learning_rate,
            FLAGS.reference_last_epochs,
            FLAGS.reference_last_rate,
            FLAGS.momentum,
            FLAGS.weight_decay if decay is None else decay,
        )

    @classmethod
    def of_fine_tuning(cls) -> "Schedule":
        """That of the flags for fine-tuning by a defence."""
        return cls(
            FLAGS.epochs,
            FLAGS.learning_rate,
            FLAGS.halved_epochs,
            FLAGS.last_rate,
            FLAGS.momentum,
            FLAGS.weight_decay,
        )

    def optimizer(self, steps: int) -> keras.optimizers.Optimizer:
        """SGD of this schedule, for so many steps an epoch."""
        full_rate_steps = max(0, self.epochs - self.last_epochs) * steps
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras changes the rate after the boundary's own step, from 0.
            [full_rate_steps - 1],
            [self.learning_rate, self.learning_rate * self.last_rate],
        )
        return dd_keras.CoupledSGD(rate, self.momentum, self.weight_decay)
