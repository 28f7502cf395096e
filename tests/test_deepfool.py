import math

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from plain_formulation import PlainDeepFool

from dd_keras import attacks
from dd_keras.attacks import deepfool
from dd_keras.attacks import minimal_step as minimal_step_module
from dd_keras.utils import keras_internals, norms

OVERSHOOT = 0.02
STRETCH = 1 + OVERSHOOT
NORMS = (1, 2, 3, math.inf)


def random_affine(num_outputs, dim=6, batch=8, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(dim, num_outputs))
    biases = rng.normal(size=num_outputs)
    x = rng.normal(size=(batch, dim))
    return affine_classifier(weights, biases), weights, biases, x


def small_convnet(num_classes=4, seed=1, dtype="float64"):
    """Random weights; curved enough that DeepFool takes several steps."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype=dtype),
            layers.Conv2D(4, 3, activation="tanh", dtype=dtype),
            layers.MaxPooling2D(2, dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(8, activation="tanh", dtype=dtype),
            layers.Dense(num_classes, dtype=dtype),
        ]
    )


def images(batch=12, seed=2, dtype="float64"):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, 6, 6, 1)), dtype)


def labels_with_mistakes(model, x, every=3):
    """Predicted labels, but every third one off by one."""
    logits = model(x).numpy()
    y = logits.argmax(-1)
    y[::every] = (y[::every] + 1) % logits.shape[1]
    return tf.constant(y, tf.int32)


def value_and_gradients(model, x, y, attack):
    """A regulariser-like scalar, and its gradients by weights and inputs."""
    weights = list(model.trainable_weights)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = tf.function(lambda: attack.run(model, x, y))()
        rho = norms.rho(found.perturbation, x, attack.norm)
        value = tf.reduce_sum(tf.exp(-rho))
    return found, tape.gradient(value, [*weights, x])


# Closed forms on affine classifiers


def nearest_boundary(weights, biases, x, q, source):
    """For each row of x: |gap|, w and k of the boundary nearest to it."""
    logits = x @ weights + biases
    found = []
    for row, s in zip(logits, source, strict=True):
        options = []
        for k in range(len(row)):
            if k != s:
                w = weights[:, k] - weights[:, s]
                gap = row[s] - row[k]
                options.append((abs(gap) / np.linalg.norm(w, q), k))
        _, k = min(options)
        found.append((row[s] - row[k], weights[:, k] - weights[:, s], k))
    return found


def minimal_step(gap, w, p):
    q = norms.dual_norm(p)
    if p == 1:
        step = np.zeros_like(w)
        j = np.abs(w).argmax()
        step[j] = gap / w[j]
        return step
    return gap / np.sum(np.abs(w) ** q) * np.abs(w) ** (q - 1) * np.sign(w)


@pytest.mark.parametrize("p", NORMS)
def test_ten_class_affine_is_one_exact_step(p):
    model, weights, biases, x = random_affine(10)
    source = (x @ weights + biases).argmax(-1)
    found = attacks.DeepFool(norm=p).run(model, x)
    boundary = nearest_boundary(weights, biases, x, norms.dual_norm(p), source)
    expected = [STRETCH * minimal_step(gap, w, p) for gap, w, _ in boundary]
    np.testing.assert_allclose(found.perturbation, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.iterations, 1)
    np.testing.assert_array_equal(found.fooled, True)
    np.testing.assert_array_equal(found.predictions, source)
    adversarial = (x + found.perturbation.numpy()) @ weights + biases
    np.testing.assert_array_equal(
        adversarial.argmax(-1), [k for _, _, k in boundary]
    )


@pytest.mark.parametrize("p", NORMS)
def test_binary_affine_is_one_exact_step(p):
    model, weights, biases, x = random_affine(1)
    z = x @ weights[:, 0] + biases[0]
    found = attacks.DeepFool(norm=p).run(model, x)
    # The logits are (0, z): towards class 1 the gradient is w, else -w.
    expected = [
        STRETCH * minimal_step(abs(v), -np.sign(v) * weights[:, 0], p)
        for v in z
    ]
    np.testing.assert_allclose(found.perturbation, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.predictions, z > 0)
    np.testing.assert_array_equal(found.iterations, 1)


def norm_gradient(w, q):
    """d ||w||_q / dw."""
    if q == math.inf:
        gradient = np.zeros_like(w)
        j = np.abs(w).argmax()
        gradient[j] = np.sign(w[j])
        return gradient
    return np.abs(w) ** (q - 1) * np.sign(w) / np.linalg.norm(w, q) ** (q - 1)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("num_outputs", [1, 10])
def test_regulariser_gradient_on_affine_equals_hand_derivation(p, num_outputs):
    c, d = 3.0, 0.7
    model, weights, biases, x = random_affine(num_outputs)
    if num_outputs == 1:  # as two classes, f = (0, z)
        two = np.hstack([np.zeros_like(weights), weights])
        two_biases = np.array([0.0, biases[0]])
    else:
        two, two_biases = weights, biases
    predicted = (x @ two + two_biases).argmax(-1)
    y = predicted.copy()
    if num_outputs == 1:
        y[::2] = 1 - y[::2]  # misclassified: one step in the binary case
    q = norms.dual_norm(p)
    to_weights = np.zeros_like(two)
    to_biases = np.zeros_like(two_biases)
    boundary = nearest_boundary(two, two_biases, x, q, predicted)
    for i, (gap, w, k) in enumerate(boundary):
        slope = np.linalg.norm(w, q)
        size = np.linalg.norm(x[i], p)
        rho = STRETCH * gap / (slope * size)
        # rho = STRETCH * (f_s - f_k) / (||w_k - w_s||_q ||x||_p)
        by_gap = STRETCH / (slope * size)
        by_w = -rho / slope * norm_gradient(w, q)
        correct = y[i] == predicted[i]
        outer = -c * np.exp(-c * rho) if correct else d * np.exp(d * rho)
        s = predicted[i]
        to_weights[:, s] += outer * (by_gap * x[i] - by_w)
        to_weights[:, k] += outer * (-by_gap * x[i] + by_w)
        to_biases[s] += outer * by_gap
        to_biases[k] -= outer * by_gap
    if num_outputs == 1:
        to_weights, to_biases = to_weights[:, 1:], to_biases[1:]

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        found = attacks.DeepFool(norm=p).run(model, x, y)
        rho = norms.rho(found.perturbation, x, p)
        correct = found.predictions == y
        penalty = tf.reduce_sum(
            tf.where(correct, tf.exp(-c * rho), tf.exp(d * rho))
        )
    gradients = tape.gradient(penalty, model.trainable_weights)
    np.testing.assert_allclose(gradients[0], to_weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradients[1], to_biases, rtol=1e-9, atol=1e-12)


def test_relu_network_follows_the_papers_reverse_formula():
    # Eq. 5: grad f = W0 (1[a > 0] * w1), with a = W0^T x + b0.
    rng = np.random.default_rng(3)
    w0, b0 = rng.normal(size=(5, 7)), rng.normal(size=7)
    w1, b1 = rng.normal(size=(7, 1)), rng.normal(size=1)
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="float64"),
            keras.layers.Dense(7, activation="relu", dtype="float64"),
            keras.layers.Dense(1, dtype="float64"),
        ]
    )
    model.set_weights([w0, b0, w1, b1])
    x = rng.normal(size=5)
    on = (x @ w0 + b0 > 0).astype(float)
    g = w0 @ (on * w1[:, 0])
    f = (on * (x @ w0 + b0)) @ w1[:, 0] + b1[0]
    size = np.linalg.norm(x)
    rho = STRETCH * abs(f) / (np.linalg.norm(g) * size)
    # rho by g and by |f|; both reach W0 through the active units alone.
    by_f = STRETCH * np.sign(f) / (np.linalg.norm(g) * size)
    by_g = -rho / (g @ g) * g
    active = on * w1[:, 0]
    to_w0 = np.outer(by_f * x + by_g, active)
    to_w1 = on * (by_f * (x @ w0 + b0) + by_g @ w0)

    x = tf.constant(x[None])
    with tf.GradientTape() as tape:
        found = attacks.DeepFool(max_iter=1).run(model, x)
        value = norms.rho(found.perturbation, x)[0]
    gradients = tape.gradient(value, model.trainable_weights)
    np.testing.assert_allclose(
        found.perturbation[0], -STRETCH * f / (g @ g) * g, rtol=1e-12
    )
    np.testing.assert_allclose(value, rho, rtol=1e-12)
    np.testing.assert_allclose(gradients[0], to_w0, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(gradients[1], by_f * active, rtol=1e-9)
    np.testing.assert_allclose(gradients[2][:, 0], to_w1, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(gradients[3], [by_f], rtol=1e-9)


# The gradient, against finite differences


class LocalResponseNormalization(keras.layers.Layer):
    """Across channels, from operations that have second derivatives."""

    def call(self, x):
        squares = tf.pad(x**2, [[0, 0], [0, 0], [0, 0], [1, 1]])
        window = squares[..., :-2] + squares[..., 1:-1] + squares[..., 2:]
        return x / (2.0 + 0.5 * window) ** 0.75


def layered_network():
    """Every layer that second derivatives have been known to break on."""
    keras.utils.set_random_seed(4)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((9, 9, 1), dtype="float64"),
            layers.Conv2D(3, 3, padding="same"),
            layers.PReLU(shared_axes=[1, 2]),
            LocalResponseNormalization(),
            layers.MaxPooling2D(3, strides=2),  # overlapping windows
            layers.Conv2D(4, 2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.AveragePooling2D(2, strides=1),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(5)
    for weight in model.weights:
        fan_in = math.prod(weight.shape[:-1])
        values = rng.normal(scale=2 * fan_in**-0.5, size=weight.shape)
        if not weight.path.endswith("kernel"):
            values *= 0.1
        if weight.path.endswith(("variance", "gamma")):
            values += 1
        weight.assign(values)
    # Centred logits, so that every class is predicted for some input.
    x = rng.normal(size=(500, 9, 9, 1))
    bias = model.layers[-1].bias
    bias.assign(bias - tf.reduce_mean(model(x), axis=0))
    return model


def assert_gradient_equals_finite_differences(attack):
    model = layered_network()
    x = np.random.default_rng(7).normal(size=(8, 9, 9, 1))
    if attack.bounds is not None:
        x = np.clip(x, *attack.bounds)
    x = tf.constant(x)
    y = labels_with_mistakes(model, x)

    @tf.function
    def objective():
        found = attack.run(model, x, y)
        rho = norms.rho(found.perturbation, x, attack.norm)
        correct = found.predictions == y
        penalty = tf.where(correct, tf.exp(-2 * rho), tf.exp(0.5 * rho))
        return tf.reduce_sum(penalty), found.iterations

    with tf.GradientTape() as tape:
        value, iterations = objective()
    gradients = tape.gradient(value, model.trainable_weights)
    assert iterations.numpy().max() == attack.max_iter  # really unrolled
    assert iterations.numpy().min() < attack.max_iter  # and some stopped
    for weight, gradient in zip(
        model.trainable_weights, gradients, strict=True
    ):
        values = weight.numpy()
        expected = np.zeros(values.size)
        # The truncation error falls with the square of the width, rounding
        # grows with its inverse: 1e-5 leaves either near 1e-10.
        width = 1e-5
        for i in range(values.size):
            sides = []
            for sign in (1, -1):
                moved = values.copy()
                moved.flat[i] += sign * width
                weight.assign(moved)
                sides.append(objective()[0].numpy())
            expected[i] = (sides[0] - sides[1]) / (2 * width)
        weight.assign(values)
        error = np.abs(gradient.numpy().ravel() - expected).max()
        allowed = 1e-6 * np.abs(expected).max()
        assert error < allowed, f"gradient of {weight.path}"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("p", [2, 3])
def test_gradient_equals_finite_differences(p):
    assert_gradient_equals_finite_differences(
        attacks.DeepFool(norm=p, max_iter=3)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_gradient_within_bounds_equals_finite_differences():
    attack = attacks.DeepFool(norm=math.inf, max_iter=3, bounds=(-0.9, 0.8))
    assert_gradient_equals_finite_differences(attack)


def stop_step(monkeypatch):
    step = minimal_step_module.minimal_step
    monkeypatch.setattr(
        minimal_step_module,
        "minimal_step",
        lambda *a: tf.stop_gradient(step(*a)),
    )


def stop_chosen_logits(monkeypatch):
    step = minimal_step_module.minimal_step
    monkeypatch.setattr(
        minimal_step_module,
        "minimal_step",
        lambda gap, *a: step(tf.stop_gradient(gap), *a),
    )


def stop_input(monkeypatch):
    of = attacks.Forward.of
    monkeypatch.setattr(
        attacks.Forward, "of", lambda f, x: of(f, tf.stop_gradient(x))
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stop", [stop_step, stop_chosen_logits, stop_input])
def test_finite_differences_notice_a_stopped_gradient(monkeypatch, stop):
    stop(monkeypatch)
    with pytest.raises(AssertionError, match="gradient of"):
        assert_gradient_equals_finite_differences(attacks.DeepFool(max_iter=3))


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [None, (-0.5, 0.6)])
def test_gradient_by_inputs_equals_finite_differences(bounds):
    model, x = small_convnet(), images(batch=3)
    if bounds is not None:  # near, so that some pixels reach them
        x = tf.clip_by_value(x, -0.48, 0.58)
    y = labels_with_mistakes(model, x)
    attack = attacks.DeepFool(max_iter=3, bounds=bounds)
    if bounds is not None:
        found = attack.run(model, x, y)
        assert_within(x + found.perturbation, bounds)
        assert number_at(x + found.perturbation, bounds) > 3

    @tf.function
    def objective(x):
        return tf.reduce_sum(attack.run(model, x, y).perturbation ** 2)

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = objective(x)
    gradient = tape.gradient(value, x).numpy().ravel()
    expected = np.zeros(gradient.size)
    for i in range(gradient.size):
        step = np.zeros(gradient.size)
        step[i] = 1e-6
        step = tf.reshape(tf.constant(step), x.shape)
        expected[i] = (objective(x + step) - objective(x - step)) / 2e-6
    error = np.abs(gradient - expected).max()
    assert error < 1e-6 * np.abs(expected).max()


# The plain formulation: one tape, all class gradients, every iteration


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "max_iter", "candidates"),
    [
        (1, 3, None), (1.5, 3, 2), (2, 1, 2), (2, 4, None), (math.inf, 3, 2),
    ],
)  # fmt: skip
def test_equals_plain_formulation(norm, max_iter, candidates):
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x)
    settings = {"norm": norm, "max_iter": max_iter, "candidates": candidates}
    found, gradients = value_and_gradients(
        model, x, y, attacks.DeepFool(**settings)
    )
    plain, expected = value_and_gradients(
        model, x, y, PlainDeepFool(**settings)
    )
    if max_iter > 1:
        assert len(set(plain.iterations.numpy())) > 1
    assert_same(found, plain, 1e-9)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-10)


# Samples do not disturb each other


def assert_same(found, expected, rtol):
    np.testing.assert_array_equal(found.iterations, expected.iterations)
    np.testing.assert_array_equal(found.fooled, expected.fooled)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, rtol=rtol, atol=rtol
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, math.inf])
def test_dropping_equals_masking_equals_each_sample_alone(monkeypatch, norm):
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x)
    attack = attacks.DeepFool(norm=norm, max_iter=6)
    dropped, gradients = value_and_gradients(model, x, y, attack)
    assert len(set(dropped.iterations.numpy())) > 1  # some stop earlier

    alone = [attack.run(model, x[i : i + 1], y[i : i + 1]) for i in range(12)]
    joined = attacks.AttackResult(
        *(tf.concat(parts, 0) for parts in zip(*alone, strict=True))
    )
    assert_same(dropped, joined, 1e-10)

    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    masked, masked_gradients = value_and_gradients(model, x, y, attack)
    assert_same(dropped, masked, 1e-10)
    for got, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_xla_equals_plain():
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x)
    attack = attacks.DeepFool(max_iter=4)

    def attack_and_gradients(x, y):
        with tf.GradientTape() as tape:
            found = attack.run(model, x, y)
            value = tf.reduce_sum(found.perturbation**2)
        return found, tape.gradient(value, model.trainable_weights)

    plain = tf.function(attack_and_gradients)(x, y)
    compiled = tf.function(attack_and_gradients, jit_compile=True)(x, y)
    assert len(set(plain[0].iterations.numpy())) > 1
    assert_same(compiled[0], plain[0], 1e-9)
    for got, expected in zip(compiled[1], plain[1], strict=True):
        error = np.abs(got - expected).max()
        assert error < 1e-9 * np.abs(expected).max()


def test_order_in_the_batch_does_not_matter():
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x)
    order = np.random.default_rng(0).permutation(12)
    attack = attacks.DeepFool(max_iter=5)
    found = attack.run(model, x, y)
    shuffled = attack.run(model, tf.gather(x, order), tf.gather(y, order))
    expected = attacks.AttackResult(*(tf.gather(part, order) for part in found))
    assert_same(shuffled, expected, 1e-10)


@pytest.mark.slow
def test_inside_and_outside_of_a_graph_are_the_same():
    model, x = small_convnet(), images()
    attack = attacks.DeepFool(max_iter=5)
    outside = attack.run(model, x)
    inside = tf.function(lambda: attack.run(model, x))()
    assert_same(inside, outside, 1e-12)
    tf.config.run_functions_eagerly(True)
    try:
        eager = attack.run(model, x)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_same(eager, outside, 1e-10)


def nodes(graph_def):
    """Number of operations, those of all functions included."""
    functions = graph_def.library.function
    return len(graph_def.node) + sum(len(f.node_def) for f in functions)


@pytest.mark.slow
def test_graph_does_not_grow_with_the_iterations():
    """So neither does memory: no activations of one wait for another."""
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x)
    sizes = []
    for max_iter in (5, 50):
        attack = attacks.DeepFool(max_iter=max_iter)

        @tf.function
        def gradient(x, attack=attack):
            with tf.GradientTape() as tape:
                found = attack.run(model, x, y)
                value = tf.reduce_sum(found.perturbation)
            return tape.gradient(value, model.trainable_weights)

        graph = gradient.get_concrete_function(x).graph
        sizes.append(nodes(graph.as_graph_def()))
    assert sizes[0] == sizes[1] > 100


@pytest.mark.slow
def test_many_classes_take_the_loop_and_few_the_unrolled_form(monkeypatch):
    model, x = small_convnet(num_classes=5), images()
    unrolled, gradients = value_and_gradients(
        model, x, None, attacks.DeepFool(max_iter=4)
    )
    monkeypatch.setattr(deepfool, "_UNROLLED_CLASSES", 2)
    looped, looped_gradients = value_and_gradients(
        model, x, None, attacks.DeepFool(max_iter=4)
    )
    assert_same(looped, unrolled, 1e-10)
    for got, expected in zip(looped_gradients, gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


# What the attack promises


@pytest.mark.parametrize("norm", [1, 1.5, 2, 4, math.inf])
def test_perturbed_inputs_change_class(norm):
    model, x = small_convnet(), images()
    attack = attacks.DeepFool(norm=norm)
    found = attack.run(model, x)
    adversarial = attack(model, x)
    np.testing.assert_allclose(adversarial, x + found.perturbation)
    after = model(adversarial).numpy().argmax(-1)
    np.testing.assert_array_equal(after != found.predictions, found.fooled)
    assert found.fooled.numpy().mean() > 0.8  # in l_1, tanh units saturate
    if norm == math.inf:  # every pixel of a step moves by the same amount
        one = attacks.DeepFool(norm=norm, max_iter=1).perturb(model, x)
        for size in np.abs(one).reshape(12, -1):
            # Pixels that no pool lets through have a zero gradient.
            assert np.ptp(size[size > 0]) < 1e-12
    if norm == 1:  # a step moves one pixel
        one = attacks.DeepFool(norm=norm, max_iter=1).perturb(model, x)
        np.testing.assert_array_equal(np.count_nonzero(one, (1, 2, 3)), 1)


def test_misclassified_samples_are_moved_to_their_label():
    model, x = small_convnet(), images()
    y = labels_with_mistakes(model, x, every=2)
    found = attacks.DeepFool().run(model, x, y)
    wrong = found.predictions != y
    assert wrong.numpy().sum() == 6
    after = model(x + found.perturbation).numpy().argmax(-1)
    np.testing.assert_array_equal(after[wrong], y[wrong])
    assert np.all(after[~wrong] != y[~wrong])
    assert found.fooled.numpy().all()


def test_candidates_restrict_the_targets_to_the_most_probable():
    # Three classes on a line: from s = 0, class 1 is more probable, but
    # class 2, with the steeper slope, is nearer.
    model = affine_classifier([[0.0, 1.0, 10.0]], [0.0, -2.0, -11.0])
    x = [[0.5]]
    step = attacks.DeepFool(candidates=1).perturb(model, x)
    np.testing.assert_allclose(step, [[1.5 * STRETCH]])
    step = attacks.DeepFool().perturb(model, x)
    np.testing.assert_allclose(step, [[0.6 * STRETCH]])
    every = attacks.DeepFool(candidates=2).perturb(model, x)
    np.testing.assert_allclose(every, step)


def test_overshoot_and_max_iter_are_honoured():
    model, x = small_convnet(), images()
    short = attacks.DeepFool(max_iter=1).run(model, x)
    np.testing.assert_array_equal(short.iterations, 1)
    assert not short.fooled.numpy().all()
    exact = attacks.DeepFool(overshoot=0, max_iter=1).run(model, x)
    np.testing.assert_allclose(
        short.perturbation, 1.02 * exact.perturbation, rtol=1e-12
    )


# Bounds


def assert_within(adversarial, bounds, slack=1e-12):
    low, high = bounds
    assert np.all(adversarial >= low - slack)
    assert np.all(adversarial <= high + slack)


def number_at(adversarial, bounds):
    """How many entries are at either end."""
    low, high = bounds
    at_end = np.isclose(adversarial, low) | np.isclose(adversarial, high)
    return np.count_nonzero(at_end)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_wide_bounds_change_nothing_at_all(norm):
    model, x = small_convnet(dtype="float32"), images(dtype="float32")
    y = labels_with_mistakes(model, x)
    free = attacks.DeepFool(norm=norm)
    wide = attacks.DeepFool(norm=norm, bounds=(-1e6, 1e6))
    assert_same(wide.run(model, x, y), free.run(model, x, y), 0)


@pytest.mark.slow
def test_wide_bounds_do_not_change_the_gradient():
    model, x = small_convnet(dtype="float32"), images(dtype="float32")
    y = labels_with_mistakes(model, x)
    free, gradients = value_and_gradients(model, x, y, attacks.DeepFool())
    wide, wide_gradients = value_and_gradients(
        model, x, y, attacks.DeepFool(bounds=(-1e6, 1e6))
    )
    assert_same(wide, free, 0)
    for got, expected in zip(wide_gradients, gradients, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(1, "arrays"), (2, "numbers"), (3, "numbers"), (math.inf, "arrays")],
)
def test_nothing_leaves_the_bounds(norm, kind):
    model, x = small_convnet(), tf.clip_by_value(images(), -0.5, 0.7)
    y = labels_with_mistakes(model, x)
    bounds = (-0.5, 0.7)
    if kind == "arrays":
        rng = np.random.default_rng(0)
        bounds = (
            -0.5 - 0.1 * rng.uniform(size=(6, 6, 1)),
            0.7 + 0.1 * rng.uniform(size=(6, 6, 1)),
        )
    found = attacks.DeepFool(norm=norm, bounds=bounds).run(model, x, y)
    adversarial = x + found.perturbation
    assert_within(adversarial, bounds)
    moved = np.abs(found.perturbation) > 0
    assert number_at(adversarial[moved], [  # some were cut short
        np.broadcast_to(b, x.shape)[moved] for b in bounds
    ]) > 0  # fmt: skip
    after = model(adversarial).numpy().argmax(-1)
    right = found.predictions == y
    np.testing.assert_array_equal((after != y) == right, found.fooled)
    assert np.mean(found.fooled) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("p", NORMS)
def test_affine_step_that_a_bound_clips_is_followed_by_the_others(p):
    # f = (1, 3 x_0 + x_1): the step to f_0 = f_1 would take x_0 beyond 0.2.
    # There, x_1 is left to close the gap of 1 - 3 * 0.2, whatever the norm.
    model = affine_classifier([[0.0, 3.0], [0.0, 1.0]], [1.0, 0.0])
    bounds = ([-5.0, -5.0], [0.2, 5.0])
    found = attacks.DeepFool(norm=p, bounds=bounds).run(model, np.zeros((1, 2)))
    np.testing.assert_allclose(
        found.perturbation, [[0.2, STRETCH * 0.4]], rtol=1e-12
    )
    np.testing.assert_array_equal(found.iterations, 2)
    np.testing.assert_array_equal(found.fooled, True)


@pytest.mark.parametrize("p", NORMS)
def test_affine_in_a_box_takes_a_step_an_entry_at_most(p):
    model, weights, biases, x = random_affine(2, dim=12, batch=20)
    bounds = (-0.4, 0.4)
    x = np.clip(x, *bounds)
    x[1] = x[0]  # nobody else's steps count
    found = attacks.DeepFool(norm=p, bounds=bounds).run(model, x)
    assert_within(x + found.perturbation.numpy(), bounds)
    # Who can be fooled at all: the farthest corner decides otherwise.
    logits = x @ weights + biases
    s = logits.argmax(-1)
    w = (weights[:, 1] - weights[:, 0]) * np.where(s == 0, 1, -1)[:, None]
    corner = np.where(w > 0, 0.4, -0.4)
    farthest = (corner[:, None] @ weights)[:, 0] + biases
    reachable = farthest.argmax(-1) != s
    assert reachable.sum() > 0
    np.testing.assert_array_equal(found.fooled, reachable)
    assert np.max(found.iterations) <= 12


def test_a_boundary_beyond_the_bounds_is_not_stepped_to():
    # From class 0, class 1 is nearer, but only by the entry at its end.
    model = affine_classifier(
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0, -0.1, -0.5]
    )
    x = np.array([[0.0, 0.0]])
    step = attacks.DeepFool().perturb(model, x)
    np.testing.assert_allclose(step, [[STRETCH * 0.1, 0.0]])
    found = attacks.DeepFool(bounds=([-1, -1], [0, 1])).run(model, x)
    np.testing.assert_allclose(found.perturbation, [[0.0, STRETCH * 0.5]])
    np.testing.assert_array_equal(found.iterations, 1)


@pytest.mark.parametrize("p", [1, math.inf])
def test_a_sample_in_the_corner_stops_at_once(p):
    model = affine_classifier([[1.0, 0.0], [-2.0, 0.0]], [9.0, 0.0], "float32")
    x = np.array([[-1.0, 1.0], [-1.0, 1.0]], np.float32)
    attack = attacks.DeepFool(norm=p, bounds=(-1, 1))
    found, rho, _ = regulariser_gradient(model, x, [0, 0], attack)
    np.testing.assert_array_equal(found.perturbation, 0)
    np.testing.assert_array_equal(found.iterations, 1)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(rho, 0)


@pytest.mark.parametrize("p", [2, 3])
def test_samples_that_rounding_keeps_off_the_bounds_stop(p):
    # 0.1 - x + x is not 0.1 for most x in float32.
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 2))
    model = affine_classifier(weights, [1e6, 0.0], "float32")
    x = rng.uniform(-99.9, 0.1, (50, 5)).astype(np.float32)
    attack = attacks.DeepFool(norm=p, bounds=(-99.9, 0.1))
    found, _, _ = regulariser_gradient(model, x, np.zeros(50), attack)
    np.testing.assert_array_equal(found.fooled, False)
    uphill = weights[:, 1] - weights[:, 0]
    expected = np.where(uphill > 0, 0.1, -99.9)
    np.testing.assert_allclose(
        x + found.perturbation, np.tile(expected, (50, 1)), atol=2e-3
    )
    assert np.max(found.iterations) <= 6


@pytest.mark.slow
def test_dropping_equals_masking_within_bounds(monkeypatch):
    model, x = small_convnet(), tf.clip_by_value(images(), -0.5, 0.7)
    y = labels_with_mistakes(model, x)
    attack = attacks.DeepFool(norm=1, max_iter=6, bounds=(-0.5, 0.7))
    dropped, gradients = value_and_gradients(model, x, y, attack)
    assert len(set(dropped.iterations.numpy())) > 1
    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    masked, masked_gradients = value_and_gradients(model, x, y, attack)
    assert_same(dropped, masked, 1e-10)
    for got, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


def test_bounds_do_not_keep_digits_from_being_fooled(trained_network, digits):
    """In l_1 every step is one pixel's, which its bound cuts short."""
    x = tf.constant(digits[2][:100])
    bounds = (float(np.min(x)), float(np.max(x)))
    attack = attacks.DeepFool(norm=1, bounds=bounds)
    found = attack.run(trained_network, x)
    assert_within(x + found.perturbation, bounds, slack=1e-3)
    assert number_at(x + found.perturbation, bounds) > number_at(x, bounds)
    np.testing.assert_array_equal(found.fooled, True)


@pytest.mark.slow
def test_agrees_with_foolbox(trained_network, digits):
    _, _, x, _ = digits
    x = tf.constant(x[:200])
    labels = tf.argmax(trained_network(x), -1)
    peer = foolbox.TensorFlowModel(trained_network, bounds=(-512, 512))
    oracle = foolbox.attacks.L2DeepFoolAttack(
        steps=50, candidates=None, overshoot=OVERSHOOT
    )
    _, (adversarial,), success = oracle(peer, x, labels, epsilons=[None])
    assert tf.reduce_all(success)
    theirs = np.mean(norms.rho(adversarial - x, x))
    ours = np.mean(norms.rho(attacks.DeepFool().perturb(trained_network, x), x))
    assert abs(ours / theirs - 1) < 0.02


# Degenerate inputs and models


def regulariser_gradient(model, x, y, attack):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        found = attack.run(model, x, y)
        rho = norms.rho(found.perturbation, x, attack.norm)
        value = tf.reduce_mean(tf.exp(-25 * rho))
    gradients = tape.gradient(value, model.trainable_weights)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    assert np.isfinite(value)
    return found, rho, gradients


@pytest.mark.parametrize("norm", NORMS)
def test_constant_network_is_left_alone(norm):
    model = affine_classifier(np.zeros((4, 3)), [1.0, 0.0, 0.0], "float32")
    x = np.ones((5, 4), np.float32)
    found, rho, gradients = regulariser_gradient(
        model, x, [0, 1, 2, 0, 0], attacks.DeepFool(norm=norm)
    )
    np.testing.assert_array_equal(found.perturbation, 0)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.iterations, 1)  # it gives up at once
    np.testing.assert_array_equal(rho, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("norm", [2, 3])
def test_dead_units_and_zero_images_give_finite_gradients(norm):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.Dense(3),
        ]
    )
    model.layers[0].bias.assign([-9, -9, -9, 1, 1, 1])
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x[0] = 0  # no size to compare with
    x[1] = -50 * model.layers[0].kernel.numpy()[:, 3:].sum(1)  # mostly dead
    found, rho, _ = regulariser_gradient(
        model, x, [0, 1, 2, 0, 1, 2], attacks.DeepFool(norm=norm, max_iter=5)
    )
    assert rho[0] == 0
    assert np.isfinite(found.perturbation).all()


@pytest.mark.slow
@pytest.mark.parametrize(("mistakes", "batch"), [("none", 5), ("all", 1)])
def test_all_correct_and_all_misclassified_batches(mistakes, batch):
    model, x = small_convnet(dtype="float32"), images(batch, dtype="float32")
    first, second = np.argsort(model(x), axis=-1).T[[-1, -2]]
    y = second if mistakes == "all" else first
    found, _, gradients = regulariser_gradient(model, x, y, attacks.DeepFool())
    after = model(x + found.perturbation).numpy().argmax(-1)
    np.testing.assert_array_equal(
        (after == y) == (mistakes == "all"), found.fooled
    )
    assert found.fooled.numpy().all()
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_all_fooled_at_once_ends_the_loop():
    model, _, _, x = random_affine(10)
    found = attacks.DeepFool(max_iter=50).run(model, x)
    np.testing.assert_array_equal(found.iterations, 1)


def test_inputs_of_any_number_type():
    model = affine_classifier(np.eye(3), np.zeros(3), "float32")
    x = np.array([[9, 1, 0], [2, 8, 1]])
    expected = attacks.DeepFool().perturb(model, x.astype(np.float32))
    for dtype in (np.uint8, np.int64, np.float16, np.float64):
        found = attacks.DeepFool().perturb(model, x.astype(dtype))
        assert found.dtype == tf.float32
        np.testing.assert_array_equal(found, expected)


# Configuration and errors


def test_config_round_trip():
    attack = attacks.DeepFool(
        norm=math.inf, max_iter=7, overshoot=0, candidates=3, bounds=(0, 1)
    )
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == attack.get_config()
    assert repr(again) == (
        "DeepFool(norm=inf, max_iter=7, overshoot=0.0, candidates=3, "
        "bounds=(0.0, 1.0))"
    )


def test_equal_settings_share_what_is_compiled():
    model, _, _, x = random_affine(3)
    assert attacks.DeepFool(max_iter=3) == attacks.DeepFool(2.0, max_iter=3)
    assert attacks.DeepFool(max_iter=3) != attacks.DeepFool(max_iter=4)
    for _ in range(3):
        attacks.DeepFool(max_iter=3).perturb(model, x)
    assert len(vars(model)["_dd_keras_compiled"].entries) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 0.5}, r"norm: expected a number in \[1, inf\].*received 0.5"),
        ({"norm": float("nan")}, "norm: expected.*received nan"),
        ({"norm": "2"}, "norm: expected.*received '2'"),
        ({"max_iter": 0}, "max_iter: expected.*at least 1; received 0"),
        ({"max_iter": 2.5}, "max_iter: expected.*received 2.5"),
        ({"overshoot": -0.1}, "overshoot: expected.*>= 0; received -0.1"),
        ({"candidates": 0}, "candidates: expected.*at least 1; received 0"),
        ({"candidates": 1.5}, "candidates: expected.*received 1.5"),
        ({"bounds": (1, 0)}, r"bounds: expected a pair.*received \(1, 0\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        attacks.DeepFool(**arguments)


def test_more_candidates_than_other_classes():
    model, _, _, x = random_affine(4)
    with pytest.raises(
        ValueError, match=r"candidates: expected at most 3.*received 4"
    ):
        attacks.DeepFool(candidates=4).perturb(model, x)


def test_wrong_inputs_and_labels_are_named():
    model, _, _, x = random_affine(4)
    attack = attacks.DeepFool()
    with pytest.raises(ValueError, match=r"x: expected.*\(None, 6\).*\(8, 2\)"):
        attack.perturb(model, x[:, :2])
    with pytest.raises(ValueError, match=r"y: expected.*received.*\(8, 3\)"):
        attack.perturb(model, x, np.zeros((8, 3)))
    with pytest.raises(ValueError, match=r"y: expected.*8.*received.*5"):
        attack.perturb(model, x, np.zeros(5))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"y: expected.*\[0, 4\)"
    ):
        attack.perturb(model, x, np.full(8, 4))
