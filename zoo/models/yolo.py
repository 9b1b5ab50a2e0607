"""YOLO detectors, built by ultralytics; `zoo.detection` plugs blocks into them."""

from __future__ import annotations

from torch import nn

from zoo.detection import detector
from zoo.names import parse_name
from zoo.spec import model


@model(
    "yolov8n",
    aliases=("yolov8",),
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=3_157_200,
    published_params=3.2e6,
    published_macs=4.35e9,
    published_source="ultralytics docs: 8.7 GFLOPs of the fused model, two to a multiply-add",
    published_fused=True,
)
def yolov8n(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 nano."""
    return detector(parse_name("yolov8n"), num_classes)


@model(
    "yolov8s",
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=11_166_560,
    published_params=11.2e6,
    published_macs=14.3e9,
    published_source="ultralytics docs: 28.6 GFLOPs of the fused model, two to a multiply-add",
    published_fused=True,
)
def yolov8s(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 small."""
    return detector(parse_name("yolov8s"), num_classes)


@model(
    "yolov8m",
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=25_902_640,
    published_params=25.9e6,
    published_macs=39.45e9,
    published_source="ultralytics docs: 78.9 GFLOPs of the fused model, two to a multiply-add",
    published_fused=True,
)
def yolov8m(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 medium."""
    return detector(parse_name("yolov8m"), num_classes)


@model(
    "yolov8l",
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=43_691_520,
    published_params=43.7e6,
    published_macs=82.6e9,
    published_source="ultralytics docs: 165.2 GFLOPs of the fused model, two to a multiply-add",
    published_fused=True,
)
def yolov8l(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 large."""
    return detector(parse_name("yolov8l"), num_classes)


@model(
    "yolov8x",
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=68_229_648,
    published_params=68.2e6,
    published_macs=128.9e9,
    published_source="ultralytics docs: 257.8 GFLOPs of the fused model, two to a multiply-add",
    published_fused=True,
)
def yolov8x(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 extra large."""
    return detector(parse_name("yolov8x"), num_classes)


@model(
    "yolov10n",
    aliases=("yolov10",),
    family="yolov10",
    source="ultralytics yolov10n.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=2_775_520,
    published_params=2.3e6,
    published_macs=3.35e9,
    published_source="YOLOv10 paper: 6.7 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10n(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 nano."""
    return detector(parse_name("yolov10n"), num_classes)


@model(
    "yolov10s",
    family="yolov10",
    source="ultralytics yolov10s.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=8_128_272,
    published_params=7.2e6,
    published_macs=10.8e9,
    published_source="YOLOv10 paper: 21.6 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10s(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 small."""
    return detector(parse_name("yolov10s"), num_classes)


@model(
    "yolov10m",
    family="yolov10",
    source="ultralytics yolov10m.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=16_576_768,
    published_params=15.4e6,
    published_macs=29.55e9,
    published_source="YOLOv10 paper: 59.1 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10m(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 medium."""
    return detector(parse_name("yolov10m"), num_classes)


@model(
    "yolov10b",
    family="yolov10",
    source="ultralytics yolov10b.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=20_574_384,
    published_params=19.1e6,
    published_macs=46e9,
    published_source="YOLOv10 paper: 92.0 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10b(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 balanced."""
    return detector(parse_name("yolov10b"), num_classes)


@model(
    "yolov10l",
    family="yolov10",
    source="ultralytics yolov10l.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=25_888_688,
    published_params=24.4e6,
    published_macs=60.15e9,
    published_source="YOLOv10 paper: 120.3 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10l(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 large."""
    return detector(parse_name("yolov10l"), num_classes)


@model(
    "yolov10x",
    family="yolov10",
    source="ultralytics yolov10x.yaml, AGPL-3.0; arXiv 2405.14458",
    task="detect",
    img_size=640,
    params=31_808_960,
    published_params=29.5e6,
    published_macs=80.2e9,
    published_source="YOLOv10 paper: 160.4 GFLOPs, without the head for training alone",
    published_fused=True,
)
def yolov10x(*, num_classes: int = 80) -> nn.Module:
    """YOLOv10 extra large."""
    return detector(parse_name("yolov10x"), num_classes)


@model(
    "yolo11n",
    aliases=("yolo11",),
    family="yolo11",
    source="ultralytics yolo11.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=2_624_080,
    published_params=2_624_080,
    published_macs=3.3e9,
    published_source="ultralytics yolo11.yaml: 6.6 GFLOPs, two to a multiply-add",
)
def yolo11n(*, num_classes: int = 80) -> nn.Module:
    """YOLO11 nano."""
    return detector(parse_name("yolo11n"), num_classes)


@model(
    "yolo11s",
    family="yolo11",
    source="ultralytics yolo11.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=9_458_752,
    published_params=9_458_752,
    published_macs=10.85e9,
    published_source="ultralytics yolo11.yaml: 21.7 GFLOPs, two to a multiply-add",
)
def yolo11s(*, num_classes: int = 80) -> nn.Module:
    """YOLO11 small."""
    return detector(parse_name("yolo11s"), num_classes)


@model(
    "yolo11m",
    family="yolo11",
    source="ultralytics yolo11.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=20_114_688,
    published_params=20_114_688,
    published_macs=34.25e9,
    published_source="ultralytics yolo11.yaml: 68.5 GFLOPs, two to a multiply-add",
)
def yolo11m(*, num_classes: int = 80) -> nn.Module:
    """YOLO11 medium."""
    return detector(parse_name("yolo11m"), num_classes)


@model(
    "yolo11l",
    family="yolo11",
    source="ultralytics yolo11.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=25_372_160,
    published_params=25_372_160,
    published_macs=43.8e9,
    published_source="ultralytics yolo11.yaml: 87.6 GFLOPs, two to a multiply-add",
)
def yolo11l(*, num_classes: int = 80) -> nn.Module:
    """YOLO11 large."""
    return detector(parse_name("yolo11l"), num_classes)


@model(
    "yolo11x",
    family="yolo11",
    source="ultralytics yolo11.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=56_966_176,
    published_params=56_966_176,
    published_macs=98e9,
    published_source="ultralytics yolo11.yaml: 196.0 GFLOPs, two to a multiply-add",
)
def yolo11x(*, num_classes: int = 80) -> nn.Module:
    """YOLO11 extra large."""
    return detector(parse_name("yolo11x"), num_classes)
