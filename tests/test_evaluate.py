"""Robustness reports against closed forms: an affine classifier has one."""

import io
import json
import re
import shutil
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shell

import dd_keras
from dd_keras import attacks, evaluation
from dd_keras.attacks import DeepFool
from dd_keras.evaluation import evaluate_robustness

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
    kernel, bias = (  # not np.float64(bias): NumPy 1.26 makes [b] a number
        np.asarray(w, np.float64) for w in model.layers[-1].get_weights()
    )
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


def deepfool_report(model, dataset, p=2, **kwargs):
    return evaluate_robustness(
        model, dataset, metrics=["accuracy", DeepFool(p)], verbose=0, **kwargs
    )


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


@pytest.mark.parametrize(
    ("outputs", "activation", "p"),
    [
        (2, None, 2), (2, "softmax", np.inf), (1, None, np.inf),
        (1, "sigmoid", 1), (4, None, 1), (4, None, np.inf), (4, "softmax", 2),
    ],
)  # fmt: skip
def test_affine_classifier_gives_the_closed_form(outputs, activation, p):
    model = affine(outputs, activation)
    x, y = samples(max(2, outputs))
    report = deepfool_report(model, batched(x, y), p)
    predictions, distances = closed_form(model, x, p)

    np.testing.assert_array_equal(report.predictions, predictions)
    np.testing.assert_array_equal(report.labels, y)
    values = report.values
    np.testing.assert_allclose(
        values[f"l{p:g}"], OVERSHOOT * distances, rtol=2e-5
    )
    np.testing.assert_allclose(
        values[f"rho{p:g}"], OVERSHOOT * distances / norms(x, p), rtol=2e-5
    )
    np.testing.assert_array_equal(values[f"rho{p:g}_fooled"], True)
    np.testing.assert_array_equal(values[f"rho{p:g}_iterations"], 1)
    assert not values["zero_gradient"].any()
    assert report.warnings == ()


def test_summary_is_the_mean_over_all_samples(model, data, report):
    x, y = data
    predictions, distances = closed_form(model, x, 2)
    summary = report.summary()
    assert set(summary) == {"accuracy", "rho2", "l2", "rho2_fooled", "samples"}
    right = np.sum(predictions == y)
    assert 0 < right < SAMPLES
    assert summary["accuracy"] == pytest.approx(right / SAMPLES)
    assert summary["l2"] == pytest.approx(
        OVERSHOOT * distances.mean(), rel=1e-5
    )
    assert summary["rho2"] == pytest.approx(
        OVERSHOOT * np.mean(distances / norms(x, 2)), rel=1e-5
    )
    assert summary["rho2_fooled"] == 1.0
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
    summary = deepfool_report(model, batched(*data), p).summary()
    assert set(summary) == keys | {"accuracy", f"rho{p:g}_fooled", "samples"}


def test_misclassified_samples_count_from_their_predicted_class(
    model, data, report
):
    x, _ = data
    wrong = (report.predictions + 1) % 10
    found = evaluate_robustness(model, batched(x, wrong), verbose=0)
    assert found.summary()["accuracy"] == 0.0
    np.testing.assert_array_equal(found.predictions, report.predictions)
    np.testing.assert_array_equal(found.values["rho2"], report.values["rho2"])
    np.testing.assert_array_equal(found.values["l2"], report.values["l2"])


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
    np.testing.assert_allclose(
        found.values["rho2"], report.values["rho2"], rtol=1e-5
    )
    np.testing.assert_allclose(
        found.values["l2"], report.values["l2"], rtol=1e-5
    )


def test_order_does_not_matter(model, data, report):
    x, y = data
    order = np.random.default_rng(3).permutation(SAMPLES)
    found = evaluate_robustness(model, batched(x[order], y[order]), verbose=0)
    np.testing.assert_array_equal(found.labels, report.labels[order])
    np.testing.assert_array_equal(found.predictions, report.predictions[order])
    np.testing.assert_allclose(
        found.values["rho2"], report.values["rho2"][order], rtol=1e-5
    )
    for key, value in report.summary().items():
        assert found.summary()[key] == pytest.approx(value, rel=1e-6)


def test_integer_inputs_are_attacked_as_floats(model):
    x = np.random.default_rng(4).integers(1, 9, (SAMPLES, *SHAPE), np.uint8)
    report = evaluate_robustness(
        model, batched(x, np.zeros(SAMPLES, int)), verbose=0
    )
    _, distances = closed_form(model, x.astype(np.float64), 2)
    np.testing.assert_allclose(
        report.values["l2"], OVERSHOOT * distances, rtol=1e-4
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
    with pytest.warns(UserWarning, match="gradient of its logits is zero on"):
        report = evaluate_robustness(model, batched(*data), verbose=0)
    assert "on 100.0 % of the samples" in report.warnings[0]
    np.testing.assert_array_equal(report.predictions, np.full(SAMPLES, 9))
    np.testing.assert_array_equal(report.values["rho2"], np.zeros(SAMPLES))
    np.testing.assert_array_equal(report.values["l2"], np.zeros(SAMPLES))
    assert report.summary()["rho2_fooled"] == 0.0


def test_zero_input_has_a_distance_but_no_relative_size(model):
    x = np.zeros((1, *SHAPE), np.float32)
    report = evaluate_robustness(model, batched(x, [0]), verbose=0)
    _, distances = closed_form(model, x, 2)
    np.testing.assert_allclose(
        report.values["l2"], OVERSHOOT * distances, rtol=1e-5
    )
    np.testing.assert_array_equal(report.values["rho2"], [0.0])


def test_progress_bar_shows_only_when_verbose(model, data, capsys):
    evaluate_robustness(model, batched(*data), verbose=0)
    assert capsys.readouterr().out == ""
    evaluate_robustness(model, batched(*data), verbose=1)
    last = capsys.readouterr().out.split("\r")[-1]
    assert "3/3" in last
    assert last.endswith("\n")


def test_in_a_file_there_is_a_line_in_place_of_a_bar(
    model, data, capsys, monkeypatch
):
    evaluate_robustness(model, batched(*data))
    printed = capsys.readouterr().out
    assert printed.startswith("3/3 - ")
    assert printed.count("\n") == 1
    assert "\b" not in printed
    assert "\r" not in printed
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    evaluate_robustness(model, batched(*data))
    assert "\r" in capsys.readouterr().out


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
    evaluate_robustness(model, unsized, verbose=1)
    last = capsys.readouterr().out.split("\r")[-1]
    assert "3/" in last
    assert last.endswith("\n")


def test_empty_data_set_is_refused(model):
    empty = batched(np.zeros((0, *SHAPE), np.float32), np.zeros(0, int))
    with pytest.raises(
        ValueError,
        match=r"^data: expected at least one batch; received none\.$",
    ):
        evaluate_robustness(model, empty, verbose=0)


@pytest.mark.parametrize("elements", [lambda x: x, lambda x: (x,)])
def test_data_set_without_labels_is_refused(model, data, elements):
    unlabeled = tf.data.Dataset.from_tensor_slices(elements(data[0])).batch(10)
    with pytest.raises(
        ValueError,
        match=r"^data: expected batches of \(inputs, labels\); received ",
    ):
        evaluate_robustness(model, unlabeled, verbose=0)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_refused(model, data, label):
    x, y = data
    y = np.where(np.arange(SAMPLES) == 12, label, y)
    with pytest.raises(
        ValueError,
        match=r"^data, batch 1: .*y: expected labels in \[0, 10\)",
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


# Several metrics at once


@pytest.fixture(scope="module")
def convolutional():
    """A small untrained network on images, and images."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    x = np.random.default_rng(5).uniform(size=(20, 8, 8, 1))
    x = x.astype(np.float32)
    y = model.predict(x, verbose=0).argmax(-1)
    y[::7] = (y[::7] + 1) % 5
    return model, x, y


ALL = ("accuracy", "rho2", "rho1", "fgsm_rho", "fgsm", "pgd")


@pytest.mark.slow
def test_each_metric_finds_what_its_attack_finds_alone(convolutional):
    model, x, y = convolutional
    found = evaluate_robustness(
        model, batched(x, y, 20), metrics=ALL, bounds=(0, 1), verbose=0
    ).values
    right = found["predictions"] == y
    assert 0 < right.sum() < len(y)
    for p in (1, 2):
        alone = DeepFool(p).run(model, x)
        np.testing.assert_allclose(
            found[f"l{p}"], norms(alone.perturbation.numpy(), p), rtol=1e-5
        )
    alone = attacks.MinimalFGSM().run(model, x)
    np.testing.assert_allclose(
        found["fgsm_eps"], norms(alone.perturbation.numpy(), np.inf), rtol=1e-5
    )
    alone = attacks.PGD(0.1, bounds=(0, 1)).run(model, x)
    np.testing.assert_array_equal(found["pgd_fooled"], alone.fooled)
    for i in (0, 9, 19):
        alone = attacks.FGSM((i + 1) / 50).run(model, x)
        np.testing.assert_array_equal(found["fgsm_fooled"][:, i], alone.fooled)


def test_one_name_alone_is_enough(convolutional):
    model, x, y = convolutional
    report = evaluate_robustness(
        model, batched(x, y), metrics="accuracy", verbose=0
    )
    assert set(report.summary()) == {"accuracy", "samples"}


@pytest.mark.parametrize(
    "metrics", [["rho2", "l2"], ["fgsm_rho", "fgsm_eps", "eps_ref"]]
)
def test_two_names_of_one_metric_measure_it_once(convolutional, metrics):
    model, x, y = convolutional
    report = evaluate_robustness(
        model, batched(x, y), metrics=metrics, verbose=0
    )
    assert len(report.metrics) == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    script = tmp_path / "memory.py"
    script.write_text(
        """
import resource, sys
import keras, numpy as np, tensorflow as tf
from dd_keras.evaluation import evaluate_robustness

model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Flatten(),
                          keras.layers.Dense(4)])

def dataset(batches):
    def batch(i):
        seed = tf.stack([i, 0])
        x = tf.random.stateless_normal((50, 64, 64, 3), seed)
        return x, tf.zeros(50, tf.int32)
    return tf.data.Dataset.range(batches).map(batch)

for batches in (20, 150):  # 150 batches are 369 MB of pixels
    evaluate_robustness(model, dataset(batches), metrics=["accuracy", "fgsm"],
                        bounds=(-1, 1), verbose=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    )
    done = shell(script)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = map(int, done.stdout.split()[-2:])
    assert many < few + 60  # MiB


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"metrics": ["rho2", "roh2"]},
            r"^metrics: expected names of \['accuracy', 'adaptive', "
            r"'autoattack', 'cw', 'eps_ref', 'fgsm', 'fgsm_eps', 'fgsm_rho', "
            r"'l<p>', 'l<p>_best', 'paper_eps_ref', 'paper_fgsm', "
            r"'paper_fgsm_eps', 'paper_fgsm_rho', 'pass', 'pgd', 'rho<p>', "
            r"'rho<p>_best'\] .*; "
            r"received 'roh2'\.$",
        ),
        ({"metrics": "rho0.5"}, "received 'rho0.5'"),
        ({"metrics": []}, "^metrics: expected at least one; received none"),
        (
            {
                "metrics": [
                    "pgd",
                    evaluation.AccuracyUnderAttack(attacks.PGD(0.5)),
                ],
                "bounds": (0, 1),
            },
            "^metrics: expected one of each name; received two .* 'pgd'",
        ),
        ({"metrics": "pgd"}, "^bounds: the metric 'pgd' needs the valid range"),
        (
            {"metrics": "fgsm"},
            "^bounds: the metric 'fgsm' needs the valid range",
        ),
        (
            {"metrics": "pgd", "bounds": (0, 0.5)},
            "^x: expected inputs within the bounds, 0 to 0.5; received values",
        ),
        ({"metrics": "pgd", "bounds": (1, 0)}, "^bounds: expected a pair"),
        (
            {"misclassified": "ignore"},
            "^misclassified: expected one of .*; received 'ignore'",
        ),
    ],
)
def test_bad_arguments_are_refused(convolutional, arguments, message):
    model, x, y = convolutional
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(model, batched(x, y), verbose=0, **arguments)


def test_data_that_is_no_data_set_is_refused(convolutional):
    model, x, y = convolutional
    with pytest.raises(
        TypeError, match=r"^data: expected an array .* received list"
    ):
        evaluate_robustness(model, [(x, y)], verbose=0)


def test_batch_of_another_shape_is_refused_by_number(convolutional):
    model, x, y = convolutional

    def batches():
        yield x, y
        yield x[:, :6], y

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, None, 8, 1)),
            tf.TensorSpec((None,), tf.int64),
        ),
    )
    with pytest.raises(
        ValueError,
        match=r"^data, batch 1: x: expected inputs of shape \(None, 8, 8, 1"
        r"\); received \(20, 6, 8, 1\)",
    ):
        evaluate_robustness(model, dataset, verbose=0)


def test_batch_with_too_few_labels_is_refused(convolutional):
    model, x, y = convolutional
    dataset = tf.data.Dataset.from_tensors((x, y[:-1]))
    with pytest.raises(
        ValueError, match=r"^data, batch 0: y: expected 20 labels; .* 19\."
    ):
        evaluate_robustness(model, dataset, verbose=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    model = affine(3)
    x, y = samples(3)
    x[12, 0, 0] = value
    with pytest.raises(
        ValueError,
        match=r"^model: expected finite outputs; received NaN or infinity for "
        r"1 of the 10 inputs of batch 1; its inputs are not, either\.$",
    ):
        evaluate_robustness(model, batched(x, y), verbose=0)


def test_model_with_broken_weights_is_refused():
    model = affine(3)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * np.nan, bias])
    with pytest.raises(
        ValueError, match=r"for 10 of the 10 inputs of batch 0\.$"
    ):
        evaluate_robustness(model, batched(*samples(3)), verbose=0)


# Data as for fit


class Numbered(keras.utils.PyDataset):
    """Batches by number, which counts what is asked for."""

    def __init__(self, x, y, size=10, form=tuple):
        super().__init__()
        self.x, self.y, self.size, self.form = x, y, size, form
        self.asked = []

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        self.asked.append(index)
        part = slice(index * self.size, (index + 1) * self.size)
        return self.form((self.x[part], self.y[part]))


FORMS = {
    "x, y": lambda x, y: {"data": x, "y": y, "batch_size": 10},
    "lists of labels": lambda x, y: {
        "data": x, "y": y.tolist(), "batch_size": 10
    },
    "one-hot": lambda x, y: {"data": x, "y": np.eye(10)[y], "batch_size": 10},
    "tuple": lambda x, y: {"data": (x, y), "batch_size": 10},
    "tensors": lambda x, y: {"data": (tf.constant(x), tf.constant(y))},
    "all at once": lambda x, y: {"data": x, "y": y, "batch_size": SAMPLES + 9},
    "PyDataset": lambda x, y: {"data": Numbered(x, y)},
    "PyDataset of lists": lambda x, y: {"data": Numbered(x, y, form=list)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_data_as_for_fit(model, data, report, form):
    found = evaluate_robustness(model, **FORMS[form](*data), verbose=0)
    np.testing.assert_array_equal(found.labels, report.labels)
    for name, values in report.values.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-5)


def test_arrays_come_in_batches_of_32_as_in_fit(model, data, tmp_path, capsys):
    x, y = (np.concatenate([part] * 3) for part in data)
    evaluate_robustness(model, x, y, checkpoint_dir=tmp_path)
    batches = -(-3 * SAMPLES // 32)
    assert len(list(tmp_path.glob("*.npz"))) == batches > 1
    assert f"{batches}/{batches}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["x, y", "PyDataset"])
def test_any_data_goes_on_where_it_was(model, data, tmp_path, form):
    settings = {"verbose": 0, "checkpoint_dir": tmp_path}
    first = evaluate_robustness(model, **FORMS[form](*data), **settings)
    last = sorted(tmp_path.glob("*.npz"))[-1]
    last.unlink()
    given = FORMS[form](*data)
    second = evaluate_robustness(model, **given, **settings)
    for name, values in first.values.items():
        np.testing.assert_array_equal(second.values[name], values)
    if form == "PyDataset":
        assert given["data"].asked == [0, len(given["data"]) - 1]


class Endless(Numbered):
    @property
    def num_batches(self):
        return None


ONE = (np.zeros((4, *SHAPE), np.float32), np.zeros(4, int))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ONE[0],), ValueError, "y: expected labels, one for each input; rec"),
        ((ONE[0], ONE[1][:3]), ValueError, "y: expected 4 labels, .* 3"),
        (((ONE[0], ONE[1][:3]),), ValueError, "y: expected 4 labels, .* 3"),
        ((ONE[0], 3), ValueError, "y: expected an array of samples; received"),
        (((*ONE, ONE[1]),), ValueError, "data: expected a tuple .* one of 3"),
        ((ONE, ONE[1]), ValueError, "data: .* without y; .* of 2 beside y"),
        ((batched(*ONE), ONE[1]), ValueError, "y: expected None, as a .*nda"),
        ((Numbered(*ONE), ONE[1]), ValueError, "y: expected None, as a Numb"),
        ((Endless(*ONE),), ValueError, "data: expected a PyDataset of a known"),
        ((list(ONE),), TypeError, "data: expected an array .* received list"),
        ((iter([ONE]),), TypeError, "data: .* received list_iterator"),
        # As was the order of arguments in 1.0.
        ((batched(*ONE), ["rho2"]), TypeError, r"y: .* metrics=\['rho2'\]"),
        ((batched(*ONE), "rho2"), TypeError, "y: .* metrics='rho2'"),
        ((batched(*ONE), ("accuracy", DeepFool())), TypeError, "y: .* metrics"),
        ((batched(*ONE), [DeepFool()]), TypeError, "y: .* metrics=.DeepFool"),
        ((batched(*ONE), np.array(["l2"])), TypeError, "y: .* metrics="),
    ],
)
def test_unfit_data_are_named(model, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        evaluate_robustness(model, *arguments, verbose=0)


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (batched(*ONE), 5, "expected None, as a .*Dataset comes in batches"),
        (Numbered(*ONE), 5, "expected None, as a Numbered comes in batches"),
        (ONE, 0, "expected an integer of at least 1; received 0"),
        (ONE, 1.5, "expected an integer of at least 1; received 1.5"),
    ],
)
def test_unfit_batch_sizes_are_named(model, data, size, message):
    with pytest.raises(ValueError, match=f"^batch_size: {message}"):
        evaluate_robustness(model, data, batch_size=size, verbose=0)


def test_empty_arrays_are_refused(model):
    empty = np.zeros((0, *SHAPE), np.float32), np.zeros(0, int)
    for data in (empty, Numbered(*empty)):
        with pytest.raises(ValueError, match=r"^data: expected at least one b"):
            evaluate_robustness(model, data, verbose=0)


@pytest.mark.slow
def test_random_attacks_do_not_depend_on_batches_or_order(convolutional):
    model, x, y = convolutional
    metrics = [
        attacks.PGD(0.02, steps=2, restarts=2),
        attacks.PGD(0.2, norm=2, steps=2),
        attacks.RandomNoise(0.3),
    ]

    def values(x, y, size):
        return evaluate_robustness(
            model, x, y, metrics=metrics, batch_size=size, verbose=0
        ).values

    whole = values(x, y, None)
    order = np.random.default_rng(3).permutation(len(x))
    shuffled = values(x[order], y[order], 7)
    fooled = [name for name in whole if name.endswith("_fooled")]
    assert len(fooled) == 3
    for name in fooled:
        np.testing.assert_array_equal(shuffled[name], whole[name][order])


# Reliability warnings


def ending(kernel, bias, activation=None, into=None):
    """Two inputs, two units and as many classes as the kernel has columns."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, activation=activation),
            keras.layers.Dense(len(bias)),
        ]
    )
    into = np.eye(2) if into is None else into
    model.set_weights([into, np.zeros(2), np.array(kernel), np.array(bias)])
    return model


SLOPES = [[1.0, -1.0], [0.5, 0.0]]
STUCK = {
    "dead units": ending(SLOPES, [1.0, 0.0], "relu", -np.eye(2)),
    "steps inside": ending(
        SLOPES, [1.0, 0.0], lambda x: keras.ops.sign(x - 0.5)
    ),
    "outputs all equal": ending(np.zeros((2, 2)), [0.0, 0.0]),
    "lost to rounding": ending(  # a step of 1e-15 / 2e35
        [[1e30, -1e30], [0.0, 0.0]], [1e-15, 0.0], into=1e5 * np.eye(2)
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("dead units", "rho2"), ("dead units", "fgsm_rho"),
        ("steps inside", "rhoinf"), ("steps inside", "fgsm_rho"),
        ("outputs all equal", "rho2"), ("lost to rounding", "rho2"),
        ("lost to rounding", "rhoinf"),
    ],
)  # fmt: skip
def test_zero_that_means_could_not_move_is_said(kind, metric):
    x = np.random.default_rng(0).uniform(0.6, 1, (20, 2)).astype(np.float32)
    if kind == "lost to rounding":
        x[:, 0] = 0
    report = evaluate_robustness(
        STUCK[kind], x, np.zeros(20), metrics=metric, verbose=0
    )
    assert report.summary()[metric] == 0.0
    (said,) = (w for w in report.warnings if "could not move" in w)
    assert said.startswith(f"{metric}: the attack could not move 100.0 % of")
    assert "counts as 0. This 0 does not mean" in said


def test_zero_on_the_boundary_is_a_distance():
    """Two classes tie, and any step at all changes the decision."""
    model = ending(SLOPES, [0.0, 0.0])
    x = np.array([[0.0, 0.0]], np.float32)
    report = evaluate_robustness(
        model, x, [0], metrics=["rho2", "fgsm_rho"], verbose=0
    )
    assert report.summary()["rho2"] == 0.0
    assert not any("could not move" in w for w in report.warnings)


class Saturated(keras.Model):
    """Probabilities that are 0 and 1 but for rounding, behind a call."""

    def __init__(self, scale):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.scale = scale

    def call(self, x):
        logits = self.dense(keras.layers.Flatten()(x))
        return keras.ops.softmax(self.scale * logits)


class Noisy(keras.Model):
    """Dropout that does not stop at inference."""

    def __init__(self, rate):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.dropout = keras.layers.Dropout(rate, seed=1)

    def call(self, x):
        x = keras.layers.Flatten()(x)
        return self.dense(self.dropout(x, training=True))


class Rippled(keras.Model):
    """A linear decision under waves, which its gradient follows."""

    def __init__(self, height):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.height = height

    def call(self, x):
        x = keras.layers.Flatten()(x)
        x += self.height * keras.ops.sin(100 * x)
        return self.dense(x)


def built(model, value):
    keras.utils.set_random_seed(0)
    model = model(value)
    model(np.zeros((1, *SHAPE), np.float32))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sound", "faulty", "activation", "warned_of"),
    [
        (Saturated, 1.0, 1e4, "softmax", "gradient .* is zero on"),
        (Noisy, 0.0, 0.5, "linear", "outputs are random"),
        (Rippled, 0.0, 0.02, "linear", "pgd: .*masking"),
    ],
    ids=["saturated", "random", "masked"],
)
def test_faulty_model_gives_reliability_warnings_and_a_sound_one_none(
    model, sound, faulty, activation, warned_of
):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 0.8, size=(200, *SHAPE)).astype(np.float32)
    settings = {
        "metrics": ["accuracy", "rho2", attacks.PGD(0.2, bounds=(0, 1))],
        "activation": activation,
        "verbose": 0,
    }
    dataset = batched(x, rng.integers(2, size=200), 100)
    report = evaluate_robustness(built(model, sound), dataset, **settings)
    assert report.warnings == ()
    with pytest.warns(UserWarning, match=warned_of):
        report = evaluate_robustness(built(model, faulty), dataset, **settings)
    assert any(re.search(warned_of, warning) for warning in report.warnings)
    assert all(f"Warning: {w}" in report.table() for w in report.warnings)


def test_attack_that_fools_nobody_gives_a_reliability_warning(convolutional):
    model, x, y = convolutional
    tiny = attacks.MinimalFGSM(eps_max=1e-6)
    with pytest.warns(
        UserWarning, match=r"^fgsm_rho: the attack did not change .* 100.0 %"
    ):
        evaluate_robustness(
            model,
            batched(x, y),
            metrics=evaluation.SmallestEps(tiny),
            verbose=0,
        )


@pytest.mark.slow
def test_strong_attack_that_finds_less_gives_a_reliability_warning(
    convolutional,
):
    model, x, y = convolutional
    weak = attacks.CarliniWagnerL2(binary_search_steps=1, initial_const=1e3)
    with pytest.warns(UserWarning, match=r"^cw_l2: .* is longer than the"):
        evaluate_robustness(
            model,
            batched(x, y),
            metrics=["rho2", evaluation.Distance(weak, "cw_")],
            verbose=0,
        )


# Interrupted and resumed


class BrokenOffError(Exception):
    pass


def breaking_off(dataset, after):
    """The data set, which fails after so many batches."""

    def fail(i, batch):
        def raise_it(index):
            if index >= after:
                raise BrokenOffError
            return index

        checked = tf.numpy_function(raise_it, [i], tf.int64)
        with tf.control_dependencies([checked]):
            return tf.nest.map_structure(tf.identity, batch)

    broken = dataset.enumerate().map(fail)
    return tf.data.Dataset.zip(broken, dataset).map(lambda a, b: b)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_evaluation_is_resumed_to_the_identical_report(
    convolutional, tmp_path, after
):
    model, x, y = convolutional
    settings = {"metrics": ALL, "bounds": (0, 1), "verbose": 0}
    dataset = batched(x, y, 5)
    whole = evaluate_robustness(model, dataset, **settings)
    whole.to_json(tmp_path / "whole.json")

    settings["checkpoint_dir"] = tmp_path / "checkpoint"
    with pytest.raises(tf.errors.OpError):
        evaluate_robustness(model, breaking_off(dataset, after), **settings)
    done = sorted(
        path.name for path in settings["checkpoint_dir"].glob("*.npz")
    )
    assert done == [f"batch_{i:06d}.npz" for i in range(after)]
    stamps = [(settings["checkpoint_dir"] / n).stat().st_mtime_ns for n in done]

    resumed = evaluate_robustness(model, dataset, **settings)
    resumed.to_json(tmp_path / "resumed.json")
    assert (tmp_path / "resumed.json").read_bytes() == (
        tmp_path / "whole.json"
    ).read_bytes()
    assert stamps == [  # not measured twice
        (settings["checkpoint_dir"] / n).stat().st_mtime_ns for n in done
    ]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """An evaluation that is all on disk: its settings, and its values."""
    settings = {
        "model": affine(5),
        "data": batched(*samples(5), 5).take(3),
        "verbose": 0,
        "checkpoint_dir": tmp_path_factory.mktemp("measured"),
    }
    return settings, evaluate_robustness(**settings).values


@pytest.fixture
def interrupted(measured, tmp_path):
    """A copy of it, to be damaged."""
    settings, values = measured
    shutil.copytree(settings["checkpoint_dir"], tmp_path, dirs_exist_ok=True)
    return {**settings, "checkpoint_dir": tmp_path}, values


def assert_damage_is_repaired(interrupted, path, damage, again=()):
    """It is warned of, and the next time nothing is left of it.

    Args:
        interrupted: the fixture.
        path: of the damaged file.
        damage: what it holds: bytes.
        again: numbers of batches that are measured again.
    """
    settings, expected = interrupted
    batches = sorted(settings["checkpoint_dir"].glob("batch_*.npz"))
    path.write_bytes(damage)
    stamps = [batch.stat().st_mtime_ns for batch in batches]
    with pytest.warns(
        UserWarning, match=rf"^{re.escape(str(path))}: expected .* is damaged"
    ) as caught:
        found = evaluate_robustness(**settings).values
    (warned,) = [w for w in caught if str(path) in str(w.message)]
    assert warned.filename == __file__  # it names who called
    written = [
        number
        for number, (batch, stamp) in enumerate(
            zip(batches, stamps, strict=True)
        )
        if batch.stat().st_mtime_ns != stamp
    ]
    assert written == list(again)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is damaged")
        repeated = evaluate_robustness(**settings).values
    for values in (found, repeated):
        assert values.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(values[name], array)


def _rewritten(data, change):
    """The npz with other arrays in it."""
    with np.load(io.BytesIO(data)) as arrays:
        arrays = dict(arrays)
    change(arrays)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _cut(arrays, name):
    arrays[name] = arrays[name][:-1]


def _cut_all(arrays):
    for name in arrays:
        if arrays[name].ndim:
            _cut(arrays, name)


def _in_directory(data, offset, value):
    """Changes a byte of what an archive tells of its first member."""
    changed = bytearray(data)
    changed[data.index(b"PK\x01\x02") + offset] = value
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:1],
        lambda data: data[:4],
        lambda data: data[:100],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-10],
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: b"not a batch",
        lambda data: b"[1, 2]",
        lambda data: _in_directory(data, 6, 255),  # of a later version
        lambda data: _in_directory(data, 8, 1),  # encrypted
        lambda data: _in_directory(data, 10, 99),  # compressed, but how?
        lambda data: _rewritten(data, lambda a: a.pop("rho2")),
        lambda data: _rewritten(data, lambda a: a.pop("checkpoint_notes")),
        lambda data: _rewritten(data, lambda a: _cut(a, "rho2")),
        lambda data: _rewritten(data, _cut_all),
        lambda data: _rewritten(data, lambda a: a.update(more=np.zeros(5))),
    ],
)  # fmt: skip
def test_damaged_batch_is_measured_again(interrupted, tmp_path, damage):
    path = tmp_path / "batch_000001.npz"
    assert_damage_is_repaired(
        interrupted, path, damage(path.read_bytes()), again=[1, 2]
    )


def test_no_damage_to_a_batch_goes_unnoticed(interrupted, tmp_path):
    """A byte of each file is changed, then it is cut off, in many places."""
    _, expected = interrupted
    path = tmp_path / "batch_000002.npz"
    data = path.read_bytes()
    told = json.loads((tmp_path / "evaluation.json").read_text())
    rng = np.random.default_rng(0)
    damages = [data[:length] for length in range(0, len(data), 40)]
    for place in rng.integers(0, len(data), 400):
        flipped = bytearray(data)
        flipped[place] ^= int(rng.integers(1, 256))
        damages.append(flipped)
    noticed = 0
    for damage in damages:
        path.write_bytes(damage)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parts = evaluation.checkpoint.Checkpoint(tmp_path, told).parts
        if len(parts) == 2:
            assert any(str(path) in str(w.message) for w in caught)
            noticed += 1
            continue
        for name, array in expected.items():
            np.testing.assert_array_equal(parts[2][name], array[10:])
    assert noticed > 0.8 * len(damages)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: b"\xff\xfe" + data,
        lambda data: b"[]x",
        lambda data: b"[1]",
        lambda data: b"7",
        lambda data: b"null",
    ],
)
def test_damaged_fingerprint_is_written_again(interrupted, tmp_path, damage):
    """The batches tell themselves what they are of."""
    path = tmp_path / "evaluation.json"
    data = path.read_bytes()
    assert_damage_is_repaired(interrupted, path, damage(data))
    assert path.read_bytes() == data


@pytest.mark.parametrize("fingerprint", ["missing", "damaged"])
def test_batches_of_another_evaluation_are_never_taken(
    interrupted, tmp_path, fingerprint
):
    settings, _ = interrupted
    path = tmp_path / "evaluation.json"
    path.unlink() if fingerprint == "missing" else path.write_bytes(b"")
    settings["model"] = affine(5, seed=9)
    expected = evaluate_robustness(
        settings["model"], settings["data"], verbose=0
    )
    for _ in range(2):  # the second time it is all of this evaluation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evaluate_robustness(**settings)
        for name, values in expected.values.items():
            np.testing.assert_array_equal(found.values[name], values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.update(metrics=["accuracy", "rho1"]), "metrics"),
        (lambda s: s.update(misclassified="zero"), "misclassified"),
        (lambda s: s.update(model=affine(5, seed=9)), "weights"),
        (
            lambda s: s.update(data=batched(*samples(5, seed=9), 5)),
            "first batch",
        ),
    ],
)
def test_checkpoint_of_another_evaluation_is_refused(tmp_path, change, named):
    settings = {
        "model": affine(5),
        "data": batched(*samples(5), 5),
        "verbose": 0,
        "checkpoint_dir": tmp_path,
    }
    evaluate_robustness(**settings)
    change(settings)
    with pytest.raises(
        ValueError, match=rf"^checkpoint_dir: .* the {named} of the one"
    ):
        evaluate_robustness(**settings)
