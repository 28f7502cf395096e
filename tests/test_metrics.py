"""Metrics against closed forms on affine classifiers, and made-up samples."""

import json
import math
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from scipy import stats

from dd_keras import attacks
from dd_keras.evaluation import evaluate_robustness
from dd_keras.evaluation.metrics import (
    PASS,
    POLICIES,
    Accuracy,
    AccuracyUnderAttack,
    Distance,
    EpsSweep,
    Samples,
    SmallestEps,
    get,
)
from dd_keras.evaluation.naming import with_unique_names
from dd_keras.evaluation.reliability import contradictions
from dd_keras.evaluation.statistics import Estimate, mean, median, proportion

SAMPLES = 60
DIMENSIONS = 7
OVERSHOOT = 1.02
DUAL = {1: np.inf, 2: 2, np.inf: 1}


class Affine:
    """An affine classifier, samples, labels, and what theory says of them."""

    def __init__(self, classes, seed=0, box=math.inf):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(DIMENSIONS, classes))
        self.biases = rng.normal(size=classes)
        self.model = affine_classifier(self.weights, self.biases)
        self.x = rng.normal(size=(SAMPLES, DIMENSIONS)).clip(-box, box)
        self.f = self.x @ self.weights + self.biases
        self.predictions = self.f.argmax(axis=1)
        # Two of three are labelled as they are classified.
        self.correct = np.arange(SAMPLES) % 3 > 0
        self.y = np.where(
            self.correct, self.predictions, (self.predictions + 1) % classes
        )

    def evaluate(self, *chosen, y=None, **kwargs):
        y = self.y if y is None else y
        dataset = tf.data.Dataset.from_tensor_slices((self.x, y)).batch(25)
        return evaluate_robustness(
            self.model, dataset, metrics=chosen, verbose=0, **kwargs
        )

    def gaps(self):
        """Per sample: the other classes' gaps (n-1,) and slopes (D, n-1)."""
        for row, s in zip(self.f, self.predictions, strict=True):
            others = np.arange(len(row)) != s
            slopes = self.weights[:, others] - self.weights[:, [s]]
            yield row[s] - row[others], slopes

    def distances(self, p):
        """To the nearest boundary, in l_p."""
        return np.array(
            [
                np.min(gap / np.linalg.norm(slopes, ord=DUAL[p], axis=0))
                for gap, slopes in self.gaps()
            ]
        )

    def signs(self):
        """FGSM's directions: up the loss of the predicted class."""
        directions = []
        for gap, slopes in self.gaps():
            others = np.exp(-gap) / np.sum(np.exp(-gap))  # softmax
            directions.append(np.sign(slopes @ others))
        return np.array(directions)

    def smallest_eps(self):
        """Where FGSM's ray first meets a boundary."""
        roots = []
        for (gap, slopes), sign in zip(self.gaps(), self.signs(), strict=True):
            speeds = sign @ slopes
            roots.append(np.min(gap[speeds > 0] / speeds[speeds > 0]))
        return np.array(roots)


@pytest.fixture(scope="module")
def two():
    return Affine(2)


@pytest.fixture(scope="module")
def five():
    return Affine(5, seed=1)


def counted(affine, distances, misclassified):
    """The distances that count, by the policy."""
    return {
        "predicted": distances,
        "zero": np.where(affine.correct, distances, 0),
        "exclude": distances[affine.correct],
    }[misclassified]


def made(right, misclassified="predicted", **values):
    """Samples as an evaluation might have found them."""
    arrays = {name: np.array(column) for name, column in values.items()}
    return Samples(arrays, np.array(right), misclassified)


def values_of(estimates):
    return {name: estimate.value for name, estimate in estimates.items()}


# Closed forms


@pytest.mark.slow
@pytest.mark.parametrize("misclassified", POLICIES)
def test_accuracy_and_distances_are_the_closed_forms(five, misclassified):
    norms = (1, 2, np.inf)
    summary = five.evaluate(
        Accuracy(),
        *(Distance(attacks.DeepFool(p)) for p in norms),
        misclassified=misclassified,
    ).summary()
    assert summary["accuracy"] == np.mean(five.correct) == 40 / 60
    for p in norms:
        length = OVERSHOOT * five.distances(p)
        share = length / np.linalg.norm(five.x, ord=p, axis=1)
        for name, distances in ((f"l{p:g}", length), (f"rho{p:g}", share)):
            expected = np.mean(counted(five, distances, misclassified))
            assert summary[name] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_two_distances_in_one_norm_stand_side_by_side(five):
    found = five.evaluate(
        Distance(attacks.DeepFool()),
        Distance(attacks.DeepFool(overshoot=0.5), "far_"),
    )
    assert list(found.summary()) == [
        "rho2", "l2", "rho2_fooled", "far_rho2", "far_l2", "far_rho2_fooled",
        "samples",
    ]  # fmt: skip
    assert {"far_rho2_iterations", "rho2_iterations"} < set(found.values)
    np.testing.assert_allclose(
        found.values["far_l2"], 1.5 / OVERSHOOT * found.values["l2"], rtol=1e-9
    )


@pytest.mark.parametrize("misclassified", POLICIES)
@pytest.mark.parametrize("classes", [2, 5])
def test_smallest_eps_is_the_closed_form(request, classes, misclassified):
    affine = request.getfixturevalue({2: "two", 5: "five"}[classes])
    eps_max, tolerance = 8.0, 1e-4
    found = affine.evaluate(
        SmallestEps(attacks.MinimalFGSM(eps_max, tolerance=tolerance)),
        misclassified=misclassified,
    )
    smallest = affine.smallest_eps()
    if classes == 2:  # FGSM's direction is the best there is
        np.testing.assert_allclose(smallest, affine.distances(np.inf))
    assert smallest.max() < eps_max
    off = found.values["fgsm_eps"] - smallest
    assert np.all(off >= -1e-9)
    assert np.all(off <= tolerance * eps_max)
    assert np.all(found.values["fgsm_rho_fooled"])

    summary = found.summary()
    slack = pytest.approx(tolerance * eps_max / 2, rel=1)  # [0, tolerance]
    expected = np.mean(counted(affine, smallest, misclassified))
    assert summary["fgsm_eps"] - expected == slack
    # The 30th of 60, of which the 20 misclassified are the first.
    half = np.sort(np.where(affine.correct, smallest, 0))[29]
    assert half > 0
    assert summary["eps_ref"] - half == slack


def test_half_of_the_samples_are_misclassified_at_eps_ref(five):
    eps_ref = five.evaluate("eps_ref").summary()["eps_ref"]
    around = EpsSweep([0.999 * eps_ref, 1.001 * eps_ref])
    below, above = list(five.evaluate(around).summary().values())[:2]
    assert above == 0.5
    assert below > 0.5


def test_eps_ref_needs_half_of_the_samples_to_be_fooled(five):
    smallest = np.where(five.correct, five.smallest_eps(), 0)
    ranked = np.sort(smallest)
    for below, known in ((29, False), (30, True)):
        eps_max = float(ranked[below - 1 : below + 1].mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = five.evaluate(SmallestEps(attacks.MinimalFGSM(eps_max)))
        summary = found.summary()
        assert (summary["eps_ref"] is not None) == known
        # Whom no eps fools counts in the mean with the largest tried.
        expected = np.mean(np.minimum(five.smallest_eps(), eps_max))
        assert summary["fgsm_eps"] == pytest.approx(expected, abs=1e-3)


def test_half_of_the_samples_wrong_have_eps_ref_zero(five):
    wrong = (five.predictions + 1) % 5
    y = np.where(np.arange(SAMPLES) < 30, wrong, five.predictions)
    for misclassified in POLICIES:
        summary = five.evaluate(
            "eps_ref", y=y, misclassified=misclassified
        ).summary()
        assert summary["eps_ref"] == 0.0


@pytest.mark.parametrize("misclassified", POLICIES)
def test_sweep_is_the_share_with_a_larger_smallest_eps(five, misclassified):
    smallest = five.smallest_eps()
    all_eps = [0.5, 0.01, 0.1, 2.0]
    found = five.evaluate(EpsSweep(all_eps), misclassified=misclassified)
    assert found.values["fgsm_fooled"].shape == (SAMPLES, 4)
    for eps, fooled in zip(all_eps, found.values["fgsm_fooled"].T, strict=True):
        np.testing.assert_array_equal(fooled, smallest < eps)
        not_fooled = smallest > eps
        expected = {
            "predicted": np.mean(not_fooled & five.correct),
            "zero": np.mean(not_fooled & five.correct),
            "exclude": np.mean(not_fooled[five.correct]),
        }[misclassified]
        assert found.summary()[f"fgsm_accuracy@{eps:g}"] == expected
    assert 0.1 < found.summary()["fgsm_accuracy@0.1"] < 0.9


def test_sweep_keeps_each_eps_to_the_bounds():
    affine = Affine(5, seed=1, box=1)
    low, high = np.full(DIMENSIONS, -1.0), np.linspace(1, 2, DIMENSIONS)
    all_eps = (0.2, 0.4, 1.0)
    metric = EpsSweep(all_eps, (low, high))
    found = affine.evaluate(metric).values["fgsm_fooled"]
    for i, eps in enumerate(all_eps):
        x = np.clip(affine.x + eps * affine.signs(), low, high)
        f = x @ affine.weights + affine.biases
        np.testing.assert_array_equal(
            found[:, i], f.argmax(axis=1) != affine.predictions
        )
    unbounded = affine.smallest_eps()[:, None] < all_eps
    assert np.sum(unbounded & ~found) > 3


@pytest.mark.slow
@pytest.mark.parametrize("misclassified", POLICIES)
@pytest.mark.parametrize("p", [2, np.inf])
def test_accuracy_under_pgd_is_the_share_further_away(two, p, misclassified):
    distances = two.distances(p)
    ranked = np.sort(distances)
    i = 20 + np.argmax(np.diff(ranked)[20:40])  # the widest gap
    eps = float(ranked[i : i + 2].mean())
    found = two.evaluate(
        AccuracyUnderAttack(attacks.PGD(eps, norm=p)),
        misclassified=misclassified,
    )
    np.testing.assert_array_equal(found.values["pgd_fooled"], distances < eps)
    # On an affine classifier of two classes a single step is as good.
    np.testing.assert_array_equal(found.values["pgd_weaker"], distances < eps)
    further = distances > eps
    expected = {
        "predicted": np.mean(further & two.correct),
        "zero": np.mean(further & two.correct),
        "exclude": np.mean(further[two.correct]),
    }[misclassified]
    assert found.summary()["pgd_accuracy"] == expected
    assert 0.1 < expected < 0.9


@pytest.mark.slow
def test_weaker_attacks_are_a_step_and_noise_of_the_same_size(five):
    attack = attacks.PGD(0.3, norm=2, bounds=(-4.0, 4.0))
    found = five.evaluate(AccuracyUnderAttack(attack, "mine"), Accuracy())
    assert list(found.summary()) == ["mine_accuracy", "accuracy", "samples"]
    # From the classes predicted, as the attack itself.
    size = {"eps": 0.3, "norm": 2, "bounds": (-4.0, 4.0)}
    single = attacks.PGD(
        **size, steps=1, step_size=0.3, random_start=False
    ).run(five.model, five.x, batch_size=25)
    noise = attacks.RandomNoise(**size).run(five.model, five.x, batch_size=25)
    weaker = single.fooled.numpy() | noise.fooled.numpy()
    np.testing.assert_array_equal(found.values["mine_weaker"], weaker)
    assert 3 < weaker.sum() < SAMPLES - 3
    assert not np.any(weaker & ~found.values["mine_fooled"])


def test_noise_alone_betrays_gradients_that_vanish():
    """A cliff beside all inputs, where the gradient is zero."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
    model.set_weights(  # f(x) = (0.5, 100 relu(-x - 0.05))
        [
            np.array([[-1.0]]),
            np.array([-0.05]),
            np.array([[0.0, 100.0]]),
            np.array([0.5, 0.0]),
        ]
    )
    dataset = tf.data.Dataset.from_tensors(
        (
            # Not all alike, as equal samples get equal noise.
            np.linspace(0.01, 0.011, 50, dtype=np.float32)[:, None],
            np.zeros(50, np.int32),
        )
    )
    metric = AccuracyUnderAttack(attacks.PGD(0.1, random_start=False))
    with pytest.warns(UserWarning, match="gradient"):
        report = evaluate_robustness(model, dataset, metrics=metric, verbose=0)
    weaker = report.values["pgd_weaker"]
    assert not report.values["pgd_fooled"].any()
    assert 10 < weaker.sum() < 40
    share = 100 * np.mean(weaker)
    (warning,) = (w for w in report.warnings if w.startswith("pgd: "))
    assert (
        f"fools {share:.1f} % of the samples, the attack only 0.0 %" in warning
    )


# Samples that are misclassified without attack, by hand


@pytest.mark.parametrize(
    ("misclassified", "rho", "length", "ratio", "eps", "fgsm", "pgd", "alike"),
    [
        ("predicted", 0.25, 2.5, 1.375 / 4, 0.5, (0.5, 0.25), 0.25, 0.5),
        ("zero", 0.125, 1.25, 0.875 / 4, 0.375, (0.5, 0.25), 0.25, 0.5),
        ("exclude", 0.5 / 3, 5 / 3, 0.875 / 3, 0.5, (2 / 3, 1 / 3), 1 / 3, 0.6),
    ],
)
def test_misclassified_samples_count_by_the_policy(
    misclassified, rho, length, ratio, eps, fgsm, pgd, alike
):
    samples = made(
        [True, False, True, True],
        misclassified,
        rho2=[0.1, 0.5, 0.2, 0.2],
        l2=[1.0, 5.0, 2.0, 2.0],
        rho2_fooled=[True, True, True, False],
        fgsm_eps=[0.5, 0.5, 0.75, 0.25],
        fgsm_rho=[0.25, 0.5, 0.5, 0.125],
        fgsm_rho_fooled=[True, True, True, True],
        # The second sample is wrong, whatever an attack makes of it.
        fgsm_fooled=[
            [False, True],
            [False, False],
            [True, True],
            [False, False],
        ],
        pgd_fooled=[True, False, True, False],
        **{"pass": [0.4, 0.2, 0.6, 0.8]},
    )
    assert values_of(Accuracy().estimates(samples)) == {"accuracy": 0.75}
    assert values_of(Distance(attacks.DeepFool()).estimates(samples)) == {
        "rho2": pytest.approx(rho),
        "l2": pytest.approx(length),
        "rho2_fooled": 0.75,
    }
    assert values_of(SmallestEps().estimates(samples)) == {
        "fgsm_rho": pytest.approx(ratio),
        "fgsm_eps": pytest.approx(eps),
        "eps_ref": 0.25,
    }
    assert values_of(EpsSweep([1, 2]).estimates(samples)) == {
        "fgsm_accuracy@1": pytest.approx(fgsm[0]),
        "fgsm_accuracy@2": pytest.approx(fgsm[1]),
    }
    assert values_of(
        AccuracyUnderAttack(attacks.PGD(1)).estimates(samples)
    ) == {"pgd_accuracy": pytest.approx(pgd)}
    assert values_of(PASS(bounds=(0, 1)).estimates(samples)) == {
        "pass": pytest.approx(alike)
    }


@pytest.mark.slow
def test_all_samples_misclassified_and_excluded_leave_no_number(five):
    wrong = (five.predictions + 1) % 5
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's
        report = five.evaluate(
            "accuracy", "rho2", "fgsm_rho", EpsSweep([0.1, 0.2]),
            AccuracyUnderAttack(attacks.PGD(0.3)),
            y=wrong, misclassified="exclude",
        )  # fmt: skip
        summary, intervals = report.summary(), report.intervals()
        table = report.table()
    over_all = {"accuracy": 0.0, "rho2_fooled": 1.0, "eps_ref": 0.0}
    counts = {**over_all, "samples": SAMPLES}
    for name, value in summary.items():
        assert value == counts.get(name)
    for name, interval in intervals.items():
        assert (interval == [None, None]) == (name not in over_all)
    line = next(
        line for line in table.splitlines() if line.startswith("pgd_acc")
    )
    assert line.split()[:5] == ["pgd_accuracy", "-", "-", "to", "-"]


# Estimates


def test_wilson_interval_has_known_values():
    found = proportion(np.array([True] * 8 + [False] * 2))
    assert found == pytest.approx((0.8, 0.4901625, 0.9433178, True), rel=1e-6)
    assert (found.text(), found.interval_text()) == (
        "80.00 %",
        "49.02 % to 94.33 %",
    )


@pytest.mark.parametrize("n", [1, 2, 7, 100, 10_000])
def test_wilson_interval_is_that_of_scipy(n):
    for k in {0, 1, n // 3, n}:
        value, low, high, is_proportion = proportion(np.arange(n) < k)
        known = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert (value, is_proportion) == (k / n, True)
        assert (low, high) == pytest.approx(known, rel=1e-6, abs=1e-12)
        assert 0 <= low <= value <= high <= 1


def test_mean_has_a_normal_interval():
    found = mean(np.array([1, 2, 3, 4, 5], np.float32))
    error = stats.sem([1, 2, 3, 4, 5]) * stats.norm.ppf(0.975)
    assert found == pytest.approx((3, 3 - error, 3 + error, False), rel=1e-6)


def test_mean_of_many_small_numbers_is_taken_in_float64():
    values = np.full(1_000_003, 0.1, np.float32)
    assert mean(values).value == pytest.approx(float(np.float32(0.1)), 1e-12)


@pytest.mark.parametrize(
    ("n", "value", "low", "high"),
    [(4, 2, 1, 4), (5, 3, 1, 5), (10, 5, 2, 9), (100, 50, 41, 60)],
)
def test_median_and_its_interval_are_order_statistics(n, value, low, high):
    ranks = np.random.default_rng(0).permutation(n) + 1.0
    assert median(ranks) == (value, low, high, False)


@pytest.mark.parametrize("n", [6, 10, 15, 100, 1001, 5000])
def test_median_interval_holds_the_median_in_95_percent(n):
    _, low, high, _ = median(np.arange(1, n + 1))
    # The median is below the r-th of n values if fewer than r are below it.
    inside = stats.binom.cdf(high - 1, n, 0.5) - stats.binom.cdf(
        low - 1, n, 0.5
    )
    assert inside > 0.94
    narrower = stats.binom.cdf(high - 2, n, 0.5) - stats.binom.cdf(low, n, 0.5)
    assert narrower < 0.95


def test_infinite_values_count_in_the_median():
    values = np.array([1.0, 2, 3, 4, 5, 6, np.inf, np.inf, np.inf, np.inf])
    value, low, high, _ = median(values)
    assert (value, low) == (5, 2)
    assert math.isnan(high)
    assert math.isnan(median(np.full(10, np.inf)).value)
    assert math.isnan(median(np.array([1.0, np.inf, np.inf])).value)


@pytest.mark.parametrize("estimate", [mean, median], ids=["mean", "median"])
def test_one_value_has_no_interval(estimate):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's
        found = estimate(np.array([2.5]))
    assert found.value == 2.5
    assert np.all(np.isnan([found.low, found.high]))
    assert (found.text(), found.interval_text()) == ("2.500", "- to -")


@pytest.mark.parametrize(
    "estimate", [mean, median, proportion], ids=["mean", "median", "share"]
)
def test_no_value_has_no_estimate(estimate):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's
        found = estimate(np.zeros(0))
    assert np.all(np.isnan(found[:3]))
    assert found.text() == "-"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.000"),
        (0.012344, "0.01234"),
        (12.3, "12.30"),
        (1234.4, "1234"),
        (123456.0, "1.235e+05"),
        (1e-7, "1.000e-07"),
    ],
)
def test_numbers_are_shown_to_four_digits(number, text):
    assert Estimate(number, 0, 1).text() == text


# By name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", Accuracy()),
        ("rho2", Distance(attacks.DeepFool(2))),
        ("l2", Distance(attacks.DeepFool(2))),
        ("rho1", Distance(attacks.DeepFool(1))),
        ("l1.5", Distance(attacks.DeepFool(1.5))),
        ("rhoinf", Distance(attacks.DeepFool(np.inf))),
        ("linf", Distance(attacks.DeepFool(np.inf))),
        ("fgsm_rho", SmallestEps(attacks.MinimalFGSM())),
        ("fgsm_eps", SmallestEps(attacks.MinimalFGSM())),
        ("eps_ref", SmallestEps(attacks.MinimalFGSM())),
        ("fgsm", EpsSweep(np.arange(1, 21) * 0.02 * 4)),
        (
            "pgd",
            AccuracyUnderAttack(attacks.PGD(0.4, steps=40, bounds=(-1, 3))),
        ),
        ("pass", PASS(attacks.DeepFool(), (-1, 3))),
    ],
)
def test_every_name_has_its_metric(name, expected):
    found = get(name, (-1, 3))
    assert type(found) is type(expected)
    if name == "fgsm":
        np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-12)
        assert found.attack.bounds is None  # as in the paper
    else:
        assert found == expected


def test_carlini_wagner_has_a_name():
    found = get("cw", (-1, 3))
    assert isinstance(found, Distance)
    assert found.attack == attacks.CarliniWagnerL2(bounds=(-1, 3))
    assert (found.name, found.distance_name) == ("cw_rho2", "cw_l2")
    assert get("cw").attack == attacks.CarliniWagnerL2()


def test_width_is_that_of_the_widest_input():
    low, high = np.zeros((2, 2)), np.array([[1.0, 2.0], [5.0, 3.0]])
    assert get("pgd", (low, high)).attack.eps == pytest.approx(0.5)
    assert get("fgsm", (low, high)).eps[-1] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (attacks.FGSM(0.1), ("fgsm", AccuracyUnderAttack)),
        (attacks.PGD(0.1), ("pgd", AccuracyUnderAttack)),
        (attacks.BIM(0.1), ("bim", AccuracyUnderAttack)),
        (attacks.RandomNoise(0.1), ("randomnoise", AccuracyUnderAttack)),
        (attacks.DeepFool(1), ("rho1", Distance)),
        (attacks.MinimalFGSM(), ("rhoinf", Distance)),
    ],
)
def test_attack_becomes_the_metric_of_its_kind(attack, expected):
    found = get(attack)
    assert (found.name, type(found)) == expected
    assert found.attack is attack


def test_metric_passes_through():
    metric = EpsSweep([1])
    assert get(metric) is metric


KNOWN = (
    "metrics: expected names of ['accuracy', 'adaptive', 'autoattack', 'cw', "
    "'eps_ref', 'fgsm', 'fgsm_eps', 'fgsm_rho', 'l<p>', 'l<p>_best', "
    "'paper_eps_ref', 'paper_fgsm', 'paper_fgsm_eps', 'paper_fgsm_rho', "
    "'pass', 'pgd', 'rho<p>', 'rho<p>_best'] (rho<p> for a norm p, as rho2 or "
    "rhoinf), attacks or Metric objects; received "
)


@pytest.mark.parametrize(
    "unknown",
    [
        "roh2", "rho", "rho<p>", "rho0.5", "rho-1", "rho1.", "RHO2", "rhonan",
        "", None, 2, ["rho2"],
    ],
)  # fmt: skip
def test_unknown_name_lists_the_names(unknown):
    with pytest.raises(ValueError, match=re.escape(f"{KNOWN}{unknown!r}.")):
        get(unknown, (0, 1))


@pytest.mark.parametrize(
    "name", ["fgsm", "paper_fgsm", "pgd", "autoattack", "adaptive", "pass"]
)
def test_missing_bounds_are_named(name):
    with pytest.raises(
        ValueError,
        match=rf"^bounds: the metric '{name}' needs the valid range of the "
        r"inputs, \(low, high\); received None\.$",
    ):
        get(name)


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpsSweep([]), "eps: expected one or more numbers, each once"),
        (lambda: EpsSweep([0.1, 0.1]), "eps: expected one or more numbers"),
        (lambda: EpsSweep([1, 1 + 1e-9]), "eps: expected one or more numbers"),
        (lambda: EpsSweep([0.1, 0]), "eps: expected a finite number > 0; .* 0"),
        (lambda: EpsSweep([1], (1, 0)), r"bounds: expected a pair"),
        (lambda: PASS(), "bounds: expected the inputs that are pixels 0 and"),
        (lambda: PASS(bounds=(1, 0)), "bounds: expected a pair"),
        (
            lambda: AccuracyUnderAttack(attacks.DeepFool()),
            "attack: expected an untargeted attack with eps and norm; "
            r"received DeepFool\(",
        ),
        (
            lambda: Distance("rho2"),
            "attack: expected an untargeted attack with norm; received 'rho2'",
        ),
        (
            lambda: PASS("rho2", (0, 1)),
            "attack: expected an untargeted attack; received 'rho2'",
        ),
        (
            lambda: SmallestEps("fgsm"),
            "attack: expected an untargeted attack; received 'fgsm'",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("kind", [attacks.FGSM, attacks.BIM, attacks.PGD])
def test_targeted_attack_is_refused(kind):
    # It starts at its goal, the class predicted: all would count as fooled.
    with pytest.raises(
        ValueError,
        match=r"^attack: expected an untargeted attack with eps and norm; "
        r"received .*targeted=True",
    ):
        get(kind(0.1, targeted=True))


# Serialisation

PIXELWISE = (np.zeros((2, 2, 1)), np.array([[[1], [2]], [[3], [4]]]))
ALL = [
    lambda: Accuracy(),
    lambda: Distance(attacks.DeepFool(1.5, max_iter=3)),
    lambda: Distance(attacks.DeepFool(np.inf, bounds=(0, 1)), "bounded_"),
    lambda: SmallestEps(),
    lambda: SmallestEps(attacks.MinimalFGSM(3, steps=5, bounds=PIXELWISE)),
    lambda: EpsSweep([0.5, 0.25]),
    lambda: EpsSweep(np.float32([0.5, 0.25]), PIXELWISE),
    lambda: AccuracyUnderAttack(attacks.PGD(0.1, bounds=(0, 1))),
    lambda: AccuracyUnderAttack(attacks.PGD(0.1, norm=2, seed=3), "pgd_2"),
    lambda: AccuracyUnderAttack(attacks.FGSM(0.1)),
    lambda: PASS(bounds=(0, 255)),
    lambda: PASS(attacks.FGSM(0.1), PIXELWISE),
    lambda: get("cw", (0, 1)),
]


@pytest.mark.parametrize("make", ALL)
def test_metric_survives_serialisation(make):
    metric = make()
    config = keras.saving.serialize_keras_object(metric)
    assert config["registered_name"].startswith("dd_keras>")
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    assert again == metric
    assert hash(again) == hash(metric)
    assert (again.name, again.attack) == (metric.name, metric.attack)
    assert again.get_config() == metric.get_config()


def test_metrics_are_equal_if_their_settings_are():
    metrics = [make() for make in ALL]
    for i, make in enumerate(ALL):
        same = make()
        assert [metric == same for metric in metrics] == [
            j == i for j in range(len(ALL))
        ]
    assert len({*metrics, *(make() for make in ALL)}) == len(ALL)
    assert Accuracy() != "accuracy"
    assert Distance(attacks.DeepFool()) != attacks.DeepFool()
    assert repr(metrics[2]) == "Distance(name='bounded_rhoinf')"


# Doubts


@pytest.mark.parametrize(("unfooled", "warned"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Distance(attacks.DeepFool()), "rho2"),
        (Distance(attacks.DeepFool(), "my_"), "my_rho2"),
        (SmallestEps(), "fgsm_rho"),
    ],
)
def test_unfooled_samples_are_told_from_one_percent_on(
    metric, name, unfooled, warned
):
    fooled = np.arange(100) >= unfooled
    samples = made(np.full(100, True), **{f"{name}_fooled": fooled})
    found = metric.reliability_warnings(samples)
    assert len(found) == warned
    if warned:
        assert found[0].startswith(
            f"{name}: the attack did not change the decision on 2.0 % of the"
        )


@pytest.mark.parametrize(("missed", "warned"), [(1, False), (2, True)])
def test_weaker_attacks_that_do_better_are_told(missed, warned):
    place = np.arange(100)
    samples = made(
        np.full(100, True),
        pgd_fooled=place >= 50,
        # Fools others, too: not an attack that finds less in all.
        pgd_weaker=(place >= 60) | (place < 10 + missed),
    )
    found = AccuracyUnderAttack(attacks.PGD(0.1)).reliability_warnings(samples)
    assert len(found) == warned
    if warned:
        assert "fools 52.0 % of the samples, the attack only 50.0 %" in found[0]


def test_sound_metrics_give_no_reliability_warning():
    samples = made([True, False])
    for metric in (Accuracy(), EpsSweep([1]), PASS(bounds=(0, 1))):
        assert metric.reliability_warnings(samples) == []


@pytest.mark.parametrize(
    ("weak", "longer", "warned"),
    [
        (attacks.DeepFool(), 1.02, True),
        (attacks.DeepFool(), 1.009, False),
        # Another norm; and without bounds C&W could have found it, too:
        (attacks.DeepFool(1), 2, False),
        (attacks.DeepFool(bounds=(0, 1)), 1.02, True),
    ],
)
def test_distance_beyond_a_weaker_attacks_is_told(weak, longer, warned):
    strong, weak = get("cw"), Distance(weak)
    samples = made(
        [True, False],
        cw_l2=[1.0 * longer, 3.0 * longer],
        **{weak.distance_name: [2.5, 1.5]},
    )
    for order in ([strong, weak, Accuracy()], [weak, strong]):
        found = contradictions(order, samples)
        assert len(found) == warned
    if warned:
        assert found[0].startswith(
            "cw_l2: 2.04 is longer than the 2 of the weaker attack behind l2."
        )


@pytest.mark.parametrize(
    ("weak", "strong", "confined"),
    [
        (Distance(attacks.DeepFool()), get("cw"), ""),
        (Distance(attacks.DeepFool()), get("cw", (0, 1)), ", within bounds"),
        (get("cw"), get("l2_best"), ""),
        (get("cw"), get("l2_best", (0, 1)), ", within bounds"),
        # What an attack finds without bounds may be out of reach within.
        (Distance(attacks.DeepFool(bounds=(0, 1))), get("cw"), None),
        (get("cw", (0, 1)), get("l2_best"), None),
        (get("cw", (0, 2)), get("l2_best", (0, 1)), None),
    ],
)
def test_distance_that_a_stronger_attack_finds_shorter_is_told(
    weak, strong, confined
):
    samples = made(
        [True, False],
        **{weak.distance_name: [2.5, 1.5], strong.distance_name: [1.5, 2.4]},
    )
    found = contradictions([strong, Accuracy(), weak], samples)
    if confined is None:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(
        f"{weak.distance_name}: 2 is longer than the 1.95 of "
        f"{strong.distance_name}{confined}. It is not the distance"
    )


def test_two_strong_attacks_do_not_contradict_each_other():
    strong = [
        get("cw"), Distance(attacks.CarliniWagnerL2(), "other_"),
    ]  # fmt: skip
    samples = made([True], cw_l2=[1.0], other_l2=[2.0])
    assert contradictions(strong, samples) == []


# The paper's rho_inf, and names that are told apart


def test_fgsm_rho_is_the_ratio_of_each_sample(five):
    found = five.evaluate("fgsm_rho")
    largest = np.abs(five.x.reshape(len(five.x), -1)).max(axis=1)
    ratio = found.values["fgsm_eps"] / largest
    np.testing.assert_allclose(found.values["fgsm_rho"], ratio, rtol=1e-6)
    summary = found.summary()
    assert summary["fgsm_rho"] == pytest.approx(np.mean(ratio))
    assert summary["fgsm_rho"] != pytest.approx(
        summary["fgsm_eps"] / np.mean(largest), rel=1e-3
    )


def test_rho_inf_could_be_two_things_and_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^metrics: 'rho_inf' .* 'fgsm_rho', the paper's .* 'rhoinf'",
    ):
        get("rho_inf", (0, 1))


PGD, DEEPFOOL = attacks.PGD, attacks.DeepFool


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ([PGD(0.1)], ["pgd"]),
        ([PGD(0.1), PGD(0.1)], ["pgd"]),
        (["pgd", PGD(12.75)], ["pgd", "pgd_linf@12.75"]),
        ([PGD(12.75), PGD(25.5)], ["pgd_linf@12.75", "pgd_linf@25.5"]),
        ([PGD(1), PGD(1, norm=2)], ["pgd_linf@1", "pgd_l2@1"]),
        (
            [PGD(1, steps=20), PGD(1), PGD(2)],
            ["pgd_linf@1_steps=20", "pgd_linf@1_steps=40", "pgd_linf@2"],
        ),
        (
            [PGD(1), PGD(1, seed=1), PGD(1, bounds=(0, 1))],
            [
                "pgd_linf@1_bounds=None_seed=0",
                "pgd_linf@1_bounds=None_seed=1",
                "pgd_linf@1_bounds=0_to_1",
            ],
        ),
        (
            [attacks.FGSM(0.1), attacks.FGSM(0.2), attacks.BIM(0.1)],
            ["fgsm_linf@0.1", "fgsm_linf@0.2", "bim"],
        ),
        (
            ["rho2", DEEPFOOL(candidates=3), DEEPFOOL(candidates=5)],
            [
                "rho2",
                "deepfool_candidates=3_rho2",
                "deepfool_candidates=5_rho2",
            ],
        ),
        (
            [DEEPFOOL(np.inf), attacks.MinimalFGSM()],
            ["deepfool_rhoinf", "minimalfgsm_rhoinf"],
        ),
        (
            ["rho2", DEEPFOOL(max_iter=3, overshoot=0.1)],
            ["rho2", "deepfool_max_iter=3_rho2"],
        ),
    ],
)
def test_attacks_of_one_kind_get_names_of_their_own(metrics, names):
    found = with_unique_names(metrics, (0, 1))
    assert [m.name for m in found] == names
    # As a report keeps them.
    again = [type(m).from_config(m.get_config()) for m in found]
    assert [m.name for m in again] == names
    # Their order is that of the metrics; a name does not depend on it.
    backwards = with_unique_names(metrics[::-1], (0, 1))
    assert {m.name for m in backwards} == set(names)


def test_arrays_are_named_by_a_few_digits():
    settings = [(np.zeros(1000), np.full(1000, high)) for high in (1.0, 2.0)]
    found = with_unique_names([PGD(1, bounds=b) for b in settings])
    one, other = (m.name for m in found)
    assert one != other
    assert max(len(one), len(other)) < 60


def test_two_metrics_of_a_given_name_are_refused():
    given = [
        AccuracyUnderAttack(PGD(1), "mine"),
        AccuracyUnderAttack(PGD(2), "mine"),
    ]
    with pytest.raises(
        ValueError,
        match=r"^metrics: expected one of each name; received two that differ "
        r"and are both named 'mine'\. Give one another name= ",
    ):
        with_unique_names(given)


def test_two_sizes_of_one_attack_stand_in_one_report(five):
    summary = five.evaluate(PGD(0.01), PGD(5.0)).summary()
    assert summary["pgd_linf@0.01_accuracy"] > summary["pgd_linf@5_accuracy"]
