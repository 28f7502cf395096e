"""What the parts of autoattack.py say together.

A part is what one side made of some images by one attack: a JSON file.
"""

import json
import os
import statistics

import numpy as np
from autoattack_sides import COMPONENTS, ORIGINAL, OURS, SHORTEST, WHOLE

from dd_keras.utils import files

LIBRARIES = {OURS: "dd_keras", ORIGINAL: "original, PyTorch"}
# What counts as equal: robust accuracies, in points, and mean lengths.
MOST_POINTS, MOST_OF_LENGTH = 0.5, 0.01


def part_path(folder, task, side, first, last):
    """The file of a part, images `first` to `last` - 1."""
    name = f"{task.model}-{task.attack}-{task.place}-{side}"
    return os.path.join(folder, f"{name}-{first:05}-{last:05}.json")


def check_path(folder, model):
    """The file that says how far the two networks' logits are apart."""
    return os.path.join(folder, f"{model}-logits.json")


def sizes_path(folder, task, side):
    """The file of the search for the best batch size."""
    name = f"{task.model}-{task.attack}-{task.place}-{side}"
    return os.path.join(folder, f"{name}-sizes.json")


def read(path):
    """What a JSON file holds; None if it is not there."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(part, path):
    """Writes a part atomically."""
    files.write_text(json.dumps(part) + "\n", path)


def as_text(flags):
    """Flags as a string of 0 and 1."""
    return "".join("1" if flag else "0" for flag in flags)


def summary(folder, tasks, sides, chunks):
    """All that is there.

    Args:
        folder: of the parts.
        tasks: list of `Task`.
        sides: names of the sides that are wanted.
        chunks: list of (first, last), the images of each part.

    Returns:
        (rows, comparisons, agreement, missing): dict of name to figures of
        one side; dict of task to what both give; the extremes of these; list
        of names of what is not there.
    """
    rows, comparisons, missing = {}, {}, []
    for task in tasks:
        found = {}
        for side in sides:
            parts = [
                read(part_path(folder, task, side, *chunk)) for chunk in chunks
            ]
            there = [part for part in parts if part is not None]
            if len(there) < len(parts):
                missing.append(
                    f"{task.title}: {LIBRARIES[side]} ({len(there)} of "
                    f"{len(parts)} parts)"
                )
            else:
                found[side] = there
        for side, parts in found.items():
            row = _row(task, side, parts)
            if OURS in found:
                row["ratio"] = _seconds(parts) / _seconds(found[OURS])
            rows[f"{task.title}: {LIBRARIES[side]}"] = row
        if len(found) == 2:
            comparisons[task.title] = _comparison(task, **found)
    return rows, comparisons, _agreement(comparisons), missing


def _row(task, side, parts):
    """The figures of one side."""
    images = sum(len(part["right"]) for part in parts)
    right, robust = _flags(parts, "right"), _flags(parts, "robust")
    lengths = _lengths(parts)
    row = {
        "model": task.model,
        "attack": task.attack,
        "norm": "l_inf" if task.norm > 2 else "l_2",
        "eps": task.eps,
        "library": LIBRARIES[side],
        "images": images,
        "accuracy": float(np.mean(right)),
        "s_per_image": _seconds(parts) / images,
        "cpu_s_per_image": _seconds(parts, "cpu_seconds") / images,
        "batch_size": parts[0]["batch_size"],
        "threads": parts[0]["threads"],
        "load": float(np.mean([part["load"] for part in parts])),
        "longest": float(np.max(lengths)),
        "most_out_of_bounds": max(part["out_of_bounds"] for part in parts),
    }
    if task.place == SHORTEST:
        row["not_fooled"] = int(np.sum(robust))
        row["l2"] = float(np.mean(lengths[right & ~robust]))
    else:
        row["robust_accuracy"] = float(np.mean(robust))
    if parts[0]["trace_seconds"] is not None:
        row["trace_s"] = parts[0]["trace_seconds"]
    if all(part["robust_there"] is not None for part in parts):
        # Images that fool the one network by a hair, and not the other.
        there = _flags(parts, "robust_there")
        row["fools_only_its_own_network"] = int(np.sum(~robust & there))
    if "iterations" in parts[0]:
        row["mean_iterations"] = float(
            np.average(
                [part["iterations"] for part in parts],
                weights=[len(part["right"]) for part in parts],
            )
        )
    if task.attack == WHOLE and "found_by" in parts[0]:
        row["found_by"] = {
            name: sum(part["found_by"][name] for part in parts)
            for name in COMPONENTS
        }
    told = sorted({line for part in parts for line in part["warnings"]})
    if told:
        row["warnings"] = told[:10]
    return row


def _comparison(task, ours, original):
    """What both sides give, beside each other."""
    right = _flags(ours, "right")
    assert np.array_equal(right, _flags(original, "right")), task
    robust, theirs = _flags(ours, "robust"), _flags(original, "robust")
    compared = {
        "only_ours_fools": np.flatnonzero(theirs & ~robust).tolist(),
        "only_the_original_fools": np.flatnonzero(robust & ~theirs).tolist(),
    }
    if task.place == SHORTEST:
        both = right & ~robust & ~theirs
        lengths, of_theirs = _lengths(ours)[both], _lengths(original)[both]
        ratio = float(np.mean(lengths) / np.mean(of_theirs))
        compared |= {
            "images": int(np.sum(both)),
            "l2": [float(np.mean(lengths)), float(np.mean(of_theirs))],
            "l2_ratio": ratio,
            "ours_shorter_by_1_percent": int(
                np.sum(lengths < of_theirs * (1 - MOST_OF_LENGTH))
            ),
            "ours_longer_by_1_percent": int(
                np.sum(lengths > of_theirs * (1 + MOST_OF_LENGTH))
            ),
            "equal": abs(ratio - 1) <= MOST_OF_LENGTH,
            "weaker": ratio > 1 + MOST_OF_LENGTH,
        }
    else:
        points = 100 * float(np.mean(robust) - np.mean(theirs))
        compared |= {
            "robust_accuracy": [float(np.mean(robust)), float(np.mean(theirs))],
            "difference_in_points": points,
            "equal": abs(points) <= MOST_POINTS + 1e-9,
            "weaker": points > MOST_POINTS + 1e-9,
        }
    pairs = list(zip(ours, original, strict=True))
    for name, key in (("speedup", "seconds"), ("cpu_speedup", "cpu_seconds")):
        compared[name] = _seconds(original, key) / _seconds(ours, key)
        compared[f"{name}_by_part"] = [b[key] / a[key] for a, b in pairs]
    return compared


def _agreement(comparisons):
    """The extremes of all comparisons."""
    found = {
        "compared": len(comparisons),
        "not_equal": [n for n, one in comparisons.items() if not one["equal"]],
        "weaker": [n for n, one in comparisons.items() if one["weaker"]],
    }
    for key in (
        "difference_in_points",
        "l2_ratio",
        "speedup",
        "cpu_speedup",
    ):
        values = [
            compared[key]
            for compared in comparisons.values()
            if key in compared
        ]
        if values:
            found[key] = {
                "least": min(values),
                "median": statistics.median(values),
                "most": max(values),
            }
    return found


def _seconds(parts, key="seconds"):
    return sum(part[key] for part in parts)


def _flags(parts, key):
    """Flags of all images: (N,) bool."""
    return np.array([flag == "1" for part in parts for flag in part[key]])


def _lengths(parts):
    """Lengths of all perturbations: (N,)."""
    return np.array([length for part in parts for length in part["lengths"]])
