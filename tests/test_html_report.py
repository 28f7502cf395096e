"""Reports as pages: what they say, that they agree, and how they open."""

import html.parser
import json
import math
import re

import browser
import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

from dd_keras import attacks
from dd_keras.evaluation import (
    Accuracy,
    AccuracyUnderAttack,
    AttackedImages,
    BestDistance,
    Distance,
    EpsSweep,
    Metric,
    RobustnessReport,
    SmallestEps,
    compare_to_html,
    evaluate_robustness,
    html_report,
    metrics,
)
from dd_keras.evaluation.html_report import comparison, content, images
from dd_keras.evaluation.metrics.base import Explanation
from dd_keras.evaluation.statistics import Estimate, proportion

BOUNDS = (0, 1)
EPS = [0.05, 0.2, 0.1]
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "{{7*7}}{% raw %}",
    "$\\frac{1$ $$ \\$",
    "very " * 60 + "long",
    "W" * 200,
    "\x00\x1b[31m \u202e \udc80\n",
    "</style><!-- --><svg onload=alert(3)>",
    "&lt;b&gt; ]]> --!>",
    "猫 🐈",
)
needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None, reason=browser.MISSING
)


def made(samples=60, classes=10, seed=0, scale=1.0):
    """A report of every kind of number that a page draws, made up."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples).astype(np.int32)
    labels[:classes] = np.arange(classes)
    wrong = rng.random(samples) < 0.1
    predictions = np.where(wrong, (labels + 1) % classes, labels)
    lengths = scale * rng.gamma(9, 0.1, samples)
    fooled = rng.random(samples) < 0.4
    reached = (predictions + rng.integers(1, classes, samples)) % classes
    return RobustnessReport(
        (
            Accuracy(),
            Distance(attacks.DeepFool(), keep_classes=True),
            SmallestEps(),
            EpsSweep(EPS),
            AccuracyUnderAttack(attacks.AutoAttack(0.1, bounds=BOUNDS)),
        ),
        "predicted",
        {
            "labels": labels,
            "predictions": predictions.astype(np.int32),
            "zero_gradient": np.zeros(samples, bool),
            "tied": np.zeros(samples, bool),
            "rho2": (lengths / 4).astype(np.float32),
            "l2": lengths.astype(np.float32),
            "rho2_fooled": np.ones(samples, bool),
            "rho2_iterations": np.ones(samples, np.int32),
            "rho2_reached": reached.astype(np.int32),
            "fgsm_rho": (lengths / 9).astype(np.float32),
            "fgsm_eps": (lengths / 9).astype(np.float32),
            "fgsm_rho_fooled": np.ones(samples, bool),
            "fgsm_fooled": lengths[:, None] / 9 < np.array(EPS),
            "autoattack_fooled": fooled,
            "autoattack_weaker": fooled & (rng.random(samples) < 0.5),
            "autoattack_found_by": np.where(fooled, 0, -1).astype(np.int32),
        },
        ("pgd: made up, <b>& told</b>.",),
    )


def pictured(report, shape=(8, 8, 1), classes=10, seed=0):
    """Made-up images of the samples that the report's page shows."""
    rng = np.random.default_rng(seed)
    index = AttackedImages.wanted(report)
    many = len(index)
    clean = rng.uniform(0, 255, (many, *shape)).astype(np.float32)
    change = rng.normal(0, 8, (many, *shape)).astype(np.float32)
    before, after = rng.dirichlet(np.ones(classes), (2, many))
    lengths = report.values["l2"][index]
    return AttackedImages(
        index, clean, change, before, after, lengths, 2.0, "DeepFool"
    )


class Page(html.parser.HTMLParser):
    """A page's tags, texts and tables."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.tables, self.texts, self.open = [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID and not self.source_is_closed():
            self.open.append(tag)
        if tag == "table":
            self.tables.append((dict(attributes), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def source_is_closed(self):
        return self.get_starttag_text().endswith("/>")

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            separator = "\n" if self.open[-1] == "p" else ""
            self.tables[-1][1][-1][-1] += separator + data

    @property
    def text(self):
        """All that is read, in one line."""
        return " ".join(" ".join(self.texts).split())

    def table(self, **attributes):
        """The cells of all tables with these attributes."""
        return [
            rows
            for found, rows in self.tables
            if attributes.items() <= found.items()
        ]


def page_of(report, path, **options):
    report.to_html(path, **options)
    return Page(path)


@pytest.fixture
def report():
    return made()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.html"


@pytest.fixture
def drawn(monkeypatch):
    """All figures that are drawn meanwhile."""
    seen, savefig = [], Figure.savefig

    def save(figure, *args, **kwargs):
        seen.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return seen


# What is told.


def test_table_has_all_numbers_of_the_json(report, path):
    page = page_of(report, path)
    report.to_json(path.with_suffix(".json"))
    told = json.loads(path.with_suffix(".json").read_text())
    rows = [row for table in page.table() for row in table if row[0].split()]
    cells = {row[0].split()[0]: row[1:3] for row in rows}
    numbers = {k: v for k, v in told["summary"].items() if k != "samples"}
    assert set(numbers) <= set(cells)
    for name, value in numbers.items():
        ends = told["intervals"][name]
        share = report.estimates[name].is_proportion
        estimate = Estimate(value, *ends, share)
        assert cells[name] == [estimate.text(), estimate.interval_text()]


def test_each_number_is_explained_where_it_stands(report, path):
    page = page_of(report, path)
    tips = [a["data-tip"] for tag, a in page.tags if tag == "summary"
            and "data-tip" in a]  # fmt: skip
    assert len(tips) == len(report.estimates)
    assert all(len(tip) > 20 for tip in tips)
    assert "DeepFool" in page.text
    for tip in tips:
        assert " ".join(tip.split()) in page.text  # also without hovering


@pytest.mark.parametrize(
    "name",
    ["accuracy", "rho2", "rhoinf", "fgsm_rho", "paper_fgsm_rho", "fgsm",
     "paper_fgsm", "pgd", "autoattack", "adaptive", "cw", "rho2_best",
     "rhoinf_best"],
)  # fmt: skip
def test_metrics_explain_each_of_their_numbers(name):
    metric = metrics.get(name, BOUNDS)
    texts = metric.explanations()
    arrays = {
        "labels": np.arange(3),
        **{
            f"{metric.name}{end}": np.ones(3, kind)
            for end, kind in (
                ("", float), ("_fooled", bool), ("_weaker", bool),
                ("_found_by", int),
            )
        },
        metric.distance_name or "none": np.ones(3),
        **{
            f"adaptive_{key}": np.ones(3, bool)
            for key in (
                "pgd_fooled", "restarts_fooled", "unbounded_fooled",
                "saturated",
            )
        },
    }  # fmt: skip
    if isinstance(metric, EpsSweep):
        arrays[f"{metric.name}_fooled"] = np.ones((3, len(metric.eps)), bool)
    if name == "pgd":
        del arrays["pgd_found_by"]
    samples = metrics.Samples(arrays, np.ones(3, bool), "predicted")
    assert set(texts) == set(metric.estimates(samples))
    for explanation in texts.values():
        assert explanation.text.endswith(".")
        assert explanation.higher_is_better in (True, None)


def test_a_metric_of_ones_own_is_told_by_its_docstring(report, path):
    class Mine(Metric):
        """Counts <i>what</i> I like."""

        name = "mine"

        def estimates(self, samples):
            return {"mine": proportion(samples.correct)}

    own = RobustnessReport((Mine(),), "predicted", report.values)
    told = content.explanation(Mine(), {}, "mine")
    assert told == Explanation("A number of Mine. Counts <i>what</i> I like.")
    assert "Counts <i>what</i> I like." in page_of(own, path).text


def test_verdict_names_the_strongest_attack_with_its_interval(report):
    sentence, notes = content.verdict(report, "pixels")
    value, low, high = (100 * v for v in report.estimates["accuracy"][:3])
    assert sentence.startswith(
        f"{value:.1f} % ({low:.1f} to {high:.1f} %) of 60 samples are"
    )
    value, low, high = (
        100 * v for v in report.estimates["autoattack_accuracy"][:3]
    )
    assert (
        f"under AutoAttack, the strongest attack used, {value:.1f} % ({low:.1f}"
        f" to {high:.1f} %) at eps 0.1 (l_inf, in pixels)." in sentence
    )
    assert report.estimates["rho2"].text() in notes[1]
    assert "an upper bound: DeepFool" in notes[1]
    assert not any("AutoAttack" in note for note in notes)


def test_verdict_without_an_attack_of_a_size(report):
    few = RobustnessReport(report.metrics[:2], "predicted", report.values)
    sentence, notes = content.verdict(few, "pixels")
    correct = report.labels == report.predictions
    half = np.sort(report.values["l2"][correct])
    half = half[math.ceil(len(half) / 2) - 1]
    assert f"l_2 length {half:#.4g} (" in sentence
    assert "AutoAttack, the usual standard, is not among" in notes[-1]


def test_verdict_prefers_autoattack_to_what_is_weaker(report):
    values = report.values | {
        f"pgd_{which}": np.ones(60, bool) for which in ("fooled", "weaker")
    }
    pgd = AccuracyUnderAttack(attacks.PGD(0.1, bounds=BOUNDS))
    both = RobustnessReport((pgd, *report.metrics), "predicted", values)
    assert "under AutoAttack" in content.verdict(both, "")[0]


def test_curves_are_those_of_the_report(report, path, drawn):
    page = page_of(report, path)
    found = content.curves(report)
    assert list(found) == [math.inf, 2]
    assert set(found[math.inf]) == {"FGSM, the paper's", "AutoAttack"}
    summary, intervals = report.summary(), report.intervals()
    expected = {
        "FGSM, the paper's": [
            (eps, summary[f"fgsm_accuracy@{eps}"],
             *intervals[f"fgsm_accuracy@{eps}"])
            for eps in sorted(EPS)
        ],
        "AutoAttack": [
            (0.1, summary["autoattack_accuracy"],
             *intervals["autoattack_accuracy"])
        ],
        "DeepFool": list(zip(*report.robust_accuracy(distance="l2").values(),
                             strict=True)),
    }  # fmt: skip
    for name, points in expected.items():
        # As numbers in the page, and as the lines of its figures.
        (rows,) = page.table(**{"data-curve": name})
        shown = [[float(cell) for cell in row] for row in rows[1:]]
        np.testing.assert_allclose(shown, points, rtol=1e-5)
        (line,) = (
            line
            for figure in drawn
            for axes in figure.axes
            for line in axes.lines
            if line.get_label() == name
        )
        columns = np.transpose(points)
        np.testing.assert_allclose(line.get_xdata(), columns[0])
        np.testing.assert_allclose(line.get_ydata(), 100 * columns[1])


def test_histograms_are_of_the_distances(report, path, drawn):
    page_of(report, path)
    panels = [axes for figure in drawn for axes in figure.axes if axes.patches]
    assert len(panels) == 10
    for k, axes in enumerate(panels):
        own = report.values["rho2"][report.labels == k]
        (steps,) = axes.patches
        shares, edges, _ = steps.get_data()
        counts = np.histogram(own, edges)[0]
        np.testing.assert_allclose(shares, 100 * counts / len(own))
        np.testing.assert_allclose(
            axes.lines[0].get_xdata()[0], own.mean(), rtol=1e-5
        )


def test_confusion_counts_where_attacks_lead(report, path):
    page = page_of(report, path)
    (rows,) = page.table(**{"class": "heat"})
    shown = [
        [0 if cell == "·" else int(cell) for cell in row[1:]]
        for row in rows[1:]
    ]
    expected = np.zeros((10, 10), int)
    pairs = zip(report.predictions, report.values["rho2_reached"], strict=True)
    for start, end in pairs:
        expected[start, end] += 1
    np.testing.assert_array_equal(shown, expected)
    assert f"{expected.sum()} decisions that DeepFool changed" in page.text


def test_confusion_leaves_out_what_was_not_fooled(report):
    report.values["rho2_fooled"][:40] = False
    report.values["rho2_reached"][55:] = report.predictions[55:]
    assert content.confusion(report).total == 15
    assert content.confusion(report).counts.sum() == 15


def test_of_many_classes_the_most_frequent_pairs_are_told(path):
    many = made(400, 50)
    found = content.confusion(many)
    assert found.classes is None
    many.values["rho2_reached"][many.predictions == 7] = 31
    page = page_of(many, path)
    (rows,) = page.table(**{"class": "pairs"})
    assert len(rows) == 1 + content.MOST_PAIRS
    assert rows[1][:2] == ["7", "31"]
    assert int(rows[1][2]) == np.sum(many.predictions == 7)
    (rows,) = page.table(**{"class": "by-class"})
    assert len(rows) == 21
    means = [
        many.values["rho2"][many.labels == int(row[0])].mean()
        for row in rows[1:]
    ]
    assert means == sorted(means)


def test_fragile_and_misclassified_samples_are_ranked(report, path):
    page = page_of(report, path)
    lengths = report.values["l2"]
    correct = report.labels == report.predictions
    fragile = sorted(np.flatnonzero(correct), key=lambda i: lengths[i])[:20]
    mistakes = sorted(np.flatnonzero(~correct), key=lambda i: -lengths[i])
    shown = re.findall(r"<dt>sample</dt><dd>(\d+)</dd>", page.source)
    assert list(map(int, shown)) == [*fragile, *mistakes[:20]]
    assert set(AttackedImages.wanted(report)) == {*fragile, *mistakes[:20]}
    told = re.findall(r"<dt>distance, l_2</dt><dd>(.+?)</dd>", page.source)
    np.testing.assert_allclose(
        list(map(float, told)), lengths[[*fragile, *mistakes[:20]]], rtol=1e-3
    )
    assert "This page was made without pictures" in page.text


def test_cards_have_images_classes_and_probabilities(report, path):
    shown = pictured(report)
    names = [f"class number {k}" for k in range(10)]
    page = page_of(report, path, images=shown, class_names=names)
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(sources) == 3 * (
        20 + min(20, int(np.sum(report.labels != report.predictions)))
    )
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    first = int(content.fragile(report)[0])
    card = page.source.split('<article class="card">')[1]
    place = shown.place_of(first)
    before = shown.probabilities[place][report.predictions[first]]
    after = shown.adversarial_probabilities[place].max()
    assert f"{100 * before:.1f} %" in card
    assert f"{100 * after:.1f} %" in card
    reached = int(shown.adversarial_probabilities[place].argmax())
    assert f'title="class number {reached}"' in card
    factor = images.shown_perturbation(shown.perturbation[place])[1]
    assert f"× {factor:.3g}" in card


# How it is made from what a user has.


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((5, 4, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )


@pytest.fixture(scope="module")
def inputs():
    """Inputs of -1 to 1, and labels."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (30, 5, 4, 3)).astype(np.float32)
    return x, rng.integers(4, size=30)


def evaluated(network, inputs, *chosen):
    return evaluate_robustness(
        network, *inputs, metrics=chosen, bounds=(-1, 1), verbose=0
    )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "metric",
    [
        Distance(attacks.DeepFool()),
        SmallestEps(),
        BestDistance(
            {"far": attacks.DeepFool(overshoot=1), "near": attacks.DeepFool()}
        ),
    ],
    ids=lambda metric: metric.name,
)
def test_images_are_attacked_as_the_report_was(network, inputs, metric, keep):
    if keep:
        metric = metric.keeping_perturbations()
    report = evaluated(network, inputs, metric.keeping_classes())
    shown = AttackedImages.of(report, network, inputs[0], (-1, 1))
    index = shown.index
    np.testing.assert_array_equal(index, AttackedImages.wanted(report))
    np.testing.assert_allclose(
        shown.clean, 127.5 * (inputs[0][index] + 1), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(
        shown.distance, report.values[metric.distance_name][index], rtol=1e-4
    )
    order = content.norm_of(metric)
    flat = shown.perturbation.reshape(len(index), -1)
    np.testing.assert_allclose(
        np.linalg.norm(flat, order, axis=1), 127.5 * shown.distance, rtol=1e-4
    )
    np.testing.assert_array_equal(
        shown.probabilities.argmax(-1), report.predictions[index]
    )
    if metric.name + "_reached" in report.values:
        np.testing.assert_array_equal(
            shown.adversarial_probabilities.argmax(-1),
            report.values[f"{metric.name}_reached"][index],
        )
    alone = AttackedImages.of(
        report, network, inputs[0][index], (-1, 1), index=index
    )
    np.testing.assert_allclose(
        alone.perturbation, shown.perturbation, atol=1e-3
    )


def test_classes_are_kept_by_every_metric_that_can(network, inputs):
    report = evaluated(
        network,
        inputs,
        *(
            metrics.get(name, (-1, 1)).keeping_classes()
            for name in ("accuracy", "rho2", "rhoinf_best", "pgd")
        ),
    )
    for name in ("rho2", "rhoinf_best", "pgd"):
        moved = report.values[f"{name}_reached"] != report.predictions
        np.testing.assert_array_equal(moved, report.values[f"{name}_fooled"])
        assert report.values[f"{name}_reached"].dtype == np.int32
    assert not any(
        name.endswith("_reached")
        for name in evaluated(network, inputs, "rho2").values
    )


def test_without_distances_images_are_not_attacked(network, inputs, path):
    report = evaluated(network, inputs, "accuracy")
    shown = AttackedImages.of(report, network, inputs[0], (-1, 1))
    assert shown.attack == ""
    assert not shown.perturbation.any()
    page = page_of(report, path, images=shown)
    images_shown = [a for tag, a in page.tags if tag == "img"]
    assert len(images_shown) == len(shown.index)
    assert "no attack was run" in page.text
    assert "samples cannot be ranked" in page.text


def test_only_accuracy(report, path):
    few = RobustnessReport((Accuracy(),), "predicted", report.values)
    text = page_of(few, path).text
    assert "no attack was run" in text
    assert "No distances were measured" in text
    assert "Accuracy against eps" not in text


def test_the_report_of_an_old_file(path):
    """Without costs, and without the classes that were reached."""
    report = made()
    del report.values["rho2_reached"]
    report.to_json(path.with_suffix(".json"))
    told = json.loads(path.with_suffix(".json").read_text())
    del told["costs"]
    for metric in told["metrics"]:
        metric["config"].pop("keep_classes", None)
    path.with_suffix(".json").write_text(json.dumps(told))
    old = RobustnessReport.from_json(path.with_suffix(".json"))
    text = page_of(old, path).text
    assert "was not kept" in text
    assert "passes a sample" not in text


@pytest.mark.parametrize("policy", ["zero", "exclude"])
def test_all_samples_misclassified_or_none_fooled(policy, path):
    report = made()
    values = report.values | {
        "predictions": (report.labels + 1).astype(np.int32) % 10,
        "rho2_fooled": np.zeros(60, bool),
        "fgsm_rho_fooled": np.zeros(60, bool),
        "l2": np.zeros(60, np.float32),
        "rho2": np.zeros(60, np.float32),
    }
    page_of(RobustnessReport(report.metrics, policy, values), path)


def test_one_sample(path):
    report = made()
    values = {name: rows[:1] for name, rows in report.values.items()}
    page_of(RobustnessReport(report.metrics, "predicted", values), path)


# Texts stay texts.


def test_hostile_names_stay_text(path):
    report = made()
    told = {"command": HOSTILE[6], "flags": {HOSTILE[1]: HOSTILE[7]}}
    page = page_of(
        report, path, class_names=HOSTILE, title=HOSTILE[0],
        images=pictured(report), provenance=told, unit=HOSTILE[3],
    )  # fmt: skip
    assert not {"script", "iframe", "object", "b"} & {t for t, _ in page.tags}
    assert not [
        name for _, a in page.tags for name in a if name.startswith("on")
    ]
    for name in (*HOSTILE[:4], *HOSTILE[7:]):
        assert name in " ".join(page.texts)
    assert "49" not in re.findall(r"\S*7\*7\S*", page.source)
    assert "\x00" not in page.source
    assert "\u202e" not in page.source
    assert "pgd: made up, <b>& told</b>." in page.text


def test_nothing_is_loaded_and_nothing_runs(path):
    report = made()
    page = page_of(report, path, images=pictured(report), class_names=HOSTILE)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), tag
    policy = next(
        a["content"]
        for tag, a in page.tags
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"url\((?!#)|@import", page.source)


def test_ids_are_there_once_and_links_lead_to_them(path):
    report = made()
    page = page_of(report, path, images=pictured(report))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {
        target[1:]
        for _, a in page.tags
        for name in ("href", "xlink:href")
        if (target := a.get(name, "")).startswith("#")
    }
    targets |= set(re.findall(r"url\(#(.+?)\)", page.source))
    assert targets
    assert targets <= set(ids)


def test_the_same_report_gives_the_same_page(report, tmp_path):
    shown = pictured(report)
    pages = []
    for name in ("one.html", "other.html"):
        report.to_html(tmp_path / name, images=shown)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a"]}, "class_names: expected a sequence of at lea"),
        ({"class_names": "abcdefghijkl"}, "class_names: expected a sequence"),
    ],
)
def test_bad_options_are_refused(report, path, options, message):
    with pytest.raises(ValueError, match=message):
        report.to_html(path, **options)
    assert not path.exists()


def test_images_of_another_report_are_refused(report, path):
    shown = pictured(made(200))
    with pytest.raises(ValueError, match="images: expected samples of the"):
        report.to_html(path, images=shown)


@pytest.mark.parametrize(
    ("x", "bounds", "message"),
    [
        (np.zeros((30, 5)), (-1, 1), "x: expected images, .* shape .30, 5"),
        (np.zeros((30, 5, 4, 2)), (-1, 1), "x: expected images"),
        (np.zeros((3, 5, 4, 3)), (-1, 1), "x: expected 30 inputs, one for"),
        (None, (0, 1), "clean: expected pixels of 0 to 255; received"),
        (None, None, "bounds: expected the inputs that are pixels 0 and"),
    ],
)
def test_bad_inputs_are_refused(network, inputs, x, bounds, message):
    report = evaluated(network, inputs, "rho2")
    x = inputs[0] if x is None else x
    with pytest.raises(ValueError, match=message):
        AttackedImages.of(report, network, x, bounds)


def test_too_few_inputs_are_refused(network, inputs):
    report = evaluated(network, inputs, "rho2")
    with pytest.raises(ValueError, match="index: expected the samples of"):
        AttackedImages.of(report, network, inputs[0][:2], (-1, 1), index=[0, 1])


def test_without_jinja2_it_says_what_to_install(report, path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'dd_keras\[apps\]'"):
        html_report.require_libraries()
    with pytest.raises(ImportError, match="HTML reports are made with Jinja2"):
        report.to_html(path)


# Images within their bytes.


def test_a_perturbation_is_amplified_and_says_so():
    change = np.zeros((2, 2, 3), np.float32)
    change[0, 0] = [2, -1, 0]
    image, factor = images.shown_perturbation(change)
    assert factor == 64
    assert image[0, 0].tolist() == [255, 64, 128]
    assert image[1, 1].tolist() == [128] * 3  # no change is grey
    image, factor = images.shown_perturbation(change[..., :1])
    assert image[1, 1].tolist() == [255] * 3
    assert image[0, 0].tolist() == [213, 94, 0]  # brighter is red
    image, factor = images.shown_perturbation(-change[..., :1])
    assert image[0, 0].tolist() == [0, 114, 178]
    assert images.shown_perturbation(0 * change)[1] == 1


def test_large_images_are_made_to_fit():
    rng = np.random.default_rng(0)
    small = list(rng.uniform(0, 255, (3, 8, 8, 1)))
    uris, shrink = images.data_uris(small)
    assert shrink == 1
    assert all(uri.startswith("data:image/png") for uri in uris)
    large = list(rng.uniform(0, 255, (120, 224, 224, 3)))
    uris, shrink = images.data_uris(large)
    assert shrink > 1
    assert sum(map(len, uris)) <= 3_000_000


# Several classifiers.


def test_best_is_marked_where_it_is_ahead_by_more_than_the_interval():
    far = [Estimate(0.9, 0.85, 0.95, True), Estimate(0.5, 0.4, 0.6, True)]
    assert comparison.best_of(far, True) == 0
    assert comparison.best_of(far, False) == 1
    assert comparison.best_of(far, None) is None
    near = [far[0], Estimate(0.8, 0.7, 0.9, True)]
    # 0.1 apart; the interval of the difference is sqrt(.05^2 + .1^2) = 0.112.
    assert comparison.best_of(near, True) is None
    nearly = [far[0], Estimate(0.78, 0.68, 0.88, True)]
    assert comparison.best_of(nearly, True) == 0
    assert comparison.best_of([*far, None], True) == 0
    assert comparison.best_of([*far, far[0]], True) is None
    nan = Estimate(math.nan, math.nan, math.nan)
    assert comparison.best_of([far[0], nan], True) is None
    assert comparison.best_of([nan._replace(value=1.0), far[1]], True) is None
    assert comparison.best_of(far[:1], True) is None


def test_models_stand_side_by_side(path, drawn):
    one, other = made(), made(seed=0, scale=2.0)
    compare_to_html({"one": one, "<b>other</b>": other}, path)
    page = Page(path)
    assert "b" not in {tag for tag, _ in page.tags}
    rows = {
        row[0].split()[0]: row[1:]
        for table in page.table(**{"class": "numbers-table"})
        for row in table
    }
    for name in one.estimates:
        for report, cell in zip((one, other), rows[name], strict=True):
            assert report.estimates[name].text() in cell
            assert report.estimates[name].interval_text() in cell
    marked = re.findall(r'<td class="best">(\S+)', page.source)
    assert other.estimates["rho2"].text() in marked
    assert one.estimates["rho2"].text() not in marked
    # The attacks are as strong on both; one curve a model, in each figure.
    assert "No classifier is ahead of all others in accuracy under" in page.text
    names = [[li.get_label() for li in f.axes[0].lines] for f in drawn[:-1]]
    assert names == [["one", "<b>other</b>"]] * len(names)
    line = drawn[0].axes[0].lines[1]
    np.testing.assert_allclose(
        line.get_ydata(),
        [
            100 * other.estimates[f"fgsm_accuracy@{e}"].value
            for e in sorted(EPS)
        ],
    )


def test_verdict_of_a_comparison_names_who_is_ahead():
    one, other = ([r] for r in (made(), made(scale=2.0)))
    few = [
        [RobustnessReport(r.metrics[:2], "predicted", r.values)]
        for (r,) in (one, other)
    ]
    told = comparison.verdict({"one": few[0], "other": few[1]})
    assert told.startswith("other is ahead in rho2, by DeepFool: one 0.")


def test_reports_that_do_not_fit_are_refused(path):
    for reports in ({}, {"a": [], "b": []}, {"a": made(), "b": [made()] * 2}):
        with pytest.raises(ValueError, match="reports: expected at least one"):
            compare_to_html(reports, path)


# In a browser.


def opened(path, width=1280, added=""):
    """What a browser says of a page: what it loads, and how wide it is.

    Args:
        path: the page.
        width: of the screen, in pixels.
        added: HTML that is added to it.
    """
    source = path.read_text(encoding="utf-8")
    source = source.replace("</main>", f"{added}</main>")
    shown = path.with_name("shown.html")
    shown.write_text(source.replace('loading="lazy"', ""), encoding="utf-8")
    with browser.opened(path.with_name("profile")) as page:
        page.screen(width, 900)
        page.open(shown.as_uri())
        told = page.evaluate(
            """({
            width: document.documentElement.scrollWidth,
            screen: document.documentElement.clientWidth,
            window: innerWidth,
            seconds: performance.now() / 1000,  // laid out by now
            svg: document.querySelectorAll("svg").length,
            images: [...document.images].every(i => i.naturalWidth > 0),
            })"""
        )
        told["console"] = page.console
        told["requests"] = [
            url
            for url in page.requests
            if url not in (shown.as_uri(), "about:blank")
        ]
    return told


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_opens_without_errors_and_fits_the_screen(path, width):
    report = made()
    report.to_html(
        path, images=pictured(report, (20, 20, 3)), class_names=HOSTILE,
        title=HOSTILE[5], provenance={"command": HOSTILE[5]},
    )  # fmt: skip
    told = opened(path, width)
    assert told["console"] == []
    assert told["requests"] == []
    assert told["images"]
    assert told["svg"] == 3
    assert told["window"] == width
    assert told["width"] <= told["screen"] <= width


@needs_browser
@pytest.mark.parametrize(("models", "width"), [(6, 390), (9, 1280), (4, 1280)])
def test_comparison_fits_the_screen(path, models, width):
    reports = {name[:99]: made(seed=i) for i, name in enumerate(HOSTILE)}
    reports = dict(list(reports.items())[-models:])
    compare_to_html(reports, path, class_names=HOSTILE)
    told = opened(path, width)
    assert told["console"] == []
    assert told["requests"] == []
    assert told["width"] <= told["screen"] <= width


@needs_browser
def test_browser_tells_of_what_a_page_must_not_do(report, path):
    """The tests above see what they look for."""
    report.to_html(path)
    told = opened(
        path,
        390,
        '<img src="http://example.test/a.png"><script>none()</script>'
        '<p style="width: 600px">wide</p>',
    )
    assert "http://example.test/a.png" in told["requests"]
    for refused in ("http://example.test/a.png", "inline script"):
        assert any(refused in line for line in told["console"])
    assert told["width"] > told["screen"]


def test_ten_thousand_images_of_a_thousand_classes(path):
    report = made(10_000, 1_000)
    names = [f"class {k} of a thousand, {'long ' * 5}" for k in range(1000)]
    shown = pictured(report, (224, 224, 3), 1_000)
    page = page_of(report, path, images=shown, class_names=names)
    assert path.stat().st_size < 5_000_000
    assert len([a for tag, a in page.tags if tag == "img"]) == 120
    if browser.CHROMIUM is None:
        pytest.skip("needs a headless browser to open it: no chromium.")
    told = opened(path)
    print("opened in", told["seconds"], "s;", path.stat().st_size, "bytes")
    assert told["images"]
    assert told["seconds"] < 4  # a quarter of it where nothing else runs
