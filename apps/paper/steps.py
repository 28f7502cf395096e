"""The paper's experiments on MNIST, as commands of the programs in apps/.

A `Step` is one such command, with a folder of its own in --output_dir. `Plan`
has them all; what must run before what follows from `Step.after`.
"""

import os
import sys
from collections.abc import Iterable
from typing import NamedTuple

from paper import frontier

NETWORKS = {"mlp": "MLP", "lenet": "LeNet"}
SEEDS = (0, 1, 2)

# Defences that Deep Defense is compared with, from the reference of seed 0.
OTHERS = ("clean", "parseval", "adv_train_1", "adv_train_2", "combined")

# Trials of their settings, on validation images.
TRIALS = {
    "1": (
        ("adv_train_2", "parseval", "adv_train_1"),
        {"eps": "12.75", "beta": "1e-4"},
    ),
    "2": (
        ("adv_train_2", "parseval", "adv_train_1"),
        {"eps": "25.5", "beta": "1e-3", "include_clean": True},
    ),
    "3": (("adv_train_2", "parseval"), {"eps": "38.25", "beta": "1e-2"}),
    "4": (("adv_train_2",), {"eps": "6.375"}),
}
# The most accuracy that a trial may lose against plain fine-tuning.
TOLERANCE = 0.002

# What "tuning_mnist" found best: the largest rho_2 within the tolerance.
TUNED = {
    "mlp": {"eps": "12.75", "beta": "1e-4", "include_clean": False},
    "lenet": {"eps": "25.5", "beta": "1e-4", "include_clean": True},
}

# All that --smoke has of the frontier.
_SMOKE_SERIES = ("implicit", "pgd_l2")

# "longer": two more epochs of Deep Defense, at a rate that is not the paper's.
LONGER = (
    *("--epochs=2", "--halved_epochs=1"),
    *("--learning_rate=1e-4", "--last_rate=0.2"),
)

# Models whose limits are shown, and the eps of PGD, of 255.
LIMITS = ("reference", "longer", "adv_train_2", "combined")
PGD_EPS = (12.75, 25.5, 38.25, 51.0)


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
    """All steps, at full size or small.

    Args:
        output_dir: where all results go.
        data_dir: where TFDS keeps MNIST; None: at its usual place.
        smoke: whether to take seconds, on few of scikit-learn's digits.

    Attributes:
        networks: names of the networks.
        smoke: as above.
        frontier: the series of the frontier, by their steps' last names.
        seeds: of reference and Deep Defense; all else has the first.
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
        self.networks = ("mlp",) if smoke else tuple(NETWORKS)
        self.seeds = SEEDS[:1] if smoke else SEEDS
        self.frontier = {**frontier.OURS, **frontier.OTHERS}
        if smoke:
            self.frontier = {key: self.frontier[key] for key in _SMOKE_SERIES}
        self.steps = {}
        for network in self.networks:
            self._add_trainings(network)
            self._add_trials(network)
            self._add_evaluations(network)
            self._add_frontier(network)
        self._add_sweeps()

    def command(self, step: Step) -> list[str]:
        """The words of a step's command, after `python`."""
        script = _beside(f"{step.app}.py")
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

    def models(self, network: str) -> dict[str, str]:
        """Names of the models of seed 0, to their .keras files."""

        def files(step, names):
            return {name: self.path(step, f"{name}.keras") for name in names}

        first, longer = f"{network}_seed0", f"{network}_longer0"
        others = files(f"{network}_others", OTHERS)
        table1 = OTHERS[:3]  # the paper's has these before its own
        return {
            **files(first, ["reference"]),
            **{name: others.pop(name) for name in table1},
            **files(first, ["deep_defense"]),
            "longer": self.path(longer, "deep_defense.keras"),
            **others,
        }

    def _add(self, *arguments):
        step = Step(*arguments)
        self.steps[step.name] = step

    def _trainer(self, network):
        """The app that trains, and its flags."""
        if not self.smoke:
            flagfile = _beside("flags", f"mnist_{network}.cfg")
            return "mnist", (f"--flagfile={flagfile}",)
        return "digits", (
            *(f"--arch={network}", "--limit=200", "--batch_size=50"),
            *("--reference_epochs=20", "--reference_learning_rate=1e-3"),
            *("--epochs=1", "--learning_rate=1e-5", "--max_iter=1"),
        )

    def _data(self):
        """The flags that say which data, of apps that take any."""
        if not self.smoke:
            return ("--dataset=mnist",)
        return ("--dataset=digits", "--limit=200")

    def _add_trainings(self, network):
        app, flags = self._trainer(network)
        for seed in self.seeds:
            name = f"{network}_seed{seed}"
            defense = ("--defense=deep_defense", f"--seed={seed}")
            defended = self.path(name, "deep_defense.keras")
            self._add(name, app, (*flags, *defense))
            self._add(
                f"{network}_longer{seed}",
                app,
                (*flags, f"--reference={defended}", *defense, *LONGER),
                (name,),
            )
        self._add(
            f"{network}_others",
            app,
            (
                *flags,
                f"--reference={self.models(network)['reference']}",
                f"--defense={','.join(OTHERS)}",
                *_as_flags(TUNED[network]),
            ),
            (f"{network}_seed0",),
        )

    def _add_trials(self, network):
        app, flags = self._trainer(network)
        few = () if self.smoke else ("--epochs=2",)
        flags = (*flags, "--validation_split=0.1", *few)
        first = f"{network}_tuning_reference"
        self._add(first, app, (*flags, "--defense=clean"))
        reference = self.path(first, "reference.keras")
        for trial, (defenses, settings) in TRIALS.items():
            self._add(
                f"{network}_tuning_{trial}",
                app,
                (
                    *flags,
                    f"--reference={reference}",
                    f"--defense={','.join(defenses)}",
                    *_as_flags(settings),
                ),
                (first,),
            )

    def _add_evaluations(self, network):
        trained = (f"{network}_longer0", f"{network}_others")
        models = self.models(network)
        self._add(
            f"{network}_comparison",
            "compare",
            (
                *(f"--model={name}={path}" for name, path in models.items()),
                "--ours=deep_defense",
                *self._data(),
                *(("--few=2", "--best=0") if self.smoke else ("--few=250",)),
            ),
            trained,
            "comparison.json",
        )
        for name in LIMITS:
            limit = () if self.smoke else ("--limit=500",)
            strength = (1, 1) if self.smoke else (50, 5)
            self._add(
                f"{network}_limits_{name}",
                "evaluate",
                (
                    f"--model={models[name]}",
                    *self._data(),
                    *limit,
                    "--metrics=accuracy",
                    f"--pgd_eps={','.join(map(str, PGD_EPS))}",
                    f"--pgd_steps={strength[0]}",
                    f"--pgd_restarts={strength[1]}",
                ),
                trained,
                "evaluation.json",
            )

    def _add_sweeps(self):
        network = self.networks[-1]
        flags = (
            f"--arch={network}",
            *self._data(),
            f"--reference={self.models(network)['reference']}",
        )
        if self.smoke:
            flags += ("--batch_size=50", "--epochs=1", "--learning_rate=1e-5")
            three = ("--lams=5,15", "--cs=5")
            four = ("--layers=fc3,all",)
        else:
            # All ten classes would take half as long again.
            flags += ("--candidates=3", "--evaluation_candidates=3")
            three = ("--epochs=1", "--halved_epochs=0", "--cs=5,25,45")
            four = ("--epochs=2",)
        for number, more in (("3", three), ("4", four)):
            self._add(
                f"figure{number}",
                "sweep",
                (*flags, f"--figure={number}", *more),
                (f"{network}_seed0",),
                "sweep.json",
            )

    def _add_frontier(self, network):
        """All series of the frontier, from the reference of seed 0."""
        flags = (
            f"--arch={network}",
            *self._data(),
            f"--reference={self.models(network)['reference']}",
        )
        if self.smoke:
            flags += (
                *("--batch_size=50", "--epochs=1", "--learning_rate=1e-5"),
                *("--attack_images=20", "--max_runs=1"),
            )
        first = next(iter(self.frontier))
        for name, text in self.frontier.items():
            self._add(
                f"{network}_frontier_{name}",
                "frontier",
                (
                    *flags,
                    f"--series={text}",
                    # Once is enough.
                    *(() if name == first else ("--noevaluate_reference",)),
                ),
                (f"{network}_seed0",),
                "frontier.json",
            )


def _beside(*names):
    """A path beside the script that runs, as its command has it."""
    return os.path.join(os.path.dirname(sys.argv[0]), *names)


def _as_flags(settings):
    switches = {True: "--{}", False: "--no{}"}
    return [
        switches[value].format(name)
        if isinstance(value, bool)
        else f"--{name}={value}"
        for name, value in settings.items()
    ]
