"""What is measured on each sample, and the numbers made of it.

A metric has two halves. `measure`, in the graph, takes a batch to arrays with
one row a sample; `estimates`, at the end, takes these arrays of the whole
data set to the numbers of the paper's tables, with confidence intervals.
"""

import math
import re
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.evaluation import similarity
from dd_keras.utils import norms, validation
from dd_keras.utils.config import EqualByConfig

# What is done with samples that are misclassified without any attack.
POLICIES = ("predicted", "zero", "exclude")

_Z = 1.959964  # of the normal distribution, for intervals of 95 %
# Shares of samples above which a number is not to be trusted.
_SUSPICIOUS = 0.01
_SWEEP = np.arange(1, 21) / 50  # eps of "fgsm", in widths of the valid range
_PGD_EPS = 0.1  # eps of "pgd", likewise


class Estimate(NamedTuple):
    """A number and the ends of its 95 % confidence interval.

    NaN where there is none. `is_share`: of the samples, shown in percent.
    """

    value: float
    low: float
    high: float
    is_share: bool = False

    def text(self):
        """The number for a table."""
        return self._formatted(self.value)

    def interval_text(self):
        """The interval for a table."""
        return f"{self._formatted(self.low)} to {self._formatted(self.high)}"

    def _formatted(self, number):
        if not math.isfinite(number):
            return "-"
        if self.is_share:
            return f"{100 * number:.2f} %"
        return f"{number:#.4g}".removesuffix(".")


class Samples(NamedTuple):
    """What was measured on a data set.

    Attributes:
        values: dict of name to array, (N, ...).
        right: bool, (N,): classified correctly without attack.
        misclassified: what to do with the others, one of `POLICIES`.
    """

    values: dict
    right: np.ndarray
    misclassified: str

    def distances(self, name):
        """The distances of this name that count, by the policy."""
        values = self.values[name]
        if self.misclassified == "exclude":
            return values[self.right]
        if self.misclassified == "zero":
            return np.where(self.right, values, 0)
        return values

    def withstood(self, name):
        """Who is right, and still is under the attack of this name.

        (M, ...), of the samples that count: all of them, the misclassified
        ones as wrong, or under the policy "exclude" only those right.
        """
        fooled = self.values[name]
        right = self.right.reshape([-1] + [1] * (fooled.ndim - 1))
        if self.misclassified == "exclude":
            return ~fooled[self.right]
        return right & ~fooled


class Metric(EqualByConfig):
    """Base of all metrics. Subclasses have a `name` and `get_config`.

    Attributes:
        name: what the metric is called; no two in one report are the same.
        attack: the attack it runs, or None.
        length: name of the array that holds the lengths of perturbations,
            where the attack looks for the smallest; or None.
    """

    name = None
    attack = None
    length = None

    def measure(self, network, x, forward):
        """Measures a batch, in the graph at hand.

        Args:
            network: a built `keras.Model` that gives logits.
            x: (B, ...), of the network's `working_dtype`.
            forward: the network's `attacks.Forward` at `x`.

        Returns:
            dict of name to tensor, (B, ...).
        """
        return {}

    def finish(self, x, values):
        """What of a batch is kept, from NumPy arrays: a dict as `measure`'s."""
        return values

    def estimates(self, samples):
        """The numbers of a data set: dict of name to `Estimate`."""
        raise NotImplementedError

    def warnings(self, samples):
        """Why the numbers are not to be trusted: list of str."""
        return []

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """The metric that `get_config` describes."""
        config = {
            key: keras.saving.deserialize_keras_object(value)
            for key, value in config.items()
        }
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(name={self.name!r})"


@keras.saving.register_keras_serializable("dd_keras")
class Accuracy(Metric):
    """The share of samples classified correctly, without attack."""

    name = "accuracy"

    def estimates(self, samples):
        """`accuracy`, over all samples."""
        return {"accuracy": proportion(samples.right)}


@keras.saving.register_keras_serializable("dd_keras")
class Distance(Metric):
    """How far the nearest other decision is, by an attack that looks for it.

    Arrays and numbers, p the norm of the attack: `rho<p>`, the relative
    size ||perturbation||_p / ||x||_p (Eq. 7); `l<p>`, its length in units of
    the inputs (Eq. 1 of the supplement); and the arrays `rho<p>_fooled` and
    `rho<p>_iterations`.

    Args:
        attack: an untargeted attack with a `norm`, `DeepFool` for one.
        prefix: put before all names, so that two attacks in the same norm
            can stand in one report.

    Raises:
        ValueError: if `attack` is none of this kind.
    """

    def __init__(self, attack, prefix=""):
        self.attack = _validate_attack(attack, "norm")
        self.prefix = str(prefix)
        self.name = f"{prefix}rho{attack.norm:g}"
        self.length = f"{prefix}l{attack.norm:g}"

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {"attack": attack, "prefix": self.prefix}

    def measure(self, network, x, forward):
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        p = self.attack.norm
        return {
            self.name: norms.rho(found.perturbation, x, p),
            self.length: norms.sample_norm(found.perturbation, p),
            f"{self.name}_fooled": found.fooled,
            f"{self.name}_iterations": found.iterations,
        }

    def estimates(self, samples):
        """The means `rho<p>` and `l<p>`, and the share `rho<p>_fooled`."""
        fooled = f"{self.name}_fooled"
        return {
            self.name: mean(samples.distances(self.name)),
            self.length: mean(samples.distances(self.length)),
            fooled: proportion(samples.values[fooled]),
        }

    def warnings(self, samples):
        """Tells of samples that the attack did not fool."""
        return _unfooled(self.name, samples)


@keras.saving.register_keras_serializable("dd_keras")
class SmallestEps(Metric):
    """The smallest eps at which FGSM fools each sample.

    Arrays: `fgsm_eps`, that eps in units of the inputs; `fgsm_rho`, the
    paper's rho_inf (supplement, Eq. 2), ||perturbation||_inf / ||x||_inf; and
    `fgsm_rho_fooled`. Numbers: the means `fgsm_rho` and `fgsm_eps`, and
    `eps_ref`, the smallest eps at which half of all samples are
    misclassified; a sample that is misclassified already counts there from
    eps 0 on, whatever the policy. All are found to the `tolerance` of the
    attack.

    Args:
        attack: `attacks.MinimalFGSM()` by default.
    """

    name = "fgsm_rho"
    length = "fgsm_eps"

    def __init__(self, attack=None):
        self.attack = _validate_attack(attack or attacks.MinimalFGSM())

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {"attack": keras.saving.serialize_keras_object(self.attack)}

    def measure(self, network, x, forward):
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        return {
            "fgsm_rho": norms.rho(found.perturbation, x, math.inf),
            "fgsm_eps": norms.sample_norm(found.perturbation, math.inf),
            "fgsm_rho_fooled": found.fooled,
        }

    def estimates(self, samples):
        """The means `fgsm_rho` and `fgsm_eps`, and the median `eps_ref`."""
        eps = np.where(
            samples.values["fgsm_rho_fooled"],
            samples.values["fgsm_eps"],
            np.inf,
        )
        return {
            "fgsm_rho": mean(samples.distances("fgsm_rho")),
            "fgsm_eps": mean(samples.distances("fgsm_eps")),
            "eps_ref": median(np.where(samples.right, eps, 0)),
        }

    def warnings(self, samples):
        """Tells of samples that no eps fooled."""
        return _unfooled(self.name, samples)


@keras.saving.register_keras_serializable("dd_keras")
class EpsSweep(Metric):
    """Accuracy under FGSM at several eps.

    All eps share one direction, that of the gradient at the clean input.
    Array: `fgsm_fooled`, bool (N, E). Numbers: `fgsm_accuracy@<eps>`.

    Args:
        eps: sequence of numbers above 0, in units of the inputs.
        bounds: as in `attacks.FGSM`; None, as in the paper, for no bounds.
    """

    name = "fgsm"

    def __init__(self, eps, bounds=None):
        eps = np.atleast_1d(eps).tolist()
        self.eps = [validation.validate_number("eps", e, above=0) for e in eps]
        if not self.eps or len({f"{e:g}" for e in self.eps}) < len(self.eps):
            raise ValueError(
                f"eps: expected one or more numbers, each once; received {eps}."
            )
        self.attack = attacks.FGSM(1.0, bounds)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {"eps": self.eps, "bounds": self.attack.bounds}

    def measure(self, network, x, forward):
        """Attacks a batch from the predicted classes."""
        way = attacks.FGSM(1.0).search(network, x, forward=forward)
        fooled = []
        for eps in self.eps:
            step = self.attack.within_bounds(x, eps * way.perturbation)
            logits = attacks.inference_form(network)(x + step)
            decided = decisions.predicted_class(logits)
            fooled.append(decided != way.predictions)
        return {"fgsm_fooled": tf.stack(fooled, axis=1)}  # (B, E)

    def estimates(self, samples):
        """`fgsm_accuracy@<eps>` for each eps."""
        withstood = samples.withstood("fgsm_fooled")
        return {
            f"fgsm_accuracy@{eps:g}": proportion(column)
            for eps, column in zip(self.eps, withstood.T, strict=True)
        }


@keras.saving.register_keras_serializable("dd_keras")
class AccuracyUnder(Metric):
    """Accuracy under an attack of a given size, PGD for one.

    Arrays: `<name>_fooled`, and `<name>_weaker`: whether a single step along
    the gradient or random noise of the same size fools the sample, which a
    sound attack would not do worse than. Number: `<name>_accuracy`.

    Args:
        attack: an untargeted attack with an `eps` and a `norm` of 2 or inf.
        name: by default the attack's, in lower case.

    Raises:
        ValueError: if `attack` is none of this kind.
    """

    def __init__(self, attack, name=None):
        self.attack = _validate_attack(attack, "eps", "norm")
        self.name = name or type(attack).__name__.lower()

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {"attack": attack, "name": self.name}

    def measure(self, network, x, forward):
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        size = {
            "eps": self.attack.eps,
            "norm": self.attack.norm,
            "bounds": self.attack.bounds,
        }
        step = attacks.PGD(
            **size, steps=1, step_size=self.attack.eps, random_start=False
        ).search(network, x, forward=forward)
        noise = attacks.RandomNoise(**size).search(network, x, forward=forward)
        return {
            f"{self.name}_fooled": found.fooled,
            f"{self.name}_weaker": step.fooled | noise.fooled,
        }

    def estimates(self, samples):
        """`<name>_accuracy`."""
        withstood = samples.withstood(f"{self.name}_fooled")
        return {f"{self.name}_accuracy": proportion(withstood)}

    def warnings(self, samples):
        """Tells of weaker attacks that fool more."""
        fooled, weaker = (
            int(np.sum(samples.values[f"{self.name}_{which}"]))
            for which in ("fooled", "weaker")
        )
        percent = 100 / len(samples.right)
        # Not sample by sample: sound attacks miss some that others find.
        if weaker - fooled <= _SUSPICIOUS * len(samples.right):
            return []
        return [
            f"{self.name}: a single step or random noise of the same size "
            f"fools {percent * weaker:.1f} % of the samples, the attack only "
            f"{percent * fooled:.1f} %. The gradients mislead it (gradient "
            "masking), and the classifier is less robust than this number "
            "says."
        ]


@keras.saving.register_keras_serializable("dd_keras")
class PASS(Metric):
    """How alike adversarial and clean images look (Rozsa et al., 2016).

    Array and number: `pass`, at most 1, see `similarity.pass_score`. Needs
    the extra `evaluation`.

    Args:
        attack: whose images; `attacks.DeepFool()` by default.
        bounds: (low, high), the inputs that are pixels 0 and 255: numbers or
            arrays that broadcast against a sample.

    Raises:
        ImportError: if OpenCV or scikit-image is not installed.
    """

    name = "pass"

    def __init__(self, attack=None, bounds=None):
        similarity.require()
        self.attack = _validate_attack(attack or attacks.DeepFool())
        self.bounds = validation.validate_bounds(bounds)
        if self.bounds is None:
            raise ValueError(
                "bounds: expected the inputs that are pixels 0 and 255; "
                "received None."
            )

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        attack = keras.saving.serialize_keras_object(self.attack)
        return {"attack": attack, "bounds": self.bounds}

    def measure(self, network, x, forward):
        """Attacks a batch from the predicted classes."""
        found = self.attack.search(network, x, forward=forward)
        return {"pass": found.perturbation}

    def finish(self, x, values):
        """Compares the images, which takes libraries outside of the graph."""
        low, high = map(np.asarray, self.bounds)

        def pixels(inputs):
            images = 255 * (inputs - low) / (high - low)
            return np.clip(images, 0, 255).astype(np.float32)

        clean, attacked = pixels(x), pixels(x + values["pass"])
        scores = map(similarity.pass_score, clean, attacked)
        return {"pass": np.fromiter(scores, np.float32, len(x))}

    def estimates(self, samples):
        """The mean `pass`; misclassified samples count unless excluded."""
        values = samples.values["pass"]
        if samples.misclassified == "exclude":
            values = values[samples.right]
        return {"pass": mean(values)}


def get(metric, bounds=None):
    """A metric from its name or its attack.

    Args:
        metric: a `Metric`, which is returned as it is; an attack: with an
            `eps` it becomes an `AccuracyUnder`, else a `Distance`; or a name:

            - "accuracy";
            - "rho2", "l2": `Distance(DeepFool())`, and so for any norm, as
              "rho1", "rho1.5" or "rhoinf";
            - "fgsm_rho" (the paper's rho_inf), "fgsm_eps", "eps_ref":
              `SmallestEps()`;
            - "fgsm": `EpsSweep` at 20 eps up to 0.4 of the valid range;
            - "pgd": `AccuracyUnder` PGD in l_inf with 40 steps, at eps a
              tenth of the valid range;
            - "cw": `Distance` by `CarliniWagnerL2`, as `cw_rho2`, `cw_l2`;
            - "pass": `PASS` of DeepFool's images.
        bounds: (low, high), the valid range of the inputs. "fgsm", "pgd" and
            "pass" need it; PGD and C&W keep to it, DeepFool and FGSM, as in
            the paper, do not.

    Returns:
        A `Metric`.

    Raises:
        ValueError: if the name is not known, or bounds are missing.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, attacks.Attack):
        sized = hasattr(metric, "eps")
        return AccuracyUnder(metric) if sized else Distance(metric)
    bounds = validation.validate_bounds(bounds)
    if metric in ("fgsm", "pgd", "pass") and bounds is None:
        raise ValueError(
            f"bounds: the metric {metric!r} needs the valid range of the "
            "inputs, (low, high); received None."
        )
    width = (
        None if bounds is None else float(np.max(np.subtract(*bounds[::-1])))
    )
    known = {
        "accuracy": Accuracy,
        **dict.fromkeys(("fgsm_rho", "fgsm_eps", "eps_ref"), SmallestEps),
        "fgsm": lambda: EpsSweep(width * _SWEEP),
        "pgd": lambda: AccuracyUnder(
            attacks.PGD(_PGD_EPS * width, bounds=bounds)
        ),
        "cw": lambda: Distance(attacks.CarliniWagnerL2(bounds=bounds), "cw_"),
        "pass": lambda: PASS(bounds=bounds),
    }
    if isinstance(metric, str) and metric in known:
        return known[metric]()
    if metric == "rho_inf":
        raise ValueError(
            "metrics: 'rho_inf' could be two things; expected 'fgsm_rho', the "
            "paper's rho_inf: the smallest eps of FGSM over ||x||_inf (its "
            "length is 'fgsm_eps'), or 'rhoinf', DeepFool in l_inf."
        )
    norm = re.fullmatch(r"(?:rho|l)(inf|\d+(?:\.\d+)?)", str(metric))
    if norm and float(norm[1]) >= 1:
        return Distance(attacks.DeepFool(float(norm[1])))
    raise ValueError(
        f"metrics: expected names of {sorted({*known, 'rho<p>', 'l<p>'})} "
        "(rho<p> for a norm p, as rho2 or rhoinf), attacks or Metric objects; "
        f"received {metric!r}."
    )


def contradictions(metrics, samples):
    """Distances that a weaker attack finds shorter: list of str."""
    distances = [m for m in metrics if isinstance(m, Distance)]
    found = []
    for strong in distances:
        if not isinstance(strong.attack, attacks.CarliniWagnerL2):
            continue
        for weak in distances:
            alike = (weak.attack.norm, weak.attack.bounds) == (
                strong.attack.norm,
                strong.attack.bounds,
            )
            if not alike or isinstance(weak.attack, attacks.CarliniWagnerL2):
                continue
            longer = np.mean(samples.values[strong.length])
            shorter = np.mean(samples.values[weak.length])
            if longer > (1 + _SUSPICIOUS) * shorter:
                found.append(
                    f"{strong.length}: {longer:.4g} is longer than the "
                    f"{shorter:.4g} of the weaker attack behind {weak.length}. "
                    "Gradients mislead it, or it needs more steps."
                )
    return found


def mean(values):
    """The mean of (N,) values, with a normal approximation's interval.

    Of a single value there is no interval.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    value = float(np.mean(values)) if n else math.nan
    error = math.nan
    if n > 1:
        error = _Z * float(np.std(values)) / math.sqrt(n - 1)
    return Estimate(value, value - error, value + error)


def proportion(values):
    """The share of (N,) booleans that is true, with Wilson's interval."""
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, True)
    share = float(np.mean(values))
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = share * (1 - share) / n + (_Z / (2 * n)) ** 2
    error = _Z * math.sqrt(spread) / (1 + _Z**2 / n)
    return Estimate(
        share, max(0.0, centre - error), min(1.0, centre + error), True
    )


def median(values):
    """The smallest value that half of (N,) values do not exceed.

    Its interval are order statistics. Infinite values, as of samples that
    nothing fooled, count; one that is infinite, or further out than there
    are samples, becomes NaN.
    """
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    reach = _Z * math.sqrt(n) / 2

    def ranked(rank):
        rank = math.ceil(rank)
        known = 1 <= rank <= n and math.isfinite(values[rank - 1])
        return float(values[rank - 1]) if known else math.nan

    return Estimate(ranked(n / 2), ranked(n / 2 - reach), ranked(n / 2 + reach))


def _validate_attack(attack, *settings):
    """Checks for an untargeted attack that has these settings."""
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


def _unfooled(name, samples):
    """A warning, where an attack left samples as they were."""
    left = np.mean(~samples.values[f"{name}_fooled"])
    if left <= _SUSPICIOUS:
        return []
    return [
        f"{name}: the attack did not change the decision on {100 * left:.1f} "
        "% of the samples; what it did there counts as their distance, which "
        "says nothing of how robust they are."
    ]
