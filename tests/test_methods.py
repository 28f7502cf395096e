import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

import dd_keras
from dd_keras import attacks, defenses
from dd_keras.defenses import METHODS, Settings

rng = np.random.default_rng(0)
X = rng.normal(size=(10, 4)).astype(np.float32)
Y = np.arange(10) % 3
SETTINGS = Settings(
    norm=np.inf,
    evaluation_candidates=2,
    batch_norm="frozen",
    lam=3.0,
    c=7.0,
    d=2.0,
    regularized_layers=["top"],
    max_iter=4,
    candidates=1,
    shrinkage="hinge",
    aggregation="min",
    bounded=True,
    bounds=(-9.0, 9.0),
    eps=0.3,
    ball="l2",
    attack_steps=3,
    trades_beta=2.0,
    d_max=0.5,
    clean_share=0.2,
    gradient_lam=0.7,
    alpha=0.25,
    beta=1e-3,
    fraction=0.5,
    batch_size=4,
    seed=3,
)
CLASSES = {
    "clean": dd_keras.DefenseModel,
    "deep_defense": dd_keras.DeepDefenseModel,
    "adv_train_1": dd_keras.DefenseModel,
    "adv_train_2": dd_keras.AdversarialTrainingModel,
    "combined": dd_keras.CombinedModel,
    "parseval": dd_keras.DefenseModel,
    "pgd": dd_keras.AdversarialTrainingModel,
    "trades": dd_keras.TRADESModel,
    "mma": dd_keras.MMAModel,
    "input_gradient": dd_keras.InputGradientModel,
}
DEEPFOOL = attacks.DeepFool(np.inf, 4, candidates=1, bounds=(-9.0, 9.0))
PGD = attacks.PGD(0.3, 2, 3, bounds=(-9.0, 9.0), seed=3, early_stop=False)
# The perturbations to train on, and the share of the clean loss.
ADVERSARIES = {
    "adv_train_2": (attacks.FGSM(0.3, (-9.0, 9.0)), 0.25),
    "combined": (attacks.FGSM(0.3, (-9.0, 9.0)), 0.25),
    "pgd": (PGD, 0.0),
    "mma": (DEEPFOOL, 0.2),
}


def classifier():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="top"),
        ]
    )


def batches():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def test_every_method_of_the_paper_is_there():
    assert set(METHODS) == set(CLASSES)
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", METHODS)
def test_settings_reach_the_model(name):
    model = classifier()
    prepared, train = METHODS[name].prepare(model, batches(), SETTINGS)
    assert type(prepared) is CLASSES[name]
    assert prepared.model is model  # the one that is trained
    assert prepared.batch_norm == "frozen"
    assert prepared.evaluation_attack == attacks.DeepFool(np.inf, candidates=2)
    if isinstance(prepared, dd_keras.DeepDefenseModel):
        assert prepared.lam == 3.0
        assert (prepared.penalty.c, prepared.penalty.d) == (7.0, 2.0)
        assert type(prepared.penalty) is defenses.SplitHinge
        assert prepared.aggregation == "min"
        assert prepared.attack == DEEPFOOL
        assert prepared.regularized_layers == ["top"]
    if isinstance(prepared, dd_keras.AdversarialTrainingModel):
        found = (prepared.adversary, prepared.alpha)
        assert found == ADVERSARIES[name]
    if name == "trades":
        assert (prepared.adversary, prepared.beta) == (PGD, 2.0)
    if name == "mma":
        assert prepared.d_max == 0.5
    if name == "input_gradient":
        assert prepared.lam == 0.7
    constraints = [layer.kernel_constraint for layer in model.layers]
    if name == "parseval":
        assert all(
            (one.beta, one.fraction) == (1e-3, 0.5) for one in constraints
        )
    else:
        assert constraints == [None, None]
    (x, y), *_ = train
    if name != "adv_train_1":
        np.testing.assert_array_equal(x, X[:4])
        np.testing.assert_array_equal(y, Y[:4])


@pytest.mark.parametrize("include_clean", [False, True])
def test_adv_train_1_trains_on_the_deepfool_images_of_the_reference(
    include_clean,
):
    model = affine_classifier(rng.normal(size=(4, 3)), np.zeros(3), "float32")
    settings = dataclasses.replace(
        SETTINGS, norm=2.0, include_clean=include_clean, regularized_layers=None
    )
    _, train = METHODS["adv_train_1"].prepare(model, batches(), settings)
    expected = attacks.DeepFool(2.0, candidates=2)(model, X).numpy()
    if include_clean:
        expected = np.concatenate([expected, X])
    epochs = [
        list(train.starting_at(epoch).take(len(train)).as_numpy_iterator())
        for epoch in range(2)
    ]
    for epoch in epochs:
        assert [len(y) for _, y in epoch[:2]] == [4, 4]
        inputs = np.concatenate([x for x, _ in epoch])
        np.testing.assert_allclose(
            np.sort(inputs, axis=0), np.sort(expected, axis=0), rtol=1e-5
        )
    assert not np.array_equal(epochs[0][0][0], epochs[1][0][0])  # shuffled


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clean", {"batch_norm": "on"}, "batch_norm: expected one of"),
        ("clean", {"norm": 0.5}, "norm"),
    ],
)
def test_bad_settings_are_named(name, change, message):
    settings = dataclasses.replace(SETTINGS, **change)
    with pytest.raises(ValueError, match=message):
        METHODS[name].prepare(classifier(), batches(), settings)


def test_settings_are_known_by_name():
    with pytest.raises(TypeError, match="lambda_"):
        Settings(lambda_=1.0)


def test_models_of_all_methods_are_exported():
    for model in set(CLASSES.values()):
        assert getattr(defenses, model.__name__) is model
        assert getattr(dd_keras, model.__name__) is model


# Each of some methods' own, and an error for these.
BAD = {
    "lam": -1.0,
    "c": 0.0,
    "d": 0.0,
    "max_iter": 0,
    "candidates": 0,
    "regularized_layers": ["missing"],
    "shrinkage": "none",
    "aggregation": "none",
    "attack": "none",
    "eps": 0.0,
    "ball": "l3",
    "attack_steps": 0,
    "trades_beta": -1.0,
    "d_max": 0.0,
    "clean_share": 2.0,
    "gradient_lam": -1.0,
    "alpha": 2.0,
    "beta": 0.0,
    "fraction": 2.0,
}


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_other_methods_do_not_matter(name):
    others = {k: v for k, v in BAD.items() if k not in METHODS[name].settings}
    settings = dataclasses.replace(SETTINGS, **others)
    METHODS[name].prepare(classifier(), batches(), settings)


@pytest.mark.parametrize(
    ("name", "setting"),
    [(n, s) for n in METHODS for s in BAD if s in METHODS[n].settings],
)
def test_settings_of_a_method_do_matter(name, setting):
    settings = dataclasses.replace(SETTINGS, **{setting: BAD[setting]})
    with pytest.raises(ValueError, match=setting):
        METHODS[name].prepare(classifier(), batches(), settings)


def test_methods_name_their_settings():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert all(set(method.settings) <= fields for method in METHODS.values())
    assert set(BAD) <= {s for m in METHODS.values() for s in m.settings}


def test_adv_train_1_keeps_labels_and_what_came_before_the_training():
    model = classifier()
    expected = attacks.DeepFool(np.inf, candidates=2)(model, X).numpy()
    _, train = METHODS["adv_train_1"].prepare(model, batches(), SETTINGS)
    model.set_weights([-weight for weight in model.get_weights()])  # later
    for inputs, labels in train:
        for image, label in zip(inputs, labels.numpy(), strict=True):
            distances = np.abs(expected - image.numpy()).max(axis=1)
            assert distances.min() < 1e-4
            assert label == Y[distances.argmin()]


@pytest.mark.slow
def test_adv_train_1_shuffles_by_the_seed():
    def order(seed):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        model = classifier()
        tf.random.set_seed(None)
        _, train = METHODS["adv_train_1"].prepare(model, batches(), settings)
        return np.concatenate([x for x, _ in train])

    np.testing.assert_array_equal(order(0), order(0))
    assert np.abs(order(1) - order(0)).max() > 0


def test_parseval_constrains_all_matrices_by_its_seed():
    inner = keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(4)])
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            inner,
        ]
    )
    clone = keras.models.clone_model(model)
    seeds = []
    settings = dataclasses.replace(SETTINGS, regularized_layers=None)
    for network in (model, clone):
        METHODS["parseval"].prepare(network, None, settings)
        constraints = [
            layer.kernel_constraint
            for layer in network._flatten_layers()
            if hasattr(layer, "kernel_constraint")
        ]
        assert [type(one) for one in constraints] == (
            [defenses.ParsevalConstraint] * 3
        )
        seeds.append([one.seed for one in constraints])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
