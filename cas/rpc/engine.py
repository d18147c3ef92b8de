"""Which engine serves.

Rule: the only place that chooses between engines; imports none before it is asked for.
"""

from __future__ import annotations

import importlib
import logging

from cas.rpc.handler import Engine, EngineOptions

logger = logging.getLogger(__name__)


def make_engine(name: str, options: EngineOptions) -> Engine:
    """The engine called `name`, ``cq`` or ``aio``.

    ``cq`` stands on a private part of grpcio; where that is not as it needs it, the log says
    so once and the engine is ``aio``.
    """
    if name == "cq":
        reason = _why_no_cq()
        if reason is not None:
            logger.warning("the cq engine cannot run, using aio", extra={"reason": reason})
            name = "aio"
    engine: Engine = importlib.import_module(f"cas.rpc.{name}").make_engine(options)
    return engine


def _why_no_cq() -> str | None:
    try:
        from cas.rpc import cq
    except ImportError as error:
        return str(error)
    return cq.unsupported()
