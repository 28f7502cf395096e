"""Configuration files of TensorFlow Serving, for a directory of exports."""

import os
from typing import Any

from dd_keras.utils import files

MODELS, BATCHING = "models.config", "batching.config"
EXAMPLES = "examples"  # images to ask the server about
LARGEST_BATCH = 64  # images

_MODELS_HEADER = """\
# Written anew by each export into this directory: edit a copy.
# tensorflow_model_server --model_config_file=models.config
"""
# Fields: `BatchingParameters` of TensorFlow Serving.
_BATCHING = f"""\
# tensorflow_model_server --enable_batching --batching_parameters_file=...
# Requests that wait at the same time run as one batch. If one of them is bad,
# all of its batch fail.
max_batch_size {{ value: {LARGEST_BATCH} }}
# Longest time that a request waits for others: 2 ms.
batch_timeout_micros {{ value: 2000 }}
# Beyond these, requests are refused: UNAVAILABLE.
max_enqueued_batches {{ value: 100 }}
# As many as there are cores, as a rule.
num_batch_threads {{ value: 4 }}
"""


def validate_name(name: Any) -> str:
    """Checks the name of a served model, which is also that of its directory.

    Args:
        name: str of printable characters, without a slash, backslash or colon
            (which ends a name in URLs). It must not begin with a dot or space,
            and not be the name of another file or folder in a server's
            directory.

    Returns:
        `name`, unchanged.

    Raises:
        ValueError: if the name is not as above.

    Example:
        >>> dd_keras.serving.validate_name("digits")
        'digits'
        >>> dd_keras.serving.validate_name("digits/1")
        Traceback (most recent call last):
            ...
        ValueError: name: expected the name of a folder, ...
    """
    reserved = (MODELS, BATCHING, EXAMPLES)
    if (
        not isinstance(name, str)
        or not name
        or not name.isprintable()
        or name[0] in ". "
        or set(name) & set("/\\:")
        or name in reserved
    ):
        raise ValueError(
            "name: expected the name of a folder, of printable characters, "
            "with no dot or space first, no slash, backslash or colon, and "
            f"none of {reserved}; received {name!r}."
        )
    return name


def versions(path: str | os.PathLike) -> list[int]:
    """The versions of a model in its directory, sorted.

    Args:
        path: directory; it need not exist.

    Returns:
        list of int. Other names are ignored, as the server ignores them.
    """
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def write_server_config(
    directory: str | os.PathLike, base_path: str | os.PathLike = "/models"
) -> list[str]:
    """Writes models.config for all models in a directory, and batching.config.

    An existing batching.config is kept; models.config is replaced.

    Args:
        directory: directory with a folder for each model, as written by
            `dd_keras.export(model, f"{directory}/{name}")`.
        base_path: path of `directory` in the server, absolute and of printable
            characters; `/models` if it is mounted there, as in TensorFlow
            Serving's Docker image.

    Returns:
        The names of the models: a sorted list of str.

    Raises:
        ValueError: if the directory has no model, or one whose name
            `validate_name` refuses, or if `base_path` is not as above.

    Example:
        >>> os.makedirs("models/digits/1")  # in place of `dd_keras.export`
        >>> dd_keras.serving.write_server_config("models")
        ['digits']
        >>> sorted(os.listdir("models"))
        ['batching.config', 'digits', 'models.config']
    """
    base_path = os.fspath(base_path)
    if not base_path.startswith("/") or not base_path.isprintable():
        raise ValueError(
            "base_path: expected an absolute path of printable characters; "
            f"received {base_path!r}."
        )
    folders = os.listdir(directory) if os.path.isdir(directory) else []
    names = [
        validate_name(name)
        for name in sorted(folders)
        if versions(os.path.join(directory, name))
    ]
    if not names:
        raise ValueError(
            "directory: expected one that holds exported models; received "
            f"{str(directory)!r}, which holds none."
        )
    configs = "".join(
        f"  config {{\n    name: {_quoted(name)}\n"
        f"    base_path: {_quoted(os.path.join(base_path, name))}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name in names
    )
    files.write_text(
        f"{_MODELS_HEADER}model_config_list {{\n{configs}}}\n",
        os.path.join(directory, MODELS),
    )
    batching = os.path.join(directory, BATCHING)
    if not os.path.exists(batching):
        files.write_text(_BATCHING, batching)
    return names


def _quoted(text):
    """A string of a text protocol buffer."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
