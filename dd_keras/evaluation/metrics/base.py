"""What a metric is, and which samples count for it.

A metric has two halves. `measure`, in the graph, takes a batch to arrays with
one row a sample; `estimates`, at the end, takes these arrays of the whole
data set to the numbers of the paper's tables, with confidence intervals.
"""

from typing import Any, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.evaluation.statistics import Estimate
from dd_keras.utils.config import EqualByConfig

# What is done with samples that are misclassified without any attack.
POLICIES = ("predicted", "zero", "exclude")
# How the names of arrays end that hold a perturbation of each sample.
PERTURBATION = "_perturbation"
# And those that hold the class that the perturbed input is taken for.
REACHED = "_reached"
# Share of samples above which a number is not to be trusted.
SUSPICIOUS = 0.01


class Samples(NamedTuple):
    """What was measured on a data set.

    Attributes:
        values: dict of name to array, (N, ...).
        correct: bool, (N,): correctly classified without attack.
        misclassified: what to do with the others, one of `POLICIES`.
    """

    values: dict[str, np.ndarray]
    correct: np.ndarray
    misclassified: str

    def distances(self, name: str) -> np.ndarray:
        """The distances of this name that count, by the policy."""
        values = self.values[name]
        if self.misclassified == "exclude":
            return values[self.correct]
        if self.misclassified == "zero":
            return np.where(self.correct, values, 0)
        return values

    @property
    def counted(self) -> np.ndarray:
        """Which samples count for accuracies under attack: bool, (N,)."""
        if self.misclassified == "exclude":
            return self.correct
        return np.ones_like(self.correct)

    def correct_under(self, fooled_name: str) -> np.ndarray:
        """Which samples are correctly classified under an attack.

        Args:
            fooled_name: name of the array, bool (N, ...), that says where the
                attack changed the decision.

        Returns:
            bool, (M, ...), of the samples that count: all of them (M = N), the
            misclassified ones as incorrect; under the policy "exclude" only
            the M that are correctly classified without attack.
        """
        fooled = self.values[fooled_name]
        correct = self.correct.reshape([-1] + [1] * (fooled.ndim - 1))
        return (correct & ~fooled)[self.counted]

    def robust_at(
        self, eps: np.ndarray, distance_name: str, fooled_name: str
    ) -> np.ndarray:
        """Which samples withstand each eps, by the distances measured.

        Args:
            eps: (E,), in units of the distances.
            distance_name: name of the array of distances, (N,).
            fooled_name: name of the array that says where there is one, bool
                (N,).

        Returns:
            bool, (M, E), of the samples that count (see `correct_under`):
            correctly classified without attack, and no perturbation of at
            most eps was found.
        """
        distances = np.where(
            self.values[fooled_name], self.values[distance_name], np.inf
        )
        robust = self.correct[:, None] & (distances[:, None] > eps)
        return robust[self.counted]


class Explanation(NamedTuple):
    """What a number means, for readers of a report.

    Attributes:
        text: one sentence or a few, in plain words.
        higher_is_better: whether a larger number is a better classifier;
            None where neither is.
    """

    text: str
    higher_is_better: bool | None = None


class Metric(EqualByConfig):
    """Base of all metrics. Subclasses have a `name` and `get_config`.

    Attributes:
        name: what the metric is called; no two in one report are the same.
        attack: the attack it runs, or None.
        distance_name: name of the array that holds the lengths of the
            perturbations, where the attack looks for the smallest; or empty.
    """

    name: str
    attack: Any = None
    distance_name: str = ""

    @property
    def all_attacks(self) -> dict[str, attacks.Attack]:
        """All attacks that it runs, by name: its `attack`, if it has one."""
        return {} if self.attack is None else {self.name: self.attack}

    def measure(
        self, network: keras.Model, x: tf.Tensor, forward: attacks.Forward
    ) -> dict[str, tf.Tensor]:
        """Measures a batch, in the graph that is being traced.

        Args:
            network: a built `keras.Model` that gives logits.
            x: (B, ...), of the network's `working_dtype`.
            forward: the network's `attacks.Forward` at `x`.

        Returns:
            dict of name to tensor, (B, ...).
        """
        return {}

    def finish(
        self, x: np.ndarray, values: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What of a batch is kept, from NumPy arrays: a dict as `measure`'s."""
        return values

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The numbers of a data set: dict of name to `Estimate`."""
        raise NotImplementedError

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Why the numbers are not to be trusted: list of str."""
        return []

    def explanations(self) -> dict[str, Explanation]:
        """What each number of `estimates` means: dict of its name to that."""
        return {}

    def keeping_perturbations(self) -> "Metric":
        """The metric that also keeps what its attack found of each sample.

        As the array `<name>_perturbation`, (N, ...), which a report writes by
        `to_npz` alone. The metric itself, if it has no such argument.
        """
        return self._keeping("keep_perturbations")

    def keeping_classes(self) -> "Metric":
        """The metric that also keeps which class each perturbed input got.

        As the array `<name>_reached`, int (N,), for one forward pass a sample
        more. The metric itself, if it has no such argument.
        """
        return self._keeping("keep_classes")

    def _keeping(self, argument):
        config = self.get_config()
        if argument not in config:
            return self
        return self.from_config(config | {argument: True})

    def get_config(self) -> dict:
        """The constructor's arguments, for Keras serialisation."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """The metric that `get_config` describes."""
        config = {
            key: keras.saving.deserialize_keras_object(value)
            for key, value in config.items()
        }
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def validate_attack(attack: attacks.Attack, *settings: str) -> attacks.Attack:
    """An attack, checked to be untargeted and to have these settings.

    Raises:
        ValueError: if it is not.
    """
    if (
        not isinstance(attack, attacks.Attack)
        or attack.targeted
        or not all(hasattr(attack, name) for name in settings)
    ):
        having = f" with {' and '.join(settings)}" if settings else ""
        raise ValueError(
            f"attack: expected an untargeted attack{having}; received "
            f"{attack!r}."
        )
    return attack


def reached(
    network: keras.Model, x: tf.Tensor, perturbation: tf.Tensor
) -> tf.Tensor:
    """The classes of perturbed inputs: int32, (B,)."""
    logits = attacks.inference_form(network)(x + perturbation)
    return decisions.predicted_class(logits)


def order_of(norm: float) -> str:
    """A norm as it is written in text: "l_2", "l_inf"."""
    return f"l_{norm:g}"


def not_fooled(name: str, samples: Samples) -> list[str]:
    """A reliability warning, where an attack did not fool all samples."""
    share = np.mean(~samples.values[f"{name}_fooled"])
    if share <= SUSPICIOUS:
        return []
    return [
        f"{name}: the attack did not change the decision on {100 * share:.1f} "
        "% of the samples; what it did there counts as their distance, which "
        "says nothing of how robust they are."
    ]
