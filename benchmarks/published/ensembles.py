"""Ends that are no activation of Keras: ensembles, temperatures, SNGP."""

import math

import keras
from keras import layers, ops

from published.registry import classifier, layer


def _small_cnn(activation="softmax"):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation=activation),
        ]
    )


@classifier(
    "Lakshminarayanan et al., NeurIPS 2017: Deep ensembles",
    "nested, a mean of three softmaxes",
    (8, 8, 1),
)
def deep_ensemble():
    inputs = keras.Input((8, 8, 1))
    members = [_small_cnn()(inputs) for _ in range(3)]
    return keras.Model(inputs, layers.Average()(members))


@layer
class TemperedSoftmax(layers.Layer):
    """A softmax of logits over a temperature."""

    def __init__(self, temperature, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, x):
        x = x / self.temperature
        e = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
        return e / ops.sum(e, axis=-1, keepdims=True)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


@classifier(
    "Guo et al., ICML 2017: Temperature scaling",
    "nested, own softmax layer at the end",
    (8, 8, 1),
    activation="softmax",
)
def tempered():
    inputs = keras.Input((8, 8, 1))
    x = _small_cnn(activation=None)(inputs)
    return keras.Model(inputs, TemperedSoftmax(1.5)(x))


@layer
class RandomFeatureGaussianProcess(layers.Layer):
    """A Gaussian process by fixed random features, with its covariance.

    The precision matrix is a moving mean, updated in training.
    """

    def __init__(self, features, classes, momentum=0.99, **kwargs):
        super().__init__(**kwargs)
        self.features, self.classes = features, classes
        self.momentum = momentum
        self.out = layers.Dense(classes, use_bias=False)

    def build(self, shape):
        self.kernel = self.add_weight(
            name="frequencies",
            shape=(shape[-1], self.features),
            initializer="random_normal",
            trainable=False,
        )
        self.phase = self.add_weight(
            name="phase",
            shape=(self.features,),
            initializer=keras.initializers.RandomUniform(0, 2 * math.pi),
            trainable=False,
        )
        self.precision = self.add_weight(
            name="precision",
            shape=(self.features, self.features),
            initializer="identity",
            trainable=False,
        )
        self.out.build((None, self.features))

    def call(self, x, training=False):
        phi = ops.cos(ops.matmul(x, self.kernel) + self.phase)
        phi = phi * math.sqrt(2 / self.features)
        logits = self.out(phi)
        if training:
            update = ops.matmul(ops.transpose(phi), phi)
            self.precision.assign(
                self.momentum * self.precision + (1 - self.momentum) * update
            )
            return logits
        covariance = ops.inv(self.precision)
        variance = ops.sum(ops.matmul(phi, covariance) * phi, axis=-1)
        return logits / ops.sqrt(1 + math.pi / 8 * variance)[:, None]

    def get_config(self):
        return {
            **super().get_config(),
            "features": self.features,
            "classes": self.classes,
            "momentum": self.momentum,
        }


@classifier(
    "TensorFlow tutorial: Uncertainty-aware deep learning with SNGP",
    "functional, own layer, spectral normalisation",
    (6,),
    low=-1.0,
    activation="linear",
)
def sngp():
    inputs = keras.Input((6,))
    x = layers.Dense(16)(inputs)
    for _ in range(2):
        y = layers.SpectralNormalization(layers.Dense(16, activation="relu"))(x)
        x = layers.add([x, layers.Dropout(0.1)(y)])
    return keras.Model(inputs, RandomFeatureGaussianProcess(32, 2)(x))


@classifier(
    "Keras example: Knowledge distillation (the student)",
    "sequential, leaky ReLU",
    (12, 12, 1),
)
def student():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(8, 3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
