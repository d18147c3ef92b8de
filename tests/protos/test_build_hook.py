"""The build hook generates what the definitions say, for every protobuf that is allowed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from cas.pb import semver_pb2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_hook", ROOT / "protos" / "build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root that holds our definitions and an empty package for their modules."""
    shutil.copytree(ROOT / "protos" / "cas", tmp_path / "protos" / "cas")
    (tmp_path / "cas" / "pb").mkdir(parents=True)
    return tmp_path


def test_every_definition_becomes_a_module_and_its_types(hook: ModuleType, tree: Path) -> None:
    names = {path.stem for path in (tree / "protos" / "cas" / "pb").glob("*.proto")}
    assert names >= {"bytestream", "remote_execution", "semver"}
    expected = {f"{name}_pb2{suffix}" for name in names for suffix in (".py", ".pyi")}
    assert {path.name for path in hook.generate(tree)} == expected
    assert {path.name for path in (tree / "cas" / "pb").iterdir()} == expected


def test_a_broken_definition_fails_the_build(
    hook: ModuleType, tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tree / "protos" / "cas" / "pb" / "semver.proto").write_text("message SemVer { int32 major }")
    with pytest.raises(RuntimeError, match="protoc exited with 1"):
        hook.generate(tree)
    assert "semver.proto" in capfd.readouterr().err


def test_a_tree_without_definitions_fails_the_build(hook: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no \.proto files"):
        hook.generate(tmp_path)


def test_installed_modules_run_on_the_lowest_and_the_highest_protobuf() -> None:
    """Protobuf's rule: a runtime no older than the code, at most one major release newer."""
    generated = {
        Version(version)
        for path in Path(str(semver_pb2.__file__)).parent.glob("*_pb2.py")
        for version in re.findall(
            r"^# Protobuf Python Version: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert generated
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (allowed,) = (
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "protobuf"
    )
    bounds = {bound.operator: Version(bound.version) for bound in allowed}
    assert max(generated) <= bounds[">="]
    assert bounds["<"] <= Version(f"{min(generated).major + 2}")
