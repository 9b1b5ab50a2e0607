"""What a user types for a model, read without importing torch.

    dat_tiny   dat_tiny[num_classes=10]   block:dat[stride=2]   yolov8n+dat[groups=1]@p5
    timm:resnet50   torchvision:resnet50   nets/mine.py:build[width=2]   package.module:factory

A block behind `+` is plugged into a detector at the placement behind `@`; `block:` takes a block
alone. Options stand in brackets, as Python keyword arguments; bare words are strings.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import re
from collections.abc import Mapping
from typing import Any

from zoo.registry import ZooError
from zoo.spec import BLOCKS, MODELS, BlockSpec, ModelSpec, check_sides

PLACEMENTS = {
    "p5": "behind SPPF, at 1/32 of the input",
    "c2f": "inside the bottlenecks of the backbone's last stage, at 1/32",
    "neck": "behind the outputs of the neck, at 1/8, 1/16 and 1/32",
    "backbone": "behind the stages of the backbone, at 1/8, 1/16 and 1/32",
}
_PART = r"(?P<{0}>[^\[\]+@:]+)(?:\[(?P<{0}_options>[^\[\]]*)\])?"
_NAME = re.compile(
    rf"(?P<alone>block:)?{_PART.format('base')}(?:\+{_PART.format('block')})?(?:@(?P<placement>\w+))?"
)
_EXTERNAL = re.compile(r"(?P<base>[^\[\]]+:[\w.]+)(?:\[(?P<options>[^\[\]]*)\])?")
_WORDS = {"true": True, "false": False, "none": None}


@dataclasses.dataclass(frozen=True)
class Named:
    """A model or a block that a name stands for, with the options given.

    Args:
        spec: of the model, or of the block where it stands alone.
        options: keyword arguments for its builder.
        block: spec of the block plugged in, if any.
        block_options: keyword arguments for that block.
        placement: where it is plugged in.
    """

    spec: ModelSpec | BlockSpec
    options: Mapping[str, Any]
    block: BlockSpec | None = None
    block_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    placement: str = "p5"

    def __str__(self) -> str:
        """Return the name in its canonical form."""
        alone = "block:" if isinstance(self.spec, BlockSpec) else ""
        text = f"{alone}{self.spec.name}{write_options(self.options)}"
        if self.block is None:
            return text
        placement = "" if self.placement == "p5" else f"@{self.placement}"
        return f"{text}+{self.block.name}{write_options(self.block_options)}{placement}"

    @property
    def family(self) -> str:
        """Family of the model, with the block plugged in; "block" for a block alone."""
        family = self.spec.family if isinstance(self.spec, ModelSpec) else "block"
        return f"{family}+{self.block.name}" if self.block else family

    @property
    def source(self) -> str:
        """Where the architecture comes from."""
        return f"{self.spec.source}; {self.block.source}" if self.block else self.spec.source

    @property
    def takes_blocks(self) -> bool:
        """Whether it is one of ultralytics' detectors, with a block or without."""
        return isinstance(self.spec, ModelSpec) and self.spec.takes_blocks

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        if self.block is None:
            return self.spec.summary
        return f"{self.spec.summary.rstrip('.')}, {self.block.name} {PLACEMENTS[self.placement]}."

    @property
    def minimum(self) -> int:
        """Smallest side of the input in pixels."""
        if self.block is None:
            alone_with_options = isinstance(self.spec, BlockSpec) and self.options
            return 1 if alone_with_options else self.spec.minimum  # options: the block itself tells
        smallest = self.spec.minimum
        for level in self.levels:
            stride = self.options_at(level).get(self.block.level_option, 1)
            cells = (self.block.minimum - 1) * (stride if isinstance(stride, int) else 1) + 1
            smallest = max(smallest, 2**level * cells)
        return smallest

    @property
    def levels(self) -> tuple[int, ...]:
        """Maps that the block stands on; 5 for that of 1/2^5 of the input."""
        return (5,) if self.placement in ("p5", "c2f") else (3, 4, 5)

    def options_at(self, level: int) -> dict[str, Any]:
        """Options of the block on the maps of one level.

        The rule for its size: 8 heads (or groups), which are the blocks' defaults, so an eighth
        of the channels for each, which the widths of detectors always allow; an option that keeps
        large maps affordable, as the stride of deformable attention, is 4 at level 3, 2 at level 4
        and 1 at level 5. What the name says wins.
        """
        named = self.block.level_option if self.block else ""
        return {**({named: 2 ** (5 - level)} if named else {}), **self.block_options}

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input size that cannot work.

        Raises:
            ZooError: says what would.
        """
        multiple = self.spec.multiple if isinstance(self.spec, ModelSpec) else 1
        check_sides(str(self), height, width, self.minimum, multiple)


def parse_name(text: str) -> Named:
    """Read a name as a user types it.

    Raises:
        ZooError: the name, a block, a placement or an option is unknown.
    """
    external = _EXTERNAL.fullmatch(text.strip())
    if external is not None and not text.strip().startswith("block:"):
        from zoo.external import external_spec

        given = parse_options(external["options"], text)
        return _checked(Named(external_spec(external["base"]), given))
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise ZooError(f"cannot read {text!r}; write it like dat, dat[img_size=448] or yolov8n+dat")
    options = parse_options(match["base_options"], text)
    if match["alone"]:
        if match["block"] or match["placement"]:
            raise ZooError(f"{text!r}: a block alone takes no '+' and no '@'")
        return _checked(Named(BLOCKS[match["base"]], options))
    spec = _model(match["base"])
    if match["block"] is None:
        if match["placement"]:
            where = match["placement"]
            raise ZooError(f"{text!r}: '@' places a block; write {spec.name}+BLOCK@{where}")
        return _checked(Named(spec, options))
    if not spec.takes_blocks:
        detectors = ", ".join(n for n, s in MODELS.items() if s.takes_blocks)
        raise ZooError(f"{spec.name} takes no block; detectors do: {detectors}")
    placement = match["placement"] or "p5"
    if placement not in PLACEMENTS:
        raise ZooError(f"no placement {placement!r}; there is: {', '.join(PLACEMENTS)}")
    block_options = parse_options(match["block_options"], text)
    return _checked(Named(spec, options, BLOCKS[match["block"]], block_options, placement))


def _model(name: str) -> ModelSpec:
    if name not in MODELS:
        from zoo import external

        if name.endswith(".py"):
            raise ZooError(f"which function of {name}? write {name}:FACTORY")

        there = [lib for lib in external.LIBRARIES if name in external.names(lib)]
        if there:
            raise ZooError(f"no model named {name!r}; did you mean {there[0]}:{name}?")
    return MODELS[name]


def parse_options(text: str | None, name: str) -> dict[str, Any]:
    """Read `a=1,b=(2, 3),c=word` into a dictionary.

    Raises:
        ZooError: it is not a list of keyword arguments with literal values.
    """
    if not text:
        return {}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("not keyword arguments")
        return {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ZooError(
            f"cannot read the options of {name!r}; write them like [stride=2,version=1]"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    return ast.literal_eval(node)


def write_options(options: Mapping[str, Any]) -> str:
    """Write options in brackets, as `parse_options` reads them; nothing where there are none."""
    written = [f"{name}={_text(value)}" for name, value in sorted(options.items())]
    return f"[{','.join(written)}]" if options else ""


def _text(value: Any) -> str:
    """Write a value so that it is read as itself again; words stay without quotes."""
    if not isinstance(value, str):
        return str(value)
    word = value.isidentifier() and not keyword.iskeyword(value) and value not in _WORDS
    return value if word else repr(value)


def _checked(named: Named) -> Named:
    named.spec.check_options(named.options)
    if named.block is not None:
        named.block.check_options(named.block_options)
    return named
