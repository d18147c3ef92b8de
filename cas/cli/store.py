"""What the commands on a store's directory have in common: ``--dir``, and its default.

Rule: a directory is named as for the server, by flag, environment or configuration file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cas import config
from cas.config import Config
from cas.store.layout import Layout

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(
    commands: Commands, name: str, help: str, description: str
) -> argparse.ArgumentParser:
    """A parser that takes the directory's options."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dir",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the store's directory (environment: CAS_DIR; default: ~/.cache/cas)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        default=argparse.SUPPRESS,
        help="read the directory from the server's file (environment: CAS_CONFIG)",
    )
    return parser


def layout(options: argparse.Namespace, environ: Mapping[str, str]) -> Layout:
    """The directory that the command is about."""
    return Layout(load(options, environ).dir)


def load(options: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """The configuration that names it."""
    flags = {name: value for name, value in vars(options).items() if name in ("dir", "config")}
    return config.load(flags, environ)


def size(number: int) -> str:
    """Bytes for people: ``3.4 MiB``."""
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
