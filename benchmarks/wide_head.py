"""A trained ten-class network with more classes, on the same body."""

import keras
import numpy as np

_LOW = -1e4  # a bias far below all logits of a network for images


def with_classes(network, classes, seed=0):
    """Replaces a network's last dense layer by one with more classes.

    The further classes have the trained ones' weights in random order, and a
    bias so low that they are never the most probable nor the nearest:
    decisions, perturbations and iterations stay those of the trained network,
    and a difference in time is the cost of the classes.

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
    low = np.full(classes - trained, _LOW, bias.dtype)
    wide.set_weights(
        [
            np.concatenate([kernel, further], axis=1),
            np.concatenate([bias, low]),
        ]
    )
    return keras.Model(
        network.inputs[0], outputs, name=f"{network.name}_{classes}"
    )
