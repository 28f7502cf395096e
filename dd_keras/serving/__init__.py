"""Serving: from a classifier to a SavedModel for TensorFlow Serving."""

from dd_keras.serving.model_card import weights_hash
from dd_keras.serving.saved_model import export
from dd_keras.serving.server_config import validate_name, write_server_config

__all__ = ["export", "validate_name", "weights_hash", "write_server_config"]
