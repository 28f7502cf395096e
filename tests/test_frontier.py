"""Accuracy against robustness: the program, its series and its comparison."""

import json
import shutil

import keras
import numpy as np
import pytest
from absl import flags
from conftest import imported, run
from test_apps import contents, parsed, refused

from paper import experiments, frontier, frontiers
from paper.frontier import MEASURES
from paper.steps import Plan
from shared import series

import dd_keras
from dd_keras import attacks, evaluation, plots
from dd_keras.evaluation import metrics
from dd_keras.evaluation.statistics import ratio_of_means

FLAGS = (
    "--dataset=digits",
    "--limit=40",
    "--batch_size=10",
    "--epochs=2",
    "--learning_rate=1e-4",
    "--attack_images=20",
    "--l2_eps=100",
    "--linf_eps=10",
    "--max_iter=2",
)
SERIES = (
    "--series=Deep Defense=deep_defense gradient=implicit c=5,10",
    "--series=PGD, l_2=pgd ball=l2 attack_steps=2 eps=200",
    "--series=clean=clean",
)
NAMES = [
    "Deep_Defense_c=5",
    "Deep_Defense_c=10",
    "PGD_l_2",
    "clean",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A classifier of the digits, hardly trained."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(10),
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


def measure(directory, reference, *arguments):
    run(
        "frontier",
        *FLAGS,
        f"--reference={reference}",
        f"--output_dir={directory}",
        *arguments,
    )


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_attacks_quick(patch)
        measure(directory, reference, *SERIES)
    return directory


@pytest.mark.thorough
def test_all_points_are_trained_and_measured(whole, reference):
    found = parsed(whole / "frontier.json")
    assert list(found["series"]) == ["Deep Defense", "PGD, l_2", "clean"]
    points = [p for points in found["series"].values() for p in points]
    assert [p["run"] for p in points] == NAMES
    first, _, last, clean = points
    assert first["settings"]["gradient"] == "implicit"
    assert (first["settings"]["c"], first["settings"]["max_iter"]) == (5, 2)
    assert (last["settings"]["ball"], last["settings"]["eps"]) == ("l2", 200)
    assert (clean["label"], clean["defense"]) == ("", "clean")
    weights = [
        keras.saving.load_model(path).get_weights()[0]
        for path in (
            reference,
            *(whole / "models" / f"{name}.keras" for name in NAMES),
        )
    ]
    for i, one in enumerate(weights):  # each was trained, and in its own way
        assert not any(np.array_equal(one, other) for other in weights[:i])
    data = dd_keras.datasets.load("digits")
    test = data._replace(test=data.test.take(20)).test.batch(20)
    x, y = next(iter(test))
    for point, name in zip(
        [found["reference"], *points], ["reference", *NAMES], strict=True
    ):
        assert point["images"] == [40, 20]
        path = (
            reference
            if name == "reference"
            else (whole / "models" / f"{name}.keras")
        )
        report = dd_keras.evaluate_robustness(
            keras.saving.load_model(path),
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
        assert set(MEASURES) < set(point["numbers"])
        kept = np.load(whole / "runs" / f"{name}.npz")
        assert kept["l2_best"].shape == (20,)
    text = (whole / "table.md").read_text("utf-8")
    assert text.count("\n") == len(points) + 3
    assert "PGD, l_2" in text


@pytest.mark.thorough
def test_stopped_and_started_again_ends_the_same(whole, reference, tmp_path):
    few = (*SERIES[1:], "--noevaluate_reference")
    measure(tmp_path, reference, *few, "--max_runs=1")
    assert len(list((tmp_path / "models").iterdir())) == 1
    measure(tmp_path, reference, *few)
    for name in NAMES[2:]:
        one, other = (
            parsed(folder / "runs" / f"{name}.json")
            for folder in (whole, tmp_path)
        )
        assert one["numbers"] == other["numbers"]
    before = contents(tmp_path / "runs")
    measure(tmp_path, reference, *few)
    assert contents(tmp_path / "runs") == before
    assert parsed(tmp_path / "frontier.json")["reference"] is None
    message = refused(
        tmp_path, *FLAGS, f"--reference={reference}", *few, "--l2_eps=7",
        name="frontier",
    )  # fmt: skip
    assert "expected a run with l2_eps 7.0; it is one with 100.0" in message


@pytest.mark.thorough
def test_a_training_that_diverges_is_a_result(reference, tmp_path):
    measure(
        tmp_path,
        reference,
        "--series=clean=clean",
        "--series=far=adv_train_2 eps=1e30",
        "--learning_rate=1e30",
    )
    found = parsed(tmp_path / "frontier.json")["series"]
    assert [p["numbers"] for points in found.values() for p in points] == [
        None,
        None,
    ]
    assert "diverged" in (tmp_path / "table.md").read_text("utf-8")
    assert not (tmp_path / "frontier.png").exists()


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
    assert message in refused(tmp_path, *FLAGS, *words, name="frontier")


def result(accuracy, distance):
    return {
        "numbers": {
            "accuracy": [accuracy, 0, 1],
            "l2_best": [distance, 0, 1],
        }
    }


def test_advantage_is_at_equal_accuracy():
    rng = np.random.default_rng(0)
    distances = {
        name: mean * rng.uniform(0.5, 1.5, size=400)
        for name, mean in (("a", 5.0), ("b", 6.0), ("x", 4.0), ("y", 9.0))
    }
    means = {name: np.mean(values) for name, values in distances.items()}
    ours = {"a": result(0.99, means["a"]), "b": result(0.98, means["b"])}
    others = {"x": result(0.9803, means["x"]), "y": result(0.995, means["y"])}
    first, second = frontier.advantage(ours, others, distances)
    assert (first["other"], first["ours"]) == ("x", "b")  # within tolerance
    assert first["ratio"] == list(
        ratio_of_means(distances["b"], distances["x"])[:3]
    )
    assert (second["ours"], second["ratio"]) == (None, None)
    others = {"x": result(0.981, means["x"])}
    (first,) = frontier.advantage(ours, others, distances)
    assert first["ours"] == "a"


@pytest.mark.thorough
def test_figure_shows_what_kept_its_accuracy(whole, monkeypatch, tmp_path):
    found = parsed(whole / "frontier.json")
    seen = []
    monkeypatch.setattr(plots, "frontier", lambda *given: seen.append(given))
    frontier.draw(frontier.curves(found["series"]), found["reference"], "f.png")
    ((points, measures, _, star, least),) = seen
    assert set(measures) == set(MEASURES)
    accuracy = found["reference"]["numbers"]["accuracy"][0]
    assert star["accuracy"] == accuracy
    assert least == pytest.approx(max(0, accuracy - 0.03), abs=1e-3)
    assert points["Deep Defense"]["labels"] == ["5", "10"]
    assert points["clean"]["labels"] == [""]
    json.dumps(points)


@pytest.mark.thorough
def test_experiment_has_all_series_and_who_is_ahead(whole, tmp_path):
    """Of the files that the program wrote, in the folders of the steps."""
    plan = Plan(str(tmp_path), smoke=True)
    assert list(plan.frontier) == ["implicit", "pgd_l2"]
    written = parsed(whole / "frontier.json")
    for name, titles in (
        ("implicit", ["Deep Defense"]),
        ("pgd_l2", ["PGD, l_2", "clean"]),
    ):
        folder = tmp_path / f"mlp_frontier_{name}"
        shutil.copytree(whole / "runs", folder / "runs")
        kept = {title: written["series"][title] for title in titles}
        (folder / "frontier.json").write_text(
            json.dumps({**written, "series": kept}), encoding="utf-8"
        )
    numbers = frontiers.frontier(plan)["mlp"]
    assert list(numbers["series"]) == ["Deep Defense", "PGD, l_2", "clean"]
    assert (tmp_path / "frontier_mlp.png").exists()
    names = [one["other"] for one in numbers["advantage"]]
    assert names == ["PGD, l_2", "clean"]
    text = frontiers.frontier_text({"mlp": numbers})
    assert "PGD, l_2" in text
    for one in numbers["advantage"]:
        if one["ratio"]:
            assert f"{one['ratio'][0]:.3f} (" in text
    json.dumps(numbers)


def test_commands_of_the_experiment_are_the_programs():
    """Each series can be parsed, and the reference is attacked once."""
    plan = Plan("runs", smoke=False)
    names = experiments.steps_of("frontier_mnist", plan)
    assert len(names) == len(set(names)) == 2 * len(plan.frontier)
    with imported("frontier"):
        flags.FLAGS(["frontier.py", "--series=a=clean"])
        for text in plan.frontier.values():
            points = series.parse([text])
            assert 1 <= len(next(iter(points.values()))) <= 5
    for network in plan.networks:
        own = [
            plan.steps[f"{network}_frontier_{name}"].arguments
            for name in plan.frontier
        ]
        assert sum("--noevaluate_reference" not in a for a in own) == 1
    assert not experiments.EXPERIMENTS["frontier_mnist"].of_paper
