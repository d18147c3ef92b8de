"""docs/metrics.md, the rules and the dashboard name the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cas.metrics import families
from cas.metrics.families import Family

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "metrics.md"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "cas.json"


def rows() -> dict[str, list[str]]:
    """The table's rows, by name."""
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `cas_")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    found = {row[0].strip("`"): row[1:] for row in cells}
    assert len(found) == len(lines), "a name stands there twice"
    return found


def exposed() -> set[str]:
    """Every name that a scrape may bring."""
    names = set()
    for family in families.ALL:
        ends = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.name + end for end in ends}
    return names


def named_in(path: Path) -> set[str]:
    return set(re.findall(r"\bcas_[a-z_]+\b", path.read_text()))


def test_the_table_has_every_family_and_no_other() -> None:
    assert set(rows()) == {family.name for family in families.ALL}
    assert len({family.name for family in families.ALL}) == len(families.ALL)


@pytest.mark.parametrize("family", families.ALL, ids=lambda family: family.name)
def test_a_row_says_what_the_code_says(family: Family) -> None:
    kind, labels, what, advice = rows()[family.name]
    assert kind == family.kind
    assert tuple(re.findall(r"`([a-z_]+)`", labels)) == family.labels
    assert what == family.help
    assert len(advice) > 15


@pytest.mark.parametrize("family", families.ALL, ids=lambda family: family.name)
def test_names_follow_the_conventions(family: Family) -> None:
    """https://prometheus.io/docs/practices/naming; promtool checks more, on a real scrape."""
    assert re.fullmatch(r"cas(_[a-z]+)+", family.name)
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert family.help.endswith(".")
    assert "le" not in family.labels
    assert list(family.bounds) == sorted(set(family.bounds))
    assert bool(family.bounds) == (family.kind == "histogram")


def test_the_rules_name_metrics_that_there_are() -> None:
    recorded = set(re.findall(r"record: (\S+)", RULES.read_text()))
    assert named_in(RULES) - exposed() - recorded == set()


def test_the_dashboard_shows_every_family_and_nothing_unknown() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = set()
    for panel in panels:
        for target in panel.get("targets", ()):
            shown |= set(re.findall(r"\bcas_[a-z_]+\b", target["expr"]))
    assert shown - exposed() == set()
    for family in families.ALL:
        assert {name for name in shown if name.startswith(family.name)}, family.name


def test_the_dashboard_can_be_provisioned() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["title"]
    assert board["uid"]
    identities = [panel["id"] for panel in board["panels"]]
    assert len(identities) == len(set(identities))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "server": "query"}
