"""Classifiers of every make: what can be wrapped, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import thorough_but
from keras import layers

import dd_keras
from dd_keras import attacks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 6)).astype(np.float32)
Y = np.arange(12) % 3
PIXELS = RNG.integers(0, 256, (12, 6)).astype(np.uint8)


class Subclassed(keras.Model):
    """Two layers, of which no graph is known."""

    def __init__(self, units=3, activation=None):
        super().__init__()
        self.hidden = layers.Dense(5, "tanh")
        self.top = layers.Dense(units, activation)

    def call(self, inputs):
        return self.top(self.hidden(inputs))


class OfADict(Subclassed):
    """Takes its input in a dict."""

    def call(self, inputs):
        return super().call(inputs["image"])


class OwnSoftmax(layers.Layer):
    """A softmax that Keras does not know to be one."""

    def call(self, inputs):
        return tf.nn.softmax(inputs)


def built(model, x=X):
    model(x)
    return model


def functional(*stack, shape=(6,), dtype=None):
    inputs = keras.Input(shape, dtype=dtype, name="image")
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def averaged():
    inputs = keras.Input((6,))
    members = [layers.Dense(3, "softmax")(inputs) for _ in range(3)]
    return keras.Model(inputs, layers.Average()(members))


def of_structure(structure):
    inputs = keras.Input((6,), name="image")
    given = {"dict": {"image": inputs}, "list": [inputs]}[structure]
    return keras.Model(given, layers.Dense(3, "softmax")(inputs))


def quantised():
    model = functional(layers.Dense(5, "tanh"), layers.Dense(3, "softmax"))
    for layer in model.layers[1:]:
        layer.quantize("int8")
    return model


def told():
    """Ends in a division, which could be anything."""
    inputs = keras.Input((6,))
    x = layers.Dense(3)(inputs)
    length = keras.ops.sqrt(1 + keras.ops.sum(x**2, -1, keepdims=True))
    return keras.Model(inputs, x / length)


# Name: how it is made, what it ends in, what it takes.
CLASSIFIERS = {
    "subclassed, softmax": (
        lambda: built(Subclassed(3, "softmax")), "softmax", X,
    ),
    "subclassed, sigmoids": (
        lambda: built(Subclassed(3, "sigmoid")), "sigmoid", X,
    ),
    "subclassed, one sigmoid": (
        lambda: built(Subclassed(1, "sigmoid")), "sigmoid", X,
    ),
    "subclassed, logits": (lambda: built(Subclassed()), "linear", X),
    "subclassed, of a dict": (
        lambda: built(OfADict(3, "softmax"), {"image": X}),
        "softmax",
        {"image": X},
    ),
    "nested, subclassed": (
        lambda: functional(built(Subclassed(3, "softmax"))), "softmax", X,
    ),
    "own softmax layer": (
        lambda: functional(layers.Dense(3), OwnSoftmax()), "softmax", X,
    ),
    "averaged ensemble": (averaged, "softmax", X),
    "told, functional": (told, "told linear", X),
    "told, below a softmax": (
        lambda: functional(told(), layers.Softmax()), "softmax", X,
    ),
    "of a dict": (lambda: of_structure("dict"), "softmax", {"image": X}),
    "of a list": (lambda: of_structure("list"), "softmax", [X]),
    "of a tensor, given a dict": (
        lambda: functional(layers.Dense(3)), "linear", {"image": X},
    ),
    "of a tensor, given a list": (
        lambda: functional(layers.Dense(3)), "linear", [X],
    ),
    "uint8, functional": (
        lambda: functional(
            layers.Rescaling(1 / 255), layers.Dense(3), dtype="uint8"
        ),
        "linear",
        PIXELS,
    ),
    "uint8, sequential": (
        lambda: keras.Sequential(
            [
                keras.Input((6,), dtype="uint8"),
                layers.Rescaling(1 / 255),
                layers.Dense(3, "softmax"),
            ]
        ),
        "softmax",
        PIXELS,
    ),
    "quantised to int8": (quantised, "softmax", X),
}  # fmt: skip


def values(x):
    return next(iter(x.values())) if isinstance(x, dict) else np.asarray(x)


# One of each kind of ending and of input.
QUICK = (
    "subclassed, softmax",
    "averaged ensemble",
    "told, below a softmax",
    "uint8, sequential",
)


@pytest.mark.parametrize("name", thorough_but(QUICK, CLASSIFIERS))
def test_is_trained_evaluated_and_exported(name, tmp_path):
    make, ending, x = CLASSIFIERS[name]
    keras.utils.set_random_seed(0)
    model = make()
    y = Y if model.predict(x, verbose=0).shape[-1] > 1 else Y % 2
    activation = ending.removeprefix("told ") if "told " in ending else None
    ending = activation or ending
    wrapped = dd_keras.DeepDefenseModel(
        model,
        lam=1.0,
        c=3.0,
        attack=attacks.DeepFool(max_iter=2),
        activation=activation,
    )
    assert wrapped.activation == ending
    loss = "sparse_categorical_crossentropy"
    wrapped.compile(
        keras.optimizers.SGD(1e-3),
        loss if y is Y else "binary_crossentropy",
        metrics=["accuracy"],
    )
    wrapped.fit(x, y, batch_size=6, verbose=0)
    predicted = wrapped.predict(x, verbose=0)
    np.testing.assert_array_equal(predicted, model.predict(x, verbose=0))
    # The library knows the logits that it made.
    logits = dd_keras.logits_model(wrapped)
    assert dd_keras.logits_model(logits) is logits
    flat = values(x).reshape(len(y), -1).astype(np.float32)
    scores = logits.predict(flat, verbose=0)
    expected = {
        "softmax": lambda z: keras.ops.softmax(z),
        "sigmoid": lambda z: keras.ops.sigmoid(z),
        "linear": lambda z: z,
    }[ending](scores)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    report = dd_keras.evaluate_robustness(wrapped, x, y, verbose=0)
    classes = (
        predicted.argmax(-1)
        if predicted.shape[-1] > 1
        else (predicted[:, 0] > (0 if ending == "linear" else 0.5))
    )
    np.testing.assert_array_equal(report.values["predictions"], classes)
    assert np.all(np.isfinite(report.values["rho2"]))
    version = dd_keras.export(
        wrapped, tmp_path / "served", warm_up_requests=False
    )
    serve = tf.saved_model.load(version).signatures["serving_default"]
    served = serve(images=tf.constant(flat))
    np.testing.assert_array_equal(served["classes"], classes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: functional(
                layers.Embedding(9, 4), layers.Flatten(), layers.Dense(3),
                dtype="int32",
            ),
            "depend on the inputs in a differentiable way.*Embedding",
        ),
        (
            lambda: functional(
                layers.Discretization(bin_boundaries=[0.0]), layers.Dense(3)
            ),
            "depend on the inputs in a differentiable way.*Discretization",
        ),
        (
            lambda: functional(
                layers.Hashing(9, output_mode="one_hot"), layers.Dense(3),
                shape=(1,), dtype="string",
            ),
            "takes strings",
        ),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_perturbed_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^model: .*{message}"):
        dd_keras.DeepDefenseModel(make())


def test_a_gradient_that_is_none_is_named_by_attacks():
    model = functional(
        layers.Discretization(bin_boundaries=[0.0]), layers.Dense(3)
    )
    with pytest.raises(ValueError, match="model: expected logits that depend"):
        attacks.DeepFool().run(model, X)


def test_random_models_are_told_of_when_they_are_wrapped():
    noise = layers.Lambda(
        lambda x: x + tf.random.normal(tf.shape(x)), name="shaken"
    )
    model = functional(layers.Dense(5), noise, layers.Dense(3))
    with pytest.warns(UserWarning, match=r"random in inference.*'shaken'"):
        dd_keras.DeepDefenseModel(model)
    # Random in training alone: nothing to tell.
    dd_keras.DeepDefenseModel(
        functional(
            layers.GaussianNoise(1.0), layers.Dropout(0.5), layers.Dense(3)
        )
    )


def test_a_train_step_that_is_not_called_is_told_of():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(3)(inputs))
    with pytest.warns(UserWarning, match="train_step of Own is not called"):
        dd_keras.DefenseModel(model)


def test_variables_that_keras_does_not_know_are_named():
    class Scaled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(2.0, name="factor")

        def call(self, inputs):
            return self.factor * inputs

    model = dd_keras.DeepDefenseModel(
        functional(Scaled(), layers.Dense(3)),
        attack=attacks.DeepFool(max_iter=2),
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"made by add_weight.*'factor:0'"):
        model.fit(X, Y, verbose=0)


def test_tools_that_take_networks_apart_find_the_classifier():
    model = functional(layers.Dense(5, name="features"), layers.Dense(3))
    wrapped = dd_keras.DeepDefenseModel(model)
    assert wrapped.input is model.input
    assert wrapped.output is model.output
    features = keras.Model(wrapped.inputs, wrapped.get_layer("features").output)
    np.testing.assert_array_equal(features(X), model.get_layer("features")(X))
    subclassed = dd_keras.DeepDefenseModel(built(Subclassed()))
    with pytest.raises(AttributeError):
        _ = subclassed.inputs


@pytest.mark.parametrize("outputs", ["logit", "probability"])
@pytest.mark.parametrize("name", ["accuracy", "binary_accuracy", "precision"])
def test_metrics_of_one_output_have_its_threshold(outputs, name):
    # Logits of 0.2 are above the threshold of 0, and below one of 0.5.
    model = functional(layers.Dense(1))
    model.set_weights([np.zeros((6, 1)), np.array([0.2])])
    if outputs == "probability":
        model = functional(model, layers.Activation("sigmoid"))
    wrapped = dd_keras.DefenseModel(model)
    wrapped.compile(
        "sgd", "binary_crossentropy", metrics=[name], weighted_metrics=[]
    )
    logs = wrapped.evaluate(X, np.ones(12), verbose=0, return_dict=True)
    assert logs[name] == 1.0


def test_cross_entropies_as_metrics_are_those_of_logits():
    wrapped = dd_keras.DefenseModel(functional(layers.Dense(3)))
    wrapped.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        metrics=["sparse_categorical_crossentropy"],
    )
    logs = wrapped.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["sparse_categorical_crossentropy"] == pytest.approx(
        float(logs["loss"]), rel=1e-6
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_settings_may_be_changed_after_compile(compiled):
    keras.utils.set_random_seed(0)
    model = dd_keras.DeepDefenseModel(
        functional(layers.Dense(3)), lam=2.0, c=3.0, d=1.0
    )
    model.compile(
        keras.optimizers.SGD(0.0),
        "sparse_categorical_crossentropy",
        run_eagerly=not compiled,
    )

    def logs():
        found = model.fit(X, Y, batch_size=12, verbose=0).history
        return {key: value[0] for key, value in found.items()}

    first = logs()
    task = first["loss"] - 2.0 * first["regularization"]
    model.lam = 0
    assert logs()["loss"] == pytest.approx(task, rel=1e-5)
    assert "rho2" not in logs()
    model.lam = 0.5
    assert logs()["loss"] == pytest.approx(
        task + 0.5 * first["regularization"], rel=1e-5
    )
    model.c, model.d = 1.0, 0.5
    again = logs()["regularization"]
    assert again < first["regularization"]
    assert model.get_config()["c"] == 1.0
    model.attack = attacks.DeepFool(max_iter=1)
    assert logs()["rho2"] <= first["rho2"]
    for name, value in (("lam", -1), ("c", 0), ("d", "5")):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            setattr(model, name, value)
    with pytest.raises(
        ValueError, match=r"^attack: expected one of the norm 2"
    ):
        model.attack = attacks.DeepFool(norm=1)


def test_a_loss_that_is_not_finite_ends_a_plain_fit():
    model = dd_keras.DefenseModel(functional(layers.Dense(3)))
    model.compile(keras.optimizers.SGD(1e38), "sparse_categorical_crossentropy")
    with pytest.raises(
        dd_keras.training.DivergenceError,
        match=r"step \d: the loss is (nan|inf).*too large.*Or an input",
    ):
        model.fit(X, Y, batch_size=2, epochs=9, verbose=0)
    # Keras' own callback for this is left to do it its way.
    model.fit(
        X,
        Y,
        batch_size=2,
        epochs=9,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )


def test_a_model_that_makes_its_layers_in_each_call_is_refused():
    class Anew(keras.Model):
        def __init__(self):
            super().__init__()
            self.top = layers.Dense(3)

        def call(self, inputs):
            return self.top(layers.Dense(4)(inputs))

    with pytest.raises(ValueError, match=r"^model: expected one that makes"):
        dd_keras.DeepDefenseModel(built(Anew()))
