"""The paper's networks: functional models that give logits.

Layer names are the paper's (Table 4 of its supplement). Kernels start from
a normal distribution of standard deviation 0.01, small because the inputs are
pixels of 0 to 255 less their mean: with Keras' default, which expects inputs
of unit variance, LeNet does not start to learn.
"""

import keras
from keras import layers

_INITIAL_STDDEV = 0.01


def mlp(input_shape=(28, 28, 1), num_classes=10, name="mlp"):
    """The paper's MLP for MNIST, 784-500-150-10, with ReLU.

    Args:
        input_shape: height, width, channels.
        num_classes: number of logits.
        name: name of the model.

    Returns:
        A `keras.Model` from (B, *input_shape) to (B, num_classes) logits.
    """
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    x = _dense(500, "fc1", activation="relu")(x)
    x = _dense(150, "fc2", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc3")(x), name=name)


def lenet(input_shape=(28, 28, 1), num_classes=10, name="lenet"):
    """The paper's LeNet for MNIST: no activation after its convolutions.

    Args, Returns: see `mlp`.
    """
    inputs = keras.Input(input_shape)
    x = _conv(20, 5, "conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = _conv(50, 5, "conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten()(x)
    x = _dense(500, "fc1", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc2")(x), name=name)


def digits_cnn(input_shape=(8, 8, 1), num_classes=10, name="digits_cnn"):
    """A small CNN for 8x8 digits, with dropout. Not in the paper.

    Args, Returns: see `mlp`.
    """
    inputs = keras.Input(input_shape)
    x = _conv(16, 3, "conv1", padding="same", activation="relu")(inputs)
    x = _conv(32, 3, "conv2", padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    x = _dense(64, "fc1", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc2")(x), name=name)


def _conv(filters, size, name, **kwargs):
    return layers.Conv2D(
        filters, size, kernel_initializer=_initializer(), name=name, **kwargs
    )


def _dense(units, name, **kwargs):
    return layers.Dense(
        units, kernel_initializer=_initializer(), name=name, **kwargs
    )


def _initializer():
    return keras.initializers.RandomNormal(stddev=_INITIAL_STDDEV)
