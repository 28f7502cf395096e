"""The paper's results, each table and figure by its name.

    python apps/reproduce.py --experiment=table1_mnist --data_dir=DATA
    python apps/reproduce.py --experiment=mnist --jobs=2
    python apps/reproduce.py --experiment=table1_mnist --smoke --jobs=2

Runs the commands of the other apps that an experiment is made of, each in a
folder of its own in --output_dir, and writes EXPERIMENT.json, with all its
numbers and what made them, and EXPERIMENT.md or its figures. What is there
already is not run again, and what was interrupted is resumed: experiments
share their trainings. --dry_run only names the commands. --smoke takes a minute
on two idle cores, and several on busy ones, on few of scikit-learn's digits and
with one seed: it shows that all works, no more. Its default directory is
another. "mnist" and "cifar10" are what the paper has of these, "all" is both.
On one core of a CPU "mnist" takes half a day, "cifar10" days. Apart from them
are frontier_mnist and frontier_cifar10, the accuracy of all defences against
their robustness: they take about as long.
"""

import concurrent.futures
import os
import shlex
import subprocess
import sys
import time

from absl import app, flags

from paper.experiments import EXPERIMENTS, GROUPS, named, plan
from paper.tables import loaded
from shared import cli
from shared.provenance import provenance, write_json

from dd_keras.utils import files

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "experiment",
    None,
    f"Which: of {', '.join([*EXPERIMENTS, *GROUPS])}, or all.",
    required=True,
)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_string(
    "output_dir",
    "runs/reproduce",
    "Where all results go; with --smoke, by default, in another beside it.",
)
flags.DEFINE_integer(
    "jobs",
    1,
    "Commands at a time. More than one write to logs/STEP.log, and share the "
    "processors.",
    lower_bound=1,
)
flags.DEFINE_bool("smoke", False, "A test run: few digits, one seed, seconds.")
flags.DEFINE_bool("dry_run", False, "Name the commands; run none.")
flags.register_validator(
    "experiment",
    lambda names: names and (set(names) <= {*EXPERIMENTS, *GROUPS, "all"}),
    message=f"--experiment must be of {', '.join([*EXPERIMENTS, *GROUPS])}, or "
    "all.",
)
flags.register_validator(
    "output_dir", bool, message="--output_dir must not be empty."
)


@cli.main
def main():
    """Reproduces, from flags to files."""
    started = time.time()
    if FLAGS.smoke and not FLAGS["output_dir"].present:
        FLAGS.output_dir += "_smoke"
    names = named(FLAGS.experiment)
    whole = plan(FLAGS.output_dir, FLAGS.data_dir, FLAGS.smoke)
    needed = {name: EXPERIMENTS[name].steps(whole) for name in names}
    steps = whole.needed([step for found in needed.values() for step in found])
    missing = [step for step in steps if not _is_done(whole, step)]
    print(f"{len(steps)} commands, {len(missing)} of them to run.")
    if FLAGS.dry_run:
        for step in missing:
            print(shlex.join(["python", *whole.command(step)]))
        return
    cli.own_directory(FLAGS.output_dir)
    _run(whole, missing)
    written = []
    for name in names:
        written += _present(name, whole, whole.needed(needed[name]))
    cli.print_written(written, started)


def _is_done(plan, step):
    """Whether a step has come to its end, by the very command.

    Raises:
        SystemExit: with a message, if another command made what is there.
    """
    path = plan.result(step.name)
    try:
        command = loaded(path)["command"]
    except FileNotFoundError:
        return False
    except (KeyError, TypeError, ValueError) as error:
        cli.fail(
            f"{path}: expected what a command wrote; it cannot be read: "
            f"{error}. Remove its folder, and it is made again."
        )
    wanted = _comparable(plan.command(step), step.name)
    if _comparable(shlex.split(command)[1:], step.name) != wanted:
        cli.fail(
            f"{path}: expected the result of "
            f"{shlex.join(['python', *plan.command(step)])!r}; it is of "
            f"{command!r}. Remove its folder, or choose another --output_dir."
        )
    return True


def _comparable(words, name):
    """A command without where its data, its scripts and its results are."""
    scripts = os.path.dirname(words[0])
    output_dirs = (
        word.removeprefix("--output_dir=").removesuffix(name)
        for word in words
        if word.startswith("--output_dir=")
    )
    output_dir = next(output_dirs, "")
    return [
        word.replace(output_dir, "").replace(os.path.join(scripts, ""), "", 1)
        for word in words
        if not word.startswith(("--data_dir=", "--output_dir="))
    ]


def _run(plan, missing):
    """Runs steps, --jobs at a time, each behind those that it comes after.

    Raises:
        SystemExit: with a message, if one fails; those that run meanwhile
            come to their end first.
    """
    waiting, running, failed = list(missing), {}, []
    with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
        while running or (waiting and not failed):
            unfinished = {step.name for step in [*waiting, *running.values()]}
            for step in list(waiting):
                ready = not unfinished & set(step.after)
                if ready and len(running) < FLAGS.jobs and not failed:
                    waiting.remove(step)
                    running[pool.submit(_run_one, plan, step)] = step
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                step = running.pop(future)
                if future.result():
                    failed.append(step)
    if failed:
        names = ", ".join(step.name for step in failed)
        cli.fail(f"{names} failed, see above. The same command resumes.")


def _run_one(plan, step):
    """Runs a step; returns its exit status."""
    command = plan.command(step)
    told = shlex.join(["python", *command])
    print(f"\n{step.name}: {told}", flush=True)
    arguments = [sys.executable, *command]
    if FLAGS.jobs == 1:
        return subprocess.run(arguments, check=False).returncode
    path = plan.path("logs", f"{step.name}.log")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    started = time.time()
    with files.open_to_append(path) as log:
        status = subprocess.run(
            arguments, check=False, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    took = f"{time.time() - started:.0f} s"
    end = f"exit status {status}, see {path}" if status else "done"
    print(f"{step.name}: {end}, after {took}.", flush=True)
    return status


def _present(name, plan, steps):
    """Writes an experiment; returns paths."""
    experiment = EXPERIMENTS[name]
    numbers = experiment.make(plan)
    written = [plan.path(f"{name}.json")]
    write_json(
        {
            "experiment": name,
            "smoke": FLAGS.smoke,
            "numbers": numbers,
            "made_by": {step.name: _provenance(plan, step) for step in steps},
            **provenance(),
        },
        written[0],
    )
    if experiment.text is not None:
        text = experiment.text(numbers)
        written.append(plan.path(f"{name}.md"))
        files.write_text(f"{text}\n", written[-1])
        print(f"\n{text}")
    return written


def _provenance(plan, step):
    """What made a step's numbers, and how long it took.

    Of a run that was interrupted, `total_seconds` are those of the last of
    its `starts`, `training_seconds` of all.
    """
    found = loaded(plan.result(step.name))
    told = (
        "command", "commit", "date", "machine", "versions",
        "starts", "total_seconds", "training_seconds",
    )  # fmt: skip
    return {key: found[key] for key in told if key in found}


if __name__ == "__main__":
    app.run(main)
