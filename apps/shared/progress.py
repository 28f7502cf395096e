"""The progress of a training in lines, where stdout is no terminal."""

import re
import sys
import time

import keras

from dd_keras import distribution

# Of one training, so that a log of several fits a page or two.
_LINES = 10
_TOLD = re.compile("(val_)?(accuracy|rho[0-9.]+|rhoinf)|loss")


def of_training() -> list[keras.callbacks.Callback]:
    """The callbacks that show a training's progress, besides Keras' bar."""
    if sys.stdout.isatty() or not distribution.is_chief():
        return []
    return [EpochLines()]


class EpochLines(keras.callbacks.Callback):
    """Prints a line an epoch; of many epochs, of every few.

    The last epoch has its line, and so has an epoch that took over a minute
    since the last line.
    """

    _MINUTE = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._printed = time.monotonic()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._printed = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Prints what the epoch logged."""
        epochs = self.params["epochs"]
        every = -(-epochs // _LINES)
        since = time.monotonic() - self._printed
        number = epoch + 1
        if number % every and number < epochs and since < self._MINUTE:
            return
        self._printed = time.monotonic()
        told = ", ".join(
            f"{name} {value:.4g}"
            for name, value in sorted(logs.items())
            if _TOLD.fullmatch(name)
        )
        width = len(str(epochs))
        print(f"  epoch {number:{width}} of {epochs}: {told}", flush=True)
