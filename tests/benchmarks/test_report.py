"""RESULTS.md and its picture, from results."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, results
from benchmarks.bazel import DISK_CACHE
from benchmarks.plot import plot
from benchmarks.stats import Sample, rows
from tests.benchmarks.test_stats import sample

SAMPLES = [
    sample("cas", 40.0),
    sample("peer", 50.0),
    sample("cas", 90_000.0, workload="read:67108864"),
    sample("peer", 70_000.0, workload="read:67108864"),
    sample("broken", 1.0, workload="read:67108864", errors=1),
]


def section(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {
            "date": "2026-01-02T03:04:05+00:00",
            "processor": "A Processor",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "system": "Linux 6",
            "file_system": "ext4",
            "python": "3.12.1",
            "libraries": {"grpcio": "1.2.3"},
            "load_before": 0.1,
        },
        "options": {"rounds": 3, "seconds": 2.0, "generator": "python", "processes": 2},
        "servers": [{"name": "peer", "version": "v9", "note": "synced"}],
        "data": data,
    }


def table_section(samples: list[Sample] = SAMPLES) -> dict[str, Any]:
    return section(
        {"samples": [one.to_json() for one in samples], "memory_afterwards": {"cas": 5 << 20}}
    )


DATA: dict[str, dict[str, Any]] = {
    "scale": {
        "server": "cas",
        "sizes": [
            {
                "entries": 10_000,
                "fill_seconds": 1.0,
                "index_bytes": 3 << 20,
                "ready_seconds": 0.25,
                "idle_resident": 40 << 20,
                "idle_anonymous": 30 << 20,
                "loaded_resident": 60 << 20,
                "loaded_anonymous": 35 << 20,
                "first_find_cpu_us": 2100.0,
                "find_cpu_us": 1300.0,
                "find_p99_ms": 4.0,
                "problem": "",
            }
        ],
    },
    "idle": {
        "seconds": 60.0,
        "servers": {
            "cas": {
                "cpu_seconds_a_minute": 0.05,
                "processes": 2,
                "resident": 80 << 20,
                "anonymous": 60 << 20,
            }
        },
    },
    "large": {
        "size": 10 << 30,
        "message_bytes": 64 << 10,
        "servers": {
            "cas": {
                way: {"seconds": 10.24, "cpu_seconds": 9.0, "peak_resident": 70 << 20}
                for way in ("write", "read")
            },
            "peer": {"problem": "committed 5 of 6 bytes"},
        },
    },
    "bazel": {
        "version": "bazel 4.2",
        "actions": 200,
        "bytes": 9 << 20,
        "seconds": {"cas": 1.5, DISK_CACHE: 1.0},
        "problems": {"peer": "did not start"},
    },
    "check": {
        "server": "cas",
        "samples": {
            "python": [sample("cas", 44.0).to_json()],
            "casload": [sample("cas", 40.0).to_json()],
        },
    },
}


def test_only_what_was_taken_is_reported() -> None:
    assert "##" not in report.render(results.empty())
    found = {"format": 1, "sections": {"table": table_section()}}
    text = report.render(found, "RESULTS.svg")
    assert text.count("\n## ") == 1
    assert "](RESULTS.svg)" in text
    assert "| GetCapabilities | 40.0 · 500/s · 1.00 / 2.00 |" in text
    assert "0.80 (peer)" in text
    assert "invalid: 1 errors: UNAVAILABLE: gone" in text
    assert "peer: v9 (synced)." in text
    assert "A Processor, 2 cores, 8.00 GiB memory" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scale", ["10,000", "3.00 MiB", "0.25 s", "40.0 MiB (30.0 MiB)", "1,300"]),
        ("idle", ["0.05", "80.0 MiB (60.0 MiB)"]),
        ("large", ["10 GiB", "1,000", "9.00", "70.0 MiB", "committed 5 of 6 bytes"]),
        ("bazel", ["bazel 4.2", "1.50 s", "1.50", "did not start"]),
        ("check", ["44.0", "40.0", "1.10"]),
    ],
)
def test_every_section_has_its_figures(name: str, expected: list[str]) -> None:
    one = section(DATA[name])
    markdown = report.render({"format": 1, "sections": {name: one}})
    for piece in expected:
        assert piece in markdown
    assert report.text(name, one).splitlines()


def test_sections_come_in_one_order_whatever_the_file_has() -> None:
    sections = {name: section(data) for name, data in DATA.items()}
    forwards = report.render({"format": 1, "sections": sections})
    backwards = report.render({"format": 1, "sections": dict(reversed(sections.items()))})
    assert forwards == backwards


@pytest.mark.parametrize(("load", "warned"), [(0.9, False), (1.1, True)])
def test_figures_of_a_busy_machine_come_with_a_warning(load: float, warned: bool) -> None:
    found = table_section()
    found["machine"]["load_before"] = load
    text = report.render({"format": 1, "sections": {"table": found}})
    assert ("kept the machine busy" in text) is warned


def dots(svg: str) -> list[tuple[str, float]]:
    """(title, x) of every dot in the picture's rows."""
    space = "{http://www.w3.org/2000/svg}"
    found = []
    for circle in ElementTree.fromstring(svg).iter(f"{space}circle"):
        title = circle.find(f"{space}title")
        if title is not None and title.text is not None:
            found.append((title.text, float(circle.attrib["cx"])))
    return found


def test_the_picture_has_a_dot_for_every_valid_cell_further_right_for_more() -> None:
    found = dots(plot(rows(SAMPLES)))
    assert [title for title, _ in sorted(found, key=lambda dot: dot[1])] == [
        "cas: 40.0 µs",
        "peer: 50.0 µs",
        "peer: 70,000 µs",
        "cas: 90,000 µs",
    ]


def test_a_picture_of_nothing_is_still_one() -> None:
    assert dots(plot([])) == []
    assert dots(plot(rows([sample("cas", 0.0)]))) == []


def test_results_are_kept_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    assert results.load(path) == results.empty()
    found = {"format": 1, "sections": {"table": table_section()}}
    results.save(path, found)
    assert results.load(path) == found
    path.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 1"):
        results.load(path)
    path.write_text("nonsense")
    with pytest.raises(ValueError, match="Expecting"):
        results.load(path)


def test_http_is_compared_with_the_best_peer() -> None:
    def figures(cpu: float) -> dict[str, float]:
        return {"cpu_us": cpu, "per_second": 1000.0}

    data = {
        "operations": {
            "GET 1 KiB": {"cas": figures(30), "bazel-remote": figures(40), "other": figures(60)},
            "PUT 1 KiB": {"bazel-remote": figures(400)},
        }
    }
    head, get, put = report.http_table(data)
    assert head == ["operation", "cas", "bazel-remote", "other", "cas ÷ best peer"]
    assert get[0] == "GET 1 KiB"
    assert get[1].startswith("30")
    assert get[-1] == "0.75 (bazel-remote)" or get[-1] == "0.75"
    assert put[1] == "–"
