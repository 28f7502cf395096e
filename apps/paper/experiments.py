"""Every table and figure by its name: how it is made, and of which steps."""

from collections.abc import Callable
from typing import NamedTuple

from paper import figures, frontiers, steps, tables
from paper.steps import Plan


class Experiment(NamedTuple):
    """A table or a figure.

    Attributes:
        make: a `Plan` to its numbers, as JSON holds them; draws its figures.
        steps: names of the steps it needs; "*" stands for each network, "%"
            for each seed, and "@" for each series of the frontier.
        text: its numbers to Markdown; None for figures.
        of_paper: whether the paper has it, so that "all" means it, too.
    """

    make: Callable
    steps: tuple[str, ...]
    text: Callable | None = None
    of_paper: bool = True


_TRAINED = ("*_seed0", "*_others")

EXPERIMENTS = {
    "table1_mnist": Experiment(
        tables.table1,
        ("*_seed%", "*_longer%", "*_comparison"),
        tables.table1_text,
    ),
    "table2_mnist": Experiment(
        tables.table2, ("*_comparison",), tables.table2_text
    ),
    "figure2": Experiment(figures.figure2, _TRAINED),
    "figure3": Experiment(figures.figure3, ("figure3",)),
    "figure4": Experiment(figures.figure4, ("figure4",)),
    "figure5": Experiment(figures.figure5, ("*_comparison",)),
    "figure6": Experiment(figures.figure6, _TRAINED),
    "figure7": Experiment(figures.figure7, ("*_seed0",)),
    "limits_mnist": Experiment(
        tables.limits,
        tuple(f"*_limits_{name}" for name in steps.LIMITS),
        tables.limits_text,
    ),
    "tuning_mnist": Experiment(
        tables.tuning,
        tuple(f"*_tuning_{trial}" for trial in steps.TRIALS),
        tables.tuning_text,
    ),
    "frontier_mnist": Experiment(
        frontiers.frontier,
        ("*_frontier_@",),
        frontiers.frontier_text,
        of_paper=False,
    ),
}


def steps_of(name: str, plan: Plan) -> list[str]:
    """Names of the steps that an experiment needs."""
    return list(
        dict.fromkeys(
            pattern.replace("*", network)
            .replace("%", str(seed))
            .replace("@", series)
            for pattern in EXPERIMENTS[name].steps
            for network in plan.networks
            for seed in plan.seeds
            for series in plan.frontier
        )
    )
