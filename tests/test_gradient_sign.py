import json
import math

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks, networks
from dd_keras.attacks import base as attack_module
from dd_keras.utils import keras_internals, norms

# Each kind of attack once, for what must hold of all; eps is a part of what
# most samples below need, and most of what some need.
EPS = 0.3
EVERY = [
    attacks.FGSM(EPS),
    attacks.MinimalFGSM(eps_max=4.0),
    attacks.BIM(EPS),
    attacks.PGD(EPS, steps=8, restarts=2),
    attacks.PGD(EPS, norm=2, steps=8, restarts=2),
]


def name(attack):
    """A short one, for a test's."""
    return f"{type(attack).__name__}-{attack.norm:g}"


every_attack = pytest.mark.parametrize("attack", EVERY, ids=name)


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


# FGSM: closed forms


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_fgsm_of_two_affine_classes_is_eps_times_the_sign(num_outputs):
    model, x, z, uphill = two_classes(num_outputs)
    found = attacks.FGSM(EPS).run(model, x)
    np.testing.assert_array_equal(found.perturbation, EPS * np.sign(uphill))
    needed = z / np.abs(uphill).sum(1)
    assert 0 < np.sum(needed < EPS) < len(x)
    np.testing.assert_array_equal(found.fooled, needed < EPS)
    np.testing.assert_array_equal(found.iterations, 1)
    decisions = model(x).numpy()
    expected = decisions[:, 0] > 0 if num_outputs == 1 else decisions.argmax(-1)
    np.testing.assert_array_equal(found.predictions, expected)


def loss_gradient(weights, biases, x, y):
    """That of the cross-entropy by x: sum_k p_k (w_k - w_y)."""
    logits = np.longdouble(x @ weights + biases)  # exp(-1000) is above 0
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    differences = weights.T - weights.T[y][:, None]  # (B, n, D)
    return np.einsum("bk,bkd->bd", p, differences)


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_of_many_classes_is_the_sign_of_the_loss_gradient(targeted):
    model, weights, biases, x = affine(5, batch=20)
    y = np.arange(20) % 5  # most of them are not what is predicted
    found = attacks.FGSM(0.1, targeted=targeted).run(model, x, y)
    gradient = loss_gradient(weights, biases, x, y)
    sign = -1 if targeted else 1
    np.testing.assert_array_equal(
        found.perturbation, sign * 0.1 * np.sign(gradient)
    )
    after = (x + found.perturbation.numpy()) @ weights + biases
    np.testing.assert_array_equal(
        found.fooled, (after.argmax(-1) == y) == targeted
    )
    assert 0 < np.sum(found.fooled) < 20


@pytest.mark.parametrize("softmax", [False, True])
def test_direction_does_not_vanish_where_the_softmax_saturates(softmax):
    model, weights, biases, x = affine(5, scale=300.0, dtype="float32")
    x = x.astype(np.float32)
    logits = x @ weights + biases
    y = logits.argmax(-1)
    top_two = np.sort(logits)[:, -2:]
    assert np.median(np.ptp(top_two, axis=1)) > 100  # p_y is 1 in float64, too
    if softmax:
        model = keras.Sequential([model, keras.layers.Softmax()])
    direction = np.sign(attacks.FGSM(EPS).perturb(model, x))
    expected = np.sign(loss_gradient(weights, biases, x, y))
    np.testing.assert_array_equal(direction, expected)


def test_fgsm_is_cut_short_at_the_bounds():
    model, x, _, uphill = two_classes(ends=1)
    found = attacks.FGSM(EPS, bounds=(-1.0, 1.2)).run(model, x)
    step = EPS * np.sign(uphill)
    np.testing.assert_allclose(
        found.perturbation, np.clip(x + step, -1, 1.2) - x, atol=1e-15
    )
    inside = np.abs(x + step - 0.1) < 1.1
    assert 0 < inside.sum() < inside.size
    # Where nothing is cut, nothing is rounded.
    np.testing.assert_array_equal(found.perturbation[inside], step[inside])


# MinimalFGSM: closed forms


@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize(
    ("steps", "tolerance"), [(32, 1e-4), (3, 1e-9), (1, 0.3), (32, 1 / 40)]
)
def test_minimal_eps_of_two_affine_classes(num_outputs, steps, tolerance):
    model, x, z, uphill = two_classes(num_outputs)
    needed = z / np.abs(uphill).sum(1)
    eps_max = 1.1 * needed.max()
    attack = attacks.MinimalFGSM(eps_max, steps, tolerance)
    found = attack.run(model, x)
    eps = lengths(found.perturbation, math.inf)
    np.testing.assert_allclose(
        found.perturbation, eps[:, None] * np.sign(uphill), rtol=1e-12
    )
    assert np.all(eps >= needed * (1 - 1e-12))
    assert np.all(eps <= needed + tolerance * eps_max * (1 + 1e-12))
    np.testing.assert_array_equal(found.fooled, True)
    np.testing.assert_array_equal(found.iterations, 1)


@pytest.mark.parametrize("tolerance", [0.1, 0.5, 2.0])
def test_a_tolerance_of_a_step_or_more_leaves_the_steps(tolerance):
    model, x, z, uphill = two_classes()
    needed = z / np.abs(uphill).sum(1)
    attack = attacks.MinimalFGSM(5.0, steps=10, tolerance=tolerance)
    eps = lengths(attack.perturb(model, x), math.inf)
    np.testing.assert_allclose(eps, np.ceil(needed * 2) / 2, rtol=1e-12)


def test_minimal_eps_of_many_classes_is_the_nearest_root_along_the_ray():
    model, weights, biases, x = affine(5, batch=20)
    logits = x @ weights + biases
    y = logits.argmax(-1)
    direction = np.sign(loss_gradient(weights, biases, x, y))
    gaps = logits.max(axis=1, keepdims=True) - logits  # (B, n)
    slopes = direction @ weights
    slopes -= np.take_along_axis(slopes, y[:, None], 1)
    roots = np.where(slopes > 0, gaps / np.where(slopes > 0, slopes, 1), np.inf)
    needed = roots.min(axis=1)
    found = attacks.MinimalFGSM(10.0, tolerance=1e-6).run(model, x)
    assert np.all(needed < 10)
    eps = lengths(found.perturbation, math.inf)
    assert np.all(eps >= needed * (1 - 1e-12))
    assert np.all(eps <= needed + 1e-5)
    np.testing.assert_array_equal(found.fooled, True)
    assert len(np.unique(roots.argmin(axis=1))) > 2


def test_what_no_eps_fools_gets_the_largest():
    model, x, z, uphill = two_classes()
    needed = z / np.abs(uphill).sum(1)
    eps_max = np.median(needed)
    found = attacks.MinimalFGSM(eps_max).run(model, x)
    np.testing.assert_array_equal(found.fooled, needed <= eps_max)
    left = ~found.fooled.numpy()
    assert 0 < left.sum() < len(x)
    np.testing.assert_array_equal(
        found.perturbation[left], eps_max * np.sign(uphill)[left]
    )


@every_attack
def test_a_constant_network_is_not_fooled_by_anything_finite(attack):
    model = affine_classifier(np.zeros((6, 3)), [1.0, 0.0, 0.0])
    x = np.random.default_rng(0).normal(size=(4, 6))
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.perturbation, 0.0)
    np.testing.assert_array_equal(found.predictions, 0)


@pytest.mark.parametrize(
    "attack", [a for a in EVERY if not isinstance(a, attacks.FGSM)], ids=name
)
def test_misclassified_samples_are_left_exactly_alone(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    found = attack.run(model, x, y)
    wrong = found.predictions.numpy() != y
    np.testing.assert_array_equal(wrong, np.arange(12) % 3 == 0)
    np.testing.assert_array_equal(found.perturbation[wrong], 0.0)
    np.testing.assert_array_equal(found.fooled[wrong], True)
    np.testing.assert_array_equal(found.iterations[wrong], 0)
    assert np.all(lengths(found.perturbation, 2)[~wrong] > 0)


@pytest.mark.parametrize(
    "bounds", [(-2.0, 3.0), (np.full(6, -2.0), [1.0, 3.0, 1.0, 1.0, 2.0, 1.0])]
)
def test_largest_eps_is_the_width_of_the_bounds(bounds):
    model = affine_classifier(np.eye(6, 2), [0.1, 0.0])
    x = np.zeros((1, 6))
    attack = attacks.MinimalFGSM(steps=10, tolerance=1.0, bounds=bounds)
    # The first of ten steps fools: a tenth of the width.
    np.testing.assert_array_equal(
        attack.perturb(model, x), [[-0.5, 0.5, 0, 0, 0, 0]]
    )


def test_largest_eps_is_the_range_of_each_input():
    weights = np.array([[1.0, -1.0], [-1.0, 1.0]])
    model = affine_classifier(weights, [100.0, 0.0])
    x = [[-1.0, 2.0], [0.5, 0.25], [4.0, 4.0]]
    found = attacks.MinimalFGSM().run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_allclose(
        found.perturbation, np.outer([3.0, 0.25, 0.0], [-1, 1]), atol=1e-15
    )


def cosine_network():
    """Two classes that alternate along the line, with the sign of cos(x)."""
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="float64"),
            keras.layers.Dense(1, activation=keras.ops.cos, dtype="float64"),
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    model.set_weights(
        [np.eye(1), np.zeros(1), np.array([[1.0, -1.0]]), np.zeros(2)]
    )
    return model


def test_the_first_of_many_crossings_is_found():
    x = np.array([[0.1], [0.7], [-0.4], [4.0]])
    turn = np.pi / 2
    expected = [turn - 0.1, turn - 0.7, 0.4 - turn, 3 * turn - 4.0]
    attack = attacks.MinimalFGSM(20.0, steps=20, tolerance=1e-8)
    found = attack.run(cosine_network(), x)
    np.testing.assert_allclose(
        found.perturbation[:, 0], expected, atol=20 * 1e-8
    )
    np.testing.assert_array_equal(found.fooled, True)


def test_a_crossing_and_back_within_one_step_is_missed():
    found = attacks.MinimalFGSM(6.0, steps=1).run(cosine_network(), [[0.1]])
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.perturbation, 6.0)


def test_minimal_fgsm_with_bounds_finds_the_cut_ray():
    # Uphill is (1, 1) with slopes 3 and 1; the first entry stops at 0.1, so
    # the gap of 1 is closed by 3 * 0.1 + eps = 1.
    model = affine_classifier([[0.0, 3.0], [0.0, 1.0]], [1.0, 0.0])
    attack = attacks.MinimalFGSM(tolerance=1e-9, bounds=([-1, -1], [0.1, 1]))
    found = attack.run(model, np.zeros((1, 2)))
    np.testing.assert_allclose(found.perturbation, [[0.1, 0.7]], atol=1e-8)
    np.testing.assert_array_equal(found.fooled, True)


# BIM and PGD: closed forms

ITERATIVE = {
    "BIM": (attacks.BIM, math.inf, {}),
    "PGD inf": (attacks.PGD, math.inf, {}),
    "PGD 2": (attacks.PGD, 2, {"norm": 2}),
}


@pytest.mark.parametrize("kind", ITERATIVE)
@pytest.mark.parametrize("enough", [False, True])
def test_an_affine_model_is_fooled_from_the_closest_boundary_on(kind, enough):
    make, norm, settings = ITERATIVE[kind]
    model, x, z, uphill = two_classes()
    steepness = np.linalg.norm(uphill, norms.dual_norm(norm), axis=1)
    needed = z / steepness
    eps = np.sort(needed)[3] * (1 + 1e-6 if enough else 1 - 1e-6)
    # Steps of eps halve the way that leads nowhere, in l_2, each time.
    found = make(eps, steps=40, step_size=eps, **settings).run(model, x)
    np.testing.assert_array_equal(found.fooled, needed < eps)
    assert np.sum(needed < eps) == (4 if enough else 3)
    left = ~found.fooled.numpy()
    best = steepest(uphill, norm)
    np.testing.assert_allclose(
        found.perturbation[left],
        eps * best[left],
        rtol=0,
        # In l_2 the margin tells angles apart down to the root of 1e-16.
        atol=(1e-12 if norm == math.inf else 1e-7) * eps,
    )
    np.testing.assert_array_equal(found.iterations[left], 40)


def steepest(gradient, norm):
    """The vectors of l_p length 1 that go up these gradients the most."""
    if norm == math.inf:
        return np.sign(gradient)
    return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def test_bim_takes_as_many_steps_as_it_needs():
    model, x, z, uphill = two_classes(batch=30)
    needed = z / np.abs(uphill).sum(1)
    eps, steps, step_size = 0.5, 10, 0.07
    found = attacks.BIM(eps, steps, step_size).run(model, x)
    to_ball = np.ceil(eps / step_size)
    taken = np.floor(needed / step_size) + 1
    expected = np.where(needed < eps, np.minimum(taken, to_ball), steps)
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(found.iterations, expected)
    length = np.where(needed < eps, np.minimum(taken * step_size, eps), eps)
    np.testing.assert_allclose(
        found.perturbation, length[:, None] * np.sign(uphill), rtol=1e-12
    )


def test_usual_step_size():
    assert attacks.BIM(0.4, steps=10).step_size == pytest.approx(0.1)
    assert attacks.PGD(0.4, steps=20).step_size == pytest.approx(0.05)


@pytest.mark.parametrize("restarts", [1, 3])
def test_unfooled_samples_take_all_steps_of_all_restarts(restarts):
    model, x, _, _ = two_classes()
    attack = attacks.PGD(1e-3, steps=5, restarts=restarts)
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.iterations, 5 * restarts)


def test_a_random_start_may_fool_without_a_step():
    model, x, z, uphill = two_classes(batch=40)
    # All but on the boundary: half of all starts are across.
    x = x + (z * (1 - 1e-9) / (uphill**2).sum(1))[:, None] * uphill
    found = attacks.PGD(1e-3, steps=5).run(model, x)
    np.testing.assert_array_equal(found.fooled, True)
    at_once = found.iterations.numpy() == 0
    assert 10 < at_once.sum() < 30
    assert np.all(lengths(found.perturbation, math.inf) > 0)


def test_a_decision_that_ties_may_change_at_the_same_margin():
    # At 0 classes 1 and 2 tie, and class 1 is decided for; at 1 all three do,
    # and class 0 is.
    model = affine_classifier([[1.0, 0.0, 0.0]], [0.0, 1.0, 1.0])
    found = attacks.BIM(1.0, steps=1, step_size=1.0).run(model, [[0.0]])
    np.testing.assert_array_equal(found.predictions, 1)
    np.testing.assert_array_equal(found.fooled, True)
    np.testing.assert_array_equal(found.perturbation, 1.0)


# What must hold on networks of any form


def per_pixel_bounds(x):
    """Bounds that differ from pixel to pixel and hold all of x, just."""
    return x.numpy().min(0) - 0.01, x.numpy().max(0) + 0.02


@pytest.mark.parametrize("bounds", ["none", "numbers", "arrays"])
@pytest.mark.parametrize(
    ("make", "norm", "settings"),
    [
        (attacks.FGSM, math.inf, {}),
        (attacks.BIM, math.inf, {"steps": 5}),
        (attacks.PGD, math.inf, {"steps": 5}),
        (attacks.PGD, 2, {"steps": 5, "norm": 2, "restarts": 2}),
        (attacks.PGD, 2, {"steps": 5, "norm": 2, "random_start": False}),
    ],
)
def test_nothing_leaves_the_ball_or_the_bounds(make, norm, settings, bounds):
    model, x = curved_network(dtype="float32")
    x = tf.clip_by_value(x, -0.8, 0.9)
    bounds = {
        "none": None,
        "numbers": (-0.8, 0.9),
        "arrays": per_pixel_bounds(x),
    }[bounds]
    eps = 0.3 if norm == math.inf else 0.8
    found = make(eps, bounds=bounds, **settings).run(model, x)
    size = lengths(found.perturbation, norm)
    assert np.all(size <= eps * (1 + 1e-6))
    assert np.any(size > eps * 0.9)
    after = model(x + found.perturbation).numpy().argmax(-1)
    np.testing.assert_array_equal(after != found.predictions, found.fooled)
    if bounds is not None:
        low, high = bounds
        adversarial = (x + found.perturbation).numpy()
        assert np.all(adversarial >= low - 1e-6)
        assert np.all(adversarial <= high + 1e-6)
        moved = found.perturbation.numpy() != 0
        at_end = np.isclose(adversarial, low) | np.isclose(adversarial, high)
        assert np.any(moved & at_end)  # or this showed nothing


def test_bounds_are_kept_also_while_looking():
    """What is found at a step is what that step looked at, cut short."""
    model, x, _, uphill = two_classes(ends=1)
    attack = attacks.BIM(1e-2, steps=4, step_size=1e-2, bounds=(-1, 1))
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    expected = np.clip(x + 1e-2 * np.sign(uphill), -1, 1) - x
    np.testing.assert_allclose(found.perturbation, expected, atol=1e-15)


@pytest.mark.parametrize("kind", ITERATIVE)
def test_of_two_classes_the_other_is_the_target(kind):
    make, norm, settings = ITERATIVE[kind]
    model, x, z, uphill = two_classes()
    needed = z / np.linalg.norm(uphill, norms.dual_norm(norm), axis=1)
    settings = {"eps": np.median(needed), "steps": 5, **settings}
    away = make(**settings).run(model, x)
    towards = make(targeted=True, **settings).run(
        model, x, 1 - away.predictions
    )
    assert 0 < np.sum(away.fooled) < len(x)
    assert np.all(lengths(away.perturbation, norm) > 0)
    assert_same(towards, away)


@pytest.mark.parametrize("kind", ITERATIVE)
def test_targeted_attacks_reach_their_targets(kind):
    make, _, settings = ITERATIVE[kind]
    model, weights, biases, x = affine(4, batch=16)
    y = np.arange(16) % 4
    attack = make(4.0, targeted=True, **settings)
    found = attack.run(model, x, y)
    after = ((x + found.perturbation.numpy()) @ weights + biases).argmax(-1)
    np.testing.assert_array_equal(found.fooled, after == y)
    there = found.predictions.numpy() == y
    assert np.mean(found.fooled.numpy()[~there]) > 0.8
    assert there.any()
    np.testing.assert_array_equal(found.perturbation[there], 0.0)
    np.testing.assert_array_equal(found.iterations[there], 0)


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


def test_the_closest_of_all_that_was_tried_is_kept():
    # f_0 = 2 - relu(x) + 4 relu(x - 0.5): 1.9 at 0.1, where it begins, 1.5 at
    # 0.5, and 2.7 at 0.9, where it ends.
    model = relu_network([1.0, 1.0], [0.0, -0.5], [-1.0, 4.0], 2.0)
    found = attacks.BIM(1.0, steps=2, step_size=0.4).run(model, [[0.1]])
    np.testing.assert_allclose(found.perturbation, [[0.4]])
    np.testing.assert_array_equal(found.iterations, 2)
    np.testing.assert_array_equal(found.fooled, False)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_random_starts_go_by_the_seed(norm):
    model, x = curved_network()
    settings = {"norm": norm, "steps": 3, "step_size": 1e-3}
    first, again, other = (
        attacks.PGD(0.1, seed=seed, **settings).perturb(model, x).numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.median(lengths(first - other, 2)) > 0.01


def test_without_random_start_pgd_is_bim():
    model, x = curved_network()
    pgd = attacks.PGD(0.3, steps=6, random_start=False).run(model, x)
    bim = attacks.BIM(0.3, steps=6).run(model, x)
    assert_same(pgd, bim)
    assert pgd.fooled.numpy().any()


def two_way_network():
    """f_0 = 1 - 2 relu(x) - 0.5 relu(-x), and 16 inputs at its kink.

    To the right of 0 the decision changes at 0.5, to the left at -2. They
    differ by next to nothing, as equal inputs have equal starts.
    """
    model = relu_network([1.0, -1.0], [0.0, 0.0], [-2.0, -0.5], 1.0)
    return model, 1e-200 * np.arange(16.0)[:, None]


def test_restarts_find_what_one_start_misses():
    model, x = two_way_network()
    settings = {"steps": 8, "step_size": 0.25}
    one = attacks.PGD(1.0, **settings).run(model, x)
    many = attacks.PGD(1.0, restarts=8, **settings).run(model, x)
    lost = ~one.fooled.numpy()
    assert 3 < lost.sum() < 13
    np.testing.assert_array_equal(many.fooled, True)
    # The best of the other way is kept, and is on the ball.
    np.testing.assert_array_equal(one.perturbation[lost], -1.0)
    # The first restart is the only start of the one, and it is not undone.
    np.testing.assert_array_equal(
        many.perturbation[~lost], one.perturbation[~lost]
    )
    np.testing.assert_array_equal(many.iterations[~lost], one.iterations[~lost])
    assert np.all(many.iterations.numpy()[lost] >= 8)
    assert len(set(many.iterations.numpy()[lost] // 8)) > 1


@pytest.mark.parametrize("norm", [2, math.inf])
def test_restarts_are_never_worse(norm):
    model, x = curved_network()
    margins, fooled = [], []
    for restarts in (1, 3):
        attack = attacks.PGD(
            0.15, norm=norm, steps=2, step_size=0.01, restarts=restarts
        )
        found = attack.run(model, x)
        logits = model(x + found.perturbation)
        margins.append(attack_module.margin(logits, found.predictions))
        fooled.append(found.fooled.numpy())
    left = ~fooled[1]
    assert np.all(fooled[1] >= fooled[0])
    assert np.all((margins[1] <= margins[0])[left])
    assert np.any((margins[1] < margins[0])[left])


def bowl(dim):
    """f_0 - f_1 = 1e6 - ||x||^2: from 0, any step at all is an improvement."""
    model = keras.Sequential(
        [
            keras.Input((dim,), dtype="float64"),
            keras.layers.Dense(
                dim, activation=keras.ops.square, dtype="float64"
            ),
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    outwards = np.stack([-np.ones(dim), np.zeros(dim)], axis=1)
    model.set_weights(
        [np.eye(dim), np.zeros(dim), outwards, np.array([1e3, 0.0])]
    )
    return model


def assert_uniform(values, low, high):
    """Kolmogorov and Smirnov's test, at a level of 0.1 %."""
    values = np.sort(np.ravel(values))
    n = len(values)
    expected = low + (high - low) * (np.arange(n) + 0.5) / n
    assert np.abs(values - expected).max() < (high - low) * 1.95 / np.sqrt(n)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_random_starts_are_uniform_in_the_ball(norm):
    dim, eps = 3, 2.0
    # With steps this small, what is found is where it began.
    attack = attacks.PGD(eps, norm=norm, steps=1, step_size=1e-12)
    x = np.zeros((4000, dim))
    x[:, 0] = 1e-200 * np.arange(4000)  # equal inputs have equal starts
    start = attack.perturb(bowl(dim), x).numpy()
    if norm == math.inf:
        for column in start.T:
            assert_uniform(column, -eps, eps)
        assert np.abs(np.corrcoef(start.T) - np.eye(dim)).max() < 0.06
    else:
        radius = np.linalg.norm(start, axis=1)
        assert_uniform((radius / eps) ** dim, 0, 1)
        # Archimedes: each coordinate of a uniform point of a sphere is
        # uniform, too, in three dimensions.
        for column in (start / radius[:, None]).T:
            assert_uniform(column, -1, 1)


@every_attack
def test_the_batch_is_each_sample_alone(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    together = attack.run(model, x, y)
    if not isinstance(attack, (attacks.FGSM, attacks.MinimalFGSM)):
        assert len(set(together.iterations.numpy())) > 2  # some leave earlier
    for batch_size in (1, 5):
        parts = attack.run(model, x, y, batch_size=batch_size)
        assert_same(together, parts, 1e-12)
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = attack.run(model, tf.gather(x, order), y[order])
    there = attacks.AttackResult(*(tf.gather(t, order) for t in together))
    assert_same(shuffled, there, 1e-12)


@every_attack
def test_dropping_equals_masking(monkeypatch, attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    dropped = tf.function(lambda: attack.run(model, x, y))()
    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    masked = tf.function(lambda: attack.run(model, x, y))()
    assert_same(masked, dropped, 1e-12)


@every_attack
def test_inside_and_outside_of_a_graph_are_the_same(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    outside = attack.run(model, x, y)
    inside = tf.function(lambda x: attack.run(model, x, y))(x)
    assert_same(inside, outside, 1e-12)
    tf.config.run_functions_eagerly(True)
    try:
        eager = attack.run(model, x, y)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_same(eager, outside, 1e-12)


@every_attack
def test_xla_equals_plain(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    plain = attack.run(model, x, y)
    compiled = tf.function(lambda x: attack.run(model, x, y), jit_compile=True)
    assert_same(compiled(x), plain, 1e-9)


def test_random_starts_under_xla():
    model, x = two_way_network()
    attack = attacks.PGD(1.0, steps=8, step_size=0.25)
    compiled = tf.function(lambda x: attack.run(model, x), jit_compile=True)
    found = compiled(x)
    assert 3 < np.sum(found.fooled) < 13  # by the side it starts on
    assert_same(compiled(x), found)


@every_attack
def test_a_forward_pass_handed_in_serves_as_well(attack):
    model, x = curved_network()

    @tf.function
    def with_forward(x):
        _, forward = attacks.Forward.of_model(model, x, training=False)
        return attack.search(model, x, forward=forward)

    assert_same(with_forward(x), attack.run(model, x), 1e-12)


def test_the_forward_pass_handed_in_is_not_done_again():
    model, x = curved_network()
    forward = attacks.Forward.of(lambda x: -model(x), x)  # not the network's
    found = attacks.FGSM(EPS).search(model, x, forward=forward)
    np.testing.assert_array_equal(found.predictions, np.argmin(model(x), -1))


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
@every_attack
def test_half_precision_models(attack, policy):
    weights = np.array([[1.0, -1.0], [-2.0, 1.0], [0.5, 0.25]])
    plain = affine_classifier(weights, [0.25, -0.25], "float32")
    half = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, dtype=policy)]
    )
    half.set_weights(plain.get_weights())
    x = np.array([[2, 0, 1], [0, 1, 2], [1, 1, 0]], np.uint8)
    found, expected = attack.run(half, x), attack.run(plain, x)
    assert found.perturbation.dtype == tf.float32
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_array_equal(found.fooled, expected.fooled)
    # Half precision resolves a thousandth, of eps or of eps_max.
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, atol=8e-3
    )
    assert np.all(lengths(found.perturbation, 2) > 0)


@pytest.mark.usefixtures("float64")
@every_attack
@pytest.mark.parametrize("ending", ["softmax", "sigmoid"])
def test_probabilities_serve_as_well_as_logits(attack, ending):
    num_outputs = {"softmax": 3, "sigmoid": 1}[ending]
    model, _, _, x = affine(num_outputs)
    probable = keras.Sequential([model, keras.layers.Activation(ending)])
    assert_same(attack.run(probable, x), attack.run(model, x), 1e-12)


# Foolbox, as an oracle


def decisions_of(peer, attack, x, labels, eps):
    """Which samples one of Foolbox' attacks fools: (B,)."""
    _, _, success = attack(peer, x, labels, epsilons=[eps])
    return success[0].numpy()


@pytest.fixture(scope="module")
def judged(trained_network, digits):
    """The network, test inputs, their predictions, and the data's range."""
    x = tf.constant(digits[2])
    labels = tf.argmax(trained_network(x), -1)  # Foolbox wants int64
    return trained_network, x, labels, (float(np.min(x)), float(np.max(x)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("eps", [8.0, 20.0, 30.0])
def test_fgsm_agrees_with_foolbox(judged, eps, bounded):
    network, x, labels, bounds = judged
    # In float32 Foolbox's softmax saturates, and it loses a few samples.
    precise = networks.digits_cnn()
    precise.set_weights(network.get_weights())
    x = tf.cast(x, tf.float64)
    peer = foolbox.TensorFlowModel(
        precise, bounds=bounds if bounded else (-1e4, 1e4)
    )
    theirs = decisions_of(
        peer, foolbox.attacks.LinfFastGradientAttack(), x, labels, eps
    )
    bounds = bounds if bounded else None
    ours = attacks.FGSM(eps, bounds=bounds).run(precise, x).fooled
    assert 0.02 < np.mean(ours) < 0.98
    np.testing.assert_array_equal(ours, theirs)
    # Ours does not, and loses none.
    single = attacks.FGSM(eps, bounds=bounds).run(network, x).fooled
    assert abs(np.mean(single) - np.mean(theirs)) < 0.001


@pytest.mark.parametrize(
    ("norm", "eps"), [(math.inf, 15.0), (2, 100.0)], ids=["inf", "2"]
)
def test_pgd_is_as_strong_as_foolboxs(judged, norm, eps):
    network, x, labels, bounds = judged
    name = {math.inf: "LinfPGD", 2: "L2PGD"}[norm]
    oracle = getattr(foolbox.attacks, name)(
        steps=40, rel_stepsize=2.5 / 40, random_start=True
    )
    peer = foolbox.TensorFlowModel(network, bounds=bounds)
    ours, theirs = [], []
    for seed in range(3):
        tf.random.set_seed(seed)
        theirs.append(decisions_of(peer, oracle, x, labels, eps))
        attack = attacks.PGD(eps, norm, 40, bounds=bounds, seed=seed)
        ours.append(attack.run(network, x).fooled.numpy())
    ours, theirs = np.any(ours, axis=0), np.any(theirs, axis=0)
    assert 0.1 < np.mean(ours) < 0.9
    # Sample by sample, each with the best of three starts: what one finds and
    # the other does not. On 12 networks, of three seeds and four sets of CPU
    # kernels, it was at most 1.1 % (0.6 % the other way); a fifth of the step
    # size loses 18 % or more.
    assert np.mean(theirs & ~ours) <= 0.03
    assert np.mean(ours & ~theirs) <= 0.03


# Configuration and errors

ARRAYS = (np.zeros((2, 1)), [[1.0], [0.5]])
CONFIGURED = [
    attacks.FGSM(0.1, bounds=(0, 1), targeted=True),
    attacks.FGSM(0.1, bounds=ARRAYS),
    attacks.MinimalFGSM(3, steps=5, tolerance=0.01, bounds=(-1, 1)),
    attacks.MinimalFGSM(bounds=ARRAYS),
    attacks.BIM(0.1, steps=3, step_size=0.2, bounds=ARRAYS, targeted=True),
    attacks.BIM(0.1),
    attacks.PGD(
        0.1, norm=2, steps=3, step_size=0.2, restarts=4, bounds=ARRAYS,
        targeted=True, seed=5,
    ),
    attacks.PGD(0.1, random_start=False),
]  # fmt: skip


@pytest.mark.parametrize("attack", CONFIGURED, ids=repr)
def test_config_round_trip(attack):
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    assert type(again) is type(attack)
    assert again.get_config() == attack.get_config()
    assert again == attack
    for name, value in attack.get_config().items():
        assert getattr(attack, name) == value


def test_repr_names_the_arguments():
    assert repr(attacks.PGD(0.5, norm=2, steps=5, restarts=3)) == (
        "PGD(eps=0.5, norm=2.0, steps=5, step_size=0.25, random_start=True, "
        "restarts=3, bounds=None, targeted=False, seed=0)"
    )


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (attacks.FGSM, {"eps": 0}, "eps: expected.*> 0; received 0"),
        (attacks.FGSM, {"eps": math.inf}, "eps: expected.*received inf"),
        (attacks.FGSM, {"eps": "1"}, "eps: expected.*received '1'"),
        (attacks.FGSM, {"eps": 1, "bounds": (1, 0)}, r"bounds: .*\(1, 0\)"),
        (attacks.MinimalFGSM, {"eps_max": 0}, "eps_max: expected.*received 0"),
        (attacks.MinimalFGSM, {"steps": 0}, "steps: .*at least 1; received 0"),
        (attacks.MinimalFGSM, {"tolerance": 0}, "tolerance: .*> 0; received 0"),
        (attacks.MinimalFGSM, {"bounds": 1}, "bounds: expected.*received 1"),
        (attacks.BIM, {"eps": -1}, "eps: expected.*received -1"),
        (attacks.BIM, {"eps": 1, "steps": 0}, "steps: expected.*received 0"),
        (attacks.BIM, {"eps": 1, "steps": 1.5}, "steps: expected.*1.5"),
        (attacks.BIM, {"eps": 1, "step_size": 0}, "step_size: .*> 0; .* 0"),
        (attacks.BIM, {"eps": 1, "bounds": (0,)}, r"bounds: .*received \(0,\)"),
        (attacks.PGD, {"eps": math.nan}, "eps: expected.*received nan"),
        (attacks.PGD, {"eps": 1, "norm": 1}, "norm: expected 2 or inf; .* 1"),
        (attacks.PGD, {"eps": 1, "norm": "2"}, "norm: .*received '2'"),
        (attacks.PGD, {"eps": 1, "norm": True}, "norm: .*received True"),
        (attacks.PGD, {"eps": 1, "steps": 0}, "steps: expected.*received 0"),
        (attacks.PGD, {"eps": 1, "step_size": -1}, "step_size: .*received -1"),
        (attacks.PGD, {"eps": 1, "restarts": 0}, "restarts: .*received 0"),
        (
            attacks.PGD,
            {"eps": 1, "restarts": 2, "random_start": False},
            "restarts: expected 1 without random_start.*received 2",
        ),
        (attacks.PGD, {"eps": 1, "seed": -1}, "seed: .*at least 0; .*-1"),
        (attacks.PGD, {"eps": 1, "bounds": (0, 0)}, r"bounds: .*\(0, 0\)"),
    ],
)
def test_bad_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**arguments)
