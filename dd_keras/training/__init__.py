"""Training that can be interrupted and resumed."""

from dd_keras.training.best import KeepBest
from dd_keras.training.checkpoint import Checkpoints, DivergenceError
from dd_keras.training.fit import Interrupted, resumable_fit
from dd_keras.training.guards import OutOfMemoryError, StopAtNaN

__all__ = [
    "Checkpoints",
    "DivergenceError",
    "Interrupted",
    "KeepBest",
    "OutOfMemoryError",
    "StopAtNaN",
    "resumable_fit",
]
