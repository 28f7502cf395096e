"""A folder of one's own images."""

import pathlib
import warnings

import numpy as np
import tensorflow as tf

from dd_keras.datasets.data import Data
from dd_keras.datasets.images import mean_subtracted

# A fixed permutation of a folder's files, which come class by class. It does
# not follow `seed`: an evaluation must find the split of the training.
_SEED = 20181203
_FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # TensorFlow decodes them


def load(
    data_dir: str | None,
    image_size: int | None,
    augment: bool,
    seed: int,
    validation_split: float,
) -> Data:
    """See `dd_keras.datasets.load`."""
    root = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if root is None or not root.is_dir():
        raise ValueError(
            "data_dir: expected the folder of your images; received "
            f"{data_dir!r}."
        )
    if image_size is None:
        raise ValueError(
            "image_size: expected a positive integer for 'folder', as images "
            "may differ in size; received None."
        )
    train, test, class_names = _folder_files(root)
    train_images, test_images = (
        tf.data.Dataset.from_tensor_slices(split).map(_decode, tf.data.AUTOTUNE)
        for split in (train, test)
    )
    try:
        data = mean_subtracted(
            train_images,
            test_images,
            class_names,
            image_size,
            augment,
            seed,
            validation_split,
        )
        if not data.cache:  # the test images may not have been read yet
            data.test.reduce(0, lambda count, _: count + 1)
    except tf.errors.OpError:
        for file in (*train[0], *test[0]):
            try:
                _decode(file, 0)
            except tf.errors.OpError as error:
                raise ValueError(
                    f"data_dir: expected images; {file} cannot be read: "
                    f"{error.message}"
                ) from error
        raise
    return data


def _decode(file, label):
    image = tf.io.decode_image(
        tf.io.read_file(file), channels=3, expand_animations=False
    )
    return tf.ensure_shape(image, (None, None, 3)), label


def _folder_files(root):
    """(files, labels) for training and for testing, and class names."""
    train = root / "train"
    if not (train.is_dir() and _subfolders(train)):  # it may be a class
        files, labels, class_names = _index(root)
        cut = len(files) - max(1, len(files) // 5)
        return (
            (files[:cut], labels[:cut]),
            (files[cut:], labels[cut:]),
            class_names,
        )
    names = ("test", "val", "validation")
    test = next((root / n for n in names if (root / n).is_dir()), None)
    if test is None:
        raise ValueError(
            f"data_dir: expected one of the folders {names} beside {train}; "
            "received none."
        )
    *train_files, class_names = _index(train)
    *test_files, test_names = _index(test)
    if class_names != test_names:
        raise ValueError(
            f"data_dir: expected the same classes in {train} and {test}; "
            f"received {sorted({*class_names} ^ {*test_names})} in one alone."
        )
    return tuple(train_files), tuple(test_files), class_names


def _subfolders(folder):
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _is_image(path):
    return path.suffix.lower() in _FORMATS


def _is_hidden(path, folder):
    return any(p.startswith(".") for p in path.relative_to(folder).parts)


def _index(folder):
    """Files in random order, their labels, and the names of the classes."""
    classes = _subfolders(folder)
    if len(classes) < 2:
        raise ValueError(
            f"data_dir: expected a folder for each of two or more classes in "
            f"{folder}; received {[path.name for path in classes]}."
        )
    files, labels = [], []
    others = [path for path in folder.iterdir() if _is_image(path)]
    for label, path in enumerate(classes):
        found = sorted(file for file in path.rglob("*") if file.is_file())
        found = [file for file in found if not _is_hidden(file, path)]
        others += [file for file in found if not _is_image(file)]
        found = [str(file) for file in found if _is_image(file)]
        files += found
        labels += [label] * len(found)
        if not found:
            raise ValueError(
                f"data_dir: expected images ({', '.join(_FORMATS)}) in {path}; "
                "received none."
            )
    if others:
        warnings.warn(
            f"data_dir: {len(others)} files in {folder} are left out; they "
            f"are not in a class' folder, or their names do not end in "
            f"{', '.join(_FORMATS)}. One is {others[0]}.",
            stacklevel=5,
        )
    order = np.random.RandomState(_SEED).permutation(len(files))
    return (
        np.array(files)[order],
        np.array(labels)[order],
        [path.name for path in classes],
    )
