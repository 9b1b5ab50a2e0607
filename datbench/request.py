"""What a run is asked for: options that may have several values, from a command or a plan file.

A plan file is TOML with the names of the command line, underscores for hyphens; see docs/sweeps.md.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from datbench.errors import UserError


def _listed(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Count = Annotated[int, Field(strict=True, ge=1)]
Word = Annotated[str, Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_listed)]
Words = Annotated[tuple[Word, ...], BeforeValidator(_listed)]
Dtype = Literal["float32", "float16", "bfloat16"]
Mode = Literal["inference", "train"]


class Request(BaseModel):
    """What decides what is measured, and how.

    Options with several values span a product: models and runtimes are compared with each other,
    `img_size`, `input`, `dtype`, `mode` and `batch_size` each make comparisons of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["compare", "profile"] = "compare"
    models: Annotated[Words, Field(min_length=1)]
    baseline: Word | None = None
    tier: Literal["quick", "default", "rigorous"] = "default"
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    min_effect: Annotated[float, Field(gt=0, le=50)] = 1.0
    device: Word = "auto"
    img_size: Counts = ()
    input: Words = ()
    dtype: Annotated[tuple[Dtype, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "float32",
    )
    mode: Annotated[tuple[Mode, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "inference",
    )
    batch_size: Annotated[Counts, Field(min_length=1)] = (1,)
    runtime: Words = ()
    image: Word = "photo"
    amp: bool = False
    channels_last: bool = False
    optimizer: Literal["adamw", "sgd"] | None = None
    fuse: bool = False
    scope: Literal["forward", "nms", "end-to-end"] = "forward"
    tf32: bool = False
    cudnn_benchmark: bool = True
    cold_cache: bool = False
    threads: Count | None = None
    seed: Annotated[int, Field(strict=True)] = 0
    checkpoint: Words = ()
    plugin: Words = ()
    executor: Word = "local"
    gpus: Word | None = None
    retries: Annotated[int, Field(strict=True, ge=0)] = 2
    slurm: dict[str, str | int | float | bool] = Field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the plan file of a run folder; what is as it would be anyway is left out."""
        import tomli_w

        said = self.model_dump(exclude_defaults=True)
        text = tomli_w.dumps({name: _plain(value) for name, value in said.items()})
        (folder / PLAN).write_text(f"# {HINT.format(folder)}\n{text}", encoding="utf-8")


PLAN = "plan.toml"
HINT = "datbench run measures this again: datbench run {}/plan.toml"


def read_request(file: Path) -> Request:
    """Read a plan file.

    Raises:
        UserError: it cannot be read, or names the entries that are wrong.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file} is no TOML: {error}") from error
    return make_request(content, f"{file}: ")


def make_request(content: Mapping[str, Any], where: str = "") -> Request:
    """Check everything that can be checked without looking at models.

    Args:
        content: by the names of `Request`.
        where: begins each message.
    Raises:
        UserError: names the entries that are wrong.
    """
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        told = "; ".join(_told(entry) for entry in error.errors(include_url=False))
        raise UserError(f"{where}{told}") from None


def _told(entry: Any) -> str:
    """Put a finding of pydantic's into the words of this tool."""
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Request.model_fields, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"there is no option {name!r}{hint}"
    if entry["type"] == "missing":
        return f"{name} is missing; add it, e.g. {name} = ['dat', 'swin']"
    message = entry["msg"][:1].lower() + entry["msg"][1:]
    return f"{name}: {message}; got {entry['input']!r}"


def _plain(value: Any) -> Any:
    """What TOML can hold; a list of one as its value."""
    if isinstance(value, tuple):
        return list(value) if len(value) != 1 else value[0]
    return value
