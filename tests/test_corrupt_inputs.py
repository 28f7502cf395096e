"""Damaged files end an app with one line that names them, and no results."""

import json
import re
import shutil
import struct
import zipfile

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tfds_shaped
from absl import app as absl_app
from absl import flags
from conftest import imported, program, thorough_but

from shared import inputs

import dd_keras
from dd_keras import datasets
from dd_keras.datasets import images

LIMIT = 20
UNREADABLE = "expected a whole Keras model file (.keras); it "


def files_in(directory):
    return {path for path in directory.rglob("*") if path.is_file()}


def start(app, *arguments):
    """Runs an app in this process, as `absl.app.run` does."""
    with imported(app) as module:
        module.main(flags.FLAGS([f"{app}.py", *map(str, arguments)]))


def refused(output_dir, app, *arguments):
    """The one line an app ends with; asserts that it wrote no file."""
    with pytest.raises((flags.Error, absl_app.UsageError, SystemExit)) as ended:
        start(app, *arguments)
    message = str(ended.value)
    assert "\n" not in message
    if ended.type is SystemExit:  # a text there is exit status 1
        assert message.startswith("error: ")
    assert not files_in(output_dir)
    return message


# --- .keras files -----------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A classifier of digits, as the bytes of its file."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    path = tmp_path_factory.mktemp("whole") / "model.keras"
    keras.Model(inputs, outputs).save(path)
    return path.read_bytes()


def arguments_of(app, model, output_dir):
    """The quickest run of an app that reads a model."""
    return {
        "digits": (
            f"--reference={model}",
            f"--limit={LIMIT}",
            "--epochs=0",
            "--reference_epochs=0",
            "--defense=clean",
            f"--output_dir={output_dir}",
        ),
        "evaluate": (
            f"--model={model}",
            "--dataset=digits",
            f"--limit={LIMIT}",
            "--metrics=accuracy",
            f"--output_dir={output_dir}",
        ),
        "export": (
            f"--model={model}",
            "--dataset=none",
            "--preprocessing=none",
            f"--export_dir={output_dir}",
        ),
    }[app]


def rewritten(path, whole, **members):
    """Writes the zip file anew, some members changed; None leaves one out."""
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            content = members.get(name.split(".")[0], content)
            if content is not None:
                archive.writestr(name, content)


DAMAGES = {
    "empty": lambda path, whole: path.write_bytes(b""),
    "a few bytes": lambda path, whole: path.write_bytes(whole[:5]),
    "half": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "all but one byte": lambda path, whole: path.write_bytes(whole[:-1]),
    "text": lambda path, whole: path.write_text("no model\n" * 100),
    "no config": lambda path, whole: rewritten(path, whole, config=None),
    "half a config": lambda path, whole: rewritten(path, whole, config="{"),
    "other config": lambda path, whole: rewritten(path, whole, config="[]"),
    "no weights": lambda path, whole: rewritten(path, whole, model=None),
    "half of the weights": lambda path, whole: rewritten(
        path, whole, model=b"\x89HDF\r\n\x1a\n"
    ),
}


@pytest.mark.parametrize("app", ["digits", "evaluate", "export"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_is_named(tmp_path, whole, app, damage):
    path, output_dir = tmp_path / "model.keras", tmp_path / "out"
    DAMAGES[damage](path, whole)
    message = refused(output_dir, app, *arguments_of(app, path, output_dir))
    assert message.startswith(f"error: {path}: {UNREADABLE}")


@pytest.mark.parametrize("app", ["digits", "evaluate", "export"])
def test_directory_that_is_no_model_is_named(tmp_path, app):
    path, output_dir = tmp_path / "model.keras", tmp_path / "out"
    path.mkdir()
    message = refused(output_dir, app, *arguments_of(app, path, output_dir))
    assert message.startswith(
        f"error: {path}: expected the directory of a SavedModel"
    )


def flipped(content, place, rng):
    content = bytearray(content)
    content[place] ^= int(rng.integers(1, 256))
    return bytes(content)


def test_no_flipped_byte_changes_a_model_unnoticed(tmp_path, whole):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.keras"
    path.write_bytes(whole)
    x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    places = rng.integers(len(whole), size=200)
    refusals = 0
    expected = inputs.load_model(str(path))(x)
    for place in places:
        path.write_bytes(flipped(whole, place, rng))
        try:
            model = inputs.load_model(str(path))
        except SystemExit as ended:
            message = str(ended)
            assert message.startswith(f"error: {path}: {UNREADABLE}")
            assert "\n" not in message
            refusals += 1
        else:  # in a date, or in a field of the zip file that none reads
            np.testing.assert_array_equal(model(x), expected)
    # Nearly all of the file is weights and configuration.
    assert refusals > 0.9 * len(places)


@pytest.mark.parametrize("app", ["digits", "evaluate", "export"])
@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_flipped_byte_is_told_by_the_apps(tmp_path, whole, app, member):
    path, output_dir = tmp_path / "model.keras", tmp_path / "out"
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    start_of_data = info.header_offset + 30 + len(member)
    place = start_of_data + info.file_size // 2
    path.write_bytes(flipped(whole, place, np.random.default_rng(1)))
    message = refused(output_dir, app, *arguments_of(app, path, output_dir))
    assert message.startswith(f"error: {path}: {UNREADABLE}")


def test_flipped_byte_is_damage_also_where_keras_would_not_mind(
    tmp_path, whole
):
    path, output_dir = tmp_path / "model.keras", tmp_path / "out"
    place = whole.index(b"date_saved")
    path.write_bytes(flipped(whole, place, np.random.default_rng(0)))
    with pytest.raises(SystemExit) as caught:
        start("evaluate", *arguments_of("evaluate", path, output_dir))
    assert "it is damaged: its part 'metadata.json' cannot be read" in str(
        caught.value
    )


def test_flipped_weight_on_the_command_line_exits_with_one_line(
    tmp_path, whole
):
    path, output_dir = tmp_path / "model.keras", tmp_path / "out"
    place = len(whole) - 1000  # before the zip file's directory
    path.write_bytes(flipped(whole, place, np.random.default_rng(0)))
    done = program("apps/export.py", *arguments_of("export", path, output_dir))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {path}: {UNREADABLE}")
    assert "Traceback" not in done.stdout + done.stderr
    assert not files_in(output_dir)


# --- Flag files -------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"--no_such_flag=3\n", "Unknown command line flag 'no_such_flag'"),
        (b"--lam=-1\n", "flag --lam=-1: -1.0 is not a non-negative number"),
        (b"--lam=much\n", "flag --lam=much: could not convert string"),
        (b"--lam=3 --c=4\n", "flag --lam=3 --c=4: could not convert string"),
        (b"lam=3\n", "expected only flags; received ['lam=3']."),
        (b"PK\x03\x04\x00\n", "expected only flags; received ['PK"),
        (b"\xef\xbb\xbf--lam=3\n", "expected only flags; received ['"),
        # As it is: bytes that are no UTF-8 (Latin-1, UTF-16, a binary
        # file) end in a traceback, which does not name the file.
    ],
)
def test_bad_lines_of_flag_files_are_named(tmp_path, content, message):
    path, output_dir = tmp_path / "my.cfg", tmp_path / "out"
    path.write_bytes(content)
    found = refused(
        output_dir, "digits", f"--flagfile={path}", f"--output_dir={output_dir}"
    )
    assert found.startswith(message)


@pytest.mark.parametrize("kind", ["missing", "directory", "inner"])
def test_flag_file_that_cannot_be_opened_is_named(tmp_path, kind):
    path, output_dir = tmp_path / "my.cfg", tmp_path / "out"
    given = path
    if kind == "directory":
        path.mkdir()
    elif kind == "inner":
        given = tmp_path / "outer.cfg"
        given.write_text(f"--flagfile={path}\n")
    message = refused(
        output_dir,
        "digits",
        f"--flagfile={given}",
        f"--output_dir={output_dir}",
    )
    assert "Unable to open flagfile: " in message
    assert f"'{path}'" in message


@pytest.mark.parametrize(
    ("content", "batch_size"),
    [
        ("", 500),
        ("# été\n\n// as well\n", 500),
        ("--batch_size=7\r\n", 7),
        ("--batch_size=7\n--flagfile={path}\n", 7),
    ],
)
def test_harmless_flag_files_are_read(
    tmp_path, whole, capsys, content, batch_size
):
    path, model = tmp_path / "my.cfg", tmp_path / "model.keras"
    path.write_text(content.format(path=path), encoding="utf-8", newline="")
    model.write_bytes(whole)
    flagfile = f"--flagfile={path}"
    with imported("evaluate"):
        flags.FLAGS(
            ["x", *arguments_of("evaluate", model, tmp_path / "out"), flagfile]
        )
        assert flags.FLAGS.batch_size == batch_size
    warned = capsys.readouterr().err
    # One that includes itself is read once, and absl says so.
    circular = f"Hit circular flagfile dependency. Ignoring flagfile: {path}"
    assert (circular in warned) == ("flagfile" in content)


def test_missing_flag_file_on_the_command_line_exits_with_one_line(tmp_path):
    path, output_dir = tmp_path / "my.cfg", tmp_path / "out"
    done = program(
        "apps/digits.py", f"--flagfile={path}", f"--output_dir={output_dir}"
    )
    assert done.returncode == 1
    assert re.search(
        rf"^FATAL Flags parsing error: .*'{re.escape(str(path))}'$",
        done.stderr,
        re.MULTILINE,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not output_dir.exists()


# --- TFDS -------------------------------------------------------------------

SHAPE = (6, 8, 3)
SIZES = {"train": 20, "test": 8}


def pictures(count, seed, classes=2):
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, 256, SHAPE).astype(np.uint8), index % classes)
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A TFDS data directory of whole sets, to copy."""
    folder = tmp_path_factory.mktemp("tfds")
    splits = {s: pictures(n, n) for s, n in SIZES.items()}
    for name in ("small", "sharded"):
        tfds_shaped.write(folder, name, splits, shape=SHAPE)
    tfds_shaped.write(folder, "alone", {"train": pictures(20, 0)}, shape=SHAPE)
    tfds_shaped.write_imagenet(folder)
    _into_two_shards(folder / "sharded/1.0.0")
    return folder


def _into_two_shards(directory):
    """Deals the training images out to two files, as TFDS has large sets."""
    path = shard_of(directory, "train")
    content, ends = path.read_bytes(), record_ends(path)
    half = len(ends) // 2
    stem = str(path).removesuffix("00000-of-00001")
    for place, part in enumerate(
        (content[: ends[half - 1]], content[ends[half - 1] :])
    ):
        with open(f"{stem}{place:05}-of-00002", "wb") as file:
            file.write(part)
    path.unlink()
    info = directory / "dataset_info.json"
    told = json.loads(info.read_text())
    for split in told["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = [str(half), str(len(ends) - half)]
    info.write_text(json.dumps(told))


@pytest.fixture
def copied(originals, tmp_path):
    """Copies a set; returns its data directory and its own directory."""

    def copy(name):
        data_dir = tmp_path / "data"
        shutil.copytree(originals / name, data_dir / name)
        (version,) = (data_dir / name).iterdir()
        return data_dir, version

    return copy


def shard_of(directory, split):
    """The last file of a split."""
    return sorted(directory.glob(f"*-{split}.tfrecord*"))[-1]


def record_ends(path):
    """Where the records of a TFRecord file end."""
    content, ends = path.read_bytes(), [0]
    while ends[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, ends[-1])
        ends.append(ends[-1] + 8 + 4 + length + 4)
    return ends[1:]


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


SHARDS = {
    "last record gone": lambda path: cut(path, record_ends(path)[-2]),
    "half of the records gone": lambda path: cut(
        path, record_ends(path)[len(record_ends(path)) // 2]
    ),
    "cut inside of a record": lambda path: cut(path, record_ends(path)[1] + 50),
    "cut inside of a length": lambda path: cut(path, record_ends(path)[1] + 5),
    "empty": lambda path: cut(path, 0),
    "missing": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "flipped bytes": lambda path: path.write_bytes(
        flipped(
            path.read_bytes(),
            record_ends(path)[1] - 20,
            np.random.default_rng(0),
        )
    ),
    "flipped length": lambda path: path.write_bytes(
        flipped(
            path.read_bytes(), record_ends(path)[1], np.random.default_rng(0)
        )
    ),
}


def test_sets_that_are_damaged_here_are_whole_before(originals):
    for name in ("small", "sharded"):
        data = datasets.load(name, str(originals))
        for split, size in SIZES.items():
            assert len(list(getattr(data, split))) == size


@pytest.mark.parametrize("damage", SHARDS)
@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("small", "train"),
        ("small", "test"),
        ("sharded", "train"),
        ("alone", "train"),  # its last fifth is for testing
    ],
)
def test_damaged_shard_is_told_with_set_and_directory(
    copied, name, split, damage
):
    data_dir, directory = copied(name)
    SHARDS[damage](shard_of(directory, split))
    start_of_message = f"{name}: could be neither read from {data_dir} nor "
    with pytest.raises(RuntimeError, match=f"^{re.escape(start_of_message)}"):
        datasets.load(name, str(data_dir))


@pytest.mark.parametrize("damage", SHARDS)
@pytest.mark.parametrize(
    ("name", "split", "file"),
    [("small", "test", "test"), ("imagenet2012", "test", "validation")],
)
def test_streamed_set_is_never_smaller_in_silence(
    monkeypatch, copied, name, split, file, damage
):
    monkeypatch.setattr(images, "MEMORY", 0)
    data_dir, directory = copied(name)
    SHARDS[damage](shard_of(directory, file))
    # As it is: the error is TensorFlow's own where a set is streamed. It
    # names neither set nor directory.
    size = 24 if name == "imagenet2012" else None
    with pytest.raises((tf.errors.OpError, RuntimeError)):
        list(
            getattr(datasets.load(name, str(data_dir), image_size=size), split)
        )


@pytest.mark.parametrize("split", SIZES)
def test_apps_end_with_one_line_on_a_shard_cut_short(
    copied, tmp_path, whole, split
):
    data_dir, directory = copied("small")
    SHARDS["last record gone"](shard_of(directory, split))
    model, output_dir = tmp_path / "model.keras", tmp_path / "out"
    model.write_bytes(whole)
    both = ("--dataset=small", f"--data_dir={data_dir}")
    size = SIZES[split]
    for app, arguments in (
        ("images", [f"--output_dir={output_dir}"]),
        ("evaluate", [f"--output_dir={output_dir}", f"--model={model}"]),
        ("export", [f"--export_dir={output_dir}", f"--model={model}"]),
    ):
        message = refused(output_dir, app, *both, *arguments)
        assert message.startswith(
            f"error: small: could be neither read from {data_dir} nor "
        )
        assert f"{size} elements but contained only {size - 1} " in message


@pytest.mark.parametrize("damage", ["half", "empty", "missing"])
def test_damaged_dataset_info_is_told_with_set_and_directory(copied, damage):
    data_dir, directory = copied("small")
    path = directory / "dataset_info.json"
    if damage == "missing":
        path.unlink()
    else:
        cut(path, path.stat().st_size // 2 if damage == "half" else 0)
    message = f"small: could be neither read from {data_dir} nor "
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
        datasets.load("small", str(data_dir))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", b"{}"),
        ("dataset_info.json", b"\xff\xfe"),
        ("features.json", b"{"),
        ("features.json", b"{}"),
        ("features.json", b"\xff\xfe"),
        ("features.json", None),
    ],
)
def test_damaged_description_is_refused(copied, tmp_path, file, content):
    data_dir, directory = copied("small")
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(content)
    output_dir = tmp_path / "out"
    message = refused(
        output_dir,
        "images",
        "--dataset=small",
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
    )
    assert "small" in message
    if file == "features.json":
        assert f"could be neither read from {data_dir} nor" in message


# --- Folders of images ------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images of two classes in one format, four of each."""

    def written(ending):
        rng = np.random.default_rng(0)
        for label in ("cat", "dog"):
            directory = tmp_path / "photos" / label
            directory.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
                image = PIL.Image.fromarray(pixels)
                image.save(directory / f"{index}.{ending}")
        return tmp_path / "photos"

    return written


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "ending", thorough_but(["png"], ["bmp", "gif", "jpg", "png"])
)
def test_image_cut_short_is_named(monkeypatch, folder, ending, streamed):
    if streamed:
        monkeypatch.setattr(images, "MEMORY", 0)
    root = folder(ending)
    path = root / "dog" / f"2.{ending}"
    content = path.read_bytes()
    # A GIF's last byte only says that it ends.
    for length in (0, 1, len(content) // 2, len(content) - 2):
        cut(path, length)
        message = f"data_dir: expected images; {path} cannot be read: "
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            datasets.load("folder", str(root), image_size=8)
        path.write_bytes(content)


def test_apps_end_with_one_line_on_an_image_cut_short(folder, tmp_path):
    root, output_dir = folder("jpg"), tmp_path / "out"
    path = root / "cat" / "0.jpg"
    cut(path, path.stat().st_size // 2)
    message = refused(
        output_dir,
        "images",
        "--dataset=folder",
        "--image_size=8",
        f"--data_dir={root}",
        f"--output_dir={output_dir}",
    )
    assert message.startswith(
        f"error: data_dir: expected images; {path} cannot be read: "
    )


def test_apps_end_with_one_line_on_an_image_that_is_too_large(folder, tmp_path):
    root, output_dir = folder("jpg"), tmp_path / "out"
    message = refused(
        output_dir,
        "images",
        "--dataset=folder",
        "--image_size=8",
        "--max_image_pixels=62",
        f"--data_dir={root}",
        f"--output_dir={output_dir}",
    )
    assert message.startswith(
        "error: max_image_pixels: expected images of at most 62 pixels; "
    )
    assert message.endswith(".jpg says that it has 63.")


# --- Labels and pixels ------------------------------------------------------


@pytest.mark.parametrize("app", ["evaluate", "export"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(
    monkeypatch, tmp_path, whole, app, value
):
    model, output_dir = tmp_path / "model.keras", tmp_path / "out"
    model.write_bytes(whole)
    pixels = np.zeros((LIMIT, 8, 8, 1), np.float32)
    pixels[7, 2, 3, 0] = value
    labels = np.arange(LIMIT) % 10
    data = datasets.load("digits")._replace(
        test=tf.data.Dataset.from_tensor_slices((pixels, labels))
    )
    monkeypatch.setattr(datasets, "load", lambda *_, **__: data)
    arguments = arguments_of(app, model, output_dir)
    message = refused(output_dir, app, *arguments, "--dataset=digits")
    assert message == (
        "error: digits test: expected finite pixels; received NaN or "
        "infinity in image 7."
    )


BAD_LABELS = {
    "NaN": (np.nan, r"y: expected labels in \[0, 10\)"),
    "infinite": (np.inf, r"y: expected labels in \[0, 10\)"),
    "negative": (-1.0, r"y: expected labels in \[0, 10\)"),
    "too large": (10.0, r"y: expected labels in \[0, 10\)"),
    "broken": (2.5, r"y: expected whole numbers as labels"),
}


@pytest.fixture
def badly_labelled(whole, tmp_path):
    """A classifier, and batches of which the second has one bad label."""

    def made(value):
        path = tmp_path / "model.keras"
        path.write_bytes(whole)
        x = np.random.default_rng(0).normal(size=(10, 8, 8, 1))
        y = np.arange(10, dtype=np.float32)
        y[7] = value
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
        return keras.models.load_model(path, compile=False), batches

    return made


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_evaluation_names_the_batch_of_a_bad_label(badly_labelled, kind):
    value, message = BAD_LABELS[kind]
    model, batches = badly_labelled(value)
    with pytest.raises(ValueError, match=f"^data, batch 1: {message}"):
        dd_keras.evaluate_robustness(
            model, batches, metrics="accuracy", verbose=0
        )


@pytest.mark.parametrize("defense", ["clean", "deep_defense"])
@pytest.mark.parametrize("kind", ["NaN", "too large"])
def test_training_stops_at_a_bad_label(badly_labelled, defense, kind):
    value, message = BAD_LABELS[kind]
    model, batches = badly_labelled(value)
    model = {
        "clean": dd_keras.DefenseModel,
        "deep_defense": dd_keras.DeepDefenseModel,
    }[defense](model)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=f"^{message}"):
        model.fit(batches, verbose=0)
    for weight in model.get_weights():
        assert np.isfinite(weight).all()


def test_labels_beyond_the_classes_of_a_set_are_refused(tmp_path):
    data_dir, output_dir = tmp_path / "data", tmp_path / "out"
    splits = {s: pictures(n, n, classes=5) for s, n in SIZES.items()}
    tfds_shaped.write(data_dir, "five", splits, shape=SHAPE, classes="abcde")
    directory = data_dir / "five/1.0.0"
    path = directory / "features.json"
    text = path.read_text()
    assert '"numClasses": "5"' in text
    path.write_text(text.replace('"numClasses": "5"', '"numClasses": "2"'))
    (directory / "label.labels.txt").write_text("a\nb\n")
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    with pytest.raises(SystemExit) as ended:
        start(
            "evaluate",
            f"--model={tmp_path / 'model.keras'}",
            "--dataset=five",
            f"--data_dir={data_dir}",
            "--metrics=accuracy",
            f"--output_dir={output_dir}",
        )
    # As it is: of several lines, and without the set's name.
    message = "error: data, batch 0: y: expected labels in [0, 2)."
    assert str(ended.value).startswith(message)
    assert not files_in(output_dir)
