import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from one_step import clusters, compiled, network, step

import dd_keras
from dd_keras import SplitExponential
from dd_keras.defenses import aggregation
from dd_keras.defenses.split_penalty import SHRINKAGES
from dd_keras.utils import norms

CORRECT, WRONG = 1.0, 0.0


def penalties(correct, rho, sample_weight=None, **arguments):
    """What a loss with these arguments gives, as an array."""
    loss = SplitExponential(**arguments)
    return loss(tf.constant(correct), tf.constant(rho), sample_weight).numpy()


def penalty_and_slope(loss, correct, rho):
    rho = tf.constant(rho)
    with tf.GradientTape() as tape:
        tape.watch(rho)
        penalty = loss(tf.constant(correct), rho)
    return float(penalty), tape.gradient(penalty, rho).numpy()


def test_penalty_is_equation_6():
    found = penalties(
        [1, 0, 1, 0], [0.0, 0.0, 0.1, 0.2], c=25.0, d=5.0, reduction=None
    )
    expected = [1.0, 1.0, math.exp(-2.5), math.exp(1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_defaults_are_the_papers():
    assert penalties([CORRECT], [0.1]) == pytest.approx(math.exp(-2.5))
    assert penalties([WRONG], [0.1]) == pytest.approx(math.exp(0.5))


def test_branches_are_not_swapped():
    far = [0.7]
    assert penalties([CORRECT], far, c=3.0, d=2.0) < 1
    assert penalties([WRONG], far, c=3.0, d=2.0) > 1


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32", "float64"])
def test_correctness_comes_in_any_dtype(dtype):
    correct = np.array([1, 0], dtype)
    found = penalties(correct, [1.0, 1.0], c=3.0, d=2.0, reduction=None)
    np.testing.assert_allclose(found, [math.exp(-3), math.exp(2)], 1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.8])
def test_robust_correct_samples_pull_less(rho):
    _, slope = penalty_and_slope(SplitExponential(c=7.0, d=2.0), [1], [rho])
    assert slope[0] < 0  # descending the gradient makes rho grow
    assert slope[0] == pytest.approx(-7 * math.exp(-7 * rho), rel=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.8])
def test_far_misclassified_samples_pull_more(rho):
    _, slope = penalty_and_slope(SplitExponential(c=7.0, d=2.0), [0], [rho])
    assert slope[0] > 0  # descending the gradient makes rho shrink
    assert slope[0] == pytest.approx(2 * math.exp(2 * rho), rel=1e-6)


def test_batch_gives_the_mean_over_all_samples():
    loss = SplitExponential(c=1.0, d=1.0)
    penalty, slope = penalty_and_slope(loss, [1, 1, 0, 0], [1.0, 0.0, 1.0, 2.0])
    e = math.e
    assert penalty == pytest.approx((1 / e + 1 + e + e**2) / 4, rel=1e-6)
    expected = np.array([-1 / e, -1, e, e**2]) / 4
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_sample_weights_weigh_before_the_mean():
    weights = tf.constant([2.0, 0.0, 0.5])
    found = penalties([1, 1, 0], [1.0, 3.0, 1.0], weights, c=1.0, d=1.0)
    expected = (2 * math.exp(-1) + 0.5 * math.e) / 3
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("correct", [CORRECT, WRONG])
@pytest.mark.parametrize("rho", [1e3, 1e30, math.inf])
def test_huge_rho_gives_finite_penalty_and_gradient(rho, correct):
    penalty, slope = penalty_and_slope(SplitExponential(), [correct], [rho])
    expected = 0.0 if correct else math.exp(30)
    assert penalty == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(slope, 0.0)


def test_exponent_is_cut_at_thirty_and_not_before():
    loss = SplitExponential(c=25.0, d=5.0)
    _, below = penalty_and_slope(loss, [WRONG], [5.99])
    _, above = penalty_and_slope(loss, [WRONG], [6.01])
    assert below[0] == pytest.approx(5 * math.exp(5 * 5.99), rel=1e-4)
    assert above[0] == 0.0


@pytest.mark.parametrize("argument", ["c", "d"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, -math.inf, math.nan])
def test_invalid_steepness_is_named(argument, value):
    message = f"{argument}: expected a finite number > 0; received {value!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SplitExponential(**{argument: value})


def test_float64_is_kept():
    found = penalties([1], np.array([0.1]), dtype="float64")
    assert found.dtype == "float64"
    assert found == pytest.approx(math.exp(-2.5), rel=1e-14)


def test_config_round_trip_keeps_every_argument():
    loss = SplitExponential(c=70.0, d=2.5, reduction="sum", name="penalty")
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(copy) is SplitExponential
    assert (copy.c, copy.d) == (70.0, 2.5)
    assert (copy.reduction, copy.name) == ("sum", "penalty")
    assert copy.get_config() == loss.get_config()


def test_loss_survives_in_a_saved_models_compile_config(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", SplitExponential(c=2.0, d=0.5))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.loss) is SplitExponential
    assert (loaded.loss.c, loaded.loss.d) == (2.0, 0.5)
    x, y = np.ones((4, 2)), np.array([[1], [0], [1], [0]])
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(
        model.evaluate(x, y, verbose=0)
    )


# The forms of Adversarial Margin Maximization, and the samples that count


FORMS = {
    "exponential": (lambda t: np.exp(-t), np.exp),
    "inverse": (lambda t: 1 / (1 + t), lambda t: 1 / (1 - t)),
    "hinge": (lambda t: np.maximum(1 - t, 0), lambda t: 1 + t),
    "linear": (lambda t: -t, lambda t: t),
}


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_each_form_and_its_slope(shrinkage):
    of_correct, of_wrong = FORMS[shrinkage]
    loss = SHRINKAGES[shrinkage](c=3.0, d=0.5, reduction=None)
    rho = np.array([0.1, 0.2, 0.9, 0.0], np.float64)
    for correct, form, scale in ((1, of_correct, 3.0), (0, of_wrong, 0.5)):
        labels = tf.fill(rho.shape, correct)
        tensor = tf.constant(rho, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            found = loss(labels, tensor)
        np.testing.assert_allclose(found, form(scale * rho), rtol=1e-6)
        h = 1e-6
        slope = (form(scale * (rho + h)) - form(scale * (rho - h))) / (2 * h)
        np.testing.assert_allclose(
            tape.gradient(found, tensor), slope, rtol=1e-5
        )


def test_the_pole_of_the_inverse_is_not_reached():
    loss = SHRINKAGES["inverse"](c=1.0, d=5.0, reduction=None)
    rho = tf.constant([0.19, 0.2, 100.0])
    with tf.GradientTape() as tape:
        tape.watch(rho)
        found = loss(tf.zeros(3), rho)
    np.testing.assert_allclose(found, [20, 50, 50], rtol=1e-4)
    np.testing.assert_allclose(tape.gradient(found, rho)[1:], [0, 0])


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_forms_are_saved_with_the_model(shrinkage):
    classifier = affine_classifier(np.eye(4)[:, :3], np.zeros(3), "float32")
    model = dd_keras.DeepDefenseModel(
        classifier, c=3.0, shrinkage=shrinkage, aggregation="min"
    )
    again = dd_keras.DeepDefenseModel.from_config(model.get_config())
    assert type(again.penalty) is SHRINKAGES[shrinkage]
    assert (again.penalty.c, again.aggregation) == (3.0, "min")
    again.c = 4.0
    assert type(again.penalty) is SHRINKAGES[shrinkage]


def weakest(rho, labels, correct, share=0.2):
    """By sorting, as it reads."""
    chosen = np.zeros(len(rho), bool)
    most = max(1, int(share * len(rho)))
    for kind, order in (
        (correct, np.argsort(rho, kind="stable")),
        (~correct, np.argsort(-rho, kind="stable")),
    ):
        order = [i for i in order if kind[i]]
        for label in set(labels):
            of_class = [i for i in order if labels[i] == label]
            if of_class and of_class[0] in order[:most]:
                chosen[of_class[0]] = True
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_the_weakest_of_each_class(seed):
    rng = np.random.default_rng(seed)
    size, classes = rng.integers(1, 40), int(rng.integers(2, 12))
    rho = rng.uniform(size=size).astype(np.float32)
    labels = rng.integers(classes, size=size).astype(np.int32)
    correct = rng.uniform(size=size) < rng.uniform()
    found = aggregation.weakest_of_each_class(
        tf.constant(rho), tf.constant(labels), tf.constant(correct), classes
    )
    expected = weakest(rho, labels, correct)
    np.testing.assert_array_equal(found, expected)
    assert expected.any()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_only_the_weakest_are_penalised(gradient):
    x, y = clusters(batch=30)
    classifier = network()
    weights = np.linspace(0.5, 2, len(y))
    attack = dd_keras.attacks.DeepFool(max_iter=5)
    found = attack.run(classifier, x, y)
    rho = norms.rho(found.perturbation, tf.constant(x)).numpy()
    correct = found.predictions.numpy() == y
    counts = weakest(rho, y, correct)
    assert counts.sum() >= 2
    penalties = np.where(correct, np.exp(-3 * rho), np.exp(0.5 * rho))

    def model(lam, **arguments):
        return compiled(
            dd_keras.DeepDefenseModel(
                classifier, lam=lam, c=3.0, d=0.5, gradient=gradient,
                attack=attack, **arguments,
            ),
            1e-9,
        )  # fmt: skip

    logs, by_min = step(model(2.0, aggregation="min"), x, y, weights)
    assert logs["regularization"] == pytest.approx(
        np.mean(penalties * counts * weights), rel=1e-5
    )
    _, by_weights = step(model(2.0), x, y, weights * counts)
    _, clean = step(model(0.0), x, y, weights)
    _, clean_of_few = step(model(0.0), x, y, weights * counts)
    for a, b, c, d in zip(by_min, clean, by_weights, clean_of_few, strict=True):
        np.testing.assert_allclose(a - b, c - d, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("argument", ["shrinkage", "aggregation"])
def test_unknown_forms_are_named(argument):
    classifier = affine_classifier(np.eye(4)[:, :3], np.zeros(3), "float32")
    with pytest.raises(ValueError, match=f"^{argument}: expected one of"):
        dd_keras.DeepDefenseModel(classifier, **{argument: "cubic"})
