"""A Keras network in PyTorch: the same layers, with the same weights.

Needs PyTorch, which only benchmarks have: import this where it is used.
"""

import keras
import numpy as np
import torch
from torch import nn

# How far the two networks' logits may be apart, as a share of the largest:
# they add up the same products in another order.
TOLERANCE = 1e-4


class Affine(nn.Module):
    """x * scale + offset, entry by entry."""

    def __init__(self, scale, offset):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, x):
        """Of images, channels first."""
        return x * self.scale + self.offset


def converted(network):
    """A network of one layer after the other, for images channels first.

    Args:
        network: a Keras model, of whatever models inside of each other.

    Returns:
        `torch.nn.Module`, in inference mode.

    Raises:
        ValueError: if a layer, or one of its settings, has no counterpart
            here.
    """
    modules = []
    shape = network.input_shape
    flattened = None  # the shape (H, W, C) that was flattened
    for layer in _layers(network):
        if isinstance(layer, keras.layers.Flatten):
            flattened = shape[1:]
        modules += _modules(layer, flattened)
        if isinstance(layer, keras.layers.Dense):
            flattened = None
        shape = layer.compute_output_shape(shape)
    return nn.Sequential(*modules).eval()


def channels_first(images):
    """Images (B, H, W, C) as a tensor (B, C, H, W)."""
    return torch.from_numpy(np.transpose(images, (0, 3, 1, 2)).copy())


def channels_last(images):
    """Images (B, C, H, W) as an array (B, H, W, C)."""
    return np.transpose(images.detach().numpy(), (0, 2, 3, 1)).copy()


def checked_difference(network, module, images):
    """How far two networks' logits are apart at most.

    Args:
        network: the Keras model.
        module: what `converted` made of it.
        images: (B, H, W, C).

    Returns:
        (the largest difference, the largest logit), floats.

    Raises:
        AssertionError: if they are more than `TOLERANCE` apart.
    """
    expected = network.predict_on_batch(images)
    with torch.no_grad():
        logits = module(channels_first(images)).numpy()
    difference = float(np.max(np.abs(logits - expected)))
    largest = float(np.max(np.abs(expected)))
    assert difference <= TOLERANCE * largest, (
        f"logits differ by {difference:g}, of {largest:g}"
    )
    return difference, largest


def _layers(model):
    """The layers of a model and of the models in it, in their order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _modules(layer, flattened):
    """One layer as a list of modules."""
    kind = type(layer)
    if kind in _ALONE:
        return _ALONE[kind](layer)
    if kind is keras.layers.Conv2D:
        return [_convolution(layer), *_activation(layer)]
    if kind is keras.layers.Dense:
        return [_dense(layer, flattened), *_activation(layer)]
    raise ValueError(f"{layer.name}: {kind.__name__} has no counterpart here.")


def _rescaling(layer):
    return [Affine(np.float32(layer.scale), np.float32(layer.offset))]


def _normalization(layer):
    """(x - mean) / std, as a difference alone where std is 1 everywhere."""
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(value), np.float32)
        for value in (layer.mean, layer.variance)
    )
    mean, variance = (
        np.transpose(np.broadcast_to(value, mean.shape), (0, 3, 1, 2)).copy()
        for value in (mean, variance)
    )
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if np.all(deviation == 1):
        return [Affine(np.float32(1), -mean)]
    return [Affine(1 / deviation, -mean / deviation)]


def _pooling(layer):
    _require(layer, "padding", "valid")
    return [nn.MaxPool2d(layer.pool_size, layer.strides)]


def _convolution(layer):
    kernel, bias = _weights(layer)
    padding = 0 if layer.padding == "valid" else "same"
    if padding == "same" and set(layer.strides) != {1}:
        raise ValueError(f"{layer.name}: strides with padding='same'.")
    module = nn.Conv2d(
        kernel.shape[2] * layer.groups,
        layer.filters,
        layer.kernel_size,
        layer.strides,
        padding,
        layer.dilation_rate,
        layer.groups,
        bias=bias is not None,
    )
    return _with_weights(module, kernel.transpose(3, 2, 0, 1), bias)


def _dense(layer, flattened):
    kernel, bias = _weights(layer)
    if flattened is not None and len(flattened) == 3:
        # Keras flattens (H, W, C), PyTorch (C, H, W).
        images = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3)
        kernel = images.reshape(kernel.shape)
    module = nn.Linear(*kernel.shape, bias=bias is not None)
    return _with_weights(module, kernel.T, bias)


def _activation(layer):
    name = keras.activations.serialize(layer.activation)
    if name not in ("linear", "relu"):
        raise ValueError(f"{layer.name}: activation {name!r}.")
    return [nn.ReLU()] if name == "relu" else []


def _require(layer, setting, value):
    if getattr(layer, setting) != value:
        raise ValueError(
            f"{layer.name}: {setting} {getattr(layer, setting)!r}, not "
            f"{value!r}."
        )


def _weights(layer):
    """(kernel, bias), the latter None without one."""
    return (*layer.get_weights(), None)[:2]


def _with_weights(module, weight, bias):
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight.copy()))
        if bias is not None:
            module.bias.copy_(torch.from_numpy(bias))
    return module


_ALONE = {
    keras.layers.Rescaling: _rescaling,
    keras.layers.Normalization: _normalization,
    keras.layers.MaxPooling2D: _pooling,
    keras.layers.Flatten: lambda layer: [nn.Flatten()],
    keras.layers.Dropout: lambda layer: [],
    keras.layers.ReLU: lambda layer: [nn.ReLU()],
}
