"""What is in the zoo, with published figures; nothing is built and torch is not imported."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from datbench.errors import UserError
from zoo import external, list_blocks, list_models
from zoo.names import PLACEMENTS, parse_name
from zoo.spec import MODELS, ModelSpec

if TYPE_CHECKING:
    from rich.console import RenderableType


def names(start: str = "") -> list[str]:
    """Names of all models and of all blocks alone, as far as a name or pattern asks for them.

    Those of a library where `start` begins with it; detectors with a block where it holds a "+".
    """
    library = start.partition(":")[0]
    if library in external.LIBRARIES:
        return [f"{library}:{name}" for name in external.names(library)]
    if "+" in start:
        return list_models("*+*")
    return [*MODELS, *(f"block:{block}" for block in list_blocks())]


def rows(pattern: str = "*") -> list[dict[str, Any]]:
    """Facts of what matches a shell pattern by its name or short name.

    A pattern that starts with the name of a library, e.g. "timm:*", looks through its models.
    """
    if pattern.partition(":")[0] in external.LIBRARIES:
        return [facts(name) for name in fnmatch.filter(names(pattern), pattern)]
    found = map(facts, names(pattern))
    return [r for r in found if fnmatch.filter([r["model"], *r["aliases"].split()], pattern)]


def models_of(pattern: str) -> list[str]:
    """Models, detectors with blocks, and blocks alone under "block:", that match a pattern.

    What has neither * nor ? is the name of one model, of a user's too.

    Raises:
        UserError: nothing matches.
    """
    if not set(pattern) & set("*?"):
        return [pattern]
    blocks = [f"block:{name}" for name in list_blocks(pattern.removeprefix("block:"))]
    found = list_models(pattern)
    if pattern == "*" or pattern.startswith("block:") or not found:
        found += blocks
    if not found:
        raise UserError(f"nothing in the zoo matches {pattern!r}; see `datbench list`")
    return found


def facts(name: str) -> dict[str, Any]:
    """Facts of a model or a block; None where there are none."""
    named = parse_name(name)
    known = dataclasses.asdict(named.spec) if isinstance(named.spec, ModelSpec) else {}
    of_the_plain_model = {} if named.block else known
    figures = ("params", "published_params", "published_macs", "published_top1")
    return {
        "model": name,
        "aliases": "" if named.block else " ".join(named.spec.aliases),
        "family": named.family,
        "img_size": known.get("img_size"),
        **{column: of_the_plain_model.get(column) for column in figures},
        "summary": named.summary,
        "source": named.source,
        "published_source": of_the_plain_model.get("published_source"),
    }


def show(found: Sequence[dict[str, Any]]) -> RenderableType:
    """Lay rows out as a table for people."""
    from rich.console import Group
    from rich.text import Text

    from datbench.reports.cells import rounded, scaled
    from datbench.reports.txt import plain_table

    table = plain_table(expand=True)
    for title in ("model", "short", "input", "params\nM", "GMACs", "top-1\n%", "what it is"):
        text, last = title in ("model", "short", "what it is"), title == "what it is"
        justify: Literal["left", "right"] = "left" if text else "right"
        table.add_column(title, justify=justify, no_wrap=True, ratio=1 if last else None)
    for row in found:
        size = "" if row["img_size"] is None else str(row["img_size"])
        numbers = (scaled(row["params"], 1e6), scaled(row["published_macs"], 1e9))
        top1 = rounded(row["published_top1"])
        table.add_row(row["model"], row["aliases"], size, *numbers, top1, row["summary"])
    notes = (
        "GMACs and top-1 as published; --format csv and json name the sources.",
        "Detectors take any block, at a placement: yolov8n+ema, yolov8n+dat@neck; placements are "
        f"{', '.join(PLACEMENTS)}.",
        f"Elsewhere: {external.FORMS}.",
    )
    return Group(table, "", *map(Text, notes))
