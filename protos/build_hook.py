"""Hatchling build hook: protocol definitions to Python modules.

Rule: everything in cas/pb besides its `__init__.py` comes from `protos/cas/pb/*.proto` through
this hook, on every wheel and editable build; nothing generated is checked in or shipped in an
sdist.  Only the standard library, hatchling and the build requirements are imported here.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("cas", "pb")
"""Where the definitions are below protos/, and the modules below the root."""


class ProtoBuildHook(BuildHookInterface[Any]):
    """Generates `*_pb2.py` and `*_pb2.pyi` beside `cas/pb/__init__.py`."""

    PLUGIN_NAME = "protos"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before hatchling collects files; `version` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        generated = generate(Path(self.root))
        # Git ignores them, so hatchling would too.
        build_data["artifacts"].extend(f"/{path.as_posix()}" for path in generated)


def generate(root: Path) -> list[Path]:
    """Writes the modules of every definition; returns their paths relative to `root`.

    Raises RuntimeError when protoc refuses a definition (it prints why to stderr).
    """
    # Imported late: hatchling loads this file for sdist builds too, where nothing is generated.
    import google.rpc
    from grpc_tools import protoc

    definitions = root / "protos"
    sources = sorted((definitions / PACKAGE).glob("*.proto"))
    if not sources:
        raise RuntimeError(f"no .proto files in {definitions / PACKAGE}")
    google_rpc = Path(next(iter(google.rpc.__path__)))
    with as_file(files("grpc_tools").joinpath("_proto")) as well_known:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={definitions}",
                f"--proto_path={well_known}",
                f"--proto_path={google_rpc.parent.parent}",
                f"--python_out={root}",
                f"--pyi_out={root}",
                *(str(source) for source in sources),
            ]
        )
    if status != 0:
        raise RuntimeError(f"protoc exited with {status} for {definitions / PACKAGE}")
    return [
        PACKAGE / f"{source.stem}_pb2{suffix}" for source in sources for suffix in (".py", ".pyi")
    ]
