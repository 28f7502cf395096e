"""Adversarial training: each step against closed forms; its data set."""

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

from dd_keras import (
    AdversarialTrainingModel,
    CombinedModel,
    DeepDefenseModel,
    attacks,
    deepfool_dataset,
)
from dd_keras.utils import norms

EPS, ALPHA = 0.3, 0.25
LAM, C, D = 2.0, 3.0, 0.5
FGSM = attacks.FGSM(EPS)


# One step is one step down the gradient of Goodfellow's objective


def closed_form(w, b, x, y, alpha, weights):
    """The objective of an affine softmax classifier, and its gradients.

    The error p - onehot is the cross-entropy's gradient by the logits, its
    product with W^T that by the inputs, and X^T error / B that by W.
    """

    def one(x):
        p = softmax(x @ w + b)
        error = p - np.eye(w.shape[1])[y]
        weighted = weights[:, None] * error / len(x)
        loss = np.mean(-weights * np.log(p[np.arange(len(x)), y]))
        return error, loss, x.T @ weighted, weighted.sum(axis=0)

    error, *clean = one(x)
    _, *adversarial = one(x + EPS * np.sign(error @ w.T))
    return [
        alpha * a + (1 - alpha) * b
        for a, b in zip(clean, adversarial, strict=True)
    ]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_step_on_an_affine_classifier_is_the_closed_form(alpha, weighted):
    x, y = clusters()
    weights = np.linspace(0, 2, len(y)) if weighted else None
    ones = np.ones(len(y)) if weights is None else weights
    loss, *expected = closed_form(W, B, x, y, alpha, ones)
    model = AdversarialTrainingModel(
        affine_classifier(W, B), adversary=FGSM, alpha=alpha
    )
    logs = compiled(model).evaluate(
        x, y, sample_weight=weights, verbose=0, return_dict=True
    )
    assert logs["loss"] == pytest.approx(loss, rel=1e-6)
    logs, found = step(model, x, y, weights)
    assert logs["loss"] == pytest.approx(loss, rel=1e-6)
    assert_all_close(found, expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "one logit"])
def test_step_with_other_outputs_is_the_closed_form(kind):
    binary = kind != "softmax"
    x, y = clusters(2 if binary else 3)
    w, b = (W[:, :1], B[:1]) if binary else (W, B)
    affine = affine_classifier(w, b)
    classifier = affine
    if kind != "one logit":
        layer = keras.layers.Activation(kind, dtype="float64")
        classifier = keras.Sequential([affine, layer])
    model = AdversarialTrainingModel(classifier, adversary=FGSM, alpha=ALPHA)
    logs, found = step(compiled(model, binary=binary), x, y)
    if binary:  # the two-class case f = (0, z)
        w, b = (np.pad(v, [(0, 0)] * (v.ndim - 1) + [(1, 0)]) for v in (w, b))
    loss, *expected = closed_form(w, b, x, y, ALPHA, np.ones(len(y)))
    if binary:
        expected = [v[..., 1:] for v in expected]
    assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    assert_all_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "adversary",
    [
        attacks.DeepFool(max_iter=3),
        attacks.PGD(1.0, norm=2, steps=3, random_start=False),
    ],
    ids=["deepfool", "pgd"],
)
def test_no_gradient_goes_through_the_attack(adversary):
    x, y = clusters()
    y = tf.constant(y, tf.int32)
    classifier = network()

    def gradient(through_the_attack):
        with tf.GradientTape() as tape:
            found = adversary.search(classifier, tf.constant(x), y)
            moved = x + found.perturbation
            if not through_the_attack:
                moved = tf.constant(moved.numpy())
            loss = ALPHA * crossentropy(y, classifier(x))
            loss += (1 - ALPHA) * crossentropy(y, classifier(moved))
        return tape.gradient(loss, classifier.trainable_weights)

    constant, through = gradient(False), gradient(True)
    model = AdversarialTrainingModel(
        classifier, adversary=adversary, alpha=ALPHA
    )
    _, found = step(compiled(model), x, y)
    assert_all_close(found, constant)
    for one, other in zip(constant, through, strict=True):
        assert np.abs(one - other).max() > 1e-5  # there is one to be stopped


@pytest.mark.usefixtures("double")
def test_attack_in_inference_mode_and_both_passes_in_training_mode():
    """With dropout, batch normalisation, weight and activity losses."""
    x, y = clusters()

    def classifier():
        options = {"dtype": "float64"}
        return network(
            keras.layers.BatchNormalization(momentum=0.5, **options),
            keras.layers.Dropout(0.5, seed=3, **options),
            keras.layers.Dense(
                5,
                activity_regularizer="l2",
                kernel_regularizer="l2",
                **options,
            ),
        )

    by_hand = classifier()
    weights = by_hand.trainable_weights
    with tf.GradientTape() as tape:
        loss = ALPHA * crossentropy(y, by_hand(x, training=True))
        loss += ALPHA * sum(by_hand.losses)
        moved = FGSM(by_hand, x, y)
        adversarial = crossentropy(y, by_hand(moved, training=True))
        loss += (1 - ALPHA) * (adversarial + sum(by_hand.losses))
    expected = tape.gradient(loss, weights)

    model = AdversarialTrainingModel(classifier(), adversary=FGSM, alpha=ALPHA)
    logs, found = step(compiled(model), x, y)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert_all_close(found, expected)
    for a, b in zip(
        model.model.non_trainable_variables,
        by_hand.non_trainable_variables,
        strict=True,
    ):  # moving statistics, and states of seeds: two passes' worth of each
        np.testing.assert_allclose(a, b, rtol=1e-12)
        assert np.any(np.asarray(a) != 0)


def test_alpha_one_is_plain_training_to_the_bit():
    x, y = clusters(batch=24, dtype=np.float32)
    plain = network(dtype="float32")
    plain.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model = AdversarialTrainingModel(
        network(dtype="float32"), adversary=FGSM, alpha=1
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    for each in (plain, model):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_graph_and_xla_train_as_eager_does(jit_compile):
    x, y = clusters()
    trained = []
    for arguments in (
        {},
        {"run_eagerly": False, "jit_compile": jit_compile},
    ):
        model = AdversarialTrainingModel(network(), adversary=FGSM)
        compiled(model, 0.5, **arguments)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    assert_all_close(*trained, rtol=1e-8)


@pytest.mark.slow
def test_logs_and_what_training_does_to_them():
    x, y = clusters(batch=24, dtype=np.float32)
    classifier = network(dtype="float32")
    model = AdversarialTrainingModel(classifier, adversary=FGSM)
    model.compile(
        keras.optimizers.SGD(0.5),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(
        x, y, epochs=15, validation_data=(x, y), verbose=0
    ).history
    assert set(history) == {
        "loss", "accuracy", "val_loss", "val_accuracy", "val_rho2"
    }  # fmt: skip
    assert history["loss"][-1] < history["loss"][0]
    found = attacks.DeepFool().run(classifier, x)
    rho = np.mean(norms.rho(found.perturbation, tf.constant(x)))
    assert history["val_rho2"][-1] == pytest.approx(rho, rel=1e-5)
    clean = float(crossentropy(y, classifier(x)))
    adversarial = float(crossentropy(y, classifier(FGSM(classifier, x, y))))
    assert history["val_loss"][-1] == pytest.approx(
        (clean + adversarial) / 2, rel=1e-5
    )
    accuracy = np.mean(np.argmax(classifier(x), 1) == y)  # of clean inputs
    assert history["val_accuracy"][-1] == pytest.approx(accuracy)


# Deep Defense on top


def combined_objective(classifier, x, y, regularizer_sees=None):
    """Goodfellow's objective plus Eq. 6's regulariser, written out by hand."""
    y = tf.constant(y, tf.int32)
    moved = FGSM(classifier, x, y)
    clean = crossentropy(y, classifier(x))
    adversarial = crossentropy(y, classifier(moved))
    found = attacks.DeepFool(max_iter=3).search(classifier, tf.constant(x), y)
    rho = norms.rho(found.perturbation, tf.constant(x))
    penalty = tf.reduce_mean(
        tf.where(found.predictions == y, tf.exp(-C * rho), tf.exp(D * rho))
    )
    return ALPHA * clean + (1 - ALPHA) * adversarial, penalty, rho


def deep(classifier, cls=CombinedModel, **kwargs):
    arguments = {
        "lam": LAM,
        "c": C,
        "d": D,
        "attack": attacks.DeepFool(max_iter=3),
        **kwargs,
    }
    if cls is CombinedModel:
        arguments = {"adversary": FGSM, "alpha": ALPHA, **arguments}
    return compiled(cls(classifier, **arguments))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layers", [None, ["top"], ["hidden"]], ids=str)
def test_combined_step_follows_the_sum(layers):
    x, y = clusters()
    classifier = network()
    weights = classifier.trainable_weights
    with tf.GradientTape(persistent=True) as tape:
        adversarial, penalty, rho = combined_objective(classifier, x, y)
    by_loss = tape.gradient(adversarial, weights)
    by_penalty = tape.gradient(penalty, weights)
    expected = [
        a + LAM * b if layers is None or w.path.split("/")[-2] in layers else a
        for w, a, b in zip(weights, by_loss, by_penalty, strict=True)
    ]
    model = deep(classifier, regularized_layers=layers)
    logs, found = step(model, x, y)
    assert_all_close(found, expected)
    assert logs["loss"] == pytest.approx(
        float(adversarial + LAM * penalty), rel=1e-6
    )
    assert logs["regularization"] == pytest.approx(float(penalty), rel=1e-6)
    assert logs["rho2"] == pytest.approx(np.mean(rho), rel=1e-6)


@pytest.mark.usefixtures("double")
def test_combined_without_lam_is_adversarial_training_to_the_bit():
    x, y = clusters()
    one = deep(network(), lam=0.0)
    other = compiled(
        AdversarialTrainingModel(network(), adversary=FGSM, alpha=ALPHA)
    )
    (one_logs, one), (logs, other) = step(one, x, y), step(other, x, y)
    assert one_logs["loss"] == logs["loss"]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("double")
def test_combined_with_alpha_one_is_deep_defense():
    x, y = clusters()
    one = deep(network(), alpha=1.0)
    other = deep(network(), DeepDefenseModel)
    (one_logs, one), (logs, other) = step(one, x, y), step(other, x, y)
    assert one_logs == pytest.approx(logs, rel=1e-6)
    assert_all_close(one, other, rtol=1e-12)  # summed in another order


# Files


def test_configs_come_back():
    model = AdversarialTrainingModel(
        network(), adversary=FGSM, alpha=ALPHA, batch_norm="frozen"
    )
    config = json.loads(json.dumps(model.get_config()))
    again = AdversarialTrainingModel.from_config(config)
    assert again.adversary == FGSM
    assert (again.alpha, again.batch_norm) == (ALPHA, "frozen")
    config = json.loads(json.dumps(deep(network()).get_config()))
    again = CombinedModel.from_config(config)
    assert again.adversary == FGSM
    assert again.attack == attacks.DeepFool(max_iter=3)
    assert (again.alpha, again.lam, again.penalty.c) == (ALPHA, LAM, C)
    assert AdversarialTrainingModel(network(), adversary=FGSM).alpha == 0.5


# Bad input


@pytest.mark.parametrize(
    "adversary",
    ["fgsm", None, attacks.FGSM, attacks.FGSM(EPS, targeted=True)],
    ids=["name", "none", "class", "targeted"],
)
def test_what_is_no_adversary(adversary):
    message = (
        "adversary: expected an untargeted dd_keras.attacks.Attack; received "
        f"{adversary!r}."
    )
    for cls in (AdversarialTrainingModel, CombinedModel):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            cls(network(), adversary=adversary)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), "half", True])
def test_alpha_out_of_range(alpha):
    message = (
        "alpha: expected a finite number >= 0 and <= 1; received "
        f"{re.escape(repr(alpha))}."
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        AdversarialTrainingModel(network(), adversary=FGSM, alpha=alpha)


# The fixed training set


def projections(w, b, x):
    """The step of DeepFool from each x onto the nearest boundary of x W + b."""
    steps = []
    for point in x:
        f = point @ w + b
        s = np.argmax(f)
        others = [k for k in range(len(f)) if k != s]
        normals = {k: w[:, k] - w[:, s] for k in others}
        distance = {
            k: (f[s] - f[k]) / np.linalg.norm(normals[k]) for k in others
        }
        k = min(others, key=distance.get)
        steps.append(distance[k] * normals[k] / np.linalg.norm(normals[k]))
    return np.array(steps)


def batches(x, y, size=5):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def samples(dataset):
    """All inputs and all labels of an unbatched data set."""
    found = list(dataset.as_numpy_iterator())
    return np.array([x for x, _ in found]), np.array([y for _, y in found])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("overshoot", [None, 0.5])
def test_images_are_the_closed_form_projections(binary, overshoot):
    x, y = clusters(2 if binary else 3)
    w, b = (W[:, :1], B[:1]) if binary else (W, B)
    model = affine_classifier(w, b)
    before = model.get_weights()
    attack = None if overshoot is None else attacks.DeepFool(2, 50, overshoot)
    found, labels = samples(
        deepfool_dataset(model, batches(x, y), attack, verbose=0)
    )
    full_w, full_b = (
        (np.pad(w, [(0, 0), (1, 0)]), np.pad(b, (1, 0))) if binary else (w, b)
    )
    stretch = 1 + (0.02 if overshoot is None else overshoot)
    np.testing.assert_allclose(
        found, x + stretch * projections(full_w, full_b, x), rtol=1e-9
    )
    assert found.dtype == np.float64
    np.testing.assert_array_equal(labels, y)  # labels, and the order
    classes = [np.argmax(z @ full_w + full_b, axis=1) for z in (x, found)]
    assert (classes[0] != classes[1]).all()
    assert (classes[0] != y).any()  # also of what was misclassified
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_clean_images_follow():
    x, y = clusters()
    model = affine_classifier(W, B)
    alone, _ = samples(deepfool_dataset(model, batches(x, y), verbose=0))
    dataset = deepfool_dataset(
        model, batches(x, y), include_clean=True, verbose=0
    )
    assert len(dataset) == 2 * len(x)
    both, labels = samples(dataset)
    np.testing.assert_array_equal(both, np.concatenate([alone, x]))
    np.testing.assert_array_equal(labels, np.concatenate([y, y]))


def test_any_batches_labels_and_attacks_will_do(capsys):
    x, y = clusters()
    model = affine_classifier(W, B)
    one_hot = np.eye(3)[y]
    listed = [(x[:7], one_hot[:7]), (x[7:], one_hot[7:])]
    found, labels = samples(deepfool_dataset(model, listed, FGSM))
    assert "2/2" in capsys.readouterr().out  # shows how far it is
    np.testing.assert_array_equal(labels, one_hot)
    np.testing.assert_allclose(found, FGSM(model, x), rtol=1e-12)
    generator = ((x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4))
    again, labels = samples(deepfool_dataset(model, generator, FGSM, verbose=0))
    assert capsys.readouterr().out == ""
    np.testing.assert_allclose(again, found, rtol=1e-12)
    np.testing.assert_array_equal(labels, y)


def test_bad_data_sets_are_named():
    x, y = clusters()
    model = affine_classifier(W, B)
    none = "dataset: expected at least one batch; received none."
    for empty in ([], batches(x, y).take(0)):
        with pytest.raises(ValueError, match=f"^{none}$"):
            deepfool_dataset(model, empty, verbose=0)
    message = "dataset: expected a finite one; received one that repeats"
    with pytest.raises(ValueError, match=message):
        deepfool_dataset(model, batches(x, y).repeat(), verbose=0)
    pairs = r"dataset: expected batches of \(inputs, labels\); received "
    inputs_alone = tf.data.Dataset.from_tensor_slices(x).batch(4)
    with pytest.raises(ValueError, match=f"{pairs}EagerTensor of one"):
        deepfool_dataset(model, inputs_alone, verbose=0)
    with pytest.raises(ValueError, match=f"{pairs}tuple of 3"):
        deepfool_dataset(model, [(x, y, y)], verbose=0)
    with pytest.raises(ValueError, match=r"x: expected inputs of shape"):
        deepfool_dataset(model, [(x[:, :2], y)], verbose=0)


def test_bad_models_are_named():
    data = batches(*clusters())
    fresh = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="model: expected a built model"):
        deepfool_dataset(fresh, data, verbose=0)
    with pytest.raises(TypeError, match=r"model: expected a keras\.Model"):
        deepfool_dataset("model.keras", data, verbose=0)
