"""What README.md, docs/ and others print: scripts, commands, files."""

import pathlib
import re
import shlex

import pytest
import tensorflow as tf
from absl import flags
from conftest import ROOT, imported, run

README = (ROOT / "README.md").read_text("utf-8")


def numbers(printed, name):
    """The values of a metric in all tables printed, in order."""
    rows = re.findall(rf"^{name} +([\d.]+)", printed, re.MULTILINE)
    return [float(row) for row in rows]


@pytest.mark.thorough
def test_the_first_script_runs_as_printed_and_gains(
    tmp_path, monkeypatch, capsys
):
    (script,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    before, after = numbers(printed, "rho2")
    assert after > 1.25 * before
    before, after = numbers(printed, "accuracy")
    assert after >= before - 0.5  # percent: two of 450 images
    assert (tmp_path / "savedmodels/robust/1/saved_model.pb").exists()


# --- Commands ---------------------------------------------------------------

READMES = (
    "README.md", "CONTRIBUTING.md", "results/README.md",
    "savedmodels/README.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if "_build" not in path.parts
    ),
)  # fmt: skip
GUIDES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs" / "guides").glob("*.py")
)
# What a flag's value is, where it names something the reader has.
OWN = re.compile(r"[A-Z][A-Z0-9_]+(\.keras|\.h5)?")
FILES = ("model", "reference", "preprocessing", "results", "flagfile")


def commands():
    """All commands of the READMEs that run a program: (file, words)."""
    for name in (*READMES, *GUIDES, "benchmarks/README.md"):
        text = (ROOT / name).read_text("utf-8")
        if name in GUIDES:  # the text of a guide stands in its comments
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        lines = re.findall(r"^    (.*)$", text, re.MULTILINE)
        inline = re.findall(r"`(python [^`]+)`", text)
        for line in [*lines, *(" ".join(words.split()) for words in inline)]:
            found = re.search(r"python ((?:apps|benchmarks)/\w+\.py.*)", line)
            if found and "..." not in line:
                yield name, shlex.split(found[1], comments=True)


COMMANDS = list(commands())


def test_there_are_commands():
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(
    ("name", "words"), COMMANDS, ids=[" ".join(w)[:60] for _, w in COMMANDS]
)
def test_every_command_parses_and_finds_its_files(monkeypatch, name, words):
    """As printed, from the root of a clone without any data."""
    monkeypatch.chdir(ROOT)
    script, *given = words
    path = pathlib.Path(script)
    assert path.is_file()
    named = [word for word in given if not word.startswith("--")]
    for word in given:
        flag, _, value = word.removeprefix("--").partition("=")
        of_server = path.stem == "client" and flag == "model"
        if flag in FILES and not of_server:
            named.append(value.rpartition("=")[2])
    for value in named:
        kept = value == "none" or OWN.fullmatch(value)
        assert kept or pathlib.Path(value).exists(), value
    if path.stem == "client" or "--help" in given:  # without absl's flags
        return
    try:
        with imported(path.stem):
            flags.FLAGS([script, *given])
    except ImportError as error:  # of what benchmarks compare with
        pytest.skip(str(error))


def test_commands_name_no_folder_that_a_clone_does_not_have():
    for name in {*READMES, "benchmarks/README.md"} - {"savedmodels/README.md"}:
        text = (ROOT / name).read_text("utf-8")
        assert "--data_dir=tensorflow_datasets" not in text


def test_the_drawn_digits_are_what_they_are_called():
    path = ROOT / "savedmodels/mnist/lenet_deep_defense/1"
    served = tf.saved_model.load(str(path)).signatures["serve_encoded"]
    images = [
        (ROOT / f"savedmodels/drawn/{name}.png").read_bytes()
        for name in ("seven", "three")
    ]
    found = served(encoded=tf.constant(images))
    assert list(found["classes"].numpy()) == [7, 3]


@pytest.mark.thorough
def test_evaluate_runs_as_printed_on_a_few_images(mnist_dir, tmp_path, capsys):
    """Of the .keras file, and of the SavedModel that was made of it."""
    rows = []
    for model in (
        "mnist_lenet_deep_defense.keras",
        "mnist/lenet_deep_defense/1",
    ):
        run(
            "evaluate",
            f"--model={ROOT / 'savedmodels' / model}",
            "--dataset=mnist",
            f"--data_dir={mnist_dir}",
            "--limit=40",
            "--metrics=accuracy,rho2",
            f"--output_dir={tmp_path / str(len(rows))}",
        )
        rows.append(numbers(capsys.readouterr().out, "rho2"))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1
