"""Apps that are killed at any moment, and go on by the same command."""

import json
import random
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import THOROUGH, program, run, start_program

ARGUMENTS = [
    "--limit=90",
    "--batch_size=30",
    "--reference_epochs=2",
    "--epochs=2",
    "--learning_rate=1e-4",
    "--lam=0.01",
    "--d=0.5",
    "--defense=deep_defense,parseval,adv_train_1",
    "--max_iter=2",
    "--candidates=2",
    "--validation_split=0.3",
    "--keep=best",
    "--checkpoint_steps=1",
]
MODELS = ("reference", "deep_defense", "parseval", "adv_train_1")


def directories(directory):
    return [
        f"--output_dir={directory / 'out'}",
        f"--export_dir={directory / 'export'}",
    ]


def killed(directory, where, count):
    """Runs the app until it is killed; False if it came to its end first."""
    finished = program(
        "tests/killed_app.py",
        where,
        count,
        "apps/digits.py",
        *ARGUMENTS,
        *directories(directory),
    )
    if finished.returncode == 0:
        return False
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    return True


def kill_before_its_end(directory, where, count):
    """Has the app killed there or, if it never comes there, some time else."""
    before = directory.with_name(f"{directory.name}_before")
    shutil.copytree(directory, before)
    while not killed(directory, where, count):
        shutil.rmtree(directory)
        shutil.copytree(before, directory)
        where, count = "seconds", 0.6 * count if where == "seconds" else 6.0
    shutil.rmtree(before)


def weights_of(directory):
    return {
        name: keras.models.load_model(
            directory / "out" / f"{name}.keras", compile=False
        ).get_weights()
        for name in MODELS
    }


def numbers(directory):
    """All that a run tells, but for what time tells."""
    results = json.loads((directory / "out" / "results.json").read_text())
    logs = {
        path.name: path.read_text()
        for path in sorted((directory / "out" / "logs").glob("*.csv"))
    }
    return results["models"], results["curves"], results["dataset"], logs


def assert_same_run(directory, other):
    """To the bit."""
    assert numbers(directory) == numbers(other)
    expected = weights_of(other)
    for name, weights in weights_of(directory).items():
        for one, two in zip(weights, expected[name], strict=True):
            np.testing.assert_array_equal(one, two)
    assert not (directory / "out" / "checkpoints").exists()
    leftovers = [path for path in directory.rglob("*") if ".part" in path.name]
    assert leftovers == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole")
    finished = program("apps/digits.py", *ARGUMENTS, *directories(directory))
    assert finished.returncode == 0, finished.stderr
    return directory


MOMENTS = [
    ("half a checkpoint", 2),
    ("model", 1),
    ("validation", 1),
    ("seconds", None),
    ("evaluation", 2),
    ("export", 3),
]
if THOROUGH:
    MOMENTS = [
        ("step", 2),
        ("half a checkpoint", 2),
        ("model", 1),
        ("checkpoint", 2),
        ("validation", 1),
        ("step", 3),
        ("seconds", None),
        ("model", 2),
        ("seconds", None),
        ("evaluation", 2),
        ("figure", 1),
        ("saving", 2),
        ("export", 3),
    ]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_killed_app_goes_on_as_if_nothing_had_been(whole, tmp_path):
    """At several moments of one run, those of "seconds" at random."""
    rng = random.Random(0)
    for where, count in MOMENTS:
        seconds = 2 + 4 * rng.random()
        kill_before_its_end(tmp_path, where, count or seconds)
    finished = program("apps/digits.py", *ARGUMENTS, *directories(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert "Resuming the unfinished run" in finished.stdout
    assert_same_run(tmp_path, whole)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["starts"] == len(MOMENTS) + 1
    versions = sorted((tmp_path / "export" / "digits_cnn_parseval").iterdir())
    assert versions
    for version in versions:
        assert (version / "saved_model.pb").exists()


@pytest.mark.thorough
def test_deterministic_runs_are_the_same_run(tmp_path):
    logs = []
    for name in "ab":
        out = tmp_path / name
        finished = program(
            "apps/digits.py",
            *ARGUMENTS,
            "--limit=30",
            "--epochs=1",
            "--reference_epochs=1",
            "--defense=deep_defense",
            "--deterministic",
            f"--output_dir={out}",
        )
        assert finished.returncode == 0, finished.stderr
        logs.append((out / "logs" / "deep_defense.csv").read_text())
    assert logs[0] == logs[1]
    for model in ("reference", "deep_defense"):
        one, other = (
            keras.models.load_model(
                tmp_path / name / f"{model}.keras", compile=False
            ).get_weights()
            for name in "ab"
        )
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.thorough
def test_ctrl_c_ends_with_one_line_and_goes_on(tmp_path):
    arguments = [
        "--limit=300", "--batch_size=10", "--reference_epochs=400",
        f"--output_dir={tmp_path}",
    ]  # fmt: skip
    process = start_program("apps/digits.py", *arguments)
    deadline = time.time() + 60
    while not list(tmp_path.glob("checkpoints/reference/*.npz")):
        assert time.time() < deadline
        time.sleep(0.1)
    second = program("apps/digits.py", *arguments)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped by SIGINT in epoch ")
    assert "started again, it resumes from there." in errors

    # Another run, while it went on, was refused.
    assert second.returncode == 1
    assert f"{tmp_path} is in use by another run" in second.stderr


# ------------------------------------------------------------- in this process

TINY = ["--limit=20", "--reference_epochs=1", "--epochs=0", "--defense=clean"]


def refused(*arguments):
    with pytest.raises(SystemExit) as caught:
        run("digits", *arguments)
    return str(caught.value)


@pytest.mark.thorough
def test_finished_run_is_not_overwritten_by_chance(tmp_path):
    out = f"--output_dir={tmp_path}"
    run("digits", *TINY, out)
    before = (tmp_path / "results.json").read_bytes()
    message = refused(*TINY, out)
    assert "results.json is of a finished run" in message
    assert "--overwrite" in message
    assert (tmp_path / "results.json").read_bytes() == before
    run("digits", *TINY, out, "--overwrite")
    assert (tmp_path / "results.json").read_bytes() != before


def test_unfinished_run_with_other_settings_is_named(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    out = f"--output_dir={tmp_path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dd_keras.training.checkpoint.files.atomic_write",
            lambda path: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        assert "No space left" in refused(*TINY, out)
    # Nothing to go on with: no trace of the run.
    assert not checkpoints.exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dd_keras.evaluate_robustness",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(SystemExit) as caught:
            run("digits", *TINY, out)
    assert caught.value.code == 130
    message = refused(*TINY, "--c=3", out)
    assert "holds an unfinished run with other settings: c 10.0 there, 3.0" in (
        message
    )
    damaged = checkpoints / "run.json"
    told = damaged.read_text()
    for damage in (told[:-5], "", "[]", "{}", "null"):
        damaged.write_text(damage)
        assert "run.json: expected the notes of a run" in refused(*TINY, out)
    damaged.write_text(told)
    run("digits", *TINY, out)
    assert not checkpoints.exists()


def test_errors_of_tensorflow_end_an_app_with_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        message = "Graph execution error:\n\nDetected at node A\nno such label"
        raise tf.errors.InvalidArgumentError(None, None, message)

    monkeypatch.setattr("dd_keras.resumable_fit", fail)
    assert refused(*TINY, f"--output_dir={tmp_path}") == (
        "error: InvalidArgumentError: no such label"
    )


def test_batches_must_serve_all_replicas(tmp_path):
    finished = program(
        "apps/digits.py",
        *TINY,
        "--batch_size=19",
        "--distribution=mirrored",
        "--replicas=2",
        f"--output_dir={tmp_path}",
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == (
        "error: --batch_size: expected one that gives each of 2 replicas a "
        "part of every batch; with 19 the last of 20 images make a batch of 1."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep=best"], "--keep=best needs --validation_split images"),
        (["--validation_split=1"], "--validation_split must be below 1"),
        (["--replicas=2"], "--replicas is for --distribution=mirrored"),
    ],
)
def test_bad_flags_are_refused(tmp_path, arguments, message):
    from absl import flags

    with pytest.raises((flags.Error, SystemExit), match=message):
        run("digits", *arguments, f"--output_dir={tmp_path}")


# ------------------------------------------------------------ several workers


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_two_workers_train_lenet_as_one_does(mnist_dir, tmp_path):
    from test_distribution import cluster

    arguments = [
        "apps/mnist.py",
        f"--data_dir={mnist_dir}",
        "--limit=200",
        "--epochs=1",
        "--defense=clean,deep_defense",
        "--reference=savedmodels/mnist_lenet_reference.keras",
    ]

    processes = [
        start_program(
            *arguments,
            "--distribution=multi_worker",
            f"--output_dir={tmp_path / 'two'}",
            environment=environment,
            merged=True,
        )
        for environment in cluster()
    ]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    told = [
        [line.split(": ", 1)[1] for line in output.splitlines()
         if line.startswith(f"Worker {index}: weights of ")]
        for index, output in enumerate(outputs)
    ]  # fmt: skip
    assert len(told[0]) == 2
    assert told[0] == told[1]  # to the bit

    finished = program(*arguments, f"--output_dir={tmp_path / 'one'}")
    assert finished.returncode == 0, finished.stderr
    for name in ("clean", "deep_defense"):
        one, two = (
            np.concatenate(
                [
                    weight.ravel()
                    for weight in keras.models.load_model(
                        tmp_path / number / f"{name}.keras", compile=False
                    ).get_weights()
                ]
            )
            for number in ("one", "two")
        )
        assert np.linalg.norm(two - one) < 1e-4 * np.linalg.norm(one)
