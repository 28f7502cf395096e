"""What the apps share: train a reference, defend it, compare, write it down.

An app declares its flags with `define_flags` and hands its data set's name to
`run`. The steps are the paper's (section 4 and its supplement): train a
reference, fine-tune it with Deep Defense, and, so that the gain is the
method's, fine-tune it for as many epochs without the regulariser.
"""

import math
import os
import sys
import time

import common  # before TensorFlow, which it quietens
import keras
import numpy as np
from absl import flags

import dd_keras
from dd_keras import attacks, datasets, files, logits, networks, tables
from dd_keras.evaluation import figures

FLAGS = flags.FLAGS

REFERENCE, CLEAN, DEEP_DEFENSE = "reference", "clean", "deep_defense"
TITLES = {
    REFERENCE: "reference",
    CLEAN: "fine-tuned, no regulariser",
    DEEP_DEFENSE: "Deep Defense",
}
PREPROCESSING = "preprocessing.keras"
_PICTURED = 4  # images in the picture, of different classes


def define_flags(archs, **defaults):
    """Declares the flags of an app.

    Args:
        archs: names of the networks to choose from; the first is the default.
        **defaults: of `c`, `epochs`, `batch_size`, `learning_rate`,
            `reference_epochs`, `reference_learning_rate`, `output_dir`.
    """
    number, integer = flags.DEFINE_float, flags.DEFINE_integer
    flags.DEFINE_enum("arch", archs[0], archs, "Network.")
    number("lam", 15.0, "Weight of the regulariser.", lower_bound=0)
    number("c", defaults["c"], "Steepness of the penalty on correct samples.")
    number("d", 5.0, "Steepness of the penalty on misclassified samples.")
    number("norm", 2.0, "Order p of the norm, 1 to inf.", lower_bound=1)
    integer("max_iter", 5, "DeepFool iterations in training.", lower_bound=1)
    integer(
        "candidates",
        None,
        "Likeliest classes that DeepFool considers; all by default.",
        lower_bound=1,
    )
    integer("epochs", defaults["epochs"], "Fine-tuning epochs.", lower_bound=0)
    integer(
        "halved_epochs",
        1,
        "Last epochs of each training, at half the learning rate.",
        lower_bound=0,
    )
    integer("batch_size", defaults["batch_size"], "Batch size.", lower_bound=1)
    number("learning_rate", defaults["learning_rate"], "Of fine-tuning.")
    number("momentum", 0.9, "Of SGD.", lower_bound=0, upper_bound=1)
    number(
        "weight_decay",
        5e-4,
        "Coupled: weight_decay * w is added to the gradient.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "reference", None, "Classifier to defend, a .keras file; none: train."
    )
    integer(
        "reference_epochs",
        defaults["reference_epochs"],
        "Epochs that train the reference.",
        lower_bound=0,
    )
    number(
        "reference_learning_rate",
        defaults["reference_learning_rate"],
        "Of the training of the reference.",
    )
    flags.DEFINE_bool(
        "clean_baseline",
        True,
        "Also fine-tune the reference without the regulariser.",
    )
    integer(
        "seed",
        0,
        "Of weights, order and all else.",
        lower_bound=0,
        upper_bound=2**32 - 1,
    )
    common.define_data_flags()
    flags.adopt_module_key_flags(common)
    flags.DEFINE_string(
        "output_dir", defaults["output_dir"], "Where all results go."
    )
    flags.DEFINE_bool(
        "eval_only", False, "Evaluate the models in --output_dir; train none."
    )
    for name in ("c", "d", "learning_rate", "reference_learning_rate"):
        flags.register_validator(
            name,
            lambda value: 0 < value < math.inf,
            message=f"--{name} must be a finite number above 0.",
        )
    for name in ("lam", "weight_decay", "momentum"):
        flags.register_validator(
            name, math.isfinite, message=f"--{name} must be finite."
        )
    flags.register_validator(
        "norm",
        lambda value: not math.isnan(value),
        message="--norm must be a number.",
    )
    flags.register_validator(
        "output_dir", bool, message="--output_dir must not be empty."
    )


def run(dataset):
    """Runs an app on a data set, from flags to files.

    Args:
        dataset: name of the data set, see `dd_keras.datasets.load`.

    Raises:
        SystemExit: with a message, if an input is bad or training fails.
    """
    started = time.time()
    output_dir = common.writable_directory(FLAGS.output_dir)
    data = common.load_data(dataset)
    others = data.num_classes - 1
    if (FLAGS.candidates or 0) > others:
        common.fail(
            f"--candidates: expected at most {others}, the classes other than "
            f"the source; received {FLAGS.candidates}."
        )
    test = datasets.batches(data.test, data.preprocessing, FLAGS.batch_size)
    paths = {name: os.path.join(output_dir, f"{name}.keras") for name in TITLES}
    seconds, curves = {}, {}
    if FLAGS.eval_only:
        if FLAGS.reference:
            paths[REFERENCE] = FLAGS.reference
        if not FLAGS.clean_baseline or not os.path.exists(paths[CLEAN]):
            del paths[CLEAN]
    else:
        seconds, curves = _train(data, test, paths, output_dir)
    models = {
        name: common.load_classifier(path, data).model
        for name, path in paths.items()
    }
    reports = {name: _evaluate(name, m, test) for name, m in models.items()}

    first = reports[REFERENCE].summary()
    for curve in curves.values():  # epoch 0 is the reference
        curve["accuracy"].insert(0, first["accuracy"])
        curve["rho"].insert(0, first[f"rho{FLAGS.norm:g}"])

    written = list(paths.values())
    if not FLAGS.eval_only:
        written.append(os.path.join(output_dir, PREPROCESSING))
    picture = os.path.join(output_dir, "adversarial_images.png")
    _draw(models, reports, data, picture)
    written.append(picture)
    if any(len(curve["rho"]) > 1 for curve in curves.values()):
        written.append(os.path.join(output_dir, "convergence.png"))
        with files.whole(written[-1]) as part:
            figures.convergence_curves(
                {TITLES[name]: curve for name, curve in curves.items()},
                part,
                FLAGS.norm,
            )
    results = _results(dataset, data, reports, seconds, curves, started)
    written.append(
        os.path.join(
            output_dir,
            "evaluation.json" if FLAGS.eval_only else "results.json",
        )
    )
    common.write_json(results, written[-1])
    print(f"\n{_table(results)}\n\nWritten:")
    for path in written:
        print(f"  {path}")
    if not FLAGS.eval_only:
        print(
            f"  {os.path.join(output_dir, 'logs')}: per-epoch CSV, TensorBoard"
        )
    print(f"Done in {time.time() - started:.0f} s.")


def _train(data, test, paths, output_dir):
    """Trains all models; returns their seconds and convergence curves."""
    seconds, curves = {}, {}
    train = datasets.batches(
        data.train, data.preprocessing, FLAGS.batch_size, FLAGS.seed
    )
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.reference:
        reference = common.load_classifier(FLAGS.reference, data).model
    else:
        build = getattr(networks, FLAGS.arch)
        reference = build(data.image_shape, data.num_classes)
        print(f"Training the reference: {FLAGS.arch}")
        seconds[REFERENCE], _ = _fit(
            REFERENCE,
            dd_keras.DeepDefenseModel(reference, lam=0.0),
            FLAGS.reference_learning_rate,
            train,
            None,
            FLAGS.reference_epochs,
        )
    preprocessing = keras.Sequential(
        [keras.Input(data.image_shape), data.preprocessing],
        name="preprocessing",
    )
    _save(preprocessing, os.path.join(output_dir, PREPROCESSING))
    _save(reference, paths[REFERENCE])

    strengths = {CLEAN: 0.0, DEEP_DEFENSE: FLAGS.lam}
    if not FLAGS.clean_baseline:
        del strengths[CLEAN], paths[CLEAN]
    for name, lam in strengths.items():
        classifier = common.load_classifier(paths[REFERENCE], data).model
        keras.utils.set_random_seed(FLAGS.seed)
        try:
            model = dd_keras.DeepDefenseModel(
                classifier,
                lam=lam,
                c=FLAGS.c,
                d=FLAGS.d,
                attack=attacks.DeepFool(
                    FLAGS.norm, FLAGS.max_iter, candidates=FLAGS.candidates
                ),
            )
            print(f"\nFine-tuning: {TITLES[name]}")
            seconds[name], curves[name] = _fit(
                name, model, FLAGS.learning_rate, train, test, FLAGS.epochs
            )
        except ValueError as error:
            common.fail(error)
        _save(classifier, paths[name])
    return seconds, curves


def _fit(name, model, learning_rate, train, test, epochs):
    """Trains a model; returns seconds and its convergence curve."""
    logs = os.path.join(FLAGS.output_dir, "logs")
    os.makedirs(logs, exist_ok=True)
    # Keras changes the rate after the boundary's own step, counted from 0.
    full_rate_steps = max(0, epochs - FLAGS.halved_epochs) * len(train)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [full_rate_steps - 1], [learning_rate, learning_rate / 2]
    )
    model.compile(
        dd_keras.CoupledSGD(schedule, FLAGS.momentum, FLAGS.weight_decay),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    started = time.time()
    history = model.fit(
        train,
        validation_data=test,
        epochs=epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.CSVLogger(os.path.join(logs, f"{name}.csv")),
            keras.callbacks.TensorBoard(os.path.join(logs, name)),
        ],
    ).history
    seconds = time.time() - started
    weights = [np.sum(weight) for weight in model.get_weights()]
    if not np.all(np.isfinite([*history.get("loss", []), *weights])):
        common.fail(
            f"the training of '{TITLES[name]}' diverged: its loss or its "
            "weights are no longer finite. A smaller learning rate or --lam "
            "may help. No model was written for it."
        )
    rho = model.rho_tracker.name
    return seconds, {
        "accuracy": history.get("val_accuracy", []),
        "rho": history.get(f"val_{rho}", []),
        "training_loss": history.get("loss", []),
    }


def _evaluate(name, model, test):
    """Accuracy, rho and distance on the test set, from predicted classes."""
    print(f"\nEvaluating: {TITLES[name]}")
    return dd_keras.evaluate_robustness(
        model, test, ("accuracy", attacks.DeepFool(FLAGS.norm))
    )


def _draw(models, reports, data, path):
    """Draws test images of different classes that all models get right."""
    right = np.logical_and.reduce(
        [report.predictions == report.labels for report in reports.values()]
    )
    labels = next(iter(reports.values())).labels
    chosen, seen = [], set()
    for index in np.flatnonzero(right):
        if labels[index] not in seen and len(chosen) < _PICTURED:
            chosen.append(index)
            seen.add(labels[index])
    if not chosen:  # untrained models
        chosen = list(range(min(_PICTURED, len(labels))))
    images = np.stack([image for image, _ in data.test.as_numpy_iterator()])
    images = images[chosen]
    x = data.preprocessing(images)
    attacked = {}
    for name in (REFERENCE, DEEP_DEFENSE):
        network = logits.logits_model(models[name])
        found = attacks.DeepFool(FLAGS.norm).run(network, x)
        scores = logits.class_logits(network(x + found.perturbation))
        attacked[TITLES[name]] = {
            "perturbation": found.perturbation.numpy(),
            "clean": found.predictions.numpy(),
            "adversarial": np.argmax(scores, axis=-1),
            "rho": reports[name].values[f"rho{FLAGS.norm:g}"][chosen],
        }
    with files.whole(path) as part:
        figures.adversarial_images(images, labels[chosen], attacked, part)


def _results(dataset, data, reports, seconds, curves, started):
    """All numbers of a run, with what made them."""
    summaries = {name: report.summary() for name, report in reports.items()}
    rho = f"rho{FLAGS.norm:g}"
    first = summaries[REFERENCE]
    for name in summaries:
        summaries[name]["rho_ratio"] = (
            summaries[name][rho] / first[rho] if first[rho] else None
        )
    return {
        "dataset": {
            "name": dataset,
            "train": int(data.train.cardinality()),
            "test": int(data.test.cardinality()),
        },
        "models": summaries,
        "training_seconds": seconds,
        "curves": curves,
        "total_seconds": time.time() - started,
        "flags": common.flag_values(sys.modules[__name__]),
        **common.provenance(),
    }


def _table(results):
    """The closing comparison, one row a model."""
    p = f"{FLAGS.norm:g}"
    header = ("model", "accuracy", f"rho_{p}", "ratio", f"l_{p}", "training")
    rows = []
    seconds = results["training_seconds"]
    for name, values in results["models"].items():
        ratio = values["rho_ratio"]
        ratio = math.nan if ratio is None else ratio
        time_taken = f"{seconds[name]:.0f} s" if name in seconds else "-"
        rows.append(
            (
                TITLES[name],
                f"{100 * values['accuracy']:.2f} %",
                f"{values[f'rho{p}']:.4f}",
                f"{ratio:.2f}",
                f"{values[f'l{p}']:.1f}",
                time_taken,
            )
        )
    return tables.render(header, rows)


def _save(model, path):
    with files.whole(path) as part:
        model.save(part)
