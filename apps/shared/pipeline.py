"""What the programs that train do: a reference, defences of it, a comparison.

A program declares its flags with `define_flags` and hands its data set's name
to `run`. So that the gain is the method's, the reference is also fine-tuned
for as many epochs without a defence ("clean").

Killed at any moment, the same command resumes the run: in the stage it was
in, from its last checkpoint.
"""

import os
import time

from absl import flags

from shared import (
    barely_trained,
    cli,
    inputs,
    pages,
    pictures,
    results,
    serving,
    training,
    training_flags,
)
from shared.provenance import provenance, write_json
from shared.run import (
    Run,
    test_batches,
    training_batches,
    validation_batches,
)
from shared.run_directory import RunDirectory
from shared.training import REFERENCE, title_of

from dd_keras import datasets, distribution
from dd_keras.defenses import METHODS
from dd_keras.evaluation import RobustnessReport, metrics

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the calling program's


def define_flags(archs: list[str], **defaults: object) -> None:
    """Declares a program's flags; see `training_flags.define`."""
    training_flags.define(archs, **defaults)
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
    pages.define_flag("report.html, and MODEL.html of each model")
    flags.DEFINE_bool(
        "eval_only", False, "Evaluate the models in --output_dir; train none."
    )
    flags.DEFINE_bool(
        "overwrite",
        False,
        "Start anew where --output_dir holds a finished run, or one with "
        "other settings.",
    )


def run(program: str, dataset: str, recipe: str | None = None) -> None:
    """Runs a program on a data set, from flags to files.

    Args:
        program: its `__name__`.
        dataset: its name, see `dd_keras.datasets.load`.
        recipe: of ImageNet, see `datasets.load`.

    Raises:
        SystemExit, ImportError, RuntimeError, ValueError: with a message, if
            an input is bad or training fails; see `cli.main`.
    """
    started = time.time()
    pages.check()
    this = Run.of_flags(program, dataset, recipe)
    with training.start().scope():
        output_dir = cli.own_directory(FLAGS.output_dir)
        if FLAGS.export_dir:
            cli.writable_directory(FLAGS.export_dir, "export_dir")
        if FLAGS.reference:  # checked before the data, which take long
            inputs.load_classifier(FLAGS.reference, None)
        data = this.load_data()
        paths = {
            name: os.path.join(output_dir, f"{name}.keras")
            for name in (REFERENCE, *FLAGS.defense)
        }
        if FLAGS.eval_only:
            paths[REFERENCE] = FLAGS.reference or paths[REFERENCE]
            directory, trained = None, {}
        else:
            directory = _directory_of(this, output_dir)
            trained = _train(data, directory, paths)
        if not distribution.is_chief():
            print("The chief evaluates, and writes.")
            return
    models = {
        name: inputs.load_classifier(path, data).model
        for name, path in paths.items()
    }
    reports = _evaluate(models, data, directory)
    curves = _curves(trained, models, reports, data)
    written, pictured = _draw(models, reports, curves, data)
    found = results.collect(
        this, data, reports, trained, curves, pictured, directory, started
    )
    if FLAGS.export_dir:
        written += _export(this, data, models, reports, curves)
    if FLAGS.html:
        written += _pages(this, data, models, reports)
    written += _finish(found, directory)
    print(f"\n{results.table(found)}")
    reference = found["models"][REFERENCE]
    poor = barely_trained.note(reference["accuracy"], data.num_classes)
    if poor:
        print(f"\nwarning: {poor}")
    cli.print_written([*_models_of(paths), *written], started)


def _directory_of(this, output_dir):
    return RunDirectory(
        os.path.join(output_dir, "checkpoints"),
        this.identity,
        finished=os.path.join(output_dir, "results.json"),
        overwrite=FLAGS.overwrite,
    )


def _train(data, directory, paths):
    """Trains all models that are not yet; what `RunDirectory` keeps of each."""
    train, validation = training_batches(data), validation_batches(data)
    trained = {name: directory.result(name) for name in paths}
    if trained[REFERENCE] is None:
        reference, seconds = training.train_reference(
            data, train, directory.checkpoints(REFERENCE)
        )
        training.save_preprocessing(data, FLAGS.output_dir)
        training.save(reference, paths[REFERENCE])
        trained[REFERENCE] = {"seconds": seconds}
        directory.keep(REFERENCE, trained[REFERENCE])
    accuracy = None
    for name in FLAGS.defense:
        if trained[name] is not None:
            continue
        classifier = training.load_reference(paths[REFERENCE], data)
        if accuracy is None:
            accuracy = _accuracy_of_reference(classifier, validation, data)
        print(f"\nFine-tuning: {title_of(name)}")
        seconds, curve = training.defend(
            name,
            classifier,
            train,
            validation,
            directory.checkpoints(name),
            bounds=data.bounds,
            reference_accuracy=accuracy,
        )
        training.save(classifier, paths[name])
        trained[name] = {"seconds": seconds, "curve": curve}
        directory.keep(name, trained[name])
    return trained


def _accuracy_of_reference(classifier, batches, data):
    """Its accuracy before it is defended; says so where it is poor."""
    accuracy = barely_trained.accuracy_of(classifier, batches)
    poor = barely_trained.note(accuracy, data.num_classes)
    if poor and distribution.is_chief():
        print(f"\nwarning: {poor}")
    return accuracy


def _evaluate(models, data, directory):
    """The `RobustnessReport` of each model on the test images."""
    test = test_batches(data)
    # A model card tells the accuracy under FGSM as well.
    more = [metrics.get("fgsm", data.bounds)] if FLAGS.export_dir else []
    reports = {}
    for name, model in models.items():
        print(f"\nEvaluating: {title_of(name)}")
        stage = f"evaluation_{name}_{len(more)}{'_html' * FLAGS.html}"
        reports[name] = training.evaluate(
            model,
            test,
            *more,
            checkpoint_dir=directory and directory.checkpoints(stage),
            keep_classes=FLAGS.html,
        )
    return reports


def _curves(
    trained: dict,
    models: dict,
    reports: dict[str, RobustnessReport],
    data: datasets.Data,
) -> dict:
    """The curve of each defence over its epochs; epoch 0 is the reference."""
    curves = {n: r["curve"] for n, r in trained.items() if "curve" in r}
    first = reports[REFERENCE].summary()
    if curves and data.validation is not None:
        print(f"\nEvaluating on the validation images: {title_of(REFERENCE)}")
        batches = validation_batches(data)
        first = training.evaluate(models[REFERENCE], batches).summary()
    start = {
        "epochs": 0,
        "accuracy": first["accuracy"],
        "rho": first[f"rho{FLAGS.norm:g}"],
    }
    return {
        name: curve
        | {k: [v, *curve[k]] for k, v in start.items() if k in curve}
        for name, curve in curves.items()
    }


def _draw(models, reports, curves, data):
    """Draws all figures; their paths, and which images one of them shows."""
    written = [os.path.join(FLAGS.output_dir, "adversarial_images.png")]
    pictured = pictures.draw_adversarial_images(
        models, reports, data, written[0]
    )
    if any(len(curve["rho"]) > 1 for curve in curves.values()):
        written.append(os.path.join(FLAGS.output_dir, "convergence.png"))
        pictures.draw_convergence(curves, written[-1])
    return written, pictured


def _export(this, data, models, reports, curves):
    """Exports all models; the paths of what was written."""
    classifiers = {
        f"{FLAGS.arch}_{name}": inputs.Classifier(model, None)
        for name, model in models.items()
    }
    versions = [
        serving.export(
            classifiers[f"{FLAGS.arch}_{name}"],
            data,
            FLAGS.export_dir,
            f"{FLAGS.arch}_{name}",
            report=reports[name],
            card={
                "name": f"{title_of(name)}: {FLAGS.arch} on {this.dataset}",
                "dataset": this.dataset,
                "defense": training.defense_of(name, curves.get(name, {})),
                "training": this.flags,
                "made_by": provenance()["command"],
            },
        )
        for name in models
    ]
    return versions + serving.write_server_files(
        data, FLAGS.export_dir, classifiers
    )


def _pages(this, data, models, reports):
    """Writes the page of all models, and one of each; returns their paths."""
    made = {"dataset": this.dataset, "settings": this.flags}
    titled = {title_of(name): [report] for name, report in reports.items()}
    page = os.path.join(FLAGS.output_dir, "report.html")
    written = [pages.write_comparison(titled, page, data, **made)]
    for name, model in models.items():
        written.append(
            pages.write(
                reports[name],
                os.path.join(FLAGS.output_dir, f"{name}.html"),
                title_of(name),
                inputs.Classifier(model, None),
                data,
                data.test,
                **made,
            )
        )
    return written


def _finish(found, directory):
    """Writes the results last of all: they tell that the run is finished."""
    name = "evaluation.json" if FLAGS.eval_only else "results.json"
    written = [os.path.join(FLAGS.output_dir, name)]
    write_json(found, written[0])
    if directory is not None:
        directory.finish()
        logs = os.path.join(FLAGS.output_dir, "logs")
        written.append(f"{logs}: per-epoch CSV, TensorBoard")
    return written


def _models_of(paths):
    """The files of the models, and of what stands in front of them."""
    if FLAGS.eval_only:
        return list(paths.values())
    preprocessing = os.path.join(FLAGS.output_dir, training.PREPROCESSING)
    return [*paths.values(), preprocessing]
