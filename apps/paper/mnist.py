"""The commands of the paper's experiments on MNIST."""

from paper import sweeps
from paper.steps import Plan

DATASET = "mnist"
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

# "longer": two more epochs of Deep Defense, at a rate that is not the paper's.
LONGER = (
    *("--epochs=2", "--halved_epochs=1"),
    *("--learning_rate=1e-4", "--last_rate=0.2"),
)

# Models whose limits are shown, and the eps of PGD, of 255.
LIMITS = ("reference", "longer", "adv_train_2", "combined")
PGD_EPS = (12.75, 25.5, 38.25, 51.0)

# All that --smoke has of Figure 3 and of Figure 4.
_SMOKE_LAMS = (5, 15)
_SMOKE_LAYERS = ("fc1",)

# Figure 7's models, in the paper's order, and its test image.
PICTURED = ("reference", "adv_train_1", "parseval", "deep_defense")
_IMAGE = 0

# Of the frontier's trainings, and its attacks.
_OF_FRONTIER = (
    "--epochs=3", "--attack_images=1000", "--autoattack_images=250"
)  # fmt: skip

# Of Figure 6's curves of FGSM.
_FGSM_EPS = ",".join(map(str, range(5, 105, 5)))


def networks(plan: Plan) -> tuple[str, ...]:
    """The networks of a plan; Figures 3 and 4 are of the last."""
    return ("mlp",) if plan.smoke else tuple(NETWORKS)


def seeds(plan: Plan) -> tuple[int, ...]:
    """Of reference and Deep Defense; all else has the first."""
    return SEEDS[:1] if plan.smoke else SEEDS


def lams(plan: Plan) -> tuple[int, ...]:
    """Of Figure 3."""
    return _SMOKE_LAMS if plan.smoke else sweeps.LAMS


def layers(plan: Plan) -> tuple[str, ...]:
    """Of Figure 4."""
    return _SMOKE_LAYERS if plan.smoke else sweeps.LAYERS


def frontier(plan: Plan) -> dict[str, str]:
    """The series of the frontier, by their steps' last names."""
    return sweeps.frontier(sweeps.OURS, sweeps.OTHERS, plan.smoke)


def models(plan: Plan, network: str) -> dict[str, str]:
    """Names of the models of seed 0, to their .keras files."""

    def files(step, names):
        return {name: plan.path(step, f"{name}.keras") for name in names}

    first, longer = f"{network}_seed0", f"{network}_longer0"
    others = files(f"{network}_others", OTHERS)
    table1 = OTHERS[:3]  # the paper's has these before its own
    return {
        **files(first, ["reference"]),
        **{name: others.pop(name) for name in table1},
        **files(first, ["deep_defense"]),
        "longer": plan.path(longer, "deep_defense.keras"),
        **others,
    }


def add_steps(plan: Plan) -> None:
    """Adds all steps to a plan."""
    for network in networks(plan):
        _add_trainings(plan, network)
        _add_trials(plan, network)
        _add_evaluations(plan, network)
        _add_sweeps(plan, network)
        plan.add_frontier(
            network,
            DATASET,
            models(plan, network)["reference"],
            frontier(plan),
            *_OF_FRONTIER,
        )


def _trainer(plan, network):
    """The app that trains, and its flags."""
    return plan.trainer("mnist", plan.flagfile(f"mnist_{network}"))


def _add_trainings(plan, network):
    app, flags = _trainer(plan, network)
    for seed in seeds(plan):
        name = f"{network}_seed{seed}"
        defense = ("--defense=deep_defense", f"--seed={seed}")
        defended = plan.path(name, "deep_defense.keras")
        plan.add(name, app, (*flags, *defense))
        plan.add(
            f"{network}_longer{seed}",
            app,
            (*flags, f"--reference={defended}", *defense, *LONGER),
            (name,),
        )
    plan.add(
        f"{network}_others",
        app,
        (
            *flags,
            f"--reference={models(plan, network)['reference']}",
            f"--defense={','.join(OTHERS)}",
            *_as_flags(TUNED[network]),
        ),
        (f"{network}_seed0",),
    )


def _add_trials(plan, network):
    app, flags = _trainer(plan, network)
    few = () if plan.smoke else ("--epochs=2",)
    flags = (*flags, "--validation_split=0.1", *few)
    first = f"{network}_tuning_reference"
    plan.add(first, app, (*flags, "--defense=clean"))
    reference = plan.path(first, "reference.keras")
    for trial, (defenses, settings) in TRIALS.items():
        plan.add(
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


def _add_evaluations(plan, network):
    trained = (f"{network}_longer0", f"{network}_others")
    paths = models(plan, network)
    plan.add_comparison(network, DATASET, paths, trained)
    plan.add(
        f"{network}_picture",
        "picture",
        (
            *(f"--model={name}={paths[name]}" for name in PICTURED),
            *plan.data(DATASET),
            f"--images={_IMAGE}",
        ),
        (f"{network}_seed0", f"{network}_others"),
        "pictured.json",
    )
    for name in LIMITS:
        limit = () if plan.smoke else ("--limit=500",)
        strength = (1, 1) if plan.smoke else (50, 5)
        plan.add(
            f"{network}_limits_{name}",
            "evaluate",
            (
                f"--model={paths[name]}",
                *plan.data(DATASET),
                *limit,
                "--metrics=accuracy",
                f"--pgd_eps={','.join(map(str, PGD_EPS))}",
                f"--pgd_steps={strength[0]}",
                f"--pgd_restarts={strength[1]}",
            ),
            trained,
            "evaluation.json",
        )


def _add_sweep(plan, network, name, series, *flags):
    """A step that sweeps one series, from the reference of seed 0."""
    reference = models(plan, network)["reference"]
    plan.add_sweep(
        f"{network}_{name}", network, DATASET, reference, series, *flags
    )


def _add_sweeps(plan, network):
    """Figures 3, 4 and 6; the last starts from the middle curve of Figure 3."""
    fgsm = f"--fgsm_eps={_FGSM_EPS}"
    for name, series in sweeps.BESIDE_LAM.items():
        _add_sweep(plan, network, f"sweep_{name}", series, fgsm)
    last = network == networks(plan)[-1]
    for lam in lams(plan) if last else (sweeps.LAM,):
        series, more = sweeps.of_lam(lam), [fgsm] * (lam == sweeps.LAM)
        _add_sweep(plan, network, f"sweep_lam{lam}", series, *more)
    for layer in layers(plan) if last else ():
        _add_sweep(
            plan, network, f"sweep_layer_{layer}", sweeps.of_layer(layer)
        )


def _as_flags(settings):
    switches = {True: "--{}", False: "--no{}"}
    return [
        switches[value].format(name)
        if isinstance(value, bool)
        else f"--{name}={value}"
        for name, value in settings.items()
    ]
