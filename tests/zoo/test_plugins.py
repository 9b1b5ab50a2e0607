"""A user's own block: from a file, and from an installed package."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import zoo
from zoo.names import parse_name
from zoo.registry import Registry
from zoo.spec import BLOCKS, MODELS, BlockSpec

MINE = '''
"""Imports torch only when it is built."""
import zoo
from torch import nn

@zoo.block("{name}", minimum=2)
class Mine(nn.Module):
    """A gate of mine."""

    def __init__(self, dim, *, reduction=4):
        super().__init__()
        inner = dim // reduction
        self.gate = nn.Sequential(nn.Conv2d(dim, inner, 1), nn.Conv2d(inner, dim, 1))

    def forward(self, x):
        return x * self.gate(x).sigmoid()
'''


pytestmark = pytest.mark.usefixtures("zoo_as_it_was")


def write(folder, name="mine", stem="my_block", text=MINE):
    file = folder / f"{stem}.py"
    file.write_text(text.replace("{name}", name))
    return file


def test_a_block_of_a_file_is_known_before_it_is_imported(tmp_path):
    file = write(tmp_path, name="gate_a", stem="plugin_a")
    assert zoo.load_plugin(file) == ["gate_a"]
    assert "plugin_a" not in sys.modules
    spec = BLOCKS["gate_a"]
    assert (spec.options, spec.minimum, spec.summary) == (("reduction",), 2, "A gate of mine.")
    assert spec.source.startswith(f"{file}, sha256 ")
    with pytest.raises(zoo.ZooError, match="has no option 'reductio'; did you mean reduction"):
        parse_name("block:gate_a[reductio=2]")


def test_it_is_built_alone_and_plugged_into_a_detector(tmp_path):
    zoo.load_plugin(write(tmp_path, name="gate_b", stem="plugin_b"))
    assert zoo.create_block("gate_b", channels=8).gate[0].out_channels == 2
    for placement in ("p5", "c2f", "neck", "backbone"):
        model = zoo.create_model(f"yolov8n+gate_b[reduction=2]@{placement}").eval()
        inside = [m for m in model.modules() if type(m).__name__ == "Mine"]
        assert len(inside) == {"p5": 1, "c2f": 1}.get(placement, 3)
        assert model(torch.rand(1, 3, 64, 96))[0].isfinite().all()
    zoo.load_plugin(tmp_path / "plugin_b.py")  # twice is once


def test_a_file_that_changed_and_one_of_the_same_name_take_its_place(tmp_path):
    for folder, reduction in (("a", "4"), ("a", "2"), ("b", "1")):
        (tmp_path / folder).mkdir(exist_ok=True)
        text = MINE.replace("reduction=4", f"reduction={reduction}")
        file = write(tmp_path / folder, name="gate_j", stem="plugin_j", text=text)
        for _ in range(2):
            zoo.load_plugin(file)
            block = zoo.create_block("gate_j", channels=8)
            assert block.gate[0].out_channels == 8 // int(reduction)
        assert isinstance(block, BLOCKS["gate_j"].load())


def test_what_is_saved_loads_where_the_file_is_loaded(tmp_path):
    file = write(tmp_path, name="gate_c", stem="plugin_c")
    zoo.load_plugin(file)
    yolo = zoo.yolo("yolov8n+gate_c")
    yolo.save(tmp_path / "saved.pt")
    code = (
        f"import zoo, ultralytics; zoo.load_plugin({str(file)!r});"
        "print(type(ultralytics.YOLO('saved.pt').model.model[10].block))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "<class 'plugin_c.Mine'>"


@pytest.mark.parametrize(
    ("stem", "text", "message"),
    [
        ("my-block", MINE, "it cannot be imported; name it like my_block.py"),
        ("random", MINE, "is imported as random; rename the file"),
        ("plugin_d", "x = 1", r'has no @zoo.block\("name"\)'),
        ("plugin_e", "def (", "invalid syntax"),
        ("plugin_f", MINE.replace("minimum=2", "minimum=f()"), "needs a name and literal facts"),
        ("plugin_g", MINE.replace("minimum=2", "nonsense=2"), "nonsense"),
        ("plugin_h", MINE.replace("{name}", "dat"), "'dat' of plugin_h is already registered by"),
        ("__main__", MINE, "it cannot be imported; name it like my_block.py"),
        ("plugin_k", MINE.replace("{name}", "x@y"), "names have letters, digits, _ - and"),
        ("plugin_l", MINE.replace('"{name}"', "3"), "block 3 of plugin_l: names have"),
        ("plugin_m", MINE + MINE.replace("{name}", "dat"), "'dat' of plugin_m is already"),
        ("plugin_i", MINE.replace("{name}", "hab"), "the name 'hab' is taken by 'hat'"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused(tmp_path, stem, text, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load_plugin(write(tmp_path, stem=stem, text=text))
    assert "mine" not in BLOCKS
    assert str(tmp_path) not in sys.path


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"nope.py: there is no such file"):
        zoo.load_plugin(tmp_path / "nope.py")


def test_an_installed_package_adds_blocks(tmp_path, monkeypatch):
    write(tmp_path, name="packed", stem="plugin_blocks")
    info = tmp_path / "plugin_blocks-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-blocks\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[datbench.blocks]\nall = plugin_blocks\n")
    monkeypatch.syspath_prepend(tmp_path)
    blocks = Registry(
        "block", "zoo.blocks", "block", BlockSpec, group=BLOCKS._group, leading=BLOCKS.leading
    )
    spec = blocks["packed"]
    assert (spec.source, spec.options) == ("plugin-blocks 2.0", ("reduction",))
    assert "plugin_blocks" not in sys.modules
    assert spec.load()(8, reduction=2).gate[0].out_channels == 4


def test_a_name_that_is_gone_from_a_file_is_forgotten(tmp_path):
    zoo.load_plugin(write(tmp_path, name="gate_k", stem="plugin_n"))
    zoo.load_plugin(write(tmp_path, name="gate_l", stem="plugin_n"))
    assert ("gate_k" in BLOCKS, "gate_l" in BLOCKS) == (False, True)


def test_a_folder_that_was_on_the_path_or_is_still_needed_stays(tmp_path, monkeypatch):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    monkeypatch.syspath_prepend(tmp_path / "a")
    zoo.load_plugin(write(tmp_path / "a", name="gate_m", stem="plugin_o"))
    zoo.load_plugin(write(tmp_path / "b", name="gate_n", stem="plugin_p"))
    zoo.load_plugin(write(tmp_path / "b", name="gate_o", stem="plugin_q"))
    (tmp_path / "a" / "plugin_o.py").unlink()
    zoo.load_plugin(write(tmp_path / "c", name="gate_m", stem="plugin_o"))
    (tmp_path / "b" / "plugin_p.py").unlink()
    zoo.load_plugin(write(tmp_path / "c", name="gate_n", stem="plugin_p"))
    assert {str(tmp_path / folder) for folder in ("a", "b", "c")} <= set(sys.path)
    assert zoo.create_block("gate_o", channels=8)


def test_what_is_known_of_a_block_stays_when_it_is_imported(tmp_path):
    zoo.load_plugin(write(tmp_path, name="gate_p", stem="plugin_r"))
    before = BLOCKS["gate_p"]
    zoo.create_block("gate_p", channels=8)
    assert BLOCKS["gate_p"] == before
    assert before.source


NET = '''
import zoo
from torch import nn

@zoo.model("my_net", task="detect")
def my_net(*, width=4):
    """A net of mine."""
    return nn.Conv2d(3, width, 1)
'''


def test_a_model_of_a_file_is_known_too_and_takes_no_block(tmp_path):
    zoo.load_plugin(write(tmp_path, stem="plugin_s", text=NET))
    assert zoo.create_model("my_net[width=2]").out_channels == 2
    assert MODELS["my_net"].family == "plugin_s"
    assert zoo.list_models("my_net*") == ["my_net"]
    with pytest.raises(zoo.ZooError, match="my_net takes no block; detectors do: yolov8n"):
        parse_name("my_net+dat")
    with pytest.raises(zoo.ZooError, match="my_net is not a detector of ultralytics"):
        zoo.detector_yaml("my_net")


def test_the_yaml_of_a_users_block_says_what_it_needs(tmp_path):
    file = write(tmp_path, name="gate_q", stem="plugin_t")
    zoo.load_plugin(file)
    text = zoo.detector_yaml("yolov8n+gate_q")
    assert f"# import zoo and zoo.load_plugin(...) for {file}, sha256" in text
