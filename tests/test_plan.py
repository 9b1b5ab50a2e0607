"""Plans: names, sizes, labels, keys; everything refused before anything is built."""

from __future__ import annotations

import re

import pytest
from PIL import Image

import datbench.device
from datbench.errors import UserError
from datbench.plan import make_plan
from zoo import ZooError
from zoo.spec import MODELS


def test_defaults_are_each_models_own():
    plan = make_plan(["dat", "yolov8n+dat", "dat[img_size=448]"], device="cpu")
    assert [case.workload.input_shape for case in plan.cases] == [
        (3, 224, 224),
        (3, 640, 640),
        (3, 448, 448),
    ]
    assert plan.baseline == "dat_tiny"
    assert plan.cases[0].workload.threads >= 1
    assert [case.task for case in plan.cases] == ["classify", "detect", "classify"]
    assert plan.cases[1].named.family == "yolov8+dat"


def test_a_model_given_twice_gets_a_number():
    plan = make_plan(["swin", "swin_tiny", "dat"], device="cpu")
    assert [case.label for case in plan.cases] == ["swin_tiny", "swin_tiny#2", "dat_tiny"]


@pytest.mark.parametrize("baseline", ["swin", "swin_tiny"])
def test_the_baseline_may_be_written_short_or_long(baseline):
    assert make_plan(["dat", "swin"], device="cpu", baseline=baseline).baseline == "swin_tiny"


def test_a_profile_has_no_baseline():
    assert make_plan(["dat", "swin"], device="cpu", command="profile").baseline is None


def test_published_figures_stand_only_beside_what_was_published():
    names = [
        "dat",
        "dat[num_classes=10]",
        "dat[img_size=448]",
        "yolov8n+dat",
        "dat[drop_path_rate=0.1]",
    ]
    published = [case.published for case in make_plan(names, device="cpu").cases]
    assert published[1:4] == [{}, {}, {}]
    assert published[0] == published[4]
    assert published[0] == {
        "published_params": 29e6,
        "published_macs": 4.6e9,
        "published_top1": 82.0,
        "published_source": MODELS["dat_tiny"].published_source,
    }


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text("def build(width=4): ...\n")
    return path


def test_a_users_file_is_a_model_for_any_number_of_channels(own_model):
    (case,) = make_plan(["mine.py:build[width=2]"], device="cpu", input_shape="1x28x28").cases
    assert case.label == "mine.py:build[width=2]"
    assert (case.workload.input_shape, case.task) == ((1, 28, 28), "classify")
    assert case.published == {}
    assert "mine" not in " ".join(case.modules)  # the fork server must not run it


def test_a_changed_file_is_another_case(own_model):
    before = make_plan(["mine.py:build"], device="cpu").cases[0].key
    own_model.write_text("def build(width=5): ...\n")
    assert make_plan(["mine.py:build"], device="cpu").cases[0].key != before


def test_keys_differ_with_what_matters():
    options = [
        {},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"img_size": 448},
        {"threads": 1},
    ]
    keys = [make_plan(["dat"], device="cpu", **{"threads": 2, **o}).cases[0].key for o in options]
    assert len(set(keys)) == len(keys)
    assert make_plan(["dat_tiny"], device="cpu", threads=2).cases[0].key == keys[0]


def test_amp_takes_the_devices_half_type():
    case = make_plan(["dat"], device="cpu", amp=True).cases[0]
    assert (case.workload.dtype, case.workload.amp) == ("bfloat16", True)


def test_blocks_alone_are_built_with_the_channels_of_the_input():
    case = make_plan(["block:dat[stride=2]"], device="cpu", input_shape="64x8x12").cases[0]
    assert case.task == "block"
    assert case.build().proj_q.in_channels == 64
    assert case.build().stride == 2


def test_rectangular_inputs_reach_the_builder():
    case = make_plan(["pvt_tiny"], device="cpu", input_shape="3x96x64").cases[0]
    assert case.workload.img_size == "96x64"
    assert case.build().map_sizes[0] == (24, 16)


def test_checkpoints_go_to_their_model(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"x")
    plan = make_plan(["dat", "swin"], device="cpu", checkpoints=[f"swin={file}"])
    assert [case.checkpoint for case in plan.cases] == [None, str(file)]
    assert make_plan(["dat"], device="cpu", checkpoints=[str(file)]).cases[0].checkpoint == str(
        file
    )


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "no model given"),
        (["dta"], {}, "did you mean dat"),
        (["dat"], {"batch_size": 0}, "batch size is 0"),
        (["dat"], {"threads": 0}, "threads is 0"),
        (["dat"], {"dtype": "int8"}, "'int8' is not one of float32"),
        (["dat"], {"device": "gpu"}, "no device named 'gpu'"),
        (["dat"], {"device": "cuda:x"}, "no device named 'cuda:x'"),
        (["dat"], {"img_size": 225}, "multiples of 224; got 225x225, try 224"),
        (["yolov8n+dat"], {"img_size": 32}, "at least 64x64; got 32x32"),
        (["dat"], {"input_shape": "3x224"}, "is not CHANNELSxHEIGHTxWIDTH"),
        (["dat"], {"input_shape": "0x224x224"}, "is not CHANNELSxHEIGHTxWIDTH"),
        (["dat"], {"input_shape": "4x224x224"}, "takes images, 3xHEIGHTxWIDTH"),
        (["dat"], {"input_shape": "3x224x224", "img_size": 224}, "give one of them"),
        (["block:dat"], {}, "--input 256x20x20"),
        (["dat[img_size=448]"], {"img_size": 224}, "has its own img_size"),
        (["dat[img_size=abc]"], {}, "img_size is a side in pixels or (height, width); got 'abc'"),
        (["dat[img_size=(224, 1, 1)]"], {}, "img_size is a side in pixels"),
        (["dat", "swin"], {"baseline": "pvt"}, "baseline pvt is not among the models: dat_tiny"),
        (["dat", "swin"], {"checkpoints": ["x"]}, "which model"),
        (["dat"], {"checkpoints": ["x"]}, "is not a file"),
        (["dat"], {"image": "missing.jpg"}, "is not a file"),
    ],
)
def test_mistakes_are_refused_in_one_line(models, options, message):
    with pytest.raises((UserError, ZooError), match=re.escape(message)) as caught:
        make_plan(models, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    text = tmp_path / "a.jpg"
    text.write_text("hello")
    cut = tmp_path / "b.png"
    Image.new("RGB", (64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    for path in (text, cut):
        with pytest.raises(UserError, match="cannot be read as an image"):
            make_plan(["dat"], device="cpu", image=str(path))


@pytest.mark.parametrize(
    ("asked", "count", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cpu", 2, "cpu"),
        ("cuda", 0, "no CUDA device is visible; use --device cpu"),
        ("cuda:2", 2, "there are 2, cuda:0 to cuda:1"),
    ],
)
def test_devices_are_resolved(monkeypatch, asked, count, found):
    monkeypatch.setattr(datbench.device, "count_cuda_devices", lambda: count)
    if found in ("cpu", "cuda:0", "cuda:1"):
        assert make_plan(["dat"], device=asked).cases[0].workload.device == found
    else:
        with pytest.raises(UserError, match=found):
            make_plan(["dat"], device=asked)


@pytest.mark.usefixtures("zoo_as_it_was")
def test_files_of_users_are_not_imported_ahead_and_their_names_differ(tmp_path):
    text = 'import zoo\n\n\n@zoo.block("{}")\nclass Mine: ...\n'
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_block.py").write_text(text.format(f"own_{folder}"))
    files = [tmp_path / folder / "own_block.py" for folder in ("a", "b")]
    case = make_plan(["yolov8n+own_a"], device="cpu", plugins=files[:1] * 2).cases[0]
    assert case.modules == ["zoo.models.yolo"]
    with pytest.raises(UserError, match="have one name; rename one of them"):
        make_plan(["dat"], device="cpu", plugins=files)


def test_the_key_knows_what_is_in_a_checkpoint_and_in_an_image(tmp_path):
    import datbench.plan

    image, weights = tmp_path / "a.png", tmp_path / "w.pth"

    def key(colour, content):
        Image.new("RGB", (8, 8), colour).save(image)
        weights.write_bytes(content)
        datbench.plan._digest.cache_clear()
        plan = make_plan(["dat"], device="cpu", image=str(image), checkpoints=[str(weights)])
        return plan.cases[0].key

    keys = [key("red", b"x"), key("blue", b"x"), key("red", b"y"), key("red", b"x")]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]
