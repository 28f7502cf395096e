"""Convolutional classifiers of images, of the Keras code examples."""

import keras
from keras import layers, ops

from published.registry import classifier, layer


@classifier("Keras example: Simple MNIST convnet", "sequential", (12, 12, 1))
def mnist_convnet():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )


@classifier(
    "Keras example: Image classification from scratch",
    "functional, separable convolutions, one logit",
    (16, 16, 3),
    high=255.0,
)
def small_xception():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = previous = layers.Activation("relu")(x)
    for width in (8, 16):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.SeparableConv2D(width, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        shortcut = layers.Conv2D(width, 1, strides=2, padding="same")(previous)
        x = previous = layers.add([x, shortcut])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.25)(x)
    return keras.Model(inputs, layers.Dense(1)(x))


def _residual(x, width, stride=1):
    """A basic residual block with batch normalisation."""
    shortcut = x
    x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    if shortcut.shape != x.shape:
        shortcut = layers.Conv2D(width, 1, stride, use_bias=False)(shortcut)
        shortcut = layers.BatchNormalization()(shortcut)
    return layers.ReLU()(layers.add([x, shortcut]))


@classifier(
    "Keras example: MixUp and consistency training (ResNet-20)",
    "functional",
    (12, 12, 3),
)
def resnet20():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = _residual(_residual(x, 8), 16, 2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@layer
class StandardizedConv2D(layers.Conv2D):
    """A convolution whose kernel is standardised before it is used."""

    def call(self, inputs):
        mean, variance = ops.moments(self.kernel, [0, 1, 2], keepdims=True)
        kernel = (self.kernel - mean) * ops.rsqrt(variance + 1e-8)
        return ops.conv(inputs, kernel, self.strides[0], self.padding)


@classifier(
    "Keras example: Image classification using BigTransfer",
    "functional, GroupNormalization, standardised convolutions",
    (12, 12, 3),
)
def big_transfer():
    inputs = keras.Input((12, 12, 3))
    x = StandardizedConv2D(8, 3, padding="same", use_bias=False)(inputs)
    for width, stride in ((8, 1), (16, 2)):
        shortcut = x
        x = layers.ReLU()(layers.GroupNormalization(4)(x))
        x = StandardizedConv2D(
            width, 3, strides=stride, padding="same", use_bias=False
        )(x)
        x = layers.ReLU()(layers.GroupNormalization(4)(x))
        x = StandardizedConv2D(width, 3, padding="same", use_bias=False)(x)
        if shortcut.shape != x.shape:
            shortcut = layers.Conv2D(width, 1, strides=stride)(shortcut)
        x = layers.add([x, shortcut])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    head = layers.Dense(3, kernel_initializer="glorot_uniform")
    return keras.Model(inputs, head(x))


@layer
class Involution(layers.Layer):
    """A kernel for each place, made from the features there."""

    def __init__(self, channels, groups=1, kernel_size=3, ratio=2, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.groups = groups
        self.kernel_size = kernel_size
        self.ratio = ratio
        self.generate = keras.Sequential(
            [
                layers.Conv2D(channels // ratio, 1),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2D(kernel_size**2 * groups, 1),
            ]
        )

    def build(self, shape):
        self.generate.build(shape)

    def call(self, x):
        _, height, width, channels = x.shape
        k, g = self.kernel_size, self.groups
        kernel = ops.reshape(self.generate(x), (-1, height, width, k * k, 1, g))
        patches = ops.image.extract_patches(x, (k, k), 1, padding="same")
        patches = ops.reshape(
            patches, (-1, height, width, k * k, channels // g, g)
        )
        out = ops.sum(kernel * patches, axis=3)
        return ops.reshape(out, (-1, height, width, channels))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "kernel_size": self.kernel_size,
            "ratio": self.ratio,
        }


@classifier(
    "Keras example: Involutional neural networks",
    "functional, own layer",
    (12, 12, 3),
)
def involution():
    inputs = keras.Input((12, 12, 3))
    x = Involution(3)(inputs)
    x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    x = Involution(3)(x)
    x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    x = layers.ReLU()(Involution(3)(x))
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@classifier(
    "Keras example: Few-shot learning with Reptile", "functional", (14, 14, 1)
)
def reptile():
    inputs = keras.Input((14, 14, 1))
    x = inputs
    for _ in range(3):
        x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@classifier(
    "Keras example: Supervised contrastive learning",
    "nested, frozen encoder, softmax",
    (12, 12, 3),
)
def supervised_contrastive():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3)(x))
    encoder = keras.Model(inputs, x, name="encoder")
    encoder.trainable = False
    inputs = keras.Input((12, 12, 3))
    x = layers.Dropout(0.5)(encoder(inputs))
    x = layers.Dense(16, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@classifier(
    "Keras example: Learning to resize in computer vision",
    "nested, Resizing of features",
    (20, 20, 3),
)
def learnable_resizer():
    inputs = keras.Input((20, 20, 3))
    resize = layers.Resizing(12, 12, interpolation="bilinear")
    x = layers.LeakyReLU(negative_slope=0.2)(
        layers.Conv2D(8, 5, padding="same")(inputs)
    )
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, padding="same")(x))
    x = bottleneck = resize(x)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.LeakyReLU(negative_slope=0.2)(layers.BatchNormalization()(x))
    x = layers.add([bottleneck, x])
    x = layers.Conv2D(3, 5, padding="same")(x)
    resizer = keras.Model(inputs, layers.add([resize(inputs), x]))
    network = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    inputs = keras.Input((20, 20, 3))
    return keras.Model(inputs, network(resizer(inputs)))


@layer
class AttentionPooling(layers.Layer):
    """A class token looks at the patches once."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.norms = [layers.LayerNormalization() for _ in range(3)]
        self.mlp = keras.Sequential(
            [layers.Dense(width, activation="gelu"), layers.Dense(width)]
        )

    def build(self, shape):
        self.token = self.add_weight(
            name="token", shape=(1, 1, self.width), initializer="random_normal"
        )
        rows = (None, None, self.width)
        self.attention.build(rows, rows)
        for norm in self.norms:
            norm.build(rows)
        self.mlp.build((None, self.width))

    def call(self, x):
        token = self.token + ops.zeros_like(x[:, :1])  # one a sample
        out = self.norms[0](ops.concatenate([token, x], axis=1))
        token = self.norms[1](token + self.attention(token, out))[:, 0]
        return token + self.mlp(self.norms[2](token))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
        }


@classifier(
    "Keras example: Augmenting convnets with aggregated attention",
    "functional, squeeze and excitation, attention pooling",
    (16, 16, 3),
)
def patch_convnet():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, 2, padding="same", activation="gelu")(inputs)
    x = layers.Conv2D(16, 3, 2, padding="same", activation="gelu")(x)
    shortcut = x
    x = layers.LayerNormalization()(x)
    x = layers.Conv2D(16, 1, activation="gelu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="gelu")(x)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    squeezed = layers.Conv2D(4, 1, activation="relu")(squeezed)
    x = x * layers.Conv2D(16, 1, activation="sigmoid")(squeezed)
    x = layers.add([shortcut, layers.Conv2D(16, 1)(x)])
    x = AttentionPooling(16, 2)(layers.Reshape((-1, 16))(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@layer
class Squash(layers.Layer):
    """Capsules shortened to lengths below one."""

    def call(self, x):
        square = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return x * square / (1 + square) / ops.sqrt(square + 1e-7)


@layer
class RoutedCapsules(layers.Layer):
    """Capsules that agree are routed together, three times over."""

    def __init__(self, capsules, width, rounds=3, **kwargs):
        super().__init__(**kwargs)
        self.capsules, self.width, self.rounds = capsules, width, rounds
        self.squash = Squash()

    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(shape[1], self.capsules, shape[2], self.width),
            initializer="glorot_uniform",
        )

    def call(self, x):
        votes = ops.einsum("bid,ijdw->bijw", x, self.kernel)
        agreement = ops.zeros_like(votes[..., :1])
        for _ in range(self.rounds):
            shares = ops.softmax(agreement, axis=2)
            out = self.squash(ops.sum(shares * votes, axis=1, keepdims=True))
            agreement += ops.sum(votes * out, axis=-1, keepdims=True)
        return out[:, 0]

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "width": self.width,
            "rounds": self.rounds,
        }


@classifier(
    "Sabour et al., NeurIPS 2017: Dynamic routing between capsules",
    "functional, own layers, softmax of lengths",
    (12, 12, 1),
)
def capsules():
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(16, 5, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, strides=2)(x)
    x = Squash()(layers.Reshape((-1, 4))(x))
    x = RoutedCapsules(3, 8)(x)
    lengths = ops.sqrt(ops.sum(ops.square(x), axis=-1) + 1e-7)
    return keras.Model(inputs, layers.Softmax()(lengths))
