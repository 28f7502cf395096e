"""Training: a reference, then a defence of it, as the flags have it.

The steps are the paper's (section 4 and its supplement): train a reference,
then fine-tune it with a defence.
"""

import dataclasses
import hashlib
import importlib.util
import os

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from shared import barely_trained, inputs, progress, provenance
from shared.precision import training_precision
from shared.schedule import Schedule
from shared.training_flags import settings

import dd_keras
from dd_keras import datasets, distribution, networks
from dd_keras.defenses import METHODS, Settings
from dd_keras.evaluation import Metric, RobustnessReport, metrics
from dd_keras.networks import applications
from dd_keras.training import DivergenceError
from dd_keras.utils import files

FLAGS = flags.FLAGS

REFERENCE = "reference"
PREPROCESSING = "preprocessing.keras"


def title_of(name: str) -> str:
    """What tables and figures call a model; its own name if it has no other."""
    return METHODS[name].title if name in METHODS else name


def start() -> tf.distribute.Strategy:
    """The strategy to train under; first of all a program does."""
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    return distribution.strategy(FLAGS.distribution, replicas=FLAGS.replicas)


def _build_reference(data):
    """The network of --arch, before any training."""
    arguments = data.image_shape, data.num_classes
    if FLAGS.arch in applications.NAMES:
        return applications.build(FLAGS.arch, *arguments, FLAGS.weights)
    return getattr(networks, FLAGS.arch)(*arguments)


def train_reference(
    data: datasets.Data, train: datasets.ResumableBatches, checkpoints: str
) -> tuple[keras.Model, float | None]:
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
        return inputs.load_classifier(FLAGS.reference, data).model, None
    reference = _build_reference(data)
    print(f"Training the reference: {FLAGS.arch}")
    with training_precision(reference):
        _, seconds = _fit(
            REFERENCE,
            dd_keras.DefenseModel(reference),
            Schedule.of_reference(),
            train,
            checkpoints,
        )
    return reference, seconds


def load_reference(path: str, data: datasets.Data) -> keras.Model:
    """The classifier to defend, from its file; the same in each process."""
    # What a file does not hold, as the seed of a dropout, is drawn.
    keras.utils.set_random_seed(FLAGS.seed)
    return inputs.load_classifier(path, data).model


def defense_of(name: str, curve: dict) -> dict | None:
    """A defence and its settings, for a model card; None for the reference.

    Args:
        name: of the defence.
        curve: what `defend` returned of it.
    """
    if name == REFERENCE:
        return None
    values = provenance.as_json(dataclasses.asdict(settings()))
    return METHODS[name].describe(values | curve.get("chosen", {}))


def defend(
    name: str,
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    validation: tf.data.Dataset,
    checkpoints: str,
    chosen: Settings | None = None,
    bounds: tuple | None = None,
    validation_freq: int | None = None,
    log_as: str | None = None,
    reference_accuracy: float | None = None,
) -> tuple[float, dict]:
    """Fine-tunes a classifier by a defence.

    Args:
        name: of the defence, see `dd_keras.defenses.METHODS`.
        classifier: a built Keras classifier; it is the one trained.
        train: batches to train on.
        validation: batches to validate on.
        checkpoints: directory of its checkpoints.
        chosen: `Settings`; those of the flags by default.
        bounds: (low, high) of valid inputs, for --bounded and
            --robustness_board.
        validation_freq: epochs from one validation to the next;
            --validation_freq by default.
        log_as: name of its logs; that of the defence by default.
        reference_accuracy: of the classifier, for the error where it diverges.

    Returns:
        (seconds, convergence curve: a dict of lists over epochs, `"accuracy"`
        and `"rho"` of `validation`, and `"training_loss"`; where not each
        epoch is validated also `"epochs"`, those that are; with --keep=best
        also `"best"`, a dict of the `"epoch"` kept, from 0, and its
        `"score"`; with --c=auto also `"chosen"`, a dict of `"c"`).

    Raises:
        DivergenceError: if loss or weights are no longer finite.
    """
    keras.utils.set_random_seed(FLAGS.seed)
    chosen = dataclasses.replace(chosen or settings(), bounds=bounds)
    try:
        with training_precision(classifier):
            model, train = METHODS[name].prepare(classifier, train, chosen)
            curve, seconds = _fit(
                log_as or name,
                model,
                Schedule.of_fine_tuning(),
                train,
                checkpoints,
                validation,
                validation_freq or FLAGS.validation_freq,
                bounds,
            )
    except DivergenceError as error:
        if reference_accuracy is None:
            raise
        poor = not barely_trained.is_enough(reference_accuracy)
        raise DivergenceError(
            f"{error} The reference's accuracy was "
            f"{100 * reference_accuracy:.1f} %"
            f"{', barely trained: the likely cause' if poor else ''}."
        ) from error
    return seconds, curve


def evaluate(
    model: keras.Model,
    test: tf.data.Dataset,
    *more: str | Metric,
    checkpoint_dir: str | None = None,
    keep_classes: bool = False,
) -> RobustnessReport:
    """The `RobustnessReport` of accuracy, rho and distance, as of the flags.

    From the predicted classes, and without bounds, as in the paper's tables.

    Args:
        model: a built Keras classifier.
        test: batches to evaluate on.
        *more: further metrics, see `evaluate_robustness`.
        checkpoint_dir: where finished batches are kept; None: nowhere.
        keep_classes: whether to keep the classes that the attack reaches.
    """
    distance = metrics.get(settings().evaluation_attack)
    if keep_classes:
        distance = distance.keeping_classes()
    return dd_keras.evaluate_robustness(
        model,
        test,
        metrics=("accuracy", distance, *more),
        checkpoint_dir=checkpoint_dir,
    )


def _fit(
    name,
    model,
    schedule,
    train,
    checkpoints,
    validation=None,
    validation_freq=1,
    bounds=None,
):
    """Trains a model; returns (convergence curve, seconds), see `defend`."""
    model.compile(
        schedule.optimizer(len(train)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    rho = f"val_{model.rho_tracker.name}"
    logs = os.path.join(FLAGS.output_dir, "logs")
    best = None
    if validation is not None and FLAGS.keep == "best":
        best = dd_keras.KeepBest(rho, FLAGS.accuracy_weight)
    lines = progress.of_training()
    try:
        history = dd_keras.resumable_fit(
            model,
            train,
            schedule.epochs,
            checkpoints,
            checkpoint_steps=FLAGS.checkpoint_steps,
            validation_data=validation,
            validation_freq=validation_freq,
            best=best,
            log=os.path.join(logs, f"{name}.csv"),
            callbacks=[
                *_callbacks(model, os.path.join(logs, name)),
                *_board(name, validation, bounds),
                *lines,
            ],
            verbose=0 if lines else "auto",
        )
    except DivergenceError as error:
        raise DivergenceError(
            f"the training of '{title_of(name)}' diverged in {error} "
            "No model was written for it; its last good checkpoint is in "
            f"{checkpoints}."
        ) from error
    _check_workers_agree(name, model)

    logged = history.history
    curve = {
        "accuracy": logged.get("val_accuracy", []),
        "rho": logged.get(rho, []),
        "training_loss": logged.get("loss", []),
    }
    if validation_freq > 1:
        curve["epochs"] = list(
            range(validation_freq, schedule.epochs + 1, validation_freq)
        )
    if best is not None:
        curve["best"] = best.best
    chosen = getattr(model, "chosen", {})
    if chosen:
        curve["chosen"] = chosen
        print(f"c, chosen by the reference's rho: {chosen['c']:.4g}.")
    return curve, history.seconds


def _callbacks(model, log_dir):
    """TensorBoard's, of the chief, and the regulariser's warm-up."""
    callbacks = []
    if distribution.is_chief():
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "the logs for TensorBoard take its package: pip install "
                "'dd_keras[apps]'"
            )
        callbacks.append(keras.callbacks.TensorBoard(log_dir))
    has_regularizer = hasattr(model, "scale_lam")
    if has_regularizer and (FLAGS.lam_start or FLAGS.regularization_warmup):
        callbacks.append(
            dd_keras.RegularizationWarmup(
                FLAGS.lam_start, FLAGS.regularization_warmup
            )
        )
    return callbacks


def _board(name, validation, bounds):
    """TensorBoard's of a defence, where --robustness_board asks for it."""
    if not FLAGS.robustness_board or validation is None:
        return []
    # A pixel that the preprocessing leaves no range cannot be shown.
    shown = bounds is not None and bool(np.all(bounds[0] < bounds[1]))
    options = {"bounds": bounds} if shown else {"images": 0}
    folder = os.path.join(FLAGS.output_dir, "board", name)
    return [dd_keras.RobustnessBoard(folder, validation, **options)]


def _check_workers_agree(name, model):
    """Makes sure that all workers have the same weights, to the bit."""
    if distribution.num_workers() == 1:
        return
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight))
    mine, worker = digest.hexdigest(), distribution.worker_index()
    print(f"Worker {worker}: weights of '{title_of(name)}': {mine}")
    if mine != distribution.from_chief(mine):
        raise RuntimeError(
            f"worker {worker}: expected the chief's weights; received others. "
            "Are all workers of one version, and on the same data?"
        )


def save(model: keras.Model, path: str) -> None:
    """Writes a .keras file atomically; of several workers once."""
    if not distribution.is_chief():
        return
    with files.atomic_write(path) as part:
        model.save(part)


def save_preprocessing(data: datasets.Data, output_dir: str) -> None:
    """Writes what stands in front of the classifier."""
    model = keras.Sequential(
        [keras.Input(data.image_shape), data.preprocessing],
        name="preprocessing",
    )
    save(model, os.path.join(output_dir, PREPROCESSING))
