"""Graceful shutdown: requests in progress are answered, connections are drained, readiness fails."""

import asyncio
import json
import signal
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.harness.databases import fetch
from tests.harness.ports import refuses
from tests.harness.processes import StartRecon
from tests.server.test_processes import EXAMPLE, until


@pytest.mark.parametrize("workers", [1, 2])
async def test_requests_in_flight_are_finished(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """On SIGTERM what was accepted is answered, nothing new is accepted, and the exit code is 0."""
    process = start_recon("--database-url", database_url, "--workers", str(workers))
    holder = await asyncpg.connect(database_url)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with holder.transaction():
            await holder.execute("LOCK TABLE writer_lane IN EXCLUSIVE MODE")
            requests = [
                asyncio.create_task(_post(session, process.url, {"email": f"{n}@hillvalley.edu"})) for n in range(20)
            ]
            await until(lambda: _waiting_for_the_lane(database_url), "a write waits for the lane")
            await until(lambda: _all_are_in(session, process.url, 20), "all requests have been read")

            process.popen.send_signal(signal.SIGTERM)
            await until(lambda: refuses(process.port), "no new connection is accepted")

        answers = await asyncio.gather(*requests)
    await holder.close()

    assert {status for status, _ in answers} == {200}
    assert await asyncio.to_thread(process.popen.wait, 15) == 0
    assert len(await fetch(database_url, "SELECT FROM contact")) == 20


@pytest.mark.parametrize("workers", [1, 2])
async def test_nobody_is_left_without_an_answer(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """On SIGTERM, connections that are in use all the time end with an answer that says so, not in between."""
    process = start_recon("--database-url", database_url, "--workers", str(workers))
    body = json.dumps(EXAMPLE).encode()
    request = (
        b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    )
    asked = asyncio.Semaphore(0)

    async def ask_until_told_to_leave() -> bool:
        """Whether the last answer was one, and said that it was the last."""
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        try:
            while True:
                writer.write(request % (len(body), body))
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n", 1)[0]))
                asked.release()
                if b"Connection: close\r\n" in head:
                    return head.startswith(b"HTTP/1.1 200 ") and await reader.read() == b""
        finally:
            writer.close()

    clients = [asyncio.create_task(ask_until_told_to_leave()) for _ in range(40)]
    for _ in range(400):
        await asked.acquire()
    process.popen.send_signal(signal.SIGTERM)

    assert await asyncio.gather(*clients) == [True] * 40
    assert await asyncio.to_thread(process.popen.wait, 15) == 0


async def test_a_process_that_is_about_to_end_is_not_ready(start_recon: StartRecon, database_url: str) -> None:
    """On SIGTERM whoever is still connected is told by /readyz to ask elsewhere; /healthz says that it is alive."""
    process = start_recon("--database-url", database_url)
    connections = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(2)]
    answers = []
    process.popen.send_signal(signal.SIGTERM)
    await until(lambda: refuses(process.port), "no new connection is accepted")
    for (reader, writer), path in zip(connections, (b"/readyz", b"/healthz"), strict=True):
        writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        answers.append(await reader.read())
        writer.close()

    assert [answer.split(b" ", 2)[1] for answer in answers] == [b"503", b"200"]
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)


async def _post(session: aiohttp.ClientSession, url: str, said: dict[str, str]) -> tuple[int, Any]:
    async with session.post(f"{url}/identify", json=said) as response:
        return response.status, await response.json()


async def _waiting_for_the_lane(url: str) -> bool:
    return bool(await fetch(url, "SELECT FROM pg_locks WHERE NOT granted AND relation = 'writer_lane'::regclass"))


async def _all_are_in(session: aiohttp.ClientSession, url: str, count: int) -> bool:
    """Whether the read pass has seen so many requests, over all workers."""
    async with session.get(f"{url}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith('recon_batch_requests_sum{step="read"}'):
                return float(line.split()[1]) >= count
    return False
