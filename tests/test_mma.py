"""Max-margin adversarial training: one step against its closed form."""

import json

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
)

from dd_keras import MMAModel, attacks
from dd_keras.utils import norms

OVERSHOOT = 0.02
D_MAX = 0.5


def boundary_points(x, y, q):
    """Of an affine classifier: (x*, distance); misclassified stay at x."""
    z = x @ W + B
    moved, distances = x.copy(), np.zeros(len(x))
    for i, label in enumerate(y):
        if z[i].argmax() != label:
            continue
        others = [k for k in range(3) if k != label]
        w = np.array([W[:, k] - W[:, label] for k in others])
        gaps = np.array([z[i, label] - z[i, k] for k in others])
        nearest = np.argmin(gaps / np.linalg.norm(w, q, axis=1))
        slope = np.linalg.norm(w[nearest], q)
        direction = np.sign(w[nearest]) if q == 1 else w[nearest] / slope
        distance = (1 + OVERSHOOT) * gaps[nearest] / slope
        distances[i] = distance
        moved[i] += distance * direction
    return moved, distances


def error(x, y, weights):
    """The cross-entropy's mean, and its gradients by W and b."""
    p = softmax(x @ W + B)
    loss = np.mean(-weights * np.log(p[np.arange(len(x)), y]))
    by_logits = weights[:, None] * (p - np.eye(3)[y]) / len(x)
    return loss, x.T @ by_logits, by_logits.sum(axis=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("norm", "q"), [(2, 2), (np.inf, 1)])
def test_step_on_an_affine_classifier_is_the_closed_form(norm, q, weighted):
    x, y = clusters(batch=30)
    weights = np.linspace(0, 2, len(y)) if weighted else np.ones(len(y))
    correct = np.argmax(x @ W + B, axis=1) == y
    moved, distance = boundary_points(x, y, q)
    d_max = np.median(distance[correct])
    counts = ~correct | (distance < d_max)
    # All three kinds are there.
    assert (~correct).any()
    assert (counts & correct).any()
    assert not counts.all()
    clean = error(x, y, weights)
    margin = error(moved, y, weights * counts)
    loss, *expected = (
        a / 3 + b * 2 / 3 for a, b in zip(clean, margin, strict=True)
    )
    model = compiled(
        MMAModel(
            affine_classifier(W, B),
            d_max=d_max,
            adversary=attacks.DeepFool(norm, 5, OVERSHOOT),
        )
    )
    logs, found = step(model, x, y, weights if weighted else None)
    assert logs["loss"] == pytest.approx(loss, rel=1e-6)
    assert_all_close(found, expected)


@pytest.mark.usefixtures("double")
def test_samples_that_are_not_fooled_count_as_far():
    x, y = clusters()
    classifier = affine_classifier(W, B)
    bounds = (x.min(), x.max())

    class Nothing(attacks.DeepFool):
        def search(self, network, x, y=None, forward=None):
            found = super().search(network, x, y, forward)
            return found._replace(
                perturbation=tf.zeros_like(x),
                fooled=tf.zeros_like(found.fooled),
            )

    model = compiled(
        MMAModel(
            classifier, d_max=1e9, adversary=Nothing(bounds=bounds), alpha=0.0
        )
    )
    correct = np.argmax(x @ W + B, axis=1) == y
    assert correct.any()
    _, found = step(model, x, y)
    assert_all_close(found, error(x, y, 1.0 * ~correct)[1:])


@pytest.mark.thorough
def test_any_attack_that_finds_distances_serves():
    x, y = clusters(batch=24, dtype=np.float32)
    for adversary in (attacks.DDN(steps=20), attacks.SuperDeepFool()):
        model = MMAModel(
            network(dtype="float32"), d_max=2.0, adversary=adversary
        )
        model.compile(
            keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy"
        )
        before = attacks.DeepFool().run(model.model, x)
        correct = (before.predictions.numpy() == y).mean()
        logs = model.fit(x, y, epochs=30, verbose=0).history
        after = attacks.DeepFool().run(model.model, x)
        assert logs["loss"][-1] < logs["loss"][0]
        assert (after.predictions.numpy() == y).mean() > correct
        rho = norms.rho(after.perturbation, tf.constant(x)).numpy()
        assert np.isfinite(rho).all()


def test_configs_come_back():
    attack = attacks.DDN(steps=7)
    model = MMAModel(network(), d_max=D_MAX, adversary=attack, alpha=0.25)
    again = MMAModel.from_config(json.loads(json.dumps(model.get_config())))
    assert (again.d_max, again.adversary, again.alpha) == (D_MAX, attack, 0.25)
    default = MMAModel(network(), d_max=1)
    assert default.adversary == attacks.DeepFool(max_iter=10)
    assert default.alpha == pytest.approx(1 / 3)
    other = MMAModel(network(), d_max=1, adversary=attacks.DeepFool(np.inf))
    assert other.evaluation_attack == attacks.DeepFool(np.inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_max": 0}, "d_max: expected a finite number > 0"),
        ({"d_max": np.nan}, "d_max: expected a finite number > 0"),
        (
            {"d_max": 1, "adversary": attacks.PGD(0.1)},
            "adversary: expected .* looks for a distance",
        ),
        (
            {"d_max": 1, "evaluation_attack": attacks.DeepFool(np.inf)},
            "evaluation_attack: expected one of the norm 2",
        ),
        ({"d_max": 1, "alpha": 2}, "alpha: expected"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MMAModel(network(), **arguments)
