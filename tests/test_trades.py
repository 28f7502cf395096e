"""TRADES: one step against a search and an objective written out in NumPy."""

import json
import re

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
    crossentropy,
    network,
    softmax,
    step,
)

from dd_keras import TRADESModel, attacks
from dd_keras.attacks import stateless_random

EPS, BETA = 0.3, 2.0
BALLS = {
    "linf": attacks.PGD(EPS, steps=4, seed=5),
    "l2": attacks.PGD(EPS, 2, steps=4, seed=5),
    "bounded": attacks.PGD(EPS, steps=4, seed=5, bounds=(-1.0, 1.0)),
}


def divergence(p, q):
    """KL(p || q) of each sample."""
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def most_different(x, w, b, attack, noise):
    """The search of the paper's Algorithm 1, on an affine classifier."""
    low, high = attack.bounds or (-np.inf, np.inf)
    p = softmax(x @ w + b)
    moved = np.clip(x + attack.eps / 300 * noise, low, high) - x
    for _ in range(attack.steps):
        gradient = (softmax((x + moved) @ w + b) - p) @ w.T
        if attack.norm == 2:
            gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
        else:
            gradient = np.sign(gradient)
        moved = moved + attack.step_size * gradient
        if attack.norm == 2:
            length = np.linalg.norm(moved, axis=1, keepdims=True)
            moved *= attack.eps / np.maximum(length, attack.eps)
        else:
            moved = np.clip(moved, -attack.eps, attack.eps)
        moved = np.clip(x + moved, low, high) - x
    return x + moved


def closed_form(x, moved, y, weights):
    """The objective of an affine classifier, and its gradients."""
    p, q = softmax(x @ W + B), softmax(moved @ W + B)
    kl = divergence(p, q)
    loss = np.mean(weights * (-np.log(p[np.arange(len(x)), y]) + BETA * kl))
    by_logits = p - np.eye(3)[y]
    by_logits += BETA * p * (np.log(p) - np.log(q) - kl[:, None])
    scale = weights[:, None] / len(x)
    by_logits, by_moved = scale * by_logits, scale * BETA * (q - p)
    return (
        loss,
        x.T @ by_logits + moved.T @ by_moved,
        by_logits.sum(axis=0) + by_moved.sum(axis=0),
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ball", BALLS)
def test_step_on_an_affine_classifier_is_the_closed_form(ball, weighted):
    attack = BALLS[ball]
    x, y = clusters()
    if attack.bounds:
        x = np.clip(x, *attack.bounds)
    weights = np.linspace(0, 2, len(y)) if weighted else None
    noise = stateless_random.normal(tf.constant(x), attack.seed, 0).numpy()
    moved = most_different(x, W, B, attack, noise)
    ones = np.ones(len(y)) if weights is None else weights
    loss, *expected = closed_form(x, moved, y, ones)
    model = compiled(
        TRADESModel(affine_classifier(W, B), adversary=attack, beta=BETA)
    )
    logs = model.evaluate(
        x, y, sample_weight=weights, verbose=0, return_dict=True
    )
    assert logs["loss"] == pytest.approx(loss, rel=1e-6)
    logs, found = step(model, x, y, weights)
    assert logs["loss"] == pytest.approx(loss, rel=1e-6)
    assert_all_close(found, expected)


@pytest.mark.usefixtures("double")
def test_each_step_starts_elsewhere_and_a_rerun_at_the_same_places():
    x, y = clusters()
    steps = []
    for _ in range(2):
        model = compiled(
            TRADESModel(affine_classifier(W, B), adversary=BALLS["linf"]), 0.0
        )
        logs = [step(model, x, y)[0]["loss"] for _ in range(3)]
        assert len(set(logs)) == 3
        steps.append(logs)
    assert steps[0] == steps[1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "one logit"])
def test_probabilities_train_as_their_logits_do(activation):
    binary = activation != "softmax"
    x, y = clusters(2 if binary else 3)
    w, b = (W[:, :1], B[:1]) if binary else (W, B)
    affine = affine_classifier(w, b)
    if activation != "one logit":
        layer = keras.layers.Activation(activation, dtype="float64")
        affine = keras.Sequential([affine, layer])
    model = TRADESModel(affine, adversary=BALLS["l2"], beta=BETA)
    _, found = step(compiled(model, binary=binary), x, y)
    if binary:  # the two-class case f = (0, z)
        w, b = (np.pad(v, [(0, 0)] * (v.ndim - 1) + [(1, 0)]) for v in (w, b))
    other = TRADESModel(
        affine_classifier(w, b), adversary=BALLS["l2"], beta=BETA
    )
    _, expected = step(compiled(other), x, y)
    if binary:
        expected = [v[..., 1:] for v in expected]
    assert_all_close(found, expected, rtol=1e-6, atol=1e-8)


def test_saturated_probabilities_do_not_stop_the_search():
    """In float32 p rounds to 1 here, and p' - p of that class to 0."""
    w = np.array([[6.0, 0.0, -1.0]] * 4, np.float32)
    x = np.ones((5, 4), np.float32)
    model = compiled(
        TRADESModel(
            affine_classifier(w, np.zeros(3), "float32"),
            adversary=attacks.PGD(0.5, 2, steps=4),
        )
    )
    moved = model._most_different(tf.constant(x), None, False).numpy()
    length = np.linalg.norm(moved - x, axis=1)
    np.testing.assert_allclose(length, 0.5, rtol=1e-3)


@pytest.mark.usefixtures("double")
def test_both_passes_are_in_training_mode_and_the_search_is_not():
    x, y = clusters()

    def classifier():
        return network(
            keras.layers.BatchNormalization(momentum=0.5, dtype="float64"),
            keras.layers.Dropout(0.5, seed=3, dtype="float64"),
        )

    model = TRADESModel(classifier(), adversary=BALLS["linf"], beta=BETA)
    by_hand = classifier()
    other = TRADESModel(by_hand, adversary=BALLS["linf"])
    with tf.GradientTape() as tape:
        z = by_hand(x, training=True)
        moved = other._most_different(tf.constant(x), None, False)
        q = tf.nn.log_softmax(by_hand(moved, training=True))
        p = tf.nn.log_softmax(z)
        kl = tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), axis=1))
        loss = crossentropy(y, z) + BETA * kl
    expected = tape.gradient(loss, by_hand.trainable_weights)
    _, found = step(compiled(model), x, y)
    assert_all_close(found, expected)


def test_graph_trains_as_eager_does():
    x, y = clusters(dtype=np.float32)
    trained = []
    for eager in (True, False):
        model = TRADESModel(network(dtype="float32"), adversary=BALLS["linf"])
        compiled(model, 0.5, run_eagerly=eager, jit_compile=False)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    assert_all_close(*trained, rtol=1e-4, atol=1e-6)


def test_configs_come_back():
    model = TRADESModel(network(), adversary=BALLS["l2"], beta=3.0)
    again = TRADESModel.from_config(json.loads(json.dumps(model.get_config())))
    assert (again.adversary, again.beta) == (BALLS["l2"], 3.0)
    assert TRADESModel(network(), adversary=BALLS["l2"]).beta == 6.0


@pytest.mark.parametrize(
    "adversary",
    [None, attacks.FGSM(EPS), attacks.PGD(EPS, targeted=True)],
    ids=["none", "fgsm", "targeted"],
)
def test_what_is_no_adversary(adversary):
    message = re.escape(
        "adversary: expected an untargeted dd_keras.attacks.PGD; received "
        f"{adversary!r}."
    )
    with pytest.raises(TypeError, match=f"^{message}$"):
        TRADESModel(network(), adversary=adversary)


def test_beta_out_of_range():
    with pytest.raises(ValueError, match=r"^beta: expected a finite number"):
        TRADESModel(network(), adversary=BALLS["l2"], beta=-1)
