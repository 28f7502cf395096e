"""One report as a page: its figures and cards, and the template around them."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dd_keras.evaluation.html_report import content
from dd_keras.evaluation.html_report.images import (
    AttackedImages,
    data_uris,
    shown_perturbation,
)
from dd_keras.evaluation.metrics import Metric
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.utils import files, text

_FIGURE_WIDTH = 4.6  # inches
_SMALL = 64  # pixels a side, up to which images are shown pixel by pixel
UNIT = "units of the inputs"


class Curve(NamedTuple):
    """The numbers of a curve that is drawn."""

    name: str
    points: list[tuple[float, float, float, float]]  # eps, accuracy, low, high


class Figure(NamedTuple):
    """A figure, and what is drawn in it."""

    title: str
    svg: Any
    curves: list[Curve]
    wide: bool = False


class Card(NamedTuple):
    """A sample, before and after the attack.

    `images`: data URIs of the clean image, the perturbation and the
    adversarial image; empty without pictures, and so are the probabilities.
    """

    sample: int
    label: str
    predicted: str
    reached: str
    distance: str
    images: list[str]
    factor: float
    clean_probability: float
    adversarial_probability: float


def require_libraries() -> None:
    """Makes sure that Jinja2 and matplotlib can be imported.

    Raises:
        ImportError: if not; it says what to install.
    """
    environment()
    from dd_keras import plots  # noqa: F401


def write(
    report: RobustnessReport,
    path: str | os.PathLike,
    *,
    title: str = "Robustness report",
    images: AttackedImages | None = None,
    class_names: Sequence[str] | None = None,
    unit: str = UNIT,
    provenance: Mapping | None = None,
    about: Mapping | None = None,
    note: str = "",
) -> None:
    """Writes a report as a page; see `RobustnessReport.to_html`."""
    check_class_names(report, class_names)
    if images is not None and np.max(images.index, initial=-1) >= len(report):
        raise ValueError(
            f"images: expected samples of the report, below {len(report)}; "
            f"received {np.max(images.index)}."
        )
    names = Names(class_names)
    headline, notes = content.verdict(report, unit)
    pictures, shrink = _pictures(images)
    metric = content.distance_metric(report)

    def cards(samples):
        return [
            _card(report, images, pictures, names, metric, int(sample))
            for sample in samples
        ]

    save(
        path,
        "report.html.jinja",
        title=title,
        headline=headline,
        notes=notes,
        samples=len(report),
        shard=report.shard,
        misclassified=report.misclassified,
        groups=content.table(report),
        figures=figures(report, unit),
        distances=histogram({"this classifier": report}, names.given, metric),
        classes=content.by_class(report),
        names=names,
        most_classes=content.MOST_CLASSES,
        metric=metric,
        norm=""
        if metric is None
        else content.order_of(content.norm_of(metric)),
        unit=unit,
        confusion=content.confusion(report),
        fragile=cards(content.fragile(report)),
        mistakes=cards(content.misclassified(report)),
        errors=int(np.sum(report.labels != report.predictions)),
        images=images,
        shrink=shrink,
        pixelated=images is not None and max(images.clean.shape[1:3]) <= _SMALL,
        warnings=list(report.warnings),
        settings=_settings(report),
        provenance=list(content.entries(provenance or {})),
        about=list(content.entries(about or {})),
        note=note,
    )


class Names:
    """What classes are called."""

    def __init__(self, given: Sequence[str] | None):
        # Printable: what is no text would break the page, or the figure.
        self.given = None if given is None else list(map(text.printable, given))

    def __call__(self, label: int) -> str:
        """The name of a class; its number where there is none."""
        return str(label) if self.given is None else self.given[label]


def check_class_names(
    report: RobustnessReport, class_names: Sequence[str] | None
) -> None:
    """Makes sure that each class of a report has a name.

    Raises:
        ValueError: if not.
    """
    most = 1 + max(np.max(report.labels), np.max(report.predictions))
    if class_names is not None and (
        isinstance(class_names, str) or len(class_names) < most
    ):
        raise ValueError(
            f"class_names: expected a sequence of at least {most} names, one "
            f"for each class; received {class_names!r:.200}."
        )


def _pictures(images):
    """Of each image three data URIs and the factor; and n, as `data_uris`."""
    if images is None or not len(images.index):
        return [], 1
    rows, factors = [], []
    for clean, change in zip(images.clean, images.perturbation, strict=True):
        amplified, factor = shown_perturbation(change)
        rows += [clean, amplified, clean + change]
        factors.append(factor)
    uris, shrink = data_uris(rows)
    triples = [uris[i : i + 3] for i in range(0, len(uris), 3)]
    return list(zip(triples, factors, strict=True)), shrink


def _card(report, images, pictures, names, metric, sample):
    """The card of one sample."""
    predicted = int(report.predictions[sample])
    reached = -1
    if metric is not None:
        kept = report.values.get(metric.name + content.REACHED)
        reached = -1 if kept is None else int(kept[sample])
    length = math.nan
    if metric is not None:
        length = float(report.values[metric.distance_name][sample])
    shown, factor, before, after = [], 1.0, math.nan, math.nan
    place = None if images is None else images.place_of(sample)
    if place is not None:
        shown, factor = pictures[place]
        shown = shown if images.attack else shown[:1]
        before = float(images.probabilities[place][predicted])
        if images.attack:
            length = float(images.distance[place])
            scores = images.adversarial_probabilities[place]
            reached = int(np.argmax(scores))
            after = float(scores[reached])
    return Card(
        sample,
        names(int(report.labels[sample])),
        names(predicted),
        names(reached) if reached >= 0 else "",
        f"{length:.4g}" if math.isfinite(length) else "",
        shown,
        factor,
        before,
        after,
    )


def figures(report: RobustnessReport, unit: str) -> list[Figure]:
    """Accuracy against eps, a figure for each norm of the report."""
    return [
        curves_figure(
            f"Accuracy under attacks in {content.order_of(norm)}",
            f"accuracy{i}",
            series,
            norm,
            unit,
        )
        for i, (norm, series) in enumerate(content.curves(report).items())
    ]


def curves_figure(
    title: str,
    name: str,
    series: Mapping[str, Mapping],
    norm: float,
    unit: str,
) -> Figure:
    """A figure of accuracies against eps, with its numbers."""
    from dd_keras import plots

    drawn = {in_figure(key): curve for key, curve in series.items()}
    svg = plots.inline_svg(
        lambda path: plots.robust_accuracy_curves(
            drawn, path, in_figure(unit), norm, _FIGURE_WIDTH
        ),
        name,
        title,
    )
    keys = ("eps", "accuracy", "low", "high")
    return Figure(
        title,
        _safe(svg),
        [
            Curve(
                key,
                list(zip(*(curve[k].tolist() for k in keys), strict=True)),
            )
            for key, curve in series.items()
        ],
    )


def in_figure(name: object) -> str:
    """A name for a figure, where dollar signs would make a formula of it."""
    name = text.printable(name)
    # Short, so that no line break comes between a backslash and its dollar.
    return name[:20].replace("$", r"\$") if "$" in name else name


def histogram(
    reports: Mapping[str, RobustnessReport],
    class_names: Sequence[str] | None,
    metric: Metric | None,
) -> Figure | None:
    """How the distances of reports spread, by class; None without any."""
    if metric is None:
        return None
    from dd_keras import plots

    values = {
        in_figure(name): report.values[metric.name]
        for name, report in reports.items()
    }
    labels = next(iter(reports.values())).labels
    finite = np.logical_and.reduce(list(map(np.isfinite, values.values())))
    if not finite.any():
        return None
    title = f"{metric.name} of each sample, by class"
    svg = plots.inline_svg(
        lambda path: plots.rho_histogram(
            {name: rho[finite] for name, rho in values.items()},
            labels[finite],
            path,
            class_names,
            content.norm_of(metric),
        ),
        "distances",
        title,
    )
    return Figure(title, _safe(svg), [], wide=True)


def _settings(report):
    """The attacks of a report with their settings: pairs of name and text."""
    return [
        (
            metric.name
            if len(metric.all_attacks) < 2
            else f"{metric.name}, {key}",
            repr(attack),
        )
        for metric in report.metrics
        for key, attack in metric.all_attacks.items()
    ]


def _safe(svg):
    """SVG that the template takes as it is: its texts are escaped already."""
    from markupsafe import Markup

    return Markup(svg)


def environment() -> Any:
    """Jinja2 as pages need it: everything escaped, nothing missing.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import jinja2
        import markupsafe
    except ModuleNotFoundError as error:
        raise ImportError(
            "HTML reports are made with Jinja2: pip install 'dd_keras[apps]' "
            f"({error})"
        ) from error

    def printable(value):
        is_text = isinstance(value, str)
        if is_text and not isinstance(value, markupsafe.Markup):
            return text.printable(value)
        return value

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(
            os.path.join(os.path.dirname(__file__), "templates")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    made.filters["number"] = lambda value: f"{value:.6g}"
    return made


def save(path: str | os.PathLike, template: str, **values: object) -> None:
    """Writes the page of a template, atomically."""
    page = environment().get_template(template).render(**values)
    files.write_text(page, path)
