"""DDN, FAB and SuperDeepFool: attacks that look for the shortest way."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from attack_cases import affine, curved_network, lengths, two_way_network

from dd_keras import attacks
from dd_keras.attacks import box


def exact_distances(weights, biases, x, norm, bounds):
    """To the nearest of an affine model's boundaries, within bounds."""
    logits = x @ weights + biases
    y = logits.argmax(1)
    low, high = bounds or (-np.inf, np.inf)
    distances = []
    for i, k in itertools.product(range(len(x)), range(weights.shape[1])):
        if k == y[i]:
            continue
        w = weights[:, k] - weights[:, y[i]]
        gap = logits[i, y[i]] - logits[i, k]
        d = box.step_to_hyperplane(
            *map(tf.constant, ([gap], w[None], [x[i] - low], [high - x[i]])),
            norm,
        ).numpy()[0]
        reached = w @ d >= gap * (1 - 1e-9)
        length = np.linalg.norm(d, ord=norm)
        distances.append(length if reached else np.inf)
    return np.reshape(distances, (len(x), -1)).min(1)


BOUNDS = [None, (-0.7, 0.7)]
FREE_OR_BOX = pytest.mark.parametrize("bounds", BOUNDS, ids=["free", "box"])


def assert_exact(attack, tolerance, classes=3):
    model, weights, biases, x = affine(classes, batch=16)
    low, high = attack.bounds or (-np.inf, np.inf)
    x = np.clip(x, low, high)
    exact = exact_distances(weights, biases, x, attack.norm, attack.bounds)
    found = attack.run(model, x)
    reachable = np.isfinite(exact)
    assert reachable.sum() > 8
    np.testing.assert_array_equal(found.fooled, reachable)
    size = lengths(found.perturbation, attack.norm)[reachable]
    assert np.all(size >= exact[reachable] * (1 - 1e-9))
    np.testing.assert_allclose(size, exact[reachable], rtol=tolerance)
    adversarial = x + found.perturbation.numpy()
    assert np.all((adversarial >= low - 1e-9) & (adversarial <= high + 1e-9))
    after = (adversarial @ weights + biases).argmax(1)
    np.testing.assert_array_equal(after != found.predictions, found.fooled)
    if attack.bounds:
        free = exact_distances(weights, biases, x, attack.norm, None)
        assert np.any(exact[reachable] > free[reachable] * 1.02)  # active


@FREE_OR_BOX
def test_ddn_finds_the_exact_distance_to_an_affine_boundary(bounds):
    assert_exact(attacks.DDN(steps=300, bounds=bounds), 0.01, classes=2)


@FREE_OR_BOX
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_fab_finds_the_exact_distance_to_affine_boundaries(norm, bounds):
    assert_exact(attacks.FAB(norm, steps=20, bounds=bounds), 0.015)


def test_super_deepfool_finds_the_exact_distance_to_affine_boundaries():
    assert_exact(attacks.SuperDeepFool(), 0.01)


def test_fab_untargeted_goes_to_the_nearest():
    assert_exact(attacks.FAB(2, steps=20, num_targets=None), 0.01, classes=4)


def test_fab_of_two_classes():
    for outputs in (1, 2):
        model, weights, biases, x = affine(outputs)
        found = attacks.FAB(2, steps=10).run(model, x)
        exact = exact_distances(weights, biases, x, 2, None)
        size = lengths(found.perturbation, 2)
        np.testing.assert_allclose(size, exact, rtol=0.01)


def test_within_a_radius_fab_stops_once_it_is_there():
    model, weights, biases, x = affine(3)
    exact = exact_distances(weights, biases, x, 2, None)
    eps = np.median(exact)
    found = attacks.FAB(2, eps=eps, steps=20).run(model, x)
    np.testing.assert_array_equal(found.fooled, exact < eps)
    fooled = found.fooled.numpy()
    assert np.all(lengths(found.perturbation, 2)[fooled] <= eps)
    np.testing.assert_array_equal(found.perturbation[~fooled], 0.0)
    assert np.all(found.iterations[fooled] < 40)
    np.testing.assert_array_equal(found.iterations[~fooled], 40)


def test_restarts_of_fab_find_what_one_start_misses():
    # To the left, where it begins, the boundary is beyond eps.
    model, x = two_way_network()
    x, settings = -x[1:], {"eps": 1.5, "steps": 5}
    one = attacks.FAB(**settings).run(model, x)
    np.testing.assert_array_equal(one.fooled, False)
    two, again, other = (
        attacks.FAB(**settings, restarts=2, seed=seed).run(model, x)
        for seed in (1, 1, 2)
    )
    assert 3 < np.sum(two.fooled) < 13  # by the side it starts on
    np.testing.assert_array_equal(two.fooled, again.fooled)
    assert np.any(two.fooled != other.fooled)
    found = two.perturbation[two.fooled]
    assert np.all((found >= 0.5) & (found < 1.5))


def test_ddn_reaches_its_targets():
    model, weights, biases, x = affine(4, batch=12)
    y = np.arange(12) % 4
    found = attacks.DDN(steps=100, targeted=True).run(model, x, y)
    after = (x + found.perturbation.numpy()) @ weights + biases
    np.testing.assert_array_equal(found.fooled, True)
    np.testing.assert_array_equal(after.argmax(1), y)


def test_ddn_does_not_depend_on_the_unit():
    model, weights, biases, x = affine(3)
    small = attacks.DDN(steps=50, bounds=(-3, 3)).run(model, x)
    scaled, *_ = affine(3)
    scaled.set_weights([weights / 255, biases])
    large = attacks.DDN(steps=50, bounds=(-765, 765)).run(scaled, 255 * x)
    np.testing.assert_allclose(
        large.perturbation, 255 * small.perturbation, rtol=1e-6, atol=1e-9
    )


def test_super_deepfool_is_shorter_than_deepfool_and_meets_at_right_angles():
    model, x = curved_network()
    found = attacks.SuperDeepFool().run(model, x)
    deepfool = attacks.DeepFool().run(model, x)
    np.testing.assert_array_equal(found.fooled, True)
    share = lengths(found.perturbation, 2) / lengths(deepfool.perturbation, 2)
    assert np.all(share < 1)
    assert np.median(share) < 0.99


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (attacks.DDN, {"steps": 0}, "steps: expected.*received 0"),
        (attacks.DDN, {"gamma": 0}, "gamma: expected.*> 0; received 0"),
        (attacks.DDN, {"gamma": 1}, "gamma: expected.*below 1; received 1"),
        (attacks.FAB, {"norm": 0.5}, "norm: expected.*received 0.5"),
        (attacks.FAB, {"eps": 0}, "eps: expected.*> 0; received 0"),
        (attacks.FAB, {"num_targets": 0}, "num_targets: .*received 0"),
        (attacks.FAB, {"restarts": 0}, "restarts: .*received 0"),
        (attacks.SuperDeepFool, {"max_iter": 0}, "max_iter: .*received 0"),
        (attacks.SuperDeepFool, {"deepfool_steps": 0}, "deepfool_steps: "),
        (attacks.SuperDeepFool, {"overshoot": -1}, "overshoot: .*-1"),
    ],
)
def test_bad_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**arguments)
