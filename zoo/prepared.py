"""Tensors that a module makes once: of sizes, or of its parameters until those have changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Prepared:
    """What a module has made, by name; what is made of parameters, while no gradients are recorded.

    A change is seen by the version that torch counts up whenever a tensor is written to, and by
    where it lies. Writing through `parameter.data`, which torch does not count either, is not seen
    unless `clear` is called or the module trains in between. Copies and files leave all out.
    """

    pretending = False  # while tensors without data stand for real ones, all are kept

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, tuple[Any, ...], Any]] = {}

    def __call__(
        self, name: str, make: Callable[[], Any], *sources: torch.Tensor, key: Hashable = ()
    ) -> Any:
        """Return what `make` gives, or gave for the same sources and key.

        Args:
            name: of the value; the last one of each name is kept.
            make: gives a tensor or a tuple of tensors.
            sources: parameters that it makes it from; none if it depends on the key alone.
            key: whatever else it depends on, such as the size of a map.
        """
        if torch.compiler.is_compiling():
            return make()  # a look at what is kept would be guarded, and compiled again as it grows
        if not self.keeps(*sources):
            if sources:
                self._kept = {name: kept for name, kept in self._kept.items() if not kept[1]}
            return make()
        state = (
            key,
            not sources and torch.is_inference_mode_enabled(),  # no gradient passes what it makes
            *((t.untyped_storage()._cdata, t._version, *kind(t)) for t in sources),
        )
        found = self._kept.get(name)
        if (
            found
            and found[0] == state
            and all(r() is t for r, t in zip(found[1], sources, strict=True))
        ):
            return found[2]
        value = make()
        self._kept[name] = state, tuple(map(weakref.ref, sources)), value
        return value

    @staticmethod
    def keeps(*sources: torch.Tensor) -> bool:
        """Whether what is made of such tensors can be kept: nothing records what happens."""
        learning = bool(sources) and torch.is_grad_enabled()
        if Prepared.pretending:
            return not learning
        return (
            not learning
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
            and _get_current_dispatch_mode() is None
            and torch._C._functorch.peek_interpreter_stack() is None
            and all(map(_plain, sources))
        )

    def clear(self) -> None:
        """Forget everything."""
        self._kept = {}

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()


def kind(tensor: torch.Tensor) -> tuple[torch.dtype, torch.device]:
    """Type and device, as part of a key."""
    return tensor.dtype, tensor.device


def _plain(tensor: torch.Tensor) -> bool:
    """Whether it is a real tensor whose changes torch counts."""
    usual = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return usual and not tensor.is_meta and not tensor.is_inference()
