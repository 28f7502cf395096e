import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import logits_model
from dd_keras.classifier import logit_layers, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.classifier.logits import class_logits, num_classes

INPUTS, HIDDEN = 4, 5
WEIGHTS = 4  # two kernels, two biases

# Ways to end a classifier: the layers after the hidden one, for n outputs.
layers = keras.layers
ENDINGS = {
    "linear": lambda n: [layers.Dense(n)],
    "Dense softmax": lambda n: [layers.Dense(n, activation="softmax")],
    "Softmax layer": lambda n: [layers.Dense(n), layers.Softmax()],
    "Activation softmax": lambda n: [
        layers.Dense(n),
        layers.Activation("softmax"),
    ],
    "Dense sigmoid": lambda n: [layers.Dense(n, activation="sigmoid")],
    "Activation sigmoid": lambda n: [
        layers.Dense(n),
        layers.Activation("sigmoid"),
    ],
    # The usual ending under mixed precision: nothing, in float32.
    "Dense softmax, then a linear Activation": lambda n: [
        layers.Dense(n, activation="softmax"),
        layers.Activation("linear", dtype="float32"),
    ],
    "Dense softmax, then Reshape": lambda n: [
        layers.Dense(n, activation="softmax"),
        layers.Reshape((n,)),
    ],
    "Dense sigmoid, then Dropout": lambda n: [
        layers.Dense(n, activation="sigmoid"),
        layers.Dropout(0.5),
    ],
}
# Where the graph cannot be cut, softmax's logits come back but for a constant.
UP_TO_A_CONSTANT = {
    "Dense softmax, then a linear Activation",
    "Dense softmax, then Reshape",
}


def ends_in(ending):
    for activation in ("softmax", "sigmoid"):
        if activation in ending.lower():
            return activation
    return "linear"


def hidden(dtype=None):
    return layers.Dense(HIDDEN, activation="tanh", dtype=dtype)


def sequential(ending):
    return keras.Sequential([keras.Input((INPUTS,)), hidden(), *ending])


def functional(ending):
    inputs = x = keras.Input((INPUTS,))
    for layer in [hidden(), *ending]:
        x = layer(x)
    return keras.Model(inputs, x)


def nested_head(ending):
    """The ending as a model of its own."""
    head = keras.Sequential([keras.Input((HIDDEN,)), *ending])
    inputs = keras.Input((INPUTS,))
    return keras.Model(inputs, head(hidden()(inputs)))


def twice_nested_head(ending):
    head = keras.Sequential([keras.Input((HIDDEN,)), *ending])
    outer = keras.Sequential([keras.Input((HIDDEN,)), head])
    return keras.Sequential([keras.Input((INPUTS,)), hidden(), outer])


def nested_backbone(ending):
    """A pretrained network below, a new ending on top."""
    backbone = keras.Sequential([keras.Input((INPUTS,)), hidden()])
    inputs = x = keras.Input((INPUTS,))
    for layer in [backbone, *ending]:
        x = layer(x)
    return keras.Model(inputs, x)


@keras.saving.register_keras_serializable("test_logits")
class Subclassed(keras.Model):
    """A network whose graph Keras does not know."""

    def __init__(self, ending, **kwargs):
        super().__init__(**kwargs)
        self.parts = [hidden(self.dtype_policy), *ending]

    def build(self, input_shape):
        for part in self.parts:
            if not part.built:  # loaded layers are
                part.build(input_shape)
            input_shape = part.compute_output_shape(input_shape)
        self.built = True

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        ending = [serialize(part) for part in self.parts[1:]]
        return {**super().get_config(), "ending": ending}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        ending = [deserialize(part) for part in config.pop("ending")]
        return cls(ending, **config)


def subclassed(ending):
    model = Subclassed(ending)
    model.build((None, INPUTS))
    return model


GRAPHS = [
    sequential, functional, nested_head, twice_nested_head, nested_backbone,
]  # fmt: skip


def randomize(model, seed=0):
    """Sets the weights of the hidden and the last layer; returns them."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=w.shape) for w in model.get_weights()]
    assert len(values) == WEIGHTS
    model.set_weights(values)
    return model


def batch(size=6, seed=1):
    x = np.random.default_rng(seed).normal(size=(size, INPUTS))
    return tf.constant(x, "float32")


def true_logits(model, x):
    """The logits from the weights alone, in float64."""
    w1, b1, w2, b2 = (np.float64(w) for w in model.get_weights())
    return np.tanh(np.float64(x) @ w1 + b1) @ w2 + b2


def outputs_of(z, activation):
    if activation == "softmax":
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)
    return 1 / (1 + np.exp(-z)) if activation == "sigmoid" else z


def centered(z):
    """Logits up to one constant a sample."""
    return np.asarray(z) - np.mean(z, axis=-1, keepdims=True)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("build", [*GRAPHS, subclassed])
def test_logits_of_every_ending_are_the_true_ones(build, ending):
    x, activation = batch(), ends_in(ending)
    model = randomize(build(ENDINGS[ending](3)))
    found, expected = logits_model(model)(x), true_logits(model, x)
    if activation == "softmax" and (
        build is subclassed or ending in UP_TO_A_CONSTANT
    ):
        found, expected = centered(found), centered(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        outputs_of(np.float64(found), activation), model(x), atol=1e-6
    )


@pytest.mark.parametrize(
    "ending", ["linear", "Dense sigmoid", "Activation sigmoid"]
)
@pytest.mark.parametrize("build", [*GRAPHS, subclassed])
def test_binary_classifiers_give_their_one_logit(build, ending):
    x = batch()
    model = randomize(build(ENDINGS[ending](1)))
    found = logits_model(model)(x)
    assert found.shape == (6, 1)
    np.testing.assert_allclose(
        found, true_logits(model, x), rtol=1e-4, atol=1e-5
    )
    assert num_classes(model) == 2


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("build", [*GRAPHS, subclassed])
def test_weights_are_shared_with_the_model(build, ending):
    x = batch()
    model = randomize(build(ENDINGS[ending](3)))
    network = logits_model(model)
    before = network(x).numpy()
    for result, own in (
        (network.variables, model.variables),
        (network.trainable_weights, model.trainable_weights),
    ):
        assert {id(v) for v in result} == {id(v) for v in own}
        assert len(result) == len(own)
    bias = model.weights[-1]
    bias.assign_add([0.0, 1.0, 0.0])
    moved = centered(network(x)) - centered(before)
    np.testing.assert_allclose(moved, [[-1 / 3, 2 / 3, -1 / 3]] * 6, atol=1e-4)


@pytest.mark.parametrize("build", GRAPHS)
@pytest.mark.parametrize(
    "ending", ["Dense softmax", "Softmax layer", "Activation sigmoid"]
)
def test_graphs_are_cut_not_inverted(build, ending):
    """Where the softmax saturates, its logarithm has lost the logits."""
    model = randomize(build(ENDINGS[ending](3)))
    model.weights[-1].assign([0.0, 300.0, -300.0])
    x = batch()
    network = logits_model(model)
    np.testing.assert_allclose(network(x), true_logits(model, x), rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        third = network(x)[:, 2]
    assert np.abs(tape.gradient(third, x)).min(axis=-1).max() > 1e-3


@pytest.mark.parametrize("build", [*GRAPHS, subclassed])
def test_models_that_give_logits_are_returned_as_they_are(build):
    model = build(ENDINGS["linear"](3))
    assert logits_model(model) is model


@pytest.mark.parametrize("build", [functional, subclassed])
def test_log_softmax_counts_as_logits(build):
    ending = [layers.Dense(3), layers.Activation("log_softmax")]
    model = randomize(build(ending))
    assert logits.output_activation(model) == "linear"
    assert logits_model(model) is model
    np.testing.assert_allclose(
        centered(model(batch())),
        centered(true_logits(model, batch())),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "ending",
    [
        [layers.Dense(3, use_bias=False)],
        [layers.Dense(3), layers.BatchNormalization()],
        [layers.Reshape((1, 5)), layers.Conv1D(3, 1), layers.Flatten()],
        [
            layers.Reshape((1, 1, 5)),
            layers.Conv2D(3, 1),
            layers.GlobalAveragePooling2D(),
        ],
    ],
    ids=["no bias", "batch norm", "convolution", "global average"],
)
def test_usual_linear_endings_are_known(ending):
    assert logits.output_activation(functional(ending)) == "linear"


@pytest.mark.parametrize("ending", ENDINGS)
def test_activation_is_read_off_the_graph(ending):
    for build in (functional, nested_head, subclassed):
        model = build(ENDINGS[ending](3))
        assert logits.output_activation(model) == ends_in(ending)


def test_custom_layer_keeps_its_inner_activation():
    """Its attribute `activation` is not what it ends in."""

    class Head(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner, self.last = layers.Dense(HIDDEN), layers.Dense(3)
            self.activation = keras.activations.tanh

        def call(self, x):
            return keras.ops.softmax(self.last(self.activation(self.inner(x))))

    inputs = keras.Input((INPUTS,))
    model = randomize(keras.Model(inputs, Head()(inputs)))
    np.testing.assert_allclose(
        centered(logits_model(model)(batch())),
        centered(true_logits(model, batch())),
        atol=1e-5,
    )


def test_model_is_intact_afterwards():
    model = randomize(sequential(ENDINGS["Dense softmax"](3)))
    before = model(batch()).numpy()
    network = logits_model(model)
    network(batch())
    tf.function(network)(batch())
    assert model.layers[-1].activation is keras.activations.softmax
    np.testing.assert_array_equal(model(batch()), before)


def test_model_is_intact_after_a_failed_call():
    model = sequential(ENDINGS["Dense softmax"](3))
    last = logit_layers.WithoutActivation(model.layers[-1])
    with pytest.raises(ValueError, match="incompatible with the layer"):
        last(tf.zeros((2, HIDDEN + 1)))
    assert model.layers[-1].activation is keras.activations.softmax


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("build", [*GRAPHS, subclassed])
def test_logits_model_can_be_saved_and_loaded(build, ending, tmp_path):
    network = logits_model(randomize(build(ENDINGS[ending](3))))
    path = tmp_path / "logits.keras"
    network.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(loaded(batch()), network(batch()), rtol=1e-6)
    assert len(loaded.weights) == WEIGHTS


@pytest.mark.parametrize("ending", ["Dense softmax", "Softmax layer"])
def test_logits_model_takes_arrays_without_a_warning(ending):
    network = logits_model(functional(ENDINGS[ending](3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(np.zeros((2, INPUTS), "float32"))


@pytest.mark.parametrize(
    "ending",
    [
        [layers.Dense(3, dtype="mixed_float16", activation="softmax")],
        [layers.Dense(3, dtype="float32", activation="softmax")],
        [
            layers.Dense(3, dtype="mixed_float16"),
            layers.Activation("softmax", dtype="float32"),
        ],
        [layers.Dense(3, dtype="mixed_float16")],
    ],
    ids=["all half", "float32 Dense", "float32 Activation", "linear"],
)
def test_mixed_precision_gives_the_same_logits(ending):
    half = [keras.Input((INPUTS,)), hidden("mixed_float16"), *ending]
    model = randomize(keras.Sequential(half))
    found = class_logits(logits_model(model)(batch()))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, true_logits(model, batch()), atol=2e-2)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_float64_is_kept(kind, activation):
    last = layers.Dense(3, activation=activation, dtype="float64")
    if kind == "sequential":
        inputs = keras.Input((INPUTS,), dtype="float64")
        model = keras.Sequential([inputs, hidden("float64"), last])
    else:
        model = Subclassed([last], dtype="float64")
        model.build((None, INPUTS))
    randomize(model)
    x = tf.cast(batch(), "float64")
    found = logits_model(model)(x)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(
        centered(found), centered(true_logits(model, x)), 1e-12, 1e-12
    )


@pytest.mark.parametrize("ending", ["Dense softmax", "Dense sigmoid"])
def test_recovered_logits_of_a_saturated_model_are_finite(ending):
    model = randomize(subclassed(ENDINGS[ending](3)))
    model.weights[-1].assign([0.0, 500.0, -500.0])
    x = batch()
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = logits_model(model)(x)
    assert np.isfinite(found).all()
    assert np.isfinite(tape.gradient(found, x)).all()
    assert (np.argmax(found, axis=-1) == 1).all()


def test_recovered_logits_follow_training_mode():
    model = subclassed([layers.Dropout(0.5), *ENDINGS["Dense softmax"](3)])
    randomize(model)
    network = logits_model(model)
    still = network(batch(), training=False).numpy()
    np.testing.assert_array_equal(network(batch()), still)
    assert np.abs(network(batch(), training=True) - still).max() > 0.01


def test_model_with_its_own_logits_model_is_asked():
    class Wrapper(keras.Model):
        def logits_model(self):
            return inner

    inner = sequential(ENDINGS["linear"](3))
    assert logits_model(Wrapper()) is inner


UNKNOWN = {
    "Tanh": lambda: [layers.Dense(3), layers.Activation("tanh")],
    "Relu": lambda: [layers.Dense(3, activation="relu")],
}


@pytest.mark.parametrize("operation", UNKNOWN)
@pytest.mark.parametrize("build", [functional, nested_head, subclassed])
def test_unknown_ending_asks_for_the_activation(build, operation):
    model = build(UNKNOWN[operation]())
    message = (
        f"model: cannot tell whether the outputs of '{model.name}' are logits "
        f"or probabilities (its last operation is {operation}). Say which: "
        "pass activation= with one of ('softmax', 'sigmoid', 'linear')."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(model)


def test_scaled_ending_asks_for_the_activation():
    inputs = keras.Input((INPUTS,))
    model = keras.Model(inputs, 2.0 * layers.Dense(3)(inputs))
    with pytest.raises(ValueError, match=r"operation is Mul\).*activation="):
        logits_model(model)


@pytest.mark.parametrize("build", [functional, nested_head])
def test_activation_can_be_told(build):
    # A last operation that changes nothing, but hides the softmax.
    ending = [*ENDINGS["Dense softmax"](3), layers.ReLU()]
    model = randomize(build(ending))
    with pytest.raises(ValueError, match="activation="):
        logits_model(model)
    np.testing.assert_allclose(
        centered(logits_model(model, activation="softmax")(batch())),
        centered(true_logits(model, batch())),
        atol=1e-5,
    )
    told = logits_model(model, activation="linear")
    np.testing.assert_array_equal(told(batch()), model(batch()))
    assert logits_model(told) is told  # known from then on


def test_told_softmax_does_not_strip_another_activation():
    """Its inputs may favour another class than the probabilities do."""

    def normalized_squares(z):
        return z**2 / keras.ops.sum(z**2, axis=-1, keepdims=True)

    ending = [layers.Dense(3), layers.Activation(normalized_squares)]
    model = randomize(functional(ending))
    found = logits_model(model, activation="softmax")(batch())
    np.testing.assert_allclose(
        outputs_of(np.float64(found), "softmax"), model(batch()), atol=1e-6
    )


@pytest.mark.parametrize("activation", ["relu", "Softmax", "", 0])
def test_unknown_activation_is_named(activation):
    model = sequential(ENDINGS["linear"](3))
    message = (
        "activation: expected one of ('softmax', 'sigmoid', 'linear') or "
        f"None; received {activation!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(model, activation=activation)


@pytest.mark.parametrize("activation", [None, "softmax", "linear"])
def test_what_is_no_keras_model_is_named(activation):
    message = r"^model: expected a keras\.Model; received function <function"
    with pytest.raises(TypeError, match=message):
        logits_model(lambda x: x, activation)


@pytest.mark.parametrize("activation", [None, "softmax", "linear"])
@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_unbuilt_model_is_named(kind, activation):
    ending = ENDINGS["linear"](3)
    unbuilt = (
        keras.Sequential(ending, name="net")
        if kind == "sequential"
        else Subclassed(ending, name="net")
    )
    message = (
        "model: expected a built model; 'net' has no weights yet. Call it on "
        "a batch, or model.build((None, ...)), first."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(unbuilt, activation)


def test_two_inputs_are_named():
    a, b = keras.Input((INPUTS,)), keras.Input((INPUTS,))
    model = keras.Model([a, b], layers.Dense(3)(a + b), name="net")
    message = "model: expected a classifier with one input tensor; 'net' has 2."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(model)


def test_two_outputs_are_named():
    inputs = keras.Input((INPUTS,))
    heads = [layers.Dense(3)(inputs), layers.Dense(2)(inputs)]
    model = keras.Model(inputs, heads, name="net")
    message = (
        "model: expected a classifier with one output tensor; 'net' has 2. "
        "Wrap the one to defend: keras.Model(model.input, model.outputs[0])."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(model)
    # The way out that the message shows.
    logits_model(keras.Model(model.input, model.outputs[0]))


@pytest.mark.parametrize("shape", [(None, 4, 3), (None, None)])
def test_outputs_of_another_form_are_named(shape):
    inputs = keras.Input((INPUTS,))
    if shape == (None, 4, 3):
        outputs = layers.Dense(3)(layers.Reshape((4, 1))(inputs))
        model = keras.Model(inputs, outputs, name="net")
    else:
        inputs = keras.Input((None,))
        model = keras.Model(
            inputs, layers.Activation("relu")(inputs), name="net"
        )
    message = (
        "model: expected outputs of shape (batch, classes); those of 'net' "
        f"are {shape}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logits_model(model)


@pytest.mark.parametrize(("outputs", "classes"), [(1, 2), (2, 2), (7, 7)])
@pytest.mark.parametrize("build", [sequential, subclassed])
def test_number_of_classes(build, outputs, classes):
    assert num_classes(build([layers.Dense(outputs)])) == classes


def test_one_logit_becomes_two_classes():
    two = class_logits(tf.constant([[-3.0], [0.5]]))
    np.testing.assert_array_equal(two, [[0.0, -3.0], [0.0, 0.5]])


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_class_logits_are_at_least_float32(dtype, result):
    z = tf.cast([[1.0, -2.0, 0.5]], dtype)
    found = class_logits(z)
    assert found.dtype == result
    np.testing.assert_array_equal(found, [[1.0, -2.0, 0.5]])
    assert class_logits(z[:, :1]).dtype == result


LABELS = {
    "classes": np.array([2, 0, 1]),
    "column of classes": np.array([[2], [0], [1]]),
    "uint8": np.array([2, 0, 1], "uint8"),
    "float classes": np.array([2.0, 0.0, 1.0], "float32"),
    "float column": np.array([[2.0], [0.0], [1.0]]),
    "one-hot": np.eye(3)[[2, 0, 1]],
    "one-hot integers": np.eye(3, dtype="int64")[[2, 0, 1]],
    "smoothed one-hot": 0.9 * np.eye(3)[[2, 0, 1]] + 0.1 / 3,
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_every_form_become_classes(form):
    y = LABELS[form]
    signature = [tf.TensorSpec((None, *y.shape[1:]), y.dtype)]
    compiled = tf.function(
        lambda y: sparse_labels(y, 3), input_signature=signature
    )
    for labels in (sparse_labels(y, 3), compiled(y)):
        assert labels.dtype == tf.int32
        np.testing.assert_array_equal(labels, [2, 0, 1])


@pytest.mark.parametrize(
    "y",
    [
        [0.0, 1.0],
        [[0.0], [1.0]],
        [False, True],
        [[1.0, 0.0], [0.0, 1.0]],
    ],
)
def test_binary_labels_become_classes(y):
    np.testing.assert_array_equal(sparse_labels(y, 2), [0, 1])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "y", [[0, 3], [-1, 2], [[0], [3]], [0.0, np.nan]], ids=str
)
def test_label_out_of_range_is_told(y, compiled):
    def classes(y):
        return sparse_labels(y, 3)

    call = tf.function(classes) if compiled else classes
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"y: expected labels in \[0, 3\)\.",
    ):
        call(tf.constant(y))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_hot_labels_must_be_numbers(value):
    y = np.eye(3)
    y[1, 2] = value
    message = "y: expected finite labels"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        sparse_labels(y, 3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 2), (4, 5), (4, 3, 1)])
def test_labels_of_another_shape_are_named(shape, compiled):
    def classes(y):
        return sparse_labels(y, 3)

    call = tf.function(classes, autograph=False) if compiled else classes
    message = (
        "y: expected labels of shape (batch,), (batch, 1) or one-hot "
        f"(batch, 3); received shape {shape}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(tf.zeros(shape))


@pytest.mark.parametrize("shape", [(None, None), None], ids=str)
def test_labels_of_unknown_form_are_told_apart_or_refused(shape):
    """One-hot rows are never read as so many classes."""
    classes = tf.function(
        lambda y: sparse_labels(y, 3),
        autograph=False,
        input_signature=[tf.TensorSpec(shape, tf.float32)],
    )
    with pytest.raises(ValueError, match=r"^y: expected labels of shape"):
        classes(np.eye(3, dtype="float32"))


# What training changes


class Halved(keras.layers.Layer):
    """Does something else in training."""

    def call(self, inputs, training=None):
        return inputs / 2 if training else inputs


def frozen_batch_norm():
    layer = keras.layers.BatchNormalization()
    layer.trainable = False
    return layer


@pytest.mark.parametrize(
    ("make_layer", "same"),
    [
        (lambda: keras.layers.ReLU(), True),
        (lambda: keras.layers.Conv2D(2, 3, activity_regularizer="l2"), True),
        (lambda: keras.Sequential([keras.layers.Conv2D(2, 3)]), True),
        (lambda: keras.layers.Dropout(0.0), True),
        (frozen_batch_norm, True),
        (lambda: keras.layers.Dropout(0.1), False),
        (lambda: keras.Sequential([keras.layers.Dropout(0.1)]), False),
        (lambda: keras.layers.BatchNormalization(), False),
        (lambda: keras.layers.GaussianNoise(0.1), False),
        (Halved, False),
    ],
)
def test_same_in_training(make_layer, same):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            make_layer(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    assert logits.same_in_training(model) is same
