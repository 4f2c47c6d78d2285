"""The OpenAPI document, made from the models, and the page that shows it."""

from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter
from pydantic_core import to_json

from recon import __version__
from recon.messages import IdentifyRequest, IdentifyResponse
from recon.problems import Problem
from recon.unsent import PART

_REQUEST_EXAMPLES = {
    "both": {
        "summary": "An email and a phone number",
        "value": {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"},
    },
    "another-email": {
        "summary": "The same phone number with another email: one person",
        "value": {"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"},
    },
    "phone-only": {"summary": "A phone number alone, as a number", "value": {"phoneNumber": 123456}},
}
_ANSWER_EXAMPLE = {
    "contact": {
        "primaryContactId": 1,
        "primaryContatctId": 1,
        "emails": ["lorraine@hillvalley.edu", "mcfly@hillvalley.edu"],
        "phoneNumbers": ["123456"],
        "secondaryContactIds": [2],
    }
}
_LINKS = {
    "again": {
        "description": "Sending a request again, after a 503 for instance, adds nothing and finds the same identity.",
        "operationId": "identify",
        "requestBody": "$request.body",
    }
}
_PROBLEMS = {
    400: "The body is not JSON, or not an email or a phone number. `errors` says where.",
    401: "There is no API key with the request, or not one that recon knows.",
    403: "The API key lacks the scope that the request needs.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server takes.",
    414: "The request's target is too long.",
    415: "The body is not declared as JSON in UTF-8, or is compressed with something else than gzip or deflate.",
    421: "recon does not serve the host that the request names.",
    431: "The request's head is too large.",
    503: "The database is away or too much is waiting. Nothing is lost by sending the request again.",
}


def document(*, with_keys: bool = False, strict: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document of everything that recon serves, with API keys or without, checked strictly or not."""
    models = [IdentifyRequest, IdentifyResponse, Problem]
    _, schemas = TypeAdapter.json_schemas(
        [(model, "validation", TypeAdapter(model)) for model in models],
        ref_template="#/components/schemas/{model}",
    )
    if strict:
        schemas["$defs"]["IdentifyRequest"]["additionalProperties"] = False
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    found = {
        "openapi": "3.1.0",
        "info": {
            "title": "recon",
            "version": __version__,
            "summary": "Tells a shop which of its customers are the same person.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/identify": {"post": _identify()},
            "/healthz": {
                "get": _get("healthz", "Alive?", _content("The process is alive.", "application/json", status))
            },
            "/readyz": {
                "get": _get(
                    "readyz",
                    "Ready?",
                    _content("The database answers and has the schema.", "application/json", status),
                    _problems(503),
                )
            },
            "/metrics": {
                "get": _get(
                    "metrics",
                    "Figures for Prometheus",
                    _content("Metrics.", "text/plain", {"type": "string"}),
                    _problems(421),
                )
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }
    if with_keys:
        _guard(found)
    return found


def _guard(found: dict[str, Any]) -> None:
    """Say of the operations that need an API key that they do."""
    found["components"]["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key of recon: `recon_…`."}
    }
    for path, method, scope in (("/identify", "post", "identify"), ("/metrics", "get", "read")):
        operation = found["paths"][path][method]
        operation["security"] = [{"apiKey": [scope]}]
        operation["responses"] |= _problems(401, 403)


def _identify() -> dict[str, Any]:
    answer = _content("The whole identity.", "application/json", _ref("IdentifyResponse"))
    answer["content"]["application/json"]["example"] = _ANSWER_EXAMPLE
    answer["links"] = _LINKS
    return {
        "tags": ["identity"],
        "operationId": "identify",
        "summary": "Tell who this is",
        "description": "Files an email, a phone number, or both with everything known about that person, and answers "
        "with the whole identity. Sending a request again adds nothing.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("IdentifyRequest"), "examples": _REQUEST_EXAMPLES}},
        },
        "responses": {"200": answer} | _problems(400, 408, 413, 414, 415, 421, 431, 503),
    }


def _get(name: str, summary: str, answer: dict[str, Any], problems: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "tags": ["operation"],
        "operationId": name,
        "summary": summary,
        "responses": {"200": answer} | (problems or {}),
    }


def _problems(*statuses: int) -> dict[str, Any]:
    found = {
        str(status): _content(_PROBLEMS[status], "application/problem+json", _ref("Problem")) for status in statuses
    }
    if "503" in found:
        found["503"]["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return found


def _content(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model}"}


# The page has no script of its own in it, so that its policy need not allow any.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>recon</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true});
"""
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# What the page may load and do: its own files, pictures that are in its style sheet, and requests to recon. Swagger
# UI sets styles from its script, for which no policy need allow any in the page.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_A_DAY = "public, max-age=86400"


def routes(*, with_keys: bool = False, strict: bool = False) -> list[web.RouteDef]:
    """The document at /openapi.json, the page at /docs, and what the page needs; open to all, as it has no secrets."""
    static = files("swagger_ui") / "static"
    found = [
        web.get("/", _redirect_to_docs),
        web.get("/openapi.json", _fixed(to_json(document(with_keys=with_keys, strict=strict)), "application/json")),
        web.get("/docs", _fixed(_PAGE.encode(), "text/html")),
        web.get("/docs/start.js", _fixed(_START.encode(), "text/javascript")),
    ]
    for name, media_type in _ASSETS.items():
        found.append(web.get(f"/docs/{name}", _fixed((static / name).read_bytes(), media_type, _A_DAY)))
    return found


async def _redirect_to_docs(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "/docs"})


def _fixed(body: bytes, media_type: str, cache: str = "no-cache") -> Any:
    charset = "utf-8" if media_type.startswith("text/") else None
    headers = {"Cache-Control": cache, "Content-Length": str(len(body))} | _SECURITY

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=_in_parts(body), content_type=media_type, charset=charset, headers=headers)

    return handler


async def _in_parts(body: bytes) -> AsyncIterator[bytes]:
    """The parts of a body, each made when the client has taken the one before; a slow client keeps none of the rest."""
    for start in range(0, len(body), PART):
        yield body[start : start + PART]
