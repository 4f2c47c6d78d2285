"""The application: what it carries, how it starts and ends, which path leads where."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from aiohttp import web

from recon import background
from recon.api import batch, changes, corrections, health, identities, openapi
from recon.api import identify as identify_endpoint
from recon.api.changes import changes_response
from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.http import endpoints, middleware
from recon.http.endpoints import Endpoint, Policy
from recon.http.hosts import Hosts
from recon.http.streams import Streams
from recon.http.unsent import Unsent
from recon.identities.batching import coalesced, plain
from recon.identities.changes import Changes
from recon.identities.chunks import MAX_CHUNK, MAX_CHUNK_WITHOUT_LANE, Chunks
from recon.identities.corrections import Corrections
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Answer, Identify
from recon.identities.lookup import Lookup
from recon.keys import Keys, keys_of
from recon.pages import docs
from recon.rules.digests import check_of, digest
from recon.rules.identifiers import Identifiers
from recon.settings import Settings, allowed_hosts, database_settings, database_url, origins, suppress_key

DATABASE = web.AppKey("database", Database)
CLOSING = web.AppKey("closing", asyncio.Event)  # set when the process is about to end
KEYS = web.AppKey("keys", Keys)
UNSENT = web.AppKey("unsent", Unsent)
STREAMS = web.AppKey("streams", Streams)
ENDPOINTS = web.AppKey("endpoints", list[Endpoint])


def create_app(settings: Settings) -> web.Application:
    """The application that serves the settings' database, which must be given.

    Raises SchemaMismatch at start-up when that database cannot be served; one that is not there or not prepared yet
    is waited for, with /readyz at 503. Raises Misconfigured for API keys that are not such.
    """
    database = make_database(settings)
    key = suppress_key(settings)
    identify = Identify(database, identify_response, None if key is None else partial(digest, key))
    deadlines = Deadlines(settings.request_timeout)
    unsent = Unsent(settings.max_unsent)
    if settings.coalesce:
        submit = coalesced(identify, settings.queue_limit, deadlines, max(1, settings.pool_size // 4), unsent.room)
    else:
        submit = plain(identify, settings.queue_limit, deadlines, settings.pool_size, unsent.room)

    largest = MAX_CHUNK if settings.writer_lane else MAX_CHUNK_WITHOUT_LANE
    chunks = Chunks(identify, settings.queue_limit, deadlines, unsent.room, largest)

    keys = keys_of(settings)
    closing = asyncio.Event()
    policy = Policy(keys, _hosts(settings, keys), origins(settings), closing, Streams(closing))
    described = api(submit, chunks, database, closing, settings, with_keys=keys is not None)
    document = openapi.document(described, with_keys=keys is not None, strict=settings.strict)
    served = described + docs.endpoints(document)

    app = web.Application(client_max_size=settings.max_body)
    app[DATABASE] = database
    app[UNSENT] = unsent
    app[CLOSING] = closing
    app[STREAMS] = policy.streams
    app[ENDPOINTS] = served
    app.cleanup_ctx.append(_database)
    app.on_response_prepare.append(middleware.finish_head)
    app.add_routes(endpoints.routes(served, policy))
    if keys is not None:
        app[KEYS] = keys
        app.cleanup_ctx.append(_keys)
    return app


def api(
    identify: Callable[[Identifiers], Awaitable[Answer]],
    chunks: Chunks,
    database: Database,
    closing: asyncio.Event,
    settings: Settings,
    *,
    with_keys: bool,
) -> list[Endpoint]:
    """The endpoints that the OpenAPI document describes."""
    sessions = max(1, settings.pool_size // 4)
    lookup = Lookup(database, sessions, settings.queue_limit)
    correcting = Corrections(database, settings.correction_timeout, sessions, settings.queue_limit)
    return [
        *identify_endpoint.endpoints(identify, settings, with_keys=with_keys),
        *batch.endpoints(chunks, closing, settings, with_keys=with_keys),
        *identities.endpoints(lookup, settings),
        *changes.endpoints(Changes(database, changes_response, settings.queue_limit), settings),
        *corrections.endpoints(correcting, database, settings, with_keys=with_keys),
        *health.endpoints(database, closing),
    ]


def _hosts(settings: Settings, keys: Keys | None) -> Hosts | None:
    """The hosts that a request may name, or None if every host may be named."""
    if settings.allowed_hosts is None and (keys is not None or settings.allow_anonymous):
        return None
    return Hosts(allowed_hosts(settings))


def make_database(settings: Settings) -> Database:
    """The settings' database, not opened yet."""
    key = suppress_key(settings)
    check = None if key is None else check_of(key)
    return Database(database_url(settings), replace(database_settings(settings), suppress_check=check))


async def _database(app: web.Application) -> AsyncIterator[None]:
    async with app[DATABASE].opened():
        yield


async def _keys(app: web.Application) -> AsyncIterator[None]:
    following = background.keep_running("reload of the API keys", app[KEYS].follow)
    yield
    following.cancel()
