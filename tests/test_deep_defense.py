import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from plain_formulation import PlainDeepFool

from dd_keras import DeepDefenseModel, attacks, logits_model, numerics

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
    compile_arguments = {
        key: kwargs.pop(key)
        for key in ("run_eagerly", "jit_compile", "steps_per_execution")
        if key in kwargs
    }
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
    rho = numerics.rho(found.perturbation, tf.constant(x), attack.norm)
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
            jit_compile=False,
        )
        before = model.get_weights()
        logs = model.train_on_batch(x, y, return_dict=True)
        trained.append((logs, model.get_weights()))
    assert set(shared) == {shares}
    (logs, weights), (plain_logs, plain_weights) = trained
    assert logs == pytest.approx(plain_logs, rel=1e-6)
    for old, got, expected in zip(before, weights, plain_weights, strict=True):
        np.testing.assert_allclose(
            got - old, expected - old, rtol=1e-7, atol=1e-12
        )


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
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    logs = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    for old, new, gradient in zip(
        before, network.weights, gradients, strict=True
    ):
        np.testing.assert_allclose(
            (old - new.numpy()) / 0.01, gradient, rtol=1e-3, atol=2e-4
        )
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(logs["regularization"], penalty, rtol=1e-5)
    np.testing.assert_allclose(logs["rho2"], np.mean(rho), rtol=1e-5)


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


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_label_forms(form):
    x, y = flowers()
    loss, convert = LABEL_FORMS[form]
    model = defended(classifier(), loss)
    history = model.fit(x, convert(y), epochs=8, verbose=0).history
    assert set(history) == {"accuracy", "loss", "regularization", "rho2"}
    assert history["loss"][-1] < history["loss"][0]
    if form in ("column", "one_hot", "object"):  # one and the same loss
        sparse = defended(classifier())
        expected = sparse.fit(x, y, epochs=8, verbose=0).history
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_softmax_and_logits_models_train_alike(activation):
    x, y = flowers()
    model = defended(classifier(activation=activation))
    model.fit(x, y, epochs=3, verbose=0)
    reference = defended(classifier())
    reference.fit(x, y, epochs=3, verbose=0)
    for a, b in zip(model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary_classifier_with_one_output(activation):
    x, y = flowers(num_classes=2)
    model = defended(classifier(1, activation), "binary_crossentropy")
    history = model.fit(
        x, y, epochs=30, validation_data=(x, y), verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_regularization"][-1] < history["val_regularization"][0]
    predicted = logits_model(model)(x)[:, 0] > 0
    assert np.mean(predicted == y) > 0.9


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.top = keras.layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.top(self.hidden(x))


def test_subclassed_softmax_model():
    x, y = flowers()
    network = Subclassed()
    network(x)
    model = defended(network)
    history = model.fit(x, y, epochs=10, verbose=0).history
    assert history["regularization"][-1] < history["regularization"][0]


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
    history = model.fit(x, y, batch_size=50, epochs=3, verbose=0).history
    after = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert after["rho2"] > 1.15 * before["rho2"]
    assert after["accuracy"] > before["accuracy"] - 0.01
    assert history["regularization"][-1] < history["regularization"][0]


def test_validation_rho_is_the_papers(trained_network, digits):
    _, _, x, y = digits
    x, y = x[:120], y[:120]
    model = defended(trained_network)
    logs = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    # From the predicted class, to convergence, mean over all samples.
    found = attacks.DeepFool(max_iter=50).run(trained_network, x)
    rho = numerics.rho(found.perturbation, tf.constant(x))
    np.testing.assert_allclose(logs["rho2"], np.mean(rho), rtol=1e-5)


def test_predict_gives_the_classifiers_outputs_without_labels():
    x, _ = flowers()
    network = classifier(activation="softmax", dropout=0.5)
    model = defended(network)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), network.predict(x, verbose=0)
    )
    np.testing.assert_allclose(model(x), network(x))


def test_lam_zero_is_plain_training():
    x, y = flowers()
    model = defended(lam=0.0)
    logs = model.train_on_batch(x, y, return_dict=True)
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


def test_partial_last_batch_and_batch_of_one():
    x, y = flowers(batch=25)
    model = defended()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_other_norm_names_its_metric():
    x, y = flowers()
    model = defended(attack=attacks.DeepFool(norm=float("inf"), max_iter=3))
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"rhoinf", "val_rhoinf"} <= set(history)


# Ways of execution

EXECUTIONS = {
    "eager": {"run_eagerly": True},
    "steps": {"steps_per_execution": 3},
    "xla": {"jit_compile": True},
    "auto": {"jit_compile": "auto"},
}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_executions_agree(execution):
    x, y = flowers()
    model = defended(classifier(), **EXECUTIONS[execution])
    plain = defended(classifier(), jit_compile=False)
    for each in (model, plain):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        network = classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = flowers()
    model = defended(network)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    history = model.fit(
        x, y, epochs=20, validation_data=(x, y), verbose=0
    ).history
    full = defended(classifier())
    expected = full.fit(
        x, y, epochs=20, validation_data=(x, y), verbose=0
    ).history
    # Half precision rounds to 3 digits (bfloat16: 2), the same training.
    for key in ("loss", "val_rho2"):
        np.testing.assert_allclose(
            history[key][-1], expected[key][-1], rtol=0.1
        )
    assert logits_model(model)(x).dtype in (tf.float16, tf.bfloat16)


# Callbacks and files


def test_stock_callbacks(tmp_path):
    x, y = flowers()
    model = defended()
    best = tmp_path / "best.keras"
    history = model.fit(
        x,
        y,
        epochs=4,
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


def test_interrupted_fit_goes_on_from_its_backup(tmp_path):
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


def test_saved_model_trains_on_in_a_new_process(tmp_path):
    x, y = flowers()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model = defended(
        classifier(activation="softmax"),
        attack=attacks.DeepFool(max_iter=3, candidates=1),
    )
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, **fit)
    model.save(tmp_path / "model.keras")
    history = model.fit(x, y, epochs=2, **fit).history
    script = f"""
        import json, keras, numpy as np
        import dd_keras
        data = np.load("data.npz")
        model = keras.saving.load_model("model.keras")
        assert isinstance(model, dd_keras.DeepDefenseModel)
        assert (model.lam, model.penalty.c, model.penalty.d) == {LAM, C, D}
        assert repr(model.attack) == "{model.attack!r}"
        history = model.fit(data["x"], data["y"], epochs=2, **{fit}).history
        print(json.dumps(history))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    continued = json.loads(found.stdout.strip().splitlines()[-1])
    assert set(continued) == set(history)
    for key, values in history.items():
        np.testing.assert_allclose(continued[key], values, rtol=1e-5)


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x, y: (x, np.zeros((24, 3, 3))),
            ValueError,
            r"y: expected labels of shape.*\(None, 3, 3\)",
        ),
        (
            lambda x, y: (x, y + 1),
            tf.errors.InvalidArgumentError,
            r"y: expected labels in \[0, 3\)",
        ),
        (lambda x, y: (x[:, :3], y), ValueError, r"shape.*\(None, 3\)"),
    ],
)
def test_bad_batches_are_named(change, error, message):
    with pytest.raises(error, match=message):
        defended().fit(*change(*flowers()), verbose=0)
