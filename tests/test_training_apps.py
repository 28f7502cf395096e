"""The apps that train: every defence, every data set, and what they refuse."""

import csv
import re
import sys
import types

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from conftest import run
from test_apps import affine, parsed, refused, train_only, weights
from test_board import records
from tfds_shaped import write_imagenet

from shared import precision, training_flags

import dd_keras
from dd_keras import datasets, defenses
from dd_keras.defenses import METHODS

FLAGS = flags.FLAGS
DEFENSES = list(METHODS)
TITLES = {
    "reference": "reference",
    **{name: method.title for name, method in METHODS.items()},
}


def logged(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def drawn(path):
    """Whether a picture shows anything."""
    return matplotlib.image.imread(path).std() > 0


@pytest.fixture
def prepared(monkeypatch):
    """The models that the methods make from now on, by their names."""
    made = {}

    def recorded(name, prepare):
        def record(classifier, train, settings):
            model, train = prepare(classifier, train, settings)
            made[name] = model
            return model, train

        return record

    for name, method in METHODS.items():
        monkeypatch.setitem(
            METHODS, name, method._replace(prepare=recorded(name, method[1]))
        )
    return made


# --- All defences on the digits ---------------------------------------------


@pytest.fixture(scope="module")
def all_defenses(tmp_path_factory):
    """A run of the digits app: its directory and what it printed."""
    directory = tmp_path_factory.mktemp("defenses")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *a, **_: printed.append(a))
        run(
            "digits",
            f"--defense={','.join(DEFENSES)}",
            "--limit=40",
            "--epochs=1",
            "--batch_size=20",
            "--learning_rate=1e-6",
            "--max_iter=2",
            "--beta=0.5",
            "--fraction=1",
            f"--reference={affine(directory / 'mine.keras')}",
            "--html",
            "--robustness_board",
            f"--output_dir={directory / 'out'}",
        )
    return directory, "\n".join(" ".join(map(str, a)) for a in printed)


@pytest.fixture(scope="module")
def results(all_defenses):
    return parsed(all_defenses[0] / "out" / "results.json")


@pytest.mark.thorough
def test_every_defense_has_its_files(all_defenses):
    output_dir = all_defenses[0] / "out"
    assert {path.name for path in output_dir.iterdir()} == {
        *(f"{name}.keras" for name in TITLES),
        "preprocessing.keras",
        "results.json",
        "convergence.png",
        "adversarial_images.png",
        "logs",
        "board",
        "report.html",
        *(f"{name}.html" for name in TITLES),
    }
    for name in ("convergence.png", "adversarial_images.png"):
        assert drawn(output_dir / name)
    assert {path.name for path in (output_dir / "logs").iterdir()} == {
        *DEFENSES,
        *(f"{name}.csv" for name in DEFENSES),
    }
    for name in DEFENSES:
        assert str(output_dir / f"{name}.keras") in all_defenses[1]
    assert {path.name for path in (output_dir / "board").iterdir()} == {
        *DEFENSES
    }


@pytest.mark.thorough
def test_the_board_shows_the_first_validation_images(all_defenses):
    """Of each defence, before its first epoch and after it."""
    images = next(iter(datasets.load("digits").test.batch(8)))[0].numpy()
    for name in DEFENSES:
        found = records(all_defenses[0] / "out" / "board" / name)
        assert list(found) == [0, 1]
        drawn = sorted(t for t in found[1] if t.startswith("images/"))
        assert len(drawn) == 8
        for tag, pixels in zip(drawn, images, strict=True):
            strip = tf.io.decode_png(found[1][tag][2]).numpy()
            clean = strip[:, : pixels.shape[1]]
            assert np.abs(clean - pixels).max() <= 1


@pytest.mark.thorough
def test_every_model_has_its_page(all_defenses, results):
    folder = all_defenses[0] / "out"
    together = (folder / "report.html").read_text()
    for name, title in TITLES.items():
        page = (folder / f"{name}.html").read_text()
        rho = f"{results['models'][name]['rho2']:#.4g}"
        assert f"<td>{rho}</td>" in page
        assert rho in together
        assert title in together
        assert page.count("data:image/png") >= 3 * 20
        assert "decisions that DeepFool changed" in page
        assert "<dt>html</dt><dd>True</dd>" in page  # among the settings


@pytest.mark.thorough
def test_every_defense_has_its_numbers(results):
    assert list(results["models"]) == list(TITLES)
    assert results["flags"]["defense"] == DEFENSES
    assert set(results["training_seconds"]) == set(DEFENSES)
    first = results["models"]["reference"]
    for name in DEFENSES:
        curve, values = results["curves"][name], results["models"][name]
        assert values["samples"] == 40
        assert values["rho_ratio"] == values["rho2"] / first["rho2"]
        assert curve["rho"] == pytest.approx(
            [first["rho2"], values["rho2"]], rel=1e-4
        )
        assert curve["accuracy"] == pytest.approx(
            [first["accuracy"], values["accuracy"]]
        )
        assert len(curve["training_loss"]) == 1


@pytest.mark.thorough
def test_every_defense_is_a_row_of_the_table(all_defenses, results):
    for name, title in TITLES.items():
        values = results["models"][name]
        rows = re.findall(
            rf"^{re.escape(title)} +(\S+) % +(\S+) +(\S+) +(\S+) +(?:\d+ s|-)$",
            all_defenses[1],
            re.MULTILINE,
        )
        assert rows == [
            (
                f"{100 * values['accuracy']:.2f}",
                f"{values['rho2']:.4f}",
                "-",  # to a reference that is not trained at all
                f"{values['l2']:.1f}",
            )
        ]


@pytest.mark.thorough
def test_every_defense_trains_in_a_way_of_its_own(all_defenses):
    output_dir = all_defenses[0] / "out"
    kernels = [weights(output_dir / f"{name}.keras")[0] for name in TITLES]
    for i, kernel in enumerate(kernels):
        for other in kernels[:i]:
            assert np.abs(kernel - other).max() > 0


@pytest.mark.thorough
def test_parsevals_file_holds_its_constraint(all_defenses):
    output_dir = all_defenses[0] / "out"
    layer = keras.saving.load_model(output_dir / "parseval.keras").layers[-1]
    assert type(layer.kernel_constraint) is defenses.ParsevalConstraint
    assert layer.kernel_constraint.beta == 0.5
    assert layer.kernel_constraint.fraction == 1.0
    # Two steps of 1 + beta, as small weights have next to no other part.
    small = np.linalg.norm(weights(output_dir / "clean.keras")[0])
    grown = np.linalg.norm(layer.get_weights()[0])
    assert grown / small == pytest.approx(1.5**2, rel=0.02)
    for name in TITLES:
        if name != "parseval":
            model = keras.saving.load_model(output_dir / f"{name}.keras")
            assert model.layers[-1].kernel_constraint is None


@pytest.mark.parametrize(
    "value", ["unknown", "clean,unknown", "clean,clean", "", "clean,", "Clean"]
)
def test_bad_defenses_are_refused(tmp_path, value):
    names = value.split(",") if value else []
    assert refused(tmp_path, f"--defense={value}") == (
        f"flag --defense={names}: --defense must be of {', '.join(METHODS)}, "
        "each once."
    )


# --- Flags reach the methods ------------------------------------------------


def test_flags_reach_the_methods(tmp_path, prepared):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(8, name="first"),
        keras.layers.BatchNormalization(name="normalization"),
        keras.layers.Dense(10, name="last"),
    ]
    reference = keras.Sequential(layers)
    reference.save(tmp_path / "mine.keras")
    train_only(
        "digits",
        f"--defense={','.join(DEFENSES)}",
        "--limit=20",
        "--epochs=0",
        "--regularized_layers=first,last",
        "--batch_norm=frozen_statistics",
        "--eps=3.5",
        "--alpha=0.25",
        "--beta=0.125",
        "--fraction=0.75",
        "--include_clean",
        "--evaluation_candidates=2",
        f"--reference={tmp_path / 'mine.keras'}",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert list(prepared) == DEFENSES
    for model in prepared.values():
        assert model.batch_norm == "frozen_statistics"
        assert model.evaluation_attack.candidates == 2
    for name in ("deep_defense", "combined"):
        assert prepared[name].regularized_layers == ["first", "last"]
    for name in ("adv_train_2", "combined"):
        assert prepared[name].adversary.eps == 3.5
        assert prepared[name].alpha == 0.25
    constraint = prepared["parseval"].model.layers[1].kernel_constraint
    assert (constraint.beta, constraint.fraction) == (0.125, 0.75)


def policies(model):
    """The dtype policies of a classifier's layers with weights."""
    return {layer.dtype_policy.name for layer in model.layers if layer.weights}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_precision_is_that_of_training_alone(tmp_path, monkeypatch, policy):
    computed = {"fit": [], "evaluate": []}

    def recorded(name, function):
        def record(model, *arguments, **options):
            network = getattr(model, "model", model)
            computed[name].append((policies(network), network(images).dtype))
            return function(model, *arguments, **options)

        return record

    images = np.zeros((2, 8, 8, 1))
    monkeypatch.setattr(
        dd_keras, "resumable_fit", recorded("fit", dd_keras.resumable_fit)
    )
    evaluate = recorded("evaluate", dd_keras.evaluate_robustness)
    monkeypatch.setattr(dd_keras, "evaluate_robustness", evaluate)
    run(
        "digits",
        f"--precision={policy}",
        "--arch=mlp",
        "--limit=200",
        "--reference_epochs=8",
        "--defense=deep_defense",
        "--epochs=2",
        "--max_iter=2",
        "--validation_freq=2",
        "--learning_rate=1e-6",
        f"--output_dir={tmp_path}",
    )
    output = "float32" if policy == "float32" else "bfloat16"
    assert computed["fit"] == 2 * [({policy}, output)]
    assert computed["evaluate"] == 2 * [({"float32"}, "float32")]
    for name in ("reference", "deep_defense"):
        model = keras.saving.load_model(tmp_path / f"{name}.keras")
        assert policies(model) == {"float32"}
    found = parsed(tmp_path / "results.json")
    curve = found["curves"]["deep_defense"]
    assert curve["epochs"] == [0, 2]
    assert len(curve["training_loss"]) == 2
    for key, summary in (("accuracy", "accuracy"), ("rho", "rho2")):
        first, last = curve[key]
        # Rounded to three digits, a validation is the evaluation after it.
        close = 1e-5 if policy == "float32" else 0.03
        numbers = found["models"]
        assert first == numbers["reference"][summary]
        assert last == pytest.approx(
            numbers["deep_defense"][summary], rel=close
        )


def test_layers_with_a_precision_of_their_own_keep_it(monkeypatch):
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(8, name="precise", dtype="float64"),
        keras.layers.Dense(10, name="last"),
    ]
    network = keras.Sequential(layers)
    given = types.SimpleNamespace(precision="mixed_bfloat16")
    monkeypatch.setattr(precision, "FLAGS", given)
    with precision.training_precision(network):
        assert policies(network) == {"float64", "mixed_bfloat16"}
    with (
        pytest.raises(ZeroDivisionError),
        precision.training_precision(network),
    ):
        raise ZeroDivisionError
    assert policies(network) == {"float64", "float32"}


def test_regulariser_starts_late_and_grows(tmp_path, monkeypatch):
    shares = []
    scale = dd_keras.DeepDefenseModel.scale_lam

    def spy(self, share):
        shares.append(share)
        scale(self, share)

    monkeypatch.setattr(dd_keras.DeepDefenseModel, "scale_lam", spy)
    train_only(
        "digits",
        "--limit=20",
        "--batch_size=20",  # one step an epoch
        "--epochs=3",
        "--learning_rate=1e-6",
        "--lam=8",
        "--lam_start=1",
        "--regularization_warmup=2",
        "--max_iter=1",
        "--c=5",
        f"--reference={affine(tmp_path / 'mine.keras')}",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert sorted(set(shares)) == [0.0, 0.5, 1.0]  # all of it at the end
    late, clean = (
        logged(tmp_path / "out" / "logs" / f"{name}.csv")
        for name in ("deep_defense", "clean")
    )
    assert late[0]["rho2"] == ""  # nothing was attacked in this epoch
    penalty = [float(row["regularization"]) for row in late]
    more = [
        float(row["loss"]) - float(plain["loss"])
        for row, plain in zip(late, clean, strict=True)
    ]
    # A step's loss is that before it: the third is the first to tell.
    assert penalty[:2] == [0.0, 0.0]
    assert penalty[2] > 0.1
    np.testing.assert_allclose(more, [0, 0, 4 * penalty[2]], atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--alpha=nan", r"flag --alpha=nan: --alpha must be finite"),
        ("--beta=0", r"flag --beta=0(\.0)?: --beta must be a finite number "),
        ("--beta=2", r"flag --beta=2(\.0)?: .*1"),
        ("--fraction=1.5", r"flag --fraction=1\.5: .*1"),
        ("--eps=nan", r"flag --eps=nan: --eps must be a finite number above"),
        ("--c=inf", r"flag --c=inf: expected a number above 0, or auto"),
        ("--c=automatic", r"flag --c=automatic: .*automatic"),
        ("--reference_last_rate=0", r"--reference_last_rate must be a finite"),
        ("--last_rate=0", r"--last_rate must be a finite number above 0"),
        ("--reference_learning_rate=nan", r"--reference_learning_rate must be"),
        ("--reference_weight_decay=inf", r"_decay must be finite"),
        ("--lam_start=nan", r"--lam_start must be finite"),
        (
            "--regularization_warmup=inf",
            r"--regularization_warmup must be finite",
        ),
        ("--batch_norm=off", r"flag --batch_norm=off: .*trained\|"),
        (
            "--evaluation_candidates=10",
            r"^error: --evaluation_candidates: expected at most 9, .* 10\.$",
        ),
        ("--precision=float16", r"flag --precision=float16: .*mixed_bfloat16"),
        ("--validation_freq=0", r"flag --validation_freq=0: "),
        ("--weights=imagenet", r"^error: --weights: expected with a keras\.ap"),
        ("--augment", r"^error: augment: expected False for 'digits'"),
    ],
)
def test_bad_flags_are_refused_by_name(tmp_path, argument, message):
    assert re.search(message, refused(tmp_path, argument))


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("tensorboard", "error: the logs for TensorBoard take its package: "),
        ("sklearn.datasets", "error: the data set 'digits' comes with scikit-"),
    ],
)
def test_missing_packages_name_the_extra(
    tmp_path, monkeypatch, package, message
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        run(
            "digits",
            "--limit=20",
            "--arch=mlp",
            "--epochs=1",
            f"--output_dir={tmp_path / 'out'}",
        )
    assert str(ended.value).startswith(message)
    assert "pip install 'dd_keras[apps]'" in str(ended.value)


def test_layers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(
        SystemExit,
        match=r"^error: regularized_layers: expected .*; received \['conv9'\]",
    ):
        run(
            "digits",
            "--limit=20",
            "--epochs=1",
            "--defense=deep_defense",
            "--regularized_layers=conv9",
            f"--reference={affine(tmp_path / 'mine.keras')}",
            f"--output_dir={tmp_path / 'out'}",
        )
    assert not (tmp_path / "out" / "deep_defense.keras").exists()


@pytest.mark.parametrize(
    ("app", "archs"),
    [
        ("digits", "digits_cnn, mlp"),
        ("mnist", "lenet, mlp"),
        ("cifar10", "convnet, nin"),
        ("imagenet", "alexnet, resnet18"),
        ("images", "lenet, mlp, convnet, nin, alexnet, resnet18"),
    ],
)
def test_unknown_networks_are_refused_with_those_there_are(
    tmp_path, app, archs
):
    message = refused(tmp_path, "--arch=vgg", name=app)
    assert message.startswith(
        f"flag --arch=vgg: --arch must be one of {archs}, or the name of "
    )


def test_defaults_of_an_app_must_be_its_flags():
    with (
        flagsaver.flagsaver(),
        pytest.raises(ValueError, match=r"^defaults: expected names of flags;"),
    ):
        training_flags.define(["mlp"], epoch=3)


# --- A defence of one's own -------------------------------------------------


class Shrinking(dd_keras.DefenseModel):
    """Plain training that also draws all weights to zero."""

    def regularizer(self, x, labels, forward, sample_weight):
        weights = self.trainable_weights
        return 10.0 * sum(keras.ops.sum(w**2) for w in weights), None


def toy(classifier, train, settings):
    return Shrinking(classifier, **settings.of_defense), train


def test_one_line_adds_a_defense_to_the_apps(tmp_path, monkeypatch, capsys):
    reference = affine(tmp_path / "mine.keras")
    monkeypatch.setitem(METHODS, "toy", defenses.Method("Shrinking", toy))
    run(
        "digits",
        "--defense=clean,toy",
        "--limit=20",
        "--batch_size=20",
        "--epochs=1",
        "--halved_epochs=0",
        "--learning_rate=1e-6",
        f"--reference={reference}",
        f"--output_dir={tmp_path / 'out'}",
    )
    results = parsed(tmp_path / "out" / "results.json")
    assert list(results["models"]) == ["reference", "clean", "toy"]
    assert "\nShrinking  " in capsys.readouterr().out
    clean, shrunk = (
        weights(tmp_path / "out" / f"{name}.keras")[0]
        for name in ("clean", "toy")
    )
    # One step: the gradient of 10 * sum(w ** 2), times the learning rate.
    np.testing.assert_allclose(
        shrunk - clean, -20e-6 * weights(reference)[0], rtol=0.02, atol=1e-9
    )


# --- The reference that an app trains ---------------------------------------


def test_flags_of_the_reference_are_its_own(tmp_path, monkeypatch):
    """Epochs, rates and weight decay are handed to each training apart."""
    fits = []
    fit = keras.Model.fit

    def spy(self, *arguments, **kwargs):
        optimizer = self.optimizer
        schedule = optimizer.get_config()["learning_rate"]["config"]
        fits.append(
            (
                kwargs["epochs"],
                schedule["boundaries"],
                schedule["values"],
                optimizer.coupled_weight_decay,
            )
        )
        return fit(self, *arguments, **{**kwargs, "epochs": 0})

    monkeypatch.setattr(keras.Model, "fit", spy)
    train_only(
        "digits",
        "--arch=mlp",
        "--limit=20",
        "--batch_size=5",
        "--defense=clean",
        "--epochs=6",
        "--halved_epochs=2",
        "--last_rate=0.25",
        "--learning_rate=1e-3",
        "--weight_decay=0.125",
        "--reference_epochs=5",
        "--reference_last_epochs=3",
        "--reference_last_rate=0.1",
        "--reference_learning_rate=1e-2",
        "--reference_weight_decay=0",
        f"--output_dir={tmp_path}",
    )
    reference, clean = fits
    assert reference[:2] == (5, [7])  # after two epochs of four steps
    assert reference[2] == pytest.approx([1e-2, 1e-3])
    assert reference[3] == 0.0
    assert clean == (6, [15], [1e-3, 2.5e-4], 0.125)


# --- ImageNet ---------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory):
    """An ImageNet of a few small photographs, as TFDS keeps it."""
    directory = tmp_path_factory.mktemp("tfds")
    write_imagenet(directory, train=8, validation=4)
    return directory


@pytest.mark.parametrize(
    ("arch", "size", "mean", "deviation"),
    [
        # AlexNet takes 67 pixels and more.
        pytest.param(
            "alexnet",
            67,
            (123, 117, 104),
            (1, 1, 1),
            marks=pytest.mark.thorough,
        ),
        (
            "resnet18",
            32,
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
        ),
    ],
)
def test_imagenet(tmp_path, imagenet_dir, arch, size, mean, deviation):
    train_only(
        "imagenet",
        f"--arch={arch}",
        f"--image_size={size}",
        "--epochs=0",
        "--reference_epochs=0",
        "--batch_size=4",
        "--evaluation_candidates=1",
        "--candidates=1",
        "--defense=clean",
        f"--data_dir={imagenet_dir}",
        f"--output_dir={tmp_path}",
    )
    preprocessing, classifier = (
        keras.saving.load_model(tmp_path / f"{name}.keras")
        for name in ("preprocessing", "clean")
    )
    assert classifier.input_shape == (None, size, size, 3)
    assert classifier.output_shape == (None, 3)
    # The middle of one recipe's images or the other's.
    grey = np.full((1, size, size, 3), 128.0, np.float32)
    np.testing.assert_allclose(
        preprocessing(grey)[0, 0, 0],
        (128 - np.array(mean)) / deviation,
        rtol=1e-4,
    )


def test_missing_imagenet_says_how_to_get_it(tmp_path):
    empty = tmp_path / "none"
    empty.mkdir()
    message = refused(tmp_path / "out", f"--data_dir={empty}", name="imagenet")
    assert message.startswith("error: imagenet2012: expected the splits ")
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
    assert "--data_dir" in message


def test_candidates_must_be_fewer_than_imagenets_classes(
    tmp_path, imagenet_dir
):
    message = refused(
        tmp_path, f"--data_dir={imagenet_dir}", "--image_size=67",
        name="imagenet",
    )  # fmt: skip
    assert message == (
        "error: --candidates: expected at most 2, the classes other than the "
        "source; received 10."
    )


# --- Any images -------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of two classes that any network can tell apart."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir()
        for index in range(5):
            pixels = level + rng.integers(-30, 31, (40, 36, 3))
            (root / name / f"{index}.png").write_bytes(
                tf.io.encode_png(pixels.astype(np.uint8)).numpy()
            )
    return root


def test_keras_application_on_a_folder(tmp_path, photos):
    train_only(
        "images",
        "--dataset=folder",
        f"--data_dir={photos}",
        "--image_size=32",
        "--arch=MobileNet",
        "--augment",
        "--reference_epochs=0",
        "--epochs=0",
        "--evaluation_candidates=1",
        "--batch_norm=frozen",
        "--defense=clean",
        f"--output_dir={tmp_path}",
    )
    # Raw pixels in; what the network wants done to them is its first layer.
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    preprocessing, classifier = (
        keras.saving.load_model(tmp_path / f"{name}.keras")
        for name in ("preprocessing", "clean")
    )
    np.testing.assert_allclose(preprocessing(pixels), pixels, rtol=1e-6)
    assert classifier.name == "MobileNet"
    assert classifier.output_shape == (None, 2)
    np.testing.assert_allclose(
        classifier.get_layer("preprocessing")(pixels),
        pixels / 127.5 - 1,
        atol=1e-5,
    )


def test_images_app_takes_any_data_set(tmp_path):
    run(
        "images",
        "--dataset=digits",
        "--arch=mlp",
        "--limit=20",
        "--reference_epochs=1",
        "--epochs=0",
        "--defense=clean",
        f"--output_dir={tmp_path}",
    )
    results = parsed(tmp_path / "results.json")
    assert results["dataset"] == {"name": "digits", "train": 20, "test": 20}
    assert results["flags"]["dataset"] == "digits"  # key flags of common, too
    assert results["flags"]["recipe"] is None
    model = keras.saving.load_model(tmp_path / "clean.keras")
    assert [layer.name for layer in model.layers[-3:]] == ["fc1", "fc2", "fc3"]
    mean = keras.saving.load_model(tmp_path / "preprocessing.keras")
    black = np.zeros((1, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(
        mean(black), datasets.load("digits").preprocessing(black)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset=digits", "--arch=mlp", "--weights=imagenet"],
            "error: --weights: expected with a keras.applications as --arch; "
            "received with mlp.",
        ),
        (["--dataset=mnits"], "error: name: expected one of "),
        (
            ["--dataset=folder"],
            "error: data_dir: expected the folder of your images; received ",
        ),
        (
            ["--dataset=folder", "--data_dir=apps"],
            "error: image_size: expected a positive integer for 'folder'",
        ),
        (
            ["--dataset=digits", "--recipe=resnet"],
            "error: recipe: expected None for 'digits'",
        ),
        (
            ["--dataset=digits", "--recipe=theirs"],
            "flag --recipe=theirs: value should be one of <caffe|resnet>",
        ),
        (
            ["--dataset=digits", "--arch=MobileNetV2"],
            "error: input_shape: expected (height, width, 3), colours in the ",
        ),
    ],
)
def test_images_app_refuses(tmp_path, arguments, message):
    assert refused(tmp_path, *arguments, name="images").startswith(message)


def test_unknown_data_sets_have_close_matches_named(tmp_path):
    message = refused(tmp_path, "--dataset=mnits", name="images")
    assert "Close matches: mnist" in message


def test_missing_weights_file_is_refused(tmp_path, photos):
    message = refused(
        tmp_path,
        "--dataset=folder",
        f"--data_dir={photos}",
        "--image_size=32",
        "--arch=MobileNetV2",
        f"--weights={tmp_path / 'none.weights.h5'}",
        name="images",
    )
    assert message.startswith("error: weights: expected ")
    assert "none.weights.h5" in message


# --- CIFAR-10 ---------------------------------------------------------------


@pytest.mark.thorough
def test_cifar10(tmp_path, cifar_dir):
    run(
        "cifar10",
        "--limit=100",
        "--augment",
        "--reference_epochs=1",
        "--epochs=1",
        "--max_iter=1",
        "--candidates=1",
        "--evaluation_candidates=1",
        "--defense=deep_defense",
        f"--data_dir={cifar_dir}",
        f"--output_dir={tmp_path}",
    )
    results = parsed(tmp_path / "results.json")
    assert results["dataset"] == {"name": "cifar10", "train": 100, "test": 100}
    assert results["flags"]["arch"] == "convnet"
    assert drawn(tmp_path / "adversarial_images.png")  # in colours
    assert results["flags"]["augment"] is True
    assert list(results["models"]) == ["reference", "deep_defense"]
    assert set(results["training_seconds"]) == {"reference", "deep_defense"}
    model = keras.saving.load_model(tmp_path / "deep_defense.keras")
    assert model.layers[1].name == "conv1"
    assert model.input_shape == (None, 32, 32, 3)
