"""Of `keras.applications`; benchmarks/applications.py has every family."""

import keras

from published.registry import classifier


@classifier(
    "Howard et al., 2019: MobileNetV3 (keras.applications)",
    "functional, own preprocessing, softmax",
    (32, 32, 3),
    high=255.0,
)
def mobilenet_v3():
    return keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3),
        weights=None,
        classes=3,
        alpha=0.35,
        minimalistic=True,
    )
