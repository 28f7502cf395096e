"""What the defences can be told, by name: a flag each of the programs in apps/.

A new setting is a field of `Settings`, with what its flag needs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dd_keras.attacks import DDN, FGSM, PGD, Attack, DeepFool, SuperDeepFool
from dd_keras.defenses.aggregation import AGGREGATIONS
from dd_keras.defenses.batch_norm import MODES as BATCH_NORM_MODES
from dd_keras.defenses.deep_defense import GRADIENTS
from dd_keras.defenses.split_penalty import SHRINKAGES
from dd_keras.defenses.steepness import AUTO
from dd_keras.utils import validation

ATTACKS = ("deepfool", "superdeepfool", "ddn")
BALLS = {"linf": math.inf, "l2": 2.0}


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of `Settings`, with what a program's flag of it needs.

    Args:
        default: its value.
        help: what it is, in a line of `--help`.
        **limits: `minimum` and `maximum`, the ends of its range; `positive`,
            a number above 0; `finite=False`, a number that may be infinite;
            `choices`, all values there are; `word`, what there is beside
            numbers; `flag=False`, of what is no flag.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of all `METHODS`; each method reads those it needs.

    The programs in apps/ make a flag of each field, from its metadata.

    Attributes:
        norm, evaluation_candidates: `norm` and `candidates` of the DeepFool
            behind `val_rho2`; `norm` is also that of the training attack.
        batch_norm: see `DefenseModel`.
        lam, c, d, shrinkage, aggregation, gradient, regularized_layers: see
            `DeepDefenseModel`.
        attack, max_iter, candidates: the training attack of Deep Defense and
            MMA, its maximum number of iterations, and the number of classes
            it considers, see `attacks.DeepFool`, `attacks.SuperDeepFool` and
            `attacks.DDN`.
        bounded, bounds: whether training perturbations keep to the valid
            inputs, and the range of these, (low, high).
        eps, ball, attack_steps: eps, in units of the inputs, of the training
            FGSM or PGD; norm and number of steps of that PGD.
        alpha: see `AdversarialTrainingModel`.
        trades_beta: `beta` of `TRADESModel`.
        d_max, clean_share: `d_max`, in units of the inputs, and `alpha` of
            `MMAModel`.
        gradient_lam: `lam` of `InputGradientModel`.
        include_clean: see `deepfool_dataset`.
        beta, fraction: see `ParsevalConstraint`.
        batch_size, seed: those of the training set of "Adv. Train I"; the
            seed is also PGD's and that of Parseval's choice of rows.

    Example:
        >>> settings = dd_keras.defenses.Settings(eps=0.1, attack_steps=5)
        >>> settings.pgd.steps  # of "pgd" and "trades"
        5
        >>> settings.of_deep_defense["lam"]
        15.0
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
    shrinkage: str = _setting(
        "exponential", "Form of Deep Defense's penalty.", choices=SHRINKAGES
    )
    aggregation: str = _setting(
        "mean",
        "Of Deep Defense's penalty: over all samples, or of each class the "
        "weakest of the batch.",
        choices=AGGREGATIONS,
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
    attack: str = _setting(
        "deepfool",
        "Deep Defense's in training; all but deepfool need "
        "--gradient=implicit.",
        choices=ATTACKS,
    )
    max_iter: int = _setting(5, "Its most iterations in training.", minimum=1)
    candidates: int | None = _setting(
        None,
        "Most probable classes that DeepFool considers in training; all by "
        "default.",
        minimum=1,
    )
    bounded: bool = _setting(
        False, "Keep perturbations in training to valid inputs."
    )
    bounds: tuple | None = _setting(None, "Valid inputs.", flag=False)
    eps: float = _setting(
        25.5,
        "Of FGSM in Adv. Train II, PGD and TRADES, in units of the inputs.",
        positive=True,
    )
    ball: str = _setting(
        "linf", "Norm of --eps of PGD and TRADES.", choices=BALLS
    )
    attack_steps: int = _setting(
        10, "Steps of PGD and TRADES in training.", minimum=1
    )
    trades_beta: float = _setting(
        6.0, "TRADES: weight of its second term.", minimum=0
    )
    d_max: float = _setting(
        510.0,
        "MMA: distance from which on samples are left alone, in units of the "
        "inputs.",
        positive=True,
    )
    clean_share: float = _setting(
        1 / 3, "MMA: share of the clean loss.", minimum=0, maximum=1
    )
    gradient_lam: float = _setting(
        1e4, "Input-gradient regularisation: its weight.", minimum=0
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
        """The DeepFool behind `val_rho2`, and behind rho in the tables."""
        return DeepFool(self.norm, candidates=self.evaluation_candidates)

    @property
    def of_defense(self) -> dict:
        """The arguments of every `DefenseModel`."""
        return {
            "evaluation_attack": self.evaluation_attack,
            "batch_norm": self.batch_norm,
        }

    @property
    def training_bounds(self) -> tuple | None:
        """The range that training perturbations keep to; None for none.

        Raises:
            ValueError: if `bounded` is True and `bounds` is None.
        """
        if self.bounded and self.bounds is None:
            raise ValueError(
                "bounds: expected (low, high) with bounded=True; received None."
            )
        return self.bounds if self.bounded else None

    @property
    def distance_attack(self) -> Attack:
        """The training attack that searches for the nearest boundary.

        Raises:
            ValueError: if `attack` is not known, or not of the norm `norm`.
        """
        bounds = self.training_bounds
        validation.validate_choice("attack", self.attack, ATTACKS)
        if self.attack == "deepfool":
            return DeepFool(
                self.norm,
                self.max_iter,
                candidates=self.candidates,
                bounds=bounds,
            )
        if self.norm != DDN.norm:
            raise ValueError(
                f"attack: expected 'deepfool' with norm={self.norm:g}; "
                f"received {self.attack!r}, which is of l_2."
            )
        if self.attack == "ddn":
            return DDN(self.max_iter, bounds=bounds)
        return SuperDeepFool(
            self.max_iter, candidates=self.candidates, bounds=bounds
        )

    @property
    def pgd(self) -> PGD:
        """The PGD to train on, without early stop, as in Madry et al."""
        validation.validate_choice("ball", self.ball, BALLS)
        steps = validation.validate_integer(
            "attack_steps", self.attack_steps, at_least=1
        )
        return PGD(
            self.eps,
            BALLS[self.ball],
            steps,
            bounds=self.training_bounds,
            seed=self.seed,
            early_stop=False,
        )

    @property
    def of_deep_defense(self) -> dict:
        """The further arguments of `DeepDefenseModel`."""
        return {
            "lam": self.lam,
            "c": self.c,
            "d": self.d,
            "shrinkage": self.shrinkage,
            "aggregation": self.aggregation,
            "attack": self.distance_attack,
            "gradient": self.gradient,
            "regularized_layers": self.regularized_layers,
        }

    @property
    def of_adversarial_training(self) -> dict:
        """The further arguments of `AdversarialTrainingModel`."""
        return {
            "adversary": FGSM(self.eps, self.training_bounds),
            "alpha": self.alpha,
        }
