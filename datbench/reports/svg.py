"""SVG: the figure as lines, with its text as text."""

from __future__ import annotations

from datbench.reports import Content, report
from datbench.reports.figures import image


@report("svg", samples=True)
def svg(content: Content) -> str:
    """The figure of a paper, to be scaled and edited."""
    return image(content, "svg").decode()
