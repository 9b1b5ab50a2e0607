"""The registry reads facts from source, and agrees with what importing gives."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import pytest

from zoo.registry import Registry, Spec, ZooError
from zoo.spec import BLOCKS, MODELS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package out of files: package({"a.py": source}) is a registry over it."""

    def make(files: dict[str, str], **options) -> Registry[Spec]:
        folder = tmp_path / "shelf"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for name, source in files.items():
            (folder / name).write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "shelf", raising=False)
        return Registry("thing", "shelf", "thing", Spec, **options)

    return make


TOY = """\
raise RuntimeError("imported")
@thing("toy", aliases=("t",))
def toy(*, a=1, b=2):
    '''A toy.

    More.
    '''
"""


def test_specs_are_read_without_importing(package):
    registry = package({"a.py": TOY})
    spec = registry["t"]
    assert (spec.name, spec.module, spec.attribute) == ("toy", "shelf.a", "toy")
    assert (spec.options, spec.summary) == (("a", "b"), "A toy.")
    assert list(registry) == ["toy"]
    with pytest.raises(RuntimeError, match="imported"):
        spec.load()


def test_a_name_given_twice_is_refused(package):
    registry = package({"a.py": TOY, "b.py": TOY})
    with pytest.raises(ValueError, match=r"'toy' is registered twice, again in .*b\.py"):
        list(registry)


def test_facts_that_are_no_literals_are_refused(package):
    registry = package({"a.py": '@thing("toy", aliases=make())\ndef toy(): pass\n'})
    with pytest.raises(ValueError, match=r"a.py:1: @thing needs a name and literal facts"):
        list(registry)


def test_a_file_that_cannot_be_read_does_not_leave_half_a_registry(package):
    registry = package({"a.py": TOY, "b.py": "def ("})
    for _ in range(2):
        with pytest.raises(SyntaxError):
            list(registry)


def test_code_outside_the_package_registers_by_decorating(package):
    registry = package({"a.py": TOY}, leading=1)

    @registry.register("mine", aliases=("m",))
    class Mine:
        """My block."""

        def __init__(self, dim, *, heads=2): ...

    assert registry["m"].load() is Mine
    assert registry["mine"].options == ("heads",)
    with pytest.raises(ValueError, match=r"'toy' of .* is already registered by shelf.a"):
        registry.register("toy")(lambda: None)


def test_a_file_is_added_beside_the_package_and_forgotten_again(package, tmp_path):
    registry = package({"a.py": TOY})
    (tmp_path / "own.py").write_text(TOY)
    with pytest.raises(ValueError, match=r"'toy' of own is already registered by shelf.a"):
        registry.add_file(tmp_path / "own.py", "own")
    (tmp_path / "own.py").write_text(TOY.replace("toy", "mine").replace('"t"', '"m"'))
    assert registry.add_file(tmp_path / "own.py", "own") == ["mine"]
    assert registry["m"].module == "own"
    registry.forget("own")
    assert (list(registry), "m" in registry, "t" in registry) == (["toy"], False, True)


def test_a_name_that_is_taken_is_refused_before_the_first_look(package):
    registry = package({"a.py": TOY})
    for name, aliases in (("toy", ()), ("t", ()), ("mine", ("t",))):
        with pytest.raises(ValueError, match=r"already registered|is taken by 'toy'"):
            registry.register(name, aliases=aliases)(lambda: None)
    assert list(registry) == ["toy"]


def test_the_order_is_that_of_the_files_whatever_was_imported_first(package):
    registry = package({"a.py": TOY})
    registry.register("mine")(lambda: None)
    assert list(registry) == ["toy", "mine"]


def test_unknown_options_are_refused_with_a_near_one():
    spec = Spec(name="toy", module="m", attribute="a", options=("stride",))
    with pytest.raises(ZooError, match="toy has no option 'strid'; did you mean stride"):
        spec.check_options({"strid": 1})
    Spec(name="toy", module="m", attribute="a", options=None).check_options({"anything": 1})


@pytest.mark.parametrize("registry", [MODELS, BLOCKS], ids=["models", "blocks"])
def test_reading_and_importing_agree(registry):
    for name, spec in registry.items():
        live = Registry(registry.kind, "zoo.nothing", "x", type(spec), leading=registry.leading)
        live._full = True
        facts = {
            f.name: getattr(spec, f.name)
            for f in dataclasses.fields(spec)
            if f.name not in ("name", "module", "attribute", "options", "summary", "entry")
        }
        live.register(name, **facts)(spec.load())
        assert live[name] == spec
        assert importlib.import_module(spec.module)
