"""The paper's networks: functional models that give logits.

Layer names are the paper's (Table 4 of its supplement), or those of the model
zoo a network is known from. Kernels of the shallow ones start from a normal
distribution of standard deviation 0.01, small because the inputs are pixels
of 0 to 255 less their mean: with Keras' default, which expects inputs of unit
variance, LeNet does not start to learn. Through many layers nothing would be
left of such signals: deeper ones start as He et al. (ICCV 2015) have it.
"""

import keras
from keras import layers

from dd_keras.networks.layers import GroupedConv2D, LocalResponseNormalization
from dd_keras.utils import validation

# The networks of the paper's experiments, in its order.
NAMES = ("mlp", "lenet", "convnet", "nin", "alexnet", "resnet18")
STEMS = ("imagenet", "cifar")

_INITIAL_STDDEV = 0.01


def mlp(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    name: str = "mlp",
) -> keras.Model:
    """The paper's MLP for MNIST, 784-500-150-10, with ReLU.

    Args:
        input_shape: height, width, channels.
        num_classes: number of logits.
        name: name of the model.

    Returns:
        A `keras.Model` from (B, *input_shape) to (B, num_classes) logits.

    Example:
        >>> network = dd_keras.networks.mlp()
        >>> network.count_params()
        469160
    """
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    x = _dense(500, "fc1", activation="relu")(x)
    x = _dense(150, "fc2", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc3")(x), name=name)


def lenet(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    name: str = "lenet",
) -> keras.Model:
    """The paper's LeNet for MNIST, without activations after convolutions.

    Args, Returns: see `mlp`.

    Example:
        >>> network = dd_keras.networks.lenet()
        >>> network(np.zeros((2, 28, 28, 1))).shape
        TensorShape([2, 10])
    """
    inputs = keras.Input(input_shape)
    x = _conv(20, 5, "conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = _conv(50, 5, "conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten()(x)
    x = _dense(500, "fc1", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc2")(x), name=name)


def convnet(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    name: str = "convnet",
) -> keras.Model:
    """The paper's ConvNet for CIFAR-10, with five convolutions.

    Initial weights have Caffe's standard deviation in the first layer, and
    small ones in the others: with larger ones it overfits, with an accuracy of
    71 instead of 77 % on the test images.

    Args, Returns: see `mlp`.

    Example:
        >>> network = dd_keras.networks.convnet()
        >>> network.input_shape, network.output_shape
        ((None, 32, 32, 3), (None, 10))
    """

    def conv(filters, size, name, stddev=0.03, **kwargs):
        initializer = keras.initializers.RandomNormal(stddev=stddev)
        return layers.Conv2D(
            filters, size, kernel_initializer=initializer, name=name, **kwargs
        )

    inputs = keras.Input(input_shape)
    x = conv(32, 5, "conv1", stddev=1e-4, padding="same")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.ReLU(name="relu1")(x)
    x = conv(32, 5, "conv2", padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool2")(x)
    x = conv(64, 5, "conv3", padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool3")(x)
    x = conv(64, 4, "conv4", activation="relu")(x)
    x = conv(num_classes, 1, "conv5")(x)
    return keras.Model(inputs, layers.Flatten()(x), name=name)


def nin(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    name: str = "nin",
) -> keras.Model:
    """The paper's Network in Network for CIFAR-10, with Caffe's layer names.

    Initial weights are a little smaller than those of He et al.: by a factor
    that brings pixels of about 64 to logits of about 1 through nine layers.
    With He's, training at a rate of 3e-4 fell within 100 steps to the loss of
    chance; with these it learns at rates up to 1e-2.

    Args, Returns: see `mlp`. Height and width are at least 4.

    Example:
        >>> network = dd_keras.networks.nin((32, 32, 3), num_classes=100)
        >>> network.output_shape
        (None, 100)
    """

    def conv(filters, size, name, activation="relu"):
        return layers.Conv2D(
            filters,
            size,
            padding="same",
            activation=activation,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0 * 64 ** (-2 / 9), "fan_in"
            ),
            name=name,
        )

    inputs = keras.Input(input_shape)
    x = conv(192, 5, "conv1")(inputs)
    x = conv(160, 1, "cccp1")(x)
    x = conv(96, 1, "cccp2")(x)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Dropout(0.5, name="drop3")(x)
    x = conv(192, 5, "conv2")(x)
    x = conv(192, 1, "cccp3")(x)
    x = conv(192, 1, "cccp4")(x)
    x = layers.AveragePooling2D(2, name="pool2")(x)
    x = layers.Dropout(0.5, name="drop6")(x)
    x = conv(192, 3, "conv3")(x)
    x = conv(192, 1, "cccp5")(x)
    x = conv(num_classes, 1, "cccp6", activation=None)(x)
    logits = layers.GlobalAveragePooling2D(name="pool3")(x)
    return keras.Model(inputs, logits, name=name)


def alexnet(
    input_shape: tuple[int, ...] = (227, 227, 3),
    num_classes: int = 1000,
    name: str = "alexnet",
) -> keras.Model:
    """Caffe's AlexNet (`bvlc_alexnet`), the paper's network for ImageNet.

    It has convolutions in two groups, local response normalisation before
    pooling, and overlapping pools.

    Args, Returns: see `mlp`. Height and width are at least 67.

    Example:
        >>> network = dd_keras.networks.alexnet((67, 67, 3), num_classes=20)
        >>> network.get_layer("conv2").groups
        2
    """
    inputs = keras.Input(input_shape)
    x = _deep_conv(96, 11, "conv1", strides=4, activation="relu")(inputs)
    x = LocalResponseNormalization(name="norm1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _same_conv(256, 5, "conv2", groups=2)(x)
    x = LocalResponseNormalization(name="norm2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = _same_conv(384, 3, "conv3")(x)
    x = _same_conv(384, 3, "conv4", groups=2)(x)
    x = _same_conv(256, 3, "conv5", groups=2)(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten()(x)
    for number in (6, 7):
        x = layers.Dense(
            4096,
            activation="relu",
            kernel_initializer="he_normal",
            name=f"fc{number}",
        )(x)
        x = layers.Dropout(0.5, name=f"drop{number}")(x)
    return keras.Model(inputs, _dense(num_classes, "fc8")(x), name=name)


def resnet18(
    input_shape: tuple[int, ...] = (224, 224, 3),
    num_classes: int = 1000,
    name: str = "resnet18",
    stem: str = "imagenet",
) -> keras.Model:
    """ResNet-18 (He et al., CVPR 2016), the paper's network for ImageNet.

    Layers, names (`layer2_0_downsample_0` for `layer2.0.downsample.0`),
    padding and constants of batch normalisation are torchvision's.

    Args:
        input_shape: height, width, channels.
        num_classes: number of logits.
        name: name of the model.
        stem: the first layers: `"imagenet"`: a 7x7 convolution and a max
            pool, both with stride 2; `"cifar"`, for small images: a 3x3
            convolution with stride 1 and no pool.

    Returns:
        A `keras.Model` from (B, *input_shape) to (B, num_classes) logits.

    Raises:
        ValueError: if `stem` is neither.

    Example:
        >>> network = dd_keras.networks.resnet18((32, 32, 3), 10, stem="cifar")
        >>> network.get_layer("layer2_0_conv1").output.shape
        (None, 16, 16, 128)
    """
    validation.validate_choice("stem", stem, STEMS)
    inputs = keras.Input(input_shape)
    if stem == "imagenet":
        x = _residual_conv(inputs, 64, 7, 2, "conv1")
    else:
        x = _residual_conv(inputs, 64, 3, 1, "conv1")
    x = layers.ReLU(name="relu")(_batch_norm("bn1")(x))
    if stem == "imagenet":
        # Zeros are no larger than what a ReLU gives.
        x = layers.ZeroPadding2D(1, name="maxpool_pad")(x)
        x = layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(x, filters, stride, f"layer{stage}_{block}")
    x = layers.GlobalAveragePooling2D(name="avgpool")(x)
    return keras.Model(inputs, _dense(num_classes, "fc")(x), name=name)


def digits_cnn(
    input_shape: tuple[int, ...] = (8, 8, 1),
    num_classes: int = 10,
    name: str = "digits_cnn",
) -> keras.Model:
    """A small CNN with dropout for 8x8 digits. It is not in the paper.

    Args, Returns: see `mlp`.

    Example:
        >>> network = dd_keras.networks.digits_cnn()
        >>> network(255 * x_test).shape
        TensorShape([100, 10])
    """
    inputs = keras.Input(input_shape)
    x = _conv(16, 3, "conv1", padding="same", activation="relu")(inputs)
    x = _conv(32, 3, "conv2", padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    x = _dense(64, "fc1", activation="relu")(x)
    return keras.Model(inputs, _dense(num_classes, "fc2")(x), name=name)


def _basic_block(x, filters, stride, name):
    """Two 3x3 convolutions, and around them a shortcut."""
    shortcut = x
    if stride > 1 or x.shape[-1] != filters:
        shortcut = _residual_conv(x, filters, 1, stride, f"{name}_downsample_0")
        shortcut = _batch_norm(f"{name}_downsample_1")(shortcut)
    x = _residual_conv(x, filters, 3, stride, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_relu1")(_batch_norm(f"{name}_bn1")(x))
    x = _residual_conv(x, filters, 3, 1, f"{name}_conv2")
    x = layers.Add(name=f"{name}_add")(
        [_batch_norm(f"{name}_bn2")(x), shortcut]
    )
    return layers.ReLU(name=f"{name}_relu2")(x)


def _residual_conv(x, filters, size, stride, name):
    """A convolution with the same border all around, also if strided."""
    if stride > 1 and size > 1:  # Keras' "same" would pad one side more
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        size,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
        name=name,
    )(x)


def _batch_norm(name):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _conv(filters, size, name, **kwargs):
    return layers.Conv2D(
        filters, size, kernel_initializer=_initializer(), name=name, **kwargs
    )


def _deep_conv(filters, size, name, **kwargs):
    """A convolution whose outputs vary as much as its inputs."""
    return layers.Conv2D(
        filters, size, kernel_initializer="he_normal", name=name, **kwargs
    )


def _same_conv(filters, size, name, groups=1):
    """AlexNet's: as large as its input, a ReLU after it, maybe in groups."""
    kwargs = {"padding": "same", "activation": "relu"}
    if groups == 1:
        return _deep_conv(filters, size, name, **kwargs)
    return GroupedConv2D(
        filters,
        size,
        groups=groups,
        kernel_initializer="he_normal",
        name=name,
        **kwargs,
    )


def _dense(units, name, **kwargs):
    return layers.Dense(
        units, kernel_initializer=_initializer(), name=name, **kwargs
    )


def _initializer():
    return keras.initializers.RandomNormal(stddev=_INITIAL_STDDEV)
