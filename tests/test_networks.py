import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import networks

BUILDERS = {
    "mlp": networks.mlp,
    "lenet": networks.lenet,
    "digits_cnn": networks.digits_cnn,
}
INPUT_SHAPES = {
    "mlp": (28, 28, 1),
    "lenet": (28, 28, 1),
    "digits_cnn": (8, 8, 1),
}
# Names of the layers with weights or a pooling window, in order.
LAYERS = {
    "mlp": ["fc1", "fc2", "fc3"],
    "lenet": ["conv1", "pool1", "conv2", "pool2", "fc1", "fc2"],
    "digits_cnn": ["conv1", "conv2", "pool2", "dropout", "fc1", "fc2"],
}


def conv_size(filters, kernel, channels):
    return filters * (kernel * kernel * channels + 1)


def dense_size(units, inputs):
    return units * (inputs + 1)


def parameters(name, height, width, channels, classes):
    """Weights of each layer by hand, from the paper's architectures."""
    if name == "mlp":
        return [
            dense_size(500, height * width * channels),
            dense_size(150, 500),
            dense_size(classes, 150),
        ]
    if name == "lenet":  # each valid 5x5 convolution takes 4, each pool halves
        rows, columns = (((n - 4) // 2 - 4) // 2 for n in (height, width))
        return [
            conv_size(20, 5, channels),
            conv_size(50, 5, 20),
            dense_size(500, 50 * rows * columns),
            dense_size(classes, 500),
        ]
    return [  # digits_cnn: one pool, same padding
        conv_size(16, 3, channels),
        conv_size(32, 3, 16),
        dense_size(64, 32 * (height // 2) * (width // 2)),
        dense_size(classes, 64),
    ]


def forward(name, weights, x):
    """The networks once more, in bare TensorFlow."""
    w = iter(weights)

    def conv(x, padding):
        return tf.nn.conv2d(x, next(w), 1, padding) + next(w)

    def dense(x):
        return tf.reshape(x, (len(x), -1)) @ next(w) + next(w)

    def pool(x):
        return tf.nn.max_pool2d(x, 2, 2, "VALID")

    relu = tf.nn.relu
    if name == "mlp":
        return dense(relu(dense(relu(dense(x)))))
    if name == "lenet":
        x = pool(conv(x, "VALID"))
        x = pool(conv(x, "VALID"))
        return dense(relu(dense(x)))
    x = relu(conv(x, "SAME"))
    x = pool(relu(conv(x, "SAME")))
    return dense(relu(dense(x)))


def randomize(model, seed=0):
    """Weights of unit gain, biases included: each layer counts."""
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(size=w.shape, scale=np.prod(w.shape[:-1]) ** -0.5)
        for w in model.get_weights()
    ]
    model.set_weights(weights)


@pytest.mark.parametrize("name", BUILDERS)
def test_layers_have_the_papers_names(name):
    model = BUILDERS[name]()
    assert model.name == name
    names = [
        layer.name
        for layer in model.layers
        if not isinstance(
            layer, (keras.layers.InputLayer, keras.layers.Flatten)
        )
    ]
    assert names == LAYERS[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_default_shapes_are_the_data_sets(name):
    model = BUILDERS[name]()
    assert model.input_shape == (None, *INPUT_SHAPES[name])
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 469_160), ("lenet", 431_080)]
)
def test_parameter_counts_are_the_papers(name, count):
    assert BUILDERS[name]().count_params() == count
    assert sum(parameters(name, 28, 28, 1, 10)) == count


# The second shape reaches every pool with odd sizes, which padding would show.
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("input_shape", "classes"), [((28, 28, 1), 10), ((23, 31, 3), 7)]
)
def test_each_layer_has_its_exact_number_of_weights(name, input_shape, classes):
    model = BUILDERS[name](input_shape, classes, name="other")
    assert model.name == "other"
    assert model.output_shape == (None, classes)
    counts = [layer.count_params() for layer in model.layers if layer.weights]
    assert counts == parameters(name, *input_shape, classes)
    assert len(model.trainable_weights) == 2 * len(counts)


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_are_those_of_the_architecture_in_bare_tensorflow(name):
    model = BUILDERS[name]()
    randomize(model)
    x = tf.constant(
        np.random.default_rng(1).normal(size=(3, *INPUT_SHAPES[name])),
        "float32",
    )
    expected = forward(name, model.get_weights(), x)
    assert np.std(expected) > 0.1  # not all zeros, which would compare equal
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_are_logits(name):
    model = BUILDERS[name]()
    randomize(model)
    x = np.random.default_rng(1).normal(size=(8, *INPUT_SHAPES[name]))
    logits = model(x.astype("float32")).numpy()
    assert logits.min() < 0
    assert not np.allclose(logits.sum(axis=-1), 1)
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("mlp", ["relu", "relu", "linear"]),
        ("lenet", ["linear", "linear", "relu", "linear"]),
        ("digits_cnn", ["relu", "relu", "relu", "linear"]),
    ],
)
def test_activations_are_the_papers(name, activations):
    layers = [layer for layer in BUILDERS[name]().layers if layer.weights]
    assert [layer.activation.__name__ for layer in layers] == activations


@pytest.mark.parametrize("name", BUILDERS)
def test_kernels_start_small_and_biases_at_zero(name):
    keras.utils.set_random_seed(0)
    for layer in BUILDERS[name]().layers:
        if not layer.weights:
            continue
        kernel, bias = layer.get_weights()
        np.testing.assert_array_equal(bias, 0.0)
        error = 4 / np.sqrt(2 * kernel.size)  # four standard errors
        assert kernel.std() == pytest.approx(0.01, rel=error)
        assert abs(kernel.mean()) < 0.01 * 4 / np.sqrt(kernel.size)


def test_digits_cnn_drops_a_tenth_in_training_only():
    model = networks.digits_cnn()
    randomize(model)
    inner = keras.Model(model.inputs[0], model.get_layer("dropout").output)
    x = np.ones((64, 8, 8, 1), "float32")
    kept = inner(x, training=False).numpy()
    dropped = inner(x, training=True).numpy()
    alive = kept > 0
    share = np.mean(dropped[alive] == 0)
    assert share == pytest.approx(0.1, abs=0.02)
    survivors = alive & (dropped > 0)
    np.testing.assert_allclose(
        dropped[survivors], kept[survivors] / 0.9, rtol=1e-5
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_saved_network_loads(name, tmp_path):
    model = BUILDERS[name]()
    path = tmp_path / "network.keras"
    model.save(path)
    x = np.ones((2, *INPUT_SHAPES[name]), "float32")
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(x), model(x))
