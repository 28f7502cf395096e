"""The commands that experiments are made of: programs in apps/, with flags.

A `Step` is one such command, with a folder of its own in --output_dir. `Plan`
has them all; what must run before what follows from `Step.after`. Which there
are: mnist.py and cifar10.py.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# In place of a training, to show that all works.
_SMALL = (
    *("--arch=mlp", "--limit=200", "--batch_size=50"),
    *("--reference_epochs=20", "--reference_learning_rate=1e-3"),
    *("--epochs=1", "--learning_rate=1e-5", "--max_iter=1"),
)


class Step(NamedTuple):
    """One command.

    Attributes:
        name: its folder in --output_dir.
        app: the script in apps/, without its ending.
        arguments: its flags, but for --data_dir and --output_dir.
        after: names of the steps whose files it reads.
        result: the JSON in its folder that tells that it is done.
    """

    name: str
    app: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    result: str = "results.json"


class Plan:
    """Steps, at full size or small.

    Args:
        output_dir: where all results go.
        data_dir: where TFDS keeps its data; None: at its usual place.
        smoke: whether to take seconds, on few of scikit-learn's digits.

    Attributes:
        smoke: as above.
        steps: dict of names to `Step`s.
    """

    def __init__(
        self,
        output_dir: str,
        data_dir: str | None = None,
        smoke: bool = False,
    ):
        self._output_dir = output_dir
        self._data_dir = data_dir
        self.smoke = smoke
        self.steps: dict[str, Step] = {}

    def add(self, *arguments) -> None:
        """Adds a `Step` of these attributes."""
        step = Step(*arguments)
        self.steps[step.name] = step

    def add_sweep(
        self,
        name: str,
        network: str,
        dataset: str,
        reference: str,
        series: str,
        *flags: str,
    ) -> None:
        """Adds a step that sweeps one series.

        Args:
            name: of the step.
            network: of the reference.
            dataset: its data set.
            reference: the path of its file, in the folder of the step that
                trains it.
            series: a --series of apps/sweep.py.
            *flags: further ones.
        """
        small = (
            *("--batch_size=50", "--epochs=1", "--learning_rate=1e-5"),
            "--max_runs=1",
        )
        self.add(
            name,
            "sweep",
            (
                f"--arch={'mlp' if self.smoke else network}",
                *self.data(dataset),
                f"--reference={reference}",
                f"--series={series}",
                *flags,
                *(small if self.smoke else ()),
            ),
            (os.path.basename(os.path.dirname(reference)),),
            "sweep.json",
        )

    def add_frontier(
        self,
        network: str,
        dataset: str,
        reference: str,
        series: Mapping[str, str],
        *flags: str,
    ) -> None:
        """Adds NETWORK_frontier_NAME of all series; as `add_sweep`."""
        flags = ("--attack_images=20",) if self.smoke else flags
        for name, text in series.items():
            # The reference is measured once.
            once = name == next(iter(series))
            self.add_sweep(
                f"{network}_frontier_{name}",
                network,
                dataset,
                reference,
                text,
                *flags,
                *(() if once else ("--noevaluate_reference",)),
            )

    def add_comparison(
        self,
        network: str,
        dataset: str,
        models: Mapping[str, str],
        after: Iterable[str],
    ) -> None:
        """Adds NETWORK_comparison, Tables 1 and 2 of its models.

        Args:
            network: whose.
            dataset: its data set.
            models: names to .keras files.
            after: names of the steps that train them.
        """
        self.add(
            f"{network}_comparison",
            "compare",
            (
                *(f"--model={name}={path}" for name, path in models.items()),
                "--ours=deep_defense",
                *self.data(dataset),
                *(("--few=2", "--best=0") if self.smoke else ("--few=250",)),
            ),
            tuple(after),
            "comparison.json",
        )

    def trainer(self, app: str, *flags: str) -> tuple[str, tuple[str, ...]]:
        """The app that trains, and its flags, or what is in their place."""
        return ("digits", _SMALL) if self.smoke else (app, flags)

    def command(self, step: Step) -> list[str]:
        """The words of a step's command, after `python`."""
        script = beside(f"{step.app}.py")
        words = [script, *step.arguments]
        if self._data_dir and not self.smoke:
            words.append(f"--data_dir={self._data_dir}")
        return [*words, f"--output_dir={self.path(step.name)}"]

    def path(self, *names: str) -> str:
        """A path in --output_dir."""
        return os.path.join(self._output_dir, *names)

    def result(self, name: str) -> str:
        """The path of a step's JSON."""
        return self.path(name, self.steps[name].result)

    def needed(self, names: Iterable[str]) -> list[Step]:
        """Steps, behind all that they come after."""
        found = {}
        for name in names:
            step = self.steps[name]
            found |= {s.name: s for s in self.needed(step.after)}
            found[name] = step
        return list(found.values())

    def flagfile(self, name: str) -> str:
        """The flag that names one of apps/flags/."""
        return f"--flagfile={beside('flags', f'{name}.cfg')}"

    def data(self, dataset: str) -> tuple[str, ...]:
        """The flags that say which data, of apps that take any."""
        if not self.smoke:
            return (f"--dataset={dataset}",)
        return ("--dataset=digits", "--limit=200")


def beside(*names: str) -> str:
    """A path beside the script that runs, as its command has it."""
    return os.path.join(os.path.dirname(sys.argv[0]), *names)
