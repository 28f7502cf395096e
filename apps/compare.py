"""Several classifiers side by side: Tables 1 and 2 of the paper, and a third.

    python apps/compare.py --model=reference=FILE.keras --model=defended=FILE.keras --ours=defended --dataset=mnist

eps_ref is that of the model named --ours: the smallest eps at which FGSM fools
it on half the images. Table 1 has FGSM twice, each with an eps_ref of its own:
by the gradient as it is, and by the one that float32 rounds, which the paper's
own columns agree with. The third table has what the strongest attacks leave:
the best known distances, as gains over the first --model, and AutoAttack.
Prints the tables, and writes them to --output_dir as text, Markdown and CSV,
all numbers with their confidence intervals as comparison.json, each model's
reports as reports/NAME.json and reports/NAME_best.json, and the figures
success_rate.png, trade_off.png, rho.png and robust_accuracy.png; with --html
also report.html, all models side by side, and a page of each with its most
fragile images, reports/NAME.html. C&W and PASS
take long, and are measured on the first --few images; the strongest attacks,
on the first --best. Two LeNets on MNIST take about 20 minutes on two CPU cores.
Interrupted, the same command resumes where it was.
"""  # noqa: E501

import os
import shutil
import time

from absl import app, flags

from shared import best_known, cli, named_models, pages
from shared.evaluation import attacks_of, evaluate_split
from shared.flags import define_evaluation_flags
from shared.provenance import as_rows, provenance, write_json

from dd_keras import evaluation, plots
from dd_keras.evaluation import metrics
from dd_keras.utils import files, tables

FLAGS = flags.FLAGS
named_models.define_flag()
flags.DEFINE_string(
    "ours", None, "The NAME whose eps_ref all are compared at.", required=True
)
define_evaluation_flags(output_dir="runs/compare")
pages.define_flag("report.html, and reports/NAME.html of each model")
flags.DEFINE_integer(
    "few", 1000, "Images for C&W and PASS; 0: neither.", lower_bound=0
)
flags.DEFINE_integer(
    "best",
    200,
    "Images for the best known distances and AutoAttack; 0: neither.",
    lower_bound=0,
)

_SHARES = (0.2, 0.5, 1.0)  # of eps_ref, Table 1
_ENDINGS = {"text": "txt", "markdown": "md", "csv": "csv"}


@cli.main
def main():
    """Compares classifiers, from flags to files."""
    started = time.time()
    pages.check()
    paths = named_models.paths()
    if FLAGS.ours not in paths:
        cli.fail(
            f"--ours: expected one of {list(paths)}; received {FLAGS.ours!r}."
        )
    output_dir = cli.own_directory(FLAGS.output_dir)
    classifiers, data = named_models.load()
    checkpoints = os.path.join(output_dir, "checkpoints")

    def evaluate(name, what, chosen, limit=None):
        print(f"\nEvaluating: {name}, {what}")
        return evaluate_split(
            classifiers[name],
            data,
            chosen,
            os.path.join(checkpoints, f"{name}, {what}"),
            limit,
        )

    ours = evaluate(FLAGS.ours, "eps_ref", ["eps_ref", "paper_eps_ref"])
    eps_ref = ours.summary()["eps_ref"]
    paper_eps_ref = ours.summary()["paper_eps_ref"]
    if not eps_ref:
        cli.fail(
            "--ours: expected a classifier that some eps fools on half of the "
            f"images, and 0 does not; the eps_ref of {FLAGS.ours!r} is "
            f"{eps_ref}."
        )
    sweep = metrics.get("fgsm", data.bounds)
    eps = sorted({*sweep.eps, *(share * eps_ref for share in _SHARES)})
    chosen = ["accuracy", "rho2", "fgsm_rho", evaluation.EpsSweep(eps), "pgd"]
    if paper_eps_ref:  # float32 may leave more than half at any eps
        paper_eps = [share * paper_eps_ref for share in _SHARES]
        chosen.append(evaluation.EpsSweep(paper_eps, float32_gradient=True))
    reports, few, best = {}, {}, {}
    for name in classifiers:
        reports[name] = evaluate(
            name, "DeepFool, FGSM and PGD", pages.kept(chosen, data.bounds)
        )
        if FLAGS.few:
            few[name] = evaluate(
                name, "C&W and PASS", ["cw", "pass"], FLAGS.few
            )
        if FLAGS.best:
            best[name] = evaluate(
                name, "the strongest attacks", best_known.METRICS, FLAGS.best
            )
    comparison = _comparison(reports, few, eps_ref, paper_eps_ref)
    if best:
        comparison["best_known"] = best_known.numbers(best)
    written = _write(comparison, reports, best, output_dir, started)
    if FLAGS.html:
        written += _pages(classifiers, data, reports, few, best, output_dir)
    shutil.rmtree(checkpoints)
    for table in _tables(comparison, FLAGS.format).values():
        print(f"\n{table}")
    cli.print_written(written, started)


def _comparison(reports, few, eps_ref, paper_eps_ref):
    """All numbers: by model, by name, the value and its interval."""
    numbers = {}
    ours = reports[FLAGS.ours]
    for name, report in reports.items():
        found = dict(report.estimates)
        if name in few:
            found.update(few[name].estimates)
        for share in _SHARES:
            found[f"accuracy@{share:g}eps_ref"] = found[
                f"fgsm_accuracy@{share * eps_ref:g}"
            ]
            if paper_eps_ref:
                found[f"paper_accuracy@{share:g}eps_ref"] = found[
                    f"paper_fgsm_accuracy@{share * paper_eps_ref:g}"
                ]
        numbers[name] = found
    return {
        "ours": FLAGS.ours,
        "eps_ref": eps_ref,
        "paper_eps_ref": paper_eps_ref or None,
        "images": len(next(iter(reports.values()))),
        "few": min(map(len, few.values()), default=0),
        "models": numbers,
        "attacks": {
            name: shown
            for report in (ours, *few.values())
            for name, shown in attacks_of(report).items()
        },
        "misclassified": ours.misclassified,
        "warnings": {
            name: [
                *report.warnings,
                *(few[name].warnings if name in few else ()),
            ]
            for name, report in reports.items()
        },
    }


def _tables(comparison, form):
    """All tables, rendered: dict of file name to text."""
    eps_ref, few = comparison["eps_ref"], comparison["few"]
    one = {
        "accuracy": "accuracy",
        "rho_2": "rho2",
        **{
            f"acc. @ {share:g} eps_ref": f"accuracy@{share:g}eps_ref"
            for share in _SHARES
        },
    }
    if comparison["paper_eps_ref"]:
        for share in _SHARES:
            one[f"paper's FGSM @ {share:g}"] = (
                f"paper_accuracy@{share:g}eps_ref"
            )
    two = {
        "l_2, DeepFool": "l2",
        "rho_inf, FGSM (ratio)": "fgsm_rho",
        "eps, FGSM": "fgsm_eps",
        "acc., PGD": "pgd_accuracy",
    }
    if few:
        two.update({"l_2, C&W": "cw_l2", "PASS": "pass"})
    found = {}
    for file, columns in (("table1", one), ("table2", two)):
        rows = [
            [name, *(estimates[key].text() for key in columns.values())]
            for name, estimates in comparison["models"].items()
        ]
        found[file] = tables.render(["model", *columns], rows, form)
    if form != "csv":
        note = f"eps_ref = {eps_ref:#.4g}, of {comparison['ours']!r}"
        if comparison["paper_eps_ref"]:
            note += (
                "; of the paper's FGSM, by the gradient that float32 rounds, "
                f"{comparison['paper_eps_ref']:#.4g}"
            )
        found["table1"] += f"\n\n{comparison['images']:,} images; {note}."
        found["table2"] += (
            f"\n\n{comparison['images']:,} images; C&W and PASS: {few:,}. "
            "l_2 and eps in units of the inputs; rho_inf is eps over ||x||_inf."
        )
    if "best_known" in comparison:
        found["table3"] = best_known.table(comparison["best_known"], form)
    return found


def _write(comparison, reports, best, output_dir, started):
    """Writes all files; returns their paths."""
    written = []

    def new(name):
        written.append(os.path.join(output_dir, name))
        return written[-1]

    for form, ending in _ENDINGS.items():
        for name, text in _tables(comparison, form).items():
            files.write_text(text + "\n", new(f"{name}.{ending}"))
    numbers = {
        name: as_rows(estimates)
        for name, estimates in comparison["models"].items()
    }
    best_known_numbers = (
        {"best_known": best_known.as_json(comparison["best_known"])}
        if best
        else {}
    )
    write_json(
        {
            **comparison,
            "models": numbers,
            **best_known_numbers,
            "columns": ["value", "low", "high"],
            "paths": named_models.paths(),
            "total_seconds": time.time() - started,
            **provenance(),
        },
        new("comparison.json"),
    )
    for name, report in reports.items():
        report.to_json(new(os.path.join("reports", f"{name}.json")))
    for name, report in best.items():
        report.to_json(new(os.path.join("reports", f"{name}_best.json")))
    if best:
        with files.atomic_write(new("robust_accuracy.png")) as part:
            plots.robust_accuracy_curves(best_known.curves(best), part)
    with files.atomic_write(new("success_rate.png")) as part:
        plots.success_rate_curves(
            {name: report.success_rate() for name, report in reports.items()},
            part,
            eps_ref=comparison["eps_ref"],
        )
    with files.atomic_write(new("trade_off.png")) as part:
        plots.trade_off(
            {
                name: {
                    "accuracy": [report.summary()["accuracy"]],
                    "rho": [report.summary()["rho2"]],
                }
                for name, report in reports.items()
            },
            part,
        )
    with files.atomic_write(new("rho.png")) as part:
        plots.rho_histogram(
            {name: report.values["rho2"] for name, report in reports.items()},
            next(iter(reports.values())).labels,
            part,
        )
    return written


def _pages(classifiers, data, reports, few, best, output_dir):
    """Writes the page of all models, and one of each; returns their paths."""
    paths = named_models.paths()
    all_of = {
        name: [more[name] for more in (reports, best, few) if name in more]
        for name in reports
    }
    written = [
        pages.write_comparison(
            all_of,
            os.path.join(output_dir, "report.html"),
            data,
            models=paths,
        )
    ]
    for name, report in reports.items():
        classifier = classifiers[name]
        behind = classifier.data(data)
        written.append(
            pages.write(
                report,
                os.path.join(output_dir, "reports", f"{name}.html"),
                paths[name],
                classifier,
                behind,
                getattr(behind, FLAGS.split),
            )
        )
    return written


if __name__ == "__main__":
    app.run(main)
