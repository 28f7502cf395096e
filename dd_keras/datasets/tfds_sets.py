"""Image classification sets of TensorFlow Datasets (TFDS)."""

import contextlib
import difflib
import pathlib
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import tensorflow as tf

from dd_keras.datasets.data import NAMES

_PATIENCE = 20  # seconds until a server must have answered


def splits(
    name: str, data_dir: str | None
) -> tuple[tf.data.Dataset, tf.data.Dataset, list[str]]:
    """Training and test split of a set, downloaded if it is not there.

    Returns:
        (train, test, class_names): unbatched data sets of (image, label), both
        integers, in the order on disk; list of str.
    """
    builder = builder_of(name, data_dir)
    try:
        if not builder.is_prepared():
            _reach(next(iter(builder.url_infos), ""))
            builder.download_and_prepare()
        for split in ("test", "validation"):
            if split in builder.info.splits:
                return read(builder, "train", split)
        return read(builder, "train[:80%]", "train[80%:]")
    except Exception as error:  # TFDS raises what its many backends raise
        raise unavailable(name, data_dir, error) from error


def builder_of(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of images and classes; nothing is downloaded yet."""
    import tensorflow_datasets as tfds

    _check_folder(data_dir)
    # Any version that is there will do, before a newer one is downloaded.
    wanted = name if ":" in name else f"{name}:*.*.*"
    try:
        builder = tfds.builder(wanted, data_dir=data_dir)
    except (AssertionError, ValueError) as error:  # also no such version
        if not isinstance(error, AssertionError) and _is_there(name, data_dir):
            raise unavailable(name, data_dir, error) from error
        known = [*NAMES, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(name, known)
        hint = f" Close matches: {', '.join(close)}." if close else ""
        raise ValueError(
            f"name: expected one of {NAMES} or a data set of TFDS; received "
            f"{name!r}.{hint} TFDS says: {str(error).strip().splitlines()[0]}"
        ) from error
    except Exception as error:  # TFDS raises what its many backends raise
        raise unavailable(name, data_dir, error) from error
    if not _are_images_and_classes(builder.info):
        raise ValueError(
            "name: expected a TFDS set of images with pixels 0 to 255 and "
            f"one class label each; {name!r} is not: its supervised_keys are "
            f"{builder.info.supervised_keys}."
        )
    return builder


def _check_folder(data_dir):
    """Refuses a folder that is not there: one mistyped starts no download."""
    if data_dir is None or "://" in data_dir:
        return
    if not pathlib.Path(data_dir).expanduser().is_dir():
        raise ValueError(
            "data_dir: expected a folder that is there, with the data set in "
            f"it or room for it; received {data_dir!r}. Without data_dir it "
            f"is {where(None)}."
        )


def _reach(url):
    """Fails at once where TFDS would try for minutes: without a network."""
    if not url.startswith("http"):
        return
    request = urllib.request.Request(url, method="HEAD")
    with (
        contextlib.suppress(urllib.error.HTTPError),  # an answer
        urllib.request.urlopen(request, timeout=_PATIENCE),
    ):
        pass


def _is_there(name, data_dir):
    """Whether there is a version of a set, though it may be damaged."""
    folder = pathlib.Path(where(data_dir)).expanduser()
    base, _, version = name.partition(":")
    return any((folder / base).glob(f"**/{version or '*.*.*'}/"))


def _are_images_and_classes(info):
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ()
    if len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        return False
    image, label = (info.features[key] for key in keys)
    return (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and isinstance(label, tfds.features.ClassLabel)
        and bool(label.num_classes)
    )


def read(builder: Any, *splits: str) -> tuple:
    """Some splits of a set that is there, and its class names; see `splits`."""
    import tensorflow_datasets as tfds

    _, label = builder.info.supervised_keys
    config = tfds.ReadConfig(try_autocache=False)  # we know what is to be kept
    return *(
        builder.as_dataset(split, as_supervised=True, read_config=config)
        for split in splits
    ), builder.info.features[label].names


def unavailable(
    name: str, data_dir: str | None, error: Exception
) -> RuntimeError:
    """The error to raise where TFDS fails, in general for want of access."""
    cause = next(iter(str(error).strip().splitlines()), "")
    return RuntimeError(
        f"{name}: could be neither read from {where(data_dir)} nor "
        "downloaded to it. On a machine with access, run `python -c "
        f"\"import tensorflow_datasets as tfds; tfds.load('{name}', "
        "data_dir='DIR')\"`, copy DIR here, and pass it as data_dir "
        f"(--data_dir in the apps). The cause: {type(error).__name__}: {cause}"
    )


def where(data_dir: str | None) -> str:
    """What an error calls the folder of TFDS."""
    return data_dir or "~/tensorflow_datasets"
