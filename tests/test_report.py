"""Reports: their numbers, by hand, and the files that they come back from."""

import csv
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.attacks import DeepFool
from dd_keras.evaluation import (
    PASS,
    Accuracy,
    AccuracyUnderAttack,
    Distance,
    EpsSweep,
    Metric,
    RobustnessReport,
    SmallestEps,
    evaluate_robustness,
    statistics,
)

SAMPLES = 23


def evaluated(*metrics, dtype="float32", **kwargs):
    """The report of an affine classifier of five classes."""
    rng = np.random.default_rng(0)
    model = affine_classifier(
        rng.normal(size=(6, 5)), rng.normal(size=5), dtype
    )
    x = rng.uniform(size=(SAMPLES, 6)).astype(dtype)
    y = model(x).numpy().argmax(-1)
    y[::5] = (y[::5] + 1) % 5
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    return evaluate_robustness(
        model, dataset, metrics=metrics, verbose=0, **kwargs
    )


@pytest.fixture(scope="module")
def report():
    """One of every metric that needs no images."""
    return evaluated(
        "accuracy",
        "rho2",
        Distance(DeepFool(np.inf)),
        "fgsm_rho",
        EpsSweep([0.1, 0.05], (0, 1)),
        AccuracyUnderAttack(attacks.PGD(0.05, bounds=(0, 1))),
        misclassified="exclude",
    )


@pytest.fixture
def small():
    """Four samples, made up; the last is misclassified."""
    return RobustnessReport(
        (
            Accuracy(),
            Distance(DeepFool()),
            SmallestEps(),
            EpsSweep([0.5, 0.25, 1]),
        ),
        "predicted",
        {
            "labels": np.array([0, 1, 2, 0], np.int32),
            "predictions": np.array([0, 1, 2, 1], np.int32),
            "zero_gradient": np.array([False] * 4),
            "rho2": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
            "l2": np.array([100, 200, 300, 400], np.float32),
            "rho2_fooled": np.array([True] * 4),
            "rho2_iterations": np.array([1, 2, 3, 4], np.int32),
            "fgsm_rho": np.array([0.2, 0.4, 0.6, 0.8], np.float32),
            "fgsm_eps": np.array([0.1, 0.4, 3.0, 1.0], np.float32),
            "fgsm_rho_fooled": np.array([True, False, False, True]),
            "fgsm_fooled": np.array(
                [[True, True, True], [True, False, True],
                 [False, False, True], [False, False, False]]
            ),
        },
        ("fgsm_eps: not to be trusted.", "model: neither."),
    )  # fmt: skip


def test_summary_has_the_numbers_in_order(small):
    assert len(small) == 4
    summary = small.summary()
    assert list(summary) == [
        "accuracy", "rho2", "l2", "rho2_fooled", "fgsm_rho", "fgsm_eps",
        "eps_ref", "fgsm_accuracy@0.5", "fgsm_accuracy@0.25", "fgsm_accuracy@1",
        "samples",
    ]  # fmt: skip
    assert summary == pytest.approx(
        {
            "accuracy": 0.75,
            "rho2": 0.25,
            "l2": 250.0,
            "rho2_fooled": 1.0,
            "fgsm_rho": 0.5,
            "fgsm_eps": 4.5 / 4,
            "eps_ref": 0.1,  # the second of 0, 0.1, never, never
            "fgsm_accuracy@0.5": 0.25,
            "fgsm_accuracy@0.25": 0.5,
            "fgsm_accuracy@1": 0.0,
            "samples": 4,
        }
    )
    assert all(type(value) in (float, int) for value in summary.values())


def test_numbers_that_do_not_exist_are_none(small):
    values = {**small.values, "fgsm_rho_fooled": np.array([False] * 4)}
    values["predictions"] = values["labels"]
    report = RobustnessReport(small.metrics, "predicted", values)
    assert report.summary()["eps_ref"] is None
    assert report.intervals()["eps_ref"] == [None, None]
    values["predictions"] = (values["labels"] + 1) % 3
    report = RobustnessReport(small.metrics, "exclude", values)
    summary = report.summary()
    assert (summary["rho2"], summary["fgsm_accuracy@1"]) == (None, None)
    assert (summary["accuracy"], summary["eps_ref"]) == (0.0, 0.0)


def test_intervals_hold_their_numbers(report):
    summary, intervals = report.summary(), report.intervals()
    assert set(intervals) == set(summary) - {"samples"}
    for name, (low, high) in intervals.items():
        assert low <= summary[name] <= high
        assert low < high or name.endswith("_fooled")


def test_intervals_have_known_values(small):
    intervals = small.intervals()
    assert intervals["accuracy"] == pytest.approx([0.300642, 0.954413], 1e-5)
    # The mean of 100, 200, 300 and 400, of standard error 64.55.
    assert intervals["l2"] == pytest.approx([123.4849, 376.5151], 1e-5)
    assert intervals["eps_ref"] == [0.0, None]


# Tables


def test_table_shows_shares_in_percent_and_others_in_units(small):
    assert small.table().splitlines() == [
        "4 samples              value        95 % interval",
        "-------------------------------------------------",
        "accuracy             75.00 %   30.06 % to 95.44 %",
        "rho2                  0.2500     0.1235 to 0.3765",
        "l2                     250.0       123.5 to 376.5",
        "rho2_fooled         100.00 %  51.01 % to 100.00 %",
        "fgsm_rho              0.5000     0.2470 to 0.7530",
        "fgsm_eps               1.125     -0.1537 to 2.404",
        "eps_ref               0.1000           0.000 to -",
        "fgsm_accuracy@0.5    25.00 %    4.56 % to 69.94 %",
        "fgsm_accuracy@0.25   50.00 %   15.00 % to 85.00 %",
        "fgsm_accuracy@1       0.00 %    0.00 % to 48.99 %",
        "",
        "Warning: fgsm_eps: not to be trusted.",
        "",
        "Warning: model: neither.",
    ]


def test_markdown_table_has_the_same_cells(small):
    text, markdown = small.table(), small.table("markdown")
    lines = markdown.splitlines()
    assert lines[1].startswith("| ------")
    assert lines[-1] == "Warning: model: neither."
    assert lines[-3] == "Warning: fgsm_eps: not to be trusted."
    assert lines[-4] == ""  # which ends the table
    cells = [line.replace("|", " ").split() for line in lines[:1] + lines[2:12]]
    expected = text.splitlines()
    assert cells == [line.split() for line in expected[:1] + expected[2:12]]


def test_csv_table_reads_back_and_has_no_warnings(small):
    rows = list(csv.reader(io.StringIO(small.table("csv"))))
    assert rows[0] == ["4 samples", "value", "95 % interval"]
    assert rows[1] == ["accuracy", "75.00 %", "30.06 % to 95.44 %"]
    assert [row[0] for row in rows[1:]] == list(small.intervals())
    assert {len(row) for row in rows} == {3}


def test_table_without_warnings_ends_with_its_last_line(small):
    plain = RobustnessReport(small.metrics, "predicted", small.values)
    for form in ("text", "markdown", "csv"):
        table = plain.table(form)
        assert table == table.strip()
        assert "Warning" not in table


def test_unknown_form_of_table_is_refused(small):
    with pytest.raises(ValueError, match=r"^form: expected one of \('text'"):
        small.table("html")


# Figure 5


def test_success_rate_rises_with_eps(small):
    found = small.success_rate()
    assert list(found) == ["eps", "success_rate", "low", "high"]
    np.testing.assert_array_equal(found["eps"], [0.25, 0.5, 1])
    # The misclassified sample counts as a success at all eps.
    np.testing.assert_allclose(found["success_rate"], [0.5, 0.75, 1])
    intervals = small.intervals()
    for i, eps in enumerate((0.25, 0.5, 1)):
        low, high = intervals[f"fgsm_accuracy@{eps:g}"]
        assert (found["low"][i], found["high"][i]) == (1 - high, 1 - low)
    assert np.all(found["low"] <= found["success_rate"])
    assert np.all(found["success_rate"] <= found["high"])


def test_success_rate_needs_the_sweep(small):
    report = RobustnessReport(small.metrics[:2], "predicted", small.values)
    with pytest.raises(
        ValueError,
        match=r"^success_rate: expected a report with the metric 'fgsm'; "
        r"received one with \['accuracy', 'rho2'\]\.$",
    ):
        report.success_rate()


# Files


def strictly_parsed(path):
    """Parsed as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def same(one, other):
    """Whether two reports hold the same, to the last bit."""
    assert list(one.values) == list(other.values)
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, other.values[name])
        assert values.dtype == other.values[name].dtype
    assert one.metrics == other.metrics
    assert one.misclassified == other.misclassified
    assert one.warnings == other.warnings
    assert one.summary() == other.summary()
    assert one.intervals() == other.intervals()
    return True


def test_json_holds_the_numbers_and_all_samples(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)
    written = strictly_parsed(path)
    assert set(written) == {
        "summary", "intervals", "warnings", "misclassified", "metrics",
        "costs", "dtypes", "samples",
    }  # fmt: skip
    assert written["summary"] == report.summary()
    assert written["intervals"] == report.intervals()
    assert written["misclassified"] == "exclude"
    assert list(written["samples"]) == list(report.values)
    for name, values in report.values.items():
        assert written["samples"][name] == values.tolist()
        assert len(written["samples"][name]) == SAMPLES
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_report_comes_back_from_json(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)
    again = RobustnessReport.from_json(path)
    assert same(again, report)
    np.testing.assert_array_equal(again.labels, report.labels)
    assert again.values["rho2"].dtype == np.float32
    assert again.values["fgsm_fooled"].shape == (SAMPLES, 2)
    again.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_made_up_report_comes_back_with_its_warnings(small, tmp_path):
    path = tmp_path / "report.json"
    small.to_json(path)
    assert same(RobustnessReport.from_json(str(path)), small)
    assert strictly_parsed(path)["warnings"] == list(small.warnings)


def test_precision_of_the_model_comes_back(float64, tmp_path):
    report = evaluated("rho2", "fgsm_rho", dtype="float64")
    assert report.values["rho2"].dtype == np.float64
    report.to_json(tmp_path / "report.json")
    assert same(RobustnessReport.from_json(tmp_path / "report.json"), report)


def test_infinity_norm_and_pixelwise_bounds_come_back(tmp_path):
    bounds = (np.zeros((2, 2, 1)), np.arange(1.0, 5).reshape(2, 2, 1))
    metrics = (
        Accuracy(),
        Distance(DeepFool(np.inf)),
        AccuracyUnderAttack(attacks.PGD(0.1, norm=np.inf, bounds=bounds)),
        EpsSweep([1, 2], bounds),
        PASS(attacks.DeepFool(np.inf), bounds),
    )
    values = {
        "labels": np.array([1, 0], np.int32),
        "predictions": np.array([1, 1], np.int32),
        "rhoinf": np.array([0.5, 1.5], np.float32),
        "linf": np.array([0.25, 3], np.float32),
        "rhoinf_fooled": np.array([True, False]),
        "pgd_fooled": np.array([True, False]),
        "fgsm_fooled": np.array([[True, False], [False, False]]),
        "pass": np.array([0.9, 0.99], np.float32),
    }
    report = RobustnessReport(metrics, "zero", values)
    path = tmp_path / "report.json"
    report.to_json(path)
    strictly_parsed(path)
    again = RobustnessReport.from_json(path)
    assert same(again, report)
    assert again.metrics[1].attack.norm == np.inf
    np.testing.assert_array_equal(again.metrics[3].attack.bounds, bounds)


def test_numbers_that_do_not_exist_are_null(small, tmp_path):
    values = {**small.values, "fgsm_rho_fooled": np.array([False] * 4)}
    values["predictions"] = values["labels"]
    report = RobustnessReport(small.metrics, "predicted", values)
    path = tmp_path / "report.json"
    report.to_json(path)
    assert strictly_parsed(path)["summary"]["eps_ref"] is None
    assert RobustnessReport.from_json(path).summary()["eps_ref"] is None


def unheard(metric):
    return {**metric, "class_name": "Own", "registered_name": "other>Own"}


def damaged(change):
    """A way to damage the content of a report's file."""

    def damage(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "no report",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: '{"summary": {"accuracy": 0.98}, "rho": [0.1, 0.2]}',
        damaged(lambda c: c.pop("samples")),
        damaged(lambda c: c.pop("metrics")),
        damaged(lambda c: c.pop("warnings")),
        damaged(lambda c: c.pop("misclassified")),
        damaged(lambda c: c.update(samples=[])),
        damaged(lambda c: c.update(metrics=[5])),
        damaged(lambda c: c.update(metrics=[unheard(c["metrics"][0])])),
        damaged(lambda c: c["metrics"][0].pop("config")),
        damaged(lambda c: c["samples"].pop("labels")),
        damaged(lambda c: c["samples"].pop("rho2")),
        damaged(lambda c: c["samples"].update(labels=[])),
        damaged(lambda c: c["samples"].update(rho2=[0.1, [0.2], 0.3, 0.4])),
        damaged(lambda c: c["samples"].update(rho2=["a", "b", "c", "d"])),
        damaged(lambda c: c["dtypes"].pop("rho2")),
        damaged(lambda c: c["dtypes"].update(rho2="flaot32")),
    ],
)
def test_file_that_is_no_report_is_refused(small, tmp_path, damage):
    path = tmp_path / "report.json"
    small.to_json(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        ValueError,
        match=r"^path: expected a report written by to_json; .*report\.json "
        "is none: ",
    ):
        RobustnessReport.from_json(path)


def test_binary_file_is_refused(small, tmp_path):
    small.to_npz(tmp_path / "report.npz")
    with pytest.raises(ValueError, match=r"^path: expected a report "):
        RobustnessReport.from_json(tmp_path / "report.npz")


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        RobustnessReport.from_json(tmp_path / "report.json")


def test_npz_holds_arrays_and_all_else(report, tmp_path):
    path = tmp_path / "out" / "report.npz"
    report.to_npz(path)
    assert [p.name for p in path.parent.iterdir()] == ["report.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"report", *report.values}
        for name, values in report.values.items():
            np.testing.assert_array_equal(arrays[name], values)
            assert arrays[name].dtype == values.dtype
        about = json.loads(str(arrays["report"]))
    assert about["summary"] == report.summary()
    assert about["intervals"] == report.intervals()
    assert about["misclassified"] == "exclude"
    assert about["warnings"] == list(report.warnings)
    assert [m["class_name"] for m in about["metrics"]] == [
        type(metric).__name__ for metric in report.metrics
    ]


@keras.saving.register_keras_serializable("test")
class Own(Metric):
    """A user's metric: how many classes away the prediction is."""

    name = "off"

    def measure(self, network, x, forward):
        return {"off_logits": forward.logits}

    def finish(self, x, values):
        return {"off": np.ptp(values["off_logits"], axis=1)}

    def estimates(self, samples):
        return {"off": statistics.mean(samples.values["off"])}


def test_metric_of_ones_own_goes_through_everything(tmp_path):
    report = evaluated("accuracy", Own())
    assert report.summary()["off"] == pytest.approx(
        report.values["off"].mean(), rel=1e-6
    )
    assert "\noff " in report.table()
    report.to_json(tmp_path / "report.json")
    assert same(RobustnessReport.from_json(tmp_path / "report.json"), report)


@pytest.mark.parametrize("old", [None, '{"summary": "of an earlier run"}'])
@pytest.mark.parametrize(
    ("kind", "writer"),
    [("json", "files.os.replace"), ("npz", "np.savez_compressed")],
)
def test_file_is_written_whole_or_not_at_all(
    small, tmp_path, monkeypatch, old, kind, writer
):
    path = tmp_path / f"report.{kind}"
    if old is not None:
        path.write_text(old)

    def full_disk(file, *_, **__):
        if kind == "npz":
            file.write(b"PK")
            file.flush()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"dd_keras.evaluation.report.{writer}", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        getattr(small, f"to_{kind}")(path)
    assert (path.read_text() if path.exists() else None) == old
    assert len(list(tmp_path.iterdir())) == (old is not None)


def test_samples_that_json_cannot_hold_leave_the_old_file(small, tmp_path):
    path = tmp_path / "report.json"
    small.to_json(path)
    old = path.read_bytes()
    broken = {**small.values, "zero_gradient": np.full(4, np.nan)}
    report = RobustnessReport(small.metrics, "predicted", broken)
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.to_json(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_reports_can_be_compared_and_kept_in_sets(small):
    other = RobustnessReport(
        small.metrics,
        small.misclassified,
        {name: values.copy() for name, values in small.values.items()},
        small.warnings,
    )
    assert [small, other].index(other) == 1
    assert small != other  # what they hold, values and summary say
    assert len({small, other, small}) == 2
