"""Requests that a server sends itself before it says that it is ready.

TensorFlow Serving replays what lies in a SavedModel's
assets.extra/tf_serving_warmup_requests, so that the first client does not
wait for kernels to be chosen and graphs to be optimised.
"""

import os

import numpy as np
import tensorflow as tf

from dd_keras.serving.encoded_images import Limits
from dd_keras.serving.endpoints import Endpoint

NAME = "tf_serving_warmup_requests"


def available() -> bool:
    """Whether tensorflow-serving-api is installed, which has the records."""
    try:
        from tensorflow_serving.apis import prediction_log_pb2  # noqa: F401
    except ImportError:
        return False
    return True


def write(
    endpoints: dict[str, Endpoint],
    examples: np.ndarray,
    directory: str,
    limits: Limits,
) -> None:
    """Writes one request for each endpoint and batch size.

    Args:
        endpoints: dict of name to `Endpoint`.
        examples: (N, *image_shape) array of raw images. Requests hold the
            first, and if there are more, all of them.
        directory: where to.
        limits: of encoded images: their requests hold no more.
    """
    from tensorflow_serving.apis import (
        model_pb2,
        predict_pb2,
        prediction_log_pb2,
    )

    os.makedirs(directory, exist_ok=True)
    with tf.io.TFRecordWriter(os.path.join(directory, NAME)) as writer:
        for name, (_, spec) in endpoints.items():
            most = len(examples)
            if spec.dtype == tf.string:
                most = min(most, limits.images_of(examples[0, ..., 0].size))
            for size in sorted({min(1, most), most} - {0}):
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(signature_name=name),
                    inputs={spec.name: _tensor(examples[:size], spec.dtype)},
                )
                log = prediction_log_pb2.PredictLog(request=request)
                record = prediction_log_pb2.PredictionLog(predict_log=log)
                writer.write(record.SerializeToString())


def noise(image_shape: tuple[int, ...]) -> np.ndarray:
    """One image of noise, where there is no example."""
    random = np.random.RandomState(0)
    return random.randint(0, 256, (1, *image_shape))


def _tensor(images, dtype):
    """Images as a `TensorProto` of an endpoint's input."""
    if dtype == tf.string:
        pixels = np.clip(np.round(images), 0, 255).astype(np.uint8)
        images = [tf.io.encode_png(image).numpy() for image in pixels]
    else:
        images = images.astype(dtype.as_numpy_dtype)
    return tf.make_tensor_proto(images, dtype)
