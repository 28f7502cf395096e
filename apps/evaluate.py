"""How robust a classifier is: every number of the paper's tables.

    python apps/evaluate.py --model=FILE.keras --dataset=mnist
    python apps/evaluate.py --model=SAVEDMODEL --metrics=rho2,pgd

A SavedModel of dd_keras.export brings its own preprocessing, and gives the
numbers of the .keras file; another one is taken as it is, and its perturbations
are measured where its inputs are (--preprocessing=none for raw pixels).

Prints a table, and writes to --output_dir evaluation.json (numbers, confidence
intervals, what made them), report.json (every image), report.npz (the same
arrays for NumPy), table.md, and where they were measured success_rate.png (FGSM
against eps) and rho.png (rho_2 by class). LeNet on MNIST's 10,000 test images with the default metrics takes
about a minute and a half on two CPU cores. Interrupted, the same
command resumes where it was.
"""  # noqa: E501

import os
import shutil
import time

from absl import app, flags

from shared import cli, inputs
from shared.evaluation import evaluate_split, numbers_of
from shared.flags import define_evaluation_flags
from shared.provenance import as_rows, provenance, write_json

from dd_keras import attacks, evaluation, plots
from dd_keras.evaluation import metrics
from dd_keras.utils import files

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "A .keras file or a SavedModel.", required=True
)
define_evaluation_flags(output_dir="runs/evaluate")
flags.DEFINE_list(
    "metrics",
    ["accuracy", "rho2", "fgsm_rho", "fgsm", "pgd"],
    "What to measure: accuracy; rho2 or l2 (also rho1, rhoinf, ...): DeepFool; "
    "fgsm_rho, fgsm_eps or eps_ref: the smallest eps of FGSM, over the size of "
    "the image (the paper's rho_inf), itself, and its median; fgsm: accuracy "
    "at 20 eps; pgd: accuracy under PGD at a tenth of the pixel range; cw: "
    "Carlini and Wagner's l_2; pass: similarity of DeepFool's images.",
)
flags.DEFINE_list(
    "eps", None, "The eps of fgsm, in units of the inputs; 20 by default."
)
flags.DEFINE_list(
    "pgd_eps",
    None,
    "PGD at each of these, in units of the inputs, in place of pgd's tenth of "
    "the pixel range.",
)
flags.DEFINE_integer("pgd_steps", 40, "Of --pgd_eps.", lower_bound=1)
flags.DEFINE_integer(
    "pgd_restarts",
    1,
    "Random starts of --pgd_eps; an image withstands if it withstands all.",
    lower_bound=1,
)


@cli.main
def main():
    """Evaluates a classifier, from flags to files."""
    started = time.time()
    output_dir = cli.own_directory(FLAGS.output_dir)
    _metrics(bounds=(0.0, 255.0))  # checked before the data, which take long
    classifier = inputs.load_classifier(FLAGS.model, None, FLAGS.activation)
    data = inputs.load_evaluation_data()
    inputs.check_fits(FLAGS.model, classifier, data)
    data = classifier.data(data)
    chosen = _metrics(data.bounds)
    checkpoint_dir = os.path.join(output_dir, "checkpoint")
    report = evaluate_split(classifier, data, chosen, checkpoint_dir)
    paths = _write(report, output_dir)
    paths.append(os.path.join(output_dir, "evaluation.json"))
    write_json(
        {
            "model": FLAGS.model,
            "images": len(report),
            "numbers": as_rows(report.estimates),
            "columns": ["value", "low", "high"],
            "attacks": {
                metric.name: repr(metric.attack)
                for metric in report.metrics
                if metric.attack is not None
            },
            "misclassified": report.misclassified,
            "warnings": report.warnings,
            "total_seconds": time.time() - started,
            **provenance(),
        },
        paths[-1],
    )
    shutil.rmtree(checkpoint_dir)
    print(f"\n{report.table(FLAGS.format)}")
    cli.print_written(paths, started)


def _metrics(bounds):
    """What the flags ask to measure, within these bounds of the inputs."""
    chosen = [metrics.get(name, bounds) for name in FLAGS.metrics]
    if FLAGS.eps is not None:
        sweep = evaluation.EpsSweep(numbers_of("eps"))
        chosen = [m for m in chosen if m.name != sweep.name] + [sweep]
    if FLAGS.pgd_eps is not None:
        chosen = [m for m in chosen if m.name != "pgd"]
        chosen += [_pgd(eps, bounds) for eps in numbers_of("pgd_eps")]
    return chosen


def _write(report, output_dir):
    """Writes all files; returns their paths."""
    json_path, npz_path, table_path, success_path, rho_path = (
        os.path.join(output_dir, name)
        for name in (
            "report.json",
            "report.npz",
            "table.md",
            "success_rate.png",
            "rho.png",
        )
    )
    report.to_json(json_path)
    report.to_npz(npz_path)
    files.write_text(report.table("markdown") + "\n", table_path)
    written = [json_path, npz_path, table_path]
    name = os.path.basename(os.path.normpath(FLAGS.model))
    if "fgsm_fooled" in report.values:
        with files.atomic_write(success_path) as part:
            plots.success_rate_curves({name: report.success_rate()}, part)
        written.append(success_path)
    if "rho2" in report.values:
        with files.atomic_write(rho_path) as part:
            plots.rho_histogram(
                {name: report.values["rho2"]}, report.labels, part
            )
        written.append(rho_path)
    return written


def _pgd(eps, bounds):
    """Accuracy under PGD of this size, named pgd@eps."""
    attack = attacks.PGD(
        eps, steps=FLAGS.pgd_steps, restarts=FLAGS.pgd_restarts, bounds=bounds
    )
    return evaluation.AccuracyUnderAttack(attack, f"pgd@{eps:g}")


if __name__ == "__main__":
    app.run(main)
