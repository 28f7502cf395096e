"""--model=NAME=PATH, once for each of several classifiers side by side."""

import re

from absl import flags

from shared import cli, inputs

from dd_keras import datasets

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the calling program's


def define_flag() -> None:
    """Declares --model."""
    flags.DEFINE_multi_string(
        "model",
        None,
        "NAME=PATH of a classifier, a .keras file or a SavedModel; once for "
        "each.",
        required=True,
    )
    flags.register_validator(
        "model",
        lambda given: all(re.match(r"[^=/\\]+=.", text) for text in given),
        message="--model must be NAME=PATH, the name without slashes.",
    )


def paths() -> dict[str, str]:
    """Names to paths, as --model has them.

    Raises:
        SystemExit: with a message, if a name is there twice.
    """
    found = dict(text.split("=", 1) for text in FLAGS.model)
    if len(found) < len(FLAGS.model):
        cli.fail(f"--model: expected each name once; received {FLAGS.model}")
    return found


def load() -> tuple[dict[str, inputs.Classifier], datasets.Data]:
    """The classifiers by name, and the data of the flags, which they fit.

    Raises:
        SystemExit: with a message, if one cannot be read or does not fit.
    """
    given = paths()
    classifiers = {
        name: inputs.load_classifier(path, None, FLAGS.activation)
        for name, path in given.items()
    }  # before the data, which may take minutes
    data = inputs.load_evaluation_data()
    for name, path in given.items():
        inputs.check_fits(path, classifiers[name], data)
    return classifiers, data
