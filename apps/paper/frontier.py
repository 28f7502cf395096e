"""The frontier of all defences: table, figure, and who is ahead."""

import types
from collections.abc import Mapping

import numpy as np

from paper import mnist, sweep_files, sweeps
from paper.steps import Plan
from paper.tables import NETWORKS, loaded

from dd_keras.evaluation.statistics import ratio_of_means
from dd_keras.utils import tables

# At equal accuracy: no more than so much less.
TOLERANCE = 0.0005


def frontier(plan: Plan, of: types.ModuleType = mnist) -> dict:
    """Every point of every network that has them; draws a figure of each."""
    numbers = {}
    for network in of.networks(plan):
        steps = {name: _step(network, name) for name in of.frontier(plan)}
        if not plan.steps.keys() >= set(steps.values()):
            continue
        found = {
            name: loaded(plan.result(step)) for name, step in steps.items()
        }
        series = {
            title: results
            for one in found.values()
            for title, results in one["series"].items()
        }
        reference = next(iter(found.values()))["reference"]
        sweep_files.draw(
            series, reference, plan.path(f"frontier_{network}.png")
        )
        numbers[network] = {
            "reference": sweep_files.kept(reference),
            "series": {
                title: [sweep_files.kept(result) for result in results]
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
            sweep_files.table(found["series"], found["reference"]),
            "At no less accuracy (but for "
            f"{100 * TOLERANCE:g} points), the largest mean best-known "
            "distance of Deep Defense over that of each other defence, with "
            "paired 95 % intervals:",
            tables.render(header, rows, "markdown"),
        ]
    return "\n\n".join(parts)


def advantage(
    ours: Mapping[str, Mapping],
    others: Mapping[str, Mapping],
    distances: Mapping[str, np.ndarray],
) -> list[dict]:
    """How much farther our boundaries are than others', at equal accuracy.

    Args:
        ours: dict of names of points to their results.
        others: the same of what they are compared with.
        distances: by name of the point, the best known distances of the same
            images, (N,).

    Returns:
        For each of the others a dict: `"other"`, its name; `"accuracy"`;
        `"ours"`, the name of our point with the largest mean distance among
        those that are as accurate (but for `TOLERANCE`), or None if there is
        none; and `"ratio"`, of the mean distances, with a paired interval.
    """
    found = []
    for name, result in others.items():
        accuracy = result["numbers"]["accuracy"][0]
        as_accurate = [
            one
            for one, mine in ours.items()
            if mine["numbers"]["accuracy"][0] >= accuracy - TOLERANCE
        ]
        best = max(
            as_accurate,
            key=lambda one: ours[one]["numbers"]["l2_best"][0],
            default=None,
        )
        ratio = None
        if best is not None:
            ratio = list(ratio_of_means(distances[best], distances[name])[:3])
        found.append(
            {"other": name, "accuracy": accuracy, "ours": best, "ratio": ratio}
        )
    return found


def _step(network, name):
    return f"{network}_frontier_{name}"


def _advantage(plan, network, found):
    """`advantage` of all forms of Deep Defense over all others."""
    ours, others, distances = {}, {}, {}
    for name, one in found.items():
        group = ours if name in sweeps.OF_DEEP_DEFENSE else others
        folder = plan.path(_step(network, name), "runs")
        for title, results in one["series"].items():
            for result in results:
                if result["numbers"] is None:  # it diverged
                    continue
                point = " ".join(filter(None, (title, result["label"])))
                group[point] = result
                with np.load(f"{folder}/{result['run']}.npz") as arrays:
                    distances[point] = arrays["l2_best"]
    return advantage(ours, others, distances)
