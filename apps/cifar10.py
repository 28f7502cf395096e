"""Deep Defense on CIFAR-10, with the paper's settings.

    python apps/cifar10.py --flagfile=apps/flags/cifar10_convnet.cfg
    python apps/cifar10.py --flagfile=apps/flags/cifar10_nin.cfg
    python apps/cifar10.py --arch=MobileNetV2 --weights=imagenet

Trains the reference, fine-tunes it for 50 epochs with and without the
regulariser, or with the defences named by --defense, evaluates on all 10,000
test images, and writes models, numbers and pictures to --output_dir. On two
busy CPU cores an epoch of ConvNet took 13 to 45 seconds in the training of
the reference, and 3 minutes with Deep Defense. README has the numbers of a
shorter run.

Deviations from the paper: it took its references from MatConvNet's recipes,
which whiten the images; ours train on pixels 0 to 255 less their mean, as the
fine-tuning does.
"""

from absl import app

from shared import cli, pipeline

pipeline.define_flags(
    ["convnet", "nin"],
    epochs=50,
    halved_epochs=10,
    eps=2.0,
    beta=3e-4,
    reference_epochs=40,
    reference_learning_rate=1e-3,
    reference_weight_decay=4e-3,
    reference_last_epochs=8,
    reference_last_rate=0.1,
    output_dir="runs/cifar10",
)


@cli.main
def main():
    """Trains, defends and evaluates on CIFAR-10."""
    pipeline.run(__name__, "cifar10")


if __name__ == "__main__":
    app.run(main)
