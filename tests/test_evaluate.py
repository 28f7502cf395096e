"""Robustness reports against closed forms: an affine classifier has one."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import dd_keras
from dd_keras.attacks import DeepFool
from dd_keras.evaluation import evaluate, evaluate_robustness

SHAPE = (3, 2)
SAMPLES = 23
OVERSHOOT = 1.02


def affine(outputs, activation=None, seed=1):
    """A classifier f(x) = x W + b, with W and b of order one."""
    rng = np.random.default_rng(seed)
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )
    kernel = rng.normal(size=(np.prod(SHAPE), outputs))
    model.layers[-1].set_weights([kernel, rng.normal(size=outputs)])
    return model


def samples(classes, seed=2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, *SHAPE)).astype(np.float32)
    return x, rng.integers(classes, size=SAMPLES)


def batched(x, y, size=10):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def closed_form(model, x, p):
    """Predictions and distances to the nearest boundary of an affine model."""
    kernel, bias = map(np.float64, model.layers[-1].get_weights())
    if kernel.shape[1] == 1:  # one logit z is the two-class case (0, z)
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
        bias = np.concatenate([[0.0], bias])
    q = {1: np.inf, 2: 2, np.inf: 1}[p]
    f = x.reshape(len(x), -1) @ kernel + bias
    predictions, distances = f.argmax(axis=1), []
    for row, s in zip(f, predictions, strict=True):
        others = np.arange(len(row)) != s
        slopes = np.linalg.norm(kernel - kernel[:, [s]], ord=q, axis=0)
        distances.append(np.min(np.abs(row - row[s])[others] / slopes[others]))
    return predictions, np.array(distances)


def norms(x, p):
    return np.linalg.norm(x.reshape(len(x), -1), ord=p, axis=1)


@pytest.fixture(scope="module")
def model():
    return affine(10)


@pytest.fixture(scope="module")
def data():
    return samples(10)


@pytest.fixture(scope="module")
def report(model, data):
    return evaluate_robustness(model, batched(*data), verbose=0)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize(
    ("outputs", "activation"),
    [
        (2, None),
        (2, "softmax"),
        (1, None),
        (1, "sigmoid"),
        (10, None),
        (10, "softmax"),
    ],
)
def test_affine_classifier_gives_the_closed_form(outputs, activation, p):
    model = affine(outputs, activation)
    x, y = samples(max(2, outputs))
    report = evaluate_robustness(model, batched(x, y), DeepFool(p), verbose=0)
    predictions, distances = closed_form(model, x, p)

    np.testing.assert_array_equal(report.predictions, predictions)
    np.testing.assert_array_equal(report.labels, y)
    np.testing.assert_allclose(
        report.distance, OVERSHOOT * distances, rtol=2e-5
    )
    np.testing.assert_allclose(
        report.rho, OVERSHOOT * distances / norms(x, p), rtol=2e-5
    )
    np.testing.assert_array_equal(report.fooled, np.ones(SAMPLES, bool))
    np.testing.assert_array_equal(report.iterations, np.ones(SAMPLES))
    assert report.norm == p


def test_summary_is_the_mean_over_all_samples(model, data, report):
    x, y = data
    predictions, distances = closed_form(model, x, 2)
    summary = report.summary()
    assert set(summary) == {"accuracy", "rho2", "l2", "fooled", "samples"}
    right = np.sum(predictions == y)
    assert 0 < right < SAMPLES
    assert summary["accuracy"] == pytest.approx(right / SAMPLES)
    assert summary["l2"] == pytest.approx(
        OVERSHOOT * distances.mean(), rel=1e-5
    )
    assert summary["rho2"] == pytest.approx(
        OVERSHOOT * np.mean(distances / norms(x, 2)), rel=1e-5
    )
    assert summary["fooled"] == 1.0
    assert summary["samples"] == SAMPLES


@pytest.mark.parametrize(
    ("p", "keys"),
    [
        (1, {"rho1", "l1"}),
        (1.5, {"rho1.5", "l1.5"}),
        (np.inf, {"rhoinf", "linf"}),
    ],
)
def test_summary_names_the_norm(model, data, p, keys):
    report = evaluate_robustness(model, batched(*data), DeepFool(p), verbose=0)
    summary = report.summary()
    assert set(summary) == keys | {"accuracy", "fooled", "samples"}


def test_misclassified_samples_count_from_their_predicted_class(
    model, data, report
):
    x, _ = data
    wrong = (report.predictions + 1) % 10
    found = evaluate_robustness(model, batched(x, wrong), verbose=0)
    assert found.summary()["accuracy"] == 0.0
    np.testing.assert_array_equal(found.predictions, report.predictions)
    np.testing.assert_array_equal(found.rho, report.rho)
    np.testing.assert_array_equal(found.distance, report.distance)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y[:, None],
        lambda y: y.astype(np.float32),
        lambda y: y.astype(np.uint8),
        lambda y: np.eye(10, dtype=np.float32)[y],
        lambda y: 0.9 * np.eye(10)[y] + 0.01,
    ],
    ids=["column", "float", "uint8", "one-hot", "smoothed"],
)
def test_labels_count_in_any_form(model, data, report, form):
    x, y = data
    found = evaluate_robustness(model, batched(x, form(y)), verbose=0)
    np.testing.assert_array_equal(found.labels, y)
    assert found.summary() == report.summary()


@pytest.mark.parametrize("size", [1, 7, 23, 64])
def test_batch_size_does_not_matter(model, data, report, size):
    found = evaluate_robustness(model, batched(*data, size), verbose=0)
    assert len(found.labels) == SAMPLES
    np.testing.assert_array_equal(found.labels, report.labels)
    np.testing.assert_array_equal(found.predictions, report.predictions)
    np.testing.assert_allclose(found.rho, report.rho, rtol=1e-5)
    np.testing.assert_allclose(found.distance, report.distance, rtol=1e-5)


def test_order_does_not_matter(model, data, report):
    x, y = data
    order = np.random.default_rng(3).permutation(SAMPLES)
    found = evaluate_robustness(model, batched(x[order], y[order]), verbose=0)
    np.testing.assert_array_equal(found.labels, report.labels[order])
    np.testing.assert_array_equal(found.predictions, report.predictions[order])
    np.testing.assert_allclose(found.rho, report.rho[order], rtol=1e-5)
    for key, value in report.summary().items():
        assert found.summary()[key] == pytest.approx(value, rel=1e-6)


def test_integer_inputs_are_attacked_as_floats(model):
    x = np.random.default_rng(4).integers(1, 9, (SAMPLES, *SHAPE), np.uint8)
    report = evaluate_robustness(
        model, batched(x, np.zeros(SAMPLES, int)), verbose=0
    )
    _, distances = closed_form(model, x.astype(np.float64), 2)
    np.testing.assert_allclose(
        report.distance, OVERSHOOT * distances, rtol=1e-4
    )


def test_sample_weights_in_the_data_set_are_allowed(model, data, report):
    x, y = data
    weighted = tf.data.Dataset.from_tensor_slices((x, y, np.zeros(SAMPLES)))
    found = evaluate_robustness(model, weighted.batch(10), verbose=0)
    assert found.summary() == report.summary()


def test_wrapped_model_gives_what_its_classifier_gives(model, data, report):
    wrapped = dd_keras.DeepDefenseModel(model)
    found = evaluate_robustness(wrapped, batched(*data), verbose=0)
    assert found.summary() == report.summary()


def test_constant_classifier_has_finite_numbers_and_is_never_fooled(data):
    model = affine(10)
    model.layers[-1].set_weights([np.zeros((6, 10)), np.arange(10.0)])
    report = evaluate_robustness(model, batched(*data), verbose=0)
    np.testing.assert_array_equal(report.predictions, np.full(SAMPLES, 9))
    np.testing.assert_array_equal(report.rho, np.zeros(SAMPLES))
    np.testing.assert_array_equal(report.distance, np.zeros(SAMPLES))
    assert report.summary()["fooled"] == 0.0


def test_zero_input_has_a_distance_but_no_relative_size(model):
    x = np.zeros((1, *SHAPE), np.float32)
    report = evaluate_robustness(model, batched(x, [0]), verbose=0)
    _, distances = closed_form(model, x, 2)
    np.testing.assert_allclose(
        report.distance, OVERSHOOT * distances, rtol=1e-5
    )
    np.testing.assert_array_equal(report.rho, [0.0])


def test_progress_bar_shows_only_when_verbose(model, data, capsys):
    evaluate_robustness(model, batched(*data), verbose=0)
    assert capsys.readouterr().out == ""
    evaluate_robustness(model, batched(*data))
    last = capsys.readouterr().out.split("\r")[-1]
    assert "3/3" in last
    assert last.endswith("\n")


@pytest.fixture
def unsized(data):
    """The data set after a filter: nobody knows how long it is."""
    dataset = batched(*data).filter(lambda x, y: True)
    assert dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    return dataset


def test_data_set_of_unknown_length_is_evaluated_to_its_end(
    model, report, unsized
):
    found = evaluate_robustness(model, unsized, verbose=0)
    assert found.summary() == report.summary()


def test_progress_bar_of_unknown_length_ends_at_the_last_batch(
    model, unsized, capsys
):
    evaluate_robustness(model, unsized)
    last = capsys.readouterr().out.split("\r")[-1]
    assert "3/" in last
    assert last.endswith("\n")


def test_empty_data_set_is_refused(model):
    empty = batched(np.zeros((0, *SHAPE), np.float32), np.zeros(0, int))
    with pytest.raises(
        ValueError,
        match=r"^dataset: expected at least one batch; received none\.$",
    ):
        evaluate_robustness(model, empty, verbose=0)


@pytest.mark.parametrize("elements", [lambda x: x, lambda x: (x,)])
def test_data_set_without_labels_is_refused(model, data, elements):
    unlabeled = tf.data.Dataset.from_tensor_slices(elements(data[0])).batch(10)
    with pytest.raises(
        ValueError,
        match=r"^dataset: expected batches of \(inputs, labels\); received ",
    ):
        evaluate_robustness(model, unlabeled, verbose=0)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_refused(model, data, label):
    x, y = data
    y = np.where(np.arange(SAMPLES) == 12, label, y)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"y: expected labels in \[0, 10\)",
    ):
        evaluate_robustness(model, batched(x, y), verbose=0)


def test_labels_of_another_number_of_classes_are_refused(model, data):
    x, y = data
    with pytest.raises(
        ValueError,
        match=r"y: expected labels of shape .* \(batch, 10\); "
        r"received shape \(10, 7\)",
    ):
        evaluate_robustness(model, batched(x, np.eye(7)[y % 7]), verbose=0)


def strictly_parsed(path):
    """Parsed as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_json_holds_the_summary_and_all_samples(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)
    written = strictly_parsed(path)
    assert written["summary"] == report.summary()
    assert written["norm"] == 2.0
    arrays = {
        "labels", "predictions", "rho", "distance", "fooled", "iterations"
    }  # fmt: skip
    assert set(written) == arrays | {"summary", "norm"}
    for key in arrays:
        values = getattr(report, key)
        assert written[key] == values.tolist()
        assert len(written[key]) == SAMPLES
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_json_of_the_infinity_norm_is_json(model, data, tmp_path):
    path = tmp_path / "report.json"
    report = evaluate_robustness(
        model, batched(*data), DeepFool(np.inf), verbose=0
    )
    report.to_json(path)
    assert strictly_parsed(path)["summary"] == report.summary()


@pytest.mark.parametrize("old", [None, '{"summary": "of an earlier run"}'])
def test_json_is_written_whole_or_not_at_all(
    report, tmp_path, monkeypatch, old
):
    path = tmp_path / "report.json"
    if old is not None:
        path.write_text(old)

    def full_disk(values, file, **_):
        file.write('{"summary": {"accu')
        file.flush()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate.json, "dump", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        report.to_json(path)
    assert (path.read_text() if path.exists() else None) == old
