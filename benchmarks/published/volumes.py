"""Classifiers of volumes, videos, point clouds and bags."""

import keras
from keras import layers, ops

from published.attention import PositionEmbedding, block
from published.registry import classifier, layer


@classifier(
    "Keras example: 3D image classification from CT scans",
    "functional, one sigmoid",
    (8, 8, 8, 1),
)
def ct_scan():
    inputs = keras.Input((8, 8, 8, 1))
    x = inputs
    for width in (8, 8):
        x = layers.Conv3D(width, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(layers.MaxPooling3D(2)(x))
    x = layers.GlobalAveragePooling3D()(x)
    x = layers.Dropout(0.3)(layers.Dense(16, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@classifier(
    "Keras example: Video Vision Transformer",
    "functional, tubelets, softmax",
    (4, 8, 8, 1),
)
def vivit():
    inputs = keras.Input((4, 8, 8, 1))
    x = layers.Conv3D(16, (2, 4, 4), strides=(2, 4, 4))(inputs)
    x = block(PositionEmbedding()(layers.Reshape((-1, 16))(x)))
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@classifier(
    "Shi et al., NeurIPS 2015: Convolutional LSTM, as a classifier of videos",
    "sequential, softmax",
    (3, 8, 8, 1),
)
def conv_lstm():
    return keras.Sequential(
        [
            keras.Input((3, 8, 8, 1)),
            layers.ConvLSTM2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )


@classifier(
    "Keras example: Video classification with a CNN-RNN architecture",
    "functional, TimeDistributed, softmax",
    (3, 8, 8, 1),
)
def cnn_rnn():
    frames = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalMaxPooling2D(),
        ]
    )
    inputs = keras.Input((3, 8, 8, 1))
    x = layers.TimeDistributed(frames)(inputs)
    x = layers.GRU(8)(layers.GRU(16, return_sequences=True)(x))
    x = layers.Dropout(0.4)(x)
    x = layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class Orthogonal(keras.regularizers.Regularizer):
    """Keeps square matrices near orthogonal ones."""

    def __init__(self, side, weight=1e-3):
        self.side, self.weight = side, weight

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.side, self.side))
        product = ops.matmul(x, ops.swapaxes(x, 1, 2))
        return self.weight * ops.sum(ops.square(product - ops.eye(self.side)))

    def get_config(self):
        return {"side": self.side, "weight": self.weight}


def _points(x, width):
    x = layers.BatchNormalization(momentum=0.0)(layers.Conv1D(width, 1)(x))
    return layers.Activation("relu")(x)


def _transformed(x, side):
    """The points, multiplied by a matrix that a small network finds."""
    y = layers.GlobalMaxPooling1D()(_points(_points(x, 8), 16))
    y = layers.Dense(
        side * side,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(
            [float(i == j) for i in range(side) for j in range(side)]
        ),
        activity_regularizer=Orthogonal(side),
    )(layers.Dense(8, activation="relu")(y))
    return layers.Dot(axes=(2, 1))([x, layers.Reshape((side, side))(y)])


@classifier(
    "Keras example: Point cloud classification with PointNet",
    "functional, activity regulariser, softmax",
    (16, 3),
    low=-1.0,
)
def pointnet():
    inputs = keras.Input((16, 3))
    x = _points(_transformed(inputs, 3), 8)
    x = _points(_transformed(x, 8), 16)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.BatchNormalization()(layers.Dense(16, activation="relu")(x))
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class BagAttention(layers.Layer):
    """Weights of the instances of a bag, gated; they sum to one."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.value = layers.Dense(width, activation="tanh", use_bias=False)
        self.gate = layers.Dense(width, activation="sigmoid", use_bias=False)
        self.score = layers.Dense(1, use_bias=False)

    def build(self, shape):
        self.value.build(shape)
        self.gate.build(shape)
        self.score.build((*shape[:-1], self.width))

    def call(self, x):
        scores = self.score(self.value(x) * self.gate(x))
        return ops.softmax(scores, axis=1)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@classifier(
    "Keras example: Attention-based deep multiple instance learning",
    "functional, own layers, softmax",
    (3, 8, 8),
)
def attention_mil():
    inputs = keras.Input((3, 8, 8))
    x = layers.Reshape((3, 64))(inputs)
    x = layers.Dense(16, activation="relu")(x)
    x = layers.Dense(8, activation="relu")(x)
    x = layers.Flatten()(x * BagAttention(8)(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
