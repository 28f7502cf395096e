"""Training that is interrupted, and goes on."""

from dd_keras.fitting.best import KeepBest
from dd_keras.fitting.checkpoint import Checkpoints, DivergenceError
from dd_keras.fitting.fit import Interrupted, resumable_fit
from dd_keras.fitting.guards import OutOfMemoryError, StopAtNaN

__all__ = [
    "Checkpoints",
    "DivergenceError",
    "Interrupted",
    "KeepBest",
    "OutOfMemoryError",
    "StopAtNaN",
    "resumable_fit",
]
