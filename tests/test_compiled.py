import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation import evaluate_robustness

X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
Y = np.arange(30) % 3


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", name="first"),
            layers.Dense(5, name="second"),
            layers.Dense(3, name="last"),
        ]
    )


def fresh(model):
    """A model of the same layers that nothing was compiled for."""
    return keras.Sequential([keras.Input((6,)), *model.layers])


def popped(model):
    model.pop()


def added(model):
    model.add(keras.layers.Dense(4))


def activated(model):
    model.layers[0].activation = keras.activations.tanh


def swapped(model):
    last = model.layers[-1]
    model.pop()
    model.add(keras.layers.Dense(3, name="other"))
    del last
    gc.collect()


def sharpened(model):
    """Another setting of a layer of the user's."""
    model.layers[0].activation = lambda x: keras.ops.relu(x) - 0.5


CHANGES = [popped, added, activated, swapped, sharpened]


@pytest.mark.parametrize("change", CHANGES)
def test_attacks_see_a_changed_model(change):
    model = small_model()
    attack = attacks.FGSM(0.5)
    before = attack.run(model, X)
    change(model)
    found, expected = attack.run(model, X), attack.run(fresh(model), X)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.any(found.perturbation != before.perturbation)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_evaluations_see_a_changed_model(change):
    model = small_model()

    def report():
        return evaluate_robustness(
            model, X, Y, metrics=["accuracy", "rho2"], activation="linear",
            verbose=0,
        )  # fmt: skip

    before = report()
    change(model)
    after = report()
    expected = model(X).numpy().argmax(-1)
    np.testing.assert_array_equal(after.predictions, expected)
    assert np.any(after.values["rho2"] != before.values["rho2"])


@keras.saving.register_keras_serializable("tests")
class Scale(keras.layers.Layer):
    """Multiplies by a number that may be set to another."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self._factor = factor
        self.inner = {"bias": 0.0}
        self.traced = 0

    def call(self, inputs):
        self.traced += 1
        return self._factor * inputs


def scaled_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), Scale(), keras.layers.Dense(3)])


def test_a_private_setting_of_a_nested_layer_is_seen():
    inner = scaled_model()
    model = keras.Sequential([keras.Input((6,)), inner])
    attack = attacks.MinimalFGSM(9.0)
    first = attack.perturb(model, X).numpy()
    inner.layers[0]._factor = -2.0
    assert np.any(attack.perturb(model, X).numpy() != first)


@pytest.mark.slow
def test_an_unchanged_model_is_not_traced_again():
    model = scaled_model()
    layer = model.layers[0]
    attack = attacks.PGD(0.5, steps=3)
    attack.run(model, X)
    evaluate_robustness(model, X, Y, verbose=0)
    attack.run(model, X)  # the layer's own count changed meanwhile: once more
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(X, Y, epochs=1, verbose=0)
    attack.run(model, X)
    count = layer.traced
    for _ in range(3):
        attack.run(model, X[:7])
        attacks.PGD(0.5, steps=3).run(model, X)
    assert layer.traced == count


@pytest.mark.parametrize("compile_first", [True, False])
def test_training_and_other_weights_make_no_new_graph(compile_first):
    model = small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    attack = attacks.FGSM(0.5)
    if compile_first:
        model.compile("sgd", loss)
    first = attack.perturb(model, X).numpy()
    made = held(model)
    if not compile_first:
        model.compile("sgd", loss)
    for _ in range(2):
        model.fit(X, Y, validation_data=(X, Y), verbose=0)
    model.predict(X, verbose=0)
    model.set_weights([5 * w[::-1] for w in model.get_weights()])
    assert np.any(attack.perturb(model, X).numpy() != first)
    if compile_first:
        assert held(model) == made


def held(model):
    """The functions that a model holds."""
    entries = vars(model)["_dd_keras_compiled"].entries
    return [id(built[0]) for _, built, _ in entries.values()]


@pytest.mark.slow
def test_a_model_dies_with_what_was_compiled_for_it():
    model = small_model()
    attacks.DeepFool().run(model, X)
    evaluate_robustness(model, X, Y, metrics=["rho2", "rho1"], verbose=0)
    dead = weakref.ref(model), weakref.ref(model.layers[0])
    del model
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_a_gradient_through_a_compiled_attack_stays():
    """Also behind TensorFlow's back, where it is held weakly."""
    model, x = small_model(), tf.constant(X)

    def gradients():
        with tf.GradientTape() as tape:
            length = tf.norm(attacks.DeepFool(max_iter=8).perturb(model, x))
        return tape.gradient(length, model.trainable_variables)

    first = gradients()
    gc.collect()
    for one, other in zip(first, gradients(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert all(np.any(g) for g in first[::2])


def test_a_model_holds_no_more_than_16_the_latest():
    model = small_model()
    for i in range(20):
        attacks.FGSM(0.1 + i).run(model, X)
        attacks.FGSM(0.1).run(model, X)  # asked for again and again: stays
    keys = list(vars(model)["_dd_keras_compiled"].entries)
    assert len(keys) == 16
    assert keys[-1][0] == attacks.FGSM(0.1)
    assert keys[0][0] == attacks.FGSM(5.1)


def test_what_is_compiled_is_not_saved_nor_copied(tmp_path):
    model = small_model()
    model.save(tmp_path / "before.keras")
    tf.saved_model.save(model, str(tmp_path / "before"))
    attacks.FGSM(0.1).run(model, X)
    evaluate_robustness(model, X, Y, verbose=0)
    model.save(tmp_path / "after.keras")
    tf.saved_model.save(model, str(tmp_path / "after"))
    sizes = [(tmp_path / f"{n}.keras").stat().st_size for n in NAMES]
    assert abs(sizes[0] - sizes[1]) < 100
    graphs = [(tmp_path / n / "saved_model.pb").stat().st_size for n in NAMES]
    assert graphs[1] == pytest.approx(graphs[0], rel=0.02)
    again = keras.saving.load_model(tmp_path / "after.keras")
    assert "_dd_keras_compiled" not in vars(again)
    copy = keras.models.clone_model(model)
    assert "_dd_keras_compiled" not in vars(copy)


NAMES = ("before", "after")
