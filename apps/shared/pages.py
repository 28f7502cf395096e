"""Pages of HTML: what --html adds to a program's results."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from shared.inputs import Classifier
from shared.provenance import provenance

from dd_keras import datasets
from dd_keras.evaluation import (
    AttackedImages,
    Metric,
    RobustnessReport,
    compare_to_html,
    html_report,
    metrics,
    streams,
)

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the calling program's

_BATCH = 500
# Of a pixel, by which preprocessing, turned back, may miss.
_NEAR = 1.0


def define_flag(what: str = "report.html") -> None:
    """Declares --html.

    Args:
        what: the files that it writes.
    """
    flags.DEFINE_bool(
        "html",
        False,
        f"Also write {what}: pages to open and share, each one file with "
        "verdict, figures, the most fragile images and how it was made.",
    )


def check() -> None:
    """Makes sure, before anything that takes long, that --html can be done.

    Raises:
        ImportError: if a library is missing.
    """
    if FLAGS.html:
        html_report.require_libraries()


def kept(chosen: Sequence[str | Metric], bounds: Any = None) -> list:
    """What to measure; with --html, metrics keep the classes attacks reach.

    Args:
        chosen: metrics, or their names.
        bounds: of the inputs, which some names need.
    """
    if not FLAGS.html:
        return list(chosen)
    return [metrics.get(one, bounds).keeping_classes() for one in chosen]


def write(
    report: RobustnessReport,
    path: str,
    model: str,
    classifier: Classifier | None = None,
    data: datasets.Data | None = None,
    images: Any = None,
    batch_size: int = _BATCH,
    **more: Any,
) -> str:
    """Writes the page of a report.

    Args:
        report: what was found.
        path: file to write.
        model: what was evaluated, as the user named it.
        classifier: `Classifier`; None: the page has no pictures.
        data: `datasets.Data`, behind the classifier's preprocessing.
        images: unbatched `tf.data.Dataset` of (image, label), those of the
            report or, of a shard, of the whole.
        batch_size: of the evaluation, which shards are parts of.
        **more: further entries of how it was made.

    Returns:
        The path.
    """
    shown, note = None, ""
    if classifier is None:
        note = "The images are not at hand here, so there are no pictures."
    else:
        shown, note = _images(report, classifier, data, images, batch_size)
    report.to_html(
        path,
        title=f"Robustness of {os.path.basename(os.path.normpath(model))}",
        images=shown,
        note=note,
        provenance={"model": model, **more, **provenance()},
        **_of_data(data),
    )
    return path


def write_comparison(
    reports: Mapping[str, Sequence[RobustnessReport]],
    path: str,
    data: datasets.Data,
    **more: Any,
) -> str:
    """Writes a page of several classifiers side by side.

    Args:
        reports: by name of the model, the reports of each, see
            `compare_to_html`.
        path: file to write.
        data: `datasets.Data`.
        **more: further entries of how it was made.

    Returns:
        The path.
    """
    compare_to_html(
        reports, path, provenance={**more, **provenance()}, **_of_data(data)
    )
    return path


def _of_data(data):
    """What a page is told of the data: names of classes, and the unit."""
    if data is None:
        return {}
    low, high = data.bounds
    in_pixels = np.allclose(high - low, 255, rtol=1e-5)
    unit = "pixels of 0 to 255" if in_pixels else html_report.UNIT
    return {"class_names": data.class_names, "unit": unit}


def _images(report, classifier, data, images, batch_size):
    """The images that a page shows, attacked; None, and why, without any."""
    wanted = AttackedImages.wanted(report)
    if not len(wanted):
        return None, ""
    channels = data.image_shape[-1]
    if channels not in (1, 3):
        return None, f"Images of {channels} channels cannot be shown."
    pixels = _pixels(images, wanted, batch_size, report.shard)
    x = pixels
    if data.preprocessing is not None:
        x = np.asarray(data.preprocessing(pixels))
    low, high = data.bounds
    if x.shape != pixels.shape or not np.all(high > low):
        back = np.full(1, np.inf)
    else:
        back = 255 * (x - low) / (high - low) - pixels
    if np.max(np.abs(back)) > _NEAR:
        return None, (
            "The preprocessing does more than scale and shift each pixel, so "
            "that perturbations of its outputs cannot be shown as images."
        )
    return AttackedImages.of(
        report,
        classifier.model,
        x,
        (low, high),
        index=wanted,
        activation=classifier.activation,
    ), ""


def _pixels(images, wanted, batch_size, shard):
    """The images of these samples of a report: float32 (M, H, W, C)."""
    stream = streams.of(images.batch(batch_size))
    if shard is not None:
        stream = stream.shard(*shard)
    found, start = [], 0
    for batch, _ in stream.starting_at(0):
        end = start + len(batch)
        own = wanted[(wanted >= start) & (wanted < end)] - start
        if len(own):
            found.append(batch.numpy()[own])
        start = end
        if start > wanted[-1]:
            break
    return np.concatenate(found)
