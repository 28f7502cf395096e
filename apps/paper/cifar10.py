"""The commands of the paper's experiments on CIFAR-10.

A defence a command, as each takes hours: the reference is trained by that of
plain fine-tuning, and all others start from it.
"""

from paper import sweeps
from paper.steps import Plan

DATASET = "cifar10"
NETWORKS = {"convnet": "ConvNet", "nin": "NIN"}

# Beside apps/flags/: what the paper does not say of its references, and what
# is not as in the paper, since NIN takes days on a CPU.
FLAGS = {
    "convnet": (
        *("--augment", "--reference_epochs=60", "--reference_last_epochs=15"),
        "--reference_weight_decay=1.2e-2",
    ),
    "nin": (
        *("--reference_epochs=40", "--reference_last_epochs=12"),
        *("--reference_learning_rate=5e-3", "--reference_weight_decay=2e-3"),
        *("--epochs=10", "--halved_epochs=2", "--validation_freq=5"),
        *("--precision=mixed_bfloat16", "--checkpoint_steps=100"),
    ),
}

# The defences of each network, in the order of Table 1, and their own flags.
# Of the classes, Deep Defense in training considers the three most probable.
_SELDOM = ("--validation_freq=5",)
DEFENSES = {
    "convnet": {
        "clean": (),
        "parseval": _SELDOM,
        "adv_train_1": _SELDOM,
        "deep_defense": ("--candidates=3", *_SELDOM),
        "adv_train_2": _SELDOM,
        "combined": ("--candidates=3", *_SELDOM),
    },
    "nin": {
        "clean": (),
        "deep_defense": ("--candidates=3", "--gradient=implicit"),
    },
}

# Of the frontier's trainings, and its attacks: eps of 255.
_OF_FRONTIER = (
    *("--augment", "--epochs=5", "--halved_epochs=2", "--last_rate=0.1"),
    *("--attack_images=500", "--autoattack_images=200"),
    *("--l2_eps=63.75", "--linf_eps=2"),
)


def networks(plan: Plan) -> tuple[str, ...]:
    """The networks of a plan."""
    return ("convnet",) if plan.smoke else tuple(NETWORKS)


def frontier(plan: Plan) -> dict[str, str]:
    """The series of ConvNet's frontier, by their steps' last names."""
    return sweeps.frontier(
        sweeps.CIFAR10_OURS, sweeps.CIFAR10_OTHERS, plan.smoke
    )


def models(plan: Plan, network: str) -> dict[str, str]:
    """Names of the models, to their .keras files."""
    return {
        "reference": plan.path(f"{network}_clean", "reference.keras"),
        **{
            name: plan.path(f"{network}_{name}", f"{name}.keras")
            for name in DEFENSES[network]
        },
    }


def add_steps(plan: Plan) -> None:
    """Adds all steps to a plan."""
    for network in networks(plan):
        _add_trainings(plan, network)
        plan.add_comparison(
            network,
            DATASET,
            models(plan, network),
            [f"{network}_{name}" for name in DEFENSES[network]],
        )
    smaller = networks(plan)[0]
    reference = models(plan, smaller)["reference"]
    plan.add_frontier(
        smaller, DATASET, reference, frontier(plan), *_OF_FRONTIER
    )


def _add_trainings(plan, network):
    app, flags = plan.trainer(
        "cifar10", plan.flagfile(f"cifar10_{network}"), *FLAGS[network]
    )
    for name, own in DEFENSES[network].items():
        of_defense = (f"--defense={name}", *(() if plan.smoke else own))
        first = f"{network}_clean"
        if name == "clean":  # which trains the reference
            plan.add(first, app, (*flags, *of_defense))
            continue
        reference = f"--reference={models(plan, network)['reference']}"
        plan.add(
            f"{network}_{name}", app, (*flags, reference, *of_defense), (first,)
        )
