"""The example for continuous integration."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import rich_click as click
import yaml

from datbench.cli import cli
from datbench.gate import DIRECTIONS, GROWTH, Gate

TEXT = (Path(__file__).parents[1] / "docs" / "ci.md").read_text(encoding="utf-8")
JOB = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
STEPS = [step["run"] for step in JOB["jobs"]["compare"]["steps"] if "run" in step]
COMMANDS = [
    line.strip()
    for text in (*STEPS, *re.findall(r"```sh\n(.*?)```", TEXT, re.S))
    for line in text.splitlines()
    if line.strip().startswith("datbench ")
]


def test_the_example_compares_old_and_new_in_one_command():
    assert len(COMMANDS) == 2
    assert "old.py:net new.py:net" in COMMANDS[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_example_can_be_parsed(command):
    words = shlex.split(command)[1:]
    context = click.Context(cli, info_name="datbench")
    _, found, rest = cli.resolve_command(context, words)
    made = found.make_context(found.name, list(rest), parent=context)
    among = (*DIRECTIONS, *GROWTH) if found.name == "diff" else DIRECTIONS
    assert all(Gate.parse(text, among) for text in made.params["conditions"])
