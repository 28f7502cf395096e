"""The paper's tables and figures by name: all in little, and again."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import matplotlib.image
import pytest
from absl import flags
from conftest import ROOT, imported, program, run

from paper import experiments, figures, tables
from paper.experiments import EXPERIMENTS
from shared import provenance, series

from dd_keras.evaluation import RobustnessReport

# Trainings and evaluations take turns on the processors of one machine.
pytestmark = pytest.mark.timeout(1500)

TABLES = (
    "table1_mnist", "table2_mnist", "limits_mnist", "tuning_mnist",
    "table1_cifar10", "table2_cifar10",
)  # fmt: skip
FIGURES = {
    "figure2": ["figure2_mlp.png"],
    "figure3": ["figure3.png"],
    "figure4": ["figure4.png"],
    "figure5": ["figure5_mlp.png"],
    "figure6": ["figure6_mlp.png", "figure6_mlp_fgsm.png"],
    "figure7": ["figure7.png", "figure7_mlp.png"],
    "figure5_cifar10": ["figure5_convnet.png"],
    "figure8": ["figure8_convnet.png"],
}


def parsed(path):
    return json.loads(path.read_text(encoding="utf-8"))


def reproduce(directory, *arguments):
    """Runs the app as a user would."""
    return program(
        "apps/reproduce.py",
        "--smoke",
        f"--output_dir={directory}",
        *arguments,
        timeout=1200,
    )


def run_quickly(arguments, *, original=subprocess.run, **options):
    """As `subprocess.run`; programs of ours start at once, see forked.py."""
    if arguments[0] != sys.executable:
        return original(arguments, **options)
    done = program(*arguments[1:])
    options["stdout"].write((done.stdout + done.stderr).encode())
    return done


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All experiments in little: their directory, and what was printed."""
    directory = tmp_path_factory.mktemp("reproduce")
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
    ):
        patch.setattr(subprocess, "run", run_quickly)
        patch.setattr(sys, "argv", ["apps/reproduce.py"])
        patch.chdir(ROOT)
        run(
            "reproduce",
            "--smoke",
            "--experiment=all",
            "--jobs=2",
            f"--output_dir={directory}",
        )
    return directory, printed.getvalue()


@pytest.mark.thorough
def test_every_experiment_is_written(everything):
    directory, printed = everything
    of_paper = set(experiments.named(["all"]))
    assert {*TABLES, *FIGURES} == of_paper
    for name in of_paper:
        found = parsed(directory / f"{name}.json")
        assert found["experiment"] == name
        assert found["smoke"] is True
        assert found["numbers"]
        assert found["made_by"]
        assert str(directory / f"{name}.json") in printed
    for picture in (name for names in FIGURES.values() for name in names):
        assert matplotlib.image.imread(directory / picture).std() > 0


@pytest.mark.thorough
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_numbers(everything, name):
    directory, printed = everything
    numbers = parsed(directory / f"{name}.json")["numbers"]
    text = EXPERIMENTS[name].text(numbers)
    assert (directory / f"{name}.md").read_text(encoding="utf-8") == text + "\n"
    assert text in printed


@pytest.mark.thorough
def test_each_number_tells_what_made_it(everything):
    directory, _ = everything
    made_by = parsed(directory / "table1_mnist.json")["made_by"]
    assert set(made_by) == {
        "mlp_seed0", "mlp_longer0", "mlp_others", "mlp_comparison",
    }  # fmt: skip
    for name, found in made_by.items():
        assert found["command"].startswith("python apps/")
        assert f"--output_dir={directory}/{name}" in found["command"]
        assert found["total_seconds"] > 0
        assert found["versions"]["tensorflow"]
        assert found["date"]
        assert "commit" in found  # None outside of a checkout
    assert "--seed=0 " in made_by["mlp_seed0"]["command"]


@pytest.mark.thorough
def test_table1_has_the_numbers_of_its_commands(everything):
    directory, _ = everything
    found = parsed(directory / "table1_mnist.json")["numbers"]["mlp"]
    seeds = [parsed(directory / "mlp_seed0" / "results.json")]
    longer = [parsed(directory / "mlp_longer0" / "results.json")]
    first = [s["models"]["reference"]["rho2"] for s in seeds]
    assert found["seeds"]["reference"]["rho2"] == first
    rho = [s["models"]["deep_defense"]["rho2"] for s in longer]
    assert found["seeds"]["longer"]["rho2"] == rho
    assert found["seeds"]["longer"]["ratio"] == [
        one / other for one, other in zip(rho, first, strict=True)
    ]
    # What goes on with Deep Defense starts from it.
    assert [s["models"]["reference"]["rho2"] for s in longer] == pytest.approx(
        [s["models"]["deep_defense"]["rho2"] for s in seeds], rel=1e-4
    )
    # Measured once more by the comparison, in other batches.
    for name in ("reference", "deep_defense"):
        assert found["models"][name]["rho2"] == pytest.approx(
            seeds[0]["models"][name]["rho2"], rel=1e-4
        )
    comparison = parsed(directory / "mlp_comparison" / "comparison.json")
    assert found["eps_ref"] == comparison["eps_ref"]
    for name, values in found["models"].items():
        for key, value in values.items():
            assert value == comparison["models"][name][key][0]
    assert found["models"]["deep_defense"][
        "accuracy@1eps_ref"
    ] == pytest.approx(0.5, abs=0.01)


@pytest.mark.thorough
def test_success_rates_are_of_the_comparison(everything):
    directory, _ = everything
    curves = parsed(directory / "figure5.json")["numbers"]["mlp"]
    comparison = parsed(directory / "mlp_comparison" / "comparison.json")
    curve = curves["Deep Defense"]
    assert len(curve["eps"]) == 23  # 20, and three shares of eps_ref
    for eps, rate, low, high in zip(
        curve["eps"],
        curve["success_rate"],
        curve["low"],
        curve["high"],
        strict=True,
    ):
        value, *ends = comparison["models"]["deep_defense"][
            f"fgsm_accuracy@{eps:g}"
        ]
        assert (rate, low, high) == (1 - value, 1 - ends[1], 1 - ends[0])


def test_spread_is_of_all_seeds():
    values = [0.991, 0.993, 0.995]
    text = tables._spread("accuracy", values)
    mean, spread = statistics.mean(values), statistics.stdev(values)
    assert text == f"{100 * mean:.2f} ± {100 * spread:.2f} %"
    assert tables._spread("rho2", [0.25]) == "0.2500 ± 0.0000"


def test_best_trial_has_the_largest_rho_of_the_accurate():
    clean = {"accuracy": 0.99}

    def trial(accuracy, rho, name):
        return {"accuracy": accuracy, "rho2": rho, "settings": name}

    good = [trial(0.9885, 0.2, "a"), trial(0.989, 0.3, "b")]
    bad = trial(0.987, 0.9, "c")
    assert tables._best([*good, bad], clean) == "b"
    assert tables._best([bad, trial(0.9, 1, "d")], clean) == "c"


@pytest.mark.thorough
def test_nothing_is_run_again(everything, capsys):
    directory, _ = everything
    paths = [*directory.glob("*/*.json"), *directory.glob("*/*.keras")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    tables = {name: parsed(directory / f"{name}.json") for name in TABLES}
    run(
        "reproduce",
        "--smoke",
        f"--experiment={','.join(TABLES)}",
        f"--output_dir={directory}",
    )
    assert "0 of them to run." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    for name, found in tables.items():
        again = parsed(directory / f"{name}.json")
        assert again["numbers"] == found["numbers"]
        assert again["made_by"] == found["made_by"]


@pytest.fixture
def copied(everything, tmp_path):
    """Another copy, to damage."""
    directory = tmp_path / "copy"
    shutil.copytree(everything[0], directory)
    return directory


def would_run(directory, experiment, capsys):
    """The names of the commands that are missing."""
    run(
        "reproduce",
        "--smoke",
        "--dry_run",
        f"--experiment={experiment}",
        f"--output_dir={directory}",
    )
    lines = capsys.readouterr().out.splitlines()
    return [line.rsplit("/", 1)[1] for line in lines if "--output_dir" in line]


@pytest.mark.thorough
def test_what_is_missing_is_run_and_no_more(copied, capsys):
    # A copy is as good as the original: paths in commands may differ.
    assert would_run(copied, "all", capsys) == []
    (copied / "mlp_limits_longer" / "evaluation.json").unlink()
    assert would_run(copied, "table1_mnist", capsys) == []
    assert would_run(copied, "all", capsys) == ["mlp_limits_longer"]
    shutil.rmtree(copied / "mlp_others")
    assert would_run(copied, "figure2", capsys) == ["mlp_others"]


def refused(*arguments):
    with pytest.raises((flags.Error, SystemExit)) as caught:
        run("reproduce", *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.thorough
def test_results_of_another_command_are_refused(copied):
    path = copied / "mlp_seed0" / "results.json"
    results = parsed(path)
    results["command"] = results["command"].replace("--seed=0", "--seed=7")
    path.write_text(json.dumps(results))
    line = refused(
        "--smoke", "--experiment=table1_mnist", f"--output_dir={copied}"
    )
    assert f"{path}: expected the result of" in line
    assert "--seed=7" in line
    results["command"] = "python apps/digits.py"
    path.write_text(json.dumps(results))
    line = refused(
        "--smoke", "--experiment=table1_mnist", f"--output_dir={copied}"
    )
    assert "it is of 'python apps/digits.py'" in line
    path.write_text("{")
    line = refused(
        "--smoke", "--experiment=table1_mnist", f"--output_dir={copied}"
    )
    assert f"{path}: expected what a command wrote; it cannot be read" in line


@pytest.mark.thorough
def test_command_that_fails_is_named(copied):
    shutil.rmtree(copied / "mlp_limits_longer")
    (copied / "mlp_longer0" / "deep_defense.keras").write_bytes(b"no model")
    done = reproduce(copied, "--experiment=limits_mnist", "--jobs=2")
    assert done.returncode == 1
    assert "error: mlp_limits_longer failed, see above." in done.stderr
    log = copied / "logs" / "mlp_limits_longer.log"
    assert "deep_defense.keras: expected a whole Keras model file" in (
        log.read_text(encoding="utf-8")
    )


@pytest.mark.thorough
def test_killed_run_goes_on(everything, tmp_path):
    command = [
        sys.executable,
        "apps/reproduce.py",
        "--smoke",
        "--experiment=figure7",
        f"--output_dir={tmp_path}",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        begun = tmp_path / "mlp_seed0" / "reference.keras"
        deadline = time.monotonic() + 300
        while not begun.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "mlp_seed0" / "results.json").exists()
    done = reproduce(tmp_path, "--experiment=figure7")
    assert done.returncode == 0, done.stderr
    assert "Resuming the unfinished run" in done.stdout
    # As if nothing had been.
    found, expected = (
        parsed(directory / "mlp_seed0" / "results.json")
        for directory in (tmp_path, everything[0])
    )
    assert found["models"] == expected["models"]
    assert found["curves"] == expected["curves"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Flag --experiment must have a value"),
        (["--experiment="], "--experiment must be of table1_mnist,"),
        (["--experiment=table3"], "--experiment must be of table1_mnist,"),
        (["--experiment=figure2", "--jobs=0"], "--jobs=0"),
        (["--experiment=figure2", "--output_dir="], "--output_dir must not"),
    ],
)
def test_bad_flags_are_refused(arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize("smoke", [False, True])
def test_steps_come_behind_those_they_need(tmp_path, smoke):
    plan = experiments.plan(str(tmp_path), smoke=smoke)
    wanted = [step for e in EXPERIMENTS.values() for step in e.steps(plan)]
    seen = set()
    for step in plan.needed(wanted):
        assert seen.issuperset(step.after)
        seen.add(step.name)
    assert seen == set(plan.steps)  # none is for nothing


def test_groups_are_opened_and_each_experiment_is_named_once():
    mnist, cifar10 = (experiments.named([n]) for n in ("mnist", "cifar10"))
    assert "figure3" in mnist
    assert "figure8" in cifar10
    assert experiments.named(["all"]) == [
        name for name in EXPERIMENTS if name in {*mnist, *cifar10}
    ]
    assert experiments.named(["figure3", "mnist"])[0] == "figure3"
    assert sorted(experiments.named(["figure3", "mnist"])) == sorted(mnist)
    assert "frontier_mnist" not in experiments.named(["all"])


def test_extent_is_the_papers(tmp_path):
    """Figure 3 is of 27 trainings, Figure 4 of 20, all of five epochs."""
    plan = experiments.plan(str(tmp_path))
    counts = {}
    with imported("sweep"):
        for name in ("figure3", "figure4", "figure6"):
            counts[name] = 0
            for step in EXPERIMENTS[name].steps(plan):
                flags.FLAGS(["sweep.py", *plan.steps[step].arguments])
                assert flags.FLAGS.epochs == 5
                (points,) = series.parse(flags.FLAGS.series).values()
                counts[name] += len(points)
                for point in points:
                    assert point.settings.d == 5
                    if name != "figure3":
                        assert point.settings.lam == 15
                flags.FLAGS.unparse_flags()
    # Figure 6: c of nine values, eps of eight, and both of six; two networks.
    assert counts == {"figure3": 27, "figure4": 20, "figure6": 2 * 23}


def test_winner_is_robust_and_as_accurate_as_the_reference():
    def point(accuracy, rho):
        numbers = {"accuracy": [accuracy], "rho2": [rho]}
        return {"numbers": numbers}

    reference = point(0.98, 0.1)
    points = [point(0.97, 0.9), point(0.98, 0.2), point(0.985, 0.3)]
    diverged = {"numbers": None}
    assert figures._winner([*points, diverged], reference) is points[2]
    assert figures._winner(points[:1], reference) is points[0]


@pytest.mark.thorough
def test_one_image_is_pictured_under_four_models(everything):
    directory, _ = everything
    found = parsed(directory / "figure7.json")["numbers"]["mlp"]
    assert list(found["models"]) == [
        "reference", "adv_train_1", "parseval", "deep_defense"
    ]  # fmt: skip
    results = parsed(directory / "mlp_seed0" / "results.json")
    assert found["four"] == results["pictured"]
    report = RobustnessReport.from_json(
        directory / "mlp_comparison" / "reports" / "reference.json"
    )
    place = found["test_image"]
    assert found["label"] == report.labels[place]
    reference = found["models"]["reference"]
    assert reference["clean"] == [report.predictions[place]]
    rho = report.values["rho2"][place]
    assert reference["rho"][0] == pytest.approx(rho, rel=1e-3)
    for values in found["models"].values():
        assert values["adversarial"] != values["clean"]


@pytest.mark.thorough
def test_figures_of_sweeps_have_their_points(everything):
    directory, _ = everything
    three, four = (
        parsed(directory / f"figure{n}.json")["numbers"] for n in (3, 4)
    )
    assert list(three["series"]) == ["lam 5", "lam 15"]
    assert list(four["series"]) == ["fc1"]
    six = parsed(directory / "figure6.json")["numbers"]["mlp"]
    names = ["lam 15", "Adv. Train II", "Deep Defense + Adv. Train II"]
    assert list(six["series"]) == names
    assert six["series"]["lam 15"] == three["series"]["lam 15"]
    for name, winner in zip(names, six["winners"], strict=True):
        assert winner.startswith(f"{name}, ")
    for found in (three, four, six):
        for (point,) in found["series"].values():
            assert point["numbers"]["rho2"][0] > 0


def test_results_name_their_commit(tmp_path, monkeypatch):
    def git(*command):
        name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(
            ["git", *name, *command],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()

    assert provenance.provenance()["commit"] == provenance._commit()
    script = tmp_path / "apps" / "provenance.py"
    library = tmp_path / "dd_keras" / "utils" / "norms.py"
    for path in (script, library):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(provenance, "__file__", str(script))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._commit() is None
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    head = git("rev-parse", "HEAD")
    assert provenance._commit() == head
    (tmp_path / "notes.md").touch()
    assert provenance._commit() == head
    library.write_text("changed = True")
    assert provenance._commit() == f"{head}, with changes"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], "/reproduce/"),
        (["--smoke"], "/reproduce_smoke/"),
        (["--smoke", "--output_dir=/tmp/mine"], "/tmp/mine/"),
    ],
)
def test_a_smoke_run_has_a_default_directory_of_its_own(
    capsys, arguments, folder
):
    run("reproduce", "--experiment=limits_mnist", "--dry_run", *arguments)
    folders = re.findall(r"--output_dir=(\S+)", capsys.readouterr().out)
    assert folders
    assert all(folder in found for found in folders)
