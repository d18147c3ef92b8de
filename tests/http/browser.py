"""Debian's Chromium, headless, driven by its own protocol (Chrome DevTools) over a WebSocket.

Rule: aiohttp is all it takes, and the project has that.  A page is a real one, in a process of
its own, with a profile that is gone afterwards; what it logs and what it was refused is kept, and
whoever uses it asserts that there was nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE = 40.0

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """Exceptions, errors in the console, refusals by the page's policy."""
        self.requests: list[str] = []
        """Addresses that it asked for."""
        self._reader = asyncio.ensure_future(self._read())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        await self._socket.send_json(command)
        return await asyncio.wait_for(answer, PATIENCE)

    async def open(self, address: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def run(self, expression: str) -> Any:
        """What a script returns, as JSON would have it."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, expression: str, what: str = "") -> Any:
        """Waits until a script returns something true; that."""
        deadline = time.monotonic() + PATIENCE
        while True:
            # Until the page is there, what the script names may not be.
            with contextlib.suppress(AssertionError):
                found = await self.run(expression)
                # An element comes as an empty dictionary.
                if found or found == {}:
                    return found
            assert time.monotonic() < deadline, (
                f"did not happen: {what or expression}; {self.complaints}"
            )
            await asyncio.sleep(0.05)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """A key as a person presses it: ``Tab``, ``Enter``, ``ArrowLeft``, ``Space``."""
        code, text = _KEYS[key]
        at = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        at |= {"modifiers": 8 if shift else 0}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **at)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **at)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def seen(
        self, width: int, height: int, *, dark: bool = False, still: bool = False, scale: float = 1
    ) -> None:
        """The size of the window, and what its owner prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, *, whole: bool = False) -> bytes:
        """A screenshot, PNG."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"])
                if answer.done():
                    continue
                if "error" in told:
                    answer.set_exception(AssertionError(str(told["error"])))
                else:
                    answer.set_result(told["result"])
            else:
                self._noted(told["method"], told["params"])

    def _noted(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:2000])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["args"])[:2000])
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Space": (32, " "),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}


@contextlib.asynccontextmanager
async def browsing(arguments: Sequence[str] = ()) -> AsyncIterator[Tab]:
    """A tab of a browser of its own."""
    path = chromium()
    assert path is not None, f"expected one of {', '.join(NAMES)} on PATH"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
            [
                path,
                "--headless=new",
                "--no-sandbox",  # it is asked for nothing but our own pages, by root in CI
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                *arguments,
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = await _address(Path(profile), process)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(address, max_msg_size=0) as socket,
            ):
                browser = Tab(socket, "")
                made = await browser.call("Target.createTarget", url="about:blank")
                attached = await browser.call(
                    "Target.attachToTarget", targetId=made["targetId"], flatten=True
                )
                await browser.close()
                tab = Tab(socket, attached["sessionId"])
                yield tab
                await tab.close()
        finally:
            # With the processes that it started: its session is of this name.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


async def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it listens, as it writes into its profile."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(FileNotFoundError):
            lines = (profile / "DevToolsActivePort").read_text().splitlines()
            if len(lines) == 2 and re.fullmatch(r"\d+", lines[0]):
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.poll() is None, f"the browser ended: {process.returncode}"
        assert time.monotonic() < deadline, "the browser did not start"
        await asyncio.sleep(0.05)


def browse(visit: Callable[[Tab], Any], arguments: Sequence[str] = ()) -> Any:
    """What `visit` returns of a tab."""

    async def run() -> Any:
        async with browsing(arguments) as tab:
            return await visit(tab)

    return asyncio.run(run())
