"""``cas completion``: what a shell needs to complete the command's words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """\
Prints a script that completes commands and options. To use it:

  bash  cas completion bash > ~/.local/share/bash-completion/completions/cas
  zsh   cas completion zsh > ~/.zfunc/_cas     (with ~/.zfunc in fpath)
  tcsh  cas completion tcsh >> ~/.tcshrc
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "completion",
        help="print a script for shell completion",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="bash|zsh|tcsh")
    parser.set_defaults(run=run, flags=[])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the script; the exit code."""
    import shtab

    from cas.cli import app

    print(shtab.complete(app.parser(), options.shell))
    return 0
