"""What the experiments sweep: each a --series of apps/sweep.py, by its name.

eps, d_max and distances are in pixels of 0 to 255. Of the classes, Deep
Defense in training considers the three most probable: all would take half as
long again.
"""

# Figure 3: a curve for each lam. LAM, the paper's, is Figure 6's, too.
LAMS = (5, 15, 25)
LAM = 15

# Figure 4: the regulariser's gradient reaches one layer, of LeNet's.
LAYERS = ("conv1", "conv2", "fc1", "fc2")

# Figure 6, beside Deep Defense with LAM.
BESIDE_LAM = {
    "adv_train_2": "Adv. Train II=adv_train_2 "
    "eps=6.375,12.75,19.125,25.5,31.875,38.25,44.625,51",
    "combined": "Deep Defense + Adv. Train II=combined candidates=3 c=25 "
    "eps=6.375,12.75,19.125,25.5,38.25,51",
}


def of_lam(lam: int) -> str:
    """Deep Defense over c, as in Figure 3."""
    return (
        f"lam {lam}=deep_defense candidates=3 lam={lam} "
        "c=5,10,15,20,25,30,35,40,45"
    )


def of_layer(name: str) -> str:
    """Deep Defense on one layer over c, as in Figure 4."""
    return (
        f"{name}=deep_defense candidates=3 regularized_layers={name} "
        "c=5,15,25,35,45"
    )


# The frontier: all defences, each with five values of its own setting. Deep
# Defense's c goes down to an eighth of the paper's.
_IMPLICIT = "deep_defense gradient=implicit"
_BOUNDED = f"{_IMPLICIT} bounded=true"
_C = "c=3,5,10,15,25"
OURS = {
    "unrolled": f"Deep Defense=deep_defense candidates=3 {_C}",
    "implicit": f"Deep Defense, implicit={_IMPLICIT} candidates=3 {_C}",
    "bounded": f"Deep Defense, bounded={_BOUNDED} candidates=3 {_C}",
    "ddn": f"Deep Defense by DDN={_BOUNDED} attack=ddn max_iter=10 {_C}",
    "superdeepfool": f"Deep Defense by SuperDeepFool={_BOUNDED} candidates=3 "
    f"attack=superdeepfool max_iter=2 {_C}",
    "lam": f"Deep Defense, lam={_IMPLICIT} candidates=3 c=10 "
    "lam=5,10,30,60,120",
    "min": f"Deep Defense, min={_IMPLICIT} candidates=3 aggregation=min c=5 "
    "lam=15,50,150,500,1500",
    "inverse": f"Deep Defense, inverse={_IMPLICIT} candidates=3 "
    f"shrinkage=inverse {_C}",
    "combined": "Deep Defense + Adv. Train II=combined gradient=implicit "
    "bounded=true candidates=3 c=10 eps=6.375,12.75,25.5,38.25,51",
}
OTHERS = {
    "clean": "clean=clean",
    "adv_train_1": "Adv. Train I=adv_train_1 include_clean=true,false",
    "adv_train_2": "Adv. Train II=adv_train_2 bounded=true "
    "eps=6.375,12.75,25.5,38.25,51",
    "parseval": "Parseval=parseval beta=1e-4,3e-4,1e-3,3e-3,1e-2",
    "pgd_linf": "PGD, l_inf=pgd bounded=true eps=6.375,12.75,25.5,38.25,51",
    "pgd_l2": "PGD, l_2=pgd ball=l2 bounded=true eps=127.5,255,382.5,510,765",
    "trades": "TRADES, l_2=trades ball=l2 bounded=true eps=510 "
    "trades_beta=0.3,1,3,6,10",
    "mma": "MMA=mma bounded=true candidates=3 d_max=255,510,765,1020,1530",
    "input_gradient": "input gradient=input_gradient "
    "gradient_lam=1e3,1e4,1e5,1e6,1e7",
}

# The frontier of a ConvNet on CIFAR-10, smaller. Its boundaries are nearer, so
# that eps and d_max are less; c stands for the same products with rho.
CIFAR10_OURS = {
    "implicit": f"Deep Defense, implicit={_IMPLICIT} candidates=3 "
    "c=10,25,50,100,200",
    "bounded": f"Deep Defense, bounded={_BOUNDED} candidates=3 "
    "c=10,25,50,100,200",
    "combined": "Deep Defense + Adv. Train II=combined gradient=implicit "
    "bounded=true candidates=3 c=25 eps=0.25,0.5,1,2,4",
}
CIFAR10_OTHERS = {
    "clean": "clean=clean",
    "adv_train_2": "Adv. Train II=adv_train_2 bounded=true eps=0.5,1,2,4,8",
    "pgd_l2": "PGD, l_2=pgd ball=l2 bounded=true eps=16,32,64,96,128",
    "trades": "TRADES, l_2=trades ball=l2 bounded=true eps=64 "
    "trades_beta=0.3,1,3,6,10",
    "mma": "MMA=mma bounded=true candidates=3 d_max=32,64,128,192,256",
}

# By name, those of a frontier that are forms of Deep Defense.
OF_DEEP_DEFENSE = {*OURS, *CIFAR10_OURS}

# All that --smoke has of a frontier.
_SMOKE = ("implicit", "pgd_l2")


def frontier(
    ours: dict[str, str], others: dict[str, str], smoke: bool
) -> dict[str, str]:
    """The series of a frontier, by name."""
    series = {**ours, **others}
    return {key: series[key] for key in _SMOKE} if smoke else series
