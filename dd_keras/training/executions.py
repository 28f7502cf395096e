"""Resuming in the middle of Keras' `steps_per_execution`."""

import functools
from collections.abc import Callable
from typing import Any, Self

import keras


class Executions:
    """Lets each execution of an epoch run the steps that are left of it.

    Keras executes `steps_per_execution` steps at a time, counted from the
    first of an epoch. A resumed training's data set has no end, and some
    steps may be done; so of an execution only a part may be left, or nothing.
    Then, for this execution, something else takes the place of the
    model's `train_function`.

    A part is run step by step, which takes the graph of one step: it is made
    when it is first needed.

    Leaving it as a context gives the model its own function back, also after
    an error.

    Args:
        model: compiled `keras.Model`.
        steps: number of steps of an epoch.
    """

    def __init__(self, model: keras.Model, steps: int):
        self._model, self._steps = model, steps
        self._end = 0
        self._own = None  # the model's function
        self._single = None  # the same for one step, and of which it was made
        self._substitute: Callable | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._give_back()

    def begin(
        self, first: int, done: int, logs: dict[str, float] | None
    ) -> None:
        """Must be called before an execution.

        Args:
            first: number of its first step, from 0.
            done: number of the epoch's steps that are done already.
            logs: what the last of them logged.
        """
        together = self._model.steps_per_execution
        self._end = min(first + together, self._steps)
        left = max(0, self._end - max(first, done))
        if left == together:
            return
        self._own = self._model.train_function
        self._substitute = functools.partial(self._run, left, dict(logs or {}))
        self._model.train_function = self._substitute

    def end(self) -> int:
        """Must be called after it; returns how many steps are done then."""
        self._give_back()
        return self._end

    def _give_back(self):
        """A callback may have made another function in the meantime."""
        if self._model.train_function is self._substitute is not None:
            self._model.train_function = self._own
        self._substitute = None

    def _run(self, left, logs, iterator):
        """In place of the model's function: so many steps, one by one."""
        model, together = self._model, self._model.steps_per_execution
        model.steps_per_execution = 1  # is read when the graph is made
        try:
            for _ in range(left):
                logs = self._of_one_step()(iterator)
        finally:
            model.steps_per_execution = together
        return logs

    def _of_one_step(self):
        if self._single is None or self._single[1] is not self._own:
            self._model.make_train_function(force=True)
            self._single = self._model.train_function, self._own
            self._model.train_function = self._substitute
        return self._single[0]
