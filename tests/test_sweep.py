"""Accuracy against robustness over settings; stopped, killed, started again."""

import re
import shutil
import signal
import time

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import run, start_program
from test_apps import contents, parsed, refused

from paper import sweep_files
from paper.sweep_files import MEASURES

import dd_keras
from dd_keras import attacks, evaluation, plots
from dd_keras.evaluation import metrics

FLAGS = (
    "--dataset=digits",
    "--limit=40",
    "--batch_size=10",
    "--epochs=2",
    "--learning_rate=1e-5",
    "--max_iter=2",
)
SWEEP = (
    *FLAGS,
    "--fgsm_eps=5,10",
    "--series=lam 3=deep_defense lam=3 c=4,8",
    "--series=first=deep_defense regularized_layers=first c=4",
    "--series=clean=clean",
)
NAMES = ["lam_3_c=4", "lam_3_c=8", "first", "clean"]

ATTACKED = (
    *FLAGS,
    "--learning_rate=1e-4",
    "--attack_images=20",
    "--autoattack_images=12",
    "--l2_eps=100",
    "--linf_eps=10",
    "--series=Deep Defense=deep_defense gradient=implicit c=5,10",
    "--series=PGD, l_2=pgd ball=l2 attack_steps=2 eps=200",
    "--series=clean=clean",
)
ATTACKED_NAMES = ["Deep_Defense_c=5", "Deep_Defense_c=10", "PGD_l_2", "clean"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A classifier of the digits with two layers, hardly trained."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(name="flat"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Dense(32, "relu", name="first"),
            keras.layers.Dense(10, name="last"),
        ]
    )
    path = tmp_path_factory.mktemp("reference") / "mine.keras"
    model.save(path)
    return path


def make_attacks_quick(patch):
    """The strongest attacks take long to trace: others in their place."""

    def pgd(eps, norm, version, bounds):
        assert version == ["apgd-ce", "apgd-t", "fab-t"]
        return attacks.PGD(eps, norm, steps=2, bounds=bounds)

    given = metrics.get

    def best(name, bounds=None):
        if name != "l2_best":
            return given(name, bounds)
        deepfool = attacks.DeepFool(max_iter=3, bounds=bounds)
        return evaluation.BestDistance({"deepfool": deepfool})

    patch.setattr(attacks, "AutoAttack", pgd)
    patch.setattr(metrics, "get", best)


@pytest.fixture(autouse=True)
def quick_attacks(monkeypatch):
    make_attacks_quick(monkeypatch)


def sweep(directory, reference, *arguments):
    run(
        "sweep",
        f"--reference={reference}",
        f"--output_dir={directory}",
        *arguments,
    )


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory):
    """A sweep by rho, without interruption."""
    directory = tmp_path_factory.mktemp("whole")
    sweep(directory, reference, *SWEEP)
    return directory


@pytest.fixture(scope="module")
def attacked(reference, tmp_path_factory):
    """A sweep by the strongest attacks."""
    directory = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        make_attacks_quick(patch)
        sweep(directory, reference, *ATTACKED)
    return directory


def results(directory):
    """What each finished run has written, by its name."""
    found = {
        path.stem: parsed(path) for path in (directory / "runs").glob("*.json")
    }
    del found["reference"]
    return found


def rows(directory):
    """The cells of the table, without its header."""
    lines = (directory / "table.md").read_text("utf-8").splitlines()[2:]
    return [[c.strip() for c in line.split("|")[1:-1]] for line in lines]


def all_points(found):
    return [point for points in found["series"].values() for point in points]


# --- A whole sweep ----------------------------------------------------------


@pytest.mark.thorough
def test_each_point_has_settings_and_numbers_of_its_own(whole, reference):
    found = parsed(whole / "sweep.json")
    assert list(found["series"]) == ["lam 3", "first", "clean"]
    points = all_points(found)
    assert [point["run"] for point in points] == NAMES
    assert {p["run"]: p for p in points} == results(whole)
    settings = [
        (p["label"], p["settings"]["c"], p["settings"]["regularized_layers"])
        for p in points
    ]
    assert settings == [
        ("c=4", 4, None), ("c=8", 8, None), ("", 4, ["first"]),
        ("", 25, None),
    ]  # fmt: skip
    assert {p["settings"]["max_iter"] for p in points} == {2}
    assert all(p["images"] == [40] for p in points)
    for point in [found["reference"], *points]:
        assert set(point["numbers"]) == {
            "accuracy", "rho2", "l2", "fgsm_accuracy@5", "fgsm_accuracy@10"
        }  # fmt: skip
    assert len({p["numbers"]["rho2"][0] for p in points}) == len(points)
    weights = [
        keras.saving.load_model(path).get_layer("first").get_weights()[0]
        for path in (
            reference,
            *(whole / "models" / f"{name}.keras" for name in NAMES),
        )
    ]
    for i, one in enumerate(weights):  # each was trained, and in its own way
        assert not any(np.array_equal(one, other) for other in weights[:i])


@pytest.mark.thorough
def test_table_and_figure_are_of_the_points(whole, monkeypatch, tmp_path):
    found = parsed(whole / "sweep.json")
    points = all_points(found)
    first, *others = rows(whole)
    assert first[0] == "reference"
    for row, point in zip(others, points, strict=True):
        assert row[:2] == [point["series"], point["label"]]
        accuracy, rho = (point["numbers"][k] for k in ("accuracy", "rho2"))
        assert row[2] == f"{100 * accuracy[0]:.2f} %"
        assert row[3] == "{:.4f} ({:.4f} to {:.4f})".format(*rho[:3])
    assert matplotlib.image.imread(whole / "sweep.png").std() > 0
    drawn = []

    def trade_off(points, path, norm, reference, width):
        drawn.append((points, norm, reference))
        shutil.copyfile(whole / "sweep.png", path)

    monkeypatch.setattr(plots, "trade_off", trade_off)
    sweep_files.draw(
        found["series"], found["reference"], str(tmp_path / "again.png")
    )
    ((shown, norm, star),) = drawn
    assert norm == 2
    numbers = found["reference"]["numbers"]
    assert star == (numbers["rho2"][0], numbers["accuracy"][0])
    assert shown["lam 3"] == {
        "accuracy": [p["numbers"]["accuracy"][0] for p in points[:2]],
        "rho": [p["numbers"]["rho2"][0] for p in points[:2]],
        "labels": ["4", "8"],
    }
    assert list(shown) == ["lam 3", "first", "clean"]


@pytest.mark.thorough
def test_the_app_of_the_data_set_gives_the_same_numbers(
    whole, reference, tmp_path
):
    run(
        "digits",
        "--defense=deep_defense",
        f"--reference={reference}",
        f"--output_dir={tmp_path}",
        "--lam=3",
        "--c=4",
        *FLAGS[1:],
    )
    expected = parsed(tmp_path / "results.json")["models"]
    found = parsed(whole / "sweep.json")
    for point, name in (
        (found["reference"], "reference"),
        (found["series"]["lam 3"][0], "deep_defense"),
    ):
        for key in ("accuracy", "rho2", "l2"):
            value = point["numbers"][key][0]
            assert value == pytest.approx(expected[name][key], rel=1e-5)


@pytest.mark.thorough
def test_attacked_points_are_measured_by_the_attacks(attacked, reference):
    found = parsed(attacked / "sweep.json")
    points = all_points(found)
    assert [p["run"] for p in points] == ATTACKED_NAMES
    first, _, last, clean = points
    assert first["settings"]["gradient"] == "implicit"
    assert (last["settings"]["ball"], last["settings"]["eps"]) == ("l2", 200)
    assert (clean["label"], clean["defense"]) == ("", "clean")
    data = dd_keras.datasets.load("digits")
    test = data._replace(test=data.test.take(20)).test.batch(20)
    x, y = next(iter(test))
    for point in [found["reference"], *points]:
        assert point["images"] == [40, 20, 12]
        name = point.get("run", "reference")
        path = attacked / "models" / f"{name}.keras"
        report = dd_keras.evaluate_robustness(
            keras.saving.load_model(path if "run" in point else reference),
            (data.preprocessing(x) if data.preprocessing else x, y),
            metrics=[
                "accuracy",
                attacks.DeepFool(max_iter=3, bounds=data.bounds),
            ],
            verbose=0,
        )
        assert point["numbers"]["l2_best"][0] == pytest.approx(
            report.summary()["l2"], rel=1e-4
        )
        assert {*MEASURES, "accuracy", "rho2", "l2"} == set(point["numbers"])
        withstood = point["numbers"]["autoattack_accuracy"][0] * 12
        assert withstood == pytest.approx(round(withstood))
        kept = np.load(attacked / "runs" / f"{name}.npz")
        assert kept["l2_best"].shape == (20,)
    assert len(rows(attacked)) == len(points) + 1
    assert matplotlib.image.imread(attacked / "sweep.png").std() > 0


# --- Stopped, killed, and started again -------------------------------------


@pytest.mark.thorough
def test_stopped_and_killed_it_goes_on_to_the_same_numbers(
    whole, reference, tmp_path, capsys
):
    out = tmp_path / "out"
    sweep(out, reference, *SWEEP, "--max_runs=1")
    printed = capsys.readouterr().out
    assert "4 points, 4 of them to do." in printed
    assert "1 of 4 points are done." in printed
    assert set(results(out)) == set(NAMES[:1])
    assert len(rows(out)) == 2
    stopped = contents(out / "runs")

    process = start_program(
        "apps/sweep.py",
        f"--reference={reference}",
        f"--output_dir={out}",
        *SWEEP,
    )
    try:  # its second point, the third of all, begins
        deadline = time.time() + 300
        while not (out / "logs" / "first.csv").exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.time() < deadline, "its second point does not begin"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(results(out)) == set(NAMES[:2])
    killed = contents(out / "runs")
    assert stopped.items() <= killed.items()

    sweep(out, reference, *SWEEP)
    assert "4 points, 2 of them to do." in capsys.readouterr().out
    assert killed.items() <= contents(out / "runs").items()
    assert not [path for path in contents(out) if ".part" in path]
    expected, found = results(whole), results(out)
    assert set(found) == set(NAMES)
    for name, result in found.items():
        assert result["settings"] == expected[name]["settings"]
        for key, estimate in expected[name]["numbers"].items():
            assert result["numbers"][key] == pytest.approx(estimate, rel=1e-5)


@pytest.mark.thorough
def test_finished_sweep_trains_nothing(whole, reference, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "out")
    before = contents(out)
    (out / "sweep.json").write_text('{"series": ')  # is written again
    monkeypatch.setattr(keras.Model, "fit", None)
    sweep(out, reference, *SWEEP)
    after = contents(out)
    assert len(all_points(parsed(out / "sweep.json"))) == len(NAMES)
    assert set(after) == set(before)
    assert {p for p in before if after[p] != before[p]} <= {
        "sweep.png", "sweep.json"
    }  # fmt: skip


@pytest.mark.thorough
def test_points_asked_for_later_join_those_there_are(
    whole, reference, tmp_path, capsys
):
    out = shutil.copytree(whole, tmp_path / "out")
    before = contents(out / "runs")
    more = [text.replace("c=4,8", "c=4,8,16") for text in SWEEP]
    sweep(out, reference, *more, "--max_runs=0")
    printed = capsys.readouterr().out
    assert "5 points, 1 of them to do." in printed
    assert "4 of 5 points are done." in printed
    assert contents(out / "runs") == before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("argument", "file", "expected"),
    [
        ("--learning_rate=2e-5", NAMES[0], "learning_rate 2e-05; .* 1e-05"),
        ("--batch_size=5", NAMES[0], "batch_size 5; .* 10"),
        ("--lam_start=1", NAMES[0], "lam_start 1.0; .* 0.0"),
        ("--precision=mixed_bfloat16", NAMES[0], "precision mixed_.* float32"),
        ("--lam=5", NAMES[2], "lam 5.0; .* 15.0"),  # others have their own
        ("--fgsm_eps=5", NAMES[0], r"fgsm_eps \['5'\]; .* \['5', '10'\]"),
        ("--evaluation_candidates=3", NAMES[0], "evaluation_can.* 3; .* None"),
    ],
)
def test_other_settings_are_refused(whole, reference, argument, file, expected):
    message = refused(
        whole, f"--reference={reference}", *SWEEP, argument, name="sweep"
    )
    path = whole / "runs" / f"{file}.json"
    assert message.startswith(f"error: {path}: ")
    assert re.search(
        rf": expected a run with {expected}\. Choose another --output_dir\.$",
        message,
    )


@pytest.mark.thorough
def test_another_reference_is_refused(whole, reference, tmp_path):
    model = keras.saving.load_model(reference)
    model.set_weights([2 * weight for weight in model.get_weights()])
    model.save(tmp_path / "other.keras")
    message = refused(
        whole,
        f"--reference={tmp_path / 'other.keras'}",
        *SWEEP,
        name="sweep",
    )
    assert message.startswith(
        f"error: {whole / 'runs' / f'{NAMES[0]}.json'}: expected a run with "
        "reference_sha256 "
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "damaged"),
    [(NAMES[1], '{"run": "lam'), (NAMES[1], ""), ("reference", "[1, 2]")],
)
def test_damaged_file_of_a_run_is_named(
    whole, reference, tmp_path, name, damaged
):
    out = shutil.copytree(whole, tmp_path / "out")
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
        *("--dataset=digits", "--limit=20", "--max_runs=0", "--arch=mlp"),
        *("--reference_epochs=1", "--series=a=clean"),
        f"--output_dir={tmp_path}",
    )
    run("sweep", *arguments)
    printed = capsys.readouterr().out
    assert "Training the reference: mlp" in printed
    assert "1 points, 1 of them to do." in printed
    assert len(rows(tmp_path)) == 1
    before = contents(tmp_path)
    run("sweep", *arguments)
    assert "Training" not in capsys.readouterr().out
    after = contents(tmp_path)
    changed = {path for path in before if after[path] != before[path]}
    assert changed <= {"sweep.json"}
    # It is not taken for another one.
    assert refused(
        tmp_path, *arguments, "--arch=digits_cnn", name="sweep"
    ).startswith(
        f"error: {tmp_path / 'runs' / 'reference.json'}: expected a run with "
        "arch digits_cnn; it is one with mlp."
    )


# --- What goes wrong --------------------------------------------------------


@pytest.mark.thorough
def test_sweep_goes_on_after_a_point_that_diverges(
    reference, tmp_path, capsys, monkeypatch
):
    arguments = (*FLAGS, "--series=far=deep_defense lam=1e38,1", "--epochs=1")
    sweep(tmp_path, reference, *arguments)
    printed = capsys.readouterr().out
    assert "diverged in epoch 1, step " in printed
    assert "The likely cause: the updates are too large." in printed
    assert "2 of 2 points are done." in printed
    _, diverged, finite = rows(tmp_path)
    assert diverged[2:5] == ["diverged", "-", "-"]
    numbers = results(tmp_path)["far_lam=1"]["numbers"]
    assert finite[2] == f"{100 * numbers['accuracy'][0]:.2f} %"
    assert (tmp_path / "sweep.png").exists()
    monkeypatch.setattr(keras.Model, "fit", None)  # nor is it tried again
    sweep(tmp_path, reference, *arguments)
    assert "2 points, 0 of them to do." in capsys.readouterr().out


@pytest.mark.thorough
def test_without_any_point_there_is_no_figure(reference, tmp_path):
    sweep(
        tmp_path,
        reference,
        *FLAGS,
        "--series=far=adv_train_2 eps=1e30",
        "--learning_rate=1e30",
    )
    assert [
        p["numbers"] for p in all_points(parsed(tmp_path / "sweep.json"))
    ] == [None]
    assert not (tmp_path / "sweep.png").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["pgd"], "expected NAME=DEFENCE SETTING=VALUE"),
        (["a=none"], "the defence of clean, deep_defense"),
        (["a="], "the defence of clean, deep_defense"),
        (["a=clean", "a=clean"], "expected each name once"),
        (["a b=clean", "a/b=clean"], "expected points of different names"),
        (["a=pgd c=5"], "expected settings of pgd, of eps, ball"),
        (["a=pgd eps=much"], "eps=much"),
        (["a=pgd ball=l3"], "ball=l3"),
        (["a=pgd eps=1,2 attack_steps=1,2"], "one setting with several values"),
    ],
)
def test_bad_series_are_named(tmp_path, given, message):
    words = [f"--series={text}" for text in given]
    assert message in refused(tmp_path, *FLAGS, *words, name="sweep")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs=0"], r"--epochs must be above 0\."),
        (["--keep=best", "--validation_split=0.5"], "--keep must be last"),
        (["--l2_eps=0"], r"--l2_eps must be above 0\."),
        (["--fgsm_eps=5,nan"], "--fgsm_eps must be numbers, separated by"),
        (["--fgsm_eps=-5"], "--fgsm_eps must be numbers, separated by"),
        (["--attack_images=-1"], "--attack_images=-1"),
        (
            ["--series=a=deep_defense regularized_layers=conv9"],
            r"^error: --series: regularized_layers of a: expected of "
            r"\['first', 'last'\]; received \['conv9'\]\.$",
        ),
        (
            ["--series=a=deep_defense regularized_layers=flat"],
            r"expected of \['first', 'last'\]; received \['flat'\]\.$",
        ),
    ],
)
def test_bad_flags_are_refused_by_name(tmp_path, reference, arguments, message):
    found = refused(
        tmp_path,
        f"--reference={reference}",
        *FLAGS,
        "--series=clean=clean",
        *arguments,
        name="sweep",
    )
    assert re.search(message, found)
