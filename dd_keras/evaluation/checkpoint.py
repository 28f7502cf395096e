"""What an evaluation has done so far, on disk: one file a batch."""

import hashlib
import json
import os
import zipfile

import keras
import numpy as np

from dd_keras import files

_FINGERPRINT = "evaluation.json"


class Checkpoint:
    """The batches already measured, in order.

    Args:
        directory: where they are kept, made if missing; None: nowhere.
        fingerprint: dict of str of what the results depend on; a directory
            of another evaluation is refused.

    Raises:
        ValueError: if `directory` holds another evaluation.

    Attributes:
        parts: list of dict of name to array, one for each batch.
    """

    def __init__(self, directory, fingerprint):
        self.directory = directory
        self.parts = []
        if directory is None:
            return
        path = os.path.join(directory, _FINGERPRINT)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            changed = [k for k in fingerprint if found.get(k) != fingerprint[k]]
            if changed:
                raise ValueError(
                    f"checkpoint_dir: expected {directory} to be empty or of "
                    f"this evaluation; the {', '.join(changed)} of the one it "
                    "holds differs. Remove it, or name another."
                )
            self._read()
        else:
            files.write_text(json.dumps(fingerprint, indent=2), path)

    def add(self, values):
        """Keeps the arrays of the next batch."""
        if self.directory is not None:
            with (
                files.whole(self._path(len(self.parts))) as part,
                open(part, "wb") as file,
            ):
                np.savez(file, **values)
        self.parts.append(values)

    def _path(self, index):
        return os.path.join(self.directory, f"batch_{index:06d}.npz")

    def _read(self):
        """Reads batches up to the first that is missing or damaged."""
        while os.path.exists(path := self._path(len(self.parts))):
            try:
                with open(path, "rb") as file, np.load(file) as arrays:
                    self.parts.append(dict(arrays))
            except (OSError, ValueError, zipfile.BadZipFile):
                return  # measured, and written, once more


def fingerprint(model, metrics, misclassified, batch):
    """What the results of an evaluation depend on.

    Args:
        model: the classifier.
        metrics: sequence of metrics.
        misclassified: the policy.
        batch: the first (inputs, labels), for all of the data set.

    Returns:
        dict of str to str.
    """
    return {
        "weights": _digest(model.weights),
        "metrics": ", ".join(
            f"{type(m).__name__}({m.get_config()})" for m in metrics
        ),
        "misclassified": misclassified,
        "first batch": _digest(batch),
    }


def _digest(tensors):
    digest = hashlib.sha256()
    for array in map(keras.ops.convert_to_numpy, tensors):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
