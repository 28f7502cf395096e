"""Classifiers of signals and of sequences of vectors."""

import keras
from keras import layers

from published.attention import block
from published.registry import classifier


@classifier(
    "Keras example: Timeseries classification from scratch (FCN)",
    "functional, softmax",
    (24, 1),
    low=-1.0,
)
def timeseries_fcn():
    inputs = keras.Input((24, 1))
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(16, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


@classifier(
    "Keras example: Timeseries classification with a Transformer",
    "functional, softmax",
    (24, 1),
    low=-1.0,
)
def timeseries_transformer():
    inputs = keras.Input((24, 1))
    x = inputs
    for _ in range(2):
        y = layers.MultiHeadAttention(2, 8, dropout=0.25)(x, x)
        y = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.25)(y))
        x = y + x
        y = layers.Conv1D(4, 1, activation="relu")(x)
        y = layers.Conv1D(1, 1)(layers.Dropout(0.25)(y))
        x = layers.LayerNormalization(epsilon=1e-6)(y) + x
    x = layers.GlobalAveragePooling1D(data_format="channels_first")(x)
    x = layers.Dropout(0.4)(layers.Dense(16, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


@classifier(
    "Keras example: Speaker recognition", "functional, softmax", (64, 1),
    low=-1.0,
)  # fmt: skip
def speaker_resnet():
    inputs = keras.Input((64, 1))
    x = inputs
    for width in (8, 16):
        shortcut = layers.Conv1D(width, 1, padding="same")(x)
        x = layers.Conv1D(width, 3, padding="same", activation="relu")(x)
        x = layers.Conv1D(width, 3, padding="same")(x)
        x = layers.Activation("relu")(layers.Add()([x, shortcut]))
        x = layers.MaxPooling1D(2, strides=2)(x)
    x = layers.Flatten()(layers.AveragePooling1D(3, strides=3)(x))
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@classifier(
    "Keras example: Bidirectional LSTM on IMDB, on word vectors",
    "functional, one sigmoid",
    (8, 6),
    low=-1.0,
)
def bidirectional_lstm():
    inputs = keras.Input((8, 6))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(inputs)
    x = layers.Bidirectional(layers.LSTM(8))(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@classifier(
    "Keras guide: Working with RNNs (GRU on the rows of MNIST)",
    "sequential",
    (8, 8),
)
def row_gru():
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.GRU(16),
            layers.BatchNormalization(),
            layers.Dense(3),
        ]
    )


@classifier(
    "Keras example: Text classification with Transformer, on word vectors",
    "functional, softmax",
    (8, 16),
    low=-1.0,
)
def text_transformer():
    inputs = keras.Input((8, 16))
    x = layers.GlobalAveragePooling1D()(block(inputs))
    x = layers.Dropout(0.1)(x)
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


@classifier(
    "Keras example: Text classification from scratch, on word vectors",
    "functional, strided convolutions, one sigmoid",
    (32, 8),
    low=-1.0,
)
def text_cnn():
    inputs = keras.Input((32, 8))
    x = layers.Dropout(0.5)(inputs)
    for _ in range(2):
        x = layers.Conv1D(16, 7, strides=3, activation="relu")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@classifier(
    "Keras example: EEG signal classification for action identification",
    "functional, leaky ReLU, softmax",
    (64, 1),
    low=-1.0,
)
def eeg_cnn():
    inputs = keras.Input((64, 1))
    x = inputs
    for width in (8, 16):
        x = layers.Conv1D(width, 3, strides=2, padding="same")(x)
        x = layers.BatchNormalization()(layers.ReLU()(x))
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    x = layers.LeakyReLU(negative_slope=0.1)(
        layers.Dense(16, kernel_regularizer=keras.regularizers.L2())(x)
    )
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
