"""What earlier versions saved loads, predicts as it did, and trains on.

tests/saved_before/ was written by version 0.1, before its names changed: five
small models after one training step, what they predicted then and after one
more (`expected.npz`), and a report.
"""

import keras
import numpy as np
import pytest
from conftest import ROOT

import dd_keras
from dd_keras import attacks, evaluation

SAVED = ROOT / "tests/saved_before"
MODELS = {
    "deep_defense": dd_keras.DeepDefenseModel,
    "deep_defense_scale_trained": dd_keras.DeepDefenseModel,
    "adversarial_training": dd_keras.AdversarialTrainingModel,
    "combined": dd_keras.CombinedModel,
    "parseval": keras.Model,
}


@pytest.fixture(scope="module")
def expected():
    with np.load(SAVED / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", MODELS)
def test_saved_model_loads_and_training_is_resumed(name, expected):
    x, y = expected["x"], expected["y"]
    model = keras.models.load_model(SAVED / f"{name}.keras")
    assert isinstance(model, MODELS[name])
    np.testing.assert_allclose(
        model(x, training=False), expected[f"{name}_saved"], atol=1e-5
    )
    model.run_eagerly = True  # faster for one step: nothing is traced
    model.train_on_batch(x, y)
    np.testing.assert_allclose(
        model(x, training=False), expected[f"{name}_trained"], atol=1e-4
    )


def test_settings_come_back_under_their_new_names():
    model = keras.models.load_model(SAVED / "deep_defense.keras")
    assert (model.lam, model.c, model.d) == (2, 5, 2)
    assert model.attack == attacks.DeepFool(max_iter=3, candidates=2)
    assert model.regularized_layers == ["conv"]
    model = keras.models.load_model(SAVED / "deep_defense_scale_trained.keras")
    assert model.batch_norm == "frozen_statistics"
    model = keras.models.load_model(SAVED / "adversarial_training.keras")
    assert (model.adversary, model.alpha) == (attacks.FGSM(0.1), 0.3)


def test_report_loads_and_its_numbers_are_the_same():
    report = evaluation.RobustnessReport.from_json(SAVED / "report.json")
    sweep, pgd, mine = report.metrics[-3:]
    assert sweep == evaluation.EpsSweep([0.05, 0.1])
    assert pgd == evaluation.AccuracyUnderAttack(
        attacks.PGD(0.1, steps=3, bounds=(0, 1))
    )
    assert mine.name == "mine"
    summary = report.summary()
    assert summary["rho2"] == pytest.approx(0.03741401)
    assert summary["fgsm_rho"] == pytest.approx(0.03570500)
    assert summary["eps_ref"] == summary["fgsm_accuracy@0.1"] == 0
    assert summary["accuracy"] == 3 / 12


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("savedmodels/*.keras")), ids=lambda p: p.stem
)
def test_released_model_loads(path):
    model = keras.models.load_model(path)
    shape = [1, *model.input_shape[1:]]
    x = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    outputs = model.predict(x, verbose=0)
    assert np.all(np.isfinite(outputs))
    if "preprocessing" in path.stem:
        assert outputs.shape == x.shape
    else:
        assert outputs.shape == (1, 10)
