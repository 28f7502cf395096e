"""What all defences share: plain Keras training, and rho in the logs."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shell, train_step

from dd_keras import (
    AdversarialTrainingModel,
    CombinedModel,
    DeepDefenseModel,
    DefenseModel,
    attacks,
    evaluate_robustness,
)


def clusters(num_classes=3, batch=24):
    """Noisy clusters, one a class: (x, y), 4 features."""
    rng = np.random.default_rng(0)
    y = np.arange(batch) % num_classes
    x = 2 * rng.normal(size=(num_classes, 4))[y] + rng.normal(size=(batch, 4))
    return x.astype(np.float32), y


def network(outputs=3, activation=None, dropout=0.3):
    """With all that training does otherwise than inference."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.Dropout(dropout, seed=1),
            keras.layers.Dense(outputs, activation, activity_regularizer="l2"),
        ]
    )


def compiled(model, loss="sparse_categorical_crossentropy", **kwargs):
    model.compile(
        keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **kwargs
    )
    return model


KINDS = {
    "logits": (3, None, keras.losses.SparseCategoricalCrossentropy),
    "softmax": (3, "softmax", keras.losses.SparseCategoricalCrossentropy),
    "one logit": (1, None, keras.losses.BinaryCrossentropy),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_keras_does_to_the_bit(kind):
    outputs, activation, loss = KINDS[kind]
    x, y = clusters(max(2, outputs))
    loss = loss(from_logits=activation is None)
    fit = {
        "batch_size": 10,  # the last batch is smaller
        "epochs": 2,
        "verbose": 0,
        "sample_weight": np.linspace(0, 2, len(y)),
    }
    plain = network(outputs, activation)
    model = DefenseModel(network(outputs, activation))
    found = []
    for each in (plain, model):
        compiled(each, loss)
        keras.utils.set_random_seed(5)  # of the order of the samples
        found.append(each.fit(x, y, **fit).history)
    assert found[0] == found[1]
    for a, b in zip(plain.weights, model.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for data in (x, x[:1]):
        np.testing.assert_array_equal(
            model.predict(data, verbose=0), plain.predict(data, verbose=0)
        )


def test_logs_of_validation_hold_the_rho_of_the_tables():
    x, y = clusters()
    model = compiled(DefenseModel(network()), run_eagerly=True)
    history = model.fit(
        x, y, batch_size=10, verbose=0, validation_data=(x, y)
    ).history
    assert set(history) == {
        "loss", "accuracy", "val_loss", "val_accuracy", "val_rho2"
    }  # fmt: skip
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    report = evaluate_robustness(model.model, data, verbose=0).summary()
    assert history["val_rho2"][-1] == pytest.approx(report["rho2"], rel=1e-5)
    assert history["val_accuracy"][-1] == pytest.approx(report["accuracy"])


def test_evaluation_attack_is_the_one_behind_rho():
    x, y = clusters()
    classifier = network()
    attack = attacks.DeepFool(norm=np.inf, max_iter=1)
    model = compiled(
        DefenseModel(classifier, evaluation_attack=attack), run_eagerly=True
    )
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert "rho2" not in logs
    size = np.abs(attack.perturb(classifier, x)).max(axis=1)
    rho = np.mean(size / np.abs(x).max(axis=1))
    assert logs["rhoinf"] == pytest.approx(rho, rel=1e-5)


class Shrinking(DefenseModel):
    """A defence that overrides one method."""

    def regularizer(self, x, labels, forward, sample_weight):
        penalty = sum(
            tf.reduce_sum(tf.square(tf.convert_to_tensor(w)))
            for w in self.trainable_weights
        )
        return 0.5 * penalty, None


def test_what_a_subclass_adds_is_minimised_besides():
    x, y = clusters()
    steps = {}
    for cls in (DefenseModel, Shrinking):
        model = cls(network())
        model.compile(
            keras.optimizers.SGD(1.0),
            "sparse_categorical_crossentropy",
            run_eagerly=True,
        )
        before = [w.numpy() for w in model.trainable_weights]
        logs = train_step(model, x, y)
        after = [w.numpy() for w in model.trainable_weights]
        steps[cls] = logs["loss"], before, after
        assert set(logs) == {"loss"}
    (plain, _, expected), (loss, before, found) = steps.values()
    squares = sum(np.sum(w**2) for w in before)
    assert loss == pytest.approx(plain + squares / 2, rel=1e-5)
    for w, a, b in zip(before, expected, found, strict=True):
        np.testing.assert_allclose(b, a - w, rtol=1e-4, atol=1e-5)


def test_config_comes_back():
    attack = attacks.DeepFool(norm=3, max_iter=7)
    model = DefenseModel(
        network(),
        evaluation_attack=attack,
        batch_norm="frozen_statistics",
        activation="linear",
    )
    again = DefenseModel.from_config(json.loads(json.dumps(model.get_config())))
    assert again.evaluation_attack == attack
    assert (again.batch_norm, again.activation) == (
        "frozen_statistics",
        "linear",
    )
    assert again.rho_tracker.name == "rho3"
    again.model.set_weights(model.model.get_weights())
    x, _ = clusters()
    np.testing.assert_array_equal(again(x), model(x))
    assert DefenseModel(network()).evaluation_attack == attacks.DeepFool()


@pytest.mark.thorough
@pytest.mark.slow
def test_saved_models_train_on_in_a_new_process(tmp_path):
    """All defences; with Adam's moments, and with frozen statistics."""
    x, y = clusters()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    fgsm = attacks.FGSM(0.3)
    deep = {"lam": 2.0, "attack": attacks.DeepFool(max_iter=2, candidates=1)}

    def classifier():
        return network(activation="softmax", dropout=0.0)

    models = [
        DefenseModel(classifier(), batch_norm="frozen"),
        DeepDefenseModel(classifier(), c=3.0, d=0.5, **deep),
        AdversarialTrainingModel(classifier(), adversary=fgsm, alpha=0.25),
        CombinedModel(classifier(), adversary=fgsm, **deep),
    ]
    expected = {}
    for model in models:
        compiled(model, run_eagerly=True)
        model.train_on_batch(x, y)
        name = type(model).__name__
        model.save(tmp_path / f"{name}.keras")
        model.train_on_batch(x, y)
        expected[name] = model.evaluate(x, y, verbose=0, return_dict=True)
    script = f"""
import json, keras, numpy as np
import dd_keras
data = np.load("data.npz")
found = {{}}
for name in {list(expected)}:
    model = keras.saving.load_model(f"{{name}}.keras")
    assert type(model) is getattr(dd_keras, name)
    assert model.run_eagerly
    scale = model.model.layers[1].gamma.numpy()
    model.train_on_batch(data["x"], data["y"])
    same = (model.model.layers[1].gamma.numpy() == scale).all()
    assert same == (model.batch_norm == "frozen") == (name == "DefenseModel")
    if name == "DeepDefenseModel":
        assert (model.lam, model.c, model.d) == (2, 3, 0.5)
        assert repr(model.attack) == "{models[1].attack!r}"
    found[name] = model.evaluate(
        data["x"], data["y"], verbose=0, return_dict=True
    )
print(json.dumps(found))
"""
    found = shell("-c", script, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    logs = json.loads(found.stdout.strip().splitlines()[-1])
    assert logs.keys() == expected.keys()
    for name, values in expected.items():
        assert logs[name] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (DefenseModel, {}),
        (DeepDefenseModel, {}),
        (AdversarialTrainingModel, {"adversary": attacks.FGSM(1.0)}),
        (CombinedModel, {"adversary": attacks.FGSM(1.0)}),
    ],
)
def test_bad_arguments_are_named_by_every_defence(cls, arguments):
    message = (
        "batch_norm: expected one of ('trained', 'frozen_statistics', "
        "'frozen'); "
        "received 'fixed'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cls(network(), batch_norm="fixed", **arguments)
    with pytest.raises(TypeError, match=r"model: expected a keras\.Model"):
        cls("model.keras", **arguments)
    with pytest.raises(ValueError, match=r"activation: expected one of"):
        cls(network(), activation="relu", **arguments)
    with pytest.raises(ValueError, match=r"loss: expected a classification"):
        cls(network(), **arguments).compile("sgd", "mse")


# ------------------------------------------------------------- the first step


def as_arrays(model, x, y):
    model.fit(x, y, batch_size=8, verbose=0)


def as_data_set(model, x, y):
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)


def as_weighted(model, x, y):
    model.fit(x, y, batch_size=8, sample_weight=np.ones(len(y)), verbose=0)


def as_one_batch(model, x, y):
    model.train_on_batch(x, y)


@pytest.mark.parametrize("metrics", [None, ["accuracy"]])
@pytest.mark.parametrize(
    "train", [as_arrays, as_data_set, as_weighted, as_one_batch]
)
def test_first_step_traces_once(train, metrics, monkeypatch):
    traces = []
    step = DefenseModel.train_step

    def counted(self, data):
        traces.append(data)
        return step(self, data)

    monkeypatch.setattr(DefenseModel, "train_step", counted)
    x, y = clusters()
    model = DefenseModel(network())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics)
    train(model, x, y)
    assert len(traces) == 1
    assert int(model.optimizer.iterations) == (
        1 if train is as_one_batch else 3
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics)
    train(model, x, y)
    assert len(traces) == 2


def test_error_of_a_metric_comes_from_the_step():
    def broken(y_true, y_pred):
        raise ValueError("this metric is broken")

    x, y = clusters()
    model = DefenseModel(network())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[broken])
    with pytest.raises(ValueError, match="this metric is broken"):
        model.fit(x, y, verbose=0)
