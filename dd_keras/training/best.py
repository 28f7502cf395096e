"""`KeepBest`: the weights of the epoch that validated best."""

import math

import keras
import numpy as np

from dd_keras.utils import validation


class KeepBest(keras.callbacks.Callback):
    """A callback that restores the weights of the best epoch at the end.

    The best epoch has the highest score on the validation data,

        (1 - accuracy_weight) * val_rho2 + accuracy_weight * val_accuracy,

    with rho2 and accuracy as fractions. Validate on a held-out part of the
    training images, never on the test set: a number on which the model was
    selected does not measure it.

    Each `fit` begins anew. Only `resumable_fit(best=...)` remembers the best
    epoch of earlier processes.

    Args:
        monitor: name of the robustness in the logs; for a `DefenseModel` it
            is `"val_rho2"`, `"val_rhoinf"`, ..., depending on the norm.
        accuracy_weight: in [0, 1]; with 0, robustness alone decides.

    Raises:
        ValueError: if `accuracy_weight` is outside its range; in `fit`, if a
            monitored value is missing from the logs.

    Attributes:
        best: the best epoch so far, a dict with its number `epoch`, from 0,
            and its `score`; None before the first.
        weights: the weights of that epoch, a list of arrays.

    Example:
        >>> best = dd_keras.KeepBest(accuracy_weight=0.5)
        >>> model = dd_keras.DefenseModel(classifier)
        >>> model.compile(
        ...     "sgd", "sparse_categorical_crossentropy", metrics=["accuracy"]
        ... )
        >>> history = model.fit(
        ...     x_train[100:], y_train[100:], epochs=2, verbose=0,
        ...     validation_data=(x_train[:100], y_train[:100]),
        ...     callbacks=[best],
        ... )
        >>> best.best["epoch"] in (0, 1)
        True
    """

    def __init__(self, monitor: str = "val_rho2", accuracy_weight: float = 0.0):
        super().__init__()
        self.monitor = monitor
        self.accuracy_weight = validation.validate_number(
            "accuracy_weight", accuracy_weight, at_least=0, at_most=1
        )
        self.best: dict[str, float] | None = None
        self.weights: list[np.ndarray] = []

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Forgets an earlier `fit`, which may be that of another model."""
        self.best, self.weights = None, []

    def on_epoch_end(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Stores the weights if their score is the best so far."""
        logs = logs or {}
        if not any(name.startswith("val_") for name in logs):
            return  # not validated after this epoch
        score, weight = 0.0, self.accuracy_weight
        if weight < 1:
            score += (1 - weight) * self._logged(self.monitor, logs)
        if weight > 0:
            score += weight * self._logged("val_accuracy", logs)
        so_far = -math.inf if self.best is None else self.best["score"]
        if score > so_far:  # NaN is not
            self.best = {"epoch": epoch, "score": score}
            self.weights = self.model.get_weights()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Restores the best weights."""
        if self.best is not None:
            self.model.set_weights(self.weights)

    def _logged(self, name, logs):
        if name not in logs:
            raise ValueError(
                f"KeepBest: expected {name!r} in the logs of an epoch; "
                f"received {sorted(logs)}."
            )
        return float(logs[name])
