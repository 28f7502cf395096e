"""Checkpoints of a training, written atomically."""

import contextlib
import json
import os
import re
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dd_keras import distribution
from dd_keras.utils import files

# How many are kept: if the newest turns out damaged, the one before serves.
KEPT = 2

_NAME = "epoch_{:06d}_step_{:09d}.npz"
_NAMES = re.compile(r"epoch_(\d{6})_step_(\d{9})\.npz")
_NOTES = "notes"
_BFLOAT16 = tf.bfloat16.as_numpy_dtype  # npz files know its size alone


class DivergenceError(RuntimeError):
    """An error: the loss or the weights of a training are not finite.

    Example:
        >>> classifier.optimizer.learning_rate = 1e30
        >>> try:
        ...     history = dd_keras.resumable_fit(
        ...         classifier, (x_train, y_train), 1, "checkpoints", verbose=0
        ...     )
        ... except dd_keras.training.DivergenceError as error:
        ...     print(error)
        epoch 1, step ...: the loss is ...
    """


class State(NamedTuple):
    """A training at the end of a step.

    Attributes:
        epoch: number of the epoch it is in, from 0.
        step: number of its steps that are done.
        values: arrays of all variables, in the order of `variables`.
        notes: dict of what JSON can hold: what else there is to know.
        arrays: dict of name to list of arrays: the same.
    """

    epoch: int
    step: int
    values: list
    notes: dict
    arrays: dict


def variables(model: keras.Model) -> list[keras.Variable]:
    """All that `fit` changes in a compiled model: list of Keras variables.

    Weights, moving statistics, the state of random generators, also of those
    in constraints; the optimizer's; the metrics'.
    """
    optimizer, found = model.optimizer, list(model.variables)
    if optimizer is not None:
        optimizer.build(model.trainable_variables)
        found += optimizer.variables
    found += model.metrics_variables
    for weight in model.weights:
        found += getattr(weight.constraint, "variables", [])
    return list({id(variable): variable for variable in found}.values())


class Checkpoints:
    """The two newest checkpoints of one training, in a directory of their own.

    `resumable_fit` writes and reads them. With several workers the chief
    writes and all read, so all must see the directory.

    Args:
        directory: where the checkpoints are kept; created if missing.

    Example:
        >>> checkpoints = dd_keras.training.Checkpoints("checkpoints")
        >>> checkpoints.save(classifier, 2, 0, {"seed": 0}, {})
        >>> state = checkpoints.newest(classifier)
        >>> state.epoch, state.step, state.notes
        (2, 0, {'seed': 0})
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = directory

    def save(
        self,
        model: keras.Model,
        epoch: int,
        step: int,
        notes: dict[str, Any],
        arrays: dict[str, list[np.ndarray]],
    ) -> None:
        """Writes a checkpoint atomically, and removes the oldest.

        All workers must call this: it gathers the metrics of all of them.

        Args:
            model: a compiled `keras.Model`.
            epoch: number of the epoch that the training is in, from 0.
            step: number of steps of this epoch that are done.
            notes: further values, as far as JSON can hold them.
            arrays: further arrays, a dict of name to list.

        Raises:
            DivergenceError: if a weight is not finite. Nothing is written, as
                such a checkpoint would replace one that is useful.
            OSError: if it cannot be written. Earlier checkpoints are kept.
        """
        values = [_read(variable) for variable in variables(model)]
        broken = first_not_finite(model)
        if broken:
            raise DivergenceError(
                f"epoch {epoch + 1}, step {step}: the weight '{broken}' is no "
                "longer finite. The likely cause: the updates are too large. "
                "A smaller learning rate or lam may help."
            )
        if not distribution.is_chief():
            return
        content = {f"values/{i}": value for i, value in enumerate(values)}
        for name, items in arrays.items():
            content |= {f"{name}/{i}": item for i, item in enumerate(items)}
        content[_NOTES] = np.array(
            json.dumps(
                {
                    "epoch": epoch,
                    "step": step,
                    "variables": _description(model),
                    "arrays": {name: len(v) for name, v in arrays.items()},
                    "notes": notes,
                }
            )
        )
        path = os.path.join(self.directory, _NAME.format(epoch, step))
        with files.atomic_write(path) as part, open(part, "wb") as file:
            np.savez(file, **content)
        for _, old in self._paths()[:-KEPT]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(old)

    def newest(self, model: keras.Model) -> State | None:
        """The newest complete checkpoint, or None if there is none.

        Args:
            model: the compiled model that was saved.

        Returns:
            A named tuple of `epoch`, `step`, `values` (arrays of all
            variables), `notes` and `arrays`; or None.

        Raises:
            ValueError: if the checkpoint is that of another model.
        """
        chosen = None
        if distribution.is_chief():
            chosen = self._newest_complete()
        chosen = distribution.from_chief(chosen)
        if chosen is None:
            return None
        path = os.path.join(self.directory, chosen)
        state, described = _load(path)
        wanted = _description(model)
        if described != wanted:
            raise ValueError(
                f"{path}: expected a checkpoint of this model; it is of "
                f"another: {_difference(described, wanted)}."
            )
        return state

    def _newest_complete(self):
        """The name of the newest file that can be read, or None."""
        for _, path in reversed(self._paths()):
            try:
                _load(path)
            except files.DAMAGED as error:
                warnings.warn(
                    f"{path}: expected a complete checkpoint; it is damaged "
                    f"({type(error).__name__}: {error}). The one before it is "
                    "taken, if there is one.",
                    stacklevel=4,
                )
            else:
                return os.path.basename(path)
        return None

    def _paths(self):
        """((epoch, step), path) of all checkpoints, the newest last."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                (tuple(map(int, match.groups())), entry.path)
                for entry in os.scandir(self.directory)
                if (match := _NAMES.fullmatch(entry.name))
            )
        return []


def first_not_finite(model: keras.Model) -> str | None:
    """The path of the first weight with NaN or infinity; None for none."""
    for weight in model.weights:
        value = _read(weight)
        if tf.as_dtype(value.dtype).is_floating and not np.all(
            np.isfinite(value)
        ):
            return weight.path
    return None


def _read(variable):
    """The value of a variable, of all replicas and workers where it is so."""
    return tf.convert_to_tensor(variable.value).numpy()


def _description(model):
    """Shape and dtype of each variable, to tell models apart.

    Not the names: many count the models that the process made before.
    """
    return [
        [list(v.shape), keras.backend.standardize_dtype(v.dtype)]
        for v in variables(model)
    ]


def _difference(found, wanted):
    """The first variable in which two models differ, in words."""
    for place, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return f"its variable {place} is {one}, this model's {other}"
    return f"it has {len(found)} variables, this model {len(wanted)}"


def _load(path):
    """A checkpoint as (`State`, the description of its model)."""
    with open(path, "rb") as file, np.load(file) as content:
        header = json.loads(str(content[_NOTES]))

        def read(name, number):
            arrays = (content[f"{name}/{i}"] for i in range(number))
            return [a.view(_BFLOAT16) if a.dtype == "V2" else a for a in arrays]

        state = State(
            header["epoch"],
            header["step"],
            read("values", len(header["variables"])),
            header["notes"],
            {name: read(name, n) for name, n in header["arrays"].items()},
        )
    shapes = [list(value.shape) for value in state.values]
    if shapes != [shape for shape, _ in header["variables"]]:
        raise ValueError("its arrays have other shapes than it describes")
    return state, header["variables"]
