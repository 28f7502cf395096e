"""Accuracy against robustness, of any defences over their own settings.

    python apps/sweep.py --dataset=mnist --arch=lenet --reference=FILE.keras --series="lam=15=deep_defense c=5,15,25" --series="Adv. Train II=adv_train_2 eps=6,13,25"
    python apps/sweep.py --dataset=digits --arch=digits_cnn --reference=runs/digits/reference.keras --batch_size=50 --learning_rate=1e-3 --attack_images=300 --l2_eps=300 --linf_eps=50 --series="Deep Defense=deep_defense gradient=implicit c=5,10,20" --series="PGD, l_2=pgd ball=l2 eps=75,150,300"

Which defence to take, and how strong? Each --series is a defence with one of
its settings swept, `NAME=DEFENCE SETTING=VALUE,VALUE,... SETTING=VALUE`; all
else is as the flags have it. Each point fine-tunes the same --reference for the
same --epochs. Measured are accuracy and rho_2, as in the paper's Figures 3, 4
and 6, and, with --fgsm_eps, accuracy under FGSM, of all test images.

With --attack_images also what the strongest attacks leave of so many images,
within the valid pixels: the best known l_2 distance (the shortest of DeepFool,
DDN and FAB), and the accuracy under AutoAttack without Square, in l_2 up to
--l2_eps and in l_inf up to --linf_eps. The figure is then of these, and rho_2
is of the same images.

Each point ends in runs/NAME.json, and its model in models/, in --output_dir;
sweep.json, table.md and sweep.png are brought up to date after each.
Interrupted, or stopped by --max_runs, the same command runs what is missing.
The paper's own figures: apps/reproduce.py.
"""  # noqa: E501

import os
import re
import time

from absl import app, flags

from paper import sweep_files
from shared import (
    barely_trained,
    cli,
    fine_tunings,
    inputs,
    training,
    training_flags,
)
from shared.flags import define_dataset_flag
from shared.provenance import (
    as_rows,
    named_flag_values,
    provenance,
    write_json,
)
from shared.run import Run, test_batches, training_batches
from shared.series import parse
from shared.training_flags import settings

import dd_keras
from dd_keras import attacks, evaluation
from dd_keras.evaluation import metrics
from dd_keras.training import DivergenceError

FLAGS = flags.FLAGS
define_dataset_flag()
training_flags.define(
    ["lenet", "mlp", "digits_cnn", "convnet", "nin"],
    output_dir="runs/sweep",
)
flags.DEFINE_multi_string(
    "series",
    None,
    "NAME=DEFENCE SETTING=VALUE,VALUE,... SETTING=VALUE; may be repeated.",
    required=True,
)
flags.DEFINE_list(
    "fgsm_eps", [], "Of FGSM, in units of the inputs; none by default."
)
flags.DEFINE_integer(
    "attack_images",
    0,
    "Test images for the strongest attacks; 0: without these.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "autoattack_images",
    None,
    "The first so many of these for AutoAttack, which takes longest; all by "
    "default.",
    lower_bound=1,
)
flags.DEFINE_float(
    "l2_eps", 382.5, "Of AutoAttack in l_2, in units of the inputs."
)
flags.DEFINE_float(
    "linf_eps", 25.5, "Of AutoAttack in l_inf, in units of the inputs."
)
flags.DEFINE_bool("evaluate_reference", True, "Measure the reference as well.")
for name in ("l2_eps", "linf_eps"):
    flags.register_validator(
        name, lambda eps: eps > 0, message=f"--{name} must be above 0."
    )
flags.register_validator(
    "fgsm_eps",
    lambda given: all(re.fullmatch(r"\d+(\.\d*)?", text) for text in given),
    message="--fgsm_eps must be numbers, separated by commas.",
)
flags.DEFINE_integer(
    "max_runs", None, "Stop after so many new points.", lower_bound=0
)
flags.register_validator(
    "epochs", lambda epochs: epochs > 0, message="--epochs must be above 0."
)
flags.register_validator(
    "distribution",
    lambda name: name != "multi_worker",
    message="--distribution must be none or mirrored: several workers do more "
    "with a part of the series each.",
)
flags.register_validator(
    "keep",
    lambda epoch: epoch == "last",
    message="--keep must be last: test images must not choose.",
)

_OF_MEASURES = (
    "attack_images", "autoattack_images", "l2_eps", "linf_eps", "fgsm_eps"
)  # fmt: skip


@cli.main
def main():
    """Sweeps, from flags to files."""
    started = time.time()
    series = parse(FLAGS.series)
    with training.start().scope():
        _sweep(series, started)


def _sweep(series, started):
    output_dir = cli.own_directory(FLAGS.output_dir)
    for folder in ("runs", "models"):
        os.makedirs(os.path.join(output_dir, folder), exist_ok=True)
    data = Run.of_flags(__name__, FLAGS.dataset, FLAGS.recipe).load_data()
    train = training_batches(data)
    path = fine_tunings.reference_path(data, train, output_dir)
    _check_layers(series, path, data)
    digest = fine_tunings.digest_of(path)
    points = [point for points in series.values() for point in points]
    finished = {
        point.name: fine_tunings.read(
            fine_tunings.result_path(output_dir, point.name),
            _identity(point, digest),
        )
        for point in points
    }
    reference = None
    if FLAGS.evaluate_reference:
        reference = _reference(path, digest, data, output_dir)
        accuracy, *_ = reference["numbers"]["accuracy"]
        poor = barely_trained.note(accuracy, data.num_classes)
        if poor:
            print(f"warning: {poor}")
    missing = [point for point in points if finished[point.name] is None]
    print(f"{len(points)} points, {len(missing)} of them to do.")
    for point in missing[: FLAGS.max_runs]:
        print(f"\nFine-tuning: {point.name}")
        classifier = training.load_reference(path, data)
        identity = _identity(point, digest)
        progress = fine_tunings.progress_of(output_dir, point.name, identity)
        finished[point.name] = {
            **identity,
            "series": point.series,
            "label": point.label,
            **_result(point, classifier, data, train, progress, output_dir),
            **provenance(),
        }
        write_json(
            finished[point.name],
            fine_tunings.result_path(output_dir, point.name),
        )
        progress.finish()
        sweep_files.write(_found(series, finished), reference, output_dir)
    found = _found(series, finished)
    written = sweep_files.write(found, reference, output_dir)
    write_json(
        {"reference": reference, "series": found, **provenance()}, written[0]
    )
    print(f"\n{sweep_files.table(found, reference)}")
    print(
        f"\n{sum(map(bool, finished.values()))} of {len(points)} points are "
        "done."
    )
    cli.print_written(written, started)


def _check_layers(series, path, data):
    """Makes sure that layers to be regularised alone are there, before hours.

    Raises:
        SystemExit: with a message, if one is not.
    """
    named = [
        (point.series, list(point.settings.regularized_layers))
        for points in series.values()
        for point in points
        if point.settings.regularized_layers
    ]
    if not named:
        return
    reference = inputs.load_classifier(path, data).model
    weighted = [
        layer.name for layer in reference.layers if layer.trainable_weights
    ]
    for title, names in named:
        if not set(names) <= set(weighted):
            cli.fail(
                f"--series: regularized_layers of {title}: expected of "
                f"{weighted}; received {names}."
            )


def _identity(point, digest):
    return fine_tunings.identity_of(
        point.name, point.settings, digest, *_OF_MEASURES
    ) | {"defense": point.defense}


def _found(series, finished):
    """The results that are there: dict of series to list of dicts."""
    found = {
        name: [finished[point.name] for point in points]
        for name, points in series.items()
    }
    return {
        name: [result for result in results if result is not None]
        for name, results in found.items()
    }


def _reference(path, digest, data, output_dir):
    """What `_result` is of a point, of the reference."""
    where = fine_tunings.result_path(output_dir, training.REFERENCE)
    identity = {
        "reference_sha256": digest,
        "measures": named_flag_values(
            [*_OF_MEASURES, "evaluation_candidates", "limit"]
        ),
    }
    if not FLAGS.reference:  # it was trained here
        identity["reference_flags"] = named_flag_values(
            fine_tunings.OF_REFERENCE
        )
    found = fine_tunings.read(where, identity)
    if found is None:
        print("\nEvaluating: reference")
        classifier = inputs.load_classifier(path, data).model
        progress = fine_tunings.progress_of(
            output_dir, training.REFERENCE, identity
        )
        found = {
            **identity,
            **_evaluated(
                training.REFERENCE, classifier, data, progress, output_dir
            ),
            **provenance(),
        }
        write_json(found, where)
        progress.finish()
    return found


def _result(point, classifier, data, train, progress, output_dir):
    """Fine-tunes and measures a classifier; numbers are None if it diverged."""
    started = time.time()
    try:
        seconds, _ = training.defend(
            point.defense,
            classifier,
            train,
            test_batches(data),
            progress.checkpoints("training"),
            point.settings,
            data.bounds,
            validation_freq=FLAGS.epochs + 1,  # it is measured afterwards
            log_as=point.name,
        )
    except DivergenceError as error:  # a result, too
        print(error)
        return {"numbers": None, "training_seconds": time.time() - started}
    training.save(
        classifier, os.path.join(output_dir, "models", f"{point.name}.keras")
    )
    return {
        "training_seconds": seconds,
        **_evaluated(point.name, classifier, data, progress, output_dir),
    }


def _evaluated(name, classifier, data, progress, output_dir):
    """The numbers of a classifier; its distances go to runs/NAME.npz."""
    started = time.time()
    distance = settings().evaluation_attack
    chosen = ["accuracy"]
    if FLAGS.fgsm_eps:
        eps = sorted({float(eps) for eps in FLAGS.fgsm_eps})
        chosen.append(evaluation.EpsSweep(eps))

    def measured(what, chosen, limit=None):
        test = data.test if limit is None else data.test.take(limit)
        return dd_keras.evaluate_robustness(
            classifier,
            test_batches(data._replace(test=test)),
            metrics=chosen,
            checkpoint_dir=progress.checkpoints(f"evaluation_{what}"),
        )

    if FLAGS.attack_images:
        best = metrics.get("l2_best", data.bounds)
        few = FLAGS.autoattack_images or FLAGS.attack_images
        whole = measured("accuracy", chosen)
        distances = measured("distance", [distance, best], FLAGS.attack_images)
        withstood = measured("autoattack", _autoattacks(data.bounds), few)
        reports = [whole, distances, withstood]
    else:
        distances = measured("distance", [*chosen, distance])
        reports = [distances]
    distances.to_npz(os.path.join(output_dir, "runs", f"{name}.npz"))
    p = f"{FLAGS.norm:g}"
    wanted = {"accuracy", f"rho{p}", f"l{p}", *sweep_files.MEASURES}
    kept = {
        key: estimate
        for report in reports
        for key, estimate in report.estimates.items()
        if key in wanted or key.startswith("fgsm_accuracy@")
    }
    return {
        "numbers": as_rows(kept),
        "images": [len(report) for report in reports],
        "warnings": [text for report in reports for text in report.warnings],
        "evaluation_seconds": time.time() - started,
    }


def _autoattacks(bounds):
    """Accuracy under AutoAttack without Square, in l_2 and l_inf."""
    return [
        evaluation.AccuracyUnderAttack(
            attacks.AutoAttack(
                eps, norm, ["apgd-ce", "apgd-t", "fab-t"], bounds=bounds
            ),
            name,
        )
        for name, eps, norm in (
            ("autoattack_l2", FLAGS.l2_eps, 2.0),
            ("autoattack", FLAGS.linf_eps, float("inf")),
        )
    ]


if __name__ == "__main__":
    app.run(main)
