"""The paper's experiments: their commands, tables and figures."""

import shared  # noqa: F401  before TensorFlow, whose notes it turns off
