"""Models from outside the zoo, by where they come from.

    timm:convnext_tiny   torchvision:resnet50   nets/mine.py:build   package.module:factory

A name is checked without importing anything: timm's and torchvision's are read from their source,
a user's function is looked up in the text of its file. What only the library can tell, the
size of the input, is asked in a child process, so that this one stays without torch.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.registry import ZooError, near
from zoo.source import Definition, definitions, find_source, options_of_source
from zoo.spec import ModelSpec

LIBRARIES = ("timm", "torchvision")
FORMS = "timm:NAME, torchvision:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY"
_MARKED = re.compile(r'@register_model(?:\((?:name="(\w+)")?\))?.*?\ndef (\w+)', re.DOTALL)


def external_spec(name: str) -> ModelSpec:
    """Tell what is known of a name with a colon in it.

    Raises:
        ZooError: there is no such library, name, file or function.
    """
    where, _, what = name.rpartition(":")
    if where in LIBRARIES:
        return _library_spec(where, what)
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ZooError(f"{name}: no file {where}")
        return _source_spec(name, path, what, functools.partial(load_file, path.resolve()))
    if not all(part.isidentifier() for part in where.split(".")):
        raise ZooError(f"cannot read {name!r}; a model from elsewhere is one of {FORMS}")
    _see_working_folder()
    found = find_source(where)
    if found is None:
        raise ZooError(f"{name}: no module {where}; a model from elsewhere is one of {FORMS}")
    return _source_spec(name, found, what, functools.partial(importlib.import_module, where))


def names(library: str) -> list[str]:
    """Names of the models of timm or torchvision."""
    return sorted(families(library))


@functools.cache
def families(library: str) -> dict[str, str]:
    """Names of the models of timm or torchvision, from its source, and the files they are in."""
    found = importlib.util.find_spec(library)
    if found is None or not found.submodule_search_locations:
        raise ZooError(f"{library} is not installed; pip install {library}")
    files = {}
    for path in sorted((Path(found.submodule_search_locations[0]) / "models").rglob("*.py")):
        for given, function in _MARKED.findall(path.read_text(encoding="utf-8")):
            files[given or function] = path.stem
    return files


def load_file(path: Path) -> Any:
    """Import a file under a name of its own; its folder is searched for what it imports."""
    where = hashlib.sha256(bytes(path)).hexdigest()[:12]
    module_name = f"zoo_file_{path.stem}_{where}_{_digest(path)}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ZooError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _library_spec(library: str, name: str) -> ModelSpec:
    known = names(library)
    if name.partition(".")[0] not in known:
        hint = near(name, known) or f"; `datbench list '{library}:*'` shows them all"
        raise ZooError(f"no model named {name!r} in {library}{hint}")
    facts = _facts(library)
    if name not in facts:
        base = name.partition(".")[0]
        tags = ", ".join(n for n in facts if n.startswith(f"{base}.")) or "none with a tag"
        raise ZooError(f"no model named {name!r} in {library}; there is: {tags}")
    task, img_size = facts[name]
    return ModelSpec(
        name=f"{library}:{name}",
        module=library,
        attribute=name,
        options=None,
        summary=f"{name} of {library}.",
        entry=functools.partial(_from_library, library, name, img_size),
        family=library,
        source=f"{library} {importlib.metadata.version(library)}",
        task=task,
        img_size=img_size,
        multiple=1,
        minimum=1,
        channels=None,
    )


@functools.cache
def _facts(library: str) -> dict[str, tuple[str, int]]:
    if "torch" in sys.modules:
        return describe(library)
    code = "import json, sys, zoo.external; print(json.dumps(zoo.external.describe(sys.argv[1])))"
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, library]
    searched = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # as this process does
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **searched}
    )
    if done.returncode:
        reason = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise ZooError(f"{library} cannot be imported: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def describe(library: str) -> dict[str, tuple[str, int]]:
    """Ask a library for the task and the input side of each of its models; imports it."""
    if library == "timm":
        import timm

        found = {}
        for name in [*timm.list_models(), *timm.list_pretrained()]:
            config = timm.get_pretrained_cfg(name)
            found[name] = ("classify", config.input_size[-1] if config else 224)
        return found
    from torchvision.models import get_model_builder, get_model_weights, list_models

    found = {}
    for name in list_models():
        transforms = get_model_weights(name).DEFAULT.transforms()
        size = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None)
        found[name] = ("classify", size[0] if size else 224)
        if get_model_builder(name).__module__.startswith("torchvision.models.detection"):
            found[name] = ("detect", 640)
    return found


def _from_library(
    library: str,
    name: str,
    native: int,
    *,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> Any:
    """Build a model with random weights; a size other than its own is told to those that ask."""
    make: Callable[..., Any]
    if library == "timm":
        import timm

        make, size_option = functools.partial(timm.create_model, name), "img_size"
    else:
        from torchvision.models import get_model, get_model_builder

        make, size_option = functools.partial(get_model, name), "image_size"
        if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
            options.setdefault("weights_backbone", None)  # its default would be downloaded
    try:
        if img_size not in (None, native, (native, native)):
            try:
                return make(**options, **{size_option: img_size})
            except TypeError as error:  # networks without tables have no such argument
                if size_option not in str(error):
                    raise
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ZooError(f"{library}:{name} cannot be built: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSpec(ModelSpec):
    """A user's model.

    Args:
        importing: imports the file or module that holds it.
    """

    importing: Callable[[], Any] = dataclasses.field(compare=False, repr=False)

    def load(self) -> Any:
        """Import it and return its builder, under the signature that the user gave it.

        Raises:
            ZooError: it is no function, class or module; the builder, that it makes no module.
        """
        from torch import nn

        _see_working_folder()
        try:
            found = getattr(self.importing(), self.attribute, None)
        except ImportError as error:
            if "relative import" not in str(error):
                raise
            module = self.name.rpartition(".py:")[0].replace("/", ".")
            raise ZooError(
                f"{self.name}: {error}; name it as part of its package, {module}:{self.attribute}"
            ) from error
        if found is None:
            raise ZooError(f"{self.name}: importing it defines no {self.attribute!r}")
        if isinstance(found, nn.Module):
            found = _copies_of(found)
        if not callable(found):
            kind = type(found).__name__
            raise ZooError(f"{self.name} is of type {kind}; expected a function or a class")

        @functools.wraps(found)
        def build(**options: Any) -> Any:
            signature = inspect.signature(found).replace(return_annotation=inspect.Signature.empty)
            try:
                signature.bind(**options)
            except TypeError as error:
                raise ZooError(
                    f"{self.name}{signature}: {error}; give arguments as {self.name}[option=value]"
                ) from error
            made = found(**options)
            if not isinstance(made, nn.Module):
                raise ZooError(
                    f"{self.name} returned {type(made).__name__}; expected a torch.nn.Module"
                )
            return made

        return build


def _source_spec(name: str, path: Path, factory: str, importing: Callable[[], Any]) -> SourceSpec:
    """Look a factory up in the text of a file."""
    try:
        known = definitions(ast.parse(path.read_bytes()).body)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ZooError(f"{name}: {path} is not Python: {error}") from error
    if factory not in known and "*" not in known and "__getattr__" not in known:
        hint = near(factory, known) or f"; it defines: {', '.join(known) or 'nothing'}"
        raise ZooError(f"{name}: no {factory!r} in {path}{hint}")
    node = known.get(factory)
    options = summary = None
    if isinstance(node, Definition):
        options = options_of_source(node)
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
    return SourceSpec(
        name=name,
        module="zoo.external",
        attribute=factory,
        options=options,
        summary=summary or f"{factory} of {path.name}.",
        importing=importing,
        family=path.stem,
        source=f"{path.resolve()}, sha256 {_digest(path)}",
        multiple=1,
        minimum=1,
        channels=None,
    )


def _copies_of(network: Any) -> Callable[[], Any]:
    def copied() -> Any:
        return copy.deepcopy(network)

    return copied


def _see_working_folder() -> None:
    """Let `package.module` be found where the command runs, as `python -m` does."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
