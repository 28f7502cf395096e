"""Small classifiers, inputs and comparisons for the tests of attacks."""

import math

import keras
import numpy as np
import tensorflow as tf
from conftest import affine_classifier


def affine(num_outputs, dim=6, batch=8, seed=0, scale=1.0, dtype="float64"):
    """A random affine model, its weights and biases by class, and inputs."""
    rng = np.random.default_rng(seed)
    weights = scale * rng.normal(size=(dim, num_outputs))
    biases = scale * rng.normal(size=num_outputs)
    x = rng.normal(size=(batch, dim))
    model = affine_classifier(weights, biases, dtype)
    if num_outputs == 1:  # the logits are (0, z)
        weights = np.hstack([np.zeros_like(weights), weights])
        biases = np.append(0.0, biases)
    return model, weights, biases, x


def two_classes(num_outputs=2, ends=math.inf, **kwargs):
    """A two-class affine model, inputs, their |z| and the way to z = 0."""
    model, weights, biases, x = affine(num_outputs, **kwargs)
    x = np.clip(x, -ends, ends)
    w, b = weights[:, 1] - weights[:, 0], biases[1] - biases[0]
    z = x @ w + b
    return model, x, abs(z), -np.sign(z)[:, None] * w


def curved_network(num_classes=4, dtype="float64", seed=1):
    """Images to logits that bend: attacks take several, differing steps."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype=dtype),
            layers.Conv2D(4, 3, activation="tanh", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(8, activation="tanh", dtype=dtype),
            layers.Dense(num_classes, dtype=dtype),
        ]
    )
    x = np.random.default_rng(seed).normal(size=(12, 4, 4, 1))
    return model, tf.constant(x, dtype)


def relu_network(into, biases, out_of, bias):
    """f_0 = relu(x into + biases) out_of + bias and f_1 = 0, for a number x."""
    into, out_of = np.array([into]), np.array(out_of)
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="float64"),
            keras.layers.Dense(2, activation="relu", dtype="float64"),
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    model.set_weights(
        [
            into,
            np.array(biases),
            np.stack([out_of, np.zeros(2)], axis=1),
            np.array([bias, 0.0]),
        ]
    )
    return model


def two_way_network():
    """f_0 = 1 - 2 relu(x) - 0.5 relu(-x), and 16 inputs at its kink.

    To the right of 0 the decision changes at 0.5, to the left at -2. They
    differ by next to nothing, as equal inputs have equal starts.
    """
    model = relu_network([1.0, -1.0], [0.0, 0.0], [-2.0, -0.5], 1.0)
    return model, 1e-200 * np.arange(16.0)[:, None]


def labels_with_mistakes(model, x):
    """The labels predicted, but every third one off by one."""
    logits = model(x).numpy()
    y = logits.argmax(-1)
    y[::3] = (y[::3] + 1) % logits.shape[1]
    return y


def assert_same(found, expected, tolerance=0.0):
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_array_equal(found.fooled, expected.fooled)
    np.testing.assert_array_equal(found.iterations, expected.iterations)
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, rtol=0, atol=tolerance
    )


def lengths(perturbation, p):
    flat = np.reshape(perturbation, (len(perturbation), -1))
    return np.linalg.norm(flat, ord=p, axis=1)


def fooled_by_foolbox(peer, attack, x, labels, eps):
    """Which samples one of Foolbox' attacks fools: (B,)."""
    _, _, success = attack(peer, x, labels, epsilons=[eps])
    return success[0].numpy()


def judged(network, digits):
    """The network, test inputs, their predictions, and the data's range."""
    x = tf.constant(digits[2])
    labels = tf.argmax(network(x), -1)  # Foolbox wants int64
    return network, x, labels, (float(np.min(x)), float(np.max(x)))
