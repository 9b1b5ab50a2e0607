"""Detectors of ultralytics, with and without a block plugged in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import ultralytics
from ultralytics.nn.tasks import DetectionModel

import zoo
from zoo.detection import PluggedBottleneck, ZooBlock, ZooBottlenecks, layers_of, plain, transfer
from zoo.names import PLACEMENTS, parse_name
from zoo.spec import MODELS

DETECTORS = [name for name, spec in MODELS.items() if spec.task == "detect"]
FAMILIES = ["yolov8n", "yolov10n", "yolov10s", "yolo11n", "yolo11m"]


@pytest.mark.slow(but=FAMILIES)
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_that_of_ultralytics(name):
    ours, theirs = zoo.create_model(name), DetectionModel(f"{name}.yaml", verbose=False)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert [type(layer) for layer in ours.model] == [type(layer) for layer in theirs.model]
    assert ours.save == theirs.save
    assert getattr(ours.model[-1], "legacy", None) == getattr(theirs.model[-1], "legacy", None)


def test_widths_are_multiples_of_eight():
    for name in DETECTORS:
        layers = plain(name)
        rows = [*layers["backbone"], *layers["head"]]
        assert [row for row in rows if row[2] in ("C2f", "C3k2", "SPPF") and row[3][0] % 8] == []


def listed(name: str) -> tuple[list, list]:
    """Sources of all layers, and the number and arguments of each of ours."""
    layers = layers_of(parse_name(name))
    rows = [*layers["backbone"], *layers["head"]]
    ours = [(i, row[3]) for i, row in enumerate(rows) if row[2].startswith("Zoo")]
    return [row[0] for row in rows], ours


def test_p5_stands_behind_sppf_and_feeds_both_readers():
    sources, ours = listed("yolov8n+dat")
    plain_sources, _ = listed("yolov8n")
    assert ours == [(10, [256, {"dat": {"stride": 1}}])]
    assert sources[:11] == [*plain_sources[:10], -1]
    assert sources[12] == [-1, 6]  # what lies before stays
    assert sources[21] == [-1, 10]  # the P5 concat reads the block, not SPPF
    assert sources[-1] == [16, 19, 22]


def test_neck_stands_behind_the_three_outputs():
    sources, ours = listed("yolov8n+dat[groups=1]@neck")
    strides = {16: (64, 4), 20: (128, 2), 24: (256, 1)}
    assert ours == [
        (at, [width, {"dat": {"stride": stride, "groups": 1}}])
        for at, (width, stride) in strides.items()
    ]
    assert sources[18] == [-1, 12]  # the concat after the first output reads the neck as before
    assert sources[-1] == [16, 20, 24]


def test_backbone_stands_behind_the_stages_from_p3_up():
    sources, ours = listed("yolo11n+ema@backbone")
    assert [(at, args[0]) for at, args in ours] == [(5, 128), (8, 128), (11, 256)]
    assert sources[15] == [-1, 8]
    assert sources[18] == [-1, 5]
    assert sources[-1] == [19, 22, 25]


@pytest.mark.parametrize(
    ("name", "kind", "bottlenecks", "width"),
    [
        ("yolov8n", "C2f", 1, 128),
        ("yolov8m", "C2f", 2, 288),
        ("yolov10n", "C2f", 1, 128),
        ("yolov10s", "C2fCIB", 1, 256),
        ("yolo11n", "C3k2", 2, 64),
        ("yolo11m", "C3k2", 2, 128),
    ],
)
def test_c2f_stands_inside_every_bottleneck_of_the_last_stage(name, kind, bottlenecks, width):
    layer = zoo.create_model(f"{name}+ema@c2f").model[8]
    assert isinstance(layer, ZooBottlenecks)
    assert type(layer.layer).__name__ == kind
    inside = [m for m in layer.modules() if isinstance(m, PluggedBottleneck)]
    assert len(inside) == bottlenecks
    assert {m.block.groups * m.block.conv1x1.in_channels for m in inside} == {width}
    assert {m.add for m in inside} == {True}


def test_a_plugged_bottleneck_adds_its_input_to_what_the_block_makes(fill, noise):
    layer = fill(zoo.create_model("yolov8n+msca@c2f")).model[8].layer
    inside = layer.m[0]
    x = noise("x", 1, 128, 4, 5)
    expected = x + inside.block(inside.cv2(inside.cv1(x)))
    assert torch.equal(inside(x), expected)


@pytest.mark.slow(but=["yolov8n", "yolo11n"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_identity_block_leaves_a_detector_with_its_weights_as_it_was(
    name, placement, fill, noise
):
    base = fill(zoo.create_model(name))
    plugged = zoo.create_model(f"{name}+psa@{placement}").eval()
    transfer(plugged, base.state_dict())
    places = [m for m in plugged.modules() if isinstance(m, ZooBlock | PluggedBottleneck)]
    assert places
    for place in places:
        place.block = torch.nn.Identity()
    x = noise("image", 1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(base(x)[0], plugged(x)[0])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.slow(but=["yolov8n"])
@pytest.mark.parametrize("name", ["yolov8n", "yolov10n", "yolo11n"])
def test_every_block_fits_everywhere(name, placement):
    for plugged in zoo.list_models(f"{name}+*"):
        model = zoo.create_model(f"{plugged}@{placement}").eval()
        with torch.no_grad():
            assert model(torch.rand(1, 3, 128, 160))[0].isfinite().all()


@pytest.mark.slow(but=["yolov8m"])
@pytest.mark.parametrize("name", ["yolov8m", "yolov8x", "yolov10m", "yolo11l"])
def test_the_rule_for_heads_fits_every_width(name):
    for placement in PLACEMENTS:
        for block in ("dat", "msda", "hat"):
            zoo.create_model(f"{name}+{block}@{placement}")


def test_windows_fit_where_their_side_does():
    zoo.create_model("yolov8n+window[window=4]")
    with pytest.raises(zoo.ZooError, match=r"8x8, not a multiple of window=7 .*runs each network"):
        zoo.create_model("yolov8n+window")


def test_a_bottleneck_without_a_shortcut_adds_nothing(noise):
    layer = ZooBottlenecks(16, 16, 1, {"C2f": [False]}, {"msca": {}}).eval()
    inside = layer.layer.m[0]
    x = noise("x", 1, 8, 4, 5)
    assert torch.equal(inside(x), inside.block(inside.cv2(inside.cv1(x))))


@pytest.mark.parametrize("name", ["yolov8n+acmix[stride=2]", "yolov8n+acmix[out_dim=64]@c2f"])
def test_a_block_that_changes_the_shape_is_refused(name):
    with pytest.raises(zoo.ZooError, match=r"block acmix makes \(1, .* a block keeps the shape"):
        zoo.create_model(name)


@pytest.mark.parametrize("classes", [0, -1, "x"])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(zoo.ZooError, match=r"num_classes=.*; expected a whole number from 1 up"):
        zoo.create_model("yolov8n", num_classes=classes)


def test_options_of_the_block_reach_it():
    block = zoo.create_model("yolov8n+dat[groups=1,stride=2,version=1]").model[10]
    assert isinstance(block, ZooBlock)
    assert (block.block.groups, block.block.stride, block.block.version) == (1, 2, 1)


def test_classes_of_the_detector_are_an_option():
    model = zoo.create_model("yolov8n[num_classes=3]+dat").eval()
    assert model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 7, 84)


def test_a_one_by_one_map_is_refused_in_words():
    model = zoo.create_model("yolov8n+dat").eval()
    with pytest.raises(zoo.ZooError, match="1x1 reference points"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("file", ["file.yaml", "yolov8x.yaml"])
@pytest.mark.parametrize(
    "name",
    ["yolo11m", "yolov8s+dat[table_size=(20,20),position=table]", "yolov10n+msda@c2f",
     "yolov8n[num_classes=3]+ema@neck"],
)  # fmt: skip
def test_the_yaml_builds_the_same_detector_under_any_name(name, file, tmp_path, fill, noise):
    (tmp_path / file).write_text(zoo.detector_yaml(name))
    read = fill(ultralytics.YOLO(tmp_path / file).model)
    made = fill(zoo.create_model(name))
    x = noise("image", 1, 3, 128, 96)
    with torch.no_grad():
        assert torch.equal(read(x)[0], made(x)[0])


@pytest.mark.slow(but=["import zoo, ultralytics", "import ultralytics.nn.tasks, zoo"])
@pytest.mark.parametrize(
    "imports",
    ["import zoo, ultralytics", "import ultralytics.nn.tasks, zoo", "import ultralytics, zoo",
     "import importlib.util as u, zoo; u.find_spec('ultralytics.nn.tasks'); import ultralytics"],
)  # fmt: skip
def test_ultralytics_knows_our_layers_whichever_is_imported_first(imports, tmp_path):
    (tmp_path / "file.yaml").write_text(zoo.detector_yaml("yolov8n+ema@c2f"))
    code = f"{imports}; print(type(ultralytics.YOLO('file.yaml').model.model[8]).__name__)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "ZooBottlenecks"


@pytest.mark.parametrize("name", ["yolo11n+ema", "yolo11s"])
def test_a_file_name_of_another_scale_stops_where_it_would_change_the_detector(name, tmp_path):
    text = zoo.detector_yaml(name)
    params = sum(p.numel() for p in zoo.create_model(name).parameters())
    for file in ("file.yaml", f"{name}.yaml"):
        (tmp_path / file).write_text(text)
        read = ultralytics.YOLO(tmp_path / file).model
        assert sum(p.numel() for p in read.parameters()) == params
    (tmp_path / "my_yolo11m.yaml").write_text(text)
    with pytest.raises(KeyError, match="m"):
        ultralytics.YOLO(tmp_path / "my_yolo11m.yaml")


@pytest.mark.parametrize(
    "name", ["yolov8n+ema[groups=3]", "yolov8n+window", "yolov8n+dat[heads=7]"]
)
def test_no_yaml_is_written_of_what_cannot_be_built(name):
    with pytest.raises(zoo.ZooError):
        zoo.detector_yaml(name)


def test_the_finder_is_gone_once_the_layers_are_known():
    code = (
        "import sys, zoo, ultralytics.nn.tasks as t;"
        "assert hasattr(t, 'ZooBlock');"
        "assert 'exec_module' not in vars(t.__loader__);"
        "print([f for f in sys.meta_path if 'zoo' in type(f).__module__])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_a_detector_goes_by_its_name():
    yolo = zoo.yolo("yolov8n[num_classes=3]+dat[stride=2]")
    name = "yolov8n_num_classes=3_+dat_stride=2.yaml"
    assert yolo.model.yaml["yaml_file"] == yolo.overrides["model"] == yolo.model_name == name


def test_what_is_no_detector_of_ultralytics_is_refused():
    for make in (zoo.yolo, zoo.detector_yaml):
        for name in ("dat_tiny", "block:dat", "torchvision:fcos_resnet50_fpn"):
            with pytest.raises(zoo.ZooError, match="is not a detector of ultralytics"):
                make(name)


NAMES = {i: f"class {i}" for i in range(80)}


def saved(name: str, path) -> dict[str, torch.Tensor]:
    """Save a detector as ultralytics does, in half precision; return its weights."""
    torch.manual_seed(1)
    yolo = zoo.yolo(name)
    yolo.model.names = NAMES
    yolo.save(path)
    return {key: value.half().float() for key, value in yolo.model.state_dict().items()}


@pytest.mark.parametrize("name", ["yolov8n+dat", "yolov8n+dat@c2f", "yolov8n[num_classes=3]+dat"])
def test_weights_of_the_plain_detector_are_taken_over(name, tmp_path):
    base = saved("yolov8n", tmp_path / "base.pt")
    yolo = zoo.yolo(name, weights=tmp_path / "base.pt")
    own = yolo.model.state_dict()
    assert torch.equal(own["model.0.conv.weight"], base["model.0.conv.weight"])
    renamed = {"yolov8n+dat@c2f": "model.8.layer.m.0.cv2.conv.weight"}
    key = renamed.get(name, "model.8.m.0.cv2.conv.weight")
    assert torch.equal(own[key], base["model.8.m.0.cv2.conv.weight"])
    assert (yolo.model.names == NAMES) == ("classes" not in name)
    last = len(yolo.model.model) - 1
    boxes, scores = (f"model.{last}.{part}.0.2.weight" for part in ("cv2", "cv3"))
    assert torch.equal(own[boxes], base["model.22.cv2.0.2.weight"])
    assert (own[scores].shape == base["model.22.cv3.0.2.weight"].shape) == ("classes" not in name)


def test_weights_of_the_same_detector_are_taken_over_with_the_block(tmp_path):
    before = saved("yolov8n+ema@neck", tmp_path / "same.pt")
    own = zoo.yolo("yolov8n+ema@neck", weights=tmp_path / "same.pt").model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in before.items())


def test_both_heads_of_yolov10_may_have_other_classes(tmp_path):
    base = saved("yolov10n", tmp_path / "base.pt")
    own = zoo.yolo("yolov10n[num_classes=3]+msda", weights=tmp_path / "base.pt").model.state_dict()
    boxes = "one2one_cv2.0.2.weight"
    assert torch.equal(own[f"model.24.{boxes}"], base[f"model.23.{boxes}"])


@pytest.mark.parametrize(
    "name", ["yolov8s+dat", "yolo11n+dat", "yolov8n+dat@neck", "yolov8n+dat[groups=1]"]
)
def test_weights_of_another_detector_are_refused(name, tmp_path):
    other = "yolov8n+dat" if name.startswith("yolov8n") else "yolov8n"
    saved(other, tmp_path / "other.pt")
    with pytest.raises(zoo.ZooError, match=r"the weights do not fit .* give those of the same"):
        zoo.yolo(name, weights=tmp_path / "other.pt")


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    (tmp_path / "junk.pt").write_text("junk")
    (tmp_path / "net.yaml").write_text(zoo.detector_yaml("yolov8n"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    for file, message in (
        ("junk.pt", "no checkpoint of ultralytics"),
        ("state.pt", "no checkpoint of ultralytics"),
        ("net.yaml", r"expected a checkpoint of ultralytics, e.g. best.pt"),
        ("nope.pt", "there is no such file"),
        ("", "expected a checkpoint"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            zoo.yolo("yolov8n+dat", weights=tmp_path / file)
