"""`resumable_fit`: a `fit` that resumes where it was interrupted."""

import csv
import io
import os
import signal
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from dd_keras import datasets, distribution
from dd_keras.training import checkpoint, guards
from dd_keras.training.best import KeepBest
from dd_keras.training.executions import Executions
from dd_keras.utils import config, files


def resumable_fit(
    model: keras.Model,
    train: datasets.ResumableBatches | tuple,
    epochs: int,
    checkpoint_dir: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    class_weight: dict[int, float] | None = None,
    checkpoint_steps: int | None = None,
    validation_data: Any = None,
    validation_freq: int | Sequence[int] = 1,
    best: KeepBest | None = None,
    log: str | os.PathLike[str] | None = None,
    callbacks: Iterable[keras.callbacks.Callback] | None = (),
    verbose: str | int = "auto",
) -> keras.callbacks.History:
    """Trains a model; after an interruption, the same call resumes.

    A checkpoint is written after each epoch, before each validation, and every
    `checkpoint_steps` steps: weights, optimizer, random generators, metrics
    and logs. The same call in a new process loads the newest complete
    checkpoint and resumes with the next step. On one CPU, weights and logs are
    then bit for bit those of a training that was never interrupted.

    Steps count individually, whatever the model's `steps_per_execution`,
    which may differ from call to call. Callbacks, checkpoints and signals are
    handled between executions.

    Ctrl-C and SIGTERM end the training after the current step, with a
    checkpoint (with several workers, without one).

    Args:
        model: a compiled `keras.Model`, constructed as in the first call (the
            same seed, the same arguments).
        train: `datasets.ResumableBatches`, or arrays, (x, y) or
            (x, y, sample_weight), which `ResumableBatches.of_arrays` converts.
            Not a batched data set, which cannot be resumed in the middle of an
            epoch; an unbatched one as
            `datasets.ResumableBatches(dataset, None, batch_size)`.
        epochs: total number of epochs.
        checkpoint_dir: directory of the checkpoints of this training; the two
            newest are kept. Remove it when it is no longer needed.
        batch_size: samples per batch, if `train` is arrays; None for 32.
        class_weight: as for `keras.Model.fit`: dict from a class to the weight
            of its samples in the loss, by default 1; or None. Not with sample
            weights.
        checkpoint_steps: number of steps between checkpoints within an epoch;
            None: only at its end.
        validation_data: as for `keras.Model.fit`.
        validation_freq: as for `keras.Model.fit`.
        best: `KeepBest`, or None to end with the last weights.
        log: path of a CSV file of the logs of all epochs, written atomically;
            None for none.
        callbacks: further callbacks, or None. State that they keep from step
            to step is not in a checkpoint, so training must not depend on it.
        verbose: as for `keras.Model.fit`.

    Returns:
        `keras.callbacks.History` of all epochs, including those of earlier
        processes: `history` is a dict from names to lists of logged values,
        `epoch` the list of epochs. Its attribute `seconds` is the training
        time, over all processes.

    Raises:
        DivergenceError: if loss or weights are not finite. The last checkpoint
            before that is kept.
        OutOfMemoryError: if a step does not fit into memory.
        Interrupted: after Ctrl-C or SIGTERM.
        TypeError: if `train` is of another type.
        ValueError: if `checkpoint_dir` belongs to another training, if
            `checkpoint_steps` or `batch_size` is not positive, if arrays
            differ in length, or if `callbacks` contain a `KeepBest`.
        RuntimeError: if another worker is lost.
        OSError: if a checkpoint cannot be written. Earlier ones are kept.

    Example:
        >>> data = (x_train, y_train)
        >>> history = dd_keras.resumable_fit(
        ...     classifier, data, 1, "checkpoints", verbose=0
        ... )
        >>> history = dd_keras.resumable_fit(  # in a new process, for example
        ...     classifier, data, 3, "checkpoints", verbose=0
        ... )
        Resuming from epoch 2, step 0.
        >>> history.epoch, len(history.history["loss"])
        ([0, 1, 2], 3)
    """
    if checkpoint_steps is not None and not (
        type(checkpoint_steps) is int and checkpoint_steps > 0
    ):
        raise ValueError(
            "checkpoint_steps: expected a positive integer or None; received "
            f"{checkpoint_steps!r}."
        )
    callbacks = list(callbacks or ())
    if any(isinstance(callback, KeepBest) for callback in callbacks):
        raise ValueError(
            "callbacks: expected none that forget what they know when the "
            "process ends; received a KeepBest. Give it as `best`."
        )
    batches = _batches_of(train, batch_size)
    with (
        model.distribute_strategy.scope(),
        distribution.lost_workers_named(),
        guards.StopSignals() as signals,
        guards.memory_advice(model),
    ):
        _build(model, batches)
        progress = _Progress(
            model, batches, checkpoint_dir, checkpoint_steps, best, log, signals
        )
        epoch, step = progress.position
        if progress.position != (0, 0):
            print(f"Resuming from epoch {epoch + 1}, step {step}.")
        steps = len(batches)
        with progress.executions:
            history = model.fit(
                batches.starting_at(epoch + step // steps, step % steps),
                steps_per_epoch=steps,
                epochs=epochs,
                initial_epoch=epoch,
                class_weight=class_weight,
                validation_data=validation_data,
                validation_freq=validation_freq,
                shuffle=False,  # the data set shuffles itself
                # Errors before states: none is written of a loss of NaN.
                callbacks=[
                    guards.StopAtNaN(progress.batch),
                    *callbacks,
                    *([] if best is None else [best]),
                    progress,
                ],
                verbose=verbose if distribution.is_chief() else 0,
            )
        if signals.received is not None:  # by what runs after the last step
            raise guards.Interrupted(
                f"stopped by {signal.Signals(signals.received).name} at its "
                "end; started again, it resumes from there.",
                signals.received,
            )
    # Keras knows the epochs of this process only.
    history.epoch = list(range(len(progress.logs)))
    history.history = _by_name(progress.logs)
    history.seconds = progress.seconds
    return history


def _batches_of(train, batch_size):
    """What `train` is, or is made into: `datasets.ResumableBatches`."""
    if isinstance(train, datasets.ResumableBatches):
        if batch_size is not None:
            raise ValueError(
                "batch_size: expected None with datasets.ResumableBatches, "
                f"which have one of their own, {train.batch_size}; received "
                f"{batch_size!r}."
            )
        return train
    if isinstance(train, tuple) and len(train) in (2, 3):
        if batch_size is None:
            batch_size = config.DEFAULT_BATCH_SIZE
        return datasets.ResumableBatches.of_arrays(
            *train, batch_size=batch_size
        )
    what = type(train).__name__
    if isinstance(train, tf.data.Dataset):
        what = "tf.data.Dataset, which cannot begin in the middle of an epoch"
    elif isinstance(train, tuple):
        what += f" of {len(train)}"
    raise TypeError(
        "train: expected datasets.ResumableBatches, or a tuple of arrays, "
        f"(x, y) or (x, y, sample_weight); received a {what}. Of an unbatched "
        "data set give datasets.ResumableBatches(dataset, None, batch_size)."
    )


def _by_name(logs):
    """What each epoch logged, as dict of name to list."""
    found = {}
    for entry in logs:
        for name, value in entry.items():
            found.setdefault(name, []).append(value)
    return found


def _build(model, train):
    """Makes the optimizer's and the metrics' variables, to restore them."""
    model.optimizer.build(model.trainable_variables)
    batch = keras.tree.map_structure(
        lambda values: values[:1], next(iter(train))
    )
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)

    @tf.function(autograph=False)
    def measure():
        y_pred = model(x, training=False)
        model.compute_metrics(x, y, y_pred, sample_weight)

    # Traced as such: a call counts as retracing, from one training to the next.
    model.distribute_strategy.run(lambda: measure.get_concrete_function()())
    model.reset_metrics()


class _Progress(keras.callbacks.Callback):
    """Writes the states of a training, and resumes it from one.

    Keras begins an epoch at its first step. To begin in the middle of one,
    the steps that are done are iterated over without executing anything: the
    epoch, its progress bar and the callbacks count as in any other.
    """

    def __init__(
        self,
        model: keras.Model,
        train: datasets.ResumableBatches,
        directory: str | os.PathLike[str],
        every: int | None,
        best: KeepBest | None,
        log: str | os.PathLike[str] | None,
        signals: guards.StopSignals,
    ) -> None:
        super().__init__()
        self._train, self._every, self._log = train, every, log
        self._best, self._signals = best, signals
        self._checkpoints = checkpoint.Checkpoints(directory)
        self.executions = Executions(model, len(train))
        self._epoch, self._done = 0, 0  # where it is
        self._last_logs: dict[str, float] = {}  # of the last step
        self._validating = False
        self.logs: list[dict[str, float]] = []
        self._seconds, self._started = 0.0, time.time()
        self._state = self._checkpoints.newest(model)
        self.position = (0, 0)
        if self._state is not None:
            self._read_notes(model)

    @property
    def seconds(self):
        """What training took so far, over all processes."""
        return self._seconds + time.time() - self._started

    def batch(self, epoch, step):
        """The batch of a step."""
        return next(iter(self._train.starting_at(epoch, step)))

    def _read_notes(self, model):
        state = self._state
        notes = state.notes
        if notes["steps"] != len(self._train):
            raise ValueError(
                f"checkpoint_dir: expected {self._checkpoints.directory} to be "
                f"of a training of {len(self._train)} steps an epoch; it is of "
                f"one of {notes['steps']}."
            )
        self.position = state.epoch, state.step
        self.logs, self._seconds = notes["logs"], notes["seconds"]
        self._last_logs = notes["last_logs"]
        for name, value in notes.get("chosen", {}).items():
            setattr(model, name, value)

    def on_train_begin(self, logs=None):
        """Restores the weights, and the best, which has just been reset."""
        self._restore()
        if self._best is not None and self._state is not None:
            self._best.best = self._state.notes["best"]
            self._best.weights = self._state.arrays["best"]
        self._write_log()

    def on_epoch_begin(self, epoch, logs=None):
        """Restores the metrics, which Keras has just reset."""
        self._epoch, self._done = epoch, 0
        if self._replays():
            self._restore()
        self._state = None  # as large as the model: no longer needed

    def on_train_batch_begin(self, batch, logs=None):
        """Lets steps that are done already do nothing."""
        done = self.position[1] if self._replays() else 0
        self.executions.begin(batch, done, self._last_logs)

    def on_train_batch_end(self, batch, logs=None):
        """Writes a state, if it is time."""
        before, self._done = self._done, self.executions.end()
        if self._replays() and self._done <= self.position[1]:
            return
        self._last_logs = logs
        if self._signals.received is not None:
            self._stop()
        if self._every and self._done // self._every > before // self._every:
            self._save(self._epoch, self._done)

    def on_test_begin(self, logs=None):
        """Writes a state: validation may take longer than the epoch."""
        self._validating = True
        if not self._replays() or self._done > self.position[1]:
            self._save(self._epoch, self._done)

    def on_test_batch_end(self, batch, logs=None):
        """Stops, after a signal."""
        if self._signals.received is not None:
            self._stop()

    def on_test_end(self, logs=None):
        """Notes that validation has ended."""
        self._validating = False

    def on_epoch_end(self, epoch, logs=None):
        """Writes the log and a state."""
        self.logs.append(_numbers(logs))
        self._write_log()
        self._save(epoch + 1, 0)
        self._epoch, self._done = epoch + 1, 0
        if self._signals.received is not None:
            self._stop(saved=True)

    def _replays(self):
        """Whether this is an epoch that was begun before."""
        return self.position[1] > 0 and self._epoch == self.position[0]

    def _restore(self):
        if self._state is None:
            return
        for variable, value in zip(
            checkpoint.variables(self.model), self._state.values, strict=True
        ):
            variable.assign(value)

    def _save(self, epoch, step):
        best = self._best
        self._checkpoints.save(
            self.model,
            epoch,
            step,
            {
                "steps": len(self._train),
                "logs": self.logs,
                "last_logs": _numbers(self._last_logs),
                "seconds": self.seconds,
                "best": None if best is None else best.best,
                "chosen": getattr(self.model, "chosen", {}),
            },
            {"best": [] if best is None else best.weights},
        )

    def _stop(self, saved=False):
        """Ends the training as a signal asked for."""
        number = self._signals.received
        alone = distribution.num_workers() == 1
        if alone and not saved and not self._validating:
            self._save(self._epoch, self._done)
        where = f"epoch {self._epoch + 1}, step {self._done}"
        there = "there" if alone else "its last checkpoint"
        raise guards.Interrupted(
            f"stopped by {signal.Signals(number).name} in {where}; started "
            f"again, it resumes from {there}.",
            number,
        )

    def _write_log(self):
        """Writes what the epochs logged so far."""
        if self._log is None or not distribution.is_chief():
            return
        text = io.StringIO()
        names = list(dict.fromkeys(n for logs in self.logs for n in logs))
        table = csv.DictWriter(
            text, ["epoch", *names], restval="", lineterminator="\n"
        )
        table.writeheader()
        for epoch, logs in enumerate(self.logs):
            table.writerow({"epoch": epoch, **logs})
        files.write_text(text.getvalue(), self._log)


def _numbers(logs):
    """What was logged, as JSON can hold it."""
    return {name: float(value) for name, value in (logs or {}).items()}
