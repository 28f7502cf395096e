"""Attacks: from a classifier and a batch to a perturbation.

One attack a file, all with the common interface of base.py. What they are
made of is in forward.py, decisions.py, lp_ball.py, rows.py and
stateless_random.py; kernels.py and derivatives.py make gradients of gradients
fast and correct.
"""

from dd_keras.attacks.base import Attack, AttackResult
from dd_keras.attacks.carlini_wagner import CarliniWagnerL2
from dd_keras.attacks.deepfool import DeepFool
from dd_keras.attacks.fgsm import FGSM, MinimalFGSM
from dd_keras.attacks.forward import Forward, inference_form
from dd_keras.attacks.noise import RandomNoise
from dd_keras.attacks.pgd import BIM, PGD

__all__ = [
    "BIM",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "CarliniWagnerL2",
    "DeepFool",
    "Forward",
    "MinimalFGSM",
    "RandomNoise",
    "inference_form",
]
