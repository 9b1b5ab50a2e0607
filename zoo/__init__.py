"""Vision networks and attention blocks by name.

>>> import zoo
>>> zoo.create_model("dat_tiny[num_classes=10]")
>>> zoo.create_block("dat", channels=256, stride=2)
>>> zoo.yolo("yolov8n+dat").train(data="coco8.yaml")

Importing the package imports neither torch nor a network; building one does. Layers of the zoo in
a YAML are known to ultralytics from then on.
"""

from zoo.build import (
    create_block,
    create_model,
    detector_yaml,
    list_blocks,
    list_models,
    yolo,
)
from zoo.checkpoint import load_checkpoint
from zoo.plugins import add_to_ultralytics, load_plugin
from zoo.reference import build_reference
from zoo.registry import ZooError
from zoo.spec import block, model

__all__ = [
    "ZooError",
    "block",
    "build_reference",
    "create_block",
    "create_model",
    "detector_yaml",
    "list_blocks",
    "list_models",
    "load_checkpoint",
    "load_plugin",
    "model",
    "yolo",
]

add_to_ultralytics()
