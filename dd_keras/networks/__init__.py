"""Networks: the paper's, and those of `keras.applications`."""

from dd_keras.networks import applications
from dd_keras.networks.layers import GroupedConv2D, LocalResponseNormalization
from dd_keras.networks.paper import (
    NAMES,
    STEMS,
    alexnet,
    convnet,
    digits_cnn,
    lenet,
    mlp,
    nin,
    resnet18,
)

__all__ = [
    "NAMES",
    "STEMS",
    "GroupedConv2D",
    "LocalResponseNormalization",
    "alexnet",
    "applications",
    "convnet",
    "digits_cnn",
    "lenet",
    "mlp",
    "nin",
    "resnet18",
]
