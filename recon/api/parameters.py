"""What requests about identities have in their path, query and body: read, and described for the OpenAPI document."""

import re

from aiohttp import web

from recon.api.identify import require_json
from recon.errors import InvalidParameter
from recon.identities.lookup import LIMIT, MAX_ID, MOST

WHOLE = re.compile(r"[0-9]{1,19}")

CONTACT_ID = {
    "name": "contactId",
    "in": "path",
    "required": True,
    "description": "The id of any contact of the identity, live or soft-deleted.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_ID},
    "example": 1,
}
AFTER = {
    "name": "after",
    "in": "query",
    "description": "The position that the page comes after: `next` of the page before.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_ID, "default": 0},
}
PAGE_SIZE = {
    "name": "limit",
    "in": "query",
    "description": "How many positions the page has at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT},
}


async def body_of(request: web.Request) -> bytes:
    """The body, which must be declared as JSON. Raises the error of a body that is not as its headers say."""
    require_json(request)
    try:
        return await request.read()
    except (web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="The body is not as its headers say.") from None


def contact_id_of(request: web.Request) -> int:
    """The contact that the path names."""
    return whole("contactId", request.match_info["contactId"], 0, MAX_ID)


def page_of(request: web.Request) -> tuple[int, int]:
    """The page that the query asks for: the position that it comes after, and how many positions it has at most."""
    given = parameters_of(request, "after", "limit")
    return whole("after", given.get("after", "0"), 0, MAX_ID), whole("limit", given.get("limit", str(LIMIT)), 1, MOST)


def parameters_of(request: web.Request, *names: str) -> dict[str, str]:
    """The parameters of the query, each given once; an error quotes none, since it could be an identifier."""
    given = request.query
    if not set(given) <= set(names):
        known = ", ".join(names) if names else "none"
        raise InvalidParameter(f"The query has an unknown parameter; this endpoint takes {known}.")
    if len(given) > len(set(given)):
        raise InvalidParameter("The query has a parameter twice.")
    return dict(given)


def whole(name: str, text: str, least: int, most: int) -> int:
    """The whole number that a parameter has. Raises InvalidParameter unless it is within the range."""
    if not WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise InvalidParameter(f"{name} must be a whole number from {least} to {most}.")
    return int(text)
