"""Data sets: raw images, labels, and the preprocessing that belongs to them.

Pixels are from 0 to 255, as in the paper. Preprocessing is a Keras layer
outside the classifier: attacks perturb the preprocessed inputs, and an
exported model begins with it.
"""

import re
from typing import Any

import tensorflow as tf

from dd_keras.datasets import digits, folder, imagenet, tfds_sets
from dd_keras.datasets.data import NAMES, Data, batches, check_images
from dd_keras.datasets.images import mean_subtracted
from dd_keras.datasets.resumable_batches import ResumableBatches
from dd_keras.utils import validation

__all__ = [
    "NAMES",
    "Data",
    "ResumableBatches",
    "batches",
    "check_images",
    "load",
]

# Sets of digits and letters: mirrored, they are others or none at all.
_NEVER_FLIPPED = (
    *("digits", "mnist", "mnist_corrupted", "emnist", "kmnist"),
    *("binarized_mnist", "svhn_cropped", "omniglot"),
)


def load(
    name: str,
    data_dir: str | None = None,
    *,
    image_size: int | None = None,
    augment: bool = False,
    seed: int = 0,
    recipe: str | None = None,
    validation_split: float = 0.0,
    max_image_pixels: int | None = None,
) -> Data:
    """Loads a data set by name.

    - `"digits"`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, which
      its package includes.
    - `"mnist"`, `"cifar10"`, and any other image classification set of TFDS by
      its name there (`"fashion_mnist"`, `"tf_flowers:3.0.1"`). The test images
      are its split "test", else "validation", else the last fifth of "train".
    - `"imagenet2012"`: through TFDS, from files downloaded by hand; the test
      images are its split "validation". See `recipe`.
    - `"folder"`: your own images, DATA_DIR/train/CLASS/*.jpg and
      DATA_DIR/test/CLASS/*.jpg ("val" or "validation" instead of "test" is
      allowed), or DATA_DIR/CLASS/*.jpg: then a random fifth of the images,
      always the same, is for testing. Classes are in the order of their
      names. All images become RGB. BMP, GIF, JPEG and PNG are read, of an
      animation the first frame. Links to files and to class folders are
      followed; anything else that is not a file is skipped with a warning.

    Data that fit in memory are kept there; others are streamed from disk.
    Preprocessing subtracts the training set's mean image, except as described
    under `recipe`.

    Args:
        name: name of the data set, as above.
        data_dir: the data directory of TFDS, which must exist; None for TFDS'
            own default. For `"folder"`, the folder.
        image_size: side length in pixels to which images are resized
            (bilinear, with antialiasing), before the mean is computed; None
            keeps the size. Required if images differ in size.
        augment: whether to vary the training images, anew in each epoch, by
            random horizontal flips and, for ImageNet, random crops.
        seed: seed of `augment`. With the same seed (and, if set, the same
            global seed of TensorFlow) all epochs are the same in each run.
        recipe: for `"imagenet2012"` only. `"caffe"`, the default, is that of
            AlexNet: images are resized to 256x256 and cropped to 227x227, at
            random in training if `augment`, else at the centre; preprocessing
            subtracts Caffe's mean pixel. `"resnet"`: the shorter side is
            resized to 256, and the central 224x224 are cropped; in training,
            if `augment`, a random crop (8 to 100 % of the area, aspect ratio
            3:4 to 4:3) is resized to 224x224; preprocessing standardises each
            channel. Channels are red, green, blue in both. `image_size`
            replaces 227 or 224, and scales 256 accordingly.
        validation_split: share of the training images, the last ones, that is
            held out for validation, in [0, 1): for choices that must not
            depend on the test images. They are never augmented.
        max_image_pixels: for `"folder"` only: maximum number of pixels of an
            image, for an animation of all frames together; None for 2^25. It
            is checked before a file is decoded, as a file of some kilobytes
            may decode to gigabytes.

    Returns:
        `Data`: training and test images, preprocessing, classes.

    Raises:
        ValueError: if an argument is not as above, if the TFDS set does not
            consist of images and classes, or if the folder is not as above or
            holds a file that is not an image or too large, which the error
            names.
        RuntimeError: if the data can be neither found nor downloaded.

    Example:
        >>> data = dd_keras.datasets.load("digits", validation_split=0.2)
        >>> data.image_shape, data.num_classes
        ((8, 8, 1), 10)
        >>> len(data.train), len(data.validation), len(data.test)
        (1150, 287, 360)
    """
    base = re.split("[:/]", name)[0]  # without version and configuration
    _check_arguments(base, image_size, augment, recipe, validation_split)
    if max_image_pixels is not None and name != "folder":
        raise ValueError(
            f"max_image_pixels: expected None for {name!r}, as only 'folder' "
            f"has such a limit; received {max_image_pixels!r}."
        )
    how: dict[str, Any] = {
        "image_size": image_size,
        "augment": augment,
        "seed": seed,
        "validation_split": validation_split,
    }
    if base == "imagenet2012":
        return imagenet.load(name, data_dir, recipe or "caffe", **how)
    if name == "folder":
        if max_image_pixels is not None:
            how["max_image_pixels"] = validation.validate_integer(
                "max_image_pixels", max_image_pixels, at_least=1
            )
        return folder.load(data_dir, **how)
    if name == "digits":
        return mean_subtracted(*digits.splits(), **how)
    try:
        splits = tfds_sets.splits(name, data_dir)
        return mean_subtracted(*splits, **how)
    except tf.errors.OpError as error:  # damaged files
        raise tfds_sets.unavailable(name, data_dir, error) from error


def _check_arguments(base, image_size, augment, recipe, validation_split):
    if image_size is not None and not (
        type(image_size) is int and image_size > 0
    ):
        raise ValueError(
            "image_size: expected a positive integer or None; received "
            f"{image_size!r}."
        )
    if augment and base in _NEVER_FLIPPED:
        raise ValueError(
            f"augment: expected False for {base!r}, as mirrored digits or "
            f"letters are other ones; received {augment!r}."
        )
    if recipe is not None and base != "imagenet2012":
        raise ValueError(
            f"recipe: expected None for {base!r}, as only 'imagenet2012' has "
            f"recipes; received {recipe!r}."
        )
    if recipe is not None and recipe not in imagenet.RECIPES:
        raise ValueError(
            f"recipe: expected one of {sorted(imagenet.RECIPES)} or None; "
            f"received {recipe!r}."
        )
    if not (
        isinstance(validation_split, (int, float)) and 0 <= validation_split < 1
    ):
        raise ValueError(
            "validation_split: expected a number of at least 0 and below 1; "
            f"received {validation_split!r}."
        )
