"""The pictures of docs/page, of a server that somebody has put some load on.

    python -m tests.page.pictures http://127.0.0.1:8080 DIGEST docs/page

`DIGEST` is of what is looked into.  Whoever takes new ones looks at each before it is committed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from tests.http.browser import browsing

MOST_BYTES = 200_000


class Picture(NamedTuple):
    name: str
    width: int
    height: int
    dark: bool = False
    inside: bool = False
    top: str = "body"
    """What is to be seen first."""


PICTURES = (
    Picture("overview-light", 1280, 924),
    Picture("overview-dark", 1280, 924, dark=True),
    Picture("tables-dark", 1280, 840, dark=True, top="#sizes-title"),
    Picture("overview-phone-light", 390, 1300),
    Picture("overview-phone-dark", 390, 1300, dark=True, top="#tools-title"),
    Picture("inside-light", 1280, 700, inside=True),
    Picture("inside-phone-dark", 390, 1060, dark=True, inside=True),
)


async def take(address: str, digest: str, directory: Path) -> None:
    async with browsing() as tab:
        for picture in PICTURES:
            await tab.seen(picture.width, picture.height, dark=picture.dark, still=True)
            fragment = f"#look?{urlencode({'digest': digest})}" if picture.inside else ""
            await tab.open("about:blank")
            await tab.open(f"{address}/{fragment}")
            shown = "#inside h1" if picture.inside else "#processes tr"
            await tab.until(f"document.querySelector('{shown}')")
            # Rates of now take a while to settle.
            await asyncio.sleep(2 if picture.inside else 9)
            await tab.run(f"document.querySelector('{picture.top}').scrollIntoView()")
            await asyncio.sleep(0.5)
            taken = await tab.picture()
            (directory / f"{picture.name}.png").write_bytes(taken)
            small = "" if len(taken) <= MOST_BYTES else ": too large, expected at most 200 kB"
            print(f"{picture.name}: {len(taken) // 1000} kB{small}")


if __name__ == "__main__":
    asyncio.run(take(sys.argv[1].rstrip("/"), sys.argv[2], Path(sys.argv[3])))
