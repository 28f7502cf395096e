"""Exports from the command line: after a training, and of a finished file."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import run
from test_apps import TINY

import dd_keras
from dd_keras import datasets
from dd_keras.serving import weights_hash


def card_of(version):
    path = pathlib.Path(version, "assets.extra/model_card.json")
    return json.loads(path.read_text())


def logits_of(version, images):
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    return signature(images=tf.constant(images))["logits"].numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What apps/digits.py leaves with --export_dir."""
    folder = tmp_path_factory.mktemp("digits")
    run(
        "digits",
        *TINY,
        "--defense=deep_defense",
        "--c=30",
        f"--output_dir={folder / 'out'}",
        f"--export_dir={folder / 'served'}",
    )
    return folder


@pytest.fixture(scope="module")
def raw():
    return next(iter(datasets.load("digits").test.batch(50)))[0].numpy()


@pytest.mark.parametrize("name", ["reference", "deep_defense"])
def test_training_app_exports_all_its_models(trained, raw, name):
    version = trained / "served" / f"digits_cnn_{name}" / "1"
    model = keras.saving.load_model(trained / "out" / f"{name}.keras")
    prepare = keras.saving.load_model(trained / "out" / "preprocessing.keras")
    np.testing.assert_allclose(
        logits_of(version, raw), model(prepare(raw)), rtol=1e-4, atol=1e-3
    )
    card = card_of(version)
    results = json.loads((trained / "out" / "results.json").read_text())
    numbers = card["evaluation"]["numbers"]
    assert numbers["accuracy"] == results["models"][name]["accuracy"]
    assert numbers["rho2"] == results["models"][name]["rho2"]
    assert sum(key.startswith("fgsm_accuracy@") for key in numbers) == 20
    assert card["dataset"] == "digits"
    assert card["weights_sha256"] == weights_hash(model)
    assert card["training"]["epochs"] == 2
    if name == "reference":
        assert card["defense"] is None
    else:
        assert card["defense"] == {
            "name": "Deep Defense",
            "lam": 15.0,
            "c": 30.0,
            "d": 5.0,
            "shrinkage": "exponential",
            "aggregation": "mean",
            "attack": "deepfool",
            "bounded": False,
            "gradient": "unrolled",
            "norm": 2.0,
            "max_iter": 5,
            "candidates": None,
            "regularized_layers": None,
        }


def test_server_finds_its_files_and_something_to_ask(trained):
    served = trained / "served"
    assert sorted(path.name for path in served.iterdir()) == [
        "batching.config",
        "digits_cnn_deep_defense",
        "digits_cnn_reference",
        "examples",
        "examples.md",
        "models.config",
    ]
    config = (served / "models.config").read_text()
    assert '"/models/digits_cnn_deep_defense"' in config
    examples = sorted((served / "examples").iterdir())
    data = datasets.load("digits").test.take(4).as_numpy_iterator()
    for path, (image, label) in zip(examples, data, strict=True):
        assert path.name.endswith(f"_class_{label}.png")
        pixels = tf.io.decode_png(path.read_bytes()).numpy()
        np.testing.assert_array_equal(pixels, np.round(image))


def test_examples_are_told_as_the_server_answers(trained):
    served = trained / "served"
    _, _, *rows = re.findall(
        r"^\|.*", (served / "examples.md").read_text(), re.M
    )
    paths = sorted((served / "examples").iterdir())
    names = ["digits_cnn_reference", "digits_cnn_deep_defense"]
    robustness, classes = (
        {
            name: tf.saved_model.load(served / name / "1").signatures[signature]
            for name in names
        }
        for signature in ("robustness", "serving_default")
    )
    for row, path in zip(rows, paths, strict=True):
        picture, label, *told = [cell.strip() for cell in row.split("|")[1:-1]]
        assert picture == f"![](examples/{path.name})"
        assert path.name.endswith(f"_class_{label}.png")
        image = tf.io.decode_png(path.read_bytes())[None]
        image = tf.cast(image, tf.float32)
        for name, answer in zip(names, told, strict=True):
            found = classes[name](images=image)
            near = robustness[name](images=image)
            probability = 100 * np.max(found["probabilities"])
            assert answer == (
                f"{found['classes'][0]}, {probability:.1f} %; rho "
                f"{near['rho'][0]:.3f} to {near['nearest_class'][0]}"
            )


@pytest.fixture(scope="module")
def model_file(trained):
    return trained / "out" / "deep_defense.keras"


def export(model_file, export_dir, *more):
    run("export", f"--model={model_file}", f"--export_dir={export_dir}", *more)


def test_finished_file_with_its_numbers_and_settings(
    model_file, raw, tmp_path, capsys
):
    results = model_file.parent / "results.json"
    chosen = (
        "--dataset=digits",
        "--limit=60",
        "--metrics=accuracy,rho2",
        "--defense=deep_defense",
        f"--results={results}",
        "--name=robust",
        "--candidates=4",
        "--max_iter=20",
    )
    export(model_file, tmp_path, *chosen)
    printed = capsys.readouterr().out
    version = tmp_path / "robust" / "1"
    assert f"  {version}\n" in printed
    assert "rho2" in printed
    card = card_of(version)
    data = datasets.load("digits")
    test = datasets.batches(data.test.take(60), data.preprocessing, 500)
    model = keras.saving.load_model(model_file)
    report = dd_keras.evaluate_robustness(
        model, test, metrics=["accuracy", "rho2"]
    )
    assert card["evaluation"]["numbers"] == report.summary()
    assert card["name"] == "robust"
    assert card["defense"]["name"] == "Deep Defense"
    assert card["defense"]["c"] == 30.0
    assert card["training"]["reference_epochs"] == 60
    assert card["robustness_attack"].startswith("DeepFool(")
    assert "candidates=4" in card["robustness_attack"]
    assert "max_iter=20" in card["robustness_attack"]
    signature = card["signatures"]["serving_default"]
    assert "labels" in signature["outputs"]
    np.testing.assert_allclose(
        logits_of(version, raw),
        model(data.preprocessing(raw)),
        rtol=1e-4,
        atol=1e-3,
    )
    # Once more is the next version, and none is overwritten.
    export(model_file, tmp_path, *chosen[:1], "--metrics=", "--name=robust")
    assert card_of(tmp_path / "robust" / "2")["evaluation"] is None
    with pytest.raises(SystemExit, match="error: version: expected one that"):
        export(model_file, tmp_path, *chosen, "--version=2")
    assert (tmp_path / "models.config").read_text().count("name:") == 1


def test_any_classifier_without_a_data_set(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten(),
                              keras.layers.Dense(4, "softmax")])  # fmt: skip
    model.save(tmp_path / "four.keras")
    prepare = keras.Sequential(
        [keras.Input((6, 5, 3)), keras.layers.Rescaling(1 / 255)]
    )
    prepare.save(tmp_path / "prepare.keras")
    export(
        tmp_path / "four.keras",
        tmp_path / "served",
        "--dataset=none",
        f"--preprocessing={tmp_path / 'prepare.keras'}",
        "--image_dtype=uint8",
        "--nowarm_up",
    )
    version = tmp_path / "served" / "four" / "1"
    assert f"  {version}\n" in capsys.readouterr().out
    loaded = tf.saved_model.load(str(version))
    x = np.random.RandomState(0).randint(0, 256, (3, 6, 5, 3)).astype("uint8")
    answer = loaded.signatures["serving_default"](images=tf.constant(x))
    np.testing.assert_allclose(
        answer["probabilities"], model(x / np.float32(255)), atol=1e-6
    )
    assert "labels" not in answer
    assert not (version / "assets.extra/tf_serving_warmup_requests").exists()
    assert not (tmp_path / "served" / "examples").exists()


def test_evaluate_takes_what_was_exported(trained, model_file, tmp_path):
    """The distances in pixels are those of the file that was exported."""
    version = trained / "served" / "digits_cnn_deep_defense" / "1"
    for name, arguments in {
        "file": (f"--model={model_file}",),
        "export": (f"--model={version}", "--preprocessing=none"),
    }.items():
        run(
            "evaluate",
            *arguments,
            "--dataset=digits",
            "--metrics=accuracy,l2",
            "--limit=80",
            f"--output_dir={tmp_path / name}",
        )
    one, other = (
        json.loads((tmp_path / name / "report.json").read_text())["summary"]
        for name in ("file", "export")
    )
    assert one["accuracy"] == other["accuracy"]
    assert one["l2"] == pytest.approx(other["l2"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model=missing.keras",), "missing.keras: expected a Keras model"),
        (("--results=missing.json",), "--results: expected the results.json"),
        (("--dataset=mnistt",), "name: expected one of"),
        (("--candidates=10", "--metrics="), "candidates: expected at most 9"),
        (("--export_dir=setup.py",), "--export_dir: expected a directory"),
    ],
)
def test_bad_flags_end_with_one_line(model_file, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        export(model_file, tmp_path, "--dataset=digits", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a/b", "../x", "", "..", ".", "examples", "a\nb"]
)
def test_name_must_be_that_of_a_folder(model_file, tmp_path, name):
    with pytest.raises(flags.IllegalFlagValueError, match="name of a folder"):
        export(model_file, tmp_path / "served", f"--name={name}")
    assert list(tmp_path.iterdir()) == []


def test_name_of_the_file_must_be_that_of_a_folder(tmp_path):
    """It is checked before anything is loaded: there is no such file."""
    path = tmp_path / "examples.keras"
    with pytest.raises(SystemExit, match=r"--name: .* received 'examples'"):
        export(path, tmp_path / "served", "--dataset=digits")
    assert not (tmp_path / "served" / "examples").exists()
