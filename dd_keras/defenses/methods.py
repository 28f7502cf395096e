"""All defences by name: how each turns a classifier into a model to train.

A method takes a classifier, its training batches and `Settings`, and returns
the model to `fit` and the batches to fit it on; that trains the classifier. To
add one, write it in a file of its own, and give it a line in `METHODS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from dd_keras import datasets
from dd_keras.attacks import FGSM, DeepFool
from dd_keras.defenses.adversarial_training import (
    AdversarialTrainingModel,
    CombinedModel,
    deepfool_dataset,
)
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.batch_norm import MODES as BATCH_NORM_MODES
from dd_keras.defenses.deep_defense import GRADIENTS, DeepDefenseModel
from dd_keras.defenses.parseval import add_parseval_constraints
from dd_keras.defenses.steepness import AUTO


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of `Settings`, with what a program's flag of it needs.

    Args:
        default: its value.
        help: what it is, in a line of `--help`.
        **limits: `minimum` and `maximum`, the ends of its range; `positive`,
            a number above 0; `finite=False`, a number that may be infinite;
            `choices`, all values there are; `word`, what there is beside
            numbers.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the methods can be told; each takes what concerns it.

    Programs make a flag of each field, by what its metadata says.

    Attributes:
        norm, evaluation_candidates: of the DeepFool behind `val_rho2`.
        batch_norm: see `DefenseModel`.
        lam, c, d, gradient, regularized_layers: see `DeepDefenseModel`.
        max_iter, candidates: of the DeepFool in training, see
            `attacks.DeepFool`.
        eps: of the FGSM in training, in units of the inputs.
        alpha: see `AdversarialTrainingModel`.
        include_clean: see `deepfool_dataset`.
        beta, fraction: see `ParsevalConstraint`.
        batch_size, seed: of training sets made anew.
    """

    norm: float = _setting(
        2.0, "Order p of the norm, 1 to inf.", minimum=1, finite=False
    )
    evaluation_candidates: int | None = _setting(
        None,
        "The same, of the DeepFool behind rho in validation and evaluation.",
        minimum=1,
    )
    batch_norm: str = _setting(
        "trained",
        "What fine-tuning does to batch normalisation: trains it; trains its "
        "scale, and holds the statistics; or holds all.",
        choices=BATCH_NORM_MODES,
    )
    lam: float = _setting(15.0, "Weight of the regulariser.", minimum=0)
    c: float | str = _setting(
        25.0,
        "Steepness of the penalty on correct samples; auto: 1 / median rho of "
        "the reference.",
        positive=True,
        word=AUTO,
    )
    d: float = _setting(
        5.0, "Steepness of the penalty on misclassified samples.", positive=True
    )
    regularized_layers: Sequence[str] | None = _setting(
        None, "Layers that the regulariser's gradient reaches; all by default."
    )
    gradient: str = _setting(
        "unrolled",
        "Of Deep Defense: through DeepFool's iterations, as in the paper, or "
        "of the distance to the boundary point that it finds.",
        choices=GRADIENTS,
    )
    max_iter: int = _setting(5, "DeepFool iterations in training.", minimum=1)
    candidates: int | None = _setting(
        None,
        "Most probable classes that DeepFool considers in training; all by "
        "default.",
        minimum=1,
    )
    eps: float = _setting(
        25.5,
        "Of FGSM in Adv. Train II, in units of the inputs.",
        positive=True,
    )
    alpha: float = _setting(
        0.5, "Share of the clean loss in Adv. Train II.", minimum=0, maximum=1
    )
    include_clean: bool = _setting(
        False, "Adv. Train I: on the clean images as well."
    )
    beta: float = _setting(
        1e-4, "Parseval: the step.", positive=True, maximum=1
    )
    fraction: float = _setting(
        0.3, "Parseval: share of rows.", positive=True, maximum=1
    )
    batch_size: int = _setting(100, "Batch size.", minimum=1)
    seed: int = _setting(
        0, "Of weights, order and all else.", minimum=0, maximum=2**32 - 1
    )

    @property
    def evaluation_attack(self) -> DeepFool:
        """The DeepFool behind `val_rho2` and the numbers of the tables."""
        return DeepFool(self.norm, candidates=self.evaluation_candidates)

    @property
    def of_defense(self) -> dict:
        """The arguments of every `DefenseModel`."""
        return {
            "evaluation_attack": self.evaluation_attack,
            "batch_norm": self.batch_norm,
        }

    @property
    def of_deep_defense(self) -> dict:
        """The further arguments of `DeepDefenseModel`."""
        return {
            "lam": self.lam,
            "c": self.c,
            "d": self.d,
            "attack": DeepFool(
                self.norm, self.max_iter, candidates=self.candidates
            ),
            "gradient": self.gradient,
            "regularized_layers": self.regularized_layers,
        }

    @property
    def of_adversarial_training(self) -> dict:
        """The further arguments of `AdversarialTrainingModel`."""
        return {"adversary": FGSM(self.eps), "alpha": self.alpha}


Prepared = tuple[DefenseModel, datasets.ResumableBatches]


def clean(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Plain fine-tuning, what every gain is to be measured against."""
    return DefenseModel(classifier, **settings.of_defense), train


def deep_defense(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Eq. 6 of the paper."""
    model = DeepDefenseModel(
        classifier, **settings.of_deep_defense, **settings.of_defense
    )
    return model, train


def adv_train_1(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Plain fine-tuning on the DeepFool images of the reference."""
    images = deepfool_dataset(
        classifier,
        train,
        settings.evaluation_attack,
        include_clean=settings.include_clean,
    )
    train = datasets.ResumableBatches(
        images, None, settings.batch_size, settings.seed, cache=False
    )
    return clean(classifier, train, settings)


def adv_train_2(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """The adversarial objective of Goodfellow et al., with FGSM online."""
    model = AdversarialTrainingModel(
        classifier, **settings.of_adversarial_training, **settings.of_defense
    )
    return model, train


def combined(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Deep Defense and `adv_train_2` in one objective."""
    model = CombinedModel(
        classifier,
        **settings.of_adversarial_training,
        **settings.of_deep_defense,
        **settings.of_defense,
    )
    return model, train


def parseval(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Plain fine-tuning under Parseval constraints."""
    add_parseval_constraints(
        classifier, settings.beta, settings.fraction, settings.seed
    )
    return clean(classifier, train, settings)


class Method(NamedTuple):
    """A defence.

    Attributes:
        title: its name in tables and figures, as the paper has it.
        prepare: (classifier, train, settings) to (model, train): a built Keras
            classifier, `datasets.ResumableBatches` to train on, and
            `Settings`, to the `DefenseModel` to compile and fit, and the
            `ResumableBatches` to fit it on. Raises ValueError for bad settings.
        settings: names of the `Settings` that make it what it is.
    """

    title: str
    prepare: Callable[..., Prepared]
    settings: tuple[str, ...] = ()

    def describe(self, values: dict) -> dict:
        """Its title and its settings, as far as they are known.

        Args:
            values: dict of names of `Settings` to their values.

        Returns:
            dict, for a model card.
        """
        known = {key: values[key] for key in self.settings if key in values}
        return {"name": self.title, **known}


_DEEP_DEFENSE = (
    *("lam", "c", "d", "norm", "max_iter", "candidates"),
    "gradient",
    "regularized_layers",
)
_ADV_TRAIN_2 = ("eps", "alpha")

METHODS = {
    "clean": Method("fine-tuned, no regulariser", clean),
    "deep_defense": Method("Deep Defense", deep_defense, _DEEP_DEFENSE),
    "adv_train_1": Method(
        "Adv. Train I",
        adv_train_1,
        ("norm", "evaluation_candidates", "include_clean"),
    ),
    "adv_train_2": Method("Adv. Train II", adv_train_2, _ADV_TRAIN_2),
    "combined": Method(
        "Deep Defense + Adv. Train II",
        combined,
        (*_DEEP_DEFENSE, *_ADV_TRAIN_2),
    ),
    "parseval": Method("Parseval", parseval, ("beta", "fraction")),
}
