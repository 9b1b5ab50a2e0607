"""Backbones as feature pyramids, by the conventions of timm.

`create_model(name, features_only=True)` gives a `Features`: it returns the maps of the stages and
tells their channels and reductions as `feature_info`, so that it drops into code for detection
and segmentation that takes timm's backbones.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import nn

from zoo.registry import ZooError


class Pyramid(nn.Module):
    """A network of stages that `Features` can wrap, with what that takes of timm's methods.

    Args:
        feature_info: channels, reduction and module of each stage's output.
    """

    feature_info: list[dict[str, Any]]

    def forward_stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Run a stage on the map of the one before, the first on images."""
        raise NotImplementedError

    def keep_stages(self, count: int) -> None:
        """Drop the classifier and the stages from number `count` on."""
        raise NotImplementedError

    def prune_intermediate_layers(self, indices: Collection[int]) -> None:
        """Drop what the maps of these stages do not need."""
        self.keep_stages(max(indices) + 1)

    def forward_intermediates(
        self, x: torch.Tensor, indices: Collection[int], intermediates_only: bool = True
    ) -> list[torch.Tensor]:
        """Return the maps of these stages."""
        del intermediates_only
        maps = []
        for i in range(max(indices) + 1):
            x = self.forward_stage(i, x)
            if i in indices:
                maps.append(x)
        return maps


class Features(nn.Module):
    """The maps of a backbone's stages, before any norm of its classifier.

    Args:
        model: of timm, or a `Pyramid`; its classifier is dropped.
        out_indices: which stages, in rising order; -1 is the last.
    Shape: (b, 3, h, w) to a list of (b, channels, h / reduction, w / reduction)
    Raises: ZooError if there is no such stage.
    """

    def __init__(self, model: Any, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(model.feature_info)
        given = range(count) if out_indices is None else out_indices
        try:
            indices = [range(count)[operator.index(i)] for i in given]
        except (TypeError, IndexError):
            indices = []
        if not indices or indices != sorted(set(indices)):
            raise ZooError(
                f"out_indices={out_indices!r}: expected numbers of stages in rising order, out of "
                f"0 to {count - 1}"
            )
        self.feature_info = FeatureInfo(model.feature_info, tuple(indices))
        model.prune_intermediate_layers(indices)
        self.model = model
        self.out_indices = indices

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps."""
        return self.model.forward_intermediates(
            x, indices=self.out_indices, intermediates_only=True
        )
