"""`python -m datbench` is the command line."""

from datbench.cli import cli

cli(prog_name="datbench")
