"""From a class of an official code base to our module with the same state-dict keys.

A file that implements one registers a function under the official class's name. The function
takes the official constructor's keyword arguments; those that it does not list are refused.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.registry import ZooError

if TYPE_CHECKING:
    from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., Any])
_BUILDERS: dict[str, Callable[..., Any]] = {}


def reference(official_class: str) -> Callable[[Builder], Builder]:
    """Decorate a function that builds our equivalent of `official_class`."""

    def add(builder: Builder) -> Builder:
        if official_class in _BUILDERS:
            raise ValueError(f"{official_class!r} has two builders")
        _BUILDERS[official_class] = builder
        return builder

    return add


def build_reference(case: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build our equivalent of an official class from its name and constructor arguments.

    The module has the official state-dict keys and shapes. Call it as `module(x)`, or as
    `module(x, (h, w))` where the official layout is tokens (b, h * w, c).

    Args:
        case: `class_` is the official class, e.g. "DAttentionBaseline (v1)"; `kwargs` are its
            constructor arguments. Other entries (`hw`, `input_layout`, ...) may be there.
        options: arguments of ours beside the official ones.
    Raises:
        ZooError: (a ValueError) the class or one of its arguments is not supported.
    """
    for package in ("zoo.blocks", "zoo.models"):
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{found.name}")
    name = case.get("class_")
    if name not in _BUILDERS:
        raise ZooError(f"no equivalent of class {name!r}; there is one of: {', '.join(_BUILDERS)}")
    builder = _BUILDERS[name]
    arguments = {**(case.get("kwargs") or {}), **options}
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(builder).parameters)
        raise ZooError(f"{name}: {error}; supported arguments: {takes}") from error
    return builder(**arguments)
