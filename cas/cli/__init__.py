"""The command line: one module per command, `cas.cli.app` puts them together.

Rule: parsing and printing only; what a command does lives below.  A wrong option is one
line on stderr and exit code 2.
"""

from cas.cli.app import main

__all__ = ["main"]
