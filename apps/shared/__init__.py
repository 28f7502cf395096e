"""What the programs in apps/ share: flags, data in, training, files out."""

import os

# Before any module here imports TensorFlow: its start-up notes say nothing of
# the run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
