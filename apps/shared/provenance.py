"""Results as JSON, and what made them: command, flags, versions, machine."""

import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import dd_keras
from dd_keras.utils import files

FLAGS = flags.FLAGS


def provenance() -> dict:
    """What made a file of results: command, versions, machine, date."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "dd_keras": dd_keras.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, "
        f"{len(tf.config.list_physical_devices('GPU'))} GPUs",
        "commit": _COMMIT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        ),
    }


def _commit():
    """The commit of this checkout; None where it is no checkout of Git."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        commit, changes = [
            subprocess.run(
                [*git, *command], capture_output=True, check=True, text=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", ":/*.py", ":/*.cfg"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}, with changes" if changes else commit


# Of the code that runs, also if the checkout is changed meanwhile.
_COMMIT = _commit()


def flag_values(program: str) -> dict:
    """The flags of a program, as JSON can hold them.

    Args:
        program: `__name__` of its module, which defines them.
    """
    return as_json(
        {f.name: f.value for f in FLAGS.get_key_flags_for_module(program)}
    )


def named_flag_values(names: Iterable[str]) -> dict:
    """Some flags by their names, as JSON can hold them."""
    return as_json({name: FLAGS[name].value for name in names})


def as_json(values: Mapping) -> dict:
    """A dict of settings as JSON can hold it."""
    return {k: "inf" if v == math.inf else v for k, v in values.items()}


def as_rows(estimates: Mapping) -> dict:
    """Numbers and the ends of their intervals, as JSON can hold them."""
    return {
        name: [v if math.isfinite(v) else None for v in estimate[:3]]
        for name, estimate in estimates.items()
    }


def write_json(values: Mapping, path: str) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(values, indent=2, allow_nan=False)
    files.write_text(f"{text}\n", path)
