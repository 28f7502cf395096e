"""How alike adversarial and clean images look: PASS."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.evaluation import similarity
from dd_keras.evaluation.metrics.base import (
    Explanation,
    Metric,
    Samples,
    validate_attack,
)
from dd_keras.evaluation.statistics import Estimate, mean
from dd_keras.utils import validation


@keras.saving.register_keras_serializable("dd_keras")
class PASS(Metric):
    """Perceptual similarity of adversarial and clean images: PASS.

    The psychometric perceptual adversarial similarity score of Rozsa et al.
    (2016): structural similarity after an alignment of the images, see
    `similarity.pass_score`. Array and number: `pass`, at most 1, for equal
    images. It needs the extra `evaluation`.

    Args:
        attack: the attack that makes the images; `attacks.DeepFool()` by
            default.
        bounds: (low, high), the inputs that correspond to pixels 0 and 255,
            numbers or arrays that broadcast against a sample; required.

    Raises:
        ImportError: if OpenCV or scikit-image is not installed.
        ValueError: if `bounds` is None, or `attack` is targeted.

    Example:
        >>> metric = dd_keras.evaluation.PASS(bounds=(0, 1))
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test[:10], y_test[:10], metric, verbose=0
        ... )
        >>> 0.5 < report.summary()["pass"] <= 1
        True
    """

    name = "pass"

    def __init__(
        self,
        attack: attacks.Attack | None = None,
        bounds: tuple | None = None,
    ):
        similarity.require_libraries()
        self.attack = validate_attack(attack or attacks.DeepFool())
        self.bounds: Any = validation.validate_bounds(bounds)
        if self.bounds is None:
            raise ValueError(
                "bounds: expected the inputs that are pixels 0 and 255; "
                "received None."
            )

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {"attack": attack, "bounds": self.bounds}

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        return {"pass": found.perturbation}

    def finish(
        self, x: np.ndarray, values: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Compares the images with libraries that run outside the graph."""
        low, high = map(np.asarray, self.bounds)

        def pixels(inputs):
            images = 255 * (inputs - low) / (high - low)
            return np.clip(images, 0, 255).astype(np.float32)

        clean, attacked = pixels(x), pixels(x + values["pass"])
        scores = map(similarity.pass_score, clean, attacked)
        return {"pass": np.fromiter(scores, np.float32, len(x))}

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The mean `pass`; misclassified samples count unless excluded."""
        values = samples.values["pass"]
        if samples.misclassified == "exclude":
            values = values[samples.correct]
        return {"pass": mean(values)}

    def explanations(self) -> dict[str, Explanation]:
        """What `pass` means."""
        kind = type(self.attack).__name__
        return {
            "pass": Explanation(
                f"How alike clean images and those of {kind} look, at most 1 "
                "(the perceptual similarity of Rozsa et al., 2016). It falls "
                "as perturbations have to grow."
            )
        }
