"""Published throughput beside what was measured, and only where the two belong together."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from datbench.published import GPUS, TIMM, anchors, show, timm_name
from datbench.records import Workload

ZOO = Path(__file__).parents[1] / "zoo" / "models"
WORK = Workload(
    "cuda:0", (3, 224, 224), batch_size=1024, dtype="float16", amp=True, cudnn_benchmark=True
)


@pytest.fixture
def on(make_record):
    """A record of a device: on("RTX 4090", "swin_tiny", throughput_img_s=2000.0, amp=False)."""

    def make(device: str, model="swin_tiny", *, params=None, img_size=224, values=(), **work):
        record = make_record(
            model,
            params=params,
            work=dataclasses.replace(WORK, input_shape=(3, img_size, img_size), **work),
            **{"throughput_img_s": 2000.0, **dict(values)},
        )
        environment = dataclasses.replace(record.environment, device_name=device)
        return dataclasses.replace(record, environment=environment)

    return make


def built_by_timm() -> dict[str, str]:
    """Models of the zoo whose whole builder is a call of timm, by timm's name of them."""
    found = {}
    for file in ZOO.glob("*.py"):
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            names = [
                ast.literal_eval(mark.args[0])
                for mark in function.decorator_list
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "model"
            ]
            last = function.body[-1]
            call = last.value if isinstance(last, ast.Return) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "timm.create_model":
                found |= dict.fromkeys(names, ast.literal_eval(call.args[0]))
    return found


def test_the_names_are_those_that_the_zoo_gives_to_timm():
    assert built_by_timm() == TIMM


@pytest.mark.parametrize("model", TIMM)
def test_every_network_that_timm_builds_for_the_zoo_is_published_for_three_gpus(on, model):
    found = anchors(on("AMD EPYC", model, img_size=384 if model.endswith("384") else 224))
    assert [anchor.gpu for anchor in found] == ["RTX 3090", "RTX 4090", "RTX 5090"]
    assert all(anchor.throughput_img_s > 100 and anchor.batch_size >= 256 for anchor in found)


def test_a_ratio_is_that_of_the_same_gpu(on):
    found = anchors(on("NVIDIA GeForce RTX 4090"))
    assert [(a.throughput_img_s, a.ratio) for a in found] == [
        (1994.25, None), (2748.8, 2000 / 2748.8), (4239.14, None),
    ]  # fmt: skip
    assert found[1].batch_size == 1024
    assert found[1].source.endswith(
        "aa4b5850, results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv"
    )
    assert found[1].conditions == (
        "autocast to float16, NCHW, eager, batch 1024, torch 2.9.1, CUDA 12.8; ours: torch 2.14.1"
    )


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX 4000 Ada",
        "NVIDIA H100 80GB HBM3", "AMD EPYC", "Simulated RTX 4090", "Simulated GPU", "",
    ],
)  # fmt: skip
def test_another_device_has_no_ratio(on, device):
    found = anchors(on(device))
    assert len(found) == len(GPUS)
    assert all(anchor.ratio is None for anchor in found)
    assert all(figure.ours is None for figure in show([on(device)]) if "images" in figure.what)


def test_a_simulated_or_failed_record_and_one_of_a_cpu_have_no_ratio(on):
    known = on("NVIDIA GeForce RTX 3090")
    assert anchors(known)[0].ratio == 2000 / 1994.25
    pretended = dataclasses.replace(known, warnings=("simulated: it only pretends",))
    on_cpu = dataclasses.replace(known, workload=dataclasses.replace(WORK, device="cpu"))
    failed = dataclasses.replace(known, measurements=())
    early = dataclasses.replace(known, environment=None)
    for record in (pretended, on_cpu, failed, early):
        assert [anchor.ratio for anchor in anchors(record)] == [None] * 3


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ({"dtype": "float32", "amp": False}, "ours: float32, torch"),
        ({"dtype": "bfloat16"}, "ours: autocast to bfloat16, torch"),
        ({"batch_size": 8}, "ours: batch 8, torch"),
        ({"channels_last": True}, "ours: channels-last, torch"),
        ({"runtime": "compile"}, "ours: compile, torch"),
        ({"cold_cache": True}, "ours: cold L2 cache, torch"),
    ],
    ids=str,
)
def test_other_conditions_are_told_with_the_ratio(on, work, told):
    anchor = anchors(on("NVIDIA GeForce RTX 5090", **work))[2]
    assert anchor.ratio is not None
    assert told in anchor.conditions


@pytest.mark.parametrize(
    ("model", "work"),
    [
        ("swin_tiny", {"img_size": 256}),
        ("swin_base", {"img_size": 384}),  # windows of 7: not the network of 384
        ("swin_tiny", {"mode": "train"}),
        ("swin_tiny[num_classes=10]", {}),
        ("swin_tiny[features_only=True]", {}),
        ("swin_tiny[broken", {}),
        ("swin_tiny+ema", {}),
        ("dat_tiny", {}),
        ("pvt_small", {}),
        ("swin_tiny_patch4_window7_224", {}),
        ("timm:no_such_network", {}),
        ("timm:swin_tiny_patch4_window7_224[window_size=14]", {}),
        ("torchvision:resnet50", {}),
        ("nets/timm.py:swin_tiny", {}),
        ("block:window", {}),
    ],
    ids=str,
)
def test_another_network_has_no_published_figures(on, model, work):
    assert anchors(on("NVIDIA GeForce RTX 4090", model, **work)) == []
    assert show([on("NVIDIA GeForce RTX 4090", model, **work)]) == []


def test_an_input_that_is_no_square_image_has_none(on):
    for shape in ((3, 224, 256), (4, 224, 224)):
        work = dataclasses.replace(WORK, input_shape=shape)
        assert anchors(dataclasses.replace(on("AMD EPYC"), workload=work)) == []


def test_weights_with_a_head_for_more_classes_are_another_network(on):
    model = "timm:vit_base_patch16_224.augreg_in21k"
    assert len(anchors(on("AMD EPYC", model, params=86_567_656))) == 3
    assert anchors(on("AMD EPYC", model, params=102_595_923)) == []


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_tiny#2", "swin_tiny_patch4_window7_224"),
        ("pvt_v2_b0[drop_path_rate=0.3]", "pvt_v2_b0"),
        ("timm:resnet50", "resnet50"),
        ("timm:resnet50.a1_in1k[pretrained=True]#3", "resnet50"),
        ("swin_tiny.a1", None),
        ("", None),
    ],
)
def test_labels_are_read_as_the_zoo_writes_them(label, name):
    assert timm_name(label) == name


def test_what_the_record_lacks_is_told_beside_ours(on):
    values = {"macs": 4_130_000_000}
    record = dataclasses.replace(
        on("NVIDIA GeForce RTX 4090", "timm:resnet50", params=25_557_032, values=values),
        published_macs=None,
    )
    found = show([record, record])
    assert [(f.what, f.published) for f in found[:2]] == [
        ("parameters, M", 25.56), ("multiply-adds, G", 4.11),
    ]  # fmt: skip
    assert found[0].ours == 25.557032
    assert found[1].ratio == 4.13 / 4.11
    throughput = [f for f in found if f.what == "images/s on RTX 4090"]
    assert [f.ours for f in throughput] == [2000.0]
    assert "batch 1024" in throughput[0].source
    assert len(found) == 5  # the second record says nothing new
    own = dataclasses.replace(record, published_macs=4.1e9, published_params=25.6e6)
    assert [f.what for f in show([own])] == [f"images/s on {gpu.name}" for gpu in GPUS]
