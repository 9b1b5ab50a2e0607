"""Weights from files: official layouts, resized tables, and no code from pickles."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from zoo.registry import ZooError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where training code puts the weights in its checkpoint.
LAYOUTS = ("model", "state_dict", "model_state_dict", "module")
# Entries of official checkpoints that follow from the sizes: the model's own are kept.
DERIVED = ("relative_position_index", "attn_mask", "q_grid", "reference")


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights from a safetensors file or a file of `torch.save`, without running its code.

    The weights may stand under "model" or "state_dict", as official checkpoints have them.
    Entries that follow from the sizes are the model's own; a table of positions that was made for
    another size is resized by the module that holds it, see its `fit_entry`.

    Raises:
        ZooError: the file cannot be read, holds code, or its keys or shapes are not the model's.
    """
    own, learned = model.state_dict(), dict(model.named_parameters(remove_duplicate=False))

    def derived(key: str) -> bool:
        return key.rpartition(".")[2] in DERIVED and key not in learned

    given = {k: v for k, v in _read_state(os.fspath(path)).items() if not derived(k)}
    for key in given.keys() & own.keys():
        owner, _, entry = key.rpartition(".")
        fit: Any = getattr(model.get_submodule(owner), "fit_entry", None)
        if fit is not None and given[key].shape != own[key].shape:
            given[key] = fit(entry, given[key])
    expected = {k for k in own if not derived(k)}
    other = {k for k in expected & given.keys() if given[k].shape != own[k].shape}
    faults = [
        *_some((f"{k} is missing" for k in sorted(expected - given.keys())), "missing"),
        *_some((f"{k} is not in the model" for k in sorted(given.keys() - expected)), "not in it"),
        *_some(
            (
                f"{k} is {tuple(given[k].shape)}, expected {tuple(own[k].shape)}"
                for k in sorted(other)
            ),
            "of another shape",
        ),
    ]
    if faults:
        raise ZooError(f"checkpoint {path} does not fit the model: {'; '.join(faults)}")
    model.load_state_dict({**own, **given})


def _some(faults: Iterable[str], kind: str, most: int = 5) -> list[str]:
    """Name the first faults of a kind and count the others."""
    every = list(faults)
    more = [f"{len(every) - most} more are {kind}"] if len(every) > most else []
    return every[:most] + more


def _read_state(path: str) -> dict[str, Tensor]:
    import pickle

    import torch
    from safetensors.torch import load_file

    if not os.path.isfile(path):  # noqa: PTH113 - `path` is a string for safetensors
        raise ZooError(f"checkpoint {path} is not a file")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Training code stores its arguments beside the weights; a namespace runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {named[1]}, which is code" if named else "it holds code or is damaged"
        raise ZooError(
            f"checkpoint {path} is refused: {what}; save tensors alone, "
            "with torch.save(model.state_dict(), FILE) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything
        reason = f"{type(error).__name__} {error}".partition("\n")[0].partition(". ")[0]
        raise ZooError(f"checkpoint {path} cannot be read: {reason}") from error
    for key in LAYOUTS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and torch.is_tensor(v) for k, v in content.items()
    ):
        held = f"a dict of {list(content)}" if isinstance(content, dict) else content
        raise ZooError(
            f"checkpoint {path} holds no state dict of tensors, neither by itself nor under "
            f"{', '.join(LAYOUTS)}; it holds {str(held)[:200]}"
        )
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if content and all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content
