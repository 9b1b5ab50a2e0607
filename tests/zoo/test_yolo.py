"""A block plugged into an ultralytics detector."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.models.yolo import ZooBlock, config, with_block


def test_the_block_stands_behind_sppf_and_feeds_both_readers():
    layers = with_block(config("yolov8n"), "dat", {}, "p5")
    plain = config("yolov8n")
    assert layers["backbone"][9][2] == "SPPF"
    assert layers["backbone"][10] == [-1, 1, "ZooBlock", ["dat", 256, {}]]
    head, plain_head = layers["head"], plain["head"]
    assert [layer[2:] for layer in head] == [layer[2:] for layer in plain_head]
    assert head[10][0] == [-1, 10]  # the P5 concat reads the block, not SPPF
    assert head[1][0] == [-1, 6]  # what lies before stays
    assert head[-1][0] == [16, 19, 22]
    assert plain["backbone"] == config("yolov8n")["backbone"]


def test_an_identity_block_leaves_the_detector_as_it_was(fill, noise):
    plain = fill(zoo.create_model("yolov8n"))
    plugged = zoo.create_model("yolov8n+dat").eval()
    behind = {f"model.{i}.": f"model.{i + 1}." for i in range(10, 23)}
    state = {}
    for key, value in plain.state_dict().items():
        layer = ".".join(key.split(".")[:2]) + "."
        state[key.replace(layer, behind.get(layer, layer), 1)] = value
    missing, unexpected = plugged.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(key.startswith("model.10.block.") for key in missing)
    plugged.model[10].block = torch.nn.Identity()
    x = noise("image", 1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(plain(x)[0], plugged(x)[0])


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
