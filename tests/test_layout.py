"""The arrows of the design, and a README that tells the truth."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import rich_click as click
import torch

import zoo
from datbench.catalogue import models_of
from datbench.cli import cli
from zoo.names import parse_name

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", sources("zoo"), ids=str)
def test_the_zoo_never_imports_datbench(path):
    assert "datbench" not in imported(path)


def test_only_one_file_of_datbench_speaks_of_cuda():
    def speaks(path: Path) -> bool:
        calls = re.findall(r"torch\.cuda|backends\.cuda\b|\.synchronize\(", path.read_text())
        return bool(calls)

    assert [path.name for path in sources("datbench") if speaks(path)] == ["device.py"]


def commands() -> list[str]:
    """Lines of code blocks that call datbench, in the README and in what it says of sweeps."""
    docs = [
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("sweeps.md", "cluster.md")
    ]
    texts = [text.replace("\\\n", " ") for text in (README, *docs)]
    blocks = [b for text in texts for b in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S)]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\||>", line)]
    return [part for part in parts if part.startswith("datbench ")]


def expanded(word: str) -> list[str]:
    """Expand braces as the shell does: a{b,c} to ab ac."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
    if match is None:
        return [word]
    before, inside, after = match.groups()
    return [f"{before}{part}{after}" for part in inside.split(",")]


OWN_BLOCK = re.search(r"```python\n(# my_block.py\n.*?)```", README, re.S)[1]


@pytest.fixture
def own_models(tmp_path, monkeypatch, zoo_as_it_was):
    """The files of which the README speaks, in the working folder."""
    for file, text in (
        ("nets/mine.py", "def build(width=1): ..."),
        ("package/module.py", "class Net: ..."),
        ("my_block.py", OWN_BLOCK),
    ):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_can_be_parsed(command):
    words = [w for word in shlex.split(command, comments=True)[1:] for w in expanded(word)]
    context = click.Context(cli, info_name="datbench")
    _, found, rest = cli.resolve_command(context, words)
    made = found.make_context(found.name, list(rest), parent=context, resilient_parsing=False)
    for plugin in made.params.get("plugins") or ():
        zoo.load_plugin(plugin)
    for pattern in made.params.get("models") or ():
        for model in models_of(pattern):
            parse_name(model)


def test_the_readme_names_every_command_and_the_two_that_do_everything():
    for name in cli.commands:
        assert f"datbench {name}" in README
    assert "pip install . && datbench compare --models dat swin" in README
    assert "pip install tox && tox" in README


def test_the_readme_names_every_option_of_a_comparison():
    options = {name for p in cli.commands["compare"].params for name in p.opts}
    missing = [name for name in options if name.startswith("--") and f"`{name}" not in README]
    assert missing == []


@pytest.mark.usefixtures("own_models")
def test_the_block_of_the_readme_works():
    zoo.load_plugin("my_block.py")
    block = zoo.create_block("mine", channels=8, kernel=5)
    assert block(torch.zeros(1, 8, 5, 7)).shape == (1, 8, 5, 7)
