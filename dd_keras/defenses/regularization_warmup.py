"""Deep Defense that starts late, or grows in strength."""

import keras

from dd_keras.utils import validation


class RegularizationWarmup(keras.callbacks.Callback):
    """Raises `lam` of a `DeepDefenseModel` from zero in the course of `fit`.

    The share of `lam` in use is 0 up to `start`, grows linearly over `length`
    and is 1 from then on; epochs count from 0. The classifier can learn its
    task first, at the cost of plain training: where the share is 0, no attack
    is run. The share is set before each batch; in the first epoch of a data
    set of unknown length, only before the epoch.

    A training that is resumed with `fit(initial_epoch=...)` has the share of
    that epoch. At its end the share is 1 again; after an error, what it was
    before.

    Args:
        start: epochs without the regulariser, at least 0, also in fractions.
        length: epochs from nothing to all of `lam`, at least 0; 0 switches
            it on at once.

    Raises:
        ValueError: if an argument is outside of its range.
        TypeError: at the start of `fit`, if the model has no `lam` to scale.

    Example:
        model = dd_keras.DeepDefenseModel(classifier)
        model.compile("sgd", "sparse_categorical_crossentropy")
        warmup = dd_keras.RegularizationWarmup(start=1, length=2)
        model.fit(x_train, y_train, epochs=5, callbacks=[warmup])
    """

    def __init__(self, start: float = 0.0, length: float = 1.0):
        super().__init__()
        self.start = validation.validate_number("start", start, at_least=0)
        self.length = validation.validate_number("length", length, at_least=0)
        self._epoch = 0
        self._steps: int | None = None  # of an epoch, once it is known
        self._seen: int | None = None

    def share(self, epochs: float) -> float:
        """The share of `lam` in use after so many epochs, in [0, 1]."""
        if epochs < self.start:
            return 0.0
        if self.length == 0:
            return 1.0
        return min(1.0, (epochs - self.start) / self.length)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Makes sure that there is something to scale."""
        if not hasattr(self.model, "scale_lam"):
            raise TypeError(
                "model: expected RegularizationWarmup on a DeepDefenseModel; "
                f"received a {type(self.model).__name__}."
            )
        self._steps = self.params.get("steps")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the share for the epoch's first batch."""
        self._epoch = epoch
        self.model.scale_lam(self.share(epoch))

    def on_train_batch_begin(
        self, batch: int, logs: dict | None = None
    ) -> None:
        """Sets the share for this batch."""
        if self._steps:
            share = self.share(self._epoch + batch / self._steps)
            self.model.scale_lam(share)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts the batches."""
        self._seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Learns how many batches an epoch has."""
        self._steps = self._steps or self._seen

    def on_train_end(self, logs: dict | None = None) -> None:
        """Puts all of `lam` to use again."""
        self.model.scale_lam(1.0)
