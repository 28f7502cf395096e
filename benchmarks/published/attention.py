"""Transformers for images, of the Keras code examples."""

import keras
from keras import layers, ops

from published.registry import classifier, layer


@layer
class Patches(layers.Layer):
    """Images cut into rows of flat patches."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, images):
        patches = ops.image.extract_patches(images, self.size)
        return ops.reshape(
            patches,
            (-1, patches.shape[1] * patches.shape[2], patches.shape[3]),
        )

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@layer
class PositionEmbedding(layers.Layer):
    """Adds a vector of its own to each place of a row."""

    def build(self, shape):
        self.embedding = self.add_weight(
            name="embedding", shape=shape[1:], initializer="random_normal"
        )

    def call(self, x):
        return x + self.embedding


def tokens(inputs, size, width):
    """Patches, projected, with their positions."""
    return PositionEmbedding()(layers.Dense(width)(Patches(size)(inputs)))


def mlp(x, widths, rate=0.1):
    """Dense layers with GELU and dropout."""
    for width in widths:
        x = layers.Dropout(rate)(layers.Dense(width, activation="gelu")(x))
    return x


def block(x, heads=2, rate=0.1):
    """A transformer's block, normalised before."""
    width = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.MultiHeadAttention(heads, width // heads, dropout=rate)(y, y)
    x = layers.Add()([x, y])
    y = mlp(layers.LayerNormalization(epsilon=1e-6)(x), (2 * width, width))
    return layers.Add()([x, y])


@classifier(
    "Keras example: Image classification with Vision Transformer",
    "functional, own layers",
    (12, 12, 3),
)
def vit():
    inputs = keras.Input((12, 12, 3))
    x = block(tokens(inputs, 4, 16))
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3)(mlp(x, (16,), 0.5)))


@layer
class WindowAttention(layers.Layer):
    """Attention within windows, with a bias for each relative position."""

    def __init__(self, width, heads, side, window, shift, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.side, self.window, self.shift = side, window, shift
        self.qkv = layers.Dense(3 * width)
        self.project = layers.Dense(width)

    def build(self, shape):
        self.qkv.build(shape)
        self.project.build(shape)
        span = 2 * self.window - 1
        self.bias = self.add_weight(
            name="bias", shape=(span * span, self.heads), initializer="zeros"
        )
        places = [
            (i, j) for i in range(self.window) for j in range(self.window)
        ]
        self.index = [
            (a - c + self.window - 1) * span + b - d + self.window - 1
            for a, b in places
            for c, d in places
        ]

    def call(self, x):
        n, w, heads = self.side // self.window, self.window, self.heads
        depth = self.width // heads
        x = ops.reshape(x, (-1, self.side, self.side, self.width))
        x = ops.roll(x, (-self.shift, -self.shift), (1, 2))
        x = ops.reshape(x, (-1, n, w, n, w, self.width))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, w * w, self.width))
        qkv = ops.reshape(self.qkv(x), (-1, w * w, 3, heads, depth))
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), num=3)
        bias = ops.reshape(
            ops.take(self.bias, self.index, axis=0), (w * w, w * w, heads)
        )
        scores = ops.matmul(q * depth**-0.5, ops.swapaxes(k, -1, -2))
        shares = ops.softmax(scores + ops.transpose(bias, (2, 0, 1)))
        x = ops.transpose(ops.matmul(shares, v), (0, 2, 1, 3))
        x = self.project(ops.reshape(x, (-1, w * w, self.width)))
        x = ops.reshape(x, (-1, n, n, w, w, self.width))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, self.side, self.side, self.width))
        x = ops.roll(x, (self.shift, self.shift), (1, 2))
        return ops.reshape(x, (-1, self.side**2, self.width))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "side": self.side,
            "window": self.window,
            "shift": self.shift,
        }


@classifier(
    "Keras example: Image classification with Swin Transformers",
    "functional, own layers, softmax",
    (16, 16, 3),
)
def swin():
    inputs = keras.Input((16, 16, 3))
    x = tokens(inputs, 4, 16)
    for shift in (0, 1):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.add([x, WindowAttention(16, 2, 4, 2, shift)(y)])
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.add([x, mlp(y, (32, 16), 0.03)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class SequencePooling(layers.Layer):
    """A mean of the tokens by learnt weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.Dense(1)

    def build(self, shape):
        self.attention.build(shape)

    def call(self, x):
        shares = ops.softmax(self.attention(x), axis=1)
        return ops.squeeze(ops.matmul(ops.swapaxes(shares, 1, 2), x), axis=1)


@layer
class StochasticDepth(layers.Layer):
    """Leaves a branch out at random, in training."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x
        keep = 1 - self.rate
        shape = (ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        noise = keras.random.uniform(shape, seed=self.seeds)
        return x / keep * ops.floor(keep + noise)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@classifier(
    "Keras example: Compact Convolutional Transformers",
    "functional, own layers, stochastic depth",
    (16, 16, 3),
)
def cct():
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for width in (8, 16):
        x = layers.Conv2D(
            width, 3, padding="same", use_bias=False, activation="relu"
        )(x)
        x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = PositionEmbedding()(layers.Reshape((-1, 16))(x))
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    y = layers.MultiHeadAttention(2, 16, dropout=0.1)(y, y)
    x = layers.Add()([x, StochasticDepth(0.1)(y)])
    y = mlp(layers.LayerNormalization(epsilon=1e-5)(x), (16, 16))
    x = layers.Add()([x, StochasticDepth(0.1)(y)])
    x = SequencePooling()(layers.LayerNormalization(epsilon=1e-5)(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@layer
class ExternalAttention(layers.Layer):
    """Attention to a memory of learnt keys and values, normalised twice."""

    def __init__(self, width, heads, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.rate = width, heads, rate
        self.query = layers.Dense(2 * width)
        self.keys = layers.Dense(8)
        self.values = layers.Dense(2 * width // heads)
        self.project = layers.Dense(width)
        self.dropout = layers.Dropout(rate)

    def build(self, shape):
        depth = 2 * self.width // self.heads
        self.query.build(shape)
        self.keys.build((None, None, None, depth))
        self.values.build((None, None, None, 8))
        self.project.build((None, None, 2 * self.width))

    def call(self, x, training=False):
        patches, depth = x.shape[1], 2 * self.width // self.heads
        x = ops.reshape(self.query(x), (-1, patches, self.heads, depth))
        x = ops.softmax(self.keys(ops.swapaxes(x, 1, 2)), axis=2)
        x = x / (1e-9 + ops.sum(x, axis=-1, keepdims=True))
        x = self.values(self.dropout(x, training=training))
        x = ops.reshape(ops.swapaxes(x, 1, 2), (-1, patches, 2 * self.width))
        return self.project(x)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "rate": self.rate,
        }


@classifier(
    "Keras example: Image classification with EANet",
    "functional, own layers, softmax",
    (12, 12, 3),
)
def eanet():
    inputs = keras.Input((12, 12, 3))
    x = tokens(inputs, 4, 16)
    for _ in range(1):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.add([x, ExternalAttention(16, 4, 0.2)(y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.add([x, mlp(y, (16, 16), 0.2)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@classifier(
    "Keras example: MobileViT",
    "functional, inverted residuals and attention, softmax",
    (16, 16, 3),
    high=255.0,
)
def mobilevit():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, 2, padding="same", activation="swish")(x)
    y = layers.Conv2D(16, 1, use_bias=False)(x)
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(y))
    x = layers.Add()([x, y])
    y = layers.Conv2D(8, 3, padding="same", activation="swish")(x)
    y = layers.Conv2D(16, 1, activation="swish")(y)
    # Patches of 2x2: attention runs over the places of one kind.
    y = layers.Reshape((4, 2, 4, 2, 16))(y)
    y = layers.Permute((2, 4, 1, 3, 5))(y)
    y = block(layers.Reshape((4, 16, 16))(y))
    y = layers.Permute((3, 1, 4, 2, 5))(layers.Reshape((2, 2, 4, 4, 16))(y))
    y = layers.Reshape((8, 8, 16))(y)
    y = layers.Conv2D(8, 1, activation="swish")(y)
    x = layers.Concatenate()([x, y])
    x = layers.Conv2D(8, 3, padding="same", activation="swish")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@layer
class Perceiver(keras.Model):
    """A few latent vectors read the patches, and think, over and over."""

    def __init__(self, patch, latents, width, rounds, classes, **kwargs):
        super().__init__(**kwargs)
        self.patch, self.latents, self.width = patch, latents, width
        self.rounds, self.classes = rounds, classes
        self.cut = Patches(patch)
        self.encode = keras.Sequential(
            [layers.Dense(width), PositionEmbedding()]
        )
        self.read = layers.MultiHeadAttention(1, width)
        self.think = layers.MultiHeadAttention(2, width // 2)
        self.norms = [layers.LayerNormalization() for _ in range(4)]
        self.mlp = layers.Dense(width, activation="gelu")
        self.head = layers.Dense(classes)

    def build(self, shape):
        self.memory = self.add_weight(
            name="latents",
            shape=(1, self.latents, self.width),
            initializer="random_normal",
        )
        super().build(shape)

    def call(self, images):
        data = self.norms[0](self.encode(self.cut(images)))
        x = self.memory + ops.zeros_like(data[:, :1, :1])  # one a sample
        for _ in range(self.rounds):
            x += self.read(self.norms[1](x), data)
            y = self.norms[2](x)
            x += self.think(y, y)
            x += self.mlp(self.norms[3](x))
        return self.head(ops.mean(x, axis=1))

    def get_config(self):
        return {
            **super().get_config(),
            "patch": self.patch,
            "latents": self.latents,
            "width": self.width,
            "rounds": self.rounds,
            "classes": self.classes,
        }


@classifier(
    "Keras example: Image classification with Perceiver",
    "subclassed, logits",
    (12, 12, 3),
)
def perceiver():
    model = Perceiver(4, 4, 16, 2, 3)
    model.build((None, 12, 12, 3))
    return model
