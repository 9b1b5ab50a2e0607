"""Names beside points, each where it covers no point and no other name, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 30  # characters of a name
GAP, RADIUS = 4.5, 2.5  # points between a name and its mark; kept free around a mark
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, low, right and high, in pixels
# Where a name stands around its point, the best first: right, left, above, below, and between.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.6), (-0.8, 0.6), (0.8, -0.6), (-0.8, -0.6))
ALIGNED = {-1: "right", 0: "center", 1: "left"}


def plain(text: str) -> str:
    """Write text on one line, without what no font or file format can take."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short(name: str) -> str:
    """Cut the middle out of a long name."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def write_names(
    axes: Axes, points: Sequence[tuple[float, float, str]], line: Sequence[Point], most: int
) -> int:
    """Write names at (x, y), the first ones first; the layout must be done.

    Args:
        points: that no name may cover.
        line: through points, that no name may cross.
        most: names that are tried.
    Returns:
        How many names were left out.
    """
    import numpy as np

    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    ruler, unit = _ruler(dpi), dpi / 72
    spots = np.asarray(axes.transData.transform([(x, y) for x, y, _ in points]))
    marks = np.concatenate((spots, *_along(axes.transData.transform(line), unit)))
    taken: list[Box] = []
    for (x, y, name), spot in zip(points[:most], spots[:most], strict=True):
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=6)
        size = text.get_window_extent(ruler)
        for right, up in SIDES:
            box = _box(spot, (size.width, size.height), (right, up), GAP * unit)
            if _free(box, axes.get_window_extent(), taken, marks, RADIUS * unit):
                taken.append(box)
                text.set_position((GAP * right, GAP * up))
                sides = {"ha": ALIGNED[_sign(right)], "va": ("center", "bottom", "top")[_sign(up)]}
                text.set(**sides)
                break
        else:
            text.remove()
    return len(points) - len(taken)


def text_width(text: str, dpi: float) -> float:
    """Pixels that a text takes in the usual size."""
    from matplotlib.font_manager import FontProperties

    width, _, _ = _ruler(dpi).get_text_width_height_descent(text, FontProperties(), ismath=False)
    return float(width)


def _ruler(dpi: float) -> Any:
    """Make what measures text without a figure."""
    from matplotlib.backends.backend_agg import RendererAgg

    renderer: Any = RendererAgg
    return renderer(1, 1, dpi)


def _along(corners: Any, step: float) -> Iterator[Any]:
    """Yield points on the way from corner to corner, so close that no name fits between them."""
    import numpy as np

    for start, end in itertools.pairwise(corners):
        count = 2 + int(max(abs(end - start)) / (RADIUS * step))
        yield np.linspace(start, end, count)


def _box(spot: Any, size: Point, side: Point, gap: float) -> Box:
    """Where a name of so many pixels stands on a side of a point."""
    ends = []
    for at, length, way in zip(spot, size, side, strict=True):
        start = at + gap * way + (-length / 2, 0, -length)[_sign(way)]
        ends.append((start, start + length))
    (left, right), (low, high) = ends
    return left, low, right, high


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _free(box: Box, frame: Any, taken: Sequence[Box], spots: Any, radius: float) -> bool:
    """Whether a box lies in the frame, on no point and on no other box."""
    left, low, right, high = box
    if left < frame.x0 or right > frame.x1 or low < frame.y0 or high > frame.y1:
        return False
    if any(left < b[2] and b[0] < right and low < b[3] and b[1] < high for b in taken):
        return False
    x, y = spots[:, 0], spots[:, 1]
    beside = (x < left - radius) | (x > right + radius) | (y < low - radius) | (y > high + radius)
    return bool(beside.all())
