"""TensorBoard's records: each number and pixel, against the attack itself."""

import importlib.util
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier, shell
from tensorboard.backend.event_processing.event_file_loader import (
    EventFileLoader,
)
from tensorboard.util import tensor_util

import dd_keras
from dd_keras import attacks, training
from dd_keras.evaluation.html_report.images import shown_perturbation
from dd_keras.utils import norms

CLASSES = 3
BOUNDS = (-1.0, 3.0)
RNG = np.random.default_rng(0)
X = RNG.uniform(*BOUNDS, (40, 4, 4, 1)).astype(np.float32)
Y = (np.arange(40) % CLASSES).astype(np.int32)
TRAIN = X[:24], Y[:24]
FIXED = X[24:], Y[24:]


def network(channels=1, seed=0, outputs=CLASSES):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4, 4, channels)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(outputs),
        ]
    )


def compiled(model, rate=1e-2):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def defended(seed=0):
    model = dd_keras.DeepDefenseModel(
        network(seed=seed), lam=0.1, c=2.0, attack=attacks.DeepFool(max_iter=2)
    )
    return compiled(model)


def board(directory, data=FIXED, **options):
    options = {"bounds": BOUNDS, "images": 2, **options}
    return dd_keras.RobustnessBoard(directory, *data, **options)


def records(directory):
    """What the event files hold: dict of step to dict of tag to array."""
    found = {}
    for path in sorted(directory.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                array = tensor_util.make_ndarray(value.tensor)
                found.setdefault(event.step, {})[value.tag] = array
    return found


def picture(array):
    """The pixels of an image summary: its strip as three pictures."""
    width, height, png = array
    strip = tf.io.decode_png(png).numpy()
    assert strip.shape == (int(height), int(width), 3)
    return np.split(strip, 3, axis=1)


class Weights(keras.callbacks.Callback):
    """The weights before training, and after each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.seen = [self.model.get_weights()]

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.get_weights())


def assert_holds(found, model, x, y, attack, shown=2, bounds=BOUNDS):
    """One record, against a run of the attack on another copy."""
    result = attack.run(model, x)
    rho = norms.rho(result.perturbation, tf.constant(x), attack.norm).numpy()
    correct = result.predictions.numpy() == y
    groups = {"correct": correct, "misclassified": ~correct}
    groups |= {f"class {k}": y == k for k in range(CLASSES)}
    drawn = {tag for tag in found if tag.startswith("rho/")}
    assert drawn == {f"rho/{name}" for name, one in groups.items() if one.any()}
    for tag in drawn:
        own = rho[groups[tag.removeprefix("rho/")]]
        buckets = found[tag]  # (30, 3): left, right, count
        assert buckets[:, 2].sum() == len(own)
        assert buckets[0, 0] == pytest.approx(own.min(), rel=1e-5)
        assert buckets[-1, 1] == pytest.approx(own.max(), rel=1e-5)
        edges = [*buckets[:, 0], buckets[-1, 1]]
        # On an edge, rounding decides: counted up to it, one may differ.
        counted = np.cumsum(np.histogram(own, edges)[0])
        assert np.abs(counted - np.cumsum(buckets[:, 2])).max() <= 1
        mean = found[tag.replace("rho/", "rho_mean/")]
        assert mean == pytest.approx(own.mean(), rel=1e-5)
    assert found["rho_mean/all"] == pytest.approx(rho.mean(), rel=1e-5)
    assert found["accuracy/all"] == pytest.approx(correct.mean())
    images = {tag for tag in found if tag.startswith("images/")}
    assert images == {f"images/{i} class {y[i]}" for i in range(shown)}
    low, high = bounds
    for i in range(shown):
        clean, change, adversarial = picture(found[f"images/{i} class {y[i]}"])
        scale = 255 / (high - low)
        added = scale * result.perturbation.numpy()[i]
        pixels = scale * (x[i] - low)
        for shown_pixels, expected in (
            (clean, pixels), (adversarial, pixels + added)
        ):  # fmt: skip
            np.testing.assert_allclose(
                shown_pixels,
                np.broadcast_to(np.clip(expected, 0, 255), (4, 4, 3)),
                atol=0.51,
            )
        expected, factor = shown_perturbation(added)
        assert np.abs(change.astype(int) - expected).max() <= 1
        assert found[f"amplification/{i}"] == pytest.approx(factor)


def test_records_are_what_the_attack_finds(tmp_path):
    weights = Weights()
    model = compiled(network(), rate=0.1)
    model.fit(
        *TRAIN,
        epochs=3,
        callbacks=[weights, board(tmp_path)],
        verbose=0,
    )
    found = records(tmp_path)
    assert list(found) == [0, 1, 2, 3]
    copy = network()
    for step, values in found.items():
        copy.set_weights(weights.seen[step])
        assert_holds(values, copy, *FIXED, attacks.DeepFool())
    # What is compared changes from epoch to epoch.
    assert len({float(one["rho_mean/all"]) for one in found.values()}) == 4


def test_samples_are_the_first_of_a_data_set(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(FIXED).batch(5).repeat()
    model = compiled(network())
    attack = attacks.DeepFool(norm=np.inf)
    weights = Weights()
    callbacks = [
        weights,
        board(tmp_path, (data,), samples=7, images=9, attack=attack),
    ]
    model.fit(*TRAIN, callbacks=callbacks, verbose=0)
    found = records(tmp_path)
    x, y = FIXED[0][:7], FIXED[1][:7]
    assert_holds(found[1], model, x, y, attack, shown=7)


def test_more_samples_than_are_attacked_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("dd_keras.evaluation.board._BATCH", 3)
    model = compiled(network())
    callbacks = [board(tmp_path, images=4)]
    model.fit(*TRAIN, callbacks=callbacks, verbose=0)
    found = records(tmp_path)[1]
    assert_holds(found, model, *FIXED, attacks.DeepFool(), shown=4)


@pytest.mark.parametrize("make", [defended, lambda: compiled(network())])
def test_training_is_the_same_to_the_bit(tmp_path, make):
    """With dropout, a seed of Keras' own, and an attack of random starts."""
    attack = attacks.PGD(eps=0.5, steps=2, restarts=2)
    ends = []
    for callbacks in ([], [board(tmp_path, attack=attack)]):
        model = make()
        history = model.fit(
            *TRAIN,
            batch_size=6,
            epochs=2,
            validation_data=FIXED,
            callbacks=callbacks,
            verbose=0,
        )
        noise = keras.random.uniform((3,))  # the global generator goes on
        ends.append((model.get_weights(), history.history, np.array(noise)))
    (one, logs, drawn), (other, other_logs, other_drawn) = ends
    for mine, yours in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, yours)
    assert logs == other_logs
    np.testing.assert_array_equal(drawn, other_drawn)
    assert len(records(tmp_path)) == 3


def test_attack_is_that_of_the_defence(tmp_path):
    attack = attacks.DeepFool(max_iter=1)
    model = dd_keras.DefenseModel(network(), evaluation_attack=attack)
    compiled(model).fit(*TRAIN, callbacks=[board(tmp_path)], verbose=0)
    assert_holds(records(tmp_path)[1], model, *FIXED, attack)
    rho = model.evaluate(*FIXED, verbose=0, return_dict=True)["rho2"]
    mean = records(tmp_path)[1]["rho_mean/all"]
    assert mean == pytest.approx(rho, rel=1e-4)


def test_frequency_counts_finished_epochs(tmp_path):
    model = compiled(network())
    callbacks = [board(tmp_path, frequency=2)]
    model.fit(*TRAIN, epochs=5, callbacks=callbacks, verbose=0)
    assert list(records(tmp_path)) == [0, 2, 4]


def test_epochs_number_on_and_fit_may_be_called_again(tmp_path):
    model, again = compiled(network()), board(tmp_path)
    model.fit(*TRAIN, epochs=1, callbacks=[again], verbose=0)
    model.fit(*TRAIN, epochs=3, initial_epoch=1, callbacks=[again], verbose=0)
    assert list(records(tmp_path)) == [0, 1, 2, 3]


class Stop(keras.callbacks.Callback):
    """Ctrl-C at a step of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.thorough
@pytest.mark.parametrize("at", [(0, 1), (1, 2)])
def test_resumed_training_goes_on_in_the_board(tmp_path, at):
    def fit(name, *callbacks):
        model = compiled(network())
        dd_keras.resumable_fit(
            model,
            TRAIN,
            3,
            tmp_path / f"{name}_checkpoints",
            batch_size=6,
            callbacks=[board(tmp_path / name), *callbacks],
            verbose=0,
        )
        return model

    whole = fit("whole")
    with pytest.raises(training.Interrupted):
        fit("parts", Stop(*at))
    steps_before = list(records(tmp_path / "parts"))
    resumed = fit("parts")
    for mine, yours in zip(
        whole.get_weights(), resumed.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(mine, yours)
    one, other = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert steps_before == list(range(at[0] + 1))
    assert list(one) == list(other) == [0, 1, 2, 3]
    written = sum(
        "rho_mean/all" in [v.tag for v in event.summary.value]
        for path in (tmp_path / "parts").iterdir()
        for event in EventFileLoader(str(path)).Load()
    )
    assert written == 4  # none twice
    for step in one:
        assert one[step].keys() == other[step].keys()
        for tag, array in one[step].items():
            np.testing.assert_array_equal(array, other[step][tag])


def test_beside_keras_own_callback(tmp_path):
    model = compiled(network())
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path / "keras", update_freq=1),
        board(tmp_path / "board"),
    ]
    model.fit(*TRAIN, epochs=2, callbacks=callbacks, verbose=0)
    assert list(records(tmp_path / "board")) == [0, 1, 2]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.dense(self.flatten(x))


def test_a_subclassed_model_in_colour_with_names(tmp_path):
    x = RNG.integers(0, 256, (6, 4, 4, 3)).astype(np.float32)
    one_hot = np.eye(CLASSES)[[0, 1, 2, 0, 1, 2]]
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(x)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    callbacks = [
        board(
            tmp_path,
            (x, one_hot),
            bounds=None,  # pixels of 0 to 255
            class_names=["a\n", "cat", "cat"],
        )
    ]
    model.fit(x, one_hot, callbacks=callbacks, verbose=0)
    found = records(tmp_path)[1]
    names = [r"0 a\n", "1 cat", "2 cat"]
    assert {f"rho/class {name}" for name in names} <= set(found)
    clean, change, _ = picture(found["images/1 class 1 cat"])
    np.testing.assert_array_equal(clean, x[1])
    added = attacks.DeepFool().run(model, x).perturbation.numpy()
    expected = shown_perturbation(added[1])[0].astype(int)
    assert np.abs(change - expected).max() <= 1


def test_a_binary_classifier_of_numbers_has_no_images(tmp_path):
    model = affine_classifier([[1.0], [-2.0]], [0.5], "float32")
    x = RNG.normal(size=(9, 2)).astype(np.float32)
    y = np.arange(9) % 2
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    callbacks = [dd_keras.RobustnessBoard(tmp_path, x, y)]
    model.fit(x, y, callbacks=callbacks, verbose=0)
    found = records(tmp_path)
    assert list(found) == [0, 1]
    # Of an affine classifier DeepFool's distance is known.
    scores = x @ [1.0, -2.0] + 0.5
    rho = 1.02 * np.abs(scores) / np.sqrt(5) / np.linalg.norm(x, axis=1)
    assert found[0]["rho_mean/all"] == pytest.approx(rho.mean(), rel=1e-4)
    for k in (0, 1):
        mean = found[0][f"rho_mean/class {k}"]
        assert mean == pytest.approx(rho[y == k].mean(), rel=1e-4)
    assert not [tag for tag in found[0] if tag.startswith("images")]


def test_only_the_most_frequent_classes_have_histograms(tmp_path):
    model = affine_classifier(RNG.normal(size=(4, 30)), np.zeros(30), "float32")
    y = np.array([*range(30), *range(5, 25)])
    x = RNG.normal(size=(len(y), 4)).astype(np.float32)
    compiled(model).fit(
        x,
        y,
        callbacks=[dd_keras.RobustnessBoard(tmp_path, x, y)],
        verbose=0,
    )
    tags = [t for t in records(tmp_path)[0] if t.startswith("rho/class")]
    assert set(tags) == {f"rho/class {k}" for k in range(5, 25)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": -1}, "images: expected an integer of at least 0; received"),
        ({"samples": 0}, "samples: expected an integer of at least 1"),
        ({"frequency": 1.5}, "frequency: expected .* at least 1; received 1.5"),
        ({"bounds": (1, 0)}, r"bounds: expected a pair .* received \(1, 0\)"),
        ({"bounds": None}, "bounds: .* received None, and images from"),
        ({"bounds": (0, 1)}, "bounds: .* received others, and images from"),
        ({"bounds": (-1, [3.0, 4.0])}, "bounds: .* broadcast against samples"),
        ({"attack": "deepfool"}, "attack: expected an untargeted attack with "),
        (
            {"attack": attacks.PGD(eps=1, targeted=True)},
            "attack: expected an untargeted attack with norm",
        ),
        ({"class_names": "abc"}, "class_names: expected a sequence of names"),
        ({"data": (X,)}, "y: expected labels"),
        ({"data": (X, Y[:3])}, "y: expected 40 labels"),
        ({"data": (X[:0], Y[:0])}, "data: expected at least one sample"),
        (
            {"data": (tf.data.Dataset.from_tensors(X),)},
            "data: expected batches of .inputs, labels.; received",
        ),
        (
            {"data": (tf.data.Dataset.from_tensor_slices((X, Y)),)},
            "data: expected batches of inputs and as many labels",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        board(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names: expected 3 names"),
        ({"data": (X[:, :2], Y)}, r"data: x: expected inputs of shape"),
        ({"data": (X, Y + 1)}, "data: y: expected"),
    ],
)
def test_what_does_not_fit_the_model_is_named(tmp_path, options, message):
    model = compiled(network())
    callbacks = [board(tmp_path, **options)]
    with pytest.raises(ValueError, match=rf"^{message}"):
        model.fit(*TRAIN, callbacks=callbacks, verbose=0)


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dd_keras\[apps\]'"):
        board(tmp_path)


def test_only_the_chief_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(dd_keras.distribution, "is_chief", lambda: False)
    model = compiled(network())
    model.fit(*TRAIN, callbacks=[board(tmp_path)], verbose=0)
    assert not list(tmp_path.iterdir())


ON_TWO_REPLICAS = """
import pathlib, sys
sys.path.insert(0, "tests")
import dd_keras
strategy = dd_keras.distribution.strategy("mirrored", replicas=2)
import test_board as t
with strategy.scope():
    model = t.defended()
folder = pathlib.Path(sys.argv[1])
model.fit(*t.TRAIN, epochs=2, callbacks=[t.board(folder)], verbose=0)
found = t.records(folder)
assert list(found) == [0, 1, 2], found
alone = t.network()
alone.set_weights(model.model.get_weights())
t.assert_holds(found[2], alone, *t.FIXED, t.attacks.DeepFool())
print("the same")
"""


@pytest.mark.thorough
def test_on_several_replicas(tmp_path):
    done = shell("-c", ON_TWO_REPLICAS, tmp_path)
    assert "the same" in done.stdout, done.stderr
