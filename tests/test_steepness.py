"""c="auto": c of Eq. 6 from the classifier's own rho."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, affine_classifier, train_step

import dd_keras
from dd_keras import datasets
from dd_keras.defenses import steepness
from dd_keras.utils import norms

LOSS = "sparse_categorical_crossentropy"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype("float32") + 1.0
WEIGHTS = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]])
Y = np.argmax(X @ WEIGHTS, axis=1)


def affine(c="auto", **options):
    """Two classes, whose boundary is a plane: rho is known."""
    model = dd_keras.DeepDefenseModel(
        affine_classifier(WEIGHTS, [0.1, 0.0], "float32"), c=c, **options
    )
    model.compile(dd_keras.CoupledSGD(1e-3), LOSS)
    return model


def distances(x):
    """rho by Eq. 7, overshoot included, of `affine`."""
    difference = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    length = np.abs(x @ difference + 0.1) / np.linalg.norm(difference)
    return 1.02 * length / np.linalg.norm(x, axis=1)


def test_c_is_one_over_the_median_rho():
    assert steepness.choose([0.1, 0.2, 5.0]) == pytest.approx(5.0)
    penalty = dd_keras.SplitExponential("auto", d=3.0).with_c_for([0.5, 0.5])
    assert (penalty.c, penalty.d) == (2.0, 3.0)


@pytest.mark.parametrize("rho", [[], [0.0, 0.0, 1.0], [np.nan], [np.inf]])
def test_without_a_boundary_there_is_none(rho):
    with pytest.raises(ValueError, match="c: expected a number, as 'auto' fin"):
        steepness.choose(rho)


def test_of_an_affine_classifier_c_is_in_closed_form():
    model = affine()
    assert model.choose_c(X) == model.c
    assert model.c == pytest.approx(1 / np.median(distances(X)), rel=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X, Y),
        lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(16),),
    ],
)
def test_fit_chooses_c_before_its_first_step(data):
    """Of the weights as they were, and keeps it when it is called again."""
    model = affine()
    model.fit(*data(), batch_size=None, verbose=0)
    assert model.c == pytest.approx(1 / np.median(distances(X)), rel=1e-4)
    chosen = model.c
    model.fit(*data(), verbose=0)
    assert model.c == chosen


def test_arrays_in_the_order_of_their_classes_are_taken_evenly():
    order = np.argsort(distances(X))
    x = np.repeat(X[order], 100, axis=0)
    batches = list(steepness.first_batches(x, batch_size=8))
    assert [len(batch) for (batch,) in batches] == [8] * 4
    model = affine()
    assert model.choose_c(x, batch_size=8) == pytest.approx(
        1 / np.median(distances(X)), rel=0.1
    )


def test_what_is_chosen_is_saved_and_before_that_the_word(tmp_path):
    model = affine()
    assert model.get_config()["c"] == "auto"
    path = tmp_path / "model.keras"
    model.save(path)
    assert keras.saving.load_model(path).c == "auto"
    model.fit(X, Y, verbose=0)
    model.save(path)
    assert keras.saving.load_model(path).c == model.c


def test_the_warm_up_comes_first():
    """c fits the classifier that the regulariser meets."""
    model = affine()
    model.optimizer.learning_rate = 5.0
    warm_up = dd_keras.RegularizationWarmup(start=1, length=0)
    at_start = 1 / np.median(distances(X))
    chosen = []
    model.fit(
        *(X, Y),
        epochs=2,
        callbacks=[
            warm_up,
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: chosen.append(model.c)
            ),
        ],
        shuffle=False,
        verbose=0,
    )
    assert chosen[0] == "auto"
    assert chosen[1] == model.c
    assert abs(model.c / at_start - 1) > 0.05


def test_data_that_can_be_had_only_once_are_refused():
    model = affine()
    batches = (batch for batch in [(X, Y)])
    with pytest.raises(TypeError, match=r"c: .* only once; received 'auto' wi"):
        model.fit(batches, verbose=0)


def test_without_fit_there_must_be_a_number():
    model = affine()
    with pytest.raises(ValueError, match="c: expected a number by now; receiv"):
        train_step(model, X, Y)
    model.choose_c(X)
    train_step(model, X, Y)


@pytest.mark.parametrize("c", ["car", -1.0, None])
def test_other_words_are_refused(c):
    with pytest.raises(ValueError, match="c: expected a finite number > 0"):
        affine(c)


@pytest.mark.parametrize(("factor", "warns"), [(1e-3, 1), (1.0, 0), (1e3, 1)])
def test_warns_of_a_c_that_does_not_fit(factor, warns):
    model = affine(c=factor / np.median(distances(X)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    texts = [str(w.message) for w in caught if "c * rho" in str(w.message)]
    assert len(texts) == warns
    for text in texts:
        assert f"received c = {model.c:.4g} and a mean rho of 0." in text


def test_a_resumed_training_keeps_c_and_ends_the_same(tmp_path, monkeypatch):
    """Stopped in the middle of the second epoch."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 6:
                raise KeyboardInterrupt

    def train(folder, *callbacks):
        model = affine()
        model.optimizer.learning_rate = 0.1
        dd_keras.resumable_fit(
            model, (X, Y), 3, tmp_path / folder, batch_size=16,
            checkpoint_steps=1, callbacks=callbacks, verbose=0,
        )  # fmt: skip
        return model

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("killed", Stop())

    def refuse(rho):
        raise AssertionError("c is chosen anew")

    monkeypatch.setattr(steepness, "choose", refuse)
    resumed = train("killed")
    assert resumed.c == whole.c
    for one, other in zip(
        resumed.get_weights(), whole.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_replicas_choose_one_c():
    with dd_keras.distribution.strategy("mirrored").scope():
        model = affine()
    model.fit(X, Y, verbose=0)
    assert model.c == pytest.approx(1 / np.median(distances(X)), rel=1e-4)


def mean_rho(model, x):
    found = model.attack.run(model.logits_model(), x)
    return float(np.mean(norms.rho(found.perturbation, tf.constant(x))))


def test_on_digits_the_product_is_as_the_papers(trained_network, digits):
    model = dd_keras.DeepDefenseModel(trained_network, c="auto")
    x, _, x_test, _ = digits
    model.choose_c(x)
    assert 0.6 < model.c * mean_rho(model, x_test) < 5.1


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "candidates"),
    [
        ("mnist", "mnist_lenet_reference", None),
        ("cifar10", "cifar10_convnet_reference", 3),
    ],
)
def test_on_the_papers_data_the_product_is_as_the_papers(
    request, name, file, candidates
):
    folder = request.getfixturevalue(
        {"mnist": "mnist_dir", "cifar10": "cifar_dir"}[name]
    )
    data = datasets.load(name, folder)
    classifier = keras.saving.load_model(
        ROOT / "savedmodels" / f"{file}.keras", compile=False
    )
    model = dd_keras.DeepDefenseModel(
        classifier,
        c="auto",
        attack=dd_keras.attacks.DeepFool(max_iter=5, candidates=candidates),
    )
    model.choose_c(datasets.batches(data.train, data.preprocessing, 50))
    test = datasets.batches(data.test.take(200), data.preprocessing, 200)
    x, _ = next(iter(test))
    assert 0.6 < model.c * mean_rho(model, x.numpy()) < 5.1
