"""The page in a real browser: what a person sees, hears and can do with a keyboard.

`make page` installs Debian's Chromium and runs this.  One browser, one server, one tab for all.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from cas.metrics import families
from cas.pb import remote_execution_pb2 as pb
from tests.http.browser import Tab, browsing
from tests.http.paged import Watched, credentials, watching
from tests.http.serving import sha

pytestmark = pytest.mark.skipif(
    not os.environ.get("CAS_BROWSER"),
    reason="takes Debian's Chromium, which `make page` installs and runs this with",
)

T = TypeVar("T")

MARKUP = "<img src=x onerror=\"document.title='owned'\">"
"""What a hostile client would like to be more than text."""
TURNED = "abc\u202egnp.exe"
"""A name that reads otherwise than it is."""


@dataclass
class Seen:
    """A tab at a server's page."""

    server: Watched
    tab: Tab
    runner: asyncio.Runner
    result: str = ""
    """The hash of an action with a result."""

    def do(self, visit: Callable[[Tab], Awaitable[T]]) -> T:
        async def run() -> T:
            return await visit(self.tab)

        return self.runner.run(run())

    def run(self, expression: str) -> Any:
        return self.do(lambda tab: tab.run(expression))

    def until(self, expression: str) -> Any:
        return self.do(lambda tab: tab.until(expression))

    def overview(self) -> None:
        self.run("location.hash = ''")
        self.until("!document.querySelector('#overview').hidden && document.title == 'cas'")

    def look(self, text: str, **fields: str) -> None:
        said = json.dumps({"digest": text, **fields})
        self.run(f"location.hash = '#look?' + new URLSearchParams({said})")
        self.until(
            "document.querySelector('#inside h1') && !document.querySelector('#inside').ariaBusy"
            f" && document.querySelector('#digest').value == {json.dumps(text)}"
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with watching(tmp_path_factory.mktemp("browser")) as server, asyncio.Runner() as runner:
        fill(server)
        browser = browsing()
        tab = runner.run(browser.__aenter__())
        try:
            at = Seen(server, tab, runner, sha(b"an action"))
            at.do(lambda tab: tab.seen(1280, 900))
            at.do(lambda tab: tab.open(f"http://127.0.0.1:{server.served.port}/"))
            at.until("document.querySelector('#processes tr')")
            yield at
            assert tab.complaints == []
            origin = f"http://127.0.0.1:{server.served.port}/"
            assert [asked for asked in tab.requests if not asked.startswith(origin)] == []
        finally:
            runner.run(browser.__aexit__(None, None, None))


def fill(server: Watched) -> None:
    """What clients have left behind, hostile ones among them."""
    server.served.ask("PUT", f"/cas/{sha(b'of a tool')}", b"of a tool", User_Agent="ccache/4.10")
    for name in (MARKUP, TURNED):
        server.metrics.counter(families.TOOL_REQUESTS, name).add(7)
        requests = server.metrics.requests("grpc", "ByteStream/Read")
        requests.ended("200", name, 0.1, 10, 100_000)
        requests.failed("INTERNAL", name, f"{name} and {sha(b'x')}/1 are wrong")
    content = server.put(MARKUP.encode())
    node = pb.FileNode(name=MARKUP, digest=content)
    child = pb.Directory(files=[node, pb.FileNode(name=TURNED, digest=content)])
    root = pb.Directory(
        directories=[pb.DirectoryNode(name="inner", digest=server.put(child.SerializeToString()))],
        symlinks=[pb.SymlinkNode(name="up", target=MARKUP)],
    )
    tree = server.put(pb.Tree(root=root, children=[child]).SerializeToString())
    result = pb.ActionResult(
        exit_code=1,
        output_files=[pb.OutputFile(path=MARKUP, digest=content)],
        output_directories=[pb.OutputDirectory(path="out", tree_digest=tree)],
        stdout_raw=MARKUP.encode(),
    )
    server.put_result(b"an action", result)


def test_the_figures_are_there(seen: Seen) -> None:
    seen.overview()
    seen.until("document.querySelector('#hit-rate').textContent.length")
    assert seen.run("document.querySelector('#health-text').textContent") == "Ready"
    assert seen.run("document.querySelectorAll('#charts figure svg').length") == 6
    assert seen.run("document.querySelectorAll('#processes tr').length") == 2
    tools = seen.run("[...document.querySelectorAll('#tools th')].map((at) => at.textContent)")
    assert {MARKUP, TURNED} <= set(tools)


def test_it_is_live_and_nothing_chatters(seen: Seen) -> None:
    seen.overview()
    seen.run(
        "window.heard = 0; new MutationObserver(() => window.heard++)"
        ".observe(document.querySelector('#said'), {childList: true, characterData: true})"
    )
    before = seen.run("document.querySelector('#rate-sub').textContent")
    for number in range(3):
        seen.server.put(f"live {number}".encode())
    seen.until(f"document.querySelector('#rate-sub').textContent != {json.dumps(before)}")
    assert seen.run("window.heard") == 0


def test_nothing_is_asked_for_where_nobody_looks(seen: Seen) -> None:
    seen.overview()
    try:
        seen.run(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

        async def settle(tab: Tab) -> tuple[int, int]:
            # One that was under way may still end.
            await asyncio.sleep(1)
            before = len(tab.requests)
            await asyncio.sleep(3.5)
            return before, len(tab.requests)

        before, after = seen.do(settle)
        assert before == after
    finally:
        seen.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    count = len(seen.tab.requests)
    seen.do(lambda tab: until(lambda: len(tab.requests) > count))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody of changes
            await asyncio.sleep(0.05)


def test_a_server_that_does_not_answer_is_told_of_once(seen: Seen) -> None:
    seen.overview()

    async def lose(tab: Tab) -> None:
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await tab.call("Network.emulateNetworkConditions", offline=True, **conditions)
        await tab.until("!document.querySelector('#lost').hidden")
        assert "does not answer" in await tab.run("document.querySelector('#said').textContent")
        await tab.call("Network.emulateNetworkConditions", offline=False, **conditions)
        await tab.until("document.querySelector('#lost').hidden")
        tab.complaints[:] = [told for told in tab.complaints if "INTERNET_DISC" not in told]

    seen.do(lose)


# --- what clients have written is text


def nothing_but_text(seen: Seen) -> None:
    assert seen.run("document.querySelectorAll('img, iframe, object, embed').length") == 0
    assert "owned" not in seen.run("document.title")


def test_what_hostile_clients_have_written_is_text(seen: Seen) -> None:
    seen.overview()
    nothing_but_text(seen)
    told = seen.run("document.querySelector('#notes').textContent")
    assert MARKUP in told
    digest = seen.run("document.querySelector('#notes a').title")
    assert digest == f"{sha(b'x')}/1"
    seen.look(seen.result)
    assert seen.run("document.querySelector('#inside pre').textContent") == MARKUP
    nothing_but_text(seen)
    for kind in ("text", "bytes", "directory", "tree", "command", "action"):
        seen.look(sha(MARKUP.encode()), **{"as": kind, "via": MARKUP})
        nothing_but_text(seen)
    seen.tab.complaints[:] = [told for told in seen.tab.complaints if "(Bad Request)" not in told]
    seen.look(MARKUP)
    seen.until("document.querySelector('#inside .notice')")
    nothing_but_text(seen)
    seen.tab.complaints[:] = [told for told in seen.tab.complaints if "(Bad Request)" not in told]


def test_the_policy_is_in_force(seen: Seen) -> None:
    seen.overview()
    before = len(seen.tab.complaints)
    refused = seen.run(
        "(() => { try { document.body.insertAdjacentHTML('beforeend', '<i>'); return false }"
        " catch (error) { return error.name } })()"
    )
    assert refused == "TypeError", "markup cannot be made from text"
    seen.run(
        "new Promise((done) => { const at = document.createElement('style');"
        " at.append('body { display: none }'); document.head.append(at); done() })"
    )
    assert seen.run("getComputedStyle(document.body).display") != "none"
    assert seen.run("fetch('https://example.invalid/').then(() => 1, () => 0)") == 0
    del seen.tab.complaints[before:]
    seen.tab.requests[:] = [asked for asked in seen.tab.requests if "example" not in asked]


# --- with a keyboard, and for who listens


def test_a_keyboard_is_enough(seen: Seen) -> None:
    seen.overview()

    async def travel(tab: Tab) -> None:
        await tab.run("document.activeElement.blur(); scrollTo(0, 0)")
        await tab.run("document.querySelector('.skip').focus()")
        assert await tab.run("document.querySelector('.skip:focus-visible') !== null")
        for _ in range(2):
            await tab.press("Tab")
        assert await tab.run("document.activeElement.id") == "digest"
        await tab.run("document.activeElement.value = ''")
        await tab.type(seen.result)
        await tab.press("Enter")
        await tab.until("document.activeElement.textContent == 'Action result'", "its heading")
        await tab.until("document.querySelector('#said').textContent == 'Action result'")
        await tab.run(
            "[...document.querySelectorAll('#inside a')]"
            ".find((at) => at.textContent == 'out/').focus()"
        )
        await tab.press("Enter")
        await tab.until("document.querySelector('#inside h1').textContent == 'Tree'")
        await tab.run("document.querySelector('#inside tbody a').focus()")
        await tab.press("Enter")
        await tab.until("document.querySelector('nav[aria-label=\"Path in the tree\"]')")
        names = await tab.run(
            "[...document.querySelectorAll('#inside tbody th')].map((at) => at.textContent)"
        )
        assert names == [MARKUP, TURNED]
        for _ in range(2):
            await tab.run("history.back()")
        await tab.until("document.querySelector('#inside h1').textContent == 'Action result'")
        await tab.run("history.back()")
        await tab.until("!document.querySelector('#overview').hidden")

    seen.do(travel)


def test_charts_are_read_by_arrows(seen: Seen) -> None:
    seen.overview()

    async def read(tab: Tab) -> None:
        chart = "document.querySelector('[role=slider][aria-label=Throughput]')"
        # What lies behind the last sample counts once it is a few seconds long.
        await tab.until(f"{chart}.getAttribute('aria-valuetext') != 'no data yet'")
        await tab.run(f"{chart}.focus()")
        await tab.press("Home")
        assert await tab.run(f"{chart}.getAttribute('aria-valuenow')") == "0"
        told = await tab.run(f"{chart}.getAttribute('aria-valuetext')")
        assert " out, " in told
        assert told[2] == ":", "it begins with a time"
        await tab.press("Escape")

    seen.do(read)


def test_the_window_is_chosen_by_radio_buttons(seen: Seen) -> None:
    seen.overview()

    async def choose(tab: Tab) -> None:
        await tab.run("document.querySelector('#window-hour').focus()")
        await tab.press("ArrowRight")
        await tab.until("document.querySelector('#rate-sub').textContent.includes('in this day')")
        await tab.press("ArrowLeft")
        await tab.until("document.querySelector('#rate-sub').textContent.includes('in this hour')")

    seen.do(choose)


def test_everything_has_a_name_and_a_place(seen: Seen) -> None:
    def nodes() -> list[dict[str, Any]]:
        found = seen.do(lambda tab: tab.call("Accessibility.getFullAXTree"))
        return [node for node in found["nodes"] if not node["ignored"]]

    def of(node: dict[str, Any], field: str) -> str:
        text: str = node.get(field, {}).get("value", "")
        return text

    for go in (seen.overview, lambda: seen.look(seen.result)):
        go()
        roles = [of(node, "role") for node in nodes()]
        for landmark in ("banner", "main", "search", "contentinfo"):
            assert roles.count(landmark) == 1, landmark
        assert "status" in roles
        for node in nodes():
            if of(node, "role") in (
                "button", "link", "textbox", "searchbox", "combobox", "radio", "slider", "table",
                "navigation", "region", "columnheader",
            ):  # fmt: skip
                assert of(node, "name").strip(), node
        assert seen.run("document.querySelectorAll('h1:not([hidden] h1)').length") == 1
        bare = seen.run(
            "[...document.querySelectorAll('table')].filter((at) => "
            "!at.querySelector('thead th[scope=col]')).length"
        )
        assert bare == 0
    assert seen.run("document.documentElement.lang") == "en"


# --- as it looks

TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter((at) => at.getBoundingClientRect().right > screen.width && !at.closest('.scroll'))
  .map((at) => `${at.tagName}.${at.className} ${at.textContent.slice(0, 30)}`)
"""

CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (c) => c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (at) => {
    for (let up = at; up; up = up.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(up).backgroundColor);
      if (a === 1) return [r, g, b];
      if (a > 0) throw new Error(`half transparent: ${up.className}`);
    }
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !at.checkVisibility()) continue;
    const style = getComputedStyle(at);
    const front = parse(at instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(front), luminance(behind(at))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.data.slice(0, 30), ratio.toFixed(2)]);
  }
  return poor;
})()
"""


@pytest.mark.parametrize(
    ("width", "dark"), [(320, False), (390, True), (768, False), (1280, True), (1280, False)]
)
def test_it_fits_and_is_legible(seen: Seen, width: int, dark: bool) -> None:
    seen.do(lambda tab: tab.seen(width, 800, dark=dark, still=True))
    try:
        for go in (seen.overview, lambda: seen.look(seen.result)):
            go()
            wide = "document.documentElement.scrollWidth"
            assert seen.run(wide) <= width, seen.run(TOO_WIDE)
            assert seen.run(CONTRAST) == []
        background = seen.run("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
        assert seen.run("getComputedStyle(document.querySelector('.gauge span')).transition") in (
            "all",
            "all 0s ease 0s",
            "none",
        ), "nothing moves for who wants that"
    finally:
        seen.do(lambda tab: tab.seen(1280, 900))


def test_a_browser_with_credentials_is_let_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    with watching(tmp_path_factory.mktemp("locked"), locked=True) as server:

        async def visit() -> None:
            async with browsing() as tab:
                await tab.open(f"http://127.0.0.1:{server.served.port}/")
                await until(lambda: any("status of 401" in told for told in tab.complaints))
                assert len(tab.requests) == 1, "of the page there is nothing"
                # What a browser does once its owner has typed a password.
                await tab.call("Network.setExtraHTTPHeaders", headers=credentials("bob"))
                await tab.open(f"http://127.0.0.1:{server.served.port}/")
                await tab.until("document.querySelector('#health-text').textContent == 'Ready'")

        asyncio.run(visit())
