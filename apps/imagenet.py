"""Deep Defense on ImageNet (ILSVRC 2012), with the paper's settings.

    python apps/imagenet.py --flagfile=apps/flags/imagenet_alexnet.cfg --reference=ALEXNET.keras
    python apps/imagenet.py --flagfile=apps/flags/imagenet_resnet18.cfg --reference=RESNET18.keras
    python apps/imagenet.py --arch=ResNet50 --weights=imagenet

Fine-tunes a reference for ten epochs (by the flags of ResNet-18: one) with and
without the regulariser, or with the defences named by --defense, evaluates on
the 50,000 validation images, and writes models, numbers and pictures to
--output_dir. TensorFlow Datasets must have prepared ImageNet in --data_dir from
the two archives that its owners hand out; without, the error says how. Images
are prepared as Caffe's recipe has it for AlexNet, as ResNet's has it for all
others.

Deviations from the paper: DeepFool considers the ten most probable classes, as
its authors' code does, also in the evaluation. We had no ImageNet to run this
on: it is tested on small data of the same form.
"""  # noqa: E501

from absl import app, flags

from shared import cli, pipeline

FLAGS = flags.FLAGS
pipeline.define_flags(
    ["alexnet", "resnet18"],
    lam=5.0,
    c=500.0,
    candidates=10,
    evaluation_candidates=10,
    epochs=10,
    batch_size=256,
    learning_rate=1e-4,
    eps=1.0,
    reference_epochs=90,
    reference_learning_rate=1e-2,
    reference_last_epochs=30,
    reference_last_rate=0.1,
    augment=True,
    output_dir="runs/imagenet",
)


@cli.main
def main():
    """Trains, defends and evaluates on ImageNet."""
    crops = "caffe" if FLAGS.arch == "alexnet" else "resnet"
    pipeline.run(__name__, "imagenet2012", recipe=crops)


if __name__ == "__main__":
    app.run(main)
