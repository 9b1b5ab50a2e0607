"""Vision networks and attention blocks by name.

>>> import zoo
>>> zoo.create_model("dat_tiny[num_classes=10]")
>>> zoo.create_block("dat", channels=256, stride=2)

Importing the package imports neither torch nor a network; building one does.
"""

from zoo.build import create_block, create_model, list_blocks, list_models
from zoo.checkpoint import load_checkpoint
from zoo.reference import build_reference
from zoo.registry import ZooError
from zoo.spec import block, model

__all__ = [
    "ZooError",
    "block",
    "build_reference",
    "create_block",
    "create_model",
    "list_blocks",
    "list_models",
    "load_checkpoint",
    "model",
]
