"""What the apps that train share: flags, a reference, a defence of it.

The steps are the paper's (section 4 and its supplement): train a reference,
then fine-tune it with a defence.
"""

import dataclasses
import hashlib
import math
import os

import common  # before TensorFlow, which it quietens
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import dd_keras
from dd_keras import datasets, distribution, networks
from dd_keras.defenses import METHODS, Settings
from dd_keras.networks import applications
from dd_keras.training import DivergenceError
from dd_keras.utils import files

FLAGS = flags.FLAGS

REFERENCE = "reference"
TITLES = {
    REFERENCE: "reference",
    **{name: method.title for name, method in METHODS.items()},
}
PREPROCESSING = "preprocessing.keras"


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
    _define_run_flags()
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
    number(
        "regularization_warmup",
        0.0,
        "Epochs in which it grows to --lam.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "batch_norm",
        Settings.batch_norm,
        dd_keras.defenses.BATCH_NORM_MODES,
        "What fine-tuning does to batch normalisation: trains it; trains its "
        "scale, and holds the statistics; or holds all.",
    )
    number(
        "eps", Settings.eps, "Of FGSM in Adv. Train II, in units of the inputs."
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
        "lam_start", "regularization_warmup",
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


def _define_run_flags():
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
        message="--keep=best needs --validation_split images; the test images must "
        "not choose.",
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


# What may change between two starts of a run: where things are, and what
# changes no more than the last bits of its results.
_NOT_OF_THE_RUN = {
    "data_dir", "output_dir", "export_dir", "checkpoint_steps",
    "distribution", "replicas", "overwrite",
}  # fmt: skip


def identity(module, **more):
    """What the results of a run depend on, as `runs.Run` takes it.

    Args:
        module: whose flags are those of the app.
        **more: what else they depend on.
    """
    given = common.flag_values(module)
    return {k: v for k, v in given.items() if k not in _NOT_OF_THE_RUN} | more


def start():
    """The strategy to train under; first of all an app does."""
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    return distribution.strategy(FLAGS.distribution, replicas=FLAGS.replicas)


def load_data(dataset, **options):
    """The data set of the flags, as the network of --arch takes it.

    Args:
        dataset: its name, see `dd_keras.datasets.load`.
        **options: further ones of `datasets.load`.

    Raises:
        SystemExit: with a message, if it cannot be had, or a flag does not
            fit it.
    """
    data = common.load_data(
        dataset,
        augment=FLAGS.augment,
        seed=FLAGS.seed,
        validation_split=FLAGS.validation_split,
        **options,
    )
    _check_batches(data)
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


def _check_batches(data):
    """Makes sure that each replica has a part of every batch."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    for split in (data.train, data.validation or data.test):
        size = int(split.cardinality())
        last = size % FLAGS.batch_size or FLAGS.batch_size
        if -(-last // replicas) * (replicas - 1) >= last:
            common.fail(
                f"--batch_size: expected one that gives each of {replicas} "
                f"replicas a part of every batch; with {FLAGS.batch_size} the "
                f"last of {size} images make a batch of {last}."
            )


def training_batches(data):
    """Batches to train on, the same in each training: `datasets.ResumableBatches`."""
    return datasets.ResumableBatches.of(data, FLAGS.batch_size, FLAGS.seed)


def test_batches(data):
    """Batches to evaluate on."""
    return _in_order(data, data.test)


def validation_batches(data):
    """Batches to validate on: held out, or else those of the test set."""
    return _in_order(data, data.validation or data.test)


def _in_order(data, split):
    return datasets.batches(
        split, data.preprocessing, FLAGS.batch_size, cache=data.cache
    )


def _build_reference(data):
    """The network of --arch, before any training."""
    arguments = data.image_shape, data.num_classes
    if FLAGS.arch in applications.NAMES:
        return applications.build(FLAGS.arch, *arguments, FLAGS.weights)
    return getattr(networks, FLAGS.arch)(*arguments)


def train_reference(data, train, checkpoints):
    """The classifier to defend: that of --reference, or one just trained.

    Args:
        data: `datasets.Data`.
        train: batches to train on.
        checkpoints: directory of its checkpoints.

    Returns:
        (classifier, seconds of training; None where it came from a file).
    """
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.reference:
        return common.load_classifier(FLAGS.reference, data).model, None
    reference = _build_reference(data)
    print(f"Training the reference: {FLAGS.arch}")
    decay = FLAGS.reference_weight_decay
    _, seconds = _fit(
        REFERENCE,
        dd_keras.DefenseModel(reference),
        train,
        None,
        checkpoints,
        FLAGS.reference_epochs,
        FLAGS.reference_learning_rate,
        FLAGS.weight_decay if decay is None else decay,
        FLAGS.reference_last_epochs,
        FLAGS.reference_last_rate,
    )
    return reference, seconds


def load_reference(path, data):
    """The classifier to defend, from its file; the same in each process."""
    # What a file does not hold, as the seed of a dropout, is drawn.
    keras.utils.set_random_seed(FLAGS.seed)
    return common.load_classifier(path, data).model


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
    validation,
    checkpoints,
    chosen=None,
    validation_freq=1,
    log_as=None,
):
    """Fine-tunes a classifier by a defence.

    Args:
        name: of the defence, see `dd_keras.defenses.METHODS`.
        classifier: a built Keras classifier; it is the one trained.
        train: batches to train on.
        validation: batches to validate on.
        checkpoints: directory of its checkpoints.
        chosen: `Settings`; those of the flags by default.
        validation_freq: epochs from one validation to the next.
        log_as: name of its logs; that of the defence by default.

    Returns:
        (seconds, convergence curve: a dict of lists over epochs, `"accuracy"`
        and `"rho"` of `validation`, and `"training_loss"`; with --keep=best
        also `"best"`, a dict of the `"epoch"` kept, from 0, and its
        `"score"`).

    Raises:
        DivergenceError: if loss or weights are no longer finite.
    """
    keras.utils.set_random_seed(FLAGS.seed)
    model, train = METHODS[name].prepare(
        classifier, train, chosen or settings()
    )
    curve, seconds = _fit(
        log_as or name,
        model,
        train,
        validation,
        checkpoints,
        FLAGS.epochs,
        FLAGS.learning_rate,
        FLAGS.weight_decay,
        FLAGS.halved_epochs,
        FLAGS.last_rate,
        validation_freq,
    )
    return seconds, curve


def evaluate(model, test, *more, checkpoint_dir=None):
    """The `RobustnessReport` of accuracy, rho and distance, as of the flags.

    From the predicted classes, and without bounds, as in the paper's tables.

    Args:
        model: a built Keras classifier.
        test: batches to evaluate on.
        *more: further metrics, see `evaluate_robustness`.
        checkpoint_dir: where finished batches are kept; None: nowhere.
    """
    return dd_keras.evaluate_robustness(
        model,
        test,
        metrics=("accuracy", settings().evaluation_attack, *more),
        checkpoint_dir=checkpoint_dir,
    )


def _fit(
    name,
    model,
    train,
    validation,
    checkpoints,
    epochs,
    learning_rate,
    weight_decay,
    last_epochs,
    last_rate,
    validation_freq=1,
):
    """Trains a model; returns (convergence curve, seconds), see `defend`."""
    logs = os.path.join(FLAGS.output_dir, "logs")
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
    rho = f"val_{model.rho_tracker.name}"
    callbacks, best = [], None
    if distribution.is_chief():
        callbacks.append(keras.callbacks.TensorBoard(os.path.join(logs, name)))
    if hasattr(model, "scale_lam") and (
        FLAGS.lam_start or FLAGS.regularization_warmup
    ):
        callbacks.append(
            dd_keras.RegularizationWarmup(
                FLAGS.lam_start, FLAGS.regularization_warmup
            )
        )
    if validation is not None and FLAGS.keep == "best":
        best = dd_keras.KeepBest(rho, FLAGS.accuracy_weight)
    try:
        history = dd_keras.resumable_fit(
            model,
            train,
            epochs,
            checkpoints,
            checkpoint_steps=FLAGS.checkpoint_steps,
            validation_data=validation,
            validation_freq=validation_freq,
            best=best,
            log=os.path.join(logs, f"{name}.csv"),
            callbacks=callbacks,
        )
    except DivergenceError as error:
        raise DivergenceError(
            f"the training of '{TITLES.get(name, name)}' diverged in {error} "
            "No model was written for it; its last good checkpoint is in "
            f"{checkpoints}."
        ) from error
    _agree(name, model)

    logged = history.history
    curve = {
        "accuracy": logged.get("val_accuracy", []),
        "rho": logged.get(rho, []),
        "training_loss": logged.get("loss", []),
    }
    if best is not None:
        curve["best"] = best.best
    return curve, history.seconds


def _agree(name, model):
    """Makes sure that all workers have the same weights, to the bit."""
    if distribution.num_workers() == 1:
        return
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight))
    mine, worker = digest.hexdigest(), distribution.worker_index()
    print(f"Worker {worker}: weights of '{TITLES.get(name, name)}': {mine}")
    if mine != distribution.from_chief(mine):
        raise RuntimeError(
            f"worker {worker}: expected the chief's weights; received others. "
            "Are all workers of one version, and on the same data?"
        )


def save(model, path):
    """Writes a .keras file, whole or not at all; of several workers once."""
    if not distribution.is_chief():
        return
    with files.atomic_write(path) as part:
        model.save(part)


def save_preprocessing(data, output_dir):
    """Writes what stands in front of the classifier."""
    model = keras.Sequential(
        [keras.Input(data.image_shape), data.preprocessing],
        name="preprocessing",
    )
    save(model, os.path.join(output_dir, PREPROCESSING))
