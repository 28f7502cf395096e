"""Deep Defense: each step against Eq. 6, and `fit` as Keras' users know it."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier, train_step
from plain_formulation import PlainDeepFool

from dd_keras import DeepDefenseModel, attacks, logits_model
from dd_keras.utils import norms

LAM, C, D = 1.0, 3.0, 0.5


def flowers(num_classes=3, batch=24, seed=0):
    """Noisy clusters, one a class: (x, y), 4 features."""
    rng = np.random.default_rng(seed)
    y = np.arange(batch) % num_classes
    centres = 4 * rng.normal(size=(num_classes, 4))
    x = centres[y] + rng.normal(size=(batch, 4))
    return x.astype(np.float32), y


def classifier(outputs=3, activation=None, seed=0, dropout=0.0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(outputs, activation=activation, name="top"),
        ]
    )


def defended(model=None, loss="sparse_categorical_crossentropy", **kwargs):
    """A compiled defence; eager, as tracing takes longer than a few steps."""
    compile_arguments = {
        key: kwargs.pop(key)
        for key in ("run_eagerly", "jit_compile", "steps_per_execution")
        if key in kwargs
    }
    compile_arguments = compile_arguments or {"run_eagerly": True}
    arguments = {"lam": LAM, "c": C, "d": D, **kwargs}
    model = DeepDefenseModel(model or classifier(), **arguments)
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        loss,
        metrics=["accuracy"],
        **compile_arguments,
    )
    return model


def objective(network, x, y, weights=None, attack=None):
    """Eq. 6, written out by hand on logits and sparse labels."""
    attack = attack or attacks.DeepFool(max_iter=5)
    weights = np.ones(len(y), np.float32) if weights is None else weights
    outputs = network(x)
    crossentropy = keras.losses.sparse_categorical_crossentropy(
        y, outputs, from_logits=True
    )
    found = attack.run(network, x, y)
    norm = getattr(attack, "norm", 2)
    rho = norms.rho(found.perturbation, tf.constant(x), norm)
    correct = np.argmax(outputs, -1) == y
    penalty = tf.where(correct, tf.exp(-C * rho), tf.exp(D * rho))
    return (
        tf.reduce_mean(weights * crossentropy),
        tf.reduce_mean(weights * penalty),
        rho,
    )


# One step is one step down the gradient of Eq. 6


def image_classifier(*layers, outputs=3, activation=None):
    """A small network in float64, where the two formulations can agree."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype="float64"),
            keras.layers.Conv2D(4, 3, activation="tanh"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            *layers,
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "shares"),
    [("logits", True), ("one logit", True), ("softmax", False),
     ("sigmoid", False), ("batch norm", False), ("dropout", False)],
)  # fmt: skip
def test_step_equals_the_plain_formulation(kind, shares):
    """Also where the loss and the attack share a forward pass."""
    layers = {
        "batch norm": lambda: [keras.layers.BatchNormalization()],
        "dropout": lambda: [keras.layers.Dropout(0.5, seed=3)],
    }.get(kind, list)
    rng = np.random.default_rng(0)
    binary = kind in ("one logit", "sigmoid")
    x = rng.normal(size=(16, 6, 6, 1))
    y = rng.integers(0, 2 if binary else 3, 16)
    trained, shared = [], []
    for base in (attacks.DeepFool, PlainDeepFool):

        class Spy(base):
            def search(self, network, x, y=None, forward=None):
                shared.append(forward is not None)
                return super().search(network, x, y, forward)

        model = DeepDefenseModel(
            image_classifier(
                *layers(),
                outputs=1 if binary else 3,
                activation=kind if kind in ("softmax", "sigmoid") else None,
            ),
            lam=5.0,
            attack=Spy(max_iter=4),
        )
        loss = "binary_crossentropy" if binary else None
        model.compile(
            keras.optimizers.SGD(0.5),
            loss or "sparse_categorical_crossentropy",
            run_eagerly=kind not in ("logits", "batch norm"),
            jit_compile=False,
        )
        before = model.get_weights()
        logs = train_step(model, x, y)
        trained.append((logs, model.get_weights()))
    assert set(shared) == {shares}
    (logs, weights), (plain_logs, plain_weights) = trained
    assert logs == pytest.approx(plain_logs, rel=1e-6)
    for old, got, expected in zip(before, weights, plain_weights, strict=True):
        np.testing.assert_allclose(
            got - old, expected - old, rtol=1e-7, atol=1e-12
        )


@pytest.mark.slow
def test_validation_shares_the_forward_pass_also_with_dropout():
    seen = []

    class Spy(attacks.DeepFool):
        def search(self, network, x, y=None, forward=None):
            seen.append(forward is not None)
            return super().search(network, x, y, forward)

    x, y = flowers()
    model = defended(
        classifier(dropout=0.5), attack=Spy(), evaluation_attack=Spy()
    )
    model.evaluate(x, y, verbose=0)
    assert seen
    assert all(seen)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_step_follows_the_gradient_of_the_objective(weighted):
    x, y = flowers()
    weights = np.linspace(0, 2, len(y)).astype(np.float32) if weighted else None
    network = classifier()
    before = [w.numpy() for w in network.weights]
    with tf.GradientTape() as tape:
        crossentropy, penalty, rho = objective(network, x, y, weights)
        loss = crossentropy + LAM * penalty
    gradients = tape.gradient(loss, network.trainable_weights)

    model = DeepDefenseModel(network, lam=LAM, c=C, d=D)
    model.compile(
        keras.optimizers.SGD(0.01),
        "sparse_categorical_crossentropy",
        run_eagerly=weighted,
    )
    logs = train_step(model, x, y, sample_weight=weights)
    for old, new, gradient in zip(
        before, network.weights, gradients, strict=True
    ):
        np.testing.assert_allclose(
            (old - new.numpy()) / 0.01, gradient, rtol=1e-3, atol=2e-4
        )
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(logs["regularization"], penalty, rtol=1e-5)
    np.testing.assert_allclose(logs["rho2"], np.mean(rho), rtol=1e-5)


@pytest.mark.slow
def test_class_weight_weighs_the_regulariser():
    x, y = flowers()
    class_weight = {0: 0.0, 1: 1.0, 2: 3.0}
    by_class, by_sample = defended(classifier()), defended(classifier())
    by_class.fit(x, y, batch_size=24, class_weight=class_weight, verbose=0)
    weights = np.array([class_weight[label] for label in y], np.float32)
    by_sample.fit(x, y, batch_size=24, sample_weight=weights, verbose=0)
    plain = defended(classifier())
    plain.fit(x, y, batch_size=24, verbose=0)
    for a, b, c in zip(
        by_class.weights, by_sample.weights, plain.weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3


def test_penalty_pushes_correct_samples_away_and_pulls_mistakes_near():
    # On f = (0, w x) the distance of x to the boundary 0 is |x|; rho is 1
    # whatever w, so only the bias moves it: boundary at -b / w.
    model = affine_classifier([[1.0]], [0.0], "float32")
    defense = DeepDefenseModel(model, lam=100.0, c=1.0, d=1.0)
    defense.compile(keras.optimizers.SGD(1e-3), "binary_crossentropy")

    def boundary_after(x, y):
        model.set_weights([np.array([[1.0]]), np.array([0.0])])
        defense.train_on_batch(np.array([[x]]), np.array([y]))
        weight, bias = model.get_weights()
        return float(-bias[0] / weight[0, 0])

    assert boundary_after(1.0, 1) < -0.01  # correct: away from 1
    assert boundary_after(1.0, 0) > 0.01  # misclassified: towards and past 1
    assert boundary_after(-1.0, 0) > 0.01
    assert boundary_after(-1.0, 1) < -0.01


@pytest.mark.slow
def test_attack_sees_inference_mode_and_leaves_statistics_alone():
    x, y = flowers()
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activity_regularizer="l2"),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    norm = network.layers[1]
    z = network.layers[0](x).numpy()
    model = defended(network)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    plain = defended(network, lam=0.0)
    clean = plain.evaluate(x, y, verbose=0, return_dict=True)
    # The attack's forward passes add no activity loss of their own.
    np.testing.assert_allclose(
        logs["loss"], clean["loss"] + LAM * logs["regularization"], rtol=1e-5
    )
    model.train_on_batch(x, y)
    # One update by the clean forward pass, none by those of the attack.
    np.testing.assert_allclose(
        norm.moving_mean, 0.5 * z.mean(0), rtol=1e-4, atol=1e-5
    )


# fit, as Keras users know it

LABEL_FORMS = {
    "sparse": ("sparse_categorical_crossentropy", lambda y: y),
    "column": ("SparseCategoricalCrossentropy", lambda y: y[:, None]),
    "one_hot": ("categorical_crossentropy", lambda y: np.eye(3)[y]),
    "focal": ("categorical_focal_crossentropy", lambda y: np.eye(3)[y]),
    "object": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda y: y,
    ),
}


@pytest.fixture(scope="module")
def reference():
    """A defence trained for 4 epochs of one batch, and its history."""
    x, y = flowers()
    model = defended(classifier())
    return model, model.fit(x, y, epochs=4, verbose=0).history


@pytest.mark.slow
@pytest.mark.parametrize("form", LABEL_FORMS)
def test_label_forms(form, reference):
    x, y = flowers()
    loss, convert = LABEL_FORMS[form]
    model = defended(classifier(), loss, run_eagerly=form != "one_hot")
    history = model.fit(x, convert(y), epochs=4, verbose=0).history
    assert set(history) == {"accuracy", "loss", "regularization", "rho2"}
    assert history["loss"][-1] < history["loss"][0]
    if form in ("column", "one_hot", "object"):  # one and the same loss
        _, expected = reference
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.slow
def test_softmax_and_logits_models_train_alike(reference):
    x, y = flowers()
    model = defended(classifier(activation="softmax"))
    model.fit(x, y, epochs=4, verbose=0)
    for a, b in zip(model.weights, reference[0].weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary_classifier_with_one_output(activation):
    x, y = flowers(num_classes=2)
    model = defended(classifier(1, activation), "binary_crossentropy")
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.fit(x, y, epochs=30, verbose=0)
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert after["loss"] < before["loss"]
    assert after["regularization"] < before["regularization"]
    predicted = logits_model(model)(x)[:, 0] > 0
    assert np.mean(predicted == y) > 0.9


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.top = keras.layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.top(self.hidden(x))


@pytest.mark.slow
def test_subclassed_softmax_model():
    x, y = flowers()
    network = Subclassed()
    network(x)
    model = defended(network)
    history = model.fit(x, y, epochs=10, verbose=0).history
    assert history["regularization"][-1] < history["regularization"][0]


@pytest.mark.slow
def test_robustness_grows_on_digits(trained_network, digits):
    x, y, x_test, y_test = digits
    network = keras.models.clone_model(trained_network)
    network.set_weights(trained_network.get_weights())
    model = DeepDefenseModel(network, lam=15.0, c=15.0, d=5.0)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    before = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    # From the predicted class, to convergence, mean over all samples.
    found = attacks.DeepFool(max_iter=50).run(trained_network, x_test)
    rho = norms.rho(found.perturbation, tf.constant(x_test))
    np.testing.assert_allclose(before["rho2"], np.mean(rho), rtol=1e-5)
    history = model.fit(x, y, batch_size=50, epochs=3, verbose=0).history
    after = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert after["rho2"] > 1.15 * before["rho2"]
    assert after["accuracy"] > before["accuracy"] - 0.01
    assert history["regularization"][-1] < history["regularization"][0]


def test_predict_gives_the_classifiers_outputs_without_labels():
    x, _ = flowers()
    network = classifier(activation="softmax", dropout=0.5)
    model = defended(network, run_eagerly=False)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), network.predict(x, verbose=0)
    )
    np.testing.assert_allclose(model(x), network(x))


def test_lam_zero_is_plain_training():
    x, y = flowers()
    model = defended(lam=0.0, run_eagerly=False)
    logs = train_step(model, x, y)
    assert "rho2" not in logs
    plain = classifier()
    plain.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    plain.train_on_batch(x, y)
    for a, b in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["rho2"] > 0


@pytest.mark.slow
def test_partial_last_batch_and_batch_of_one():
    x, y = flowers(batch=25)
    model = defended(run_eagerly=False)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.slow
def test_other_norm_names_its_metric():
    x, y = flowers()
    model = defended(attack=attacks.DeepFool(norm=float("inf"), max_iter=3))
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"rhoinf", "val_rhoinf"} <= set(history)


# Other norms, and other attacks


def smooth_classifier():
    """In float64, and with no gradient that is zero."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", [1, 1.5, 3, np.inf])
def test_step_in_other_norms_equals_the_plain_formulation(norm):
    x, y = flowers()
    steps, logs = [], []
    for attack in (attacks.DeepFool, PlainDeepFool):
        model = DeepDefenseModel(
            smooth_classifier(),
            lam=5.0,
            c=C,
            d=D,
            attack=attack(norm, max_iter=3),
        )
        found, step = eager_step(model, x, y)
        steps.append(step)
        logs.append(found)
    assert logs[0].keys() == {"loss", "regularization", f"rho{norm:g}"}
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    for found, expected in zip(*steps, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)


class LinearizedBoundary(attacks.Attack):
    """One step onto the boundary of the margin, taken as linear.

    Stands for any differentiable attack (the paper's footnote 1), written
    with no more than an attack must have.
    """

    def search(self, network, x, y=None, forward=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            f = network(x, training=False)
            if f.shape[-1] == 1:
                f = tf.concat([tf.zeros_like(f), f], axis=1)
            predictions = tf.argmax(f, axis=1, output_type=tf.int32)
            own = tf.one_hot(
                predictions if y is None else y, f.shape[-1], True, False
            )
            lowest = f.dtype.min
            margin = tf.reduce_max(tf.where(own, f, lowest), axis=1)
            margin -= tf.reduce_max(tf.where(own, lowest, f), axis=1)
        slope = tape.gradient(margin, x)  # (B, D)
        square = tf.reduce_sum(slope**2, axis=1)
        return attacks.AttackResult(
            perturbation=-(margin / square)[:, None] * slope,
            predictions=predictions,
            fooled=tf.ones_like(margin, tf.bool),
            iterations=tf.ones_like(predictions),
        )

    def get_config(self):
        return {}


@pytest.mark.parametrize("outputs", [1, 2])
def test_another_attack_is_one_step_of_deepfool_on_two_affine_classes(outputs):
    rng = np.random.default_rng(0)
    model = affine_classifier(
        rng.normal(size=(4, outputs)), rng.normal(size=outputs)
    )
    x, y = flowers(num_classes=2)
    deepfool = attacks.DeepFool(max_iter=1, overshoot=0)
    for labels in (y, None):
        found = LinearizedBoundary().perturb(model, x, labels)
        expected = deepfool.perturb(model, x, labels)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_step_with_another_attack_follows_finite_differences():
    x, y = flowers()
    network, attack = smooth_classifier(), LinearizedBoundary()
    weights = network.get_weights()

    def value(move):
        network.set_weights([w + m for w, m in zip(weights, move, strict=True)])
        crossentropy, penalty, _ = objective(
            network, x.astype(np.float64), y, attack=attack
        )
        return float(crossentropy + 5 * penalty)

    model = DeepDefenseModel(network, lam=5.0, c=C, d=D, attack=attack)
    _, gradient = eager_step(model, x, y)
    rng = np.random.default_rng(0)
    for _ in range(6):
        way = [1e-4 * rng.normal(size=w.shape) for w in weights]
        difference = (value(way) - value([-m for m in way])) / 2
        slope = sum(np.sum(g * m) for g, m in zip(gradient, way, strict=True))
        assert slope == pytest.approx(difference, rel=1e-4)


@pytest.mark.slow
def test_robustness_grows_with_another_attack():
    x, y = flowers()
    network = classifier()
    network.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # Epochs of many steps: each epoch has a cost of its own.
    steps = tf.data.Dataset.from_tensor_slices((x, y)).batch(24)
    network.fit(steps.repeat(100), verbose=0)
    model = defended(
        network, lam=20.0, attack=LinearizedBoundary(), run_eagerly=False
    )
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    history = model.fit(steps.repeat(10), epochs=6, verbose=0).history
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert before["accuracy"] == after["accuracy"] == 1
    assert after["rho2"] > 1.1 * before["rho2"]  # of DeepFool, to the end
    assert history["rho2"][-1] > 1.1 * history["rho2"][0]


def test_evaluation_in_another_norm_is_refused():
    other = attacks.DeepFool(norm=1)
    message = (
        "evaluation_attack: expected one of the norm 2, that of the attack in "
        f"training; received {other!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DeepDefenseModel(classifier(), evaluation_attack=other)
    with pytest.raises(ValueError, match="the norm inf, that of the attack in"):
        DeepDefenseModel(
            classifier(),
            attack=attacks.DeepFool(np.inf),
            evaluation_attack=attacks.DeepFool(),
        )


# The regulariser on some layers alone (Figure 4)


def eager_step(model, x, y):
    """The logs of a step of SGD(1), and the gradients that it followed."""
    model.compile(
        keras.optimizers.SGD(1.0),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    before = model.get_weights()
    logs = train_step(model, x, y)
    after = model.get_weights()
    return logs, [b - a for b, a in zip(before, after, strict=True)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chosen", [["first"], ["middle"], ["last", "first"]])
def test_other_layers_get_the_clean_gradient_to_the_bit(chosen):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 6, 1)), rng.integers(0, 3, 8)

    def gradients(**arguments):
        keras.utils.set_random_seed(0)
        network = image_classifier(keras.layers.Dense(5, "tanh"))
        kernels = [w for w in network.layers if w.weights]
        for layer, name in zip(
            kernels, ("first", "middle", "last"), strict=True
        ):
            layer.name = name
        model = DeepDefenseModel(
            network, attack=attacks.DeepFool(max_iter=3), **arguments
        )
        logs, found = eager_step(model, x, y)
        pairs = zip(found[::2], found[1::2], strict=True)
        return logs, dict(zip(("first", "middle", "last"), pairs, strict=True))

    clean_logs, clean = gradients(lam=0.0)
    full_logs, full = gradients(lam=5.0)
    logs, found = gradients(lam=5.0, regularized_layers=chosen)
    assert logs == pytest.approx(full_logs, rel=1e-6)  # the same objective
    assert logs["loss"] > clean_logs["loss"]
    for name, gradient in found.items():
        for part, of_all, of_none in zip(
            gradient, full[name], clean[name], strict=True
        ):
            if name in chosen:
                np.testing.assert_allclose(part, of_all, rtol=1e-9, atol=1e-12)
            else:
                np.testing.assert_array_equal(part, of_none)
            # The bias of the last layer aside, no gradient is nearly another.
            assert np.abs(of_all - of_none).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_layers_are_told_apart_in_compiled_steps(jit_compile):
    x, y = flowers()
    trained = []
    for execution in ({"run_eagerly": True}, {"jit_compile": jit_compile}):
        model = defended(
            classifier(),
            lam=5.0,
            attack=attacks.DeepFool(max_iter=2),
            regularized_layers=["hidden"],
            **execution,
        )
        for _ in range(3):
            model.train_on_batch(x, y)
        trained.append(model.get_weights())
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_no_weight_is_updated_while_the_attack_still_reads_it():
    """The same step gives the same each time, whichever thread is faster."""
    x, y = flowers()
    for layer in ("hidden", "top", "top"):  # not every graph shows it
        model = defended(
            classifier(),
            lam=5.0,
            attack=attacks.DeepFool(max_iter=2),
            regularized_layers=[layer],
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
        variables = [*model.variables, *model.optimizer.variables]
        start = [v.numpy() for v in variables]
        losses = []
        for _ in range(150):
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)
            for _ in range(3):
                logs = train_step(model, x, y)
            losses.append(float(logs["loss"]))
        assert np.ptp(losses) < 1e-4


def test_regularized_layers_may_be_nested_or_given_themselves():
    inner = classifier()
    model = keras.Sequential([keras.Input((4,)), inner])
    for given in (["hidden"], [inner.get_layer("hidden")]):
        defense = DeepDefenseModel(model, regularized_layers=given)
        assert defense.regularized_layers == ["hidden"]
    assert DeepDefenseModel(
        model, regularized_layers=[inner.name]
    ).regularized_layers == [inner.name]


@pytest.mark.parametrize(
    "layers", [["bottom"], ["hidden", "bottom"], [], "hidden", ["dropout"]]
)
def test_layers_that_cannot_be_regularized_are_named(layers):
    network = classifier()
    network.layers[1].name = "dropout"  # has no weights
    message = (
        "regularized_layers: expected a list of names of layers of "
        f"{network.name!r} with trainable weights, of ['hidden', 'top']; "
        f"received {layers!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DeepDefenseModel(network, regularized_layers=layers)


def test_config_with_all_arguments_comes_back(tmp_path):
    x, _ = flowers()
    arguments = {
        "lam": 2.0,
        "c": 7.0,
        "d": 0.5,
        "attack": attacks.DeepFool(norm=np.inf, max_iter=3),
        "evaluation_attack": attacks.DeepFool(norm=np.inf, max_iter=9),
        "regularized_layers": ["top"],
        "batch_norm": "frozen",
        "activation": "linear",
    }
    model = DeepDefenseModel(classifier(), **arguments)
    model.save(tmp_path / "model.keras")
    config = json.loads(json.dumps(model.get_config()))
    for again in (
        DeepDefenseModel.from_config(config),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert (again.penalty.c, again.penalty.d) == (7.0, 0.5)
        for name, value in arguments.items():
            if name not in "cd":
                assert getattr(again, name) == value
    np.testing.assert_array_equal(again(x), model(x))


# Ways of execution

EXECUTIONS = {
    "graph": {"jit_compile": False},
    "steps": {"steps_per_execution": 3},
    "xla": {"jit_compile": True},
}


@pytest.fixture(scope="module")
def trained_eagerly():
    return trained_by(run_eagerly=True)


def trained_by(**execution):
    x, y = flowers()
    model = defended(classifier(), **execution)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_executions_agree(execution, trained_eagerly):
    weights = trained_by(**EXECUTIONS[execution])
    for a, b in zip(weights, trained_eagerly, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def trained_longer():
    """The logs of a defence in full precision."""
    x, y = flowers()
    model = defended(classifier())
    model.fit(x, y, epochs=20, verbose=0)
    return model.evaluate(x, y, verbose=0, return_dict=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "eagerly"), [("mixed_float16", False), ("mixed_bfloat16", True)]
)
def test_mixed_precision(policy, eagerly, trained_longer):
    keras.config.set_dtype_policy(policy)
    try:
        network = classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = flowers()
    model = defended(network, run_eagerly=eagerly)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    model.fit(x, y, epochs=20, verbose=0)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    # Half precision rounds to 3 digits (bfloat16: 2), the same training.
    for key in ("loss", "rho2"):
        np.testing.assert_allclose(logs[key], trained_longer[key], rtol=0.1)
    assert logits_model(model)(x).dtype in (tf.float16, tf.bfloat16)


# Callbacks and files


@pytest.mark.slow
def test_stock_callbacks(tmp_path):
    x, y = flowers()
    model = defended()
    best = tmp_path / "best.keras"
    history = model.fit(
        x,
        y,
        epochs=3,
        validation_data=(x, y),
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                best, monitor="val_rho2", mode="max", save_best_only=True
            ),
            keras.callbacks.EarlyStopping("val_rho2", mode="max", patience=9),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TensorBoard(tmp_path / "logs"),
        ],
    ).history
    again = keras.saving.load_model(best)
    rho = again.evaluate(x, y, verbose=0, return_dict=True)["rho2"]
    np.testing.assert_allclose(rho, max(history["val_rho2"]), rtol=1e-5)
    assert list((tmp_path / "logs").rglob("events*"))


@pytest.mark.slow
def test_interrupted_fit_is_resumed_from_its_backup(tmp_path):
    x, y = flowers()

    def run(model, callbacks=()):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=4,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.BackupAndRestore(tmp_path / "backup"),
                *callbacks,
            ],
        )
        return model

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(defended(), [Crash()])
    resumed = run(defended(classifier(seed=9)))
    whole = defended()
    whole.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0)
    for a, b in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1.0}, r"lam: expected.*>= 0; received -1.0"),
        ({"lam": float("nan")}, r"lam: expected.*received nan"),
        ({"c": 0.0}, r"c: expected.*> 0; received 0.0"),
        ({"d": -2.0}, r"d: expected.*> 0; received -2.0"),
        ({"activation": "relu"}, r"activation: expected one of.*'relu'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepDefenseModel(classifier(), **arguments)


def test_models_that_cannot_be_defended():
    with pytest.raises(TypeError, match=r"model: expected a keras.Model.*str"):
        DeepDefenseModel("model.keras")
    with pytest.raises(ValueError, match=r"model: expected a built model"):
        DeepDefenseModel(keras.Sequential([keras.layers.Dense(3)]))
    inputs = keras.Input((4,))
    two = [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)]
    with pytest.raises(ValueError, match=r"model: expected.*one output.*has 2"):
        DeepDefenseModel(keras.Model(inputs, two))


def test_losses_that_do_not_fit():
    model = DeepDefenseModel(classifier())
    for loss in ("mse", keras.losses.Huber(), "mean_absolute_error"):
        with pytest.raises(
            ValueError, match=r"loss: expected a classification loss"
        ):
            model.compile("sgd", loss)
    with pytest.raises(
        ValueError,
        match=r"loss: expected from_logits=True.*outputs are logits; received "
        r"SparseCategoricalCrossentropy\(from_logits=False\)",
    ):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    probabilities = DeepDefenseModel(classifier(activation="softmax"))
    with pytest.raises(ValueError, match=r"outputs are probabilities"):
        probabilities.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )


@pytest.mark.slow
@pytest.mark.parametrize("as_arrays", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x, np.zeros((24, 3, 3))),
            r"y: expected labels of shape.*\(\w+, 3, 3\)",
        ),
        (lambda x, y: (x, y + 1), r"^y: expected labels in \[0, 3\)\.$"),
        (
            lambda x, y: (x, np.eye(3)[y] + np.eye(3)[(y + 1) % 3]),
            "^y: expected one-hot rows.*several labels a sample",
        ),
        (lambda x, y: (x[:, :3], y), r"shape.*\(None, 3\)"),
    ],
)
def test_bad_batches_are_named(change, message, as_arrays):
    data = change(*flowers())
    loss = "sparse_categorical_crossentropy"
    if np.shape(data[1]) == (24, 3):
        loss = "categorical_crossentropy"
    if not as_arrays:
        data = (tf.data.Dataset.from_tensor_slices(data).batch(12),)
    with pytest.raises(ValueError, match=message):
        defended(loss=loss, run_eagerly=False).fit(*data, verbose=0)


def test_inputs_that_are_not_finite_are_named():
    model, (x, y) = defended(), flowers()
    broken = np.array(x)
    broken[[5, 7], 1] = np.nan, np.inf
    message = "x: expected finite inputs; .* in 2 of 24, .* input 5"
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message):
            call(broken, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, validation_data=(broken, y), verbose=0)
