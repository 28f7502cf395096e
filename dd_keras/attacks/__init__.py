"""Attacks: from a classifier and a batch of inputs to perturbations.

Each attack has a file of its own, and all have the interface of `Attack`
(base.py). Their building blocks are in forward.py, decisions.py, lp_ball.py,
rows.py and stateless_random.py; kernels.py and derivatives.py make second
derivatives fast and correct.
"""

from dd_keras.attacks.apgd import APGD
from dd_keras.attacks.autoattack import AutoAttack, AutoAttackResult
from dd_keras.attacks.base import Attack, AttackResult
from dd_keras.attacks.carlini_wagner import CarliniWagnerL2
from dd_keras.attacks.ddn import DDN
from dd_keras.attacks.deepfool import DeepFool
from dd_keras.attacks.fab import FAB
from dd_keras.attacks.fgsm import FGSM, MinimalFGSM
from dd_keras.attacks.forward import Forward, inference_form
from dd_keras.attacks.noise import RandomNoise
from dd_keras.attacks.pgd import BIM, PGD
from dd_keras.attacks.square import Square
from dd_keras.attacks.super_deepfool import SuperDeepFool

__all__ = [
    "APGD",
    "BIM",
    "DDN",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "AutoAttackResult",
    "CarliniWagnerL2",
    "DeepFool",
    "Forward",
    "MinimalFGSM",
    "RandomNoise",
    "Square",
    "SuperDeepFool",
    "inference_form",
]
