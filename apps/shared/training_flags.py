"""Flags of the programs that train: network, defence, schedule, run.

They become flags of the program that calls `define`. Those of the defences are
the fields of `dd_keras.defenses.Settings`, and are read back by `settings`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence

from absl import flags

from shared import precision
from shared.flags import define_data_flags, define_output_dir

from dd_keras import distribution, networks
from dd_keras.defenses import Settings
from dd_keras.networks import applications

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the calling program's


def define(archs: list[str], **defaults: object) -> None:
    """Declares the flags of a program that trains.

    Args:
        archs: names of the data set's own networks; the first is the default.
        **defaults: values of flags to start from, instead of those below.
    """
    before = set(FLAGS)
    _define_network_flags(archs)
    _define_settings_flags()
    _define_schedule_flags()
    _define_run_flags()
    define_data_flags()
    define_output_dir(None)
    unknown = set(defaults) - (set(FLAGS) - before)
    if unknown:
        raise ValueError(f"defaults: expected names of flags; {unknown}.")
    for name, value in defaults.items():
        FLAGS.set_default(name, value)


def settings(**changes: object) -> Settings:
    """The `Settings` of the flags, but for some."""
    names = [field.name for field in _flagged()]
    return Settings(**{n: FLAGS[n].value for n in names} | changes)


def _define_network_flags(archs):
    known = [*networks.NAMES, *archs, *applications.NAMES]
    flags.DEFINE_string(
        "arch",
        archs[0],
        f"Network: {', '.join(archs)}, or any keras.applications, as "
        "MobileNetV2; that takes raw pixels, its own preprocessing in front.",
    )
    flags.register_validator(
        "arch",
        lambda value: value in known,
        message=f"--arch must be one of {', '.join(archs)}, or the name of "
        "a keras.applications, as MobileNetV2.",
    )
    flags.DEFINE_string(
        "weights",
        None,
        "Of a keras.applications: imagenet, which Keras downloads, or a file "
        "of weights; random by default.",
    )
    flags.DEFINE_string(
        "reference", None, "Classifier to defend, a .keras file; none: train."
    )


def _define_settings_flags():
    """A flag for each field of `Settings`, by its type and metadata."""
    hints = typing.get_type_hints(Settings)
    for field in _flagged():
        _define_setting(field, _without_none(hints[field.name]))


def _flagged():
    """The fields of `Settings` that are flags."""
    fields = dataclasses.fields(Settings)
    return [field for field in fields if field.metadata.get("flag", True)]


def _without_none(hint):
    """The type T of a hint T, T | None or T | str."""
    if isinstance(hint, types.UnionType):
        (hint,) = set(typing.get_args(hint)) - {types.NoneType, str}
    return hint


class _NumberOrWord(flags.FloatParser):
    """Parses a number above 0, or one word.

    Args:
        word: the word.
    """

    def __init__(self, word: str):
        super().__init__()
        self._word = word
        self.syntactic_help = f"a number above 0, or {word}"

    def parse(self, argument: str | float) -> str | float:
        """The number, or the word."""
        if argument == self._word:
            return argument
        number = self.convert(argument)
        if not 0 < number < math.inf:
            raise ValueError(f"expected {self.syntactic_help}")
        return number


def _define_setting(field, kind):
    limits, common = field.metadata, (field.name, field.default)
    text = limits["help"]
    bounds = {
        "lower_bound": limits.get("minimum"),
        "upper_bound": limits.get("maximum"),
    }
    if "word" in limits:
        flags.DEFINE(
            _NumberOrWord(limits["word"]),
            *common,
            text,
            serializer=flags.ArgumentSerializer(),
        )
    elif kind is float:
        flags.DEFINE_float(*common, text, **bounds)
        if limits.get("positive"):
            _require_positive(field.name)
        elif limits.get("finite", True):
            _require_finite(field.name)
        else:
            flags.register_validator(
                field.name,
                lambda value: not math.isnan(value),
                message=f"--{field.name} must be a number.",
            )
    elif kind is int:
        flags.DEFINE_integer(*common, text, **bounds)
    elif kind is bool:
        flags.DEFINE_bool(*common, text)
    elif kind == Sequence[str]:
        flags.DEFINE_list(*common, text)
    else:
        flags.DEFINE_enum(*common, list(limits["choices"]), text)


def _define_schedule_flags():
    number, integer = flags.DEFINE_float, flags.DEFINE_integer
    number(
        "lam_start", 0.0, "Epochs before the regulariser acts.", lower_bound=0
    )
    number(
        "regularization_warmup",
        0.0,
        "Epochs in which it grows to --lam.",
        lower_bound=0,
    )
    integer("epochs", 5, "Fine-tuning epochs.", lower_bound=0)
    integer(
        "halved_epochs",
        1,
        "Last epochs of fine-tuning, at half the learning rate.",
        lower_bound=0,
    )
    number(
        "last_rate",
        0.5,
        "Factor of the learning rate in --halved_epochs, if not half.",
        upper_bound=1,
    )
    number("learning_rate", 5e-4, "Of fine-tuning.")
    number("momentum", 0.9, "Of SGD.", lower_bound=0, upper_bound=1)
    number(
        "weight_decay",
        5e-4,
        "Coupled: weight_decay * w is added to the gradient.",
        lower_bound=0,
    )
    integer(
        "reference_epochs",
        12,
        "Epochs that train the reference.",
        lower_bound=0,
    )
    number("reference_learning_rate", 5e-4, "Of the training of the reference.")
    number(
        "reference_weight_decay",
        None,
        "Of the training of the reference; --weight_decay by default.",
        lower_bound=0,
    )
    number(
        "reference_last_rate",
        0.5,
        "Factor of the learning rate in the reference's last epochs.",
        upper_bound=1,
    )
    integer(
        "reference_last_epochs",
        1,
        "Epochs of the reference at the lower rate.",
        lower_bound=0,
    )
    flags.DEFINE_bool(
        "augment",
        False,
        "Train on images mirrored at random; of ImageNet, cropped as well.",
    )
    for name in (
        "learning_rate", "last_rate", "reference_learning_rate",
        "reference_last_rate",
    ):  # fmt: skip
        _require_positive(name)
    for name in (
        "weight_decay", "reference_weight_decay", "momentum", "lam_start",
        "regularization_warmup",
    ):  # fmt: skip
        _require_finite(name)


def _require_positive(name):
    flags.register_validator(
        name,
        lambda value: 0 < value < math.inf,
        message=f"--{name} must be a finite number above 0.",
    )


def _require_finite(name):
    flags.register_validator(
        name,
        lambda value: value is None or math.isfinite(value),
        message=f"--{name} must be finite.",
    )


def _define_run_flags():
    precision.define_flag()
    flags.DEFINE_integer(
        "validation_freq",
        1,
        "Epochs of fine-tuning from one validation to the next.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "validation_split",
        0.0,
        "Share of the training images to validate on, in place of the test "
        "images; they are not trained on.",
        lower_bound=0,
    )
    flags.register_validator(
        "validation_split",
        lambda share: share < 1,
        message="--validation_split must be below 1.",
    )
    flags.DEFINE_enum(
        "keep",
        "last",
        ["last", "best"],
        "Which epoch of a defence is its model: the last, as in the paper, or "
        "the best on the --validation_split images.",
    )
    flags.register_multi_flags_validator(
        ["keep", "validation_split"],
        lambda given: given["keep"] == "last" or given["validation_split"] > 0,
        message="--keep=best needs --validation_split images; the test images "
        "must not choose.",
    )
    flags.DEFINE_float(
        "accuracy_weight",
        0.0,
        "w of what --keep=best is best by: (1 - w) * val_rho + w * "
        "val_accuracy.",
        lower_bound=0,
        upper_bound=1,
    )
    flags.DEFINE_integer(
        "checkpoint_steps",
        None,
        "Also write a checkpoint every so many steps within an epoch.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "robustness_board",
        False,
        "Also write images, their perturbations and histograms of rho for "
        "TensorBoard to OUTPUT_DIR/board, at each epoch of a defence; costs an "
        "attack on 500 validation images an epoch.",
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Only operations that give the same bits in each run, also on GPUs, "
        "where they are slower or raise an error.",
    )
    flags.DEFINE_enum(
        "distribution",
        "none",
        distribution.NAMES,
        "Train on one device, on all GPUs of this machine (mirrored), or by "
        "several workers, each started with the same command and told of the "
        "others by TF_CONFIG or Slurm. --batch_size is that of all together.",
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "Devices of --distribution=mirrored; all GPUs by default. Without a "
        "GPU, parts of the CPU.",
        lower_bound=1,
    )
    flags.register_multi_flags_validator(
        ["distribution", "replicas"],
        lambda given: (
            given["replicas"] is None or given["distribution"] == "mirrored"
        ),
        message="--replicas is for --distribution=mirrored.",
    )
