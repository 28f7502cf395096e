"""Deep Defense that starts late, or grows in strength."""

import keras

from dd_keras.utils import validation


class RegularizationWarmup(keras.callbacks.Callback):
    """A callback that raises `lam` of a defence from zero during `fit`.

    `lam` is multiplied by a share, which is 0 until `start`, then grows
    linearly over `length` epochs, and is 1 from then on; epochs count from 0.
    So the classifier can first learn its task, at the cost of plain training:
    while the share is 0, no attack is run. The share is set before each
    batch; in the first epoch of a data set of unknown length, only before the
    epoch.

    `fit(initial_epoch=...)` begins with the share of that epoch. When `fit`
    ends, the share is set to 1; after an error, to its value before `fit`.

    Args:
        start: epochs without the regulariser, at least 0; need not be whole.
        length: epochs in which the share grows from 0 to 1, at least 0; 0 for
            a jump.

    Raises:
        ValueError: if an argument is outside of its range.
        TypeError: at the start of `fit`, if the model has no `lam` to scale.

    Example:
        >>> warmup = dd_keras.RegularizationWarmup(start=1, length=2)
        >>> [warmup.share(epochs) for epochs in (0, 1, 2, 3)]
        [0.0, 0.0, 0.5, 1.0]
        >>> model = dd_keras.DeepDefenseModel(classifier)
        >>> model.compile("sgd", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, callbacks=[warmup], verbose=0)
        >>> history.history["regularization"]  # no attack in the first epoch
        [0.0]
    """

    def __init__(self, start: float = 0.0, length: float = 1.0):
        super().__init__()
        self.start = validation.validate_number("start", start, at_least=0)
        self.length = validation.validate_number("length", length, at_least=0)
        self._epoch = 0
        self._steps: int | None = None  # of an epoch, once it is known
        self._seen: int | None = None

    def share(self, epochs: float) -> float:
        """The share of `lam` after so many epochs, in [0, 1]."""
        if epochs < self.start:
            return 0.0
        if self.length == 0:
            return 1.0
        return min(1.0, (epochs - self.start) / self.length)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks that the model has a `lam` to scale."""
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
        """Stores the number of batches in an epoch."""
        self._steps = self._steps or self._seen

    def on_train_end(self, logs: dict | None = None) -> None:
        """Sets the share to 1."""
        self.model.scale_lam(1.0)
