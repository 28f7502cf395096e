"""What an interrupted evaluation is resumed from: one file a batch."""

import json
import os
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dd_keras.evaluation.metrics import Metric
from dd_keras.utils import config, files

_FINGERPRINT = "evaluation.json"
_NOTES = "checkpoint_notes"  # in the file of a batch, beside its arrays


class Checkpoint:
    """The batches already measured, in order.

    A damaged file is skipped with a warning, and its batch measured again.

    Args:
        directory: where they are kept, made if missing; None: nowhere.
        fingerprint: dict of str of what the results depend on; a directory
            of another evaluation is refused.

    Raises:
        ValueError: if `directory` holds another evaluation.

    Attributes:
        parts: list of dict of name to array, one for each batch.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        fingerprint: dict[str, str],
    ):
        self.directory = directory
        self.parts: list[dict[str, np.ndarray]] = []
        if directory is None:
            return
        self._fingerprint = fingerprint
        path = os.path.join(directory, _FINGERPRINT)
        found = _read_fingerprint(path)
        if found is None:
            files.write_text(json.dumps(fingerprint, indent=2), path)
        else:
            changed = [k for k in fingerprint if found.get(k) != fingerprint[k]]
            if changed:
                raise ValueError(
                    f"checkpoint_dir: expected {directory} to be empty or of "
                    f"this evaluation; the {', '.join(changed)} of the one it "
                    "holds differs. Remove it, or name another."
                )
        self._read()

    def add(self, values: dict[str, np.ndarray]) -> None:
        """Keeps the arrays of the next batch."""
        if self.directory is not None:
            notes = np.array(json.dumps(self._notes(values)))
            with (
                files.atomic_write(self._path(len(self.parts))) as part,
                open(part, "wb") as file,
            ):
                np.savez(file, **values, **{_NOTES: notes})
        self.parts.append(values)

    def _path(self, index):
        return os.path.join(self.directory, f"batch_{index:06d}.npz")

    def _notes(self, values):
        """What tells that arrays are all of a batch of this evaluation."""
        return {
            "fingerprint": self._fingerprint,
            "arrays": {
                name: [array.dtype.str, list(array.shape)]
                for name, array in values.items()
            },
        }

    def _read(self):
        """Reads batches up to the first that is missing or damaged."""
        while os.path.exists(path := self._path(len(self.parts))):
            try:
                with open(path, "rb") as file, np.load(file) as arrays:
                    values = dict(arrays)
                notes = json.loads(str(values.pop(_NOTES)))
                if notes != self._notes(values):
                    raise ValueError("it holds other arrays than it tells of")
            except files.DAMAGED as error:
                _warn(
                    path,
                    "a whole batch of this evaluation",
                    error,
                    "It is measured again, and those after it.",
                )
                return
            self.parts.append(values)


def _read_fingerprint(path):
    """What the directory is of; None if that is not known."""
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except files.DAMAGED as error:
        _warn(
            path,
            "what an evaluation depends on",
            error,
            "It is written again; the batches tell themselves what they are.",
        )
        return None


def _warn(path, expected, error, remedy):
    warnings.warn(
        f"{path}: expected {expected}; it is damaged "
        f"({type(error).__name__}: {error}). {remedy}",
        stacklevel=5,
    )


def fingerprint(
    model: keras.Model,
    metrics: Sequence[Metric],
    misclassified: str,
    batch: tuple[tf.Tensor, tf.Tensor],
    shard: tuple[int, int] | None = None,
) -> dict[str, str]:
    """What the results of an evaluation depend on.

    Args:
        model: the classifier.
        metrics: sequence of metrics.
        misclassified: the policy.
        batch: the first (inputs, labels), for all of the data set.
        shard: which part of the data set, or None.

    Returns:
        dict of str to str.
    """
    part = {} if shard is None else {"shard": "{} of {}".format(*shard)}
    return {
        **part,
        "weights": config.digest_of_arrays(model.weights),
        "metrics": ", ".join(
            f"{type(m).__name__}({m.get_config()})" for m in metrics
        ),
        "misclassified": misclassified,
        "first batch": config.digest_of_arrays(batch),
    }
