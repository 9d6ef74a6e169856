"""Calls from the engine to those that use it: what they raise is theirs, and must not leave the engine half done."""

import logging
from collections.abc import Callable
from typing import ParamSpec
from uuid import UUID

P = ParamSpec("P")

logger = logging.getLogger(__name__)


def tell(volume: UUID, what: str, callback: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call `callback`; an exception is logged with its trace and goes no further."""
    try:
        callback(*args, **kwargs)
    except Exception:
        logger.exception("event=callback_failed volume=%s callback=%s", volume, what)
