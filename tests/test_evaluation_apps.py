"""apps/evaluate.py and apps/compare.py, run as a user would."""

import base64
import contextlib
import csv
import io
import json
import re
import signal
import time

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import program, run, start_program
from test_apps import parsed

from shared import inputs

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.evaluation import RobustnessReport, evaluate_robustness

FEW = ("--dataset=digits", "--limit=120", "--batch_size=30")


@pytest.fixture(scope="module")
def model_path(trained_network, tmp_path_factory):
    """A digits classifier in a file."""
    path = tmp_path_factory.mktemp("model") / "digits.keras"
    trained_network.save(path)
    return path


@pytest.fixture(scope="module")
def weaker_path(trained_network, tmp_path_factory):
    """The same classifier with noise on its weights."""
    path = tmp_path_factory.mktemp("model") / "weaker.keras"
    model = keras.models.clone_model(trained_network)
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            w + rng.normal(0, 0.3 * w.std(), w.shape)
            for w in trained_network.get_weights()
        ]
    )
    model.save(path)
    return path


@pytest.fixture(scope="module")
def digits_data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def evaluated(model_path, tmp_path_factory):
    """A run of the app with its defaults: directory and output."""
    directory = tmp_path_factory.mktemp("evaluated")
    done = program(
        "apps/evaluate.py",
        f"--model={model_path}",
        f"--output_dir={directory}",
        *FEW,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, done.stdout


def test_report_is_that_of_the_library(evaluated, model_path, digits_data):
    report = RobustnessReport.from_json(evaluated[0] / "report.json")
    expected = evaluate_robustness(
        keras.saving.load_model(model_path),
        datasets.batches(
            digits_data.test.take(120), digits_data.preprocessing, 30
        ),
        metrics=["accuracy", "rho2", "fgsm_rho", "fgsm", "pgd"],
        bounds=digits_data.bounds,
        verbose=0,
    )
    assert set(report.values) == set(expected.values)
    for name, values in expected.values.items():
        np.testing.assert_allclose(
            report.values[name], values, rtol=1e-5, err_msg=name
        )


def test_all_files_are_there_and_told_of(evaluated):
    directory, output = evaluated
    names = {
        "report.json", "report.npz", "table.md", "success_rate.png",
        "rho.png", "evaluation.json",
    }  # fmt: skip
    assert {path.name for path in directory.iterdir()} == names
    told = re.findall(r"^  (/.*)$", output, re.MULTILINE)
    assert set(told) == {str(directory / name) for name in names}
    # But for the seconds, which are not in the file.
    report = RobustnessReport.from_json(directory / "report.json")
    told = (directory / "table.md").read_text()
    for name, estimate in report.estimates.items():
        assert re.search(rf"\| {name} +\| +{estimate.text()} \|", told)
        assert re.search(rf"^{name} +{estimate.text()} ", output, re.MULTILINE)
    assert "seconds" in told
    assert "4/4" in output  # batches


def test_evaluation_tells_numbers_and_what_made_them(evaluated, model_path):
    directory, _ = evaluated
    found = json.loads((directory / "evaluation.json").read_text())
    report = RobustnessReport.from_json(directory / "report.json")
    assert found["model"] == str(model_path)
    assert found["images"] == 120
    assert {name: row[0] for name, row in found["numbers"].items()} == {
        name: value
        for name, value in report.summary().items()
        if name != "samples"
    }
    for value, low, high in found["numbers"].values():
        assert low - 1e-9 <= value <= high + 1e-9
    assert found["attacks"]["pgd"].startswith("PGD(eps=25.5")
    assert found["command"].startswith("python apps/evaluate.py --model=")
    assert found["total_seconds"] > 0


def test_pgd_of_any_size(model_path, digits_data, tmp_path):
    """And with more starts it finds at least as much."""
    shares = {}
    for restarts in (1, 3):
        out = tmp_path / str(restarts)
        run(
            "evaluate",
            f"--model={model_path}",
            "--metrics=accuracy,pgd",
            "--pgd_eps=20,40.5",
            "--pgd_steps=3",
            f"--pgd_restarts={restarts}",
            f"--output_dir={out}",
            *FEW,
        )
        numbers = json.loads((out / "evaluation.json").read_text())["numbers"]
        assert set(numbers) == {
            "accuracy", "pgd@20_accuracy", "pgd@40.5_accuracy"
        }  # fmt: skip
        shares[restarts] = {name: row[0] for name, row in numbers.items()}
    expected = evaluate_robustness(
        keras.saving.load_model(model_path),
        datasets.batches(
            digits_data.test.take(120), digits_data.preprocessing, 30
        ),
        metrics=[
            attacks.PGD(40.5, steps=3, restarts=3, bounds=digits_data.bounds)
        ],
        bounds=digits_data.bounds,
        verbose=0,
    ).summary()["pgd_accuracy"]
    assert shares[3]["pgd@40.5_accuracy"] == expected
    assert shares[3]["pgd@40.5_accuracy"] < shares[3]["pgd@20_accuracy"]
    for name in ("pgd@20_accuracy", "pgd@40.5_accuracy"):
        assert shares[3][name] <= shares[1][name]


@pytest.mark.thorough
def test_strong_attacks_have_flags_and_files(model_path, weaker_path, tmp_path):
    run(
        "evaluate",
        f"--model={model_path}",
        "--metrics=accuracy,l2_best,adaptive",
        "--pgd_eps=30,60",
        "--pgd_norm=2",
        "--pgd_steps=5",
        "--autoattack_eps=25.5",
        f"--undefended={weaker_path}",
        "--keep_perturbations",
        "--robustbench",
        f"--output_dir={tmp_path}",
        "--dataset=digits",
        "--limit=30",
    )
    found = json.loads((tmp_path / "evaluation.json").read_text())
    numbers = found["numbers"]
    assert {
        "l2_best", "rho2_best_by_ddn", "adaptive_unbounded_accuracy",
        "pgd_l2@30_accuracy", "pgd_l2@60_accuracy", "transfer_l2@30_accuracy",
        "transfer_l2@60_accuracy", "autoattack@25.5_accuracy",
        "autoattack@25.5_accuracy_after_fab-t",
    } <= set(numbers)  # fmt: skip
    assert numbers["pgd_l2@60_accuracy"][0] <= numbers["pgd_l2@30_accuracy"][0]
    assert "norm=2.0, steps=5" in found["attacks"]["pgd_l2@30"]
    assert set(found["attacks"]["rho2_best"]) == {"deepfool", "ddn", "fab"}
    assert found["passes"]["rho2_best"]["backward"] > 30 * 300
    assert found["seconds"]["rho2_best"] > 0
    assert (tmp_path / "robust_accuracy.png").read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "report.npz") as arrays:
        assert arrays["rho2_best_perturbation"].shape == (30, 8, 8, 1)
        assert arrays["autoattack@25.5_perturbation"].shape == (30, 8, 8, 1)
    card = json.loads((tmp_path / "robustbench.json").read_text())
    assert card["dataset"] == "digits"
    assert (card["norm"], card["eps_share"]) == ("Linf", pytest.approx(0.1))
    assert card["clean_acc"] == f"{100 * numbers['accuracy'][0]:.2f}"
    assert card["autoattack_acc"] == (
        f"{100 * numbers['autoattack@25.5_accuracy'][0]:.2f}"
    )


@pytest.mark.thorough
def test_merged_shards_write_the_report_of_the_whole(
    model_path, evaluated, tmp_path, capsys
):
    shards = []
    for index in (2, 1):
        shards.append(str(tmp_path / f"shard{index}"))
        run(
            "evaluate",
            f"--model={model_path}",
            f"--shard={index}/2",
            f"--output_dir={shards[-1]}",
            *FEW,
        )
    whole = tmp_path / "whole"
    run("merge", f"--shards={','.join(shards)}", f"--output_dir={whole}")
    for name in ("report.json", "success_rate.png", "rho.png"):
        assert (whole / name).read_bytes() == (evaluated[0] / name).read_bytes()
    told = json.loads((whole / "evaluation.json").read_text())
    assert told["model"] == str(model_path)
    assert (told["images"], "shard" in told) == (120, False)
    assert "Written:" in capsys.readouterr().out
    other = json.loads((tmp_path / "shard1/evaluation.json").read_text())
    assert other["shard"] == [1, 2]
    (tmp_path / "shard1/evaluation.json").write_text(
        json.dumps(other | {"model": "other.keras"})
    )
    with pytest.raises(SystemExit, match="expected evaluations of one model"):
        run("merge", f"--shards={','.join(shards)}", f"--output_dir={whole}")
    with pytest.raises(SystemExit, match="reports: expected each shard"):
        run("merge", f"--shards={shards[0]}", f"--output_dir={whole}")


@pytest.mark.thorough
def test_pages_of_shards_show_their_own_images(
    model_path, digits_data, tmp_path
):
    test = list(digits_data.test.take(120).as_numpy_iterator())
    shards = []
    for index in (1, 2):
        shards.append(str(tmp_path / str(index)))
        run(
            "evaluate",
            f"--model={model_path}",
            "--metrics=accuracy,rho2",
            f"--shard={index}/2",
            "--html",
            f"--output_dir={shards[-1]}",
            *FEW,
        )
        page = (tmp_path / str(index) / "report.html").read_text()
        assert f"part {index} of 2 of the data set" in page
        cards = page.split('<article class="card">')[1:]
        assert len(cards) >= 20
        for card in cards:
            (sample,) = re.findall(r"<dt>sample</dt><dd>(\d+)</dd>", card)
            clean, *_ = re.findall(r"data:image/png;base64,([^\"]+)", card)
            shown = tf.io.decode_png(base64.b64decode(clean)).numpy()
            image, label = test[int(sample) + 60 * (index - 1)]
            np.testing.assert_allclose(shown, image, atol=0.51)
            assert f'<span class="name" title="{label}">' in card
    whole = tmp_path / "whole"
    shown = ",".join(shards)
    run("merge", f"--shards={shown}", "--html", f"--output_dir={whole}")
    page = (whole / "report.html").read_text()
    assert "<img" not in page
    assert "The images are not at hand here" in page
    assert "120 decisions that DeepFool changed" in page


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/2/3", "a/b", "-1/2"])
def test_bad_shard_is_refused_by_the_flag(shard, model_path):
    with pytest.raises(flags.Error, match="--shard must be i/n"):
        run("evaluate", f"--model={model_path}", f"--shard={shard}")


@pytest.mark.thorough
def test_saved_model_gives_the_same(
    model_path, digits_data, evaluated, tmp_path
):
    classifier = keras.saving.load_model(model_path)
    images = keras.Input(digits_data.image_shape)
    served = keras.Model(images, classifier(digits_data.preprocessing(images)))
    served.export(tmp_path / "served", verbose=False)
    run(
        "evaluate",
        f"--model={tmp_path / 'served'}",
        "--activation=linear",
        "--preprocessing=none",
        "--metrics=accuracy,l2,pgd",
        f"--output_dir={tmp_path / 'out'}",
        *FEW,
    )
    found = RobustnessReport.from_json(tmp_path / "out/report.json")
    first = RobustnessReport.from_json(evaluated[0] / "report.json")
    np.testing.assert_array_equal(found.predictions, first.predictions)
    np.testing.assert_allclose(
        found.values["l2"], first.values["l2"], rtol=1e-3
    )
    # Its inputs are pixels, so that its random starts are others.
    other = found.values["pgd_fooled"] != first.values["pgd_fooled"]
    assert np.mean(other) <= 0.05


@pytest.mark.thorough
def test_killed_evaluation_goes_on_to_the_identical_report(
    model_path, evaluated, tmp_path
):
    command = [
        "apps/evaluate.py",
        f"--model={model_path}",
        f"--output_dir={tmp_path}",
        *FEW,
    ]
    process = start_program(*command)
    first_batch = tmp_path / "checkpoint" / "batch_000000.npz"
    deadline = time.monotonic() + 300
    while not first_batch.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "report.json").exists()
    stamp = first_batch.stat().st_mtime_ns

    # Changed flags are another evaluation: nothing is mixed.
    with pytest.raises(SystemExit, match="the misclassified of the one it"):
        run("evaluate", *command[1:], "--misclassified=zero")
    assert first_batch.stat().st_mtime_ns == stamp

    resumed = program(*command)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert (tmp_path / "report.json").read_bytes() == (
        evaluated[0] / "report.json"
    ).read_bytes()
    assert not first_batch.parent.exists()


def test_flags_choose_metrics_eps_and_form(model_path, tmp_path, capsys):
    run(
        "evaluate",
        f"--model={model_path}",
        "--metrics=accuracy,fgsm",
        "--eps=10,20.5",
        "--format=csv",
        "--split=train",
        "--misclassified=exclude",
        f"--output_dir={tmp_path}",
        *FEW,
    )
    printed = capsys.readouterr().out
    rows = list(csv.reader(printed[printed.index("120 s") :].split()))
    assert rows  # it is CSV
    report = RobustnessReport.from_json(tmp_path / "report.json")
    assert list(report.summary()) == [
        "accuracy", "fgsm_accuracy@10", "fgsm_accuracy@20.5", "samples"
    ]  # fmt: skip
    assert report.misclassified == "exclude"


@pytest.fixture(scope="module")
def compared(model_path, weaker_path, tmp_path_factory):
    """A comparison of two models: directory and output."""
    directory = tmp_path_factory.mktemp("compared")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(
            "compare",
            f"--model=ours={model_path}",
            f"--model=weaker={weaker_path}",
            "--ours=ours",
            "--few=20",
            "--best=15",
            "--html",
            f"--output_dir={directory}",
            *FEW,
        )
    return directory, printed.getvalue()


@pytest.mark.thorough
def test_comparison_has_all_numbers_of_both_tables(compared):
    directory, _ = compared
    found = json.loads((directory / "comparison.json").read_text())
    assert (found["images"], found["few"]) == (120, 20)
    for name in ("ours", "weaker"):
        numbers = found["models"][name]
        path = directory / "reports" / f"{name}.json"
        report = RobustnessReport.from_json(path)
        for key, value in report.summary().items():
            if key != "samples":
                assert numbers[key][0] == value
        assert {"cw_l2", "pass", "pgd_accuracy", "fgsm_rho"} <= set(numbers)
        # C&W's is the stronger attack; 2 % for what it rounds off.
        assert numbers["cw_l2"][0] <= 1.3 * numbers["l2"][0]
    ours = found["models"]["ours"]
    assert ours["eps_ref"][0] == found["eps_ref"]
    assert ours["accuracy@1eps_ref"][0] == pytest.approx(0.5, abs=0.01)
    assert (
        ours["accuracy"][0]
        >= ours["accuracy@0.2eps_ref"][0]
        >= ours["accuracy@0.5eps_ref"][0]
        > ours["accuracy@1eps_ref"][0]
    )


@pytest.mark.thorough
def test_comparison_has_what_the_strongest_attacks_leave(compared):
    directory, _ = compared
    best = json.loads((directory / "comparison.json").read_text())["best_known"]
    assert (best["images"], best["baseline"]) == (15, "ours")
    lengths = {}
    for name in ("ours", "weaker"):
        numbers = best["models"][name]
        path = directory / "reports" / f"{name}_best.json"
        report = RobustnessReport.from_json(path)
        assert len(report) == 15
        for key, value in report.summary().items():
            if key != "samples":
                assert numbers[key][0] == value
        lengths[name] = report.values["l2_best"]
    gain, low, high = best["models"]["weaker"]["gain_l2_best"]
    assert gain == pytest.approx(
        lengths["weaker"].mean() / lengths["ours"].mean()
    )
    assert low < gain < high
    assert best["models"]["ours"]["gain_l2"] == pytest.approx([1, 1, 1])
    assert set(best["attacks"]["rho2_best"]) == {"deepfool", "ddn", "fab"}
    with open(directory / "table3.csv", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[4:6] == ["l_2, best known", "gain"]
    assert [row[0] for row in rows] == ["ours", "weaker"]
    assert rows[1][5].startswith(f"{gain:.3f} (")
    assert (directory / "table3.txt").read_text() in compared[1] + "\n"


@pytest.mark.thorough
def test_both_are_attacked_at_the_eps_ref_of_ours(
    compared, weaker_path, digits_data
):
    found = json.loads((compared[0] / "comparison.json").read_text())
    model = keras.saving.load_model(weaker_path)
    batches = datasets.batches(
        digits_data.test.take(120), digits_data.preprocessing, 120
    )
    x, y = next(iter(batches))
    attack = attacks.FGSM(0.5 * found["eps_ref"])
    right = model.predict(x, verbose=0).argmax(-1) == y
    still = model.predict(attack(model, x), verbose=0).argmax(-1) == y
    assert found["models"]["weaker"]["accuracy@0.5eps_ref"][0] == (
        pytest.approx(np.mean(right & still), abs=1e-6)
    )


@pytest.mark.thorough
def test_papers_fgsm_stands_beside_ours(compared, weaker_path, digits_data):
    found = json.loads((compared[0] / "comparison.json").read_text())
    ours, weaker = (found["models"][name] for name in ("ours", "weaker"))
    assert ours["paper_accuracy@1eps_ref"][0] == pytest.approx(0.5, abs=0.01)
    # On small digits the softmax hardly saturates.
    assert found["paper_eps_ref"] == pytest.approx(found["eps_ref"], rel=0.1)
    model = keras.saving.load_model(weaker_path)
    batches = datasets.batches(
        digits_data.test.take(120), digits_data.preprocessing, 120
    )
    x, y = next(iter(batches))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
            y, model(x, training=False)
        )
    step = 0.5 * found["paper_eps_ref"] * tf.sign(tape.gradient(loss, x))
    right = model.predict(x, verbose=0).argmax(-1) == y
    still = model.predict(x + step, verbose=0).argmax(-1) == y
    assert weaker["paper_accuracy@0.5eps_ref"][0] == pytest.approx(
        np.mean(right & still), abs=1e-6
    )


@pytest.mark.thorough
def test_comparison_is_written_in_every_form(compared):
    directory, output = compared
    found = json.loads((directory / "comparison.json").read_text())
    for table, columns in (
        ("table1", ["accuracy", "rho2", "accuracy@0.2eps_ref",
                    "accuracy@0.5eps_ref", "accuracy@1eps_ref",
                    "paper_accuracy@0.2eps_ref", "paper_accuracy@0.5eps_ref",
                    "paper_accuracy@1eps_ref"]),
        ("table2", ["l2", "fgsm_rho", "fgsm_eps", "pgd_accuracy", "cw_l2",
                    "pass"]),
    ):  # fmt: skip
        assert (directory / f"{table}.txt").read_text() in output + "\n"
        markdown = (directory / f"{table}.md").read_text()
        with open(directory / f"{table}.csv", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
        assert [row[0] for row in rows] == ["ours", "weaker"]
        for name, *cells in rows:
            assert re.search(
                rf"\| {name} +\| +" + r" +\| +".join(map(re.escape, cells)),
                markdown,
            )
            for cell, column in zip(cells, columns, strict=True):
                value = found["models"][name][column][0]
                number = float(cell.removesuffix(" %"))
                share = 100 if cell.endswith("%") else 1
                assert number == pytest.approx(
                    share * value, rel=5e-4, abs=0.01
                )
    for figure in (
        "success_rate.png", "trade_off.png", "rho.png", "robust_accuracy.png"
    ):  # fmt: skip
        assert (directory / figure).read_bytes().startswith(b"\x89PNG")
    assert not (directory / "checkpoints").exists()


@pytest.mark.thorough
def test_comparison_has_a_page_of_all_and_one_of_each(compared):
    directory, output = compared
    together = (directory / "report.html").read_text()
    found = json.loads((directory / "comparison.json").read_text())
    assert "accuracy under AutoAttack" in together
    for name in ("ours", "weaker"):
        report = RobustnessReport.from_json(
            directory / "reports" / f"{name}.json"
        )
        page = (directory / "reports" / f"{name}.html").read_text()
        for estimate in report.estimates.values():
            assert estimate.text() in page
            assert estimate.text() in together
        best = found["best_known"]["models"][name]["l2_best"][0]
        assert f"{best:#.4g}" in together
        assert page.count("data:image/png") >= 3 * 20
        assert str(directory / "reports" / f"{name}.html") in output
    assert str(directory / "report.html") in output


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        ("evaluate", ["--metrics=rho2,roh2"], "received 'roh2'"),
        (
            "evaluate",
            ["--eps=10,x"],
            "--eps: expected numbers; received ['10', 'x']",
        ),
        (
            "evaluate",
            ["--pgd_eps=x"],
            "--pgd_eps: expected numbers; received ['x']",
        ),
        (
            "evaluate",
            ["--autoattack_eps=x"],
            "--autoattack_eps: expected numbers; received ['x']",
        ),
        (
            "evaluate",
            ["--robustbench"],
            "--robustbench: expected autoattack among --metrics",
        ),
        (
            "evaluate",
            ["--metrics=rho2", "--undefended=none.keras"],
            "none.keras: expected a Keras",
        ),
        ("merge", ["--shards=nowhere"], "nowhere/report.json"),
        ("evaluate", ["--model=none.keras"], "none.keras: expected a Keras"),
        ("evaluate", ["--model=."], "expected the directory of a SavedModel"),
        ("evaluate", ["--preprocessing=no"], "no: expected a Keras model file"),
        ("compare", ["--ours=theirs"], "--ours: expected one of ['a']"),
        ("compare", ["--model=a=b"], "--model: expected each name once"),
        ("compare", ["--model=b=none.keras"], "none.keras: expected a Keras"),
    ],
)
def test_bad_flags_end_with_one_line(
    app, arguments, message, model_path, tmp_path
):
    own = {
        "evaluate": [f"--model={model_path}", *FEW],
        "compare": [f"--model=a={model_path}", "--ours=a", *FEW],
        "merge": [],
    }[app]
    with pytest.raises(SystemExit, match=re.escape(message)):
        run(app, *own, *arguments, f"--output_dir={tmp_path / 'out'}")
    assert not list(tmp_path.glob("out/*.json"))


def test_name_without_a_path_is_refused_by_the_flag():
    with pytest.raises(flags.Error, match="--model must be NAME=PATH"):
        run("compare", "--model=nopath", "--ours=a")


@pytest.fixture(scope="module")
def exported(model_path, digits_data, tmp_path_factory):
    """The classifier as `dd_keras.export` writes it."""
    return dd_keras.export(
        keras.saving.load_model(model_path),
        tmp_path_factory.mktemp("exported") / "digits",
        digits_data.preprocessing,
        warm_up_requests=False,
    )


@pytest.mark.thorough
@pytest.mark.parametrize("flags_given", [[], ["--preprocessing=none"]])
def test_an_export_gives_the_numbers_of_its_file(
    exported, evaluated, tmp_path, flags_given
):
    """In the network's space: rho too, random starts and all."""
    run(
        "evaluate",
        f"--model={exported}",
        f"--output_dir={tmp_path / 'out'}",
        *flags_given,
        *FEW,
    )
    found = RobustnessReport.from_json(tmp_path / "out/report.json")
    first = RobustnessReport.from_json(evaluated[0] / "report.json")
    assert set(found.values) == set(first.values)
    np.testing.assert_allclose(
        found.values["rho2"], first.values["rho2"], rtol=1e-4
    )
    np.testing.assert_array_equal(
        found.values["pgd_fooled"], first.values["pgd_fooled"]
    )


@pytest.mark.thorough
def test_an_exports_rho_is_that_of_its_signature(exported, digits_data):
    data = digits_data.test.take(20).batch(20)
    images, _ = next(iter(data))
    signature = tf.saved_model.load(exported).signatures["robustness"]
    classifier = inputs.load_classifier(str(exported), None)
    report = evaluate_robustness(
        classifier.model,
        datasets.batches(
            digits_data.test.take(20), classifier.preprocessing, 20
        ),
        activation=classifier.activation,
        verbose=0,
    )
    np.testing.assert_allclose(
        report.values["rho2"], signature(images=images)["rho"], rtol=1e-4
    )


def test_preprocessing_an_export_twice_is_refused(exported, tmp_path):
    with pytest.raises(SystemExit, match="which would be applied twice"):
        run(
            "evaluate",
            f"--model={exported}",
            "--preprocessing=dataset",
            f"--output_dir={tmp_path}",
            *FEW,
        )


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        ("evaluate", ["--model=nope.keras"], "nope.keras: expected a Keras mo"),
        ("evaluate", ["--model={cut}"], "it is damaged: BadZipFile"),
        ("evaluate", ["--model={whole}", "--metrics=rho3x"], "rho3x"),
        ("evaluate", ["--model={whole}", "--eps=1,x"], "--eps: expected numbe"),
        ("evaluate", ["--model={whole}", "--pgd_eps=x"], "--pgd_eps: expected"),
        (
            "evaluate",
            ["--model={whole}", "--preprocessing=nope.keras"],
            "nope.keras: expected a Keras model file",
        ),
        (
            "compare",
            ["--model=a={whole}", "--model=b=nope.keras", "--ours=a"],
            "nope.keras: expected a Keras model file",
        ),
        (
            "digits",
            ["--reference=nope.keras"],
            "nope.keras: expected a Keras model file",
        ),
    ],
)
def test_models_and_flags_are_checked_before_the_data(
    model_path, tmp_path, monkeypatch, app, arguments, message
):
    """Of ImageNet these take minutes."""

    def refuse(*args, **kwargs):
        raise AssertionError("the data are loaded first")

    monkeypatch.setattr(datasets, "load", refuse)
    cut = tmp_path / "cut.keras"
    cut.write_bytes(model_path.read_bytes()[:-100])
    with pytest.raises(SystemExit) as ended:
        run(
            app,
            *(text.format(whole=model_path, cut=cut) for text in arguments),
            f"--output_dir={tmp_path / 'out'}",
        )
    assert message in str(ended.value)


# --- Pictures ---------------------------------------------------------------


def test_pictures_are_of_the_images_asked_for(
    model_path, weaker_path, digits_data, tmp_path
):
    run(
        "picture",
        f"--model=first={model_path}",
        f"--model=weaker={weaker_path}",
        "--dataset=digits",
        "--images=3,0",
        f"--output_dir={tmp_path}",
    )
    found = parsed(tmp_path / "pictured.json")
    assert matplotlib.image.imread(tmp_path / "adversarial_images.png").std()
    wanted = list(digits_data.test.take(4).as_numpy_iterator())
    images = np.stack([wanted[place][0] for place in (3, 0)])
    with np.load(tmp_path / "pictured.npz") as arrays:
        pictured = dict(arrays)
    np.testing.assert_array_equal(pictured["images"], images)
    assert found["labels"] == [int(wanted[place][1]) for place in (3, 0)]
    for name, path in (("first", model_path), ("weaker", weaker_path)):
        model = keras.saving.load_model(path)
        x = np.asarray(digits_data.preprocessing(images))
        result = dd_keras.attacks.DeepFool().run(model, x)
        np.testing.assert_allclose(
            pictured[name], result.perturbation, rtol=1e-3, atol=1e-3
        )
        told = found["models"][name]
        assert told["clean"] == np.argmax(model(x), axis=-1).tolist()
        assert told["adversarial"] != told["clean"]
        length, norm = (
            np.linalg.norm(np.reshape(rows, (2, -1)), axis=1)
            for rows in (result.perturbation, x)
        )
        np.testing.assert_allclose(told["rho"], length / norm, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("--images=-1", "--images must be numbers from 0, each once"),
        ("--images=2,2", "--images must be numbers from 0, each once"),
        ("--images=", "--images must be numbers from 0, each once"),
        ("--images=100000", "--images: expected numbers below "),
    ],
)
def test_images_that_are_not_there_are_refused(
    model_path, tmp_path, images, message
):
    with pytest.raises((flags.Error, SystemExit)) as caught:
        run(
            "picture",
            f"--model=a={model_path}",
            "--dataset=digits",
            images,
            f"--output_dir={tmp_path}",
        )
    assert message in str(caught.value)
