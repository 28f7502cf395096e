"""Exports: versions that are whole, and errors before anything is written."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, shell

import dd_keras
from dd_keras import attacks
from dd_keras.serving import saved_model, warm_up
from dd_keras.utils import files


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def export(path, model=None, **options):
    """A quick export."""
    options.setdefault("attack", attacks.DeepFool(max_iter=1))
    return dd_keras.export(model or small_model(), path, **options)


def whole(version):
    """Whether a version has all that an export writes, and answers."""
    version = pathlib.Path(version)
    card = json.loads((version / "assets.extra/model_card.json").read_text())
    records = tf.data.TFRecordDataset(
        str(version / "assets.extra" / warm_up.NAME)
    )
    loaded = tf.saved_model.load(str(version))
    answer = loaded.signatures["serving_default"](images=tf.ones((2, 4)))
    return len(list(records)) == len(loaded.signatures) == len(
        card["signatures"]
    ) and answer["logits"].shape == (2, 3)


def names(path):
    return sorted(os.listdir(path))


@pytest.mark.slow
def test_versions_count_up_and_hold_their_models(tmp_path):
    path = tmp_path / "models" / "small"
    models = [small_model(seed) for seed in range(3)]
    written = [export(path, model) for model in models]
    assert written == [str(path / v) for v in ("1", "2", "3")]
    assert names(path) == ["1", "2", "3"]
    x = tf.ones((1, 4))
    for version, model in zip(written, models, strict=True):
        assert whole(version)
        answer = tf.saved_model.load(version).signatures["serving_default"](
            images=x
        )
        np.testing.assert_allclose(answer["logits"], model(x), atol=1e-6)


def test_next_version_follows_the_largest(tmp_path):
    for name in ("7", "0009", "notes", "12.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file, but its name is taken")
    assert export(tmp_path) == str(tmp_path / "12")
    assert export(tmp_path, version=10) == str(tmp_path / "10")
    assert export(tmp_path, version=2**62) == str(tmp_path / str(2**62))


def test_files_can_be_read_by_other_users(tmp_path):
    (tmp_path / "usual").mkdir()
    version = export(tmp_path / "small")
    modes = [os.stat(path).st_mode for path in (tmp_path / "usual", version)]
    assert modes[0] == modes[1]


@pytest.mark.slow
def test_only_the_classifier_is_exported(tmp_path):
    """No optimizer, nothing of training, whatever wraps the classifier."""
    model = small_model()
    wrapped = dd_keras.DeepDefenseModel(model, lam=3.0)
    wrapped.compile(
        dd_keras.CoupledSGD(1e-3),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    wrapped.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
    version = export(tmp_path, wrapped)
    variables = tf.train.list_variables(f"{version}/variables/variables")
    shapes = [shape for name, shape in variables if "VARIABLE_VALUE" in name]
    assert sorted(shapes) == [[3], [4, 3]]
    answer = tf.saved_model.load(version).signatures["serving_default"](
        images=tf.ones((1, 4))
    )
    np.testing.assert_allclose(
        answer["logits"], model(tf.ones((1, 4))), atol=1e-6
    )
    card = json.loads(
        pathlib.Path(version, "assets.extra/model_card.json").read_text()
    )
    assert card["defense"]["name"] == "DeepDefenseModel"
    assert card["defense"]["lam"] == 3.0


def two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], keras.layers.Dense(3)(a + b))


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


RESIZING = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": two_inputs()}, ValueError, ["one input", "has 2"]),
        ({"model": unbuilt()}, ValueError, ["built model"]),
        ({"model": "lenet.keras"}, TypeError, ["keras.Model", "lenet.keras"]),
        ({"path": "gs://bucket/model"}, ValueError, ["path", "local", "gs:"]),
        ({"path": ""}, ValueError, ["path", "local", "''"]),
        ({"version": 0}, ValueError, ["version", "at least 1", "0"]),
        ({"version": -3}, ValueError, ["version", "-3"]),
        ({"version": 1.5}, ValueError, ["version", "1.5"]),
        ({"version": "2"}, ValueError, ["version", "'2'"]),
        ({"version": True}, ValueError, ["version", "True"]),
        ({"version": 2**63}, ValueError, ["version", "at most"]),
        ({"class_names": ["a", "b"]}, ValueError, ["class_names", "3 strings"]),
        ({"class_names": [1, 2, 3]}, ValueError, ["class_names", "[1, 2, 3]"]),
        ({"image_shape": (5,)}, ValueError, ["image_shape", "(None, 4)"]),
        ({"image_shape": (0,)}, ValueError, ["image_shape", "positive"]),
        ({"image_shape": 4}, ValueError, ["image_shape", "received 4"]),
        ({"image_dtype": "int8"}, ValueError, ["image_dtype", "'int8'"]),
        ({"max_images": 0}, ValueError, ["max_images", "at least 1"]),
        ({"max_pixels": 0}, ValueError, ["max_pixels", "at least 1"]),
        ({"max_pixels": None}, ValueError, ["max_pixels", "received None"]),
        (
            {"max_request_pixels": 2.5},
            ValueError,
            ["max_request_pixels", "received 2.5"],
        ),
        ({"attack": attacks.FGSM(1.0)}, TypeError, ["attack", "DeepFool"]),
        ({"attack": attacks.FAB(eps=1.0)}, TypeError, ["without eps", "FAB("]),
        ({"attack": attacks.DDN(targeted=True)}, TypeError, ["untargeted"]),
        (
            {"attack": attacks.DeepFool(candidates=3)},
            ValueError,
            ["candidates", "at most 2"],
        ),
        ({"resize": (8, 8)}, TypeError, ["resize", "function", "(8, 8)"]),
        ({"report": {"rho2": 1}}, TypeError, ["report", "RobustnessReport"]),
        ({"activation": "relu"}, ValueError, ["activation", "'relu'"]),
        ({"preprocessing": np.tanh}, TypeError, ["preprocessing", "layer"]),
        ({"preprocessing": RESIZING}, ValueError, ["(None, 4)", "(8,)"]),
        (
            {"preprocessing": RESIZING, "image_shape": (7,)},
            ValueError,
            ["preprocessing", "(7,)"],
        ),
        ({"examples": np.ones((2, 5))}, ValueError, ["examples", "(2, 5)"]),
        ({"examples": np.ones((65, 4))}, ValueError, ["examples", "1 to 64"]),
        ({"examples": np.ones((0, 4))}, ValueError, ["examples", "(0, 4)"]),
        (
            {"examples": np.full((1, 4), np.nan)},
            ValueError,
            ["examples", "finite"],
        ),
        ({"card": {"score": np.nan}}, ValueError, ["card", "JSON"]),
        ({"card": {"model": object()}}, ValueError, ["card", "JSON"]),
        ({"card": "robust"}, ValueError, ["card", "dict", "'robust'"]),
    ],
)
def test_bad_arguments_before_anything_is_written(
    options, error, words, tmp_path
):
    options = {"path": tmp_path / "models" / "small", **options}
    with pytest.raises(error) as raised:
        export(**options)
    for word in words:
        assert word in str(raised.value)
    assert names(tmp_path) == []


def test_path_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "small"):
        with pytest.raises(ValueError, match="path: expected a directory"):
            export(path)
    assert names(tmp_path) == ["file"]


def test_path_that_cannot_be_written(tmp_path, monkeypatch):
    # The suite may run as root, who can write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"path: .* that can be written to"):
        export(tmp_path / "small")
    assert names(tmp_path) == []


def test_versions_are_never_overwritten(tmp_path):
    first = export(tmp_path, version=5)
    before = pathlib.Path(first, "saved_model.pb").read_bytes()
    with pytest.raises(ValueError, match=r"received 5\. Versions are never"):
        export(tmp_path, small_model(1), version=5)
    assert names(tmp_path) == ["5"]
    assert pathlib.Path(first, "saved_model.pb").read_bytes() == before


def test_another_export_that_is_faster(tmp_path, monkeypatch):
    place = files.place

    def late(part, path):
        if not (tmp_path / "1").exists():
            (tmp_path / "1").mkdir()
            (tmp_path / "1" / "other").write_text("")
        place(part, path)

    monkeypatch.setattr(saved_model.files, "place", late)
    assert export(tmp_path) == str(tmp_path / "2")
    with pytest.raises(ValueError, match="received 1"):
        export(tmp_path, version=1)
    assert names(tmp_path) == ["1", "2"]
    assert names(tmp_path / "1") == ["other"]


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model.model_card, "write", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "small")
    assert names(tmp_path / "small") == []


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install 'dd_keras\[serving\]'"):
        export(tmp_path, warm_up_requests=True)
    assert names(tmp_path) == []
    with pytest.warns(UserWarning, match=r"pip install 'dd_keras\[serving\]'"):
        version = export(tmp_path)
    silent = export(tmp_path, warm_up_requests=False)
    for path in (version, silent):
        assert names(pathlib.Path(path, "assets.extra")) == [
            "model_card.json",
            "model_card.md",
        ]


KILLED = """
import os, pathlib, signal, sys
import keras
import tensorflow as tf
import dd_keras
from dd_keras.serving import model_card, saved_model, warm_up

# One process a moment, forked before TensorFlow starts any thread.
directory, *moments = sys.argv[1:]
for moment in moments:
    path = os.path.join(directory, moment)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def torn(function, name):
    def call(*arguments):
        function(*arguments)
        directory = next(a for a in arguments if isinstance(a, str))
        file = pathlib.Path(directory, name)
        file.write_bytes(file.read_bytes()[:20])
        die()
    return call

rename = os.rename
def renamed(*arguments):
    rename(*arguments)
    if os.path.basename(arguments[1]).isdecimal():
        die()

def not_renamed(*arguments):
    if os.path.basename(arguments[1]).isdecimal():
        die()
    rename(*arguments)

if moment == "before all": tf.saved_model.save = die
if moment == "torn graph":
    tf.saved_model.save = torn(tf.saved_model.save, "saved_model.pb")
if moment == "torn card":
    model_card.write = torn(model_card.write, "model_card.json")
if moment == "torn warm-up":
    warm_up.write = torn(warm_up.write, warm_up.NAME)
if moment == "not renamed": os.rename = not_renamed
if moment == "renamed": os.rename = renamed
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
dd_keras.export(model, path, attack=dd_keras.attacks.DeepFool(max_iter=1))
"""
MOMENTS = {
    "before all": 0,
    "torn graph": 0,
    "torn card": 0,
    "torn warm-up": 0,
    "not renamed": 0,
    "renamed": 1,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A directory with what each killed export left."""
    directory = tmp_path_factory.mktemp("killed")
    script = directory / "script.py"
    script.write_text(KILLED)
    done = shell(script, directory, *MOMENTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(MOMENTS)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "versions"), MOMENTS.items())
def test_killed_export_leaves_only_whole_versions(moment, versions, killed):
    path = killed / moment
    left = names(path)
    assert [n for n in left if n.isdecimal()] == ["1"][:versions]
    # What else it left is hidden, and gone after the next export: a lock,
    # and the directory unless it has its name.
    hidden = [name for name in left if not name.isdecimal()]
    assert len(hidden) == 2 - versions
    assert all(name.startswith(".part-") for name in hidden)
    assert export(path) == str(path / str(versions + 1))
    assert names(path) == ["1", "2"][: versions + 1]
    assert all(whole(path / name) for name in names(path))


ENDLESS = """
import sys
sys.path.insert(0, "tests")
from test_saved_model import export
for _ in range(int(sys.argv[2])):
    print(export(sys.argv[1]), flush=True)
"""


def exporting(tmp_path, path, times):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    return subprocess.Popen(
        [sys.executable, str(script), str(path), str(times)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    path = tmp_path / "small"
    random = np.random.RandomState(0)
    for _ in range(2):
        with exporting(tmp_path, path, 1000) as process:
            process.stdout.readline()  # the first is finished
            time.sleep(random.uniform(0.1, 0.8))
            process.kill()
    versions = [name for name in names(path) if name.isdecimal()]
    assert len(versions) >= 2
    assert all(whole(path / name) for name in versions)
    export(path)
    assert all(name.isdecimal() for name in names(path))


@pytest.mark.thorough
@pytest.mark.slow
def test_two_exports_at_once_seen_by_a_third(tmp_path):
    """Each gets its versions, and what a server sees meanwhile is whole."""
    path = tmp_path / "small"
    seen = 0
    with (
        exporting(tmp_path, path, 3) as one,
        exporting(tmp_path, path, 3) as other,
    ):
        while one.poll() is None or other.poll() is None:
            for name in names(path) if path.exists() else []:
                if name.isdecimal():
                    seen += 1
                    for file in (
                        "saved_model.pb",
                        "variables/variables.index",
                        "assets.extra/model_card.md",
                        f"assets.extra/{warm_up.NAME}",
                    ):
                        assert (path / name / file).stat().st_size > 0
            time.sleep(0.002)
        written = one.stdout.read().split() + other.stdout.read().split()
    assert one.returncode == other.returncode == 0
    assert seen > 0
    assert sorted(written) == [str(path / str(v)) for v in range(1, 7)]
    assert names(path) == [str(v) for v in range(1, 7)]
    assert all(whole(path / name) for name in names(path))


@pytest.mark.slow
def test_keras_export_of_a_defense_gives_the_classifier(tmp_path):
    """Keras' own `model.export`, never called before, in a fresh process."""
    model = small_model()
    path = tmp_path / "keras"
    dd_keras.DeepDefenseModel(model).export(path, verbose=False)
    x = np.ones((2, 4), "float32")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, numpy as np, tensorflow as tf\n"
        "sys.modules['dd_keras'] = None\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "print(*loaded.serve(np.ones((2, 4), 'float32')).numpy().ravel())\n"
    )
    done = shell(script, path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.array(done.stdout.split(), float).reshape(2, 3),
        model(x),
        atol=1e-6,
    )
    variables = tf.train.list_variables(f"{path}/variables/variables")
    sizes = {tuple(shape) for name, shape in variables if shape}
    assert sizes == {(4, 3), (3,)}
