"""What the apps that train share: flags, a reference, a defence of it.

The steps are the paper's (section 4 and its supplement): train a reference,
then fine-tune it with a defence.
"""

import dataclasses
import math
import os
import time

import common  # before TensorFlow, which it quietens
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import dd_keras
from dd_keras import applications, datasets, files, networks
from dd_keras.defenses import METHODS, Settings

FLAGS = flags.FLAGS

REFERENCE = "reference"
TITLES = {
    REFERENCE: "reference",
    **{name: method.title for name, method in METHODS.items()},
}
PREPROCESSING = "preprocessing.keras"


class DivergenceError(RuntimeError):
    """A training whose loss or weights are no longer finite."""


def define_flags(archs, **defaults):
    """Declares the flags of an app that trains.

    Args:
        archs: names of the data set's own networks; the first is the default.
        **defaults: values of flags to start from, instead of those below.
    """
    before = set(FLAGS)
    _define_network_flags(archs)
    _define_defense_flags()
    _define_optimizer_flags()
    common.define_data_flags()
    flags.adopt_module_key_flags(common)
    flags.DEFINE_string("output_dir", None, "Where all results go.")
    flags.register_validator(
        "output_dir", bool, message="--output_dir must not be empty."
    )
    unknown = set(defaults) - (set(FLAGS) - before)
    if unknown:
        raise ValueError(f"defaults: expected names of flags; {unknown}.")
    for name, value in defaults.items():
        FLAGS.set_default(name, value)


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


def _define_defense_flags():
    number, integer = flags.DEFINE_float, flags.DEFINE_integer
    number("lam", Settings.lam, "Weight of the regulariser.", lower_bound=0)
    number("c", Settings.c, "Steepness of the penalty on correct samples.")
    number(
        "d", Settings.d, "Steepness of the penalty on misclassified samples."
    )
    number(
        "norm", Settings.norm, "Order p of the norm, 1 to inf.", lower_bound=1
    )
    integer(
        "max_iter",
        Settings.max_iter,
        "DeepFool iterations in training.",
        lower_bound=1,
    )
    integer(
        "candidates",
        Settings.candidates,
        "Likeliest classes that DeepFool considers in training; all by "
        "default.",
        lower_bound=1,
    )
    integer(
        "evaluation_candidates",
        Settings.evaluation_candidates,
        "The same, of the DeepFool behind rho in validation and evaluation.",
        lower_bound=1,
    )
    flags.DEFINE_list(
        "regularized_layers",
        Settings.regularized_layers,
        "Layers that the regulariser's gradient reaches; all by default.",
    )
    number(
        "lam_start", 0.0, "Epochs before the regulariser acts.", lower_bound=0
    )
    number("lam_ramp", 0.0, "Epochs in which it grows to --lam.", lower_bound=0)
    flags.DEFINE_enum(
        "batch_norm",
        Settings.batch_norm,
        dd_keras.defenses.BATCH_NORM_MODES,
        "What fine-tuning does to batch normalisation: trains it; trains its "
        "scale, and holds the statistics; or holds all.",
    )
    number(
        "eps", Settings.eps, "Of FGS in Adv. Train II, in units of the inputs."
    )
    number(
        "alpha",
        Settings.alpha,
        "Share of the clean loss in Adv. Train II.",
        lower_bound=0,
        upper_bound=1,
    )
    flags.DEFINE_bool(
        "include_clean",
        Settings.include_clean,
        "Adv. Train I: on the clean images as well.",
    )
    number("beta", Settings.beta, "Parseval: the step.", upper_bound=1)
    number(
        "fraction", Settings.fraction, "Parseval: share of rows.", upper_bound=1
    )


def _define_optimizer_flags():
    number, integer = flags.DEFINE_float, flags.DEFINE_integer
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
    integer("batch_size", Settings.batch_size, "Batch size.", lower_bound=1)
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
    integer(
        "seed",
        Settings.seed,
        "Of weights, order and all else.",
        lower_bound=0,
        upper_bound=2**32 - 1,
    )
    for name in (
        "c", "d", "eps", "beta", "fraction", "learning_rate",
        "last_rate", "reference_learning_rate", "reference_last_rate",
    ):  # fmt: skip
        flags.register_validator(
            name,
            lambda value: 0 < value < math.inf,
            message=f"--{name} must be a finite number above 0.",
        )
    for name in (
        "lam", "weight_decay", "reference_weight_decay", "momentum", "alpha",
        "lam_start", "lam_ramp",
    ):  # fmt: skip
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            message=f"--{name} must be finite.",
        )
    flags.register_validator(
        "norm",
        lambda value: not math.isnan(value),
        message="--norm must be a number.",
    )


def load_data(dataset, **options):
    """The data set of the flags, as the network of --arch takes it.

    Args:
        dataset: its name, see `dd_keras.datasets.load`.
        **options: further ones of `datasets.load`.

    Raises:
        SystemExit: with a message, if it cannot be had, or a flag does not
            fit it.
    """
    tf.random.set_seed(None)  # what is augmented how follows --seed alone
    data = common.load_data(
        dataset, augment=FLAGS.augment, seed=FLAGS.seed, **options
    )
    others = data.num_classes - 1
    for name in ("candidates", "evaluation_candidates"):
        if (FLAGS[name].value or 0) > others:
            common.fail(
                f"--{name}: expected at most {others}, the classes other than "
                f"the source; received {FLAGS[name].value}."
            )
    if FLAGS.arch in applications.NAMES:
        data = data._replace(preprocessing=keras.layers.Identity())
    elif FLAGS.weights is not None:
        common.fail(
            "--weights: expected with a keras.applications as --arch; "
            f"received with {FLAGS.arch}."
        )
    return data


def training_batches(data):
    """Batches to train on, in an order that is new in each epoch.

    It goes on from one training to the next: for the same order again, make
    them anew.
    """
    tf.random.set_seed(None)  # the order follows --seed alone
    return datasets.batches(
        data.train, data.preprocessing, FLAGS.batch_size, FLAGS.seed, data.cache
    )


def test_batches(data):
    """Batches to validate and evaluate on."""
    return datasets.batches(
        data.test, data.preprocessing, FLAGS.batch_size, cache=data.cache
    )


def _build_reference(data):
    """The network of --arch, before any training."""
    arguments = data.image_shape, data.num_classes
    if FLAGS.arch in applications.NAMES:
        return applications.build(FLAGS.arch, *arguments, FLAGS.weights)
    return getattr(networks, FLAGS.arch)(*arguments)


def train_reference(data, train):
    """The classifier to defend: that of --reference, or one just trained.

    Returns:
        (classifier, seconds of training; None where it came from a file).
    """
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.reference:
        return common.load_classifier(FLAGS.reference, data).model, None
    reference = _build_reference(data)
    print(f"Training the reference: {FLAGS.arch}")
    decay = FLAGS.reference_weight_decay
    started = time.time()
    _fit(
        REFERENCE,
        dd_keras.DefenseModel(reference),
        train,
        None,
        FLAGS.reference_epochs,
        FLAGS.reference_learning_rate,
        FLAGS.weight_decay if decay is None else decay,
        FLAGS.reference_last_epochs,
        FLAGS.reference_last_rate,
    )
    return reference, time.time() - started


def settings(**changes):
    """The `Settings` of the flags, but for some."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return Settings(**{n: FLAGS[n].value for n in names} | changes)


def defense_of(name):
    """A defence and its settings, for a model card; None for the reference."""
    if name == REFERENCE:
        return None
    told = common.as_json(dataclasses.asdict(settings()))
    return METHODS[name].describe(told)


def defend(
    name,
    classifier,
    train,
    test,
    chosen=None,
    validation_freq=1,
    log_as=None,
):
    """Fine-tunes a classifier by a defence.

    Args:
        name: of the defence, see `dd_keras.defenses.METHODS`.
        classifier: a built Keras classifier; it is the one trained.
        train: batches to train on.
        test: batches to validate on.
        chosen: `Settings`; those of the flags by default.
        validation_freq: epochs from one validation to the next.
        log_as: name of its logs; that of the defence by default.

    Returns:
        (seconds, convergence curve: a dict of lists over epochs, `"accuracy"`
        and `"rho"` of `test`, and `"training_loss"`).

    Raises:
        DivergenceError: if loss or weights end up not finite.
    """
    started = time.time()
    keras.utils.set_random_seed(FLAGS.seed)
    model, train = METHODS[name].prepare(
        classifier, train, chosen or settings()
    )
    curve = _fit(
        log_as or name,
        model,
        train,
        test,
        FLAGS.epochs,
        FLAGS.learning_rate,
        FLAGS.weight_decay,
        FLAGS.halved_epochs,
        FLAGS.last_rate,
        validation_freq,
    )
    return time.time() - started, curve


def evaluate(model, test, *more):
    """The `RobustnessReport` of accuracy, rho and distance, as of the flags.

    From the predicted classes, and without bounds, as in the paper's tables.

    Args:
        model: a built Keras classifier.
        test: batches to evaluate on.
        *more: further metrics, see `evaluate_robustness`.
    """
    return dd_keras.evaluate_robustness(
        model, test, ("accuracy", settings().evaluation_attack, *more)
    )


def _fit(
    name,
    model,
    train,
    test,
    epochs,
    learning_rate,
    weight_decay,
    last_epochs,
    last_rate,
    validation_freq=1,
):
    """Trains a model; returns its convergence curve, see `defend`."""
    logs = os.path.join(FLAGS.output_dir, "logs")
    os.makedirs(logs, exist_ok=True)
    # Keras changes the rate after the boundary's own step, counted from 0.
    full_rate_steps = max(0, epochs - last_epochs) * len(train)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [full_rate_steps - 1], [learning_rate, learning_rate * last_rate]
    )
    model.compile(
        dd_keras.CoupledSGD(schedule, FLAGS.momentum, weight_decay),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    callbacks = [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.CSVLogger(os.path.join(logs, f"{name}.csv")),
        keras.callbacks.TensorBoard(os.path.join(logs, name)),
    ]
    if hasattr(model, "scale_lam") and (FLAGS.lam_start or FLAGS.lam_ramp):
        callbacks.append(dd_keras.LamRamp(FLAGS.lam_start, FLAGS.lam_ramp))
    history = model.fit(
        train,
        validation_data=test,
        validation_freq=validation_freq,
        epochs=epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=callbacks,
    ).history
    curve = {
        "accuracy": history.get("val_accuracy", []),
        "rho": history.get(f"val_{model.rho_tracker.name}", []),
        "training_loss": history.get("loss", []),
    }
    weights = [np.sum(weight) for weight in model.get_weights()]
    if not np.all(
        np.isfinite([*curve["training_loss"], *curve["rho"], *weights])
    ):
        raise DivergenceError(
            f"the training of '{TITLES.get(name, name)}' diverged: its loss "
            "or its weights are no longer finite. A smaller learning rate or "
            "--lam may help. No model was written for it."
        )
    return curve


def save(model, path):
    """Writes a .keras file, whole or not at all."""
    with files.whole(path) as part:
        model.save(part)


def save_preprocessing(data, output_dir):
    """Writes what stands in front of the classifier."""
    model = keras.Sequential(
        [keras.Input(data.image_shape), data.preprocessing],
        name="preprocessing",
    )
    save(model, os.path.join(output_dir, PREPROCESSING))
