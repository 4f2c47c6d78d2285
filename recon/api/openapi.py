"""The OpenAPI document, made from the endpoints' records."""

import copy
import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from recon import __version__
from recon.http.endpoints import Endpoint, content
from recon.http.problems import Problem

_PROBLEMS = {
    400: "The request is invalid. `detail` says what is wrong, and for a body `errors` says where.",
    401: "The request has no valid API key.",
    403: "The API key lacks the scope that the request needs.",
    404: "No contact has, or had then, what the request names.",
    408: "The body did not arrive in time.",
    409: "The present state forbids the correction: the identity has changed, is kept apart, or does not divide.",
    410: "The identity is gone: it was erased, or no live contact is left.",
    413: "The body is larger than recon accepts.",
    414: "The request's target is too long.",
    415: "The body is not declared as JSON (a batch: NDJSON) in UTF-8, or has an encoding other than gzip or deflate.",
    421: "recon does not serve the host that the request names.",
    422: "The request is valid, but cannot be carried out. `type` and `detail` say why.",
    431: "The request's head is too large.",
    503: "The database is unavailable, or too many requests are waiting. Requests are idempotent: try again.",
}


def document(endpoints: Iterable[Endpoint], *, with_keys: bool = False, strict: bool = False) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document of the endpoints that have an operation.

    `with_keys` and `strict` tell whether API keys are needed and whether requests are checked strictly.
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        if endpoint.operation is not None:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, with_keys=with_keys)
    models: dict[str, type] = {}
    paths = _with_references(paths, models)
    components: dict[str, Any] = {"schemas": copy.deepcopy(_schemas(tuple(models.values())))}
    if strict:
        components["schemas"]["IdentifyRequest"]["additionalProperties"] = False
    if with_keys:
        components["securitySchemes"] = {
            "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key of recon: `recon_…`."}
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recon",
            "version": __version__,
            "summary": "Tells a shop which of its customers are the same person.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": components,
    }


def _operation(endpoint: Endpoint, *, with_keys: bool) -> dict[str, Any]:
    """Return the endpoint's operation, completed from the rest of its record."""
    operation = {"summary": endpoint.summary} | (endpoint.operation or {})
    statuses = set(endpoint.problems)
    if not endpoint.any_host:
        statuses.add(421)
    if "requestBody" in operation:
        statuses |= {408, 413, 415}
    if with_keys and endpoint.scope is not None:
        operation["security"] = [{"apiKey": [endpoint.scope]}]
        statuses |= {401, 403}
    operation["responses"] = operation["responses"] | {str(status): _problem(status) for status in sorted(statuses)}
    described = operation.get("parameters", [])
    names = set(re.findall(r"\{(\w+)\}", endpoint.path)) - {each["name"] for each in described if each["in"] == "path"}
    if names:
        text = {"type": "string"}
        derived = [{"name": name, "in": "path", "required": True, "schema": text} for name in sorted(names)]
        operation["parameters"] = derived + described
    return operation


def _problem(status: int) -> dict[str, Any]:
    response = content(_PROBLEMS[status], "application/problem+json", Problem)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return response


def _with_references(part: Any, models: dict[str, type]) -> Any:
    """Replace each model in a part of a document by a reference, and add the models to `models`."""
    if isinstance(part, type):
        models[part.__name__] = part
        return {"$ref": f"#/components/schemas/{part.__name__}"}
    if isinstance(part, dict):
        return {name: _with_references(value, models) for name, value in part.items()}
    if isinstance(part, list):
        return [_with_references(value, models) for value in part]
    return part


@cache  # every application describes the same models, and that takes most of the time to make one
def _schemas(models: tuple[type, ...]) -> dict[str, Any]:
    _, schemas = TypeAdapter.json_schemas(
        [(model, "validation", TypeAdapter(model)) for model in models],
        ref_template="#/components/schemas/{model}",
    )
    return dict(schemas.get("$defs", {}))
