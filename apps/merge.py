"""One report from the shards of an evaluation on several machines.

    python apps/evaluate.py --model=FILE.keras --shard=1/2 --output_dir=part1
    python apps/evaluate.py --model=FILE.keras --shard=2/2 --output_dir=part2
    python apps/merge.py --shards=part1,part2 --output_dir=whole

Writes to --output_dir what apps/evaluate.py writes without --shard; report.json
is the same file to the bit. The page of --html has no pictures, as the images
are not at hand; from which class to which attacks lead, if the shards were
evaluated with --html.
"""

import json
import os
import time

from absl import app, flags

from shared import cli, pages
from shared.evaluation import write_report
from shared.flags import define_output_dir

from dd_keras.evaluation import RobustnessReport, merge_reports
from dd_keras.utils import tables

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "shards",
    None,
    "The output directories of all shards, in any order.",
    required=True,
)
flags.DEFINE_enum(
    "format", "text", tables.FORMS, "Of the table that is printed."
)
pages.define_flag()
define_output_dir("runs/merge")


@cli.main
def main():
    """Merges reports, from flags to files."""
    started = time.time()
    pages.check()
    reports, models, seconds = [], set(), 0.0
    for directory in FLAGS.shards:
        reports.append(
            RobustnessReport.from_json(os.path.join(directory, "report.json"))
        )
        path = os.path.join(directory, "evaluation.json")
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        models.add(told["model"])
        seconds += told["total_seconds"]
    if len(models) > 1:
        cli.fail(
            "--shards: expected evaluations of one model; received those of "
            f"{sorted(models)}."
        )
    output_dir = cli.own_directory(FLAGS.output_dir)
    report = merge_reports(reports)
    model = models.pop()
    paths = write_report(report, output_dir, model, total_seconds=seconds)
    if FLAGS.html:
        page = os.path.join(output_dir, "report.html")
        paths.append(pages.write(report, page, model, total_seconds=seconds))
    print(f"\n{report.table(FLAGS.format)}")
    cli.print_written(paths, started)


if __name__ == "__main__":
    app.run(main)
