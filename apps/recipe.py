"""The recipe of the apps: a reference, defences of it, a comparison.

An app declares its flags with `define_flags` and hands its data set's name to
`run`. So that the gain is the method's, the reference is also fine-tuned for
as many epochs without a defence ("clean").

Killed at any moment, the same command goes on: with the stage it was in, from
its last checkpoint.
"""

import math
import os
import sys
import time

import common  # before TensorFlow, which it quietens
import numpy as np
import runs
import training
from absl import flags
from training import REFERENCE, TITLES

from dd_keras import distribution
from dd_keras.classifier import logits
from dd_keras.defenses import METHODS
from dd_keras.evaluation import metrics
from dd_keras.plots import figures
from dd_keras.utils import files, tables

FLAGS = flags.FLAGS

_PICTURED = 4  # images in the picture, of different classes


def define_flags(archs, **defaults):
    """Declares the flags of an app; see `training.define_flags`."""
    training.define_flags(archs, **defaults)
    flags.adopt_module_key_flags(training)
    flags.DEFINE_list(
        "defense",
        ["clean", "deep_defense"],
        f"Defences of the reference, of {', '.join(METHODS)}; several are "
        "separated by commas, and compared.",
    )
    flags.register_validator(
        "defense",
        lambda names: (
            names
            and set(names) <= set(METHODS)
            and len(set(names)) == len(names)
        ),
        message=f"--defense must be of {', '.join(METHODS)}, each once.",
    )
    flags.DEFINE_string(
        "export_dir",
        None,
        "Also write every model as EXPORT_DIR/ARCH_MODEL/VERSION/, a "
        "SavedModel for TensorFlow Serving with a model card.",
    )
    flags.DEFINE_bool(
        "eval_only", False, "Evaluate the models in --output_dir; train none."
    )
    flags.DEFINE_bool(
        "overwrite",
        False,
        "Start anew where --output_dir holds a finished run, or one with "
        "other settings.",
    )


def run(dataset, **options):
    """Runs an app on a data set, from flags to files.

    Args:
        dataset: its name, see `dd_keras.datasets.load`.
        **options: further ones of `datasets.load`.

    Raises:
        SystemExit, ImportError, RuntimeError, ValueError: with a message, if
            an input is bad or training fails; see `common.main`.
    """
    started = time.time()
    strategy = training.start()
    with strategy.scope():
        output_dir = common.own_directory(FLAGS.output_dir)
        if FLAGS.export_dir:
            common.writable_directory(FLAGS.export_dir, "export_dir")
        data = training.load_data(dataset, **options)
        paths = {
            name: os.path.join(output_dir, f"{name}.keras")
            for name in (REFERENCE, *FLAGS.defense)
        }
        if FLAGS.eval_only:
            paths[REFERENCE] = FLAGS.reference or paths[REFERENCE]
            progress, trained = None, {}
        else:
            progress = _progress(dataset, options, output_dir)
            trained = _train(data, progress, paths)
        if not distribution.is_chief():
            print("The chief evaluates, and writes.")
            return
    _evaluate(dataset, data, paths, progress, trained, started)


def _progress(dataset, options, output_dir):
    """The `runs.Run` of the flags."""
    return runs.Run(
        os.path.join(output_dir, "checkpoints"),
        training.identity(sys.modules[__name__], dataset=dataset, **options),
        finished=os.path.join(output_dir, "results.json"),
        overwrite=FLAGS.overwrite,
    )


def _train(data, progress, paths):
    """Trains all models that are not yet; returns what `runs.Run` keeps."""
    train = training.training_batches(data)
    validation = training.validation_batches(data)
    trained = {name: progress.result(name) for name in paths}
    if trained[REFERENCE] is None:
        reference, seconds = training.train_reference(
            data, train, progress.checkpoints(REFERENCE)
        )
        training.save_preprocessing(data, FLAGS.output_dir)
        training.save(reference, paths[REFERENCE])
        trained[REFERENCE] = {"seconds": seconds}
        progress.keep(REFERENCE, trained[REFERENCE])
    for name in FLAGS.defense:
        if trained[name] is not None:
            continue
        print(f"\nFine-tuning: {TITLES[name]}")
        classifier = training.load_reference(paths[REFERENCE], data)
        seconds, curve = training.defend(
            name, classifier, train, validation, progress.checkpoints(name)
        )
        training.save(classifier, paths[name])
        trained[name] = {"seconds": seconds, "curve": curve}
        progress.keep(name, trained[name])
    return trained


def _evaluate(dataset, data, paths, progress, trained, started):
    """Evaluates all models, and writes what is known of them."""
    output_dir, test = FLAGS.output_dir, training.test_batches(data)
    models = {
        name: common.load_classifier(path, data).model
        for name, path in paths.items()
    }

    def measured(name, batches, *more):
        return training.evaluate(
            models[name],
            batches,
            *more,
            checkpoint_dir=progress
            and progress.checkpoints(f"evaluation_{name}_{len(more)}"),
        )

    sweep = [metrics.get("fgsm", data.bounds)] if FLAGS.export_dir else []
    reports = {}
    for name in models:
        print(f"\nEvaluating: {TITLES[name]}")
        reports[name] = measured(name, test, *sweep)

    curves = {n: r["curve"] for n, r in trained.items() if "curve" in r}
    first = reports[REFERENCE].summary()
    if curves and data.validation is not None:
        print(f"\nEvaluating on the held-out images: {TITLES[REFERENCE]}")
        batches = training.validation_batches(data)
        first = training.evaluate(models[REFERENCE], batches).summary()
    for curve in curves.values():  # epoch 0 is the reference
        curve["accuracy"].insert(0, first["accuracy"])
        curve["rho"].insert(0, first[f"rho{FLAGS.norm:g}"])

    written = list(paths.values())
    if not FLAGS.eval_only:
        written.append(os.path.join(output_dir, training.PREPROCESSING))
    picture = os.path.join(output_dir, "adversarial_images.png")
    pictured = _draw(models, reports, data, picture)
    written.append(picture)
    if any(len(curve["rho"]) > 1 for curve in curves.values()):
        written.append(os.path.join(output_dir, "convergence.png"))
        with files.atomic_write(written[-1]) as part:
            figures.convergence_curves(
                {TITLES[name]: curve for name, curve in curves.items()},
                part,
                FLAGS.norm,
            )
    results = _results(
        dataset, data, reports, pictured, progress, trained, started
    )
    if FLAGS.export_dir:
        written += _export(dataset, data, models, reports)
    # Last of all: it tells that the run came to its end.
    written.append(
        os.path.join(
            output_dir,
            "evaluation.json" if FLAGS.eval_only else "results.json",
        )
    )
    common.write_json(results, written[-1])
    if progress is not None:
        progress.finish()
        logs = os.path.join(output_dir, "logs")
        written.append(f"{logs}: per-epoch CSV, TensorBoard")
    print(f"\n{_table(results)}")
    common.finish(written, started)


def _draw(models, reports, data, path):
    """Draws test images of different classes that all models get right.

    Returns:
        list of dicts: which images they are, and the rho of the models drawn.
    """
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
    images = np.stack(
        [
            image
            for place, (image, _) in enumerate(
                data.test.take(max(chosen) + 1).as_numpy_iterator()
            )
            if place in chosen
        ]
    )
    x = data.preprocessing(images)
    shown = "deep_defense" if "deep_defense" in models else FLAGS.defense[-1]
    attacked = {}
    for name in (REFERENCE, shown):
        network = logits.logits_model(models[name])
        found = training.settings().evaluation_attack.run(network, x)
        scores = logits.class_logits(network(x + found.perturbation))
        attacked[TITLES[name]] = {
            "perturbation": found.perturbation.numpy(),
            "clean": found.predictions.numpy(),
            "adversarial": np.argmax(scores, axis=-1),
            "rho": reports[name].values[f"rho{FLAGS.norm:g}"][chosen],
        }
    with files.atomic_write(path) as part:
        figures.adversarial_images(images, labels[chosen], attacked, part)
    return [
        {
            "test_image": int(index),
            "label": int(labels[index]),
            "rho": {
                name: float(found["rho"][place])
                for name, found in attacked.items()
            },
        }
        for place, index in enumerate(chosen)
    ]


def _results(dataset, data, reports, pictured, progress, trained, started):
    """All numbers of a run, with what made them."""
    summaries = {name: report.summary() for name, report in reports.items()}
    rho = f"rho{FLAGS.norm:g}"
    first = summaries[REFERENCE]
    for name in summaries:
        summaries[name]["rho_ratio"] = (
            summaries[name][rho] / first[rho] if first[rho] else None
        )
    validation_split = data.validation
    return {
        "dataset": {
            "name": dataset,
            "train": int(data.train.cardinality()),
            "test": int(data.test.cardinality()),
            **(
                {"validation_split": int(validation_split.cardinality())}
                if validation_split
                else {}
            ),
        },
        "models": summaries,
        "training_seconds": {
            name: result["seconds"]
            for name, result in trained.items()
            if result["seconds"] is not None
        },
        "curves": {n: r["curve"] for n, r in trained.items() if "curve" in r},
        "curves_are_of": "held-out images"
        if validation_split
        else "test images",
        "pictured": pictured,
        # Training over all starts, all else in the last.
        "starts": progress.starts if progress else 1,
        "total_seconds": time.time() - started,
        "flags": common.flag_values(sys.modules[__name__]),
        **common.provenance(),
    }


def _export(dataset, data, models, reports):
    """Exports all models; returns the paths of what was written."""
    versions = [
        common.export(
            common.Classifier(model, None),
            data,
            FLAGS.export_dir,
            f"{FLAGS.arch}_{name}",
            report=reports[name],
            card={
                "name": f"{TITLES[name]}: {FLAGS.arch} on {dataset}",
                "dataset": dataset,
                "defense": training.defense_of(name),
                "training": common.flag_values(sys.modules[__name__]),
                "made_by": common.provenance()["command"],
            },
        )
        for name, model in models.items()
    ]
    return versions + common.write_server_files(data, FLAGS.export_dir)


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
