"""The upper limit of the HTTP side: validate the body as recon does, send a constant answer, no database.

.venv/bin/python -m bench.systems.handler PORT
"""

import asyncio
import signal
import sys

import uvloop
from aiohttp import web
from pydantic_core import to_json

from bench.load import people
from recon.api.messages import IdentifyRequest, IdentifyResponse

BACKLOG = 2048  # the same as recon's
ANSWER = to_json(
    IdentifyResponse(
        contact={
            "primaryContactId": 123_456,
            "primaryContatctId": 123_456,
            "emails": [people.email(people.SEEDED, 1)],
            "phoneNumbers": [people.phone(people.SEEDED, 1)],
            "secondaryContactIds": [],
        }
    )
)


async def identify(request: web.Request) -> web.Response:
    """Validate the body and send the constant answer."""
    IdentifyRequest.model_validate_json(await request.read())
    return web.Response(body=ANSWER, content_type="application/json")


async def serve(port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    app = web.Application()
    app.router.add_post("/identify", identify)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
