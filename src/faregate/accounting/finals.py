"""Which requests have their final record in the database: asked for many at once."""

import asyncio
from typing import Protocol

from faregate.accounting.background import background

ASKED_AT_ONCE = 500
"""Requests that one question is about."""


class Rows(Protocol):
    """The records of the database, as far as they are asked here: the store."""

    async def settled(self, ids: list[str]) -> set[str]:
        """Those of `ids` that have a final record. Raises `StoreUnavailable` while the database is away."""
        ...


class Finals:
    """Asks the database about single requests. Those that ask at the same time share one question.

    An answer is never older than its question: what is asked while another question is under way waits for the next.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._waiting: dict[str, list[asyncio.Future[bool]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def has(self, request_id: str) -> bool:
        """Whether the database has the final record of this request. Raises `StoreUnavailable`."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request_id, []).append(answer)
        if self._task is None or self._task.done():
            self._task = background(self._ask(), "finals")
        return await answer

    async def _ask(self) -> None:
        while self._waiting:
            ids = list(self._waiting)[:ASKED_AT_ONCE]
            answers = {request_id: self._waiting.pop(request_id) for request_id in ids}
            try:
                settled = await self._rows.settled(ids)
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait are told
                for futures in answers.values():
                    _tell(futures, error)
            else:
                for request_id, futures in answers.items():
                    _tell(futures, request_id in settled)


def _tell(futures: list[asyncio.Future[bool]], answer: bool | Exception) -> None:
    for future in futures:
        # Who was cancelled meanwhile asks no more.
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
