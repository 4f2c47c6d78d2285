"""The endpoint of the change feed: everything that happened after a position, and the identities that it touched."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from aiohttp import hdrs, web
from pydantic import Field
from pydantic_core import to_json
from typing_extensions import TypedDict

from recon.api.messages import Identity, identity_shown
from recon.api.parameters import AFTER, PAGE_SIZE, parameters_of, whole
from recon.api.questions import HistoryEntry, entry_shown
from recon.http.endpoints import Endpoint, content
from recon.http.middleware import Handler
from recon.identities.changes import MOST_WAIT, Changes
from recon.identities.deadlines import limited
from recon.identities.lookup import LIMIT, MAX_ID, MOST
from recon.rules import clusters
from recon.rules.feed import Page
from recon.settings import Settings

_JSON = "application/json"
_WAIT = {
    "name": "wait",
    "in": "query",
    "description": f"Seconds to wait for a change if there is none yet (long poll), at most {MOST_WAIT}.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MOST_WAIT, "default": 0},
}
_EXAMPLE = {
    "entries": [
        {
            "position": 3,
            "at": "2026-11-21T12:00:00Z",
            "kind": "merged",
            "source": "shop",
            "note": None,
            "email": "george@hillvalley.edu",
            "phoneNumber": "717171",
            "primaryContactId": 1,
            "otherContactId": 2,
            "detail": None,
        }
    ],
    "identities": [
        identity_shown(
            clusters.Identity(1, ["george@hillvalley.edu", "biffsucks@hillvalley.edu"], ["919191", "717171"], [2])
        )
    ],
    "gone": [{"contactId": 2, "primaryContactId": 1}],
    "next": 3,
    "more": False,
}


class GoneShown(TypedDict):
    """An id that is no longer a primary."""

    contactId: int
    primaryContactId: Annotated[
        int | None,
        Field(description="The primary of its identity now; null: it was erased, or no contact of it is live."),
    ]


class ChangesResponse(TypedDict):
    """A page of the change feed. To keep a copy, delete what is `gone`, then store `identities`."""

    entries: Annotated[list[HistoryEntry], Field(description="Contacts and events after the position, oldest first.")]
    identities: Annotated[list[Identity], Field(description="Every identity that they touched, as it is now.")]
    gone: Annotated[list[GoneShown], Field(description="Every id that is no longer a primary, and where it leads.")]
    next: Annotated[int, Field(description="The position at which this page ends: send it as `after`.")]
    more: Annotated[
        bool, Field(description="Whether more pages follow. If not, the copy is that of the database at one moment.")
    ]


def changes_response(page: Page) -> bytes:
    """A ChangesResponse as JSON."""
    response: ChangesResponse = {
        "entries": [entry_shown(entry) for entry in page.entries],
        "identities": [identity_shown(identity) for identity in page.identities],
        "gone": [{"contactId": contact, "primaryContactId": primary} for contact, primary in page.gone],
        "next": page.next,
        "more": page.more,
    }
    return to_json(response)


def endpoints(changes: Changes[bytes], settings: Settings) -> list[Endpoint]:
    """The endpoint that answers with the pages of `changes`."""
    operation: dict[str, Any] = {
        "tags": ["identity"],
        "operationId": "changes",
        "description": "Keep a copy of all identities: delete what is `gone`, store `identities`, and ask for the page "
        "after `next`. Whenever `more` is false, the copy is exact. docs/bulk.md says what the feed covers.",
        "parameters": [AFTER, PAGE_SIZE, _WAIT],
        "responses": {"200": content("A page of the change feed.", _JSON, ChangesResponse)},
    }
    operation["responses"]["200"]["content"][_JSON]["example"] = _EXAMPLE
    return [
        Endpoint(
            method="GET",
            path="/changes",
            handler=_handler(changes.page, settings.request_timeout),
            scope="read",
            cors=True,
            stream=True,  # a request that waits may take half a minute, and ends with its client or with the process
            summary="What happened after a position, and the identities that it touched; waits for changes if asked to",
            operation=operation,
            problems=(400, 409, 414, 431, 503),
        )
    ]


def _handler(page: Callable[[int, int, float], Awaitable[bytes]], seconds: float) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        given = parameters_of(request, "after", "limit", "wait")
        after = whole("after", given.get("after", "0"), 0, MAX_ID)
        limit = whole("limit", given.get("limit", str(LIMIT)), 1, MOST)
        wait = whole("wait", given.get("wait", "0"), 0, MOST_WAIT)
        async with limited(wait + seconds):
            body = await page(after, limit, 0 if request.method == hdrs.METH_HEAD else wait)
        return web.Response(body=body, content_type=_JSON)

    return handler
