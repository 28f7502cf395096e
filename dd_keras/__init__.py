"""Deep Defense for Keras: classifiers that small perturbations do not flip."""

from dd_keras import (
    attacks,
    datasets,
    defenses,
    distribution,
    evaluation,
    networks,
    serving,
    training,
)
from dd_keras.classifier.logits import logits_model
from dd_keras.defenses import (
    AdversarialTrainingModel,
    CombinedModel,
    DeepDefenseModel,
    DefenseModel,
    InputGradientModel,
    MMAModel,
    ParsevalConstraint,
    RegularizationWarmup,
    RegularizedDefenseModel,
    SplitExponential,
    TRADESModel,
    add_parseval_constraints,
    deepfool_dataset,
)
from dd_keras.evaluation import (
    RobustnessBoard,
    RobustnessReport,
    evaluate_robustness,
)
from dd_keras.serving import export
from dd_keras.training import KeepBest, resumable_fit
from dd_keras.training.optimizers import CoupledSGD
from dd_keras.version import __version__ as __version__

__all__ = [
    "AdversarialTrainingModel",
    "CombinedModel",
    "CoupledSGD",
    "DeepDefenseModel",
    "DefenseModel",
    "InputGradientModel",
    "KeepBest",
    "MMAModel",
    "ParsevalConstraint",
    "RegularizationWarmup",
    "RegularizedDefenseModel",
    "RobustnessBoard",
    "RobustnessReport",
    "SplitExponential",
    "TRADESModel",
    "add_parseval_constraints",
    "attacks",
    "datasets",
    "deepfool_dataset",
    "defenses",
    "distribution",
    "evaluate_robustness",
    "evaluation",
    "export",
    "logits_model",
    "networks",
    "resumable_fit",
    "serving",
    "training",
]
