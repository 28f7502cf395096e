"""Every table and figure by its name: how it is made, and of which steps."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from paper import cifar10, figures, frontier, mnist, sweeps, tables
from paper.steps import Plan


class Experiment(NamedTuple):
    """A table or a figure.

    Attributes:
        make: a `Plan` to its numbers, as JSON holds them; draws its figures.
        steps: a `Plan` to the names of the steps it needs.
        text: its numbers to Markdown; None for figures.
        group: what else it is run with: the data set, of what the paper has.
    """

    make: Callable[[Plan], dict]
    steps: Callable[[Plan], list[str]]
    text: Callable[[dict], str] | None = None
    group: str | None = None


def _of_networks(module, *names):
    """The steps of these names, of each network of a module that has them."""
    return lambda plan: [
        step
        for network in module.networks(plan)
        for name in names
        if (step := f"{network}_{name}") in plan.steps
    ]


def _of_last(names):
    """The steps of names that depend on the plan, of the last network."""
    return lambda plan: [
        f"{mnist.networks(plan)[-1]}_sweep_{name}" for name in names(plan)
    ]


def _of_all_seeds(plan):
    kinds = [
        f"{kind}{seed}"
        for seed in mnist.seeds(plan)
        for kind in ("seed", "longer")
    ]
    return _of_networks(mnist, *kinds, "comparison")(plan)


EXPERIMENTS = {
    "table1_mnist": Experiment(
        tables.table1, _of_all_seeds, tables.table1_text, "mnist"
    ),
    "table2_mnist": Experiment(
        tables.table2,
        _of_networks(mnist, "comparison"),
        tables.table2_text,
        "mnist",
    ),
    "figure2": Experiment(
        figures.figure2, _of_networks(mnist, "seed0", "others"), group="mnist"
    ),
    "figure3": Experiment(
        figures.figure3,
        _of_last(lambda plan: [f"lam{lam}" for lam in mnist.lams(plan)]),
        group="mnist",
    ),
    "figure4": Experiment(
        figures.figure4,
        _of_last(lambda plan: [f"layer_{n}" for n in mnist.layers(plan)]),
        group="mnist",
    ),
    "figure5": Experiment(
        figures.figure5, _of_networks(mnist, "comparison"), group="mnist"
    ),
    "figure6": Experiment(
        figures.figure6,
        _of_networks(
            mnist,
            f"sweep_lam{sweeps.LAM}",
            *(f"sweep_{name}" for name in sweeps.BESIDE_LAM),
        ),
        group="mnist",
    ),
    "figure7": Experiment(
        figures.figure7,
        _of_networks(mnist, "picture", "seed0"),
        group="mnist",
    ),
    "limits_mnist": Experiment(
        tables.limits,
        _of_networks(mnist, *(f"limits_{name}" for name in mnist.LIMITS)),
        tables.limits_text,
        "mnist",
    ),
    "tuning_mnist": Experiment(
        tables.tuning,
        _of_networks(mnist, *(f"tuning_{trial}" for trial in mnist.TRIALS)),
        tables.tuning_text,
        "mnist",
    ),
    "table1_cifar10": Experiment(
        functools.partial(tables.table1, of=cifar10),
        _of_networks(cifar10, "comparison"),
        tables.table1_text,
        "cifar10",
    ),
    "table2_cifar10": Experiment(
        functools.partial(tables.table2, of=cifar10),
        _of_networks(cifar10, "comparison"),
        tables.table2_text,
        "cifar10",
    ),
    "figure5_cifar10": Experiment(
        functools.partial(figures.figure5, of=cifar10),
        _of_networks(cifar10, "comparison"),
        group="cifar10",
    ),
    "figure8": Experiment(
        figures.figure8,
        _of_networks(
            cifar10, "clean", "parseval", "adv_train_1", "deep_defense"
        ),
        group="cifar10",
    ),
    "frontier_mnist": Experiment(
        frontier.frontier,
        lambda plan: _of_networks(
            mnist, *(f"frontier_{name}" for name in mnist.frontier(plan))
        )(plan),
        frontier.frontier_text,
    ),
    "frontier_cifar10": Experiment(
        functools.partial(frontier.frontier, of=cifar10),
        lambda plan: _of_networks(
            cifar10, *(f"frontier_{name}" for name in cifar10.frontier(plan))
        )(plan),
        frontier.frontier_text,
    ),
}
GROUPS = tuple(dict.fromkeys(e.group for e in EXPERIMENTS.values() if e.group))


def plan(
    output_dir: str, data_dir: str | None = None, smoke: bool = False
) -> Plan:
    """The `Plan` of all experiments; arguments as those of `Plan`."""
    made = Plan(output_dir, data_dir, smoke)
    for module in (mnist, cifar10):
        module.add_steps(made)
    return made


def named(names: list[str]) -> list[str]:
    """The experiments that are meant, each once: groups, and all, opened."""
    found = []
    for name in names:
        if name == "all" or name in GROUPS:
            groups = GROUPS if name == "all" else (name,)
            found += [n for n, e in EXPERIMENTS.items() if e.group in groups]
        else:
            found.append(name)
    return list(dict.fromkeys(found))
