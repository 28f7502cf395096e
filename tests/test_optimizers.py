import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import CoupledSGD

KERNEL = np.array([[1.0, -2.0], [0.5, 3.0]])
BIAS = np.array([4.0, -1.0])
DECAY = 0.1  # far above the paper's, so that its effect shows in a few steps


def gradients(kernel, bias):
    """Of a loss that couples kernel and bias, so that errors would spread."""
    return np.sin(kernel) + bias, 2 * bias - kernel.sum(axis=0)


def numpy_steps(learning_rates, momentum, decay, nesterov=False):
    """v = m v - lr (g + decay w); w += v. (Nesterov: w += m v - lr g.)"""
    weights = [KERNEL.copy(), BIAS.copy()]
    velocities = [np.zeros_like(w) for w in weights]
    for lr in learning_rates:
        for i, g in enumerate(gradients(*weights)):
            step = -lr * (g + decay * weights[i])
            velocities[i] = momentum * velocities[i] + step
            weights[i] = weights[i] + (
                momentum * velocities[i] + step if nesterov else velocities[i]
            )
    return weights


def optimizer_steps(optimizer, steps, scale=1.0):
    kernel = keras.Variable(KERNEL, dtype="float64", name="kernel")
    bias = keras.Variable(BIAS, dtype="float64", name="bias")
    for _ in range(steps):
        found = gradients(kernel.numpy(), bias.numpy())
        optimizer.apply([tf.constant(scale * g) for g in found], [kernel, bias])
    return [kernel.numpy(), bias.numpy()]


def assert_weights_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        # Keras keeps learning rates and step counts in float32.
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_coupled_weight_decay(momentum, nesterov):
    optimizer = CoupledSGD(0.05, momentum, DECAY, nesterov=nesterov)
    expected = numpy_steps([0.05] * 6, momentum, DECAY, nesterov and momentum)
    assert_weights_equal(optimizer_steps(optimizer, 6), expected)


def test_decay_reaches_weights_and_biases_without_gradient():
    bias = keras.Variable([4.0], name="bias")
    optimizer = CoupledSGD(0.5, 0.0, DECAY)
    optimizer.apply([tf.constant([0.0])], [bias])
    assert bias.numpy()[0] == pytest.approx(4.0 * (1 - 0.5 * DECAY))


def test_training_equals_training_with_an_l2_penalty():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True) ** 2

    def train(optimizer, regularizer):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(
                    1,
                    kernel_initializer="ones",
                    bias_initializer="ones",
                    kernel_regularizer=regularizer,
                    bias_regularizer=regularizer,
                ),
            ]
        )
        model.compile(optimizer, "mse")
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    coupled = train(CoupledSGD(0.01, 0.9, DECAY), None)
    # The gradient of DECAY / 2 * ||w||^2 is DECAY * w.
    penalized = train(
        keras.optimizers.SGD(0.01, 0.9), keras.regularizers.L2(DECAY / 2)
    )
    for a, b in zip(coupled, penalized, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_steps_differ_from_decoupled_weight_decay():
    coupled = optimizer_steps(CoupledSGD(0.05, 0.9, DECAY), 6)
    decoupled = optimizer_steps(
        keras.optimizers.SGD(0.05, 0.9, weight_decay=DECAY), 6
    )
    assert np.abs(coupled[0] - decoupled[0]).max() > 0.01


def test_zero_decay_is_plain_sgd():
    plain = optimizer_steps(keras.optimizers.SGD(0.05, 0.9), 4)
    zero = CoupledSGD(0.05, 0.9, 0)
    assert zero.coupled_weight_decay == 0.0
    for a, b in zip(optimizer_steps(zero, 4), plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_defaults_are_the_papers():
    optimizer = CoupledSGD()
    assert float(optimizer.learning_rate) == pytest.approx(5e-4)
    assert optimizer.momentum == 0.9
    assert optimizer.coupled_weight_decay == 5e-4


def test_follows_a_learning_rate_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.05, 0.025]
    )
    optimizer = CoupledSGD(schedule, 0.9, DECAY)
    expected = numpy_steps([0.05, 0.05, 0.025, 0.025], 0.9, DECAY)
    assert_weights_equal(optimizer_steps(optimizer, 4), expected)


def test_loss_scaling_leaves_the_decay_unscaled():
    optimizer = keras.optimizers.LossScaleOptimizer(
        CoupledSGD(0.05, 0.9, DECAY), initial_scale=1024.0
    )
    expected = numpy_steps([0.05] * 4, 0.9, DECAY)
    assert_weights_equal(optimizer_steps(optimizer, 4, 1024.0), expected)


def test_config_round_trip_keeps_every_argument():
    optimizer = CoupledSGD(
        0.01, 0.8, 0.002, nesterov=True, clipnorm=3.0, name="mine"
    )
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copy) is CoupledSGD
    assert copy.coupled_weight_decay == 0.002
    assert (copy.momentum, copy.nesterov) == (0.8, True)
    assert (copy.clipnorm, copy.name) == (3.0, "mine")
    assert copy.get_config() == optimizer.get_config()


def test_zero_decay_survives_a_config_round_trip():
    optimizer = CoupledSGD(coupled_weight_decay=0)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert copy.coupled_weight_decay == 0.0


def test_saved_model_goes_on_with_its_momentum(tmp_path):
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(CoupledSGD(0.05, 0.9, DECAY), "mse")
    model.fit(x, y, epochs=2, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is CoupledSGD
    for each in (model, loaded):
        each.fit(x, y, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("decay", [-1e-4, math.inf, -math.inf, math.nan])
def test_invalid_decay_is_named(decay):
    message = (
        "coupled_weight_decay: expected a finite number >= 0; "
        f"received {decay!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CoupledSGD(coupled_weight_decay=decay)
