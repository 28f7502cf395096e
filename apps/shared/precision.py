"""--precision: what layers compute in while they train."""

import contextlib
from collections.abc import Iterator

import keras
from absl import flags

from dd_keras.utils import keras_internals

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the calling program's

FLOAT32 = "float32"
NAMES = (FLOAT32, "mixed_bfloat16")


def define_flag() -> None:
    """Declares --precision."""
    flags.DEFINE_enum(
        "precision",
        FLOAT32,
        NAMES,
        "What layers compute in while they train, a dtype policy of Keras. "
        "Weights, norms and losses are float32 in either, and so are files "
        "and the evaluation at the end. mixed_bfloat16 is faster on GPUs, and "
        "on CPUs with instructions for it.",
    )


@contextlib.contextmanager
def training_precision(classifier: keras.Model) -> Iterator[None]:
    """A context in which a classifier's layers compute in --precision.

    Layers that have a policy other than float32 keep it.
    """
    layers = [
        layer
        for layer in keras_internals.layers_of(classifier)
        if layer.dtype_policy.name == FLOAT32
    ]
    try:
        for layer in layers:
            layer.dtype_policy = FLAGS.precision
        yield
    finally:
        for layer in layers:
            layer.dtype_policy = FLOAT32
