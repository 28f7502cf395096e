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
    """The measurements on a data set, and which samples count.

    Attributes:
        values: dict from names to arrays, (N, ...).
        correct: bool, (N,): correctly classified without an attack.
        misclassified: how the others count, one of `POLICIES`, see
            `evaluate_robustness`.

    Example:
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, misclassified="zero", verbose=0
        ... )
        >>> samples = report.samples()
        >>> print(np.all(samples.distances("rho2")[~samples.correct] == 0))
        True
        >>> eps = np.array([0.1, 0.5, 1.0])
        >>> samples.robust_at(eps, "l2", "rho2_fooled").shape
        (100, 3)
    """

    values: dict[str, np.ndarray]
    correct: np.ndarray
    misclassified: str

    def distances(self, name: str) -> np.ndarray:
        """The distances of this name, (M,), by the policy `misclassified`."""
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
            fooled_name: name of the array, bool (N, ...), of whether the
                attack changed the decision.

        Returns:
            bool, (M, ...). All samples count (M = N), misclassified ones as
            incorrect; with the policy "exclude" only the M samples that are
            correctly classified without an attack.
        """
        fooled = self.values[fooled_name]
        correct = self.correct.reshape([-1] + [1] * (fooled.ndim - 1))
        return (correct & ~fooled)[self.counted]

    def robust_at(
        self, eps: np.ndarray, distance_name: str, fooled_name: str
    ) -> np.ndarray:
        """Which samples are robust at each eps, by the measured distances.

        Args:
            eps: (E,), in units of the distances.
            distance_name: name of the array of distances, (N,).
            fooled_name: name of the array, bool (N,), of whether the attack
                changed the decision.

        Returns:
            bool, (M, E), for the M samples of `correct_under`: whether they
            are correctly classified without an attack, and no perturbation of
            length up to eps was found.
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

    Example:
        >>> explained = dd_keras.evaluation.Accuracy().explanations()
        >>> explained["accuracy"].higher_is_better
        True
    """

    text: str
    higher_is_better: bool | None = None


class Metric(EqualByConfig):
    """Base of all metrics. Subclasses set `name` and implement `estimates`.

    `measure` runs in the graph, on each batch. `estimates` turns the arrays of
    the whole data set into numbers with confidence intervals. A subclass whose
    constructor has arguments also overrides `get_config`.

    Attributes:
        name: the metric's name, unique in a report.
        attack: the attack that the metric runs, or None.
        distance_name: name of the array of the perturbations' lengths, if the
            attack searches for the smallest; else empty.

    Example:
        >>> from dd_keras.evaluation.statistics import mean
        >>> class Confidence(dd_keras.evaluation.Metric):
        ...     name = "confidence"
        ...     def measure(self, network, x, forward):
        ...         p = tf.nn.softmax(forward.logits)
        ...         return {"confidence": tf.reduce_max(p, axis=1)}
        ...     def estimates(self, samples):
        ...         return {"confidence": mean(samples.values["confidence"])}
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, Confidence(), verbose=0
        ... )
        >>> report.summary()["confidence"] > 0.5
        True
    """

    name: str
    attack: Any = None
    distance_name: str = ""

    @property
    def all_attacks(self) -> dict[str, attacks.Attack]:
        """All attacks that the metric runs, by name."""
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
        """Post-processes the arrays of a batch, outside the graph.

        Args:
            x: (B, ...), the inputs.
            values: the arrays of `measure`.

        Returns:
            dict of the arrays to keep, (B, ...).
        """
        return values

    def estimates(self, samples: Samples) -> dict[str, Estimate]:
        """The numbers of a data set: dict of name to `Estimate`.

        See evaluation/statistics.py for means, medians and proportions.
        """
        raise NotImplementedError

    def reliability_warnings(self, samples: Samples) -> list[str]:
        """Reasons not to trust the numbers: a list of str."""
        return []

    def explanations(self) -> dict[str, Explanation]:
        """What each number of `estimates` means: dict of its name to that."""
        return {}

    def keeping_perturbations(self) -> "Metric":
        """The same metric, which also keeps the perturbations of its attack.

        They are the array `<name>_perturbation`, (N, ...), which only
        `RobustnessReport.to_npz` writes. A metric without the argument
        `keep_perturbations` is returned unchanged.
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
