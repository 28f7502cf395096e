"""The apps from end to end on tiny data: what they promise and refuse."""

import csv
import hashlib
import json
import math
import re
import shlex
import shutil
import sys
import zipfile

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl import app as absl_app
from absl import flags
from conftest import ROOT, imported, program, run, shell

from paper.tables import published

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.utils import norms

FLAGS = flags.FLAGS
MODELS = ("reference", "clean", "deep_defense")
TITLES = {
    "reference": "reference",
    "clean": "fine-tuned, no regulariser",
    "deep_defense": "Deep Defense",
}
# Enough training for a reference that Deep Defense can work on: on one that
# has hardly learnt, rho is far above 1 and the penalty diverges.
TINY = (
    "--limit=100",
    "--batch_size=15",
    "--reference_epochs=60",
    "--epochs=2",
    "--reference_learning_rate=3e-3",
    "--learning_rate=1e-4",
    "--c=25",
)
EPOCHS, REFERENCE_EPOCHS, IMAGES = 2, 60, 100


def contents(directory):
    """What a directory holds: its files' paths and digests."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def parsed(path):
    """A JSON file, parsed as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path.name}: {constant} is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def table(text):
    """The rows of the closing table, by model, as the cells printed."""
    rows = {}
    for name, title in TITLES.items():
        cells = re.findall(
            rf"^{re.escape(title)} +(\S+) % +(\S+) +(\S+) +(\S+) +(\d+ s|-)$",
            text,
            re.MULTILINE,
        )
        if cells:
            (rows[name],) = cells
    return rows


def epochs_logged(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


# --- A whole run ------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the digits app: its directory and what it printed."""
    directory = tmp_path_factory.mktemp("trained")
    finished = program("apps/digits.py", *TINY, f"--output_dir={directory}")
    assert finished.returncode == 0, finished.stderr
    return directory, finished.stdout


@pytest.fixture(scope="module")
def results(trained):
    return parsed(trained[0] / "results.json")


def test_writes_every_file_it_promises(trained):
    directory, _ = trained
    assert {path.name for path in directory.iterdir()} == {
        *(f"{name}.keras" for name in MODELS),
        "preprocessing.keras",
        "results.json",
        "convergence.png",
        "adversarial_images.png",
        "logs",
    }
    assert not [path for path in contents(directory) if ".part" in path]
    for name in ("convergence.png", "adversarial_images.png"):
        assert matplotlib.image.imread(directory / name).std() > 0


def test_results_name_the_images_of_the_picture(trained, results):
    """Of different classes; with the distances that stand below them."""
    shown = results["pictured"]
    labels = [image["label"] for image in shown]
    assert 1 <= len(shown) == len(set(labels)) <= 4
    data = datasets.load("digits")
    of_all = [int(label) for _, label in data.test.as_numpy_iterator()]
    batch = np.stack([image for image, _ in data.test.as_numpy_iterator()])
    for image in shown:
        assert of_all[image["test_image"]] == image["label"]
    titles = {"reference": "reference", "deep_defense": "Deep Defense"}
    x = data.preprocessing(batch[[image["test_image"] for image in shown]])
    for name, title in titles.items():
        model = keras.models.load_model(trained[0] / f"{name}.keras")
        found = attacks.DeepFool().run(model, x)
        np.testing.assert_allclose(
            [image["rho"][title] for image in shown],
            norms.rho(found.perturbation, x),
            rtol=1e-3,
        )


def test_says_where_every_file_is(trained):
    directory, printed = trained
    _, _, written = printed.partition("\nWritten:\n")
    named = {
        line.strip().split(": ")[0]
        for line in written.splitlines()
        if line.startswith("  ")
    }
    assert named == {str(path) for path in directory.iterdir()}
    assert re.search(r"^Done in \d+ s\.$", written, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("reference", REFERENCE_EPOCHS),
        ("clean", EPOCHS),
        ("deep_defense", EPOCHS),
    ],
)
def test_logs_have_one_row_an_epoch(trained, results, name, epochs):
    rows = epochs_logged(trained[0] / "logs" / f"{name}.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    if name == "reference":
        return
    for key, column in (
        ("accuracy", "val_accuracy"),
        ("rho", "val_rho2"),
    ):
        logged = [float(row[column]) for row in rows]
        assert results["curves"][name][key][1:] == pytest.approx(logged)


@pytest.mark.parametrize(
    ("name", "splits", "epochs"),
    [
        ("reference", ["train"], REFERENCE_EPOCHS),
        ("clean", ["train", "validation"], EPOCHS),
        ("deep_defense", ["train", "validation"], EPOCHS),
    ],
)
def test_tensorboard_has_each_epochs_loss(trained, name, splits, epochs):
    logs = trained[0] / "logs" / name
    assert sorted(path.name for path in logs.iterdir()) == splits
    for split in splits:
        (path,) = (logs / split).glob("events.out.tfevents.*")
        steps = [
            event.step
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
            if value.tag == "epoch_loss"
        ]
        assert steps == list(range(epochs))


def test_results_say_what_made_them(trained, results):
    directory, _ = trained
    arguments = [*TINY, f"--output_dir={directory}"]
    assert results["command"] == shlex.join(
        ["python", "apps/digits.py", *arguments]
    )
    assert results["flags"] == {
        "arch": "digits_cnn",
        "lam": 15.0,
        "c": 25.0,
        "d": 5.0,
        "gradient": "unrolled",
        "norm": 2.0,
        "max_iter": 5,
        "candidates": None,
        "epochs": EPOCHS,
        "halved_epochs": 1,
        "last_rate": 0.5,
        "batch_size": 15,
        "learning_rate": 1e-4,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "reference": None,
        "reference_epochs": REFERENCE_EPOCHS,
        "reference_learning_rate": 3e-3,
        "reference_weight_decay": None,
        "reference_last_epochs": 1,
        "reference_last_rate": 0.5,
        "defense": ["clean", "deep_defense"],
        "weights": None,
        "evaluation_candidates": None,
        "regularized_layers": None,
        "lam_start": 0.0,
        "regularization_warmup": 0.0,
        "batch_norm": "trained",
        "shrinkage": "exponential",
        "aggregation": "mean",
        "attack": "deepfool",
        "bounded": False,
        "eps": 25.5,
        "ball": "linf",
        "attack_steps": 10,
        "trades_beta": 6.0,
        "d_max": 510.0,
        "clean_share": 1 / 3,
        "gradient_lam": 1e4,
        "alpha": 0.5,
        "include_clean": False,
        "beta": 1e-4,
        "fraction": 0.3,
        "augment": False,
        "seed": 0,
        "data_dir": None,
        "image_size": None,
        "max_image_pixels": None,
        "output_dir": str(directory),
        "export_dir": None,
        "html": False,
        "eval_only": False,
        "limit": IMAGES,
        "precision": "float32",
        "validation_split": 0.0,
        "validation_freq": 1,
        "keep": "last",
        "accuracy_weight": 0.0,
        "checkpoint_steps": None,
        "robustness_board": False,
        "deterministic": False,
        "distribution": "none",
        "replicas": None,
        "overwrite": False,
    }
    assert results["versions"] == {
        "dd_keras": dd_keras.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert results["dataset"] == {
        "name": "digits",
        "train": IMAGES,
        "test": IMAGES,
    }


def test_results_hold_each_models_numbers(results):
    assert list(results["models"]) == list(MODELS)
    first = results["models"]["reference"]
    assert first["accuracy"] > 0.6  # ten classes: chance is 0.1
    for values in results["models"].values():
        assert set(values) == {
            "accuracy", "rho2", "l2", "rho2_fooled", "samples", "rho_ratio"
        }  # fmt: skip
        assert values["samples"] == IMAGES
        assert values["rho2_fooled"] == 1.0
        assert values["rho2"] > 0.05
        # Digits less their mean have norms of 400 to 800.
        assert 400 < values["l2"] / values["rho2"] < 800
        assert values["rho_ratio"] == values["rho2"] / first["rho2"]
    assert first["rho_ratio"] == 1.0
    assert set(results["training_seconds"]) == set(MODELS)


def test_curves_go_from_the_reference_to_the_saved_models(results):
    first = results["models"]["reference"]
    assert set(results["curves"]) == {"clean", "deep_defense"}
    for name, curve in results["curves"].items():
        last = results["models"][name]
        for key, summary_key in (("accuracy", "accuracy"), ("rho", "rho2")):
            assert len(curve[key]) == EPOCHS + 1
            assert curve[key][0] == first[summary_key]
            assert curve[key][-1] == pytest.approx(last[summary_key], rel=1e-4)
        assert len(curve["training_loss"]) == EPOCHS
    plain, regularized = (
        results["curves"][name]["training_loss"][0] for name in MODELS[1:]
    )
    assert regularized > 2 * plain


def test_table_prints_the_numbers_of_the_json(trained, results):
    rows = table(trained[1])
    assert set(rows) == set(MODELS)
    for name, (accuracy, rho, ratio, distance, seconds) in rows.items():
        values = results["models"][name]
        assert accuracy == f"{100 * values['accuracy']:.2f}"
        assert rho == f"{values['rho2']:.4f}"
        assert ratio == f"{values['rho_ratio']:.2f}"
        assert distance == f"{values['l2']:.1f}"
        assert seconds == f"{results['training_seconds'][name]:.0f} s"


@pytest.mark.thorough
def test_saved_models_load_in_plain_keras(trained, results, tmp_path):
    directory, _ = trained
    data = datasets.load("digits")
    test = list(data.test.take(IMAGES).as_numpy_iterator())
    np.savez(
        tmp_path / "test.npz",
        images=np.stack([image for image, _ in test]),
        labels=np.stack([label for _, label in test]),
    )
    script = tmp_path / "user.py"
    script.write_text(
        """
import sys
import keras
import numpy as np

data, directory, *names = sys.argv[1:]
test = np.load(data)
load = keras.saving.load_model
x = load(f"{directory}/preprocessing.keras")(test["images"])
for name in names:
    logits = load(f"{directory}/{name}.keras").predict(x, verbose=0)
    print(name, np.mean(np.argmax(logits, axis=1) == test["labels"]))
assert "dd_keras" not in sys.modules
"""
    )
    finished = shell(
        script, tmp_path / "test.npz", directory, *MODELS, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    accuracy = dict(line.split() for line in finished.stdout.splitlines())
    assert {name: float(value) for name, value in accuracy.items()} == {
        name: results["models"][name]["accuracy"] for name in MODELS
    }


def test_eval_only_gives_the_same_numbers_and_changes_no_model(
    trained, results, tmp_path, capsys
):
    directory = shutil.copytree(trained[0], tmp_path / "copy")
    before = contents(directory)
    run("digits", *TINY, "--eval_only", f"--output_dir={directory}")
    after = contents(directory)
    assert set(after) == {*before, "evaluation.json"}
    for path in before:
        assert after[path] == before[path] or path == "adversarial_images.png"

    evaluation = parsed(directory / "evaluation.json")
    assert evaluation["flags"]["eval_only"] is True
    assert evaluation["curves"] == evaluation["training_seconds"] == {}
    for name, values in results["models"].items():
        assert evaluation["models"][name] == pytest.approx(values, rel=1e-5)
    rows = table(capsys.readouterr().out)
    expected = table(trained[1])
    assert rows == {name: (*expected[name][:4], "-") for name in MODELS}


# --- Flags ------------------------------------------------------------------


def affine(path, activation=None, stddev=1e-3, shape=(8, 8, 1), classes=10):
    """Saves an affine classifier of small random weights."""
    kernel = np.random.default_rng(0).normal(
        scale=stddev, size=(math.prod(shape), classes)
    )
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation=activation),
        ]
    )
    model.layers[-1].set_weights([kernel, np.zeros(classes)])
    model.save(path)
    return path


def digits_arrays(split, n):
    """The first n digits, preprocessed and flat, and their labels."""
    data = datasets.load("digits")
    batches = datasets.batches(
        getattr(data, split).take(n), data.preprocessing, n
    )
    x, y = next(batches.as_numpy_iterator())
    return x.reshape(n, -1).astype(np.float64), y


def sgd(kernel, bias, x, y, rates, momentum, weight_decay):
    """Full-batch SGD of softmax regression with coupled weight decay."""
    parameters = [kernel.astype(np.float64), bias.astype(np.float64)]
    velocities = [0.0, 0.0]
    for rate in rates:
        logits = x @ parameters[0] + parameters[1]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        slope = (p - np.eye(10)[y]) / len(y)
        for i, gradient in enumerate((x.T @ slope, slope.sum(axis=0))):
            gradient = gradient + weight_decay * parameters[i]
            velocities[i] = momentum * velocities[i] - rate * gradient
            parameters[i] = parameters[i] + velocities[i]
    return parameters


FULL_BATCH = (
    "--limit=20",
    "--batch_size=20",
    "--epochs=3",
    "--lam=0",
    "--defense=deep_defense",
    "--learning_rate=2e-6",
)


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """A softmax reference, fine-tuned with every strength set to 0."""
    directory = tmp_path_factory.mktemp("zeros")
    reference = affine(directory / "mine.keras", "softmax")
    output_dir = directory / "out"
    run(
        "digits",
        *FULL_BATCH,
        "--momentum=0",
        "--weight_decay=0",
        "--halved_epochs=0",
        f"--reference={reference}",
        f"--output_dir={output_dir}",
    )
    return reference, output_dir


@pytest.mark.thorough
def test_zero_strengths_leave_plain_gradient_descent(zeros):
    reference, output_dir = zeros
    start = weights(reference)
    end = weights(output_dir / "deep_defense.keras")
    expected = sgd(*start, *digits_arrays("train", 20), [2e-6] * 3, 0, 0)
    for new, old, value in zip(end, start, expected, strict=True):
        assert np.abs(new - old).max() > 0
        np.testing.assert_allclose(new - old, value - old, rtol=1e-3, atol=1e-8)


def test_reference_is_taken_as_it_is(zeros):
    reference, output_dir = zeros
    kept = keras.saving.load_model(output_dir / "reference.keras")
    for new, old in zip(kept.get_weights(), weights(reference), strict=True):
        np.testing.assert_array_equal(new, old)
    x, y = digits_arrays("test", 20)
    p = kept.predict(x.reshape(-1, 8, 8, 1), verbose=0)
    np.testing.assert_allclose(p.sum(axis=1), np.ones(20), rtol=1e-5)
    written = parsed(output_dir / "results.json")
    accuracy = np.mean(p.argmax(axis=1) == y)
    assert written["models"]["reference"]["accuracy"] == accuracy
    assert set(written["training_seconds"]) == {"deep_defense"}
    assert not (output_dir / "logs" / "reference.csv").exists()


def test_no_clean_baseline_leaves_no_trace_of_one(zeros):
    _, output_dir = zeros
    written = parsed(output_dir / "results.json")
    assert written["flags"]["defense"] == ["deep_defense"]
    assert set(written["models"]) == {"reference", "deep_defense"}
    assert set(written["curves"]) == {"deep_defense"}
    assert not [path for path in contents(output_dir) if "clean" in path]


def train_only(name, *arguments):
    """Runs an app up to its evaluation, which is interrupted."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dd_keras, "evaluate_robustness", interrupted)
        with pytest.raises(SystemExit) as ended:
            run(name, *arguments)
    assert ended.value.code == 130


def test_optimizer_flags_do_what_they_say(tmp_path):
    reference = affine(tmp_path / "mine.keras")
    momentum, weight_decay, rates = 0.9, 10.0, [2e-6, 2e-6, 1e-6]
    train_only(
        "digits",
        *FULL_BATCH,
        f"--momentum={momentum}",
        f"--weight_decay={weight_decay}",
        "--halved_epochs=1",
        f"--reference={reference}",
        f"--output_dir={tmp_path / 'out'}",
    )
    start = weights(reference)
    end = weights(tmp_path / "out" / "deep_defense.keras")
    expected = sgd(
        *start, *digits_arrays("train", 20), rates, momentum, weight_decay
    )
    for new, old, value in zip(end, start, expected, strict=True):
        np.testing.assert_allclose(new - old, value - old, rtol=1e-3, atol=1e-8)


UNTRAINED = (
    "--limit=20",
    "--epochs=0",
    "--reference_epochs=0",
    "--defense=deep_defense",
)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("untrained")
    run("digits", *UNTRAINED, f"--output_dir={directory}")
    return directory


@pytest.mark.thorough
def test_zero_epochs_train_nothing(untrained):
    reference = weights(untrained / "reference.keras")
    for new, old in zip(
        weights(untrained / "deep_defense.keras"), reference, strict=True
    ):
        np.testing.assert_array_equal(new, old)
    for weight in reference:  # as they were drawn: N(0, 0.01), biases 0
        if weight.ndim == 1:
            np.testing.assert_array_equal(weight, np.zeros_like(weight))
        else:
            assert weight.std() == pytest.approx(0.01, rel=0.2)
    for name in ("reference", "deep_defense"):
        assert epochs_logged(untrained / "logs" / f"{name}.csv") == []


def test_zero_epochs_have_curves_of_the_reference_alone(untrained):
    written = parsed(untrained / "results.json")
    first = written["models"]["reference"]
    assert written["curves"] == {
        "deep_defense": {
            "accuracy": [first["accuracy"]],
            "rho": [first["rho2"]],
            "training_loss": [],
        }
    }
    assert written["models"]["deep_defense"] == first
    assert not (untrained / "convergence.png").exists()


def test_seed_draws_the_weights(untrained, tmp_path):
    train_only(
        "digits", *UNTRAINED, "--seed=1", f"--output_dir={tmp_path / 'other'}"
    )
    assert parsed(untrained / "results.json")["flags"]["seed"] == 0
    kernel = weights(untrained / "reference.keras")[0]
    other = weights(tmp_path / "other" / "reference.keras")[0]
    assert np.abs(other - kernel).max() > 1e-3


@pytest.fixture(scope="module")
def infinity_norm(tmp_path_factory):
    """A run with every flag of the method set; the wrappers it made."""
    directory = tmp_path_factory.mktemp("infinity")
    made = []

    def recorded(prepare):
        def record(*arguments):
            model, train = prepare(*arguments)
            made.append(model)
            return model, train

        return record

    with pytest.MonkeyPatch.context() as patch:
        for name, method in dd_keras.defenses.METHODS.items():
            prepare = recorded(method.prepare)
            patch.setitem(
                dd_keras.defenses.METHODS,
                name,
                method._replace(prepare=prepare),
            )
        run(
            "digits",
            "--limit=20",
            "--epochs=1",
            "--learning_rate=1e-6",
            "--lam=0.5",
            "--c=7",
            "--d=2",
            "--norm=inf",
            "--max_iter=2",
            "--candidates=3",
            f"--reference={affine(directory / 'mine.keras')}",
            f"--output_dir={directory / 'out'}",
        )
    return directory / "out", made


def test_flags_of_the_method_reach_the_model(infinity_norm):
    clean, deep_defense = infinity_norm[1]
    assert type(clean) is dd_keras.DefenseModel
    assert deep_defense.lam == 0.5
    assert (deep_defense.penalty.c, deep_defense.penalty.d) == (7.0, 2.0)
    assert deep_defense.attack.get_config() == {
        "norm": math.inf,
        "max_iter": 2,
        "overshoot": 0.02,
        "candidates": 3,
        "bounds": None,
    }
    # Tests attack all classes, and for as long as it takes.
    assert deep_defense.evaluation_attack.candidates is None
    assert deep_defense.evaluation_attack.max_iter == 50


def test_infinity_norm_is_written_as_json(infinity_norm):
    written = parsed(infinity_norm[0] / "results.json")
    assert written["flags"]["candidates"] == 3
    for values in written["models"].values():
        assert {"rhoinf", "linf"} < set(values)
        assert 0 < values["rhoinf"] < 1
    for name, curve in written["curves"].items():
        assert curve["rho"][-1] == pytest.approx(
            written["models"][name]["rhoinf"], rel=1e-4
        )


def test_reference_that_nothing_fools_is_reported_all_the_same(
    tmp_path, capsys
):
    """A constant classifier has rho 0, and no ratio to it."""
    reference = affine(tmp_path / "mine.keras", stddev=0.0)
    run(
        "digits",
        "--limit=20",
        "--epochs=0",
        "--defense=deep_defense",
        f"--reference={reference}",
        f"--output_dir={tmp_path / 'out'}",
    )
    values = parsed(tmp_path / "out" / "results.json")["models"]["reference"]
    assert values["rho2"] == values["l2"] == values["rho2_fooled"] == 0.0
    assert table(capsys.readouterr().out)["reference"][1] == "0.0000"


PAPER = {
    f"{dataset}_{network}": settings
    for dataset, networks in published("settings").items()
    for network, settings in networks.items()
}


@pytest.mark.parametrize("row", PAPER)
def test_flagfiles_hold_the_papers_settings(row):
    dataset, network = row.split("_")
    with imported(dataset):
        defaults = FLAGS.flag_values_dict()
        FLAGS([dataset, f"--flagfile={ROOT}/apps/flags/{row}.cfg"])
        values = FLAGS.flag_values_dict()
    imagenet = dataset == "imagenet"
    paper = {
        "arch": network,
        "max_iter": 5,
        "fraction": 0.3,
        "beta": 3e-4 if dataset == "cifar10" else 1e-4,
        "augment": imagenet or network == "nin",
        **PAPER[row],
    }
    assert {name: values[name] for name in paper} == paper
    assert values["norm"] == 2.0
    assert values["candidates"] == (10 if imagenet else None)
    # The defaults are the paper's as well; of the reference it says nothing.
    changed = {name for name in values if values[name] != defaults[name]}
    reference = {"reference_epochs", "reference_learning_rate"}
    own = {
        "nin": {"c", "augment"},
        "resnet18": {"epochs", "halved_epochs"},
    }.get(network, set())
    assert changed <= {"arch", "flagfile"} | reference | own


def test_every_flagfile_is_held_to_the_paper():
    files = (ROOT / "apps" / "flags").glob("*.cfg")
    assert {path.stem for path in files} == set(PAPER)


@pytest.mark.thorough
def test_mnist_runs_from_its_flagfile(tmp_path, mnist_dir, capsys):
    run(
        "mnist",
        f"--flagfile={ROOT / 'apps/flags/mnist_mlp.cfg'}",
        "--limit=200",
        "--epochs=1",
        f"--reference={ROOT / 'savedmodels/mnist_mlp_reference.keras'}",
        f"--data_dir={mnist_dir}",
        f"--output_dir={tmp_path}",
    )
    written = parsed(tmp_path / "results.json")
    assert written["dataset"] == {"name": "mnist", "train": 200, "test": 200}
    assert written["flags"]["arch"] == "mlp"
    assert written["flags"]["epochs"] == 1
    for name in MODELS:
        values = written["models"][name]
        assert values["samples"] == 200
        assert values["accuracy"] > 0.95
        assert 0.02 < values["rho2"] < 1
        model = keras.saving.load_model(tmp_path / f"{name}.keras")
        assert [layer.name for layer in model.layers[-3:]] == [
            "fc1",
            "fc2",
            "fc3",
        ]
    assert set(table(capsys.readouterr().out)) == set(MODELS)


# --- Bad input --------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path):
    """An output directory with the results of an earlier run."""
    directory = tmp_path / "out"
    directory.mkdir()
    for name in ("reference.keras", "preprocessing.keras", "results.json"):
        (directory / name).write_text(f"an earlier {name}")
    return directory


def refused(directory, *arguments, name="digits"):
    """The one line an app ends with; asserts that it touched no result."""
    before = contents(directory)
    with pytest.raises((flags.Error, SystemExit)) as caught:
        run(
            name,
            "--limit=20",
            "--epochs=1",
            "--reference_epochs=1",
            f"--output_dir={directory}",
            *arguments,
        )
    message = str(caught.value)
    assert "\n" not in message
    if caught.type is SystemExit:  # a text there is exit status 1
        assert message.startswith("error: ")
    assert contents(directory) == before
    return message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lam=-1", r"flag --lam=-1(\.0)?: .*non-negative"),
        ("--lam=nan", r"flag --lam=nan: --lam must be finite"),
        ("--c=0", "flag --c=0: expected a number above 0, or auto"),
        ("--norm=nan", r"flag --norm=nan: --norm must be a number"),
        ("--candidates=10", r"candidates: expected at most 9,.*received 10"),
        ("--learning_rate=0", r"flag --learning_rate=0(\.0)?: .*above 0"),
        ("--momentum=nan", r"--momentum must be finite"),
        (
            "--arch=vgg",
            r"flag --arch=vgg: --arch must be one of digits_cnn, mlp, or ",
        ),
        (
            "--output_dir=",
            r"flag --output_dir=: --output_dir must not be empty",
        ),
        ("--learning_rat=1", r"Unknown command line flag 'learning_rat'"),
    ],
)
def test_bad_flags_are_refused_by_name(earlier, argument, message):
    assert re.search(message, refused(earlier, argument))


def test_arguments_that_are_no_flags_are_refused():
    with (
        imported("digits") as module,
        pytest.raises(
            absl_app.UsageError,
            match=r"^expected only flags; received \['epochs=3'\]\.$",
        ),
    ):
        module.main(["digits.py", "epochs=3"])


def missing(path):
    del path


def truncated(path):
    affine(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def without_weights(path):
    """A zip file that opens, with a part of what Keras put in."""
    affine(path)
    with zipfile.ZipFile(path) as whole:
        config = whole.read("config.json")
    with zipfile.ZipFile(path, "w") as partial:
        partial.writestr("config.json", config)


def custom_layer(path):
    """A model with a layer whose class the app cannot know."""

    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Doubled()(inputs))
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(path)


def of_rank_four(path):
    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, keras.layers.Conv2D(10, 3)(inputs)).save(path)


def one_number(path):
    affine(path, classes=1)


def two_outputs(path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(inputs)
    outputs = [keras.layers.Dense(n)(x) for n in (10, 3)]
    keras.Model(inputs, outputs).save(path)


def three_channels(path):
    affine(path, shape=(8, 8, 3))


def three_classes(path):
    affine(path, classes=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "expected a Keras model file (.keras); there is none."),
        (truncated, "expected a whole Keras model file (.keras); it is dama"),
        (without_weights, "expected a whole Keras model file (.keras); it "),
        (custom_layer, "expected a whole Keras model file (.keras); it "),
        (
            of_rank_four,
            "model: expected outputs of shape (batch, classes); those of "
            "'functional",
        ),
        (
            two_outputs,
            "model: expected a classifier with one output tensor; 'functional",
        ),
        (
            one_number,
            "expected a classifier of (8, 8, 1) images into 10 classes; "
            "received one of (8, 8, 1) into 2.",
        ),
        (
            three_channels,
            "expected a classifier of (8, 8, 1) images into 10 classes; "
            "received one of (8, 8, 3) into 10.",
        ),
        (
            three_classes,
            "expected a classifier of (8, 8, 1) images into 10 classes; "
            "received one of (8, 8, 1) into 3.",
        ),
    ],
)
def test_bad_references_are_refused_by_file(earlier, tmp_path, make, message):
    reference = tmp_path / "mine.keras"
    make(reference)
    found = refused(earlier, f"--reference={reference}", "--overwrite")
    assert found.startswith(f"error: {reference}: {message}")


def test_refused_run_leaves_nothing_behind(tmp_path):
    refused(tmp_path, f"--reference={tmp_path / 'missing.keras'}")
    assert list(tmp_path.rglob("*")) == []


def test_eval_only_without_models_is_refused(tmp_path):
    message = refused(tmp_path, "--eval_only")
    assert message == (
        f"error: {tmp_path / 'reference.keras'}: expected a Keras model file "
        "(.keras); there is none."
    )


def test_output_dir_that_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    path = file / "below"
    message = refused(tmp_path, f"--output_dir={path}")
    assert message == (
        "error: --output_dir: expected a directory to write to; "
        f"[Errno 20] Not a directory: '{path}'."
    )


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionError("HTTPSConnectionPool: Max retries exceeded"),
        AssertionError("Dataset mnist: could not find data"),
    ],
)
def test_mnist_that_cannot_be_had_is_refused(
    earlier, tmp_path, monkeypatch, cause
):
    import tensorflow_datasets

    def download(*args, **kwargs):
        raise cause

    monkeypatch.setattr(
        tensorflow_datasets.core.DatasetBuilder,
        "download_and_prepare",
        download,
    )
    # As if there were a network.
    monkeypatch.setattr(datasets.tfds_sets, "_reach", lambda url: None)
    empty = tmp_path / "nothing"
    empty.mkdir()
    message = refused(earlier, f"--data_dir={empty}", name="mnist")
    assert message.startswith(
        f"error: mnist: could be neither read from {empty} nor downloaded"
    )
    assert "pass it as data_dir (--data_dir in the apps)" in message
    assert message.endswith(f"The cause: {type(cause).__name__}: {cause}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("split", ["train", "test"])
def test_pixels_that_are_not_finite_are_refused(
    earlier, monkeypatch, split, value
):
    data = datasets.load("digits")
    images = np.zeros((20, 8, 8, 1), np.float32)
    images[7, 2, 3, 0] = value
    damaged = tf.data.Dataset.from_tensor_slices(
        (images, np.arange(20, dtype=np.int64) % 10)
    )
    monkeypatch.setattr(
        datasets, "load", lambda *_, **__: data._replace(**{split: damaged})
    )
    assert refused(earlier) == (
        f"error: digits {split}: expected finite pixels; received NaN or "
        "infinity in image 7."
    )


def test_loss_that_diverges_ends_the_run_without_that_model(tmp_path):
    reference = affine(tmp_path / "mine.keras")
    with pytest.raises(
        SystemExit,
        match=r"^error: the training of 'Deep Defense' diverged in epoch 1, "
        r"step 1: the weight '.*' is no longer finite\..* No model was written",
    ):
        run(
            "digits",
            "--limit=20",
            "--epochs=3",
            "--learning_rate=1e38",
            "--lam=0",
            "--defense=deep_defense",
            f"--reference={reference}",
            f"--output_dir={tmp_path / 'out'}",
        )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "reference.keras", "preprocessing.keras", "logs", "checkpoints",
    }  # fmt: skip


def test_truncated_reference_on_the_command_line_exits_with_one_line(
    tmp_path,
):
    reference, output_dir = tmp_path / "mine.keras", tmp_path / "out"
    truncated(reference)
    finished = program(
        "apps/digits.py",
        f"--reference={reference}",
        f"--output_dir={output_dir}",
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith(
        f"error: {reference}: expected a whole Keras model file (.keras); "
    )
    assert "Traceback" not in finished.stdout + finished.stderr
    assert not output_dir.exists() or contents(output_dir) == {}
