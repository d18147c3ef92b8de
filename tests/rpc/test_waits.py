"""The waits that handlers on the cq engine yield, without an engine."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cas.rpc.waits import CANCELLED, Helpers, Wait, WaitRuntime, Work
from tests.rpc.serving import PATIENCE, Result


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    made = Helpers(2)
    made.start()
    yield made
    made.stop()


class Runner:
    """Runs one coroutine as an engine would."""

    def __init__(self, awaited: Any) -> None:
        async def run() -> Any:
            return await awaited

        self.woken: queue.SimpleQueue[Wait] = queue.SimpleQueue()
        self._coroutine = run()

    def wake(self, wait: Wait, /) -> None:
        self.woken.put(wait)

    def step(self, value: object = None) -> Wait:
        """Up to its next wait."""
        wait = self._coroutine.send(value)
        assert isinstance(wait, Wait)
        wait.waiter = self
        return wait

    def end(self, value: object = None) -> Any:
        """What it returns or raises, when sent on with `value`."""
        with pytest.raises(StopIteration) as ended:
            self._coroutine.send(value)
        return ended.value.value


def test_what_is_there_is_not_waited_for(helpers: Helpers) -> None:
    result = Result()
    result.bring(7)
    assert Runner(WaitRuntime(helpers).wait(result)).end() == 7


def test_what_comes_wakes_once_and_at_any_time(helpers: Helpers) -> None:
    for late in (False, True):
        result = Result()
        runner = Runner(WaitRuntime(helpers).wait(result))
        wait = runner.step()
        if not late:
            # Before anyone is known to wait: who begins to wait looks for himself.
            wait.waiter = None
            result.bring(7)
            assert wait.is_done
            assert runner.woken.empty()
        else:
            result.bring(7)
            assert runner.woken.get_nowait() is wait
        assert runner.end() == 7


def test_a_cancelled_wait_raises_without_the_result(helpers: Helpers) -> None:
    runner = Runner(WaitRuntime(helpers).wait(Result()))
    runner.step()
    with pytest.raises(asyncio.CancelledError):
        runner.end(CANCELLED)


def test_work_is_called_once_or_withdrawn() -> None:
    called: list[int] = []
    work = Work(called.append, (1,))
    work.run()
    assert not work.withdraw()
    assert work.is_done
    work.run()
    assert called == [1]
    withdrawn = Work(called.append, (2,))
    assert withdrawn.withdraw()
    assert not withdrawn.withdraw()
    withdrawn.run()
    assert called == [1]
    assert not withdrawn.is_done


def test_cancelled_while_it_runs(helpers: Helpers) -> None:
    begun, release = threading.Event(), threading.Event()

    def function() -> None:
        begun.set()
        release.wait(PATIENCE)

    runner = Runner(WaitRuntime(helpers).offload(function))
    runner.step()
    assert begun.wait(PATIENCE)
    again = runner.step(CANCELLED)
    release.set()
    assert runner.woken.get(timeout=PATIENCE) is again
    with pytest.raises(asyncio.CancelledError):
        runner.end()


def test_helpers_survive_whatever_is_raised(helpers: Helpers) -> None:
    class Stop(BaseException):
        pass

    def fail() -> None:
        raise Stop

    for _ in range(4):
        runner = Runner(WaitRuntime(helpers).offload(fail))
        runner.step()
        runner.woken.get(timeout=PATIENCE)
        with pytest.raises(Stop):
            runner.end()


def test_stop_waits_for_work() -> None:
    helpers = Helpers(1)
    helpers.start()
    done: list[int] = []
    for number in range(20):
        helpers.submit(Work(done.append, (number,)))
    helpers.stop()
    assert done == list(range(20))
