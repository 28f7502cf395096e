"""Flags that several programs have: which data, classifier and evaluation.

They become flags of the program that calls these functions.
"""

from absl import flags

from dd_keras import datasets, evaluation
from dd_keras.classifier import logits
from dd_keras.utils import tables

flags.disclaim_key_flags()  # they are the calling program's


def define_data_flags() -> None:
    """Declares the flags of data, which all apps have."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where TFDS keeps its data; of the data set 'folder', that folder.",
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Resize images to so many pixels a side; as they are by default.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "max_image_pixels",
        None,
        "Of the data set 'folder': most pixels that an image may have, 2^25 by "
        "default. Larger ones end the program before they are decoded.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "limit",
        None,
        "Use the first so many images of each split, for a quick look.",
        lower_bound=1,
    )


def define_dataset_flag() -> None:
    """Declares --dataset and --recipe, for apps of any data set."""
    flags.DEFINE_string(
        "dataset",
        "mnist",
        f"Data set: {', '.join(datasets.NAMES)}, or any image classification "
        "set of TensorFlow Datasets.",
    )
    flags.DEFINE_enum(
        "recipe",
        None,
        sorted(datasets.imagenet.RECIPES),
        "Whose crops and means images of imagenet2012 get; caffe by default.",
    )


def define_classifier_flags() -> None:
    """Declares what the apps share that take finished classifiers."""
    define_data_flags()
    define_dataset_flag()
    flags.DEFINE_enum("split", "test", ["test", "train"], "Which part of it.")
    flags.DEFINE_string(
        "preprocessing",
        "dataset",
        "What stands between images and classifier: 'dataset' subtracts the "
        "training set's mean image; 'none' hands over pixels 0 to 255; or a "
        ".keras file.",
    )
    flags.DEFINE_enum(
        "activation",
        None,
        logits.ACTIVATIONS,
        "What the classifier ends in, where that cannot be told.",
    )
    flags.DEFINE_enum(
        "misclassified",
        "predicted",
        evaluation.POLICIES,
        "How images count that are misclassified without attack: with the "
        "distance from their predicted class (the paper's way), with 0, or "
        "not at all.",
    )
    flags.DEFINE_integer("batch_size", 500, "Images a batch.", lower_bound=1)


def define_evaluation_flags(output_dir: str) -> None:
    """Declares what the apps share that evaluate finished classifiers.

    Args:
        output_dir: default of --output_dir.
    """
    define_classifier_flags()
    flags.DEFINE_enum(
        "format", "text", tables.FORMS, "Of the tables that are printed."
    )
    define_output_dir(output_dir)


def define_output_dir(default: str | None) -> None:
    """Declares --output_dir, which must not be empty."""
    flags.DEFINE_string("output_dir", default, "Where all results go.")
    flags.register_validator(
        "output_dir", bool, message="--output_dir must not be empty."
    )
