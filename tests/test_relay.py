"""The line between workers and whoever started them."""

from __future__ import annotations

import asyncio

from akd.relay import Relay


def test_a_worker_waits_for_its_answer() -> None:
    async def scene() -> None:
        relay = Relay()
        told = asyncio.create_task(relay.tell({"epoch": 1}))
        ticket, message = await relay.next()
        assert message == {"epoch": 1}
        await asyncio.sleep(0.01)
        assert not told.done()
        await relay.answer(ticket, False)
        assert await told is False
        told = asyncio.create_task(relay.tell({"epoch": 2}))
        ticket, _ = await relay.next()
        await relay.answer(ticket, True)
        assert await told is True

    asyncio.run(scene())


def test_news_keep_their_order_and_answers_find_their_worker() -> None:
    async def scene() -> None:
        relay = Relay()
        workers = [asyncio.create_task(relay.tell({"worker": i})) for i in range(3)]
        tickets = [await relay.next() for _ in workers]
        assert [m["worker"] for _, m in tickets] == [0, 1, 2]
        for ticket, message in reversed(tickets):
            await relay.answer(ticket, message["worker"] == 1)
        assert [await w for w in workers] == [False, True, False]

    asyncio.run(scene())


def test_closing_stops_those_who_wait_and_those_who_come() -> None:
    async def scene() -> None:
        relay = Relay()
        waiting = asyncio.create_task(relay.tell({}))
        await relay.next()
        await relay.close()
        assert await waiting is True
        assert await relay.tell({}) is True

    asyncio.run(scene())


def test_an_answer_to_nobody_is_ignored() -> None:
    async def scene() -> None:
        relay = Relay()
        await relay.answer(7, True)
        told = asyncio.create_task(relay.tell({}))
        ticket, _ = await relay.next()
        told.cancel()  # the worker died
        await asyncio.sleep(0)
        await relay.answer(ticket, False)

    asyncio.run(scene())
