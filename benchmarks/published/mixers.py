"""Classifiers of images by patches without attention."""

import keras
from keras import layers, ops

from published.attention import block, mlp, tokens
from published.registry import classifier, layer


def _head(inputs, x, activation=None):
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(3, activation)(x))


@classifier(
    "Keras example: Image classification with modern MLP models (MLP-Mixer)",
    "functional, own layers",
    (12, 12, 3),
)
def mlp_mixer():
    inputs = keras.Input((12, 12, 3))
    x = tokens(inputs, 4, 16)
    for _ in range(1):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Dense(x.shape[1])(layers.Dense(12, activation="gelu")(y))
        x = layers.add([x, layers.Permute((2, 1))(y)])
        y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.add([x, layers.Dense(16)(y)])
    return _head(inputs, x)


@layer
class FourierMixing(layers.Layer):
    """The real part of a Fourier transform of tokens and features."""

    def call(self, x):
        real, _ = ops.fft2((x, ops.zeros_like(x)))
        return real


@classifier(
    "Keras example: Image classification with modern MLP models (FNet)",
    "functional, own layers, Fourier transform",
    (12, 12, 3),
)
def fnet():
    inputs = keras.Input((12, 12, 3))
    x = tokens(inputs, 4, 16)
    for _ in range(1):
        x = layers.LayerNormalization()(layers.add([x, FourierMixing()(x)]))
        y = layers.Dense(16)(layers.Dense(32, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.add([x, y]))
    return _head(inputs, x)


@layer
class SpatialGate(layers.Layer):
    """Half of the features gates the other, mixed over the tokens."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.norm.build((*shape[:-1], shape[-1] // 2))
        self.mix = layers.Dense(shape[1], bias_initializer="ones", name="mix")
        self.mix.build((None, shape[-1] // 2, shape[1]))

    def call(self, x):
        u, v = ops.split(x, 2, axis=-1)
        v = self.mix(ops.swapaxes(self.norm(v), 1, 2))
        return u * ops.swapaxes(v, 1, 2)


@classifier(
    "Keras example: Image classification with modern MLP models (gMLP)",
    "functional, own layers, softmax",
    (12, 12, 3),
)
def gmlp():
    inputs = keras.Input((12, 12, 3))
    x = tokens(inputs, 4, 16)
    for _ in range(1):
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.add([x, layers.Dense(16)(SpatialGate()(y))])
    return _head(inputs, x, "softmax")


@classifier(
    "Keras example: Image classification with ConvMixer",
    "functional, softmax",
    (16, 16, 3),
    high=255.0,
)
def convmixer():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(16, 2, strides=2)(x)
    x = layers.BatchNormalization()(layers.Activation("gelu")(x))
    for _ in range(1):
        y = layers.DepthwiseConv2D(5, padding="same")(x)
        y = layers.BatchNormalization()(layers.Activation("gelu")(y))
        x = layers.Conv2D(16, 1)(layers.Add()([y, x]))
        x = layers.BatchNormalization()(layers.Activation("gelu")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class ShiftChannels(layers.Layer):
    """Shifts a few channels by one pixel to each of the four sides."""

    def call(self, x):
        n = x.shape[-1] // 8
        left, right, up, down, rest = ops.split(
            x, [n, 2 * n, 3 * n, 4 * n], axis=-1
        )
        padded = [
            ops.pad(left[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0))),
            ops.pad(right[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0))),
            ops.pad(up[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0))),
            ops.pad(down[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0))),
        ]
        return ops.concatenate([*padded, rest], axis=-1)


@classifier(
    "Keras example: A Vision Transformer without attention (ShiftViT)",
    "functional, own layers",
    (12, 12, 3),
)
def shiftvit():
    inputs = keras.Input((12, 12, 3))
    x = layers.LayerNormalization()(layers.Conv2D(16, 2, strides=2)(inputs))
    for _ in range(1):
        x = ShiftChannels()(x)
        y = mlp(layers.LayerNormalization()(x), (32, 16))
        x = layers.add([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@classifier(
    "Keras example: Focal modulation",
    "functional, gated contexts",
    (12, 12, 3),
)
def focal_modulation():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 2, strides=2)(inputs)
    y = layers.LayerNormalization()(x)
    query = layers.Dense(16)(y)
    context = layers.Dense(16)(y)
    gates = layers.Dense(3)(y)
    total = 0.0
    for level in range(2):
        context = layers.DepthwiseConv2D(
            3 + 2 * level, padding="same", activation="gelu"
        )(context)
        total = total + context * gates[..., level : level + 1]
    whole = layers.GlobalAveragePooling2D(keepdims=True)(context)
    total = total + layers.Activation("gelu")(whole) * gates[..., 2:]
    x = layers.add([x, layers.Dense(16)(query * layers.Conv2D(16, 1)(total))])
    x = layers.add([x, mlp(layers.LayerNormalization()(x), (32, 16))])
    x = layers.GlobalAveragePooling2D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class TokenLearner(layers.Layer):
    """A few tokens, each a mean of the pixels by a map of its own."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.maps = keras.Sequential(
            [
                layers.Conv2D(count, 3, padding="same", activation="gelu"),
                layers.Conv2D(count, 3, padding="same", activation="sigmoid"),
            ]
        )

    def build(self, shape):
        self.maps.build(shape)

    def call(self, x):
        maps = self.maps(x)
        return ops.einsum("bhwn,bhwc->bnc", maps, x) / (x.shape[1] * x.shape[2])

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@classifier(
    "Keras example: Learning to tokenize in Vision Transformers",
    "functional, own layers, softmax",
    (12, 12, 3),
)
def token_learner():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 2, strides=2)(inputs)
    x = block(TokenLearner(4)(layers.LayerNormalization()(x)))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
