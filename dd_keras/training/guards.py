"""Guards of a training: NaN, lack of memory, and signals to stop."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from dd_keras.training.checkpoint import DivergenceError, first_not_finite


class Interrupted(KeyboardInterrupt):
    """An error: a signal stopped the training, after a checkpoint.

    The same call of `resumable_fit` resumes from there. With several workers,
    the checkpoint is the last regular one.

    Attributes:
        signal: the number of the signal, SIGINT (Ctrl-C) or SIGTERM.

    Example:
        >>> import signal
        >>> ctrl_c = keras.callbacks.LambdaCallback(
        ...     on_epoch_end=lambda *_: signal.raise_signal(signal.SIGINT)
        ... )
        >>> try:
        ...     history = dd_keras.resumable_fit(
        ...         classifier, (x_train, y_train), 2, "checkpoints",
        ...         callbacks=[ctrl_c], verbose=0,
        ...     )
        ... except dd_keras.training.Interrupted as stopped:
        ...     print(signal.Signals(stopped.signal).name)
        <BLANKLINE>
        Stopping after this step; once more to stop at once.
        SIGINT
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class OutOfMemoryError(RuntimeError):
    """An error: a training step does not fit into memory.

    The message lists what makes a step smaller.

    Example:
        >>> def train(batch_size):
        ...     try:
        ...         return dd_keras.resumable_fit(
        ...             classifier, (x_train, y_train), 1, "checkpoints",
        ...             batch_size=batch_size, verbose=0,
        ...         )
        ...     except dd_keras.training.OutOfMemoryError:
        ...         return train(batch_size // 2)
        >>> train(512).epoch
        [0]
    """


class StopAtNaN(keras.callbacks.Callback):
    """A callback that ends the training once the loss is not finite.

    `DefenseModel.fit` and `resumable_fit` have one already.

    Args:
        batch_of: function from an epoch and a step, both from 0, to the batch
            of that step, in which the cause is looked for; or None.

    Raises:
        DivergenceError: in `fit`. The message names the step and the likely
            cause.

    Example:
        >>> classifier.optimizer.learning_rate = 1e30
        >>> guard = dd_keras.training.StopAtNaN()
        >>> classifier.fit(x_train, y_train, callbacks=[guard], verbose=0)
        Traceback (most recent call last):
            ...
        dd_keras.training.checkpoint.DivergenceError: epoch 1, step ...
    """

    def __init__(self, batch_of: Callable[[int, int], Any] | None = None):
        super().__init__()
        self.batch_of = batch_of
        self._epoch = 0
        self._first = 0  # step of the execution at hand
        self._last: float | None = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Forgets the loss of an earlier `fit`."""
        self._last = None

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Stores the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Stores the number of the step."""
        self._first = batch

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Checks the loss, its mean over the epoch so far."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            steps = self._steps()
            number = f"step {steps[0] + 1}"
            if len(steps) > 1:
                number = f"steps {steps[0] + 1} to {steps[-1] + 1}"
            before = ""
            if self._last is not None:
                before = f" (it was {self._last:.4g} before)"
            raise DivergenceError(
                f"epoch {self._epoch + 1}, {number}: the loss is {loss}"
                f"{before}. {self._cause(steps)}"
            )
        self._last = loss

    def _steps(self):
        """Those of the execution at hand."""
        end = self._first + self.model.steps_per_execution
        steps = self.params.get("steps")
        return range(self._first, end if steps is None else min(end, steps))

    def _cause(self, steps):
        for step in steps if self.batch_of is not None else ():
            inputs = np.asarray(self.batch_of(self._epoch, step)[0])
            finite = np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
            if not finite.all():
                batch = "this batch"
                if len(steps) > 1:
                    batch = f"the batch of step {step + 1}"
                return (
                    f"The likely cause: of the {len(inputs)} inputs of "
                    f"{batch} {np.sum(~finite)} hold NaN or infinity, the "
                    f"first of them input {np.argmin(finite)}."
                )
        weight = first_not_finite(self.model)
        diverged = (
            f"the weight '{weight}' is not finite either"
            if weight
            else "the weights are still finite"
        )
        cause = (
            "The likely cause: the updates are too large. A smaller learning "
            "rate or lam may help."
        )
        if self.batch_of is None:
            return (
                f"After the step {diverged}. {cause} Or an input of the batch "
                "is NaN or infinity."
            )
        return f"Its inputs are finite; {diverged}. {cause}"


@contextlib.contextmanager
def memory_advice(model: keras.Model) -> Iterator[None]:
    """Says what makes a step smaller, where it does not fit into memory.

    Raises:
        OutOfMemoryError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        attack = getattr(model, "attack", None)
        candidates = getattr(attack, "candidates", None)
        raise OutOfMemoryError(
            "a step does not fit into memory. What makes it smaller, the most "
            "first: a smaller batch (`gradient_accumulation_steps` of the "
            "Keras optimizer updates as if it were a larger one), or the same "
            "on more devices, `distribution.strategy`; smaller images; "
            "`DeepFool(max_iter=1)`: any further iterations are computed "
            "again, one by one, in the backward pass, so that two take what "
            "fifty do; and, a little, `DeepFool(candidates=5)` (now "
            f"{candidates or 'all classes'}). TensorFlow says: "
            f"{error.message.splitlines()[0]}"
        ) from error


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a flag that is checked between steps.

    The first signal is noted; the second interrupts at once. Only the main
    thread receives signals; elsewhere this does nothing.

    Attributes:
        received: the number of the signal; None for none.
    """

    _WATCHED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note)
                for number in self._WATCHED
            }
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("\nStopping after this step; once more to stop at once.")
