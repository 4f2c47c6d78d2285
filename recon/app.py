"""The application: what it carries, how it starts and ends, which path leads where."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from recon import access, background, middleware, openapi, ops
from recon.coalesce import coalesced, plain
from recon.database import Database
from recon.deadlines import Deadlines
from recon.hosts import Hosts
from recon.identify import Identify
from recon.keys import Keys, keys_of
from recon.messages import identify_response
from recon.routes import identify_handler
from recon.settings import Settings, allowed_hosts, database_settings, database_url, origins
from recon.unsent import Unsent

DATABASE = web.AppKey("database", Database)
CLOSING = web.AppKey("closing", asyncio.Event)  # set when the process is about to end
KEYS = web.AppKey("keys", Keys)
UNSENT = web.AppKey("unsent", Unsent)


def create_app(settings: Settings) -> web.Application:
    """The application that serves the settings' database, which must be given.

    Raises SchemaMismatch at start-up when that database cannot be served; one that is not there yet
    is waited for, with /readyz at 503. Raises Misconfigured for API keys that are not such.
    """
    database = make_database(settings)
    identify = Identify(database, identify_response)
    deadlines = Deadlines(settings.request_timeout)
    unsent = Unsent(settings.max_unsent)
    if settings.coalesce:
        one = coalesced(identify, settings.queue_limit, deadlines, max(1, settings.pool_size // 4), unsent.room)
    else:
        one = plain(identify, settings.queue_limit, deadlines, settings.pool_size, unsent.room)

    closing = asyncio.Event()
    keys = keys_of(settings)
    routes = [
        web.post(
            "/identify",
            access.allowing(keys, "identify", identify_handler(one, settings)),
            expect_handler=access.expectation(keys, "identify"),
        ),
        web.get("/healthz", ops.healthz),
        web.get("/readyz", ops.readyz_handler(database, closing)),
        web.get("/metrics", access.allowing(keys, "read", ops.metrics)),
        *openapi.routes(with_keys=keys is not None, strict=settings.strict),
    ]
    if settings.cors_origins:
        routes.append(web.options("/identify", access.preflight))

    app = web.Application(client_max_size=settings.max_body)
    app[DATABASE] = database
    app[CLOSING] = closing
    app[UNSENT] = unsent
    app.cleanup_ctx.append(_database)
    app.on_response_prepare.append(middleware.sign)
    app.add_routes(access.to_origins(origins(settings), middleware.routed(routes, closing, _hosts(settings, keys))))
    if keys is not None:
        app[KEYS] = keys
        app.cleanup_ctx.append(_keys)
    return app


def _hosts(settings: Settings, keys: Keys | None) -> Hosts | None:
    """The hosts that a request may name, or None if every host may be named."""
    if settings.allowed_hosts is None and (keys is not None or settings.allow_anonymous):
        return None
    return Hosts(allowed_hosts(settings))


def make_database(settings: Settings) -> Database:
    """The settings' database, not opened yet."""
    return Database(database_url(settings), database_settings(settings))


async def _database(app: web.Application) -> AsyncIterator[None]:
    async with app[DATABASE].opened():
        yield


async def _keys(app: web.Application) -> AsyncIterator[None]:
    following = background.keep_running("reload of the API keys", app[KEYS].follow)
    yield
    following.cancel()
