"""The tables in README are those of the committed results."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = {"LeNet": "mnist_lenet", "MLP": "mnist_mlp"}


@pytest.mark.parametrize("network", RUNS)
def test_readme_table_equals_results(network):
    path = ROOT / "results" / RUNS[network] / "results.json"
    results = json.loads(path.read_text())
    first = results["models"]["reference"]["rho2"]
    for name, title in (
        ("reference", "reference"),
        ("clean", "fine-tuned, no regulariser"),
        ("deep_defense", "**Deep Defense**"),
    ):
        values = results["models"][name]
        row = (
            f"| {network}, {title} | {100 * values['accuracy']:.2f} % "
            f"| {values['rho2']:.4f} | {values['rho2'] / first:.2f} "
            f"| {values['l2']:.1f} |"
        )
        assert row in README
    assert results["command"] in README
    assert results["models"]["reference"]["samples"] == 10_000


def test_readme_step_costs_equal_benchmark():
    path = ROOT / "results" / "benchmarks" / "training_step.json"
    results = json.loads(path.read_text())
    for name, values in results["variants"].items():
        row = (
            f"| {name} | {values['median_ms']:.1f} ms "
            f"| {values['median_ratio_to_clean']:.1f} |"
        )
        assert row in README
    assert results["command"] in README
