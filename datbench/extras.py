"""Packages that only some of the tool needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def missing(needs: Sequence[str], extra: str) -> str:
    """Say what must be installed first; "" if all is there.

    Args:
        needs: modules that are imported.
        extra: of datbench, that installs those.
    """
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not installed; pip install 'datbench[{extra}]'"
