"""Many fine-tunings of one reference, each with a JSON that says what made it.

What sweep.py and frontier.py share: where results are, and whether those that
are there are of the run that is asked for.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

from absl import flags

from shared import cli, training
from shared.provenance import as_json, named_flag_values
from shared.run_directory import RunDirectory

from dd_keras import datasets
from dd_keras.defenses import Settings

FLAGS = flags.FLAGS

# What trained the reference.
OF_REFERENCE = [
    "arch", "weights", "augment", "batch_size", "momentum",
    "weight_decay", "reference_epochs", "reference_learning_rate",
    "reference_weight_decay", "reference_last_epochs",
    "reference_last_rate", "seed", "precision",
]  # fmt: skip
_OF_FINE_TUNING = [
    "dataset", "recipe", "limit", "image_size", "augment", "epochs",
    "halved_epochs", "last_rate", "learning_rate", "momentum",
    "weight_decay", "lam_start", "regularization_warmup", "precision",
]  # fmt: skip


def progress_of(output_dir: str, name: str, identity: dict) -> RunDirectory:
    """The `RunDirectory` of one fine-tuning."""
    return RunDirectory(os.path.join(output_dir, "checkpoints", name), identity)


def reference_path(
    data: datasets.Data, train: datasets.ResumableBatches, output_dir: str
) -> str:
    """The path of the classifier that all runs start from; trains it."""
    if FLAGS.reference:
        return FLAGS.reference
    path = os.path.join(output_dir, f"{training.REFERENCE}.keras")
    if not os.path.exists(path):
        progress = progress_of(
            output_dir, training.REFERENCE, named_flag_values(OF_REFERENCE)
        )
        reference, _ = training.train_reference(
            data, train, progress.checkpoints("training")
        )
        training.save(reference, path)
        progress.finish()
    return path


def digest_of(path: str) -> str:
    """The SHA-256 of a reference's file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(
    name: str, settings: Settings, digest: str, *more_flags: str
) -> dict[str, Any]:
    """What a run's numbers depend on; as JSON gives it back.

    Args:
        name: of the run.
        settings: `dd_keras.defenses.Settings`.
        digest: of the reference's file.
        *more_flags: names of further flags that matter.
    """
    return {
        "run": name,
        "reference_sha256": digest,
        "flags": named_flag_values([*_OF_FINE_TUNING, *more_flags]),
        "settings": as_json(dataclasses.asdict(settings)),
    }


def result_path(output_dir: str, name: str) -> str:
    """Where the JSON of a run is."""
    return os.path.join(output_dir, "runs", f"{name}.json")


def read(path: str, wanted: dict) -> dict | None:
    """A result that is there already, or None.

    Args:
        path: of its file.
        wanted: what it must hold, among others.

    Raises:
        SystemExit: with a message, if it was made by other settings, or is
            damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            result = dict(json.load(file))
    except (TypeError, ValueError) as error:
        cli.fail(
            f"{path}: expected the JSON of a run; it cannot be read: {error}. "
            "Remove it, and the same command runs it again."
        )
    found = _flat(result)
    for key, value in _flat(wanted).items():
        if found.get(key) != value:
            cli.fail(
                f"{path}: expected a run with {key} {value}; it is one with "
                f"{found.get(key)}. Choose another --output_dir."
            )
    return result


def _flat(values):
    """A dict with the entries of the dicts in it as its own."""
    flat = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat
