"""Strong attacks as metrics: best known distances, AutoAttack, checks."""

import json
import math
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.evaluation import (
    AccuracyUnderAttack,
    AccuracyUnderTransfer,
    AdaptiveChecks,
    BestDistance,
    Distance,
    RobustnessReport,
    evaluate_robustness,
)
from dd_keras.evaluation.metrics import POLICIES, Samples, get
from dd_keras.evaluation.reliability import reliability_warnings
from dd_keras.evaluation.statistics import (
    difference_of_proportions,
    proportion,
    ratio_of_means,
)

SAMPLES, DIMENSIONS, CLASSES = 40, 6, 5
BOUNDS = (-1.0, 1.0)


class Affine:
    """An affine classifier, samples in the box, and the distances."""

    def __init__(self, seed=3):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(DIMENSIONS, CLASSES))
        self.model = affine_classifier(self.weights, np.zeros(CLASSES))
        self.x = rng.uniform(-0.6, 0.6, (SAMPLES, DIMENSIONS))
        logits = self.x @ self.weights
        self.predictions = logits.argmax(axis=1)
        self.correct = np.arange(SAMPLES) % 4 > 0
        self.y = np.where(
            self.correct, self.predictions, (self.predictions + 1) % CLASSES
        )
        self.logits = logits

    def distances(self, dual):
        """To the nearest boundary, without bounds."""
        found = []
        for row, s in zip(self.logits, self.predictions, strict=True):
            others = np.arange(CLASSES) != s
            slopes = self.weights[:, others] - self.weights[:, [s]]
            lengths = np.linalg.norm(slopes, ord=dual, axis=0)
            found.append(np.min((row[s] - row[others]) / lengths))
        return np.array(found)

    def evaluate(self, *metrics, **kwargs):
        return evaluate_robustness(
            self.model, self.x, self.y, metrics, verbose=0, **kwargs
        )


@pytest.fixture(scope="module")
def affine():
    return Affine()


@pytest.fixture(scope="module")
def report(affine):
    """All that is known of the affine classifier, within bounds."""
    return affine.evaluate(
        "l2_best", "linf_best", bounds=BOUNDS, batch_size=SAMPLES
    )


# Best known distances


@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (math.inf, 1), (1, np.inf)])
def test_best_distance_is_the_closed_form(affine, norm, dual):
    name = f"l{norm:g}_best"
    found = affine.evaluate(name).values
    # Attacks go a little across the boundary.
    ratio = found[name] / affine.distances(dual)
    assert np.all(ratio >= 1)
    assert np.all(ratio <= 1.02)
    assert found[f"rho{norm:g}_best_fooled"].all()


def test_best_distance_is_the_shortest_of_its_attacks(affine, report):
    alone = {
        "deepfool": attacks.DeepFool(bounds=BOUNDS),
        "ddn": attacks.DDN(bounds=BOUNDS),
        "fab": attacks.FAB(2, bounds=BOUNDS),
    }
    lengths = []
    for attack in alone.values():
        found = attack.run(affine.model, affine.x)
        length = np.linalg.norm(found.perturbation, axis=1)
        lengths.append(np.where(found.fooled, length, np.inf))
    found = report.values
    np.testing.assert_allclose(found["l2_best"], np.min(lengths, axis=0))
    np.testing.assert_array_equal(
        found["rho2_best_found_by"], np.argmin(lengths, axis=0)
    )
    np.testing.assert_allclose(
        found["rho2_best"], found["l2_best"] / np.linalg.norm(affine.x, axis=1)
    )
    numbers = report.summary()
    shares = [numbers[f"rho2_best_by_{name}"] for name in alone]
    assert sum(shares) == pytest.approx(1)
    assert np.mean(found["rho2_best_found_by"] == 1) == shares[1]


def test_sample_that_nothing_fools_is_told():
    model = affine_classifier(np.zeros((DIMENSIONS, 3)), [1.0, 0, 0])
    x = np.full((4, DIMENSIONS), 0.1)
    with pytest.warns(UserWarning, match="rho2_best: the attack did not"):
        found = evaluate_robustness(
            model, x, np.zeros(4), "l2_best", bounds=BOUNDS, verbose=0
        )
    assert not found.values["rho2_best_fooled"].any()
    assert (found.values["rho2_best_found_by"] == -1).all()
    assert found.robust_accuracy([1e6], "l2_best")["accuracy"] == [1.0]


def test_attacks_of_one_norm_are_expected():
    with pytest.raises(ValueError, match=r"one norm; received .*\[2.0, inf\]"):
        BestDistance({"a": attacks.DDN(), "b": attacks.FAB(math.inf)})
    with pytest.raises(ValueError, match=r"one norm; received the norms \[\]"):
        BestDistance({})
    with pytest.raises(ValueError, match="expected an untargeted attack"):
        BestDistance({"a": attacks.DDN(targeted=True)})


@pytest.mark.parametrize("misclassified", POLICIES)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_robust_accuracy_is_read_off_the_distances(
    affine, report, misclassified, norm
):
    name = f"l{norm:g}_best"
    eps = np.quantile(report.values[name], [0.0, 0.3, 0.7, 1.0])
    again = RobustnessReport(report.metrics, misclassified, report.values)
    found = again.robust_accuracy(eps, name)
    robust = affine.correct[:, None] & (report.values[name][:, None] > eps)
    if misclassified == "exclude":
        robust = robust[affine.correct]
    np.testing.assert_allclose(found["accuracy"], robust.mean(axis=0))
    for i in range(len(eps)):
        _, low, high, _ = proportion(robust[:, i])
        assert (found["low"][i], found["high"][i]) == (low, high)
    # On an affine classifier an attack of that size finds the same.
    attack = attacks.APGD(float(eps[1]) * 1.02, norm, bounds=BOUNDS)
    direct = affine.evaluate(attack, misclassified=misclassified)
    near = np.abs(report.values[name] / eps[1] - 1) < 0.03
    share = direct.summary()["apgd_accuracy"]
    assert abs(share - found["accuracy"][1]) <= near.mean() + 0.01


def test_robust_accuracy_by_default_goes_from_all_to_none(report):
    found = report.robust_accuracy()
    assert found["eps"][0] == 0
    assert found["accuracy"][0] == 0.75  # those classified correctly
    assert found["accuracy"][-1] == 0
    assert np.all(np.diff(found["accuracy"]) <= 0)


def test_robust_accuracy_needs_a_distance_that_was_measured(report):
    with pytest.raises(
        ValueError,
        match=r"^distance: expected one .* \['l2_best', 'linf_best'\]; "
        r"received 'l2'\.$",
    ):
        report.robust_accuracy([1.0], "l2")


# AutoAttack


@pytest.fixture(scope="module")
def attacked(affine):
    attack = attacks.AutoAttack(
        0.2, version=["apgd-ce", "fab-t", "square"], bounds=BOUNDS
    )
    return attack, affine.evaluate(attack, batch_size=SAMPLES)


def test_autoattack_tells_what_each_attack_left(affine, attacked):
    attack, report = attacked
    alone = attack.run(affine.model, affine.x)
    found_by = report.values["autoattack_found_by"]
    np.testing.assert_array_equal(found_by, alone.found_by)
    numbers = report.summary()
    left = affine.correct
    for number, name in enumerate(["apgd-ce", "fab-t", "square"]):
        left = left & (found_by != number)
        share = numbers[f"autoattack_accuracy_after_{name}"]
        assert share == pytest.approx(left.mean())
    assert numbers["autoattack_accuracy"] == pytest.approx(left.mean())
    robust = affine.correct & (affine.distances(1) > 0.2)
    assert left.mean() == pytest.approx(robust.mean())


def test_square_alone_finding_something_is_told(attacked):
    metric = attacked[1].metrics[0]
    found_by = np.full(100, 0)
    values = {
        "autoattack_fooled": np.full(100, True),
        "autoattack_weaker": np.full(100, False),
        "autoattack_found_by": found_by,
    }
    samples = Samples(values, np.full(100, True), "predicted")
    assert metric.reliability_warnings(samples) == []
    found_by[:2] = 2
    (warning,) = metric.reliability_warnings(samples)
    assert warning.startswith("autoattack: Square, which uses no gradient, f")


@pytest.mark.parametrize(
    ("name", "norm"), [("autoattack", math.inf), ("pgd", math.inf)]
)
def test_attacks_by_name_have_a_tenth_of_the_range(name, norm):
    attack = get(name, (0, 255)).attack
    assert (attack.eps, attack.norm, attack.bounds) == (25.5, norm, (0, 255))


def test_reports_of_strong_attacks_come_back(affine, attacked, tmp_path):
    found = affine.evaluate("rho2_best", "adaptive", bounds=BOUNDS)
    for report in (attacked[1], found):
        report.to_json(tmp_path / "report.json")
        again = RobustnessReport.from_json(tmp_path / "report.json")
        assert again.metrics == report.metrics
        assert again.summary() == report.summary()
        assert again.costs == report.costs


# What a metric takes


_COUNTS = threading.Lock()


class Counting(keras.layers.Layer):
    """Counts the samples that really pass, forward and backward."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            noted = tf.py_function(self._note_forward, [x], tf.int32)
            with tf.control_dependencies([noted]):
                y = tf.identity(x)

            def gradient(upstream):
                noted = tf.py_function(
                    self._note_backward, [upstream], tf.int32
                )
                with tf.control_dependencies([noted]):
                    return tf.identity(upstream)

            return y, gradient

        y = identity(x)
        return tf.ensure_shape(y, x.shape)

    def _note_forward(self, x):
        with _COUNTS:  # TensorFlow calls this from several threads
            self.forward += len(x)
        return len(x)

    def _note_backward(self, x):
        with _COUNTS:
            self.backward += len(x)
        return len(x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    "metric",
    [
        "rho2", "fgsm_rho", "pgd", "cw", "rho2_best", "rhoinf_best",
        attacks.APGD(0.3, loss="dlr", bounds=BOUNDS),
        attacks.Square(0.3, queries=20, bounds=BOUNDS),
        attacks.SuperDeepFool(bounds=BOUNDS),
    ],
    ids=str,
)  # fmt: skip
def test_passes_are_those_that_were_run(affine, metric):
    """Beside one, forward and backward, that all metrics share."""
    counting = Counting()
    inputs = keras.Input((DIMENSIONS,), dtype="float64")
    dense = keras.layers.Dense(CLASSES, dtype="float64")
    model = keras.Model(inputs, dense(counting(inputs)))
    dense.set_weights(affine.model.layers[-1].get_weights())
    x = affine.x[:8]
    settings = {"bounds": BOUNDS, "verbose": 0, "batch_size": 8}
    evaluate_robustness(model, x, affine.y[:8], metric, **settings)  # traces
    counting.forward = counting.backward = 0
    found = evaluate_robustness(model, x, affine.y[:8], metric, **settings)
    (cost,) = found.costs.values()
    # The model's outputs are looked at twice, whether they are random.
    assert counting.forward == cost.forward + 8 + 2 * 8
    # DeepFool has one that is run for derivatives alone: this layer, which
    # does something by the way, keeps TensorFlow from leaving it out.
    unseen = 8 if "Fool" in repr(found.metrics[0].all_attacks) else 0
    assert counting.backward == cost.backward + 8 + unseen
    (seconds,) = found.seconds.values()
    assert seconds > 0


def test_costs_stand_in_the_table(affine, report):
    text = report.table()
    assert text.splitlines()[0].split()[-3:] == [
        "forward", "backward", "seconds"
    ]  # fmt: skip
    passes = f"{report.costs['rho2_best'].forward / SAMPLES:,.1f}"
    line = next(li for li in text.splitlines() if li.startswith("rho2_best "))
    assert line.split()[-3] == passes
    assert "forward" not in affine.evaluate("accuracy").table()


# Perturbations that are kept


@pytest.mark.parametrize(
    "metric",
    [
        Distance(attacks.DeepFool()),
        BestDistance({"ddn": attacks.DDN(), "fab": attacks.FAB(2)}),
        AccuracyUnderAttack(attacks.PGD(0.3, bounds=BOUNDS)),
    ],
)
def test_perturbations_are_kept_in_npz_alone(affine, metric, tmp_path):
    kept = metric.keeping_perturbations()
    found = affine.evaluate(kept)
    perturbation = found.values[f"{metric.name}_perturbation"]
    logits = (affine.x + perturbation) @ affine.weights
    np.testing.assert_array_equal(
        logits.argmax(axis=1) != affine.predictions,
        found.values[f"{metric.name}_fooled"],
    )
    found.to_npz(tmp_path / "report.npz")
    with np.load(tmp_path / "report.npz") as arrays:
        np.testing.assert_array_equal(
            arrays[f"{metric.name}_perturbation"], perturbation
        )
    found.to_json(tmp_path / "report.json")
    content = (tmp_path / "report.json").read_text()
    assert f'"{metric.name}_perturbation"' not in content
    assert RobustnessReport.from_json(tmp_path / "report.json").summary() == (
        found.summary()
    )
    assert get("accuracy").keeping_perturbations() == get("accuracy")


# Adaptive checks


@keras.saving.register_keras_serializable("tests")
class Masked(keras.layers.Layer):
    """Leaves its inputs as they are, and turns their gradient round."""

    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            return tf.identity(x), lambda upstream: -upstream

        return tf.ensure_shape(identity(x), x.shape)

    def compute_output_shape(self, shape):
        return shape


def masked(affine, scale=1.0):
    """The affine classifier behind a gradient that misleads."""
    inputs = keras.Input((DIMENSIONS,), dtype="float64")
    dense = keras.layers.Dense(CLASSES, dtype="float64")
    model = keras.Model(inputs, dense(Masked(dtype="float64")(inputs)))
    kernel, bias = affine.model.layers[-1].get_weights()
    dense.set_weights([scale * kernel, scale * bias])
    return model


def test_adaptive_checks_find_nothing_wrong_with_a_sound_classifier(affine):
    found = affine.evaluate(AdaptiveChecks(0.2, bounds=BOUNDS))
    assert found.warnings == ()
    numbers = found.summary()
    assert numbers["adaptive_unbounded_accuracy"] == 0
    assert numbers["adaptive_saturated"] == 0
    assert (
        numbers["adaptive_pgd_accuracy"]
        >= (numbers["adaptive_restarts_accuracy"])
    )


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_attack_that_cannot_fool_with_any_eps_is_told(affine, norm):
    found = evaluate_robustness(
        masked(affine),
        affine.x,
        affine.y,
        AdaptiveChecks(0.2, norm, BOUNDS),
        verbose=0,
    )
    assert found.summary()["adaptive_unbounded_accuracy"] > 0.1
    assert any("although its eps lets any" in w for w in found.warnings)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_saturated_cross_entropy_is_told(affine):
    kernel, bias = affine.model.layers[-1].get_weights()
    model = affine_classifier(1e3 * kernel, bias)
    found = evaluate_robustness(
        model,
        affine.x,
        affine.y,
        AdaptiveChecks(0.2, bounds=BOUNDS),
        verbose=0,
    )
    top = np.sort(1e3 * affine.logits, axis=1)
    certain = top[:, -1] - top[:, -2] > 100  # exp(-100) is below float32
    share = found.summary()["adaptive_saturated"]
    assert share >= certain.mean() > 0.5
    assert any("no gradient on" in w for w in found.warnings)
    # The attacks here go on all the same.
    assert found.summary()["adaptive_unbounded_accuracy"] == 0


def test_restarts_that_find_more_are_told():
    values = {
        "adaptive_pgd_fooled": np.arange(100) < 50,
        "adaptive_restarts_fooled": np.arange(100) < 52,
        "adaptive_unbounded_fooled": np.full(100, True),
        "adaptive_saturated": np.full(100, False),
    }
    samples = Samples(values, np.full(100, True), "predicted")
    metric = AdaptiveChecks(0.1, bounds=(0, 1))
    (warning,) = metric.reliability_warnings(samples)
    assert "5 random starts of PGD fool 2.0% more" in warning
    values["adaptive_restarts_fooled"] = np.arange(100) < 50
    assert metric.reliability_warnings(samples) == []


def test_adaptive_checks_need_bounds():
    with pytest.raises(ValueError, match=r"^bounds: expected the valid range"):
        AdaptiveChecks(0.1)


# Transfer


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inputs_made_for_another_classifier_unmask(affine):
    attack = attacks.PGD(0.3, bounds=BOUNDS)
    transfer = AccuracyUnderTransfer(affine.model, attack)
    found = evaluate_robustness(
        masked(affine), affine.x, affine.y, [attack, transfer], verbose=0
    )
    numbers = found.summary()
    direct = affine.evaluate(attack).summary()["pgd_accuracy"]
    assert numbers["transfer_accuracy"] == pytest.approx(direct, abs=0.03)
    assert numbers["pgd_accuracy"] > numbers["transfer_accuracy"] + 0.2
    assert any(
        w.startswith("pgd: it misses ") and "(transfer)" in w
        for w in found.warnings
    )


def test_transfer_that_fools_less_is_not_told(affine):
    attack = attacks.PGD(0.3, bounds=BOUNDS)
    transfer = AccuracyUnderTransfer(masked(affine), attack)
    found = affine.evaluate(attack, transfer)
    assert found.warnings == ()
    assert (
        found.summary()["transfer_accuracy"] > (found.summary()["pgd_accuracy"])
    )


def test_transfer_comes_back_without_its_source(affine, tmp_path):
    attack = attacks.PGD(0.3, bounds=BOUNDS)
    metric = AccuracyUnderTransfer(affine.model, attack)
    found = affine.evaluate(metric)
    found.to_json(tmp_path / "report.json")
    again = RobustnessReport.from_json(tmp_path / "report.json")
    assert again.summary() == found.summary()
    assert again.metrics == (metric,)
    with pytest.raises(ValueError, match=r"^source: expected a classifier"):
        Affine().evaluate(*again.metrics)
    other = affine_classifier(-affine.weights, np.zeros(CLASSES))
    assert AccuracyUnderTransfer(other, attack) != metric


# Paired intervals


def test_ratio_of_means_has_the_spread_of_resampled_pairs():
    rng = np.random.default_rng(0)
    others = rng.gamma(9, size=400)
    values = 1.3 * others + rng.normal(0, 0.3, 400)
    found = ratio_of_means(values, others)
    assert found.value == np.mean(values) / np.mean(others)
    picks = rng.integers(400, size=(4000, 400))
    ratios = values[picks].mean(axis=1) / others[picks].mean(axis=1)
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(ratios, [0.025, 0.975]), atol=2e-3
    )
    # The pairs have in common what would make it ten times as wide.
    shuffled = ratio_of_means(values, rng.permutation(others))
    assert found.high - found.low < (shuffled.high - shuffled.low) / 5
    assert np.isnan(ratio_of_means([], []).value)
    assert np.isnan(ratio_of_means([1.0], [0.0]).value)
    assert np.isnan(ratio_of_means([1.0], [2.0]).low)


def test_difference_of_proportions_is_paired():
    one = np.arange(100) < 60
    other = np.arange(100) < 57
    found = difference_of_proportions(one, other)
    assert found.value == pytest.approx(0.03)
    assert found.is_proportion
    assert 0 > found.low > -0.01
    assert found.high - found.low < 0.1  # Wilson's of either: 0.19


def test_warnings_of_samples_need_no_model(report):
    assert reliability_warnings(report.metrics, report.samples()) == list(
        report.warnings
    )
    assert json.dumps(report.warnings)


def test_attack_shows_arrays_by_their_range():
    low = np.linspace(-3, 0, 6)
    shown = repr(attacks.PGD(0.5, bounds=(low, low + 10)))
    assert "bounds=(array (6,) of -3 to 0, array (6,) of 7 to 10)" in shown
    assert "bounds=(0.0, 1.0)" in repr(attacks.PGD(0.5, bounds=(0, 1)))
