"""Who waits for the store may leave at any moment: a client that gives up, a node that stops."""

import asyncio
import random

from rows import record

from faregate.store.store import Store


async def test_a_write_whose_task_is_cancelled_ends_all_the_same_and_keeps_nobody_from_writing(database):
    store = await Store.open(database.url)
    chance = random.Random(7)
    ids = [f"r-{n}" for n in range(60)]
    try:
        for request_id in ids:
            writing = asyncio.create_task(store.write([], [record(request_id)]))
            # Not waiting for anything: where in its work it is when its task is cancelled is what is tried out.
            await asyncio.sleep(chance.uniform(0, 0.006))
            writing.cancel()
            await asyncio.wait([writing])
        await store.write([], [record("last")])
        # A task that was cancelled before its first step never asked for anything.
        assert len(await store.settled([*ids, "last"])) > len(ids) // 2
    finally:
        await store.close()
