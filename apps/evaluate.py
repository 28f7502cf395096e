"""How robust a classifier is: every number of the paper's tables.

    python apps/evaluate.py --model=FILE.keras --dataset=mnist
    python apps/evaluate.py --model=SAVEDMODEL --metrics=rho2,pgd

A SavedModel of dd_keras.export brings its own preprocessing, and gives the
numbers of the .keras file; another one is taken as it is, and its perturbations
are measured where its inputs are (--preprocessing=none for raw pixels).

Prints a table, and writes to --output_dir evaluation.json (numbers, confidence
intervals, costs, what made them), report.json (every image), report.npz (the
same arrays for NumPy), table.md, and where they were measured success_rate.png
(FGSM against eps), robust_accuracy.png (from the best known distances) and
rho.png (rho_2 by class). --html adds report.html, all of it as one page, with
the most fragile images. LeNet on MNIST's 10,000 test images with the default
metrics takes about a minute and a half on two CPU cores; autoattack and
rho2_best take about half a second an image each. Interrupted, the same command
resumes where it was. On several machines, give each its --shard, and join what
they write by apps/merge.py.
"""

import math
import os
import re
import shutil
import time

from absl import app, flags

from shared import cli, inputs, pages, robustbench
from shared.evaluation import evaluate_split, numbers_of, write_report
from shared.flags import define_evaluation_flags

from dd_keras import attacks, evaluation
from dd_keras.attacks.autoattack import VERSIONS
from dd_keras.evaluation import metrics

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "A .keras file or a SavedModel.", required=True
)
define_evaluation_flags(output_dir="runs/evaluate")
flags.DEFINE_list(
    "metrics",
    ["accuracy", "rho2", "fgsm_rho", "fgsm", "pgd"],
    "What to measure: accuracy; rho2 or l2 (also rho1, rhoinf, ...): DeepFool; "
    "rho2_best or l2_best (also rhoinf_best, ...): the shortest of DeepFool, "
    "DDN and FAB within bounds; fgsm_rho, fgsm_eps or eps_ref: the smallest "
    "eps of FGSM, over the size of the image (the paper's rho_inf), itself, "
    "and its median; fgsm: accuracy at 20 eps; pgd, autoattack: accuracy under "
    "them at a tenth of the pixel range; adaptive: whether attacks by "
    "gradients find what there is; cw: Carlini and Wagner's l_2; pass: "
    "similarity of DeepFool's images.",
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
flags.DEFINE_enum("pgd_norm", "inf", ["inf", "2"], "Of --pgd_eps.")
flags.DEFINE_integer("pgd_steps", 40, "Of --pgd_eps.", lower_bound=1)
flags.DEFINE_integer(
    "pgd_restarts",
    1,
    "Random starts of --pgd_eps; an image withstands if it withstands all.",
    lower_bound=1,
)
flags.DEFINE_list(
    "autoattack_eps",
    None,
    "AutoAttack at each of these, in units of the inputs, in place of "
    "autoattack's tenth of the pixel range.",
)
flags.DEFINE_enum(
    "autoattack_norm", "inf", ["inf", "2"], "Of --autoattack_eps."
)
flags.DEFINE_enum(
    "autoattack_version",
    "standard",
    sorted(VERSIONS),
    "Of --autoattack_eps; plus has restarts and more attacks.",
)
flags.DEFINE_string(
    "undefended",
    None,
    "The classifier before its defence, a .keras file or a SavedModel: what "
    "PGD finds on it is tried on --model, at each --pgd_eps.",
)
flags.DEFINE_bool(
    "keep_perturbations",
    False,
    "Keep what the attacks of rho2, rho2_best, pgd, autoattack and cw found of "
    "each image, in report.npz.",
)
flags.DEFINE_string(
    "shard",
    None,
    "i/n: evaluate the i-th of n parts of the data, i from 1 to n.",
)
pages.define_flag()
flags.DEFINE_bool(
    "robustbench",
    False,
    "Write robustbench.json, the fields of RobustBench's model cards, from "
    "the accuracy under the first --autoattack_eps, or autoattack.",
)
flags.register_validator(
    "shard",
    lambda given: given is None or _shard_of(given) is not None,
    message="--shard must be i/n, with i from 1 to n.",
)


def _shard_of(text):
    """The pair of integers of a text "i/n"; None if it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        return None
    return int(found[1]), int(found[2])


@cli.main
def main():
    """Evaluates a classifier, from flags to files."""
    started = time.time()
    pages.check()
    output_dir = cli.own_directory(FLAGS.output_dir)
    _metrics(bounds=(0.0, 255.0))  # checked before the data, which take long
    classifier = inputs.load_classifier(FLAGS.model, None, FLAGS.activation)
    data = inputs.load_evaluation_data()
    inputs.check_fits(FLAGS.model, classifier, data)
    data = classifier.data(data)
    chosen = _metrics(data.bounds)
    if FLAGS.undefended:
        undefended = inputs.load_classifier(
            FLAGS.undefended, None, FLAGS.activation
        )
        inputs.check_fits(FLAGS.undefended, undefended, data)
        chosen += _transfers(undefended.model, chosen)
    checkpoint_dir = os.path.join(output_dir, "checkpoint")
    report = evaluate_split(
        classifier,
        data,
        chosen,
        checkpoint_dir,
        shard=_shard_of(FLAGS.shard) if FLAGS.shard else None,
    )
    paths = write_report(
        report,
        output_dir,
        FLAGS.model,
        total_seconds=time.time() - started,
    )
    if FLAGS.html:
        page = os.path.join(output_dir, "report.html")
        images = getattr(data, FLAGS.split)
        paths.append(
            pages.write(
                *(report, page, FLAGS.model, classifier, data, images),
                FLAGS.batch_size,
                total_seconds=time.time() - started,
            )
        )
    if FLAGS.robustbench:
        paths.append(os.path.join(output_dir, "robustbench.json"))
        robustbench.write(report, FLAGS.model, FLAGS.dataset, paths[-1])
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
    if FLAGS.autoattack_eps is not None:
        chosen = [m for m in chosen if m.name != "autoattack"]
        chosen += [
            _autoattack(eps, bounds) for eps in numbers_of("autoattack_eps")
        ]
    if FLAGS.robustbench and not any(map(robustbench.fits, chosen)):
        cli.fail(
            "--robustbench: expected autoattack among --metrics, or "
            f"--autoattack_eps; received {FLAGS.metrics}."
        )
    if FLAGS.keep_perturbations:
        chosen = [metric.keeping_perturbations() for metric in chosen]
    return pages.kept(chosen)


def _pgd(eps, bounds):
    """Accuracy under PGD of this size, named pgd@eps."""
    attack = attacks.PGD(
        eps,
        float(FLAGS.pgd_norm),
        steps=FLAGS.pgd_steps,
        restarts=FLAGS.pgd_restarts,
        bounds=bounds,
    )
    return evaluation.AccuracyUnderAttack(attack, _named("pgd", attack))


def _autoattack(eps, bounds):
    """Accuracy under AutoAttack of this size, named autoattack@eps."""
    attack = attacks.AutoAttack(
        eps,
        float(FLAGS.autoattack_norm),
        FLAGS.autoattack_version,
        bounds=bounds,
    )
    return evaluation.AccuracyUnderAttack(attack, _named("autoattack", attack))


def _named(kind, attack):
    """An attack's name: kind@eps, in l_2 kind_l2@eps."""
    norm = "" if attack.norm == math.inf else f"_l{attack.norm:g}"
    return f"{kind}{norm}@{attack.eps:g}"


def _transfers(source, chosen):
    """Accuracy under what each PGD finds on another classifier."""
    found = [
        evaluation.AccuracyUnderTransfer(
            source, metric.attack, metric.name.replace("pgd", "transfer")
        )
        for metric in chosen
        if isinstance(metric, evaluation.AccuracyUnderAttack)
        and isinstance(metric.attack, attacks.PGD)
    ]
    if not found:
        cli.fail(
            "--undefended: expected pgd among --metrics, or --pgd_eps; "
            f"received {FLAGS.metrics}."
        )
    return found


if __name__ == "__main__":
    app.run(main)
