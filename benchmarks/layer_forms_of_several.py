"""Layers of several inputs or of other layers, and nets: see `layer_forms`.

Each entry: the name, the kind of sample, what sets the form apart, a function
from the symbolic sample to the output.
"""

import keras
import tensorflow as tf
from keras.src.applications import convnext

layers = keras.layers


def _merged(make):
    """A layer over the sample and another tensor of its shape."""

    def build(t):
        other = layers.Dense(t.shape[-1], activation="tanh")(t)
        return make()([t, other])

    return build


def _attends(make, **call):
    """A layer of attention, from the sample to another sequence."""

    def build(t):
        other = layers.Dense(t.shape[-1], activation="tanh")(t)
        return make()(t, other, **call)

    return build


def _one(make):
    return lambda t: make()(t)


def _masked_lstm(t):
    """An LSTM that sees the first three steps only."""
    keep = tf.constant([1, 1, 1, 0, 0], t.dtype)[None, :, None]
    shown = layers.Lambda(lambda x: x * keep)(t)
    return layers.LSTM(3)(layers.Masking()(shown))


PARTS = [
    # Merging
    ("Add", "sequence", "", _merged(lambda: layers.Add())),
    ("Average", "sequence", "", _merged(lambda: layers.Average())),
    ("Concatenate", "sequence", "", _merged(lambda: layers.Concatenate())),
    (
        "Concatenate",
        "sequence",
        "axis=1",
        _merged(lambda: layers.Concatenate(axis=1)),
    ),
    ("Dot", "sequence", "axes=1", _merged(lambda: layers.Dot(axes=1))),
    (
        "Dot",
        "sequence",
        "axes=2, normalize=True",
        _merged(lambda: layers.Dot(axes=2, normalize=True)),
    ),
    ("Maximum", "sequence", "", _merged(lambda: layers.Maximum())),
    ("Minimum", "sequence", "", _merged(lambda: layers.Minimum())),
    ("Multiply", "sequence", "", _merged(lambda: layers.Multiply())),
    ("Subtract", "sequence", "", _merged(lambda: layers.Subtract())),
    # Attention
    (
        "AdditiveAttention",
        "sequence",
        "",
        _merged(lambda: layers.AdditiveAttention()),
    ),
    ("Attention", "sequence", "", _merged(lambda: layers.Attention())),
    (
        "Attention",
        "sequence",
        "use_scale=True, score_mode='concat'",
        _merged(lambda: layers.Attention(True, "concat")),
    ),
    (
        "Attention",
        "sequence",
        "use_causal_mask=True",
        lambda t: layers.Attention()([t, t], use_causal_mask=True),
    ),
    (
        "MultiHeadAttention",
        "sequence",
        "",
        _attends(lambda: layers.MultiHeadAttention(2, 3)),
    ),
    (
        "MultiHeadAttention",
        "sequence",
        "use_causal_mask=True, flash_attention=False",
        _attends(
            lambda: layers.MultiHeadAttention(2, 3, flash_attention=False),
            use_causal_mask=True,
        ),
    ),
    (
        "MultiHeadAttention",
        "image",
        "attention_axes=(1, 2), value_dim=2, output_shape=2",
        _attends(
            lambda: layers.MultiHeadAttention(
                2, 3, 2, attention_axes=(1, 2), output_shape=2
            )
        ),
    ),
    (
        "GroupQueryAttention",
        "sequence",
        "",
        _attends(lambda: layers.GroupQueryAttention(3, 4, 2)),
    ),
    (
        "GroupQueryAttention",
        "sequence",
        "use_causal_mask=True, flash_attention=False",
        _attends(
            lambda: layers.GroupQueryAttention(3, 4, 2, flash_attention=False),
            use_causal_mask=True,
        ),
    ),
    # Recurrent
    (
        "Bidirectional",
        "sequence",
        "LSTM",
        _one(lambda: layers.Bidirectional(layers.LSTM(3))),
    ),
    (
        "Bidirectional",
        "sequence",
        "GRU, return_sequences, merge_mode='mul'",
        _one(
            lambda: layers.Bidirectional(
                layers.GRU(3, return_sequences=True), merge_mode="mul"
            )
        ),
    ),
    ("GRUCell", "sequence", "", _one(lambda: layers.RNN(layers.GRUCell(3)))),
    ("LSTMCell", "sequence", "", _one(lambda: layers.RNN(layers.LSTMCell(3)))),
    (
        "SimpleRNNCell",
        "sequence",
        "",
        _one(lambda: layers.RNN(layers.SimpleRNNCell(3))),
    ),
    (
        "RNN",
        "sequence",
        "unroll=True, return_sequences=True",
        _one(
            lambda: layers.RNN(
                layers.GRUCell(3), return_sequences=True, unroll=True
            )
        ),
    ),
    (
        "StackedRNNCells",
        "sequence",
        "LSTM, GRU",
        _one(
            lambda: layers.RNN(
                layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2)])
            )
        ),
    ),
    ("Masking", "sequence", "before LSTM", _masked_lstm),
    (
        "TimeDistributed",
        "sequence",
        "Dense",
        _one(lambda: layers.TimeDistributed(layers.Dense(3))),
    ),
    (
        "TimeDistributed",
        "clip",
        "Conv2D",
        _one(lambda: layers.TimeDistributed(layers.Conv2D(2, 2))),
    ),
    # Of other layers
    (
        "SpectralNormalization",
        "vector",
        "Dense",
        _one(lambda: layers.SpectralNormalization(layers.Dense(4))),
    ),
    (
        "SpectralNormalization",
        "image",
        "Conv2D",
        _one(lambda: layers.SpectralNormalization(layers.Conv2D(2, 3))),
    ),
    (
        "Pipeline",
        "image",
        "Rescaling, RandomFlip",
        _one(
            lambda: layers.Pipeline(
                [layers.Rescaling(0.5), layers.RandomFlip()]
            )
        ),
    ),
    ("Lambda", "vector", "tf.sin", _one(lambda: layers.Lambda(tf.sin))),
]


def _convnext(t):
    """A small network of the family, whole but for its head."""
    return convnext.ConvNeXt(
        depths=(1, 1, 1, 1),
        projection_dims=(6, 6, 8, 8),
        include_top=False,
        include_preprocessing=False,
        weights=None,
        input_shape=t.shape[1:],
    )(t)


# Of keras.applications, in a small form: those with layers whose second
# derivatives are corrected.
NETS = [("applications.ConvNeXt", "picture", "four blocks", _convnext)]
