"""PNG: the figure as pixels."""

from __future__ import annotations

from datbench.reports import Content, report
from datbench.reports.figures import image


@report("png", binary=True, samples=True)
def png(content: Content) -> bytes:
    """The figure of a paper, as an image."""
    return image(content, "png")
