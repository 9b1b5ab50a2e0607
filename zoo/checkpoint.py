"""Weights from files: official layouts, resized tables, and no code from pickles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zoo.registry import ZooError

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    own = model.state_dict()
    given = _read_state(os.fspath(path))
    given = {k: v for k, v in given.items() if k.rpartition(".")[2] not in DERIVED}
    for key in given.keys() & own.keys():
        owner, _, entry = key.rpartition(".")
        fit: Any = getattr(model.get_submodule(owner), "fit_entry", None)
        if fit is not None and given[key].shape != own[key].shape:
            given[key] = fit(entry, given[key])
    expected = {k for k in own if k.rpartition(".")[2] not in DERIVED}
    faults = [
        *(f"{k} is missing" for k in sorted(expected - given.keys())),
        *(f"{k} is not in the model" for k in sorted(given.keys() - expected)),
        *(
            f"{k} is {tuple(given[k].shape)}, expected {tuple(own[k].shape)}"
            for k in sorted(expected & given.keys())
            if given[k].shape != own[k].shape
        ),
    ]
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ZooError(f"checkpoint {path} does not fit the model: {'; '.join(faults[:10])}{more}")
    model.load_state_dict({**own, **given})


def _read_state(path: str) -> dict[str, Tensor]:
    import pickle

    import torch
    from safetensors.torch import load_file

    if not os.path.isfile(path):  # noqa: PTH113 - `path` is a string for safetensors
        raise ZooError(f"checkpoint {path} is not a file")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ZooError(
            f"checkpoint {path} is refused: it holds code or is damaged; save tensors alone, "
            "with torch.save(model.state_dict(), FILE) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything
        reason = f"{type(error).__name__} {error}".partition("\n")[0].partition(". ")[0]
        raise ZooError(f"checkpoint {path} cannot be read: {reason}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise ZooError(f"checkpoint {path} holds no state dict of tensors")
    return content
