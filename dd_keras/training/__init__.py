"""Training that can be interrupted and resumed."""

from dd_keras.training.best import KeepBest
from dd_keras.training.checkpoint import Checkpoints, DivergenceError
from dd_keras.training.fit import resumable_fit
from dd_keras.training.guards import (
    Interrupted,
    OutOfMemoryError,
    StopAtNaN,
)

__all__ = [
    "Checkpoints",
    "DivergenceError",
    "Interrupted",
    "KeepBest",
    "OutOfMemoryError",
    "StopAtNaN",
    "resumable_fit",
]
