"""Of the TensorFlow tutorials."""

import harness
import keras
from keras import layers

from published.registry import CLASSIFIERS, classifier, layer


@classifier("TensorFlow quickstart for beginners", "sequential", (8, 8))
def tf_quickstart():
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(3),
        ]
    )


@layer
class QuickstartModel(keras.Model):
    """One convolution and two dense layers."""

    def __init__(self, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.activation = activation
        self.conv = layers.Conv2D(8, 3, activation="relu")
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(16, activation="relu")
        self.out = layers.Dense(3, activation=activation)

    def call(self, x):
        return self.out(self.hidden(self.flatten(self.conv(x))))

    def get_config(self):
        return {**super().get_config(), "activation": self.activation}


def _built(model, shape):
    model(keras.ops.zeros((1, *shape)))
    return model


@classifier(
    "TensorFlow quickstart for experts", "subclassed, logits", (8, 8, 1)
)
def tf_expert():
    return _built(QuickstartModel(), (8, 8, 1))


@classifier(
    "TensorFlow quickstart for experts, 2019", "subclassed, softmax", (8, 8, 1)
)
def tf_expert_softmax():
    return _built(QuickstartModel("softmax"), (8, 8, 1))


@layer
class SmileDetector(keras.Model):
    """A binary subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential(
            [
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.GlobalAveragePooling2D(),
            ]
        )
        self.out = layers.Dense(1, activation="sigmoid")

    def call(self, x, training=False):
        return self.out(self.body(x, training=training))


@classifier(
    "Keras guide: Making new layers and models via subclassing",
    "subclassed, sigmoid",
    (12, 12, 3),
)
def subclassed_sigmoid():
    return _built(SmileDetector(), (12, 12, 3))


@classifier("TensorFlow tutorial: CNN", "sequential", (16, 16, 3))
def tf_cnn():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(3),
        ]
    )


@classifier(
    "TensorFlow tutorial: Image classification",
    "sequential, augmentation and rescaling inside",
    (16, 16, 3),
    high=255.0,
)
def tf_flowers():
    augmentation = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.RandomZoom(0.1),
        ]
    )
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            augmentation,
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(3),
        ]
    )


@classifier(
    "TensorFlow tutorial: Transfer learning and fine-tuning",
    "functional, frozen MobileNetV2, sigmoid",
    (32, 32, 3),
    high=255.0,
)
def tf_transfer():
    base = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), include_top=False, weights=None, alpha=0.35
    )
    # Statistics as of a trained one: else nothing gets through 53 layers.
    harness.settle(base, CLASSIFIERS["tf_transfer"].inputs(32) / 127.5 - 1)
    base.trainable = False
    inputs = keras.Input((32, 32, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@classifier(
    "TensorFlow tutorial: Overfit and underfit",
    "sequential, one logit, L2 and dropout",
    (28,),
    low=-1.0,
)
def tf_higgs():
    def hidden():
        return layers.Dense(
            32,
            activation="elu",
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )

    return keras.Sequential(
        [
            keras.Input((28,)),
            hidden(),
            layers.Dropout(0.5),
            hidden(),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )


@classifier(
    "TensorFlow tutorial: Load CSV data",
    "sequential, Normalization inside, one logit",
    (9,),
    low=-3.0,
    high=5.0,
)
def tf_titanic():
    normalize = layers.Normalization()
    normalize.adapt(CLASSIFIERS["tf_titanic"].inputs(64))
    return keras.Sequential(
        [
            keras.Input((9,)),
            normalize,
            layers.Dense(64, activation="relu"),
            layers.Dense(1),
        ]
    )


@classifier(
    "TensorFlow tutorial: Simple audio recognition",
    "sequential, Resizing and Normalization inside",
    (31, 33, 1),
)
def tf_audio():
    normalize = layers.Normalization(axis=None)
    normalize.adapt(CLASSIFIERS["tf_audio"].inputs(8))
    return keras.Sequential(
        [
            keras.Input((31, 33, 1)),
            layers.Resizing(16, 16),
            normalize,
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )


@classifier(
    "TensorFlow guide: Mixed precision",
    "functional, mixed_bfloat16, softmax",
    (64,),
)
def mixed_precision():
    half = "mixed_bfloat16"
    inputs = keras.Input((64,))
    x = layers.Dense(32, activation="relu", dtype=half)(inputs)
    x = layers.Dense(32, activation="relu", dtype=half)(x)
    x = layers.Dense(3, dtype=half)(x)
    return keras.Model(
        inputs, layers.Activation("softmax", dtype="float32")(x), dtype=half
    )
