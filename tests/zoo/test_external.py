"""Models from outside the zoo: libraries, files, modules, installed packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
import torchvision

import zoo
from zoo import external
from zoo.names import parse_name
from zoo.registry import Registry
from zoo.source import definitions, find_source
from zoo.spec import MODELS, ModelSpec

MINE = """
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    \"\"\"A net.\"\"\"
    def __init__(self, classes=5):
        super().__init__()
        self.head = nn.Linear(WIDTH, classes)

def build(classes=3, *, img_size=64):
    \"\"\"Mine.

    More.
    \"\"\"
    return Net(classes)

def wrong():
    return "no module"

def wants(width):
    return Net(width)

def anything(**options):
    return Net(**options)

ready = Net(7)
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that holds `mine.py`, what it imports, and a package."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("WIDTH = 4")
    package = tmp_path / "parcel"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "nets.py").write_text("def build(): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mine", "beside", "parcel"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_names_in_the_source_are_those_of_the_library(library):
    live = timm.list_models() if library == "timm" else torchvision.models.list_models()
    assert external.names(library) == sorted(live)


@pytest.mark.parametrize(
    ("name", "task", "img_size"),
    [
        ("timm:resnet18", "classify", 224),
        ("timm:vit_base_patch16_384", "classify", 384),
        ("timm:convnext_tiny.fb_in1k", "classify", 224),
        ("torchvision:inception_v3", "classify", 299),
        ("torchvision:fcos_resnet50_fpn", "detect", 640),
    ],
)
def test_libraries_tell_the_task_and_the_size(name, task, img_size):
    named = parse_name(name)
    assert str(named) == name
    assert (named.spec.task, named.spec.img_size) == (task, img_size)
    assert named.source.split()[0] == named.family == name.partition(":")[0]


def test_a_library_is_asked_in_a_child_so_that_no_torch_is_imported():
    code = (
        "import sys; from zoo.names import parse_name; "
        "print(parse_name('timm:vit_base_patch16_384').spec.img_size, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["384", "False"]


def test_a_folder_of_the_same_name_is_not_taken_for_the_library(tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('not me')")
    command = [sys.executable, "-P", "-m", "datbench", "list", "timm:resnet18", "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"img_size": 224' in done.stdout


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm:resnet10t[num_classes=7]", (1, 7)),
        ("timm:vit_tiny_patch16_224[img_size=64]", (1, 1000)),
        ("timm:resnet10t[img_size=64]", (1, 1000)),
        ("torchvision:resnet18[num_classes=7]", (1, 7)),
        ("torchvision:vit_b_16[image_size=64,num_classes=7]", (1, 7)),
        ("torchvision:vit_b_16[img_size=64]", (1, 1000)),
    ],
)
def test_models_of_libraries_are_built_with_their_options(name, shape):
    with torch.no_grad():
        assert zoo.create_model(name).eval()(torch.zeros(1, 3, 64, 64)).shape == shape


def test_features_of_timm_are_those_of_timm():
    model = zoo.create_model("timm:resnet10t", features_only=True, out_indices=(1, 2))
    assert model.feature_info.reduction() == [4, 8]


def test_a_file_gives_its_functions_classes_and_modules(folder):
    named = parse_name("mine.py:build[classes=2]")
    assert named.spec.options == ("classes", "img_size")
    assert named.spec.summary == "Mine."
    assert named.source.startswith(f"{folder / 'mine.py'}, sha256 ")
    assert parse_name("mine.py:Net").spec.options == ("classes",)
    assert parse_name("mine.py:anything").spec.options is None
    for name, classes in (
        ("mine.py:build[classes=2]", 2),
        (f"{folder}/mine.py:Net", 5),
        ("mine:build", 3),
        ("mine.py:ready", 7),
        ("mine.py:anything[classes=9]", 9),
    ):
        assert zoo.create_model(name).head.out_features == classes


OPAQUE = """
from torch import nn
from beside import build_elsewhere

class Parent(nn.Module):
    def __init__(self, img_size=7):
        super().__init__()
        self.side = img_size

class Child(Parent): ...

class Plain(nn.Identity): ...

def passes_on(**options):
    return nn.Linear(2, 2, **options)

short = lambda img_size=7: Parent(img_size)

if WIDE := True:
    def branch(img_size=7, more=1): return Parent(img_size)
else:
    def branch(): ...
"""


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param("opaque.py:Parent", (20, 30), id="class"),
        pytest.param("opaque.py:Child", (20, 30), id="inherited constructor"),
        pytest.param("opaque.py:short", (20, 30), id="lambda"),
        pytest.param("opaque.py:branch[more=2]", (20, 30), id="defined in a branch"),
        pytest.param("opaque.py:Child[img_size=5]", 5, id="size of the user's own"),
        pytest.param("opaque.py:Plain", None, id="constructor that takes anything"),
        pytest.param("opaque.py:passes_on", None, id="function that passes options on"),
        pytest.param("opaque.py:build_elsewhere", None, id="imported"),
        pytest.param("opaque:build_elsewhere", None, id="re-exported by a module"),
    ],
)
def test_the_size_is_told_to_those_alone_that_ask_for_it(folder, name, side):
    (folder / "opaque.py").write_text(OPAQUE)
    elsewhere = "from torch import nn\ndef build_elsewhere(width=1): return nn.Linear(1, width)\n"
    (folder / "beside.py").write_text(elsewhere)
    model = zoo.create_model(name, input_size=(20, 30))
    assert getattr(model, "side", None) == side


def test_a_ready_network_is_copied_and_takes_no_options(folder):
    first, second = zoo.create_model("mine.py:ready"), zoo.create_model("mine.py:ready")
    torch.nn.init.zeros_(first.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)
    with pytest.raises(zoo.ZooError, match=r"mine.py:ready\(\): got an unexpected keyword"):
        zoo.create_model("mine.py:ready[width=9]")


def test_a_file_of_a_package_says_how_to_name_it(folder):
    (folder / "part.py").write_text("from .beside import WIDTH\ndef build(): ...\n")
    with pytest.raises(zoo.ZooError, match="name it as part of its package, part:build"):
        zoo.create_model("part.py:build")


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"# coding: latin-1\n# \xe9\n"])
def test_any_declared_coding_is_read(folder, head):
    (folder / "mine.py").write_bytes(head + MINE.encode())
    assert parse_name("mine.py:build").spec.summary == "Mine."


def test_a_changed_file_is_another_source(folder):
    before = parse_name("mine.py:build").source
    (folder / "mine.py").write_text(MINE.replace("WIDTH, classes", "WIDTH, 2 * classes"))
    assert parse_name("mine.py:build").source != before
    assert zoo.create_model("mine.py:build").head.out_features == 6


def test_a_module_is_found_without_importing_its_package(folder):
    assert parse_name("parcel.nets:build").spec.options == ()
    assert find_source("parcel.nets") == folder / "parcel" / "nets.py"
    assert find_source("parcel.nets.deeper") is None
    assert find_source("no_such_parcel.nets") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5", "no model named 'resnet5' in timm; did you mean resnet"),
        ("timm:resnet18.nope", "in timm; there is: resnet18.a1_in1k"),
        ("torchvision:resnt50", "in torchvision; did you mean resnet50"),
        ("timm:qqqqqqqq", "`datbench list 'timm:\\*'` shows them all"),
        ("mine.py:biuld", "no 'biuld' in mine.py; did you mean build"),
        ("mine.py:zzzz", "it defines: nn, WIDTH, Net, build"),
        ("gone.py:build", "no file gone.py"),
        ("mine.py", "which function of mine.py"),
        ("gone.sub:build", "no module gone.sub"),
        ("mine.py:build[clases=1]", "has no option 'clases'; did you mean classes"),
        ("a b:c", "one of timm:NAME, torchvision:NAME"),
        ("beside.py:zzzz", "no 'zzzz' in beside.py"),
    ],
)
def test_mistakes_are_found_before_anything_is_imported(folder, name, message):
    with pytest.raises(zoo.ZooError, match=message):
        parse_name(name)
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:wrong", "returned str; expected a torch.nn.Module"),
        ("mine.py:wants", r"mine.py:wants\(width\): missing a required argument: 'width'"),
        ("mine.py:number", "is of type int; expected a function or a class"),
        ("timm:resnet10t[foo=1]", "cannot be built: .*unexpected keyword argument 'foo'"),
        ("torchvision:resnet18[foo=1]", "cannot be built"),
    ],
)
def test_what_cannot_be_built_says_so(folder, name, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_model(name)


def test_a_file_with_a_syntax_error_is_refused(folder):
    (folder / "mine.py").write_text("def (")
    with pytest.raises(zoo.ZooError, match="is not Python"):
        parse_name("mine.py:build")


def test_definitions_are_seen_in_branches_and_imports():
    import ast

    text = "import a.b\nfrom c import d as e\nif 1:\n    x, y = 1, 2\nelse:\n    def f(): ...\n"
    assert definitions(ast.parse(text).body).keys() == {"a", "e", "x", "y", "f"}
    twice = definitions(ast.parse("def f(): ...\ndef f(a=1): ...\n").body)
    assert not isinstance(twice["f"], ast.FunctionDef)  # which one holds is left open


PLUGIN = """
import zoo

@zoo.model("plugged", aliases=("plug",), img_size=96, params=5)
def plugged(*, width=1):
    \'\'\'From a package.\'\'\'

def bare(*, depth=1):
    \'\'\'Without facts.\'\'\'

made = lambda: None
"""


GREEDY = """
@zoo.model("greedy", aliases=("pvt",))
def greedy(): ...
"""


def installed(folder, entry_points: str, text: str = PLUGIN) -> None:
    """Lay out a package as installing it does."""
    (folder / "plugin_nets.py").write_text(text)
    info = folder / "plugin_nets-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-nets\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[datbench.models]\n{entry_points}\n")


def models() -> Registry[ModelSpec]:
    return Registry("model", "zoo.models", "model", ModelSpec, group="datbench.models")


@pytest.mark.parametrize(
    ("entry", "name", "facts"),
    [
        ("all = plugin_nets", "plugged", ("plugged", 96, 5, ("width",), "From a package.")),
        ("x = plugin_nets:plugged", "plug", ("plugged", 96, 5, ("width",), "From a package.")),
        ("mine = plugin_nets:bare", "mine", ("mine", 224, None, ("depth",), "Without facts.")),
        ("made = plugin_nets:made", "made", ("made", 224, None, None, "")),
    ],
)
def test_an_installed_package_adds_models(tmp_path, monkeypatch, entry, name, facts):
    installed(tmp_path, entry)
    monkeypatch.syspath_prepend(tmp_path)
    for kept in ("_specs", "_aliases"):  # importing the package adds to the zoo's own registry
        monkeypatch.setattr(MODELS, kept, dict(getattr(MODELS, kept)))
    spec = models()[name]
    assert (spec.name, spec.img_size, spec.params, spec.options, spec.summary) == facts
    assert (spec.family, spec.source) == ("plugin-nets", "plugin-nets 1.2")
    assert "plugin_nets" not in sys.modules
    assert spec.load().__name__ in ("plugged", "bare", "<lambda>")
    sys.modules.pop("plugin_nets")


def test_a_package_that_is_imported_already_is_added_once(tmp_path, monkeypatch):
    registry = models()
    spec = registry._spec(name="plugged", module="plugin_nets", attribute="plugged", entry=print)
    registry._add(spec)
    installed(tmp_path, "all = plugin_nets")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry["plugged"].img_size == 96


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("dat_tiny = plugin_nets:bare", "'dat_tiny' of plugin_nets is already"),
        ("swin = plugin_nets:bare", "the name 'swin' is taken by 'swin_tiny'"),
        ("y = plugin_nets:greedy", "the name 'pvt' is taken by 'pvt_small'"),
        ("x = plugin_nets:gone", "plugin_nets.py has no gone"),
        ("x = no_such_module", "there is no module no_such_module"),
    ],
)
def test_a_broken_package_is_left_out_with_a_warning(tmp_path, monkeypatch, entry, reason):
    installed(tmp_path, entry, PLUGIN + GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=f"of plugin-nets left out: .*{reason}"):
        assert "dat_tiny" in models()
