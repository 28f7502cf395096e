"""Whether a reference has learnt enough for its robustness to mean anything."""

import keras
import numpy as np
import tensorflow as tf

from dd_keras.classifier import logits

# Less than half of the images: then rho is mostly that of wrong decisions, and
# Deep Defense pulls most samples, by exp(d * rho), instead of pushing them.
_ENOUGH = 0.5
_IMAGES = 1000  # looked at before a defence


def accuracy_of(classifier: keras.Model, batches: tf.data.Dataset) -> float:
    """The accuracy on the first thousand images.

    Args:
        classifier: a built Keras classifier.
        batches: of (inputs, labels).
    """
    network = logits.logits_model(classifier)
    correct = []
    for x, y in batches:
        scores = logits.class_logits(network(x, training=False))
        correct.extend(np.argmax(scores, axis=-1) == y.numpy())
        if len(correct) >= _IMAGES:
            break
    return float(np.mean(correct))


def is_enough(accuracy: float) -> bool:
    """Whether numbers of a reference of this accuracy mean something."""
    return accuracy >= _ENOUGH


def note(accuracy: float, classes: int) -> str | None:
    """What there is to say of a reference of this accuracy; None: nothing."""
    if is_enough(accuracy):
        return None
    return (
        f"The reference is barely trained: {100 * accuracy:.1f} % of the "
        f"images are classified correctly ({100 / classes:.1f} % by chance). "
        "Its rho, ratios to it, and defences of it tell nothing; train it "
        "longer, on more images, or at another rate."
    )
