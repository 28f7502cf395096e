"""The two sides of autoattack.py: dd_keras, and the original code.

Both take images (B, H, W, C) of pixels in [0, 1] and labels, and give images.
The original is AutoAttack by its authors, and DDN by adv-lib, in PyTorch.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import io
import math
import os
import sys
import time
import types
import warnings
from typing import NamedTuple

import numpy as np

from dd_keras import attacks

OURS, ORIGINAL = "ours", "original"
BALLS = {"linf": (math.inf, 0.1), "l2": (2.0, 1.5)}
SHORTEST = "shortest"  # stands for a ball where there is none
WHOLE = "autoattack"
COMPONENTS = ("apgd-ce", "apgd-t", "fab-t", "square")
# These look for the shortest l_2, whatever its length.
DDN, FAB = "ddn", "fab-l2"
ATTACKS = (WHOLE, *COMPONENTS, DDN, FAB)

BOUNDS = (0.0, 1.0)
STEPS, QUERIES, DDN_STEPS = 100, 5000, 300
TARGETS = 9

_INSTALL = (
    "The original attacks need PyTorch (pip install -e '.[benchmark]'), "
    "adv-lib (pip install --no-deps adv-lib tqdm), and the package autoattack, "
    "which its authors' repository fra31/auto-attack holds: install it from "
    "there, or put a copy on PYTHONPATH. Or leave them out: --sides=ours. "
)
# What adv-lib imports for its plots and for attacks that are not asked for.
# visdom cannot be built with a setuptools of today, nor adv-lib be installed
# with all that it asks for.
_NOT_NEEDED = ("torchvision", "visdom")


class Task(NamedTuple):
    """What both sides do with the same images.

    Attributes:
        model: name of the network.
        attack: one of `ATTACKS`.
        place: a name in `BALLS`, or `SHORTEST`.
    """

    model: str
    attack: str
    place: str

    @property
    def norm(self):
        """The order p."""
        return BALLS[self.place][0] if self.place in BALLS else 2.0

    @property
    def eps(self):
        """The radius; None without a ball."""
        return BALLS[self.place][1] if self.place in BALLS else None

    @property
    def title(self):
        """What stands in tables."""
        ball = {"linf": "l_inf 0.1", "l2": "l_2 1.5"}.get(self.place)
        return ", ".join(filter(None, (self.model, self.attack, ball)))


def steps_of(task, share):
    """A share of an attack's steps, to try batch sizes with.

    Returns:
        (a function from all steps to that share of them, the steps of APGD on
        the cross-entropy). In the whole AutoAttack the latter takes all of
        its steps: how many images it leaves to the others decides which batch
        size is best.
    """

    def some(steps):
        return max(1, round(share * steps))

    return some, STEPS if task.attack == WHOLE else some(STEPS)


class Ours:
    """The attacks of dd_keras on a Keras network."""

    def __init__(self, network):
        self._network = network

    def decide(self, images):
        """The predicted classes."""
        return self._network.predict_on_batch(images).argmax(-1)

    def prepare(self, task, images, share=1.0):
        """Traces an attack; returns the seconds this took.

        On one image with a label that it does not have: nothing is left to do
        once the graph is there.
        """
        started = time.perf_counter()
        wrong = (self.decide(images[:1]) + 1) % 10
        self.run(task, images[:1], wrong, 1, share)
        return time.perf_counter() - started

    def run(self, task, images, labels, batch_size, share=1.0):
        """Attacks images: (what they become, notes for the report)."""
        attack = _ours(task, share)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = attack.run(
                self._network, images, labels, batch_size=batch_size
            )
        notes = {
            "iterations": float(np.mean(found.iterations)),
            "warnings": sorted({str(warning.message) for warning in caught}),
        }
        if task.attack == WHOLE:
            numbers = np.asarray(found.found_by)
            notes["found_by"] = {
                name: int(np.sum(numbers == number))
                for number, name in enumerate(COMPONENTS)
            }
        return images + np.asarray(found.perturbation), notes


def _ours(task, share):
    """An attack of dd_keras."""
    some, first = steps_of(task, share)
    if task.attack == DDN:
        return attacks.DDN(some(DDN_STEPS), bounds=BOUNDS)
    if task.attack == FAB:
        return attacks.FAB(2, steps=some(STEPS), bounds=BOUNDS)
    ball = {"eps": task.eps, "norm": task.norm, "bounds": BOUNDS}
    names = COMPONENTS if task.attack == WHOLE else (task.attack,)
    if share == 1:
        return attacks.AutoAttack(**ball, version=names)
    short = {
        "apgd-ce": attacks.APGD(**ball, steps=first),
        "apgd-t": attacks.APGD(**ball, steps=some(STEPS), loss="targeted_dlr"),
        "fab-t": attacks.FAB(**ball, steps=some(STEPS)),
        "square": attacks.Square(**ball, queries=some(QUERIES)),
    }
    return attacks.AutoAttack(**ball, version=[short[name] for name in names])


class Original:
    """The original attacks on the same network in PyTorch.

    Raises:
        ImportError: if one of the packages is not there.
    """

    def __init__(self, network):
        try:
            import torch

            ddn = _ddn()
        except ImportError as error:
            raise ImportError(f"{_INSTALL}({error})") from error
        import in_pytorch

        self._package = original_package()
        self._torch, self._ddn = torch, ddn
        self._convert = in_pytorch
        # Without the weights' gradients: attacks need none, and FAB, which
        # calls `backward`, would pay for them.
        self.module = in_pytorch.converted(network).requires_grad_(False)

    def decide(self, images):
        """The predicted classes."""
        with self._torch.no_grad():
            logits = self.module(self._convert.channels_first(images))
        return logits.numpy().argmax(-1)

    def prepare(self, task, images, share=1.0):
        """There is nothing to trace."""
        del task, images, share

    def run(self, task, images, labels, batch_size, share=1.0):
        """Attacks images: (what they become, notes for the report)."""
        x = self._convert.channels_first(images)
        y = self._torch.from_numpy(labels).long()
        some, first = steps_of(task, share)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if task.attack in (DDN, FAB):
                run = self._run_ddn if task.attack == DDN else self._run_fab
                found = [
                    run(x[i : i + batch_size], y[i : i + batch_size], some)
                    for i in range(0, len(x), batch_size)
                ]
                found = self._torch.cat(found)
            else:
                attack = self._autoattack(task, some, first)
                found = attack.run_standard_evaluation(x, y, bs=batch_size)
        told = {line for line in printed.getvalue().splitlines() if line}
        return self._convert.channels_last(found), {
            "warnings": sorted(told)[:5]
        }

    def _autoattack(self, task, some, first):
        """The authors' attack, whole or one of its components."""
        attack = self._package.AutoAttack(
            self.module,
            norm={math.inf: "Linf", 2.0: "L2"}[task.norm],
            eps=task.eps,
            seed=0,
            verbose=False,
            device="cpu",
        )
        # "standard" sets restarts and targets; what it runs can be changed.
        if task.attack != WHOLE:
            attack.attacks_to_run = [task.attack]
        attack.apgd.n_iter = first
        attack.apgd_targeted.n_iter = attack.fab.n_iter = some(STEPS)
        attack.square.n_queries = some(QUERIES)
        return attack

    def _run_ddn(self, x, y, some):
        """DDN without its rounding to 8 bits, as ours has none."""
        return self._ddn(self.module, x, y, steps=some(DDN_STEPS), levels=None)

    def _run_fab(self, x, y, some):
        """The shortest that targeted FAB finds, over all of its targets.

        Its `perturb` leaves out images that one target has fooled, as
        AutoAttack can; the shortest may be towards a later one.
        """
        torch = self._torch
        attack = self._package.fab_pt.FABAttack_PT(
            self.module, norm="L2", n_iter=some(STEPS), device="cpu"
        )
        best, shortest = x, torch.full((len(x),), math.inf)
        with torch.no_grad():
            for target in range(TARGETS):
                # The first is the most probable class.
                attack.target_class = target + 2
                found = attack.attack_single_run(x, y, is_targeted=True)
                length = (found - x).flatten(1).norm(dim=1)
                fooled = self.module(found).argmax(1) != y
                shorter = fooled & (length < shortest)
                best = torch.where(shorter[:, None, None, None], found, best)
                shortest = torch.where(shorter, length, shortest)
        return best


def _ddn():
    """DDN of adv-lib, whether or not there is what it does not need."""
    absent = [
        name for name in _NOT_NEEDED if importlib.util.find_spec(name) is None
    ]
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].models = None
    try:
        return importlib.import_module("adv_lib.attacks").ddn
    finally:
        for name in absent:
            del sys.modules[name]


def find_original():
    """Where the authors' package `autoattack` is: its spec, or None.

    This folder is left out, as a file in it has the same name.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    paths = [path for path in sys.path if os.path.abspath(path) != folder]
    return importlib.machinery.PathFinder.find_spec("autoattack", paths)


@functools.cache
def original_package():
    """The authors' package.

    Raises:
        ImportError: if it is not there.
    """
    spec = find_original()
    if spec is None:
        raise ImportError(f"{_INSTALL}(No module named 'autoattack')")
    package = importlib.util.module_from_spec(spec)
    sys.modules["autoattack"] = package  # its modules look for it there
    spec.loader.exec_module(package)
    for name in ("autopgd_base", "fab_pt", "square"):
        importlib.import_module(f"autoattack.{name}")
    return package


def keep_to_threads(count):
    """Has TensorFlow and, if it is there, PyTorch use so many threads."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(count)
        torch.set_num_interop_threads(count)
