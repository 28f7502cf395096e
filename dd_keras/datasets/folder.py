"""A folder of one's own images."""

import contextlib
import functools
import os
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from dd_keras.datasets.data import Data
from dd_keras.datasets.image_headers import stated_pixels
from dd_keras.datasets.images import mean_subtracted
from dd_keras.utils import text

# A fixed permutation of a folder's files, which come class by class. It does
# not follow `seed`: an evaluation must find the split of the training.
_SEED = 20181203
_FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # TensorFlow decodes them
# 33 megapixels: a photograph of most cameras; 500 MB while it is resized.
MAX_IMAGE_PIXELS = 2**25


def load(
    data_dir: str | None,
    image_size: int | None,
    augment: bool,
    seed: int,
    validation_split: float,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
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
    decode = functools.partial(_decode, max_pixels=max_image_pixels)
    train_images, test_images = (
        tf.data.Dataset.from_tensor_slices(split).map(decode, tf.data.AUTOTUNE)
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
            _check_file(file, max_image_pixels)
        raise
    return data


def _decode(file, label, max_pixels):
    data = tf.io.read_file(file)
    pixels = stated_pixels(data)
    fits = (pixels >= 0) & (pixels <= max_pixels)
    with tf.control_dependencies([tf.debugging.Assert(fits, [file])]):
        data = tf.identity(data)
    return _decoded(data), label


def _decoded(data):
    """The pixels of a file, (H, W, 3); of an animation those of one frame."""
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


_stated_pixels = tf.function(
    stated_pixels, input_signature=[tf.TensorSpec((), tf.string)]
)


def _check_file(file, max_pixels):
    """Says in an error what is wrong with a file."""
    name, reason = text.printable(file), None
    try:
        data = tf.io.read_file(file)
        pixels = 0  # where the header is damaged, as its decoder will say
        with contextlib.suppress(tf.errors.InvalidArgumentError):
            pixels = int(_stated_pixels(data))
        if pixels < 0:
            reason = f"it does not begin as {', '.join(_FORMATS)} do."
        elif pixels <= max_pixels:
            _decoded(data)
    except tf.errors.OpError as error:
        reason = error.message
    if reason is not None:
        raise ValueError(
            f"data_dir: expected images; {name} cannot be read: {reason}"
        )
    if pixels > max_pixels:
        raise ValueError(
            f"max_image_pixels: expected images of at most {max_pixels} "
            f"pixels; {name} says that it has {pixels}."
        )


def _folder_files(root):
    """(files, labels) for training and for testing, and class names."""
    train = root / "train"
    if not (train.is_dir() and _subfolders(train)):  # it may be a class
        files, labels, class_names = _index(root)
        cut = len(files) - max(1, len(files) // 5)
        _warn_of_missing(labels[:cut], class_names, "to train on")
        _warn_of_missing(labels[cut:], class_names, "to test with")
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


def _warn_of_missing(labels, class_names, purpose):
    missing = sorted({*range(len(class_names))} - {*labels})
    if missing:
        warnings.warn(
            f"data_dir: no image is left {purpose} of the classes "
            f"{[class_names[label] for label in missing]}, as a fifth of all "
            "images is for testing.",
            stacklevel=5,
        )


def _subfolders(folder):
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _is_image(path):
    return path.suffix.lower() in _FORMATS


def _is_folder(path):
    """Whether it is one, whose contents are listed; no link to one."""
    return path.is_dir() and not path.is_symlink()


def _name(path):
    """The name of a file, which TensorFlow takes in UTF-8."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "data_dir: expected names of files in UTF-8; received "
            f"{os.fsencode(name)!r}. Rename it."
        ) from error
    return name


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
    others = [p for p in folder.iterdir() if _is_image(p) and not p.is_dir()]
    for label, path in enumerate(classes):
        inside = sorted(p for p in path.rglob("*") if not _is_hidden(p, path))
        found = [p for p in inside if _is_image(p) and p.is_file()]
        others += [p for p in {*inside} - {*found} if not _is_folder(p)]
        files += map(_name, found)
        labels += [label] * len(found)
        if not found:
            raise ValueError(
                f"data_dir: expected images ({', '.join(_FORMATS)}) in {path}; "
                "received none."
            )
    if others:
        warnings.warn(
            f"data_dir: {len(others)} files in {folder} are left out; they "
            "are not in a class' folder, or are no files (links to folders or "
            "to nothing, pipes), or their names do not end in "
            f"{', '.join(_FORMATS)}. One is {text.printable(min(others))}.",
            stacklevel=5,
        )
    order = np.random.RandomState(_SEED).permutation(len(files))
    return (
        np.array(files)[order],
        np.array(labels)[order],
        [path.name for path in classes],
    )
