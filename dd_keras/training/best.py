"""`KeepBest`: the weights of the epoch that validated best."""

import math

import keras
import numpy as np

from dd_keras.utils import validation


class KeepBest(keras.callbacks.Callback):
    """Gives a model back the weights of its best epoch when `fit` ends.

    The best has the largest score on the validation data,

        (1 - accuracy_weight) * val_rho2 + accuracy_weight * val_accuracy,

    rho2 and accuracy as the shares they are. Validate on a part of the
    training images that is not trained on, never on the test set: what is
    chosen by the test set is not measured by it.

    Each `fit` begins anew. Only `resumable_fit(best=...)` keeps the best of
    earlier processes.

    Args:
        monitor: name of the robustness in the logs; of a `DefenseModel` it is
            `"val_rho2"`, `"val_rhoinf"`, ... by its norm.
        accuracy_weight: in [0, 1]; 0 looks at robustness alone.

    Raises:
        ValueError: if `accuracy_weight` is outside of its range; in `fit`, if
            the logs hold no such values.

    Attributes:
        best: None, or the best epoch so far as a dict: its number `epoch`,
            from 0, and its `score`.
        weights: its weights, list of arrays.

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
        """Forgets an earlier `fit`, maybe of another model."""
        self.best, self.weights = None, []

    def on_epoch_end(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Keeps the weights, if they are better than those before."""
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
        """Gives back the best weights."""
        if self.best is not None:
            self.model.set_weights(self.weights)

    def _logged(self, name, logs):
        if name not in logs:
            raise ValueError(
                f"KeepBest: expected {name!r} in the logs of an epoch; "
                f"received {sorted(logs)}."
            )
        return float(logs[name])
