import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from attack_cases import affine, curved_network, two_classes
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.attacks import apgd, decisions
from dd_keras.utils import norms

BOTH = pytest.mark.parametrize("norm", [2, math.inf])


def steepest(uphill, norm):
    """The vector of l_p norm 1 that is steepest."""
    if norm == math.inf:
        return np.sign(uphill)
    return uphill / np.linalg.norm(uphill, axis=1, keepdims=True)


@BOTH
def test_on_an_affine_model_it_reaches_the_optimum(norm):
    model, x, z, uphill = two_classes()
    slope = np.linalg.norm(uphill, norms.dual_norm(norm), axis=1)
    needed = z / slope
    eps = np.sort(needed)[3] * (1 + 1e-6)
    found = attacks.APGD(eps, norm).run(model, x)
    np.testing.assert_array_equal(found.fooled, needed < eps)
    left = ~found.fooled.numpy()
    assert 0 < left.sum() < len(x)
    best = eps * steepest(uphill, norm)
    np.testing.assert_allclose(found.perturbation[left], best[left], atol=1e-4)


def test_within_an_active_box_it_reaches_the_optimum():
    model, x, z, uphill = two_classes(ends=0.9)
    attack = attacks.APGD(0.05, bounds=(-0.9, 0.9))
    found = attack.run(model, x)
    best = np.clip(x + 0.05 * np.sign(uphill), -0.9, 0.9) - x
    left = ~found.fooled.numpy()
    assert np.any(np.abs(best[left]) < 0.05)  # the box is active
    np.testing.assert_allclose(found.perturbation[left], best[left], atol=1e-9)
    gained = np.sum(best * uphill, axis=1)
    np.testing.assert_array_equal(found.fooled, gained > z)


def test_windows_are_the_papers():
    found = apgd.windows(100)
    ends = np.flatnonzero(found)
    np.testing.assert_array_equal(ends, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(found[ends], [22, 19, 16, 13, 10, 7, 6, 6])
    np.testing.assert_array_equal(apgd.windows(1), [0, 1])


def plain(evaluate, clip, start, eps, steps):
    """APGD in l_2 on one sample, as its paper's Algorithm 1 reads.

    Returns the smallest of all margins, and how often the step was halved.
    """

    def project(d):
        return clip(d * min(1.0, eps / max(np.linalg.norm(d), 1e-300)))

    lengths, eta = apgd.windows(steps), 2 * eps
    d, previous = clip(start), np.zeros_like(start)
    loss, gradient, smallest = evaluate(d)
    best, best_loss, best_gradient = d, loss, gradient
    before, halved, increases, halvings = loss, True, 0, 0
    for k in range(steps):
        direction = gradient / np.linalg.norm(gradient)
        z = project(d + eta * direction)
        a = 1.0 if k == 0 else 0.75
        d, previous = project(d + a * (z - d) + (1 - a) * (d - previous)), d
        new, gradient, margin = evaluate(d)
        smallest = min(smallest, margin)
        increases += new > loss
        loss = new
        if loss > best_loss:
            best, best_loss, best_gradient = d, loss, gradient
        if window := lengths[k + 1]:
            halve = increases <= 0.75 * window or (
                not halved and best_loss <= before
            )
            if halve:
                eta, d, gradient = eta / 2, best, best_gradient
                halvings += 1
            before, halved, increases = best_loss, halve, 0
    return smallest, halvings


@pytest.mark.parametrize("loss", apgd.LOSSES)
def test_its_steps_are_the_plain_formulations(loss):
    model, x = curved_network()
    x = tf.clip_by_value(x, -0.8, 0.9)
    # At kinks of the loss rounding grows: in more steps to what can be seen.
    eps, steps, few = 0.02, 12, 3
    y = decisions.predicted_class(model(x))
    order = np.argsort(decisions.margin(model(x), y))
    x = tf.gather(x, order[-few:])  # too far from any boundary to be fooled
    attack = attacks.APGD(
        eps, 2, loss, steps, num_targets=1, bounds=(-0.8, 0.9)
    )
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    y = found.predictions
    targets = decisions.most_probable_others(model(x), y, 1)[:, 0]
    starts = attack.start(x, 0).numpy()
    total = 0
    for i in range(few):
        row = slice(i, i + 1)

        def evaluate(d, row=row):
            d = tf.constant(d[None])
            with tf.GradientTape() as tape:
                tape.watch(d)
                logits = model(x[row] + d)
                value = attack.loss_value(logits, y[row], targets[row])
            margin = decisions.margin(logits, y[row])
            gradient = tape.gradient(value, d)
            return value.numpy()[0], gradient.numpy()[0], margin.numpy()[0]

        def clip(d, i=i):
            return np.clip(x[i].numpy() + d, -0.8, 0.9) - x[i].numpy()

        expected, halvings = plain(evaluate, clip, starts[i], eps, steps)
        total += halvings
        # If no step comes closer than the clean input, that is the result.
        expected = min(expected, evaluate(np.zeros_like(starts[i]))[2])
        _, _, margin = evaluate(found.perturbation[i].numpy())
        np.testing.assert_allclose(margin, expected, rtol=1e-9)
    assert total > 3


def saturated(scale):
    """An affine model of four classes whose logits are far apart."""
    _, weights, biases, x = affine(4, dtype="float32")
    return affine_classifier(scale * weights, scale * biases, "float32"), x


@pytest.mark.parametrize("loss", apgd.LOSSES)
def test_saturated_logits_change_nothing(loss):
    plain, x = saturated(1.0)
    steep, _ = saturated(1e4)
    logits = steep(x.astype("float32"))
    probabilities = tf.nn.softmax(logits).numpy()
    assert np.mean(probabilities.max(1) == 1.0) > 0.5
    attack = attacks.APGD(0.4, loss=loss, steps=20)
    fooled = attack.run(steep, x).fooled.numpy()
    np.testing.assert_array_equal(fooled, attack.run(plain, x).fooled)
    assert 0.2 < fooled.mean() < 1


def test_targets_find_what_the_largest_other_logit_misses():
    # From 0, f_1 is the runner-up but bounded; f_2 grows and wins.
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="float64"),
            keras.layers.Dense(
                2, activation="tanh", use_bias=False, dtype="float64"
            ),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )
    model.set_weights(
        [
            np.diag([5.0, 0.2]),
            np.array([[0, 0.5, 0, 0, 0], [0, 0, 8.0, 0, 0]]),
            np.array([1.0, 0.4, 0.0, -3.0, -3.0]),
        ]
    )
    x = [[0.0, 0.0]]
    settings = {"eps": 1.0, "norm": 2, "steps": 10}
    one = attacks.APGD(loss="targeted_dlr", num_targets=1, **settings)
    two = attacks.APGD(loss="targeted_dlr", num_targets=2, **settings)
    assert not one.run(model, x).fooled[0]
    assert two.run(model, x).fooled[0]


@pytest.mark.parametrize(
    ("loss", "classes", "needs"),
    [
        ("dlr", 1, "3"),
        ("dlr", 2, "3"),
        ("targeted_dlr", 2, "4"),
        ("targeted_dlr", 3, "4"),
    ],
)
def test_too_few_classes_are_refused(loss, classes, needs):
    model, _, _, x = affine(classes)
    with pytest.raises(ValueError, match=f"^loss: .*at least {needs} classes"):
        attacks.APGD(0.1, loss=loss).run(model, x)


def test_as_many_classes_as_a_loss_needs():
    for loss, classes in (("dlr", 3), ("targeted_dlr", 4)):
        model, _, _, x = affine(classes)
        found = attacks.APGD(1.0, loss=loss, steps=5).run(model, x)
        assert found.fooled.numpy().any()


def test_dlr_is_the_papers_ratio():
    logits = tf.constant([[4.0, 1.0, 3.0, 2.5], [1.0, 5.0, 3.0, 2.0]])
    y, target = tf.constant([0, 0]), tf.constant([3, 2])
    np.testing.assert_allclose(
        decisions.difference_of_logits_ratio(logits, y),
        [-(4 - 3) / (4 - 2.5), -(1 - 5) / (5 - 2)],
    )
    np.testing.assert_allclose(
        decisions.targeted_difference_of_logits_ratio(logits, y, target),
        [-(4 - 2.5) / (4 - (2.5 + 1) / 2), -(1 - 3) / (5 - (2 + 1) / 2)],
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_the_odds_order_as_the_cross_entropy(targeted):
    logits = tf.constant(np.random.default_rng(0).normal(size=(50, 4)))
    y = tf.range(50) % 4
    loss = keras.losses.sparse_categorical_crossentropy(
        y, logits, from_logits=True
    ).numpy()
    odds = decisions.cross_entropy_odds(logits, y, targeted).numpy()
    order = np.argsort(-loss if targeted else loss)
    np.testing.assert_array_equal(np.argsort(odds), order)


def test_bad_losses_are_named():
    with pytest.raises(
        ValueError, match=r"^loss: expected one of cross_entropy, dlr"
    ):
        attacks.APGD(0.1, loss="ce")
