"""Input-gradient regularisation, and what a penalty of one's own takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from one_step import (
    B,
    W,
    assert_all_close,
    clusters,
    compiled,
    network,
    softmax,
    step,
    without_second_derivative,
)

import dd_keras
from dd_keras import InputGradientModel

LAM = 0.7


def objective(w, b, x, y, weights):
    """Of an affine classifier, in NumPy."""
    p = softmax(x @ w + b)
    gradient = (p - np.eye(3)[y]) @ w.T
    loss = -np.log(p[np.arange(len(x)), y])
    return np.mean(weights * (loss + LAM * np.sum(gradient**2, axis=1)))


def central_differences(function, *arrays, h=1e-6):
    """The gradients of a function of arrays, entry by entry."""
    gradients = []
    for number, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[number][index] += sign * h
                ends.append(function(*moved))
            gradient[index] = (ends[0] - ends[1]) / (2 * h)
        gradients.append(gradient)
    return gradients


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighted", [False, True])
def test_step_on_an_affine_classifier_is_the_closed_form(weighted):
    x, y = clusters()
    weights = np.linspace(0, 2, len(y)) if weighted else None
    ones = np.ones(len(y)) if weights is None else weights
    model = compiled(InputGradientModel(affine_classifier(W, B), lam=LAM))
    logs, found = step(model, x, y, weights)
    assert logs["loss"] == pytest.approx(objective(W, B, x, y, ones), rel=1e-6)
    expected = central_differences(
        lambda w, b: objective(w, b, x, y, ones), W, B
    )
    assert_all_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "layers",
    [[], [keras.layers.LayerNormalization(dtype="float64")]],
    ids=["tanh", "layer norm"],
)
def test_step_is_the_central_difference_of_the_objective(layers):
    x, y = clusters()
    model = compiled(InputGradientModel(network(*layers), lam=LAM))
    weights = [np.array(w) for w in model.trainable_weights]
    _, found = step(model, x, y)
    rng = np.random.default_rng(2)
    direction = [rng.normal(size=w.shape) for w in weights]
    ends = []
    for h in (1e-5, -1e-5):
        for variable, w, d in zip(
            model.trainable_weights, weights, direction, strict=True
        ):
            variable.assign(w + h * d)
        ends.append(model.evaluate(x, y, verbose=0, return_dict=True)["loss"])
    slope = sum(np.sum(g * d) for g, d in zip(found, direction, strict=True))
    # The loss in the logs is a float32.
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-2)


@pytest.mark.thorough
def test_smaller_gradients_come_of_it():
    x, y = clusters(batch=48, dtype=np.float32)

    def size_after(lam):
        model = InputGradientModel(network(dtype="float32"), lam=lam)
        model.compile(
            keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy"
        )
        model.fit(x, y, epochs=20, shuffle=False, verbose=0)
        logs = InputGradientModel(model.model, lam=1.0)
        logs.compile("sgd", "sparse_categorical_crossentropy")
        found = logs.evaluate(x, y, verbose=0, return_dict=True)
        return found["regularization"]

    assert size_after(1.0) < 0.7 * size_after(0.0)


def test_layers_without_a_second_derivative_are_refused():
    with pytest.raises(ValueError, match="second derivative"):
        InputGradientModel(without_second_derivative(), lam=1.0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shared", [True, False])
def test_a_penalty_of_ones_own(shared):
    class SmallLogits(dd_keras.RegularizedDefenseModel):
        def penalties(self, x, labels, forward):
            return tf.reduce_sum(forward.logits**2, axis=-1)

        def shares_forward_pass(self):
            return shared

    x, y = clusters()
    weights = np.linspace(0, 2, len(y))
    z = x @ W + B
    model = compiled(SmallLogits(affine_classifier(W, B), lam=LAM))
    logs, found = step(model, x, y, weights)
    penalty = np.mean(weights * np.sum(z**2, axis=1))
    assert logs["regularization"] == pytest.approx(penalty, rel=1e-6)
    plain = compiled(SmallLogits(affine_classifier(W, B), lam=0.0))
    logs, clean = step(plain, x, y, weights)
    assert logs["regularization"] == 0
    by_logits = 2 * LAM * weights[:, None] * z / len(x)
    expected = [x.T @ by_logits, by_logits.sum(axis=0)]
    assert_all_close(
        [a - b for a, b in zip(found, clean, strict=True)], expected
    )


def test_lam_is_needed_and_checked():
    with pytest.raises(ValueError, match=r"^lam: expected a finite number"):
        InputGradientModel(network(), lam=-1)
    model = InputGradientModel(network(), lam=0.5)
    again = InputGradientModel.from_config(model.get_config())
    assert again.lam == 0.5
