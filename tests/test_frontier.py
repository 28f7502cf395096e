"""The frontier: who is ahead at equal accuracy, and its table and figure."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from conftest import imported
from test_apps import parsed
from test_sweep import attacked, quick_attacks, reference

from paper import cifar10, experiments, frontier, mnist, sweep_files
from paper.sweep_files import MEASURES
from shared import series

from dd_keras import plots
from dd_keras.evaluation.statistics import ratio_of_means

__all__ = ["attacked", "quick_attacks", "reference"]  # fixtures


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
def test_figure_shows_what_kept_its_accuracy(attacked, monkeypatch, tmp_path):
    found = parsed(attacked / "sweep.json")
    seen = []

    def draw(*given):
        seen.append(given)
        (tmp_path / given[2]).touch()

    monkeypatch.setattr(plots, "frontier", draw)
    sweep_files.draw(
        found["series"], found["reference"], str(tmp_path / "f.png")
    )
    ((points, measures, _, star, least),) = seen
    assert set(measures) == set(MEASURES)
    accuracy = found["reference"]["numbers"]["accuracy"][0]
    assert star["accuracy"] == accuracy
    assert least == pytest.approx(max(0, accuracy - 0.03), abs=1e-3)
    assert points["Deep Defense"]["labels"] == ["5", "10"]
    assert points["clean"]["labels"] == [""]
    json.dumps(points)


@pytest.mark.thorough
def test_experiment_has_all_series_and_who_is_ahead(attacked, tmp_path):
    """Of the files that the program wrote, in the folders of the steps."""
    plan = experiments.plan(str(tmp_path), smoke=True)
    assert list(mnist.frontier(plan)) == ["implicit", "pgd_l2"]
    written = parsed(attacked / "sweep.json")
    for name, titles in (
        ("implicit", ["Deep Defense"]),
        ("pgd_l2", ["PGD, l_2", "clean"]),
    ):
        folder = tmp_path / f"mlp_frontier_{name}"
        shutil.copytree(attacked / "runs", folder / "runs")
        kept = {title: written["series"][title] for title in titles}
        (folder / "sweep.json").write_text(
            json.dumps({**written, "series": kept}), encoding="utf-8"
        )
    numbers = frontier.frontier(plan)["mlp"]
    assert list(numbers["series"]) == ["Deep Defense", "PGD, l_2", "clean"]
    assert (tmp_path / "frontier_mlp.png").exists()
    names = [one["other"] for one in numbers["advantage"]]
    assert names == ["PGD, l_2", "clean"]
    text = frontier.frontier_text({"mlp": numbers})
    assert "PGD, l_2" in text
    for one in numbers["advantage"]:
        if one["ratio"]:
            assert f"{one['ratio'][0]:.3f} (" in text
    json.dumps(numbers)


@pytest.mark.parametrize(
    ("module", "networks", "images"),
    [(mnist, ("mlp", "lenet"), 1000), (cifar10, ("convnet",), 500)],
)
def test_commands_of_the_experiment_are_the_programs(module, networks, images):
    """Each series can be parsed, and the reference is attacked once."""
    plan = experiments.plan("runs")
    experiment = experiments.EXPERIMENTS[f"frontier_{module.DATASET}"]
    names = experiment.steps(plan)
    wanted = module.frontier(plan)
    assert len(names) == len(set(names)) == len(networks) * len(wanted)
    with imported("sweep"):
        flags.FLAGS(["sweep.py", "--series=a=clean"])
        for text in wanted.values():
            points = series.parse([text])
            assert 1 <= len(next(iter(points.values()))) <= 5
    for network in networks:
        own = [
            plan.steps[f"{network}_frontier_{name}"].arguments
            for name in wanted
        ]
        assert sum("--noevaluate_reference" not in a for a in own) == 1
        assert all(f"--attack_images={images}" in a for a in own)
    assert experiment.group is None
