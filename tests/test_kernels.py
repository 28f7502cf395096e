import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shell

from dd_keras.attacks import kernels
from dd_keras.utils import keras_internals


def random(*shape, dtype="float64", seed=0):
    values = np.random.default_rng((seed, *shape)).normal(size=shape)
    return tf.constant(values, dtype)


def derivatives(function, x, kernel):
    """Value, gradients, and the gradients of a functional of those."""
    with tf.GradientTape() as third:
        third.watch([x, kernel])
        with tf.GradientTape() as outer:
            outer.watch([x, kernel])
            with tf.GradientTape() as inner:
                inner.watch([x, kernel])
                y = function(x, kernel)
                value = tf.reduce_sum(tf.sin(y))
            first = inner.gradient(value, [x, kernel])
            functional = sum(tf.reduce_sum(tf.sin(g)) for g in first)
        second = outer.gradient(functional, [x, kernel])
        functional = sum(tf.reduce_sum(tf.sin(g)) for g in second)
    return y, *first, *second, *third.gradient(functional, [x, kernel])


def assert_same_derivatives(function, stock, x, kernel):
    got = derivatives(function, x, kernel)
    expected = derivatives(stock, x, kernel)
    assert len(got) == 7
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "channels"),
    [
        (6, 8, (5, 5), 1), (6, 8, (5, 5), 3), (7, 9, (3, 3), 2),
        (7, 9, (3, 3), 4), (5, 6, (3, 4), 1), (5, 6, (3, 4), 3),
        (8, 7, (4, 5), 2), (8, 7, (4, 5), 4),
    ],
)  # fmt: skip
def test_convolution_equals_stock(height, width, kernel, channels, padding):
    assert_same_derivatives(
        lambda x, k: kernels.convolution(x, k, padding),
        lambda x, k: tf.nn.conv2d(x, k, 1, padding),
        random(2, height, width, channels),
        random(*kernel, channels, 3),
    )


def test_kernel_larger_than_the_image():
    assert_same_derivatives(
        lambda x, k: kernels.convolution(x, k, "SAME"),
        lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"),
        random(2, 3, 2, 1),
        random(5, 7, 1, 3),
    )


@pytest.mark.parametrize("strides", [(2, 2), (1, 2)])
def test_max_pooling_of_unknown_width(strides):
    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 1), tf.float64)]
    )
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = kernels.max_pooling(x, (2, 2), strides, "VALID")
            value = tf.reduce_sum(y**2)
        return tape.gradient(value, x)

    x = random(2, 5, 7, 1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.nn.max_pool2d(x, (2, 2), strides, "VALID")
        value = tf.reduce_sum(y**2)
    np.testing.assert_allclose(gradient(x), tape.gradient(value, x))


def test_convolution_of_unknown_width_is_the_stock_one():
    kernel = random(3, 3, 1, 2)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 1), "float64")]
    )
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = kernels.convolution(x, kernel, "SAME")
        return y, tape.gradient(y, x)

    x = random(2, 5, 7, 1)
    y, found = gradient(x)
    np.testing.assert_allclose(y, tf.nn.conv2d(x, kernel, 1, "SAME"))
    assert found.shape == x.shape


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("groups", "filters"), [(2, 6), (4, 4), (4, 8)])
def test_grouped_convolution_equals_stock(groups, filters, stride, padding):
    def stock(x, kernel):  # compiled, as Keras has it: the only one everywhere
        convolution = tf.function(tf.nn.conv2d, jit_compile=True)
        return convolution(x, kernel, stride, padding)

    assert_same_derivatives(
        lambda x, k: kernels.grouped_convolution(x, k, stride, padding),
        stock,
        random(2, 6, 7, 4),
        random(3, 2, 4 // groups, filters),
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("size", "strides", "ties"),
    [
        ((2, 2), (2, 2), False), ((2, 2), (2, 2), True),
        ((2, 2), (3, 2), True), ((2, 2), (2, 1), False),
        ((3, 2), (2, 2), False), ((3, 2), (3, 2), True),
        ((3, 2), (2, 1), True), ((3, 3), (2, 2), True),
        ((3, 3), (3, 2), False), ((3, 3), (2, 1), False),
    ],
)  # fmt: skip
def test_max_pooling_equals_stock(size, strides, padding, ties):
    x = random(2, 7, 8, 3)
    if ties:
        x = tf.round(x)

    def stock(x, scale):
        return scale * tf.nn.max_pool2d(x * scale, size, strides, padding)

    def fast(x, scale):
        return scale * kernels.max_pooling(x * scale, size, strides, padding)

    assert_same_derivatives(fast, stock, x, random(3) ** 2)


def ops_of(network, x):
    """Types of all operations of f's gradient by x, and of its gradient."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                with kernels.better_gradients(network):
                    y = tf.reduce_sum(network(x) ** 2)
            first = tape.gradient(y, x)
        return outer.gradient(first, x)

    graph = gradient.get_concrete_function(x).graph
    return [op.type for op in graph.get_operations()]


def network_of(*layers, shape=(8, 8, 1)):
    return keras.Sequential([keras.Input(shape), *layers])


SLOW = {"Conv2DBackpropInput", "MaxPoolGradGrad"}


def test_layers_are_replaced_also_in_nested_models():
    layers = keras.layers
    inner = network_of(layers.Conv2D(4, 3), layers.MaxPooling2D(2))
    network = network_of(inner, layers.Flatten(), layers.Dense(2))
    x = tf.zeros((2, 8, 8, 1))
    assert SLOW.isdisjoint(ops_of(network, x))


@pytest.mark.parametrize(
    ("layer", "slow"),
    [
        (keras.layers.Conv2D(4, 3, strides=2), "Conv2DBackpropInput"),
        (keras.layers.Conv2D(4, 3, dilation_rate=2), "Conv2DBackpropInput"),
        (keras.layers.Conv2D(4, 1), "Conv2DBackpropInput"),
        (keras.layers.MaxPooling2D(3, strides=2), "MaxPoolGradGrad"),
        (keras.layers.MaxPooling2D(2, padding="same"), "MaxPoolGradGrad"),
        (type("Own", (keras.layers.Conv2D,), {})(4, 3), "Conv2DBackpropInput"),
    ],
)
def test_other_layers_are_left_alone(layer, slow):
    network = network_of(layer, keras.layers.Flatten(), keras.layers.Dense(2))
    assert slow in ops_of(network, tf.zeros((2, 8, 8, 1)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("make", "strides", "shape"),
    [
        (keras.layers.Conv1D, 2, (7, 3)),
        (keras.layers.Conv2D, 2, (6, 7, 3)),
        (keras.layers.Conv2D, (1, 3), (5, 7, 3)),
        (keras.layers.Conv3D, (2, 1, 2), (4, 3, 5, 2)),
    ],
)
def test_strided_pointwise_equals_stock(make, strides, shape, padding):
    layer = make(4, 1, strides=strides, padding=padding)
    network = network_of(layer, shape=shape)
    x = tf.constant(random(2, *shape))
    stock = layer(x)
    with kernels.better_gradients(network):
        assert "convolution_op" in vars(layer)
        np.testing.assert_allclose(layer(x), stock, rtol=1e-12, atol=1e-12)
    assert "convolution_op" not in vars(layer)


RESIDUAL = """
import keras, numpy as np, dd_keras
from keras import layers
keras.utils.set_random_seed(0)
inputs = keras.Input((12, 12, 3))
x = layers.Conv2D(8, 3, padding="same")(inputs)
for width, stride in ((8, 1), (16, 2)):
    shortcut = x
    x = layers.Conv2D(width, 3, stride, "same")(layers.ReLU()(x))
    x = layers.Conv2D(width, 3, padding="same")(layers.ReLU()(x))
    if stride > 1:
        shortcut = layers.Conv2D(width, 1, stride)(shortcut)
    x = layers.add([x, shortcut])
x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
network = keras.Model(inputs, layers.Dense(3)(x))
model = dd_keras.DeepDefenseModel(network, lam=1.0, c=3.0, d=1.0)
model.compile(keras.optimizers.SGD(1e-5), "sparse_categorical_crossentropy")
x = np.random.default_rng(0).uniform(-1, 1, (8, 12, 12, 3))
for _ in range(12):
    model.fit(x, np.arange(8) % 3, batch_size=8, verbose=0)
print("trained")
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_residual_network_is_trained_without_a_crash():
    """In a process of its own, which the stock kernel would end."""
    done = shell("-c", RESIDUAL)
    assert done.stdout.strip().endswith("trained"), done.stderr[-2000:]


@pytest.mark.parametrize("groups", [2, 4])
def test_convolutions_in_groups_are_not_compiled(groups):
    def compiled(layer):
        network = network_of(
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
            shape=(8, 8, 4),
        )
        return "StatefulPartitionedCall" in ops_of(
            network, tf.zeros((2, 8, 8, 4))
        )

    own = type("Own", (keras.layers.Conv2D,), {})
    assert compiled(own(8, 3, groups=groups))
    assert compiled(keras.layers.Conv2D(8, 3, groups=groups, dilation_rate=2))
    assert not compiled(keras.layers.Conv2D(8, 3, groups=groups))


def test_wide_inputs_are_left_alone():
    network = network_of(keras.layers.Conv2D(4, 3), shape=(8, 8, 5))
    assert "Conv2DBackpropInput" in ops_of(network, tf.zeros((2, 8, 8, 5)))


def test_gpus_keep_their_kernels(monkeypatch):
    monkeypatch.setattr(
        tf.config, "get_visible_devices", lambda kind: ["a device"]
    )
    layers = keras.layers
    network = network_of(layers.Conv2D(4, 3), layers.MaxPooling2D(2))
    assert set(ops_of(network, tf.zeros((2, 8, 8, 1)))) >= SLOW


def test_xla_keeps_its_convolutions(monkeypatch):
    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    layers = keras.layers
    network = network_of(
        layers.Conv2D(4, 3), layers.MaxPooling2D(3, 2, padding="same")
    )
    ops = ops_of(network, tf.zeros((2, 8, 8, 1)))
    assert SLOW & set(ops) == {"Conv2DBackpropInput"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("size", "strides", "padding"), [(2, 2, "valid"), (3, 2, "same")]
)
def test_second_derivative_under_xla(size, strides, padding, dtype):
    network = network_of(
        keras.layers.MaxPooling2D(size, strides, padding, dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(3, activation="tanh", dtype=dtype),
    )
    x = random(2, 8, 8, 1, dtype=dtype)

    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with (
                tf.GradientTape() as tape,
                kernels.better_gradients(network),
            ):
                tape.watch(x)
                y = network(x)
            functional = tf.reduce_sum(tf.sin(tape.gradient(y, x)))
        return outer.gradient(functional, network.trainable_weights)

    compiled = tf.function(second, jit_compile=True)(x)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for got, expected in zip(compiled, second(x), strict=True):
        error = np.abs(got - expected).max()
        assert error < tolerance * np.abs(expected).max()


def test_network_is_as_before_also_after_an_error():
    layers = [keras.layers.Conv2D(4, 3), keras.layers.MaxPooling2D(2)]
    network = network_of(*layers)
    before = [dict(vars(layer)) for layer in layers]

    def fail():
        with kernels.better_gradients(network):
            assert all(
                dict(vars(layer)) != old
                for layer, old in zip(layers, before, strict=True)
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [dict(vars(layer)) for layer in layers] == before


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_network_computes_the_same(padding, policy):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = network_of(
        layers.Conv2D(4, 5, padding=padding, activation="relu", dtype=policy),
        layers.MaxPooling2D(2, dtype=policy),
        layers.Flatten(),
        layers.Dense(3, dtype="float32"),
    )
    x = random(4, 8, 8, 1, dtype="float32")

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x)
        return y, tape.gradient(y, x)

    with kernels.better_gradients(network):
        y, found = gradient()
    stock_y, stock = gradient()
    tolerance = 1e-5 if policy == "float32" else 2e-2
    np.testing.assert_allclose(y, stock_y, atol=tolerance)
    error = np.abs(found - stock).max()
    assert error < tolerance * np.abs(stock).max()
