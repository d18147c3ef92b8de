"""Runs scenarios in children that are stopped where they are told: ``python -m …forker``.

Each line of input is {"directory", "scenario", "step", "stop"}: `step` is "prepare" or "run",
`stop` is null or [point, occurrence].  Each line of output is {"killed", "points", "said"}.  A
fork of a process that has imported everything costs a tenth of a new one; it has one thread and
no environment open, so that forking is safe.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from threading import Lock
from typing import Any

from tests.store.crash.scenarios import SCENARIOS, Child


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            code = 1
            try:
                play(request, writer)
                code = 0
            except BaseException:  # noqa: BLE001 - the parent is to see it
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = [json.loads(line) for line in pipe]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        points = [words[1] for words in said if words[0] == "point"]
        others = [words for words in said if words[0] != "point"]
        print(json.dumps({"status": status, "points": points, "said": others}), flush=True)


def play(request: dict[str, Any], writer: int) -> None:
    stop = request["stop"]
    counts: dict[str, int] = {}
    lock = Lock()

    def say(*words: object) -> None:
        # One write each: whole, whenever the process is stopped.
        os.write(writer, json.dumps(words).encode() + b"\n")

    def reach(point: str) -> None:
        with lock:
            counts[point] = counts.get(point, 0) + 1
            if stop == [point, counts[point]]:
                os.kill(os.getpid(), signal.SIGKILL)
            if request["step"] == "run":
                say("point", point)

    child = Child(
        Path(request["directory"]),
        lambda operation, path: reach(operation),
        reach,
        say,
    )
    scenario = SCENARIOS[request["scenario"]]
    (scenario.prepare if request["step"] == "prepare" else scenario.run)(child)


if __name__ == "__main__":
    main()
