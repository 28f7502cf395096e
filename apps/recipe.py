"""The recipe of the apps: a reference, defences of it, a comparison.

An app declares its flags with `define_flags` and hands its data set's name to
`run`. So that the gain is the method's, the reference is also fine-tuned for
as many epochs without a defence ("clean").
"""

import math
import os
import sys
import time

import common  # before TensorFlow, which it quietens
import numpy as np
import training
from absl import flags
from training import REFERENCE, TITLES

from dd_keras import files, logits, tables
from dd_keras.defenses import METHODS
from dd_keras.evaluation import figures, metrics

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
    output_dir = common.writable_directory(FLAGS.output_dir)
    if FLAGS.export_dir:
        common.writable_directory(FLAGS.export_dir, "export_dir")
    data = training.load_data(dataset, **options)
    test = training.test_batches(data)
    paths = {
        name: os.path.join(output_dir, f"{name}.keras")
        for name in (REFERENCE, *FLAGS.defense)
    }
    seconds, curves = {}, {}
    if FLAGS.eval_only:
        paths[REFERENCE] = FLAGS.reference or paths[REFERENCE]
    else:
        seconds, curves = _train(data, test, paths)
    models = {
        name: common.load_classifier(path, data).model
        for name, path in paths.items()
    }
    sweep = [metrics.get("fgs", data.bounds)] if FLAGS.export_dir else []
    reports = {}
    for name, model in models.items():
        print(f"\nEvaluating: {TITLES[name]}")
        reports[name] = training.evaluate(model, test, *sweep)

    first = reports[REFERENCE].summary()
    for curve in curves.values():  # epoch 0 is the reference
        curve["accuracy"].insert(0, first["accuracy"])
        curve["rho"].insert(0, first[f"rho{FLAGS.norm:g}"])

    written = list(paths.values())
    if not FLAGS.eval_only:
        written.append(os.path.join(output_dir, training.PREPROCESSING))
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
    if FLAGS.export_dir:
        written += _export(dataset, data, models, reports)
    if not FLAGS.eval_only:
        logs = os.path.join(output_dir, "logs")
        written.append(f"{logs}: per-epoch CSV, TensorBoard")
    print(f"\n{_table(results)}")
    common.finish(written, started)


def _train(data, test, paths):
    """Trains all models; returns their seconds and convergence curves."""
    seconds, curves = {}, {}
    train = training.training_batches(data)
    reference, taken = training.train_reference(data, train)
    if taken is not None:
        seconds[REFERENCE] = taken
    training.save_preprocessing(data, FLAGS.output_dir)
    training.save(reference, paths[REFERENCE])
    for name in FLAGS.defense:
        print(f"\nFine-tuning: {TITLES[name]}")
        classifier = common.load_classifier(paths[REFERENCE], data).model
        seconds[name], curves[name] = training.defend(
            name, classifier, train, test
        )
        training.save(classifier, paths[name])
    return seconds, curves


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
