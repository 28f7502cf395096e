"""Deep Defense on MNIST, with the paper's settings.

    python apps/mnist.py --flagfile=apps/flags/mnist_lenet.cfg
    python apps/mnist.py --flagfile=apps/flags/mnist_mlp.cfg
    python apps/mnist.py --flagfile=apps/flags/mnist_lenet.cfg --defense=clean,deep_defense,adv_train_1,adv_train_2,combined,parseval

Trains the reference, fine-tunes it for five epochs with and without the
regulariser, or with the defences named, evaluates on all 10,000 test images, and writes models, numbers
and pictures to --output_dir. On two CPU cores LeNet takes about 20 minutes,
the MLP about 4. Expect LeNet to go from 99.1 percent and rho_2 0.203 to 99.3
percent and 0.286, the MLP from 98.3 percent and 0.110 to 98.6 and 0.226.

Deviations from the paper: its references were trained with MatConvNet; ours
start from N(0, 0.01) weights and use the fine-tuning's optimizer. For all of
its tables and figures on MNIST see reproduce.py.
"""  # noqa: E501

from absl import app

from shared import cli, pipeline

pipeline.define_flags(
    ["lenet", "mlp"],
    output_dir="runs/mnist",
)


@cli.main
def main():
    """Trains, defends and evaluates on MNIST."""
    pipeline.run(__name__, "mnist")


if __name__ == "__main__":
    app.run(main)
