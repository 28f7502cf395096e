"""AutoAttack, FAB and DDN by dd_keras and by their authors, side by side.

    pip install -e '.[benchmark]'
    python benchmarks/autoattack.py --data_dir=DIR

(and the package `autoattack` from its authors' repository, fra31/auto-attack).
Both attack the first MNIST test images, pixels in [0, 1], on the same networks
with the same weights: ours in Keras, theirs in PyTorch, after it was checked
that the logits agree. For each network and ball, the whole AutoAttack
("standard") and each of its attacks alone: the robust accuracies, and which
images only one side fools. Then the mean l_2 of DDN and of targeted FAB, whose
perturbations may have any length.

The sides take turns, part by part, each with the batch size that was best in a
short search before. Processor seconds stand beside the seconds: on a machine
that others use as well they are the fairer ones. PyTorch runs the network
eagerly, as its attacks do; tracing ours is timed apart (`trace_s`).

This takes hours on one core. What is done lies in --parts_dir: the same
command resumes it, and --report_only writes what there is.
"""

import gc
import itertools
import os
import time

import autoattack_report as report
import autoattack_sides as sides
import harness
import numpy as np
from absl import app, flags

from dd_keras import datasets

MODELS = (
    "mlp_reference",
    "mlp_deep_defense",
    "lenet_reference",
    "lenet_deep_defense",
)
SIDES = (sides.OURS, sides.ORIGINAL)
# How far rounding may take an image beyond the ball or the bounds.
SLACK = 1e-5

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_string(
    "models_dir", "savedmodels", "Where the networks are, mnist_*.keras."
)
flags.DEFINE_integer("images", 1000, "Test images.", lower_bound=1)
flags.DEFINE_integer(
    "part", 500, "Images of a part: the sides take turns.", lower_bound=1
)
for name, known, what in (
    ("models", MODELS, "Networks"),
    ("balls", tuple(sides.BALLS), "Balls, of attacks that have one"),
    ("attacks", sides.ATTACKS, "Attacks"),
    ("sides", SIDES, "Whose attacks"),
):
    flags.DEFINE_list(name, list(known), f"{what}, of {', '.join(known)}.")
    flags.register_validator(
        name,
        lambda given, known=known: bool(given) and set(given) <= set(known),
        f"expected some of {', '.join(known)}.",
    )
flags.DEFINE_multi_integer(
    "batch_size",
    [50, 100, 250, 500],
    "Batch sizes to choose from.",
    lower_bound=1,
)
flags.DEFINE_float(
    "search_share",
    0.02,
    "Share of an attack's steps with which batch sizes are tried.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "threads", None, "Threads. Default: cores it may run on.", lower_bound=1
)
flags.DEFINE_string(
    "parts_dir",
    "results/benchmarks/autoattack",
    "Where finished parts are kept.",
)
flags.DEFINE_bool("report_only", False, "Attack nothing.")
flags.DEFINE_string(
    "output", "results/benchmarks/autoattack.json", "Where the JSON goes."
)


def tasks():
    """All that is asked for: AutoAttack first, then the rest, by network."""
    found = []
    for chosen in ((sides.WHOLE,), (*sides.COMPONENTS, sides.DDN, sides.FAB)):
        for model, attack in itertools.product(MODELS, chosen):
            if model not in FLAGS.models or attack not in FLAGS.attacks:
                continue
            alone = attack in (sides.DDN, sides.FAB)
            places = [sides.SHORTEST] if alone else sides.BALLS
            found += [
                sides.Task(model, attack, place)
                for place in places
                if alone or place in FLAGS.balls
            ]
    return found


def chunks():
    """The images of each part: list of (first, last)."""
    return [
        (first, min(first + FLAGS.part, FLAGS.images))
        for first in range(0, FLAGS.images, FLAGS.part)
    ]


def is_missing(task, side):
    """Whether a side has not attacked all images."""
    return not all(
        os.path.exists(report.part_path(FLAGS.parts_dir, task, side, *chunk))
        for chunk in chunks()
    )


def timed(run):
    """(what it returns, seconds, seconds of the processor)."""
    started, cpu_started = time.perf_counter(), time.process_time()
    found = run()
    return (
        found,
        time.perf_counter() - started,
        time.process_time() - cpu_started,
    )


class Contest:
    """The sides on one network.

    Args:
        model: its name.
        images: (N, 28, 28, 1), pixels in [0, 1].
        labels: (N,).
    """

    def __init__(self, model, images, labels):
        network = harness.pixel_model(
            f"{FLAGS.models_dir}/mnist_{model}.keras",
            f"{FLAGS.models_dir}/mnist_preprocessing.keras",
        )
        self.images, self.labels = images, labels
        makers = {sides.OURS: sides.Ours, sides.ORIGINAL: sides.Original}
        self.sides = {name: makers[name](network) for name in FLAGS.sides}
        if sides.ORIGINAL in self.sides:
            import in_pytorch

            difference, largest = in_pytorch.checked_difference(
                network, self.sides[sides.ORIGINAL].module, images
            )
            print(f"{model}: logits differ by {difference:.2g}", flush=True)
            report.write(
                {"difference": difference, "largest_logit": largest},
                report.check_path(FLAGS.parts_dir, model),
            )

    def run(self, task):
        """Makes the parts of a task that are missing, in turns."""
        ready = {}
        for chunk in chunks():
            for name in self.sides:
                path = report.part_path(FLAGS.parts_dir, task, name, *chunk)
                if os.path.exists(path):
                    continue
                if name not in ready:
                    size = self._best_batch_size(task, name)
                    ready[name] = size, self._prepare(task, name)
                part = self._part(task, name, chunk, *ready[name])
                report.write(part, path)
                print(
                    f"{task.title}: {name}, images {chunk[0]} to {chunk[1]}: "
                    f"robust {part['robust'].count('1')}, "
                    f"{part['seconds']:.1f} s ({part['cpu_seconds']:.1f} s of "
                    f"the processor), {harness.resident_mib():.0f} MiB",
                    flush=True,
                )

    def _part(self, task, name, chunk, batch_size, trace_seconds):
        """What one side makes of some images."""
        side = self.sides[name]
        images, labels = (
            values[slice(*chunk)] for values in (self.images, self.labels)
        )
        (found, notes), seconds, cpu_seconds = timed(
            lambda: side.run(task, images, labels, batch_size)
        )
        change = (found - images).reshape(len(images), -1)
        length = np.linalg.norm(change, task.norm, axis=1)
        beyond = max(0.0, float(np.max(np.maximum(-found, found - 1))))
        counts = length <= (task.eps or np.inf) * (1 + SLACK)
        assert beyond <= SLACK, f"{task.title}: {beyond} out of bounds"
        there = {
            other: judge.decide(found) == labels
            for other, judge in self.sides.items()
        }
        others = [other for other in there if other != name]
        return {
            **task._asdict(),
            "side": name,
            "batch_size": batch_size,
            "threads": threads(),
            "load": os.getloadavg()[0],
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "trace_seconds": trace_seconds,
            "right": report.as_text(side.decide(images) == labels),
            "robust": report.as_text(there[name] | ~counts),
            # By the other side's network, of the same weights.
            "robust_there": report.as_text(there[others[0]] | ~counts)
            if others
            else None,
            "too_long": int(np.sum(~counts)),
            "out_of_bounds": beyond,
            "lengths": [round(float(value), 6) for value in length],
            **notes,
        }

    def _prepare(self, task, name):
        """Traces what is to be traced; returns the seconds this took."""
        return self.sides[name].prepare(task, self.images)

    def _best_batch_size(self, task, name):
        """The batch size that takes least time for a share of the steps."""
        first, last = chunks()[0]
        sizes = sorted({min(size, last - first) for size in FLAGS.batch_size})
        if len(sizes) == 1:
            return sizes[0]
        path = report.sizes_path(FLAGS.parts_dir, task, name)
        known = report.read(path)
        if known is None or sorted(map(int, known)) != sizes:
            share, side = FLAGS.search_share, self.sides[name]
            images, labels = self.images[first:last], self.labels[first:last]
            side.prepare(task, images, share)
            known = {}
            for size in sizes:
                _, seconds, cpu_seconds = timed(
                    lambda size=size: side.run(
                        task, images, labels, size, share
                    )
                )
                # With one thread the other processes' time is none of ours.
                known[size] = cpu_seconds if threads() == 1 else seconds
            report.write(known, path)
            print(f"{task.title}: {name}, batch sizes {known}", flush=True)
        return int(min(known, key=known.get))


def threads():
    """How many threads each side has."""
    return FLAGS.threads or len(os.sched_getaffinity(0))


def attack_all(todo):
    """Makes all parts that are missing."""
    data = datasets.load("mnist", FLAGS.data_dir)
    batch = data.test.take(FLAGS.images).batch(FLAGS.images)
    images, labels = (values.numpy() for values in next(iter(batch)))
    images = images.astype(np.float32) / 255
    labels = labels.astype(np.int64)
    for model, group in itertools.groupby(todo, key=lambda task: task.model):
        missing = [
            task
            for task in group
            if any(is_missing(task, side) for side in FLAGS.sides)
        ]
        if missing:
            contest = Contest(model, images, labels)
            for task in missing:
                contest.run(task)
            del contest
            gc.collect()


def main(argv):
    """Attacks what is not attacked yet, and reports."""
    del argv
    todo = tasks()
    if not FLAGS.report_only:
        sides.keep_to_threads(threads())
        attack_all(todo)
    rows, comparisons, agreement, missing = report.summary(
        FLAGS.parts_dir, todo, FLAGS.sides, chunks()
    )
    if rows:
        harness.print_table(
            rows,
            {
                "robust_accuracy": "robust {:.4f}",
                "l2": "l_2 {:.4f}",
                "cpu_s_per_image": "{:.4f} s an image",
                "ratio": "{:.2f} x ours",
            },
        )
    for name in missing:
        print(f"Missing: {name}")
    differences = {
        model: report.read(report.check_path(FLAGS.parts_dir, model))
        for model in FLAGS.models
    }
    harness.save(
        FLAGS.output,
        "autoattack",
        rows,
        comparisons=comparisons,
        agreement=agreement,
        missing=missing,
        logits=differences,
        images=FLAGS.images,
        part=FLAGS.part,
        batch_sizes=FLAGS.batch_size,
        search_share=FLAGS.search_share,
    )


if __name__ == "__main__":
    app.run(main)
