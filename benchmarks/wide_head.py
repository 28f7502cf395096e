"""A trained ten-class network with more classes, on the same body."""

import keras
import numpy as np


def with_classes(network, classes, seed=0):
    """Replaces a network's last dense layer by one with more classes.

    The further classes have the trained ones' weights in random order, and a
    bias so low that they are hardly ever the likeliest: decisions, distances
    and iterations stay about those of the trained network, and a difference
    in time is the cost of the classes.

    Args:
        network: Keras classifier that ends in a dense layer of logits.
        classes: number of logits, at least those it has.
        seed: of the order.

    Returns:
        `network` itself if it has as many classes; else a new model that
        shares its body.
    """
    head = network.layers[-1]
    trained = head.units
    if classes == trained:
        return network
    kernel, bias = head.get_weights()
    random = np.random.default_rng(seed)
    further = random.permuted(
        kernel[:, np.arange(classes - trained) % trained], axis=0
    )
    wide = keras.layers.Dense(classes, name=f"{head.name}_{classes}")
    outputs = wide(head.input)
    low = np.full(classes - trained, bias.min() - 100 * np.abs(bias).max())
    wide.set_weights(
        [
            np.concatenate([kernel, further], axis=1),
            np.concatenate([bias, low.astype(bias.dtype)]),
        ]
    )
    return keras.Model(
        network.inputs, outputs, name=f"{network.name}_{classes}"
    )
