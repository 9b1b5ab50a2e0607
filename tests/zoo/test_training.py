"""Detectors with a block, trained by ultralytics on real photographs with real boxes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.utils import ASSETS

import zoo

BLOCKS = "dat sea msda cpca acmix psa dlka hat ema msca".split()
# Every batch is a step of the optimiser, and images come as they are: two epochs are 16 steps.
STEADY = {
    "batch": 2, "nbs": 2, "optimizer": "AdamW", "lr0": 2e-3, "warmup_epochs": 0, "mosaic": 0,
    "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "translate": 0, "scale": 0, "fliplr": 0,
}  # fmt: skip
QUIET = {"device": "cpu", "workers": 0, "plots": False, "seed": 0}

pytestmark = pytest.mark.filterwarnings("ignore")  # ultralytics, matplotlib and the exporter warn


@pytest.fixture(autouse=True, scope="module")
def settings_as_they_were():
    """Take back what ultralytics sets for the whole process when it trains."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def train(name: str, data: Path, project: Path, **options):
    """Train for two epochs; return the detector, its weights before, and the loss of each batch."""
    torch.manual_seed(0)
    yolo = zoo.yolo(name)
    before = {key: value.clone() for key, value in yolo.model.named_parameters()}
    losses: list[float] = []
    yolo.add_callback("on_train_batch_end", lambda trainer: losses.append(trainer.loss.item()))
    given = {"epochs": 2, "imgsz": 320, "amp": False, **STEADY, **QUIET, **options}
    yolo.train(data=str(data), project=str(project), name="run", exist_ok=True, **given)
    return yolo, before, losses


def check(yolo, before: dict[str, torch.Tensor], losses: list[float]) -> None:
    assert all(map(math.isfinite, losses))
    half = len(losses) // 2
    assert sum(losses[half:]) < 0.9 * sum(losses[:half])
    after = dict(yolo.trainer.model.named_parameters())
    of_the_block = [key for key in before if ".block." in key]
    assert of_the_block
    assert [key for key in of_the_block if torch.equal(before[key], after[key])] == []


def in_a_new_process(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    return train("yolov8n+dat", photographs, tmp_path_factory.mktemp("trained"))


def test_two_epochs_lower_the_loss_and_move_every_weight_of_the_block(trained):
    check(*trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*(f"yolov8n+{block}" for block in BLOCKS[1:]), "yolov10n+msda", "yolo11n+ema@neck",
     "yolov8n+dat@c2f", "yolo11n+acmix@c2f", "yolov10s+cpca@backbone"],
)  # fmt: skip
def test_every_block_trains(name, photographs, tmp_path):
    check(*train(name, photographs, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"amp": True}, {"imgsz": 640}, {"rect": True}], ids=["amp", "640", "rectangular"]
)
def test_dat_trains_under_other_settings(options, photographs, tmp_path):
    check(*train("yolov8n+dat", photographs, tmp_path, **options))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_trains_in_mixed_precision_on_a_gpu(block, photographs, tmp_path):
    options = {"device": 0, "amp": True}
    check(*train(f"yolov8n+{block}", photographs, tmp_path, **options))


def test_the_best_weights_reload_in_a_new_process(trained, photographs):
    yolo, _, _ = trained
    best = Path(yolo.trainer.best)
    code = (
        "import zoo, ultralytics\n"
        f"yolo = ultralytics.YOLO({best.name!r})\n"
        f"boxes = yolo.predict({str(ASSETS)!r}, imgsz=320, conf=0.001, verbose=False)\n"
        "print('found', [len(found.boxes) for found in boxes], boxes[0].boxes.data.sum().item())\n"
        f"print('map', yolo.val(data={str(photographs)!r}, imgsz=320, plots=False).box.map)\n"
        "print('block', type(yolo.model.model[10].block).__name__)\n"
    )
    told = in_a_new_process(code, best.parent)
    ours = yolo.predict(ASSETS, imgsz=320, conf=0.001, verbose=False)
    total = ours[0].boxes.data.sum().item()
    found = [line for line in told.splitlines() if line.startswith("found")][-1]
    assert found.startswith(f"found {[len(result.boxes) for result in ours]}")
    assert float(found.split()[-1]) == pytest.approx(total, rel=1e-4)
    mean = float(next(line for line in told.splitlines() if line.startswith("map")).split()[1])
    assert 0 <= mean <= 1
    assert "block DeformableAttention" in told


def test_an_interrupted_training_resumes_in_a_new_process(photographs, tmp_path):
    def interrupt(trainer) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    yolo = zoo.yolo("yolov8n+ema")
    yolo.add_callback("on_model_save", interrupt)
    given = {"epochs": 2, "imgsz": 64, **STEADY, **QUIET}
    with pytest.raises(KeyboardInterrupt):
        yolo.train(data=str(photographs), project=str(tmp_path), name="run", **given)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert torch.load(last, weights_only=False)["epoch"] == 0
    code = (
        "import zoo, ultralytics\n"
        f"yolo = ultralytics.YOLO({str(last)!r})\n"
        "yolo.train(resume=True)\n"
        "print('went from', yolo.trainer.start_epoch, 'to', yolo.trainer.epoch)\n"
    )
    assert "went from 1 to 1" in in_a_new_process(code, tmp_path)


def test_training_starts_from_the_weights_that_were_given(photographs, tmp_path):
    class Seen(Exception):
        pass

    def look(trainer) -> None:
        started.update(trainer.model.state_dict())
        raise Seen

    started: dict[str, torch.Tensor] = {}
    zoo.yolo("yolov8n").save(tmp_path / "base.pt")
    yolo = zoo.yolo("yolov8n+dat", weights=tmp_path / "base.pt")
    given = yolo.model.state_dict()
    yolo.add_callback("on_train_start", look)
    with pytest.raises(Seen):
        yolo.train(data=str(photographs), imgsz=64, project=str(tmp_path), **QUIET)
    same = {key for key, value in given.items() if torch.equal(started[key], value)}
    assert {key for key in given if not key.startswith("model.23.")} <= same
    assert "model.23.cv2.0.2.weight" in same  # boxes, whatever the classes


def check_onnx(yolo) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = yolo.export(format="onnx", imgsz=(320, 256))
    session = onnxruntime.InferenceSession(file)
    x = torch.rand(1, 3, 320, 256, generator=torch.Generator().manual_seed(0))
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = yolo.model.eval()(x)[0].numpy()
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 1e-2  # boxes in pixels


def test_what_is_exported_to_onnx_gives_the_same_boxes(trained):
    check_onnx(trained[0])


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if block != "dlka"])
def test_every_block_but_one_is_exported_to_onnx(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    check_onnx(zoo.yolo(f"yolov8n+{block}"))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_loss_is_finite_under_autocast(block):
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    model = zoo.create_model(f"yolov8n[num_classes=3]+{block}").train()
    model.args = get_cfg()
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.4, 0.2, 0.2]])
    batch = {
        "img": torch.rand(2, 3, 128, 160),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": boxes,
        "batch_idx": torch.tensor([0.0, 1.0]),
    }
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(batch)
    loss.sum().backward()
    assert loss.isfinite().all()
    of_the_block = [p for name, p in model.named_parameters() if ".block." in name]
    assert all(p.grad.isfinite().all() for p in of_the_block)
