"""Names as users type them, without importing torch."""

from __future__ import annotations

import pytest

import zoo
from zoo.names import parse_name


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("dat", "dat_tiny"),
        ("pvt", "pvt_small"),
        ("swin", "swin_tiny"),
        ("yolov8", "yolov8n"),
        (" dat_tiny[] ", "dat_tiny"),
        ("dat[num_classes=10,img_size=448]", "dat_tiny[img_size=448,num_classes=10]"),
        ("yolov8n+dat", "yolov8n+dat"),
        ("yolov8n+dat@p5", "yolov8n+dat"),
        ("yolov8n+hab@neck", "yolov8n+hat@neck"),
        ("yolo11+dat[groups=1,stride=2]@backbone", "yolo11n+dat[groups=1,stride=2]@backbone"),
        ("yolov8[num_classes=3]+dat[stride=2]", "yolov8n[num_classes=3]+dat[stride=2]"),
        (
            "block:dat[table_size=(4, 6),position=table]",
            "block:dat[position=table,table_size=(4, 6)]",
        ),
    ],
)
def test_names_have_one_canonical_form(typed, canonical):
    assert str(parse_name(typed)) == canonical
    assert str(parse_name(canonical)) == canonical


def test_options_are_python_values_and_words():
    options = parse_name(
        "block:dat[stride=2,offset_range=-1.5,position=table,table_size=(4,6)]"
    ).options
    assert options == {"stride": 2, "offset_range": -1.5, "position": "table", "table_size": (4, 6)}
    assert parse_name("block:dat[position=none]").options == {"position": None}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dta", "no model named 'dta'; did you mean dat"),
        ("convnext_tiny", r"no model named 'convnext_tiny'; did you mean timm:convnext_tiny\?"),
        ("fcos_resnet50_fpn", "did you mean torchvision:fcos_resnet50_fpn"),
        ("block:dta", "no block named 'dta'; did you mean dat"),
        ("yolov8n+nope", "no block named 'nope'; there is: acmix"),
        ("dat[foo=1]", "dat_tiny has no option 'foo'; it takes: img_size"),
        ("dat[img_sze=1]", "did you mean img_size"),
        ("yolov8n+dat[strid=1]", "dat has no option 'strid'; did you mean stride"),
        ("swin+dat", "swin_tiny takes no block; detectors do: yolov8n"),
        ("yolov8n+dat@here", "no placement 'here'; there is: p5, c2f, neck, backbone"),
        ("yolov8n@p5", "'@' places a block"),
        ("block:dat@p5", "a block alone takes no"),
        ("dat[img_size=448", "cannot read"),
        ("dat[448]", "cannot read the options"),
        ("dat[img_size=__import__('os')]", "cannot read the options"),
        ("dat[**x]", "cannot read the options"),
        ("", "cannot read"),
    ],
)
def test_mistakes_say_what_would_work(typed, message):
    with pytest.raises(zoo.ZooError, match=message.replace("+", r"\+").replace("**", r"\*\*")):
        parse_name(typed)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("yolov8n", 32),
        ("yolov8n+dat", 64),
        ("yolov8n+dat[stride=2]", 96),
        ("yolov8n+dat@neck", 64),
        ("yolov8n+dat[stride=two]", 64),
        ("yolov8n+dat[stride=8]@neck", 288),
        ("yolov8n+acmix", 128),
        ("yolov8n+ema@backbone", 32),
        ("dat", 224),
        ("block:dat", 2),
    ],
)
def test_the_smallest_input_works_and_one_below_is_refused(name, smallest):
    named = parse_name(name)
    named.check_input(smallest, smallest)
    with pytest.raises(zoo.ZooError, match=f"at least {smallest}x{smallest}"):
        named.check_input(smallest - 1, smallest)


def test_off_sizes_name_a_near_one_that_works():
    with pytest.raises(zoo.ZooError, match="multiples of 32; got 650x640, try 640"):
        parse_name("yolov8n").check_input(650, 640)


def test_lists_are_shell_patterns():
    assert zoo.list_models("pvt_[tsml]*") == ["pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"]
    assert "dat" in zoo.list_blocks()
    assert "yolov8n+window" not in zoo.list_models()  # it fits few maps
    assert {"yolov8n+dat", "yolo11x+msca"} <= set(zoo.list_models("yolo*+*"))


def test_the_options_of_a_block_follow_the_level_unless_the_name_says_otherwise():
    named = parse_name("yolov8n+dat[groups=1]@neck")
    assert [named.options_at(level)["stride"] for level in named.levels] == [4, 2, 1]
    assert all(named.options_at(level)["groups"] == 1 for level in named.levels)
    assert parse_name("yolov8n+dat[stride=2]@neck").options_at(3) == {"stride": 2}
    assert parse_name("yolov8n+ema@neck").options_at(3) == {}


@pytest.mark.parametrize(
    "value", ["word", "timm:resnet18", "two words", "it's", "class", "true", "None", "", "1"]
)
def test_a_text_among_the_options_is_read_as_itself_again(value, tmp_path):
    (tmp_path / "nets.py").write_text("def build(of): ...")
    name = str(parse_name(f"{tmp_path}/nets.py:build[of={value!r}]"))
    assert parse_name(name).options == {"of": value}
    assert name.endswith("[of=word]") == (value == "word")
