import math

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from attack_cases import (
    affine,
    curved_network,
    fooled_by_foolbox,
    judged,
    lengths,
    two_classes,
)
from conftest import affine_classifier

from dd_keras import attacks, networks

EPS = 0.3  # a part of what most samples below need

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


def test_the_forward_pass_handed_in_is_not_done_again():
    model, x = curved_network()
    forward = attacks.Forward.of(lambda x: -model(x), x)  # not the network's
    found = attacks.FGSM(EPS).search(model, x, forward=forward)
    np.testing.assert_array_equal(found.predictions, np.argmin(model(x), -1))


# Foolbox, as an oracle


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("eps", [8.0, 20.0, 30.0])
def test_fgsm_agrees_with_foolbox(trained_network, digits, eps, bounded):
    network, x, labels, bounds = judged(trained_network, digits)
    # In float32 Foolbox's softmax saturates, and it loses a few samples.
    precise = networks.digits_cnn()
    precise.set_weights(network.get_weights())
    x = tf.cast(x, tf.float64)
    peer = foolbox.TensorFlowModel(
        precise, bounds=bounds if bounded else (-1e4, 1e4)
    )
    theirs = fooled_by_foolbox(
        peer, foolbox.attacks.LinfFastGradientAttack(), x, labels, eps
    )
    bounds = bounds if bounded else None
    ours = attacks.FGSM(eps, bounds=bounds).run(precise, x).fooled
    assert 0.02 < np.mean(ours) < 0.98
    np.testing.assert_array_equal(ours, theirs)
    # Ours does not, and loses none.
    single = attacks.FGSM(eps, bounds=bounds).run(network, x).fooled
    assert abs(np.mean(single) - np.mean(theirs)) < 0.001


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_float32_gradient_is_that_of_tensorflows_cross_entropy(scale):
    """Which loses the class itself where the softmax saturates."""
    rng = np.random.default_rng(0)
    model = affine_classifier(
        scale * rng.normal(size=(6, 4)), np.zeros(4), dtype="float32"
    )
    x = tf.constant(rng.normal(size=(50, 6)), tf.float32)
    logits = model(x)
    y = tf.argmax(logits, axis=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))
    direction = np.sign(tape.gradient(loss, x))
    paper = attacks.FGSM(0.5, float32_gradient=True).perturb(model, x)
    np.testing.assert_allclose(paper, 0.5 * direction)
    ours = attacks.FGSM(0.5).perturb(model, x)
    other = np.any(np.sign(ours) != direction, axis=1)
    assert np.mean(other) > 0.3 if scale > 1 else not other.any()
    small = attacks.MinimalFGSM(eps_max=20.0, float32_gradient=True)
    found = small.run(model, x)
    lengths = np.max(np.abs(found.perturbation), axis=1)
    np.testing.assert_allclose(
        found.perturbation, lengths[:, None] * direction, rtol=1e-5, atol=1e-6
    )


def test_float32_gradient_is_not_targeted():
    with pytest.raises(ValueError, match=r"^float32_gradient: expected False"):
        attacks.FGSM(0.1, targeted=True, float32_gradient=True)
