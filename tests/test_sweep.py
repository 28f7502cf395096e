"""Figures 3 and 4: a sweep; stopped, killed and started again as well."""

import copy
import csv
import os
import re
import shutil
import signal
import time

import keras
import matplotlib.image
import pytest
from conftest import run, start_program
from test_apps import contents, parsed, refused

from dd_keras import plots
from dd_keras.defenses import METHODS

FLAGS = (
    "--dataset=digits",
    "--limit=20",
    "--batch_size=10",  # two: their order matters
    "--epochs=2",
    "--learning_rate=1e-5",
    "--lam=3",
    "--c=4",
    "--max_iter=1",
)
SWEEP = (*FLAGS, "--lams=1,2.5", "--cs=5", "--layers=first,all")
# In the order they are run; lam, c and layers of each.
RUNS = {
    "figure3_lam=1_c=5": (1, 5, None),
    "figure3_lam=2.5_c=5": (2.5, 5, None),
    "figure4_layer=first": (3, 4, ["first"]),
    "figure4_layer=all": (3, 4, None),
}
NAMES = list(RUNS)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A classifier of the digits with two layers, untrained."""
    keras.utils.set_random_seed(0)
    small = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.01)}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(8, "relu", name="first", **small),
            keras.layers.Dense(10, name="last", **small),
        ]
    )
    path = tmp_path_factory.mktemp("reference") / "mine.keras"
    model.save(path)
    return path


def sweep(directory, reference, *arguments):
    run(
        "sweep",
        f"--reference={reference}",
        f"--output_dir={directory}",
        *arguments,
    )


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory):
    """A sweep without interruption.

    Its directory, the models trained, and what each figure was last drawn of.
    """
    directory = tmp_path_factory.mktemp("whole")
    made, drawn = [], {}
    method, draw = METHODS["deep_defense"], plots.trade_off

    def prepare(*arguments):
        model, train = method.prepare(*arguments)
        made.append(model)
        return model, train

    def trade_off(points, path, norm, first, **kwargs):
        (name,) = re.findall(r"figure\d", os.path.basename(path))
        drawn[name] = copy.deepcopy(points), first
        draw(points, path, norm, first, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "trade_off", trade_off)
        patch.setitem(METHODS, "deep_defense", method._replace(prepare=prepare))
        sweep(directory, reference, *SWEEP)
    return directory, made, drawn


def results(directory):
    """What each finished run has written, by its name."""
    return {
        path.stem: parsed(path)
        for path in (directory / "runs").glob("figure*.json")
    }


def table(directory):
    with open(directory / "sweep.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- A whole sweep ----------------------------------------------------------


def test_each_run_has_settings_and_numbers_of_its_own(whole):
    found = results(whole[0])
    assert set(found) == set(RUNS)
    for (name, expected), model in zip(RUNS.items(), whole[1], strict=True):
        assert expected == (
            model.lam,
            model.penalty.c,
            model.regularized_layers,
        )
        settings, curve = found[name]["settings"], found[name]["curve"]
        names = ("lam", "c", "regularized_layers")
        assert tuple(settings[key] for key in names) == expected
        assert settings["max_iter"] == 1
        # Figure 4 draws all epochs, Figure 3 the last.
        epochs = 2 if "figure4" in name else 1
        assert len(curve["rho"]) == len(curve["accuracy"]) == epochs
        assert len(curve["training_loss"]) == 2
    losses = {r["curve"]["training_loss"][-1] for r in found.values()}
    assert len(losses) == len(RUNS)


def test_csv_and_json_hold_the_numbers_of_all_runs(whole):
    directory, runs = whole[0], results(whole[0])
    rows = table(directory)
    assert [(r["figure"], r["lam"], r["c"], r["layer"]) for r in rows] == [
        ("3", "1", "5", "all"),
        ("3", "2.5", "5", "all"),
        ("4", "3.0", "4.0", "first"),
        ("4", "3.0", "4.0", "all"),
    ]
    for row, name in zip(rows, NAMES, strict=True):
        curve = runs[name]["curve"]
        assert float(row["accuracy"]) == curve["accuracy"][-1]
        assert float(row["rho"]) == curve["rho"][-1] > 0
    found = parsed(directory / "sweep.json")
    assert list(found["runs"]) == NAMES
    assert found["runs"] == runs
    assert found["reference"] == parsed(directory / "runs" / "reference.json")
    assert found["total_seconds"] == sum(r["seconds"] for r in runs.values())
    assert found["command"].startswith("python ")


def test_figures_show_the_runs(whole):
    directory, _, drawn = whole
    for name in drawn:
        picture = matplotlib.image.imread(directory / f"{name}.png")
        assert picture.std() > 0
    first = parsed(directory / "runs" / "reference.json")
    curves = {name: r["curve"] for name, r in results(directory).items()}
    keys = ("accuracy", "rho")
    assert drawn["figure3"] == (
        {
            f"lam={lam}": {
                **{key: curves[f"figure3_lam={lam}_c=5"][key] for key in keys},
                "labels": ["c=5"],
            }
            for lam in ("1", "2.5")
        },
        (first["rho"], first["accuracy"]),
    )
    assert drawn["figure4"] == (
        {
            f"layer={layer}": {  # the way from the reference
                key: [first[key], *curves[f"figure4_layer={layer}"][key]]
                for key in keys
            }
            for layer in ("first", "all")
        },
        (first["rho"], first["accuracy"]),
    )


@pytest.mark.thorough
def test_the_app_of_the_data_set_gives_the_same_numbers(
    whole, reference, tmp_path
):
    run(
        "digits",
        "--defense=deep_defense",
        f"--reference={reference}",
        f"--output_dir={tmp_path}",
        *FLAGS[1:],
    )
    expected = parsed(tmp_path / "results.json")
    curve = results(whole[0])["figure4_layer=all"]["curve"]
    for key, values in expected["curves"]["deep_defense"].items():
        start = 0 if key == "training_loss" else 1  # the reference
        assert curve[key] == pytest.approx(values[start:], rel=1e-5)
    first = parsed(whole[0] / "runs" / "reference.json")
    for key, name in (("accuracy", "accuracy"), ("rho", "rho2")):
        measured = expected["models"]["reference"][name]
        assert first[key] == pytest.approx(measured, rel=1e-5)


# --- Stopped, killed, and started again -------------------------------------


@pytest.mark.thorough
def test_stopped_and_killed_it_goes_on_to_the_same_numbers(
    whole, reference, tmp_path, capsys
):
    out = tmp_path / "out"
    sweep(out, reference, *SWEEP, "--max_runs=1")
    printed = capsys.readouterr().out
    assert "4 runs, 4 of them to do." in printed
    assert "1 of 4 runs are done." in printed
    assert set(results(out)) == set(NAMES[:1])
    assert (out / "figure3.png").exists()
    assert not (out / "figure4.png").exists()
    stopped = contents(out / "runs")

    process = start_program(
        "apps/sweep.py",
        f"--reference={reference}",
        f"--output_dir={out}",
        *SWEEP,
    )
    try:  # its second run, the third of all, begins
        deadline = time.time() + 300
        while not (out / "logs" / f"{NAMES[2]}.csv").exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.time() < deadline, "its second run does not begin"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(results(out)) == set(NAMES[:2])
    assert len(table(out)) == 2
    killed = contents(out / "runs")
    assert stopped.items() <= killed.items()

    sweep(out, reference, *SWEEP)
    assert "4 runs, 2 of them to do." in capsys.readouterr().out
    assert killed.items() <= contents(out / "runs").items()
    assert not [path for path in contents(out) if ".part" in path]
    expected, found = results(whole[0]), results(out)
    assert set(found) == set(RUNS)
    for name, result in found.items():
        assert result["settings"] == expected[name]["settings"]
        for key, values in expected[name]["curve"].items():
            assert result["curve"][key] == pytest.approx(values, rel=1e-5)
    for row, other in zip(table(out), table(whole[0]), strict=True):
        assert float(row["rho"]) == pytest.approx(float(other["rho"]), rel=1e-5)


def test_finished_sweep_trains_nothing(whole, reference, tmp_path, monkeypatch):
    out = shutil.copytree(whole[0], tmp_path / "out")
    before = contents(out)
    (out / "sweep.json").write_text('{"runs": ')  # is written again
    monkeypatch.setattr(keras.Model, "fit", None)
    sweep(out, reference, *SWEEP)
    after = contents(out)
    assert list(parsed(out / "sweep.json")["runs"]) == NAMES
    pictures = {"figure3.png", "figure4.png", "sweep.json"}
    assert set(after) == set(before)
    assert {p for p in before if after[p] != before[p]} <= pictures


def test_runs_asked_for_later_join_those_there_are(
    whole, reference, tmp_path, capsys
):
    out = shutil.copytree(whole[0], tmp_path / "out")
    before = contents(out / "runs")
    sweep(out, reference, *SWEEP, "--cs=5,6", "--figure=3", "--max_runs=0")
    printed = capsys.readouterr().out
    assert "4 runs, 2 of them to do." in printed
    assert "2 of 4 runs are done." in printed
    assert contents(out / "runs") == before
    assert [row["c"] for row in table(out)] == ["5", "5"]


@pytest.mark.parametrize(
    ("argument", "file", "expected"),
    [
        ("--learning_rate=2e-5", NAMES[0], "learning_rate 2e-05; .* 1e-05"),
        ("--batch_size=5", NAMES[0], "batch_size 5; .* 10"),
        ("--lam_start=1", NAMES[0], "lam_start 1.0; .* 0.0"),
        ("--c=5", NAMES[2], "c 5.0; .* 4.0"),  # Figure 3 has its own
        ("--limit=19", "reference", "limit 19; .* 20"),
        (
            "--evaluation_candidates=3",
            "reference",
            "evaluation_candidates 3; .* None",
        ),
    ],
)
def test_other_settings_are_refused(whole, reference, argument, file, expected):
    message = refused(
        whole[0], f"--reference={reference}", *SWEEP, argument, name="sweep"
    )
    path = whole[0] / "runs" / f"{file}.json"
    assert message.startswith(f"error: {path}: ")
    assert re.search(
        rf": expected a run with {expected}\. Choose another --output_dir\.$",
        message,
    )


def test_other_reference_is_refused(whole, reference, tmp_path):
    model = keras.saving.load_model(reference)
    model.set_weights([2 * weight for weight in model.get_weights()])
    model.save(tmp_path / "other.keras")
    message = refused(
        whole[0],
        f"--reference={tmp_path / 'other.keras'}",
        *SWEEP,
        name="sweep",
    )
    assert message.startswith(
        f"error: {whole[0] / 'runs' / 'reference.json'}: expected a run with "
        "reference_sha256 "
    )


@pytest.mark.parametrize(
    ("name", "damaged"),
    [(NAMES[1], '{"run": "figu'), (NAMES[1], ""), ("reference", "[1, 2]")],
)
def test_damaged_file_of_a_run_is_named(
    whole, reference, tmp_path, name, damaged
):
    out = shutil.copytree(whole[0], tmp_path / "out")
    path = out / "runs" / f"{name}.json"
    path.write_text(damaged)
    message = refused(out, f"--reference={reference}", *SWEEP, name="sweep")
    assert message.startswith(
        f"error: {path}: expected the JSON of a run; it cannot be read: "
    )
    assert message.endswith(" Remove it, and the same command runs it again.")


# --- The reference that it trains -------------------------------------------


def test_reference_is_trained_once(tmp_path, capsys):
    arguments = (
        *("--dataset=digits", "--limit=20", "--figure=4", "--max_runs=0"),
        *("--arch=mlp", "--reference_epochs=1", f"--output_dir={tmp_path}"),
    )
    run("sweep", *arguments)
    printed = capsys.readouterr().out
    assert "Training the reference: mlp" in printed
    assert "4 runs, 4 of them to do." in printed  # fc1, fc2, fc3, all
    assert table(tmp_path) == []
    before = contents(tmp_path)
    run("sweep", *arguments)
    assert "Training" not in capsys.readouterr().out
    assert contents(tmp_path) == before
    # It is not taken for another one.
    assert refused(
        tmp_path, *arguments, "--arch=digits_cnn", name="sweep"
    ).startswith(
        f"error: {tmp_path / 'runs' / 'reference.json'}: expected a run with "
        "arch digits_cnn; it is one with mlp."
    )


# --- What goes wrong --------------------------------------------------------


def test_sweep_goes_on_after_a_run_that_diverges(
    reference, tmp_path, capsys, monkeypatch
):
    arguments = (*FLAGS, "--figure=3", "--cs=5", "--lams=1e38,1", "--epochs=1")
    sweep(tmp_path, reference, *arguments)
    printed = capsys.readouterr().out
    assert "diverged in epoch 1, step " in printed
    assert "The likely cause: the updates are too large." in printed
    assert "2 of 2 runs are done." in printed
    diverged, finite = table(tmp_path)
    assert (diverged["accuracy"], diverged["rho"]) == ("", "diverged")
    curve = results(tmp_path)["figure3_lam=1_c=5"]["curve"]
    assert float(finite["rho"]) == curve["rho"][-1]
    assert (tmp_path / "figure3.png").exists()
    monkeypatch.setattr(keras.Model, "fit", None)  # nor is it tried again
    sweep(tmp_path, reference, *arguments)
    assert "2 runs, 0 of them to do." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--figure=3,3", r"^flag --figure=.*--figure must be 3, 4, or 3,4\."),
        ("--epochs=0", r"--epochs must be above 0\."),
        ("--lams=", r"^error: --lams: expected .* above 0; received \[\]"),
        ("--lams=much", r"^error: --lams: expected different numbers above"),
        ("--lams=5,5.0", r"^error: --lams: expected different numbers"),
        ("--cs=5,nan", r"^error: --cs: expected .* received \['5', 'nan'\]"),
        (
            "--layers=conv9",
            r"^error: --layers: expected of \['first', 'last'\] and 'all', "
            r"each once; received \['conv9'\]\.$",
        ),
        ("--layers=flat", r"^error: --layers: expected of \['first', 'last'\]"),
        ("--layers=first,first", r"^error: --layers: .* each once; received"),
    ],
)
def test_bad_flags_are_refused_by_name(whole, reference, argument, message):
    found = refused(
        whole[0], f"--reference={reference}", *SWEEP, argument, name="sweep"
    )
    assert re.search(message, found)
