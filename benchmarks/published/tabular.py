"""Classifiers of tables, on numeric columns."""

import keras
from keras import layers, ops

from published.attention import block
from published.registry import classifier, layer


@classifier(
    "Keras example: Structured data learning with Wide, Deep, and Cross",
    "functional, cross layers, softmax",
    (12,),
    low=-1.0,
)
def deep_and_cross():
    inputs = keras.Input((12,))
    first = layers.BatchNormalization()(inputs)
    cross = first
    for _ in range(2):
        cross = first * layers.Dense(12)(cross) + cross
    deep = inputs
    for width in (16, 16):
        deep = layers.BatchNormalization()(layers.Dense(width)(deep))
        deep = layers.Dropout(0.1)(layers.ReLU()(deep))
    merged = layers.concatenate([cross, deep])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(merged))


@layer
class ColumnEmbedding(layers.Layer):
    """Each number as a vector: its column's direction and offset."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        for name in ("direction", "offset"):
            weight = self.add_weight(
                name=name,
                shape=(shape[-1], self.width),
                initializer="random_normal",
            )
            setattr(self, name, weight)

    def call(self, x):
        return x[..., None] * self.direction + self.offset

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@classifier(
    "Keras example: Structured data learning with TabTransformer",
    "functional, own layers, one sigmoid",
    (8,),
    low=-1.0,
)
def tab_transformer():
    inputs = keras.Input((8,))
    x = layers.Flatten()(block(ColumnEmbedding(8)(inputs)))
    numeric = layers.LayerNormalization(epsilon=1e-6)(inputs)
    x = layers.concatenate([x, numeric])
    x = layers.Dense(16, activation="selu")(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@layer
class GatedResidual(layers.Layer):
    """A small network behind a gate, beside its input, normalised."""

    def __init__(self, width, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.width, self.rate = width, rate
        self.elu = layers.Dense(width, activation="elu")
        self.linear = layers.Dense(width)
        self.dropout = layers.Dropout(rate)
        self.value = layers.Dense(width)
        self.gate = layers.Dense(width, activation="sigmoid")
        self.norm = layers.LayerNormalization()
        self.project = layers.Dense(width)

    def build(self, shape):
        inner = (*shape[:-1], self.width)
        self.elu.build(shape)
        for one in (self.linear, self.value, self.gate, self.norm):
            one.build(inner)
        if shape[-1] != self.width:
            self.project.build(shape)

    def call(self, x, training=False):
        y = self.dropout(self.linear(self.elu(x)), training=training)
        y = self.value(y) * self.gate(y)
        if x.shape[-1] != self.width:
            x = self.project(x)
        return self.norm(x + y)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "rate": self.rate}


@classifier(
    "Keras example: Classification with gated residual and variable "
    "selection networks",
    "functional, own layers, one sigmoid",
    (6,),
    low=-1.0,
)
def variable_selection():
    inputs = keras.Input((6,))
    columns = ColumnEmbedding(8)(inputs)
    encoded = [GatedResidual(8)(columns[:, i]) for i in range(6)]
    chosen = GatedResidual(8)(layers.Flatten()(columns))
    shares = layers.Dense(6, activation="softmax")(chosen)
    x = ops.sum(ops.stack(encoded, axis=1) * shares[..., None], axis=1)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@layer
class DecisionTree(keras.Model):
    """A tree of soft decisions; its leaves hold distributions of classes."""

    def __init__(self, depth, classes, **kwargs):
        super().__init__(**kwargs)
        self.depth, self.classes = depth, classes
        self.decisions = layers.Dense(2**depth, activation="sigmoid")

    def build(self, shape):
        self.decisions.build(shape)
        self.leaves = self.add_weight(
            name="leaves",
            shape=(2**self.depth, self.classes),
            initializer="random_normal",
        )
        self.built = True

    def call(self, x):
        right = self.decisions(x)[..., None]
        choices = ops.concatenate([right, 1 - right], axis=2)
        reached = ops.ones_like(choices[:, :1, :1])
        start = 1
        for level in range(self.depth):
            here = choices[:, start : start + 2**level]
            reached = ops.reshape(reached, (-1, 2**level, 1)) * here
            start += 2**level
        reached = ops.reshape(reached, (-1, 2**self.depth))
        return ops.matmul(reached, ops.softmax(self.leaves))

    def get_config(self):
        return {
            **super().get_config(),
            "depth": self.depth,
            "classes": self.classes,
        }


@classifier(
    "Keras example: Classification with neural decision forests",
    "functional, own layers, a mean of probabilities",
    (10,),
    low=-1.0,
    activation="softmax",
)
def decision_forest():
    inputs = keras.Input((10,))
    x = layers.BatchNormalization()(inputs)
    trees = [DecisionTree(3, 3)(x[:, i : i + 8]) for i in range(3)]
    return keras.Model(inputs, layers.Average()(trees))


@classifier(
    "Keras example: Structured data classification from scratch",
    "functional, one sigmoid",
    (13,),
    low=-2.0,
    high=2.0,
)
def heart_disease():
    inputs = keras.Input((13,))
    normalize = layers.Normalization(mean=0.1, variance=1.3)
    x = layers.Dense(32, activation="relu")(normalize(inputs))
    x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@classifier(
    "Keras example: Imbalanced classification: credit card fraud detection",
    "sequential, one sigmoid",
    (29,),
    low=-2.0,
    high=2.0,
)
def credit_card_fraud():
    return keras.Sequential(
        [
            keras.Input((29,)),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
