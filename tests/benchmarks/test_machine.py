"""Facts about the machine."""

from __future__ import annotations

from pathlib import Path

from benchmarks import machine

MOUNTS = """\
/dev/root / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/sdb /mnt/two\\040words xfs rw 0 0
/dev/sdc /tmp/deep btrfs rw 0 0
"""


def test_the_deepest_mount_that_holds_the_directory() -> None:
    def found(path: str) -> str:
        return machine.file_system(MOUNTS, Path(path))

    assert found("/srv/cas") == "ext4"
    assert found("/tmp") == "tmpfs"
    assert found("/tmpfile") == "ext4"
    assert found("/tmp/deep/er") == "btrfs"
    assert found("/mnt/two words/x") == "xfs"
    assert machine.file_system("", Path("/srv")) == "unknown"


def test_this_machine_describes_itself(tmp_path: Path) -> None:
    facts = machine.describe(tmp_path)
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1 << 20
    assert facts["libraries"]["grpcio"]
    assert facts["file_system"] != "unknown"
