"""What the programs in apps/ share: flags, data in, training, files out."""

from shared import quiet as quiet  # before TensorFlow is imported
