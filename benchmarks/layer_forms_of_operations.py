"""Operations of TensorFlow as Lambda layers have them: see `layer_forms`.

Each entry: the name, the kind of sample, what sets the form apart, a function
from the symbolic sample to the output; then, where there is one, the reason
for float32, and the operation for which it may be refused.
"""

import keras
import tensorflow as tf

layers = keras.layers

_RESIZE = "tf.image.resize computes in float32 whatever it is given"
_FLOAT32 = "the operation computes in float32 whatever it is given"


def _function(function, **settings):
    """A Lambda layer."""
    return lambda t: layers.Lambda(function, **settings)(t)


def _normalized(x):
    mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)


def _from_statistics(x):
    count, total, squares, _ = tf.nn.sufficient_statistics(
        x, [1, 2], keepdims=True
    )
    mean, variance = tf.nn.normalize_moments(count, total, squares, None)
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


def _weighted(x):
    weights = tf.reshape(
        tf.linspace(tf.constant(0.5, x.dtype), 2, 6), (6, 1, 1)
    )
    mean, variance = tf.nn.weighted_moments(x, [1, 2], weights, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


def _fused(x):
    # Statistics of the batch would make samples depend on each other.
    ones, zeros = tf.ones(3, tf.float32), tf.zeros(3, tf.float32)
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(x, tf.float32),
        ones,
        zeros,
        0.1 + zeros,
        ones,
        is_training=False,
    )
    return tf.cast(y, x.dtype)


def _crop_and_resize(x):
    boxes = tf.tile([[0.1, 0.2, 0.9, 0.8]], [tf.shape(x)[0], 1])
    found = tf.image.crop_and_resize(x, boxes, tf.range(tf.shape(x)[0]), (4, 4))
    return tf.cast(found, x.dtype)


def _dilation(x):
    return tf.nn.dilation2d(
        x,
        tf.zeros((2, 2, 3), x.dtype),
        [1, 1, 1, 1],
        "VALID",
        "NHWC",
        [1, 1, 1, 1],
    )


def _erosion(x):
    return tf.nn.erosion2d(
        x,
        tf.zeros((2, 2, 3), x.dtype),
        [1, 1, 1, 1],
        "VALID",
        "NHWC",
        [1, 1, 1, 1],
    )


def _in_a_loop(x):
    """Three steps of a recurrence."""
    return tf.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y + x)), (0, x)
    )[1]


def _in_float32(function):
    return lambda x: tf.cast(function(tf.cast(x, tf.float32)), x.dtype)


OPERATIONS = [
    ("tf.nn.moments", "image", "axes=[1, 2]", _function(_normalized)),
    ("tf.nn.weighted_moments", "image", "axes=[1, 2]", _function(_weighted)),
    (
        "tf.nn.sufficient_statistics",
        "image",
        "axes=[1, 2]",
        _function(_from_statistics),
    ),
    (
        "keras.ops.moments",
        "sequence",
        "axes=[1]",
        _function(lambda x: tf.concat(keras.ops.moments(x, [1]), -1)),
    ),
    (
        "tf.math.reduce_variance",
        "sequence",
        "",
        _function(lambda x: x / (0.1 + tf.math.reduce_variance(x, 1)[:, None])),
    ),
    (
        "tf.math.reduce_std",
        "sequence",
        "",
        _function(lambda x: x / (0.1 + tf.math.reduce_std(x, 1)[:, None])),
    ),
    (
        "tf.image.per_image_standardization",
        "image",
        "",
        _function(tf.image.per_image_standardization),
        _FLOAT32,
    ),
    (
        "tf.compat.v1.nn.fused_batch_norm",
        "image",
        "is_training=False",
        _function(_fused),
        _FLOAT32,
    ),
    (
        "tf.nn.l2_normalize",
        "sequence",
        "axis=-1",
        _function(lambda x: tf.nn.l2_normalize(x, -1)),
    ),
    ("tf.nn.softsign", "vector", "", _function(tf.nn.softsign)),
    ("tf.nn.crelu", "vector", "", _function(tf.nn.crelu)),
    (
        "tf.nn.local_response_normalization",
        "image",
        "depth_radius=1",
        _function(_in_float32(lambda x: tf.nn.lrn(x, 1))),
        _FLOAT32,
        "LRN",
    ),
    (
        "tf.image.crop_and_resize",
        "image",
        "",
        _function(_crop_and_resize),
        _FLOAT32,
        "CropAndResize",
    ),
    (
        "tf.nn.fractional_max_pool",
        "image",
        "",
        _function(
            lambda x: tf.nn.fractional_max_pool(x, [1, 1.4, 1.4, 1], seed=1)[0],
            output_shape=(4, 4, 3),
        ),
        None,
        "FractionalMaxPool",
    ),
    (
        "tf.nn.fractional_avg_pool",
        "image",
        "",
        _function(
            lambda x: tf.nn.fractional_avg_pool(x, [1, 1.4, 1.4, 1], seed=1)[0],
            output_shape=(4, 4, 3),
        ),
        None,
        "FractionalAvgPool",
    ),
    (
        "tf.nn.max_pool_with_argmax",
        "image",
        "",
        _function(lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")[0]),
        None,
        "MaxPoolWithArgmax",
    ),
    ("tf.nn.dilation2d", "image", "", _function(_dilation), None, "Dilation2D"),
    ("tf.nn.erosion2d", "image", "", _function(_erosion), None, "Dilation2D"),
    (
        "tf.quantization.fake_quant_with_min_max_args",
        "vector",
        "",
        _function(_in_float32(tf.quantization.fake_quant_with_min_max_args)),
        _FLOAT32,
        "FakeQuantWithMinMaxArgs",
    ),
    (
        "tf.image.adjust_contrast",
        "image",
        "",
        _function(lambda x: tf.image.adjust_contrast(x, 0.7)),
        _FLOAT32,
        "AdjustContrastv2",
    ),
    (
        "tf.image.extract_patches",
        "image",
        "",
        _function(
            lambda x: tf.image.extract_patches(
                x, [1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], "VALID"
            )
        ),
    ),
    *(
        (
            "tf.image.resize",
            "image",
            f"method={method!r}, antialias=True",
            _function(
                lambda x, m=method: tf.cast(
                    tf.image.resize(x, (4, 9), m, antialias=True), x.dtype
                )
            ),
            None if method == "nearest" else _RESIZE,
            "ResizeArea" if method == "area" else None,
        )
        for method in (
            "nearest",
            "bilinear",
            "bicubic",
            "area",
            "gaussian",
            "lanczos3",
            "lanczos5",
            "mitchellcubic",
        )
    ),
    (
        "tf.math.top_k",
        "sequence",
        "k=2",
        _function(lambda x: tf.math.top_k(x, 2)[0]),
    ),
    ("tf.sort", "sequence", "", _function(tf.sort)),
    ("tf.math.cumsum", "sequence", "", _function(lambda x: tf.cumsum(x, 1))),
    (
        "tf.signal.fft2d",
        "sequence",
        "",
        _function(
            lambda x: tf.math.real(tf.signal.fft2d(tf.cast(x, tf.complex128)))
        ),
    ),
    ("tf.while_loop", "sequence", "", _function(_in_a_loop)),
    (
        "tf.map_fn",
        "sequence",
        "",
        _function(lambda x: tf.map_fn(tf.sin, x)),
    ),
    (
        "tf.cond",
        "sequence",
        "",
        _function(
            lambda x: tf.cond(
                tf.reduce_sum(x) < 1e3, lambda: tf.sin(x), lambda: x
            )
        ),
    ),
    (
        "tf.stop_gradient",
        "vector",
        "a constant of the data",
        _function(lambda x: x + tf.stop_gradient(tf.ones_like(x))),
    ),
]
