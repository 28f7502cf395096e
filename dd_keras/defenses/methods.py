"""All defences by name: how each turns a classifier into a model to train.

A method takes a classifier, its training batches and `Settings`, and returns
the model to `fit` and the batches to fit it on; this trains the classifier. To
add one, write it in a file of its own, and give it a line in `METHODS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras

from dd_keras import datasets
from dd_keras.defenses.adversarial_training import (
    AdversarialTrainingModel,
    CombinedModel,
    deepfool_dataset,
)
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.deep_defense import DeepDefenseModel
from dd_keras.defenses.input_gradient import InputGradientModel
from dd_keras.defenses.mma import MMAModel
from dd_keras.defenses.parseval import add_parseval_constraints
from dd_keras.defenses.settings import Settings
from dd_keras.defenses.trades import TRADESModel
from dd_keras.utils import validation

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


def pgd(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """On the images of PGD alone (Madry et al., ICLR 2018)."""
    model = AdversarialTrainingModel(
        classifier, adversary=settings.pgd, alpha=0.0, **settings.of_defense
    )
    return model, train


def trades(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """TRADES (Zhang et al., ICML 2019)."""
    model = TRADESModel(
        classifier,
        adversary=settings.pgd,
        beta=validation.validate_number(
            "trades_beta", settings.trades_beta, at_least=0
        ),
        **settings.of_defense,
    )
    return model, train


def mma(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Max-margin adversarial training (Ding et al., ICLR 2020)."""
    model = MMAModel(
        classifier,
        d_max=settings.d_max,
        adversary=settings.distance_attack,
        alpha=validation.validate_number(
            "clean_share", settings.clean_share, at_least=0, at_most=1
        ),
        **settings.of_defense,
    )
    return model, train


def input_gradient(
    classifier: keras.Model,
    train: datasets.ResumableBatches,
    settings: Settings,
) -> Prepared:
    """Input-gradient regularisation (Ross and Doshi-Velez, AAAI 2018)."""
    lam = validation.validate_number(
        "gradient_lam", settings.gradient_lam, at_least=0
    )
    model = InputGradientModel(classifier, lam=lam, **settings.of_defense)
    return model, train


class Method(NamedTuple):
    """A defence that can be chosen by name; `METHODS` has all of them.

    Attributes:
        title: its name in tables and figures, the paper's where it has one.
        prepare: function from (classifier, train, settings), a built Keras
            classifier, the `datasets.ResumableBatches` to train on, and
            `Settings`, to (model, train): the `DefenseModel` to compile and
            fit, and the `ResumableBatches` to fit it on. It raises ValueError
            for bad settings.
        settings: names of the `Settings` that the defence depends on.

    Example:
        >>> method = dd_keras.defenses.METHODS["input_gradient"]
        >>> settings = dd_keras.defenses.Settings(gradient_lam=0.1)
        >>> train = dd_keras.datasets.ResumableBatches.of_arrays(
        ...     x_train, y_train
        ... )
        >>> model, train = method.prepare(classifier, train, settings)
        >>> type(model).__name__
        'InputGradientModel'
        >>> method.describe({"gradient_lam": 0.1})
        {'name': 'input-gradient regularisation', 'gradient_lam': 0.1}
    """

    title: str
    prepare: Callable[..., Prepared]
    settings: tuple[str, ...] = ()

    def describe(self, values: dict) -> dict:
        """The title and the settings of the defence.

        Args:
            values: dict of names of `Settings` to their values; settings that
                are missing are omitted.

        Returns:
            dict, for a model card.
        """
        known = {key: values[key] for key in self.settings if key in values}
        return {"name": self.title, **known}


_DISTANCE = ("attack", "norm", "max_iter", "candidates", "bounded")
_DEEP_DEFENSE = (
    *("lam", "c", "d", "shrinkage", "aggregation"),
    *_DISTANCE,
    *("gradient", "regularized_layers"),
)
_ADV_TRAIN_2 = ("eps", "alpha", "bounded")
_PGD = ("eps", "ball", "attack_steps", "bounded")

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
        tuple(dict.fromkeys((*_DEEP_DEFENSE, *_ADV_TRAIN_2))),
    ),
    "parseval": Method("Parseval", parseval, ("beta", "fraction")),
    "pgd": Method("PGD adversarial training", pgd, _PGD),
    "trades": Method("TRADES", trades, (*_PGD, "trades_beta")),
    "mma": Method("MMA", mma, (*_DISTANCE, "d_max", "clean_share")),
    "input_gradient": Method(
        "input-gradient regularisation", input_gradient, ("gradient_lam",)
    ),
}
