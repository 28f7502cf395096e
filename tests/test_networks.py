import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import DeepDefenseModel, attacks, networks

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


# The deep networks. Small versions have the same layers.

SMALL = {
    "nin": lambda: networks.nin((8, 8, 3), 3),
    "alexnet": lambda: networks.alexnet((67, 67, 3), 3),
    "resnet18": lambda: networks.resnet18((32, 32, 3), 3),
    "resnet18_cifar": lambda: networks.resnet18((8, 8, 3), 3, stem="cifar"),
}
DEEP = {
    "nin": networks.nin,
    "alexnet": networks.alexnet,
    "resnet18": networks.resnet18,
}


@pytest.fixture(scope="module")
def deep():
    return {name: build() for name, build in DEEP.items()}


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return {name: build() for name, build in SMALL.items()}


def images_for(model, count=2, seed=0):
    """Pixels less their mean."""
    shape = (count, *model.input_shape[1:])
    images = np.random.default_rng(seed).normal(size=shape, scale=50)
    return images.astype("float32")


def trainable_size(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_the_papers_networks_have_builders():
    assert networks.NAMES == (
        "mlp", "lenet", "convnet", "nin", "alexnet", "resnet18"
    )  # fmt: skip
    assert all(callable(getattr(networks, name)) for name in networks.NAMES)


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "count"),
    [
        ("nin", (32, 32, 3), 10, 966_986),
        ("alexnet", (227, 227, 3), 1000, 60_965_224),  # bvlc_alexnet
        ("resnet18", (224, 224, 3), 1000, 11_689_512),  # torchvision's
    ],
)
def test_deep_networks_have_their_known_size(
    deep, name, input_shape, classes, count
):
    model = deep[name]
    assert model.name == name
    assert model.input_shape == (None, *input_shape)
    assert model.output_shape == (None, classes)
    assert trainable_size(model) == count


def test_nin_starts_with_logits_of_one_from_pixels():
    x = np.random.default_rng(0).normal(0, 64, (20, 32, 32, 3))
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        assert 0.3 < np.std(networks.nin()(x)) < 3


def test_size_of_nin_by_hand():
    sizes = [
        conv_size(192, 5, 3), conv_size(160, 1, 192), conv_size(96, 1, 160),
        conv_size(192, 5, 96), conv_size(192, 1, 192), conv_size(192, 1, 192),
        conv_size(192, 3, 192), conv_size(192, 1, 192), conv_size(10, 1, 192),
    ]  # fmt: skip
    assert sum(sizes) == 966_986


# (height and width, channels) of what each layer gives.
OUTPUTS = {
    "nin": {
        "conv1": (32, 192), "cccp1": (32, 160), "cccp2": (32, 96),
        "pool1": (16, 96), "drop3": (16, 96), "conv2": (16, 192),
        "cccp3": (16, 192), "cccp4": (16, 192), "pool2": (8, 192),
        "drop6": (8, 192), "conv3": (8, 192), "cccp5": (8, 192),
        "cccp6": (8, 10),
    },
    "alexnet": {
        "conv1": (55, 96), "norm1": (55, 96), "pool1": (27, 96),
        "conv2": (27, 256), "norm2": (27, 256), "pool2": (13, 256),
        "conv3": (13, 384), "conv4": (13, 384), "conv5": (13, 256),
        "pool5": (6, 256),
    },
    "resnet18": {
        "conv1": (112, 64), "bn1": (112, 64), "relu": (112, 64),
        "maxpool": (56, 64),
        "layer1_0_conv1": (56, 64), "layer1_1_relu2": (56, 64),
        "layer2_0_conv1": (28, 128), "layer2_0_downsample_0": (28, 128),
        "layer2_0_downsample_1": (28, 128), "layer2_1_relu2": (28, 128),
        "layer3_0_conv1": (14, 256), "layer3_0_downsample_0": (14, 256),
        "layer3_1_relu2": (14, 256), "layer4_0_bn1": (7, 512),
        "layer4_0_downsample_0": (7, 512), "layer4_1_relu2": (7, 512),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_layers_of_deep_networks_have_their_known_shapes(deep, name):
    found = {
        layer.name: layer.output.shape
        for layer in deep[name].layers
        if layer.name in OUTPUTS[name]
    }
    assert list(found) == list(OUTPUTS[name])  # in this order
    assert found == {
        layer: (None, size, size, channels)
        for layer, (size, channels) in OUTPUTS[name].items()
    }


def test_dense_layers_of_alexnet(deep):
    layers = deep["alexnet"].layers[-5:]
    assert [layer.name for layer in layers] == [
        "fc6", "drop6", "fc7", "drop7", "fc8"
    ]  # fmt: skip
    assert [layer.output.shape[-1] for layer in layers] == [
        4096, 4096, 4096, 4096, 1000
    ]  # fmt: skip
    assert [layers[i].rate for i in (1, 3)] == [0.5, 0.5]
    assert [layer.groups for layer in deep["alexnet"].layers if "conv" in
            layer.name] == [1, 2, 1, 2, 2]  # fmt: skip


def test_resnet_for_small_images_keeps_their_size(small):
    model = small["resnet18_cifar"]
    assert model.get_layer("layer1_0_conv1").output.shape == (None, 8, 8, 64)
    assert model.get_layer("layer4_1_relu2").output.shape == (None, 1, 1, 512)
    assert model.get_layer("conv1").kernel.shape == (3, 3, 3, 64)
    names = [layer.name for layer in model.layers]
    assert not any("maxpool" in name for name in names)


def test_unknown_stem():
    with pytest.raises(ValueError, match=r"stem: expected .* received 'mnist'"):
        networks.resnet18(stem="mnist")


def test_borders_of_resnet_are_the_model_zoos():
    """A 7x7 window of stride 2 is centred on pixel 0; TensorFlow's is not."""
    model = networks.resnet18((32, 32, 3), 3)
    conv1 = keras.Model(model.inputs[0], model.get_layer("conv1").output)
    kernel = np.zeros((7, 7, 3, 64), "float32")
    kernel[3, 3] = 1.0
    model.get_layer("conv1").set_weights([kernel])
    x = images_for(model)
    np.testing.assert_allclose(
        conv1(x)[..., 0], x.sum(axis=-1)[:, ::2, ::2], rtol=1e-5, atol=1e-4
    )


def test_resnet_normalises_by_the_batch_in_training_only():
    model = networks.resnet18((32, 32, 3), 3)
    x = images_for(model, 8)
    statistics = [w.numpy() for w in model.non_trainable_weights]
    logits = model(x, training=False).numpy()
    np.testing.assert_array_equal(model(x, training=False), logits)
    for weight, before in zip(
        model.non_trainable_weights, statistics, strict=True
    ):
        np.testing.assert_array_equal(weight, before)
    assert not np.allclose(model(x, training=True), logits, rtol=0.1)
    bn1 = model.get_layer("bn1")
    conv1 = keras.Model(model.inputs[0], model.get_layer("conv1").output)(x)
    mean = np.mean(conv1, axis=(0, 1, 2))  # torch's momentum 0.1 is 0.9 here
    np.testing.assert_allclose(bn1.moving_mean, 0.1 * mean, rtol=1e-3, atol=0.1)
    assert bn1.epsilon == 1e-5


@pytest.mark.parametrize("name", ["nin", "alexnet"])
def test_dropout_in_training_only(small, name):
    model, x = small[name], images_for(small[name])
    np.testing.assert_array_equal(model(x), model(x))
    one, other = (model(x, training=True).numpy() for _ in range(2))
    assert not np.allclose(one, other)


@pytest.mark.parametrize("name", DEEP)
def test_signals_keep_their_size_through_all_layers(small, name):
    model, x = small[name], images_for(small[name])
    before_logits = keras.Model(model.inputs[0], model.layers[-2].output)
    size = np.std(before_logits(x, training=name == "resnet18"))
    assert 0.1 < size < 500  # pixels' is 50


@pytest.mark.parametrize("name", SMALL)
def test_saved_deep_network_loads(small, name, tmp_path):
    model = small[name]
    path = tmp_path / "network.keras"
    model.save(path)
    x = images_for(model)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["nin", "alexnet", "resnet18_cifar"])
def test_deep_networks_train_with_deep_defense(small, name):
    model = keras.models.clone_model(small[name])
    model.set_weights(small[name].get_weights())
    x, attack = images_for(model), attacks.DeepFool(max_iter=2, candidates=2)
    found = attack.run(model, x)
    assert np.all(found.iterations >= 1)
    assert np.all(np.isfinite(found.perturbation))
    assert np.all(np.any(found.perturbation != 0, axis=(1, 2, 3)))
    before = model.get_weights()
    defended = DeepDefenseModel(model, attack=attack)
    defended.compile(
        keras.optimizers.SGD(1e-3, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
    )
    defended.fit(x, np.arange(2), verbose=0)
    after = model.get_weights()
    assert all(np.isfinite(w).all() for w in after)
    names = [w.path for w in model.weights]
    changed = {
        name
        for name, one, other in zip(names, before, after, strict=True)
        if np.any(one != other)
    }
    kernels = {name for name in names if name.endswith("kernel")}
    assert kernels <= changed


# Local response normalisation, and convolutions in groups


def normalization(dtype="float64", **kwargs):
    return networks.LocalResponseNormalization(dtype=dtype, **kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"depth_radius": 1, "bias": 2.0, "alpha": 0.5, "beta": 0.6},
        {"depth_radius": 0, "alpha": 1.0},
        {"depth_radius": 9, "alpha": 1.0},  # wider than there are channels
    ],
)
def test_response_normalization_is_tensorflows(arguments):
    layer = normalization("float32", **arguments)
    x = tf.constant(
        np.random.default_rng(0).normal(size=(2, 3, 4, 7), scale=20), "float32"
    )

    def tensorflows(x):
        size = 2 * layer.depth_radius + 1
        return tf.nn.local_response_normalization(
            x, layer.depth_radius, layer.bias, layer.alpha / size, layer.beta
        )

    results = []
    for function in (layer, tensorflows):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            value = tf.reduce_sum(tf.sin(y))
        results.append((y, tape.gradient(value, x)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_second_derivative_of_response_normalization():
    layer = normalization(alpha=2.0)
    rng = np.random.default_rng(0)
    x, v = (tf.constant(rng.normal(size=(1, 2, 2, 6))) for _ in range(2))

    def slope(x):
        """The gradient along v of a functional of the outputs."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.sin(layer(x)))
        return tf.reduce_sum(tape.gradient(value, x) * v)

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = slope(x)
    second = tape.gradient(value, x)
    step = 1e-5
    expected = (slope(x + step * v) - slope(x - step * v)) / (2 * step)
    np.testing.assert_allclose(tf.reduce_sum(second * v), expected, rtol=1e-7)


def test_response_normalization_of_zeros_has_finite_derivatives():
    layer, x = normalization(), tf.zeros((1, 1, 1, 6), "float64")
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        first = tape.gradient(y, x)
    np.testing.assert_array_equal(first, np.ones(x.shape))
    np.testing.assert_array_equal(outer.gradient(first, x), np.zeros(x.shape))


def test_response_normalization_in_half_precision_does_not_overflow():
    layer = normalization("mixed_float16")
    x = np.full((1, 1, 1, 6), 1000.0, "float16")  # its square is no float16
    y = layer(x)
    assert y.dtype == "float16"
    np.testing.assert_allclose(
        y, normalization()(x.astype("float64")), rtol=2e-3
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"depth_radius": -1}, "depth_radius: .* at least 0; received -1"),
        ({"depth_radius": 1.5}, r"depth_radius: .* received 1\.5"),
        ({"bias": 0.0}, r"bias: .* above 0; received 0\.0"),
        ({"alpha": -1.0}, r"alpha: .* at least 0; received -1\.0"),
    ],
)
def test_bad_arguments_of_response_normalization(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        networks.LocalResponseNormalization(**arguments)


def test_config_of_response_normalization():
    config = {"depth_radius": 3, "bias": 2.0, "alpha": 0.1, "beta": 0.5}
    layer = networks.LocalResponseNormalization(name="norm1", **config)
    assert config.items() <= layer.get_config().items()
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_in_groups_is_keras(padding, strides):
    arguments = {
        "filters": 6, "kernel_size": 3, "strides": strides,
        "padding": padding, "groups": 2, "activation": "relu",
    }  # fmt: skip
    ours = networks.GroupedConv2D(**arguments)
    stock = keras.layers.Conv2D(**arguments)
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 4)).astype("float32")
    shape = ours(x).shape
    stock.build(x.shape)
    stock.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(x), stock(x), rtol=1e-4, atol=1e-5)
    assert ours.compute_output_shape(x.shape) == tuple(shape)
    assert ours.count_params() == 6 * (3 * 3 * 2 + 1)
