"""The frontier of all defences on MNIST: table, figure, and who is ahead."""

import numpy as np

from paper import frontier as points
from paper.steps import NETWORKS, Plan
from paper.tables import loaded

from dd_keras.utils import files, tables


def frontier(plan: Plan) -> dict:
    """Every point of every network; draws a figure of each."""
    numbers = {}
    for network in plan.networks:
        found = {
            name: loaded(plan.result(_step(network, name)))
            for name in plan.frontier
        }
        series = {
            title: results
            for one in found.values()
            for title, results in one["series"].items()
        }
        reference = next(iter(found.values()))["reference"]
        drawn = points.curves(series)
        if drawn:
            path = plan.path(f"frontier_{network}.png")
            with files.atomic_write(path) as part:
                points.draw(drawn, reference, part)
        numbers[network] = {
            "reference": _kept(reference),
            "series": {
                title: [_kept(result) for result in results]
                for title, results in series.items()
            },
            "advantage": _advantage(plan, network, found),
        }
    return numbers


def frontier_text(numbers: dict) -> str:
    """Every point, and the comparison at equal accuracy, in Markdown."""
    parts = []
    for network, found in numbers.items():
        rows = [
            [
                one["other"],
                f"{100 * one['accuracy']:.2f} %",
                one["ours"] or "none as accurate",
                "{:.3f} ({:.3f} to {:.3f})".format(*one["ratio"])
                if one["ratio"]
                else "-",
            ]
            for one in found["advantage"]
        ]
        header = ["another defence", "accuracy", "Deep Defense", "l_2 over its"]
        parts += [
            f"{NETWORKS[network]}:",
            points.table(found["series"], found["reference"]),
            "At no less accuracy (but for "
            f"{100 * points.TOLERANCE:g} points), the largest mean best-known "
            "distance of Deep Defense over that of each other defence, with "
            "paired 95 % intervals:",
            tables.render(header, rows, "markdown"),
        ]
    return "\n\n".join(parts)


def _step(network, name):
    return f"{network}_frontier_{name}"


def _kept(result):
    """What a reader needs of a point."""
    kept = ("label", "numbers", "images", "training_seconds", "settings")
    return {key: result[key] for key in kept if key in result}


def _advantage(plan, network, found):
    """`points.advantage` of all forms of Deep Defense over all others."""
    ours, others, distances = {}, {}, {}
    for name, one in found.items():
        group = ours if name in points.OURS else others
        folder = plan.path(_step(network, name), "runs")
        for title, results in one["series"].items():
            for result in results:
                if result["numbers"] is None:  # it diverged
                    continue
                point = " ".join(filter(None, (title, result["label"])))
                group[point] = result
                with np.load(f"{folder}/{result['run']}.npz") as arrays:
                    distances[point] = arrays["l2_best"]
    return points.advantage(ours, others, distances)
