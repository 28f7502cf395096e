"""Whether attacks were tried as hard as a defence demands.

The checks of Carlini et al., "On Evaluating Adversarial Robustness" (2019), and
of Tramer et al., "On Adaptive Attacks" (NeurIPS 2020), that can be made without
knowing the defence.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.evaluation.metrics.base import (
    SUSPICIOUS,
    Explanation,
    Metric,
    Samples,
    order_of,
)
from dd_keras.evaluation.statistics import Estimate, proportion
from dd_keras.utils import norms, validation

# Gradients of the cross-entropy below this are lost in float32.
_SATURATED = 1e-12
_RESTARTS = 5


@keras.saving.register_keras_serializable("dd_keras")
class AdaptiveChecks(Metric):
    """Checks of whether attacks along the gradient are reliable.

    - `adaptive_unbounded_accuracy`: under PGD with an eps that allows any
      valid input. It should be 0: adversarial examples exist then, and an
      attack that does not find them is unreliable.
    - `adaptive_pgd_accuracy` and `adaptive_restarts_accuracy`: under PGD with
      40 steps at `eps`, from one random start and from five.
    - `adaptive_saturated`: the share of samples for which the norm of the
      gradient of the float32 cross-entropy is below 1e-12. The attacks of this
      library are not affected (`decisions.cross_entropy_logit_gradient`), but
      those of other libraries are.

    A suspicious number gives a reliability warning with advice. Arrays:
    `adaptive_unbounded_fooled`, `adaptive_pgd_fooled`,
    `adaptive_restarts_fooled` and `adaptive_saturated`, bool (N,).

    Args:
        eps: radius of the l_p ball, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        bounds: (low, high) of valid inputs; required.

    Raises:
        ValueError: if an argument is outside its range, or `bounds` is None.

    Example:
        >>> checks = dd_keras.evaluation.AdaptiveChecks(eps=0.1, bounds=(0, 1))
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test[:20], y_test[:20], checks, verbose=0
        ... )
        >>> report.summary()["adaptive_unbounded_accuracy"]
        0.0
    """

    name = "adaptive"

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        bounds: tuple | None = None,
    ):
        self.attack = attacks.PGD(eps, norm, bounds=bounds)
        self.eps, self.norm = self.attack.eps, self.attack.norm
        self.bounds: Any = validation.validate_bounds(bounds)
        if self.bounds is None:
            raise ValueError(
                "bounds: expected the valid range of the inputs, (low, high); "
                "received None."
            )

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        return {"eps": self.eps, "norm": self.norm, "bounds": self.bounds}

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Attacks a batch from the predicted classes."""
        width = float(np.max(np.subtract(*self.bounds[::-1])))
        if self.norm == 2:
            width *= math.sqrt(math.prod(x.shape[1:]))
        settings = {"norm": self.norm, "bounds": self.bounds}
        once = self.attack.search(network, x, forward=forward)
        more = attacks.PGD(
            self.eps, restarts=_RESTARTS, seed=self.attack.seed, **settings
        ).search(network, x, forward=forward)
        unbounded = attacks.PGD(width, **settings).search(
            network, x, forward=forward
        )
        y = decisions.predicted_class(forward.logits)
        slope = forward.gradient(
            decisions.float32_cross_entropy_logit_gradient(forward.logits, y)
        )
        return {
            "adaptive_pgd_fooled": once.fooled,
            "adaptive_restarts_fooled": more.fooled,
            "adaptive_unbounded_fooled": unbounded.fooled,
            "adaptive_saturated": norms.sample_norm(slope) < _SATURATED,
        }

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The four numbers described above."""
        return {
            **{
                f"adaptive_{which}_accuracy": proportion(
                    samples.correct_under(f"adaptive_{which}_fooled")
                )
                for which in ("pgd", "restarts", "unbounded")
            },
            "adaptive_saturated": proportion(
                samples.values["adaptive_saturated"]
            ),
        }

    def explanations(self) -> dict[str, Explanation]:
        """What the four numbers mean."""
        size = f"{order_of(self.norm)} up to {self.eps:g}"
        return {
            "adaptive_pgd_accuracy": Explanation(
                f"Accuracy under PGD of one random start, {size}.", True
            ),
            "adaptive_restarts_accuracy": Explanation(
                f"Accuracy under PGD of {_RESTARTS} random starts, {size}. "
                "Much below that of one start, one is not enough.",
                True,
            ),
            "adaptive_unbounded_accuracy": Explanation(
                "Accuracy under PGD that may turn any input into any other. A "
                "check of the attack: anything but 0 says that gradients "
                "mislead it."
            ),
            "adaptive_saturated": Explanation(
                "The share of samples where the float32 cross-entropy has no "
                "gradient. A check: other libraries' attacks stand still there."
            ),
        }

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Warns of each check that failed."""
        fooled = {
            which: float(np.mean(samples.values[f"adaptive_{which}_fooled"]))
            for which in ("pgd", "restarts", "unbounded")
        }
        saturated = float(np.mean(samples.values["adaptive_saturated"]))
        found = []
        if 1 - fooled["unbounded"] > SUSPICIOUS:
            found.append(
                "adaptive: PGD leaves "
                f"{1 - fooled['unbounded']:.1%} of the samples as they are "
                "although its eps lets any input become any other. The "
                "gradients mislead it: no accuracy under an attack by "
                "gradients means anything here. Try Square, more steps, and "
                "the gradient of what the defence approximates."
            )
        gain = fooled["restarts"] - fooled["pgd"]
        if gain > SUSPICIOUS:
            found.append(
                f"adaptive: {_RESTARTS} random starts of PGD fool {gain:.1%} "
                "more of the samples than one. Report an attack with restarts "
                "or the metric 'autoattack'."
            )
        if saturated > SUSPICIOUS:
            found.append(
                "adaptive: the float32 cross-entropy has no gradient on "
                f"{saturated:.1%} of the samples. Attacks here do not need it; "
                "other libraries' attacks on the cross-entropy stand still "
                "there and report too high an accuracy. Give them the logits, "
                "and a loss of logits (DLR, or the margin)."
            )
        return found
