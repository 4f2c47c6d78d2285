"""POST /identify/batch: lines in, lines out, in order, as single requests would be answered."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from recon.keys import new_key
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

NDJSON = {"Content-Type": "application/x-ndjson"}
Client = TestClient[Any, Any]


def body(lines: Sequence[Any]) -> bytes:
    """A body of these requests; bytes are lines as they are."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


async def posted(client: Client, data: bytes, query: str = "", **options: Any) -> ClientResponse:
    """The response to a body."""
    headers = NDJSON | options.pop("headers", {})
    return await client.post(f"/identify/batch{query}", data=data, headers=headers, **options)


async def answers(client: Client, lines: Sequence[Any], query: str = "", **options: Any) -> list[Any]:
    """The lines of the answer to these lines, parsed."""
    response = await posted(client, body(lines), query, **options)
    assert (response.status, response.content_type) == (200, "application/x-ndjson")
    return [json.loads(line) for line in (await response.text()).splitlines()]


def summary(**counts: int) -> dict[str, dict[str, int]]:
    """A summary; what is not given is none."""
    names = ("lines", "ok", "failed", "created", "extended", "merged", "known", "withheld")
    return {"summary": dict.fromkeys(names, 0) | counts}


async def test_the_lines_are_processed_one_after_another(client: Client) -> None:
    """Each answer shows the identity as it is after its line, also after a merge with an identity of other lines."""
    found = await answers(
        client,
        [
            {"email": "a", "phoneNumber": "1"},
            {"email": "b", "phoneNumber": "2"},
            {"email": "a", "phoneNumber": "3"},
            {"email": "a", "phoneNumber": "2"},
            {"email": "b"},
            {"phoneNumber": 2},
        ],
    )

    *lines, last = found
    assert [(each["line"], each["status"]) for each in lines] == [(number, 200) for number in range(1, 7)]
    assert [
        (each["contact"]["primaryContactId"], each["contact"]["emails"], each["contact"]["phoneNumbers"])
        for each in lines
    ] == [
        (1, ["a"], ["1"]),
        (2, ["b"], ["2"]),
        (1, ["a"], ["1", "3"]),
        (1, ["a", "b"], ["1", "2", "3"]),
        (1, ["a", "b"], ["1", "2", "3"]),
        (1, ["a", "b"], ["1", "2", "3"]),
    ]
    assert lines[4]["contact"]["primaryContatctId"] == 1
    assert last == summary(lines=6, ok=6, created=2, extended=1, merged=1, known=2)


async def test_the_documents_example(client: Client) -> None:
    """The example of the OpenAPI document has the answer that it shows."""
    operation = (await (await client.get("/openapi.json")).json())["paths"]["/identify/batch"]["post"]
    example = operation["requestBody"]["content"]["application/x-ndjson"]["example"]

    response = await posted(client, example.encode())

    assert await response.text() == operation["responses"]["200"]["content"]["application/x-ndjson"]["example"]


async def test_a_large_identity_comes_in_parts(client: Client, database_url: str) -> None:
    """An answer that is larger than a part is whole, beside others in the same chunk."""
    others = "SELECT rpad('x' || n, 300, 'x'), 1, 'secondary' FROM generate_series(1, 1000) AS n"
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('large', '1')",
        f"INSERT INTO contact (email, linked_id, link_precedence) {others}",
    )
    *found, last = await answers(client, [{"email": "a"}, *[{"phoneNumber": 1}] * 20, {"email": "a"}])

    assert [len(each["contact"]["emails"]) for each in found] == [1, *[1001] * 20, 1]
    assert last == summary(lines=22, ok=22, created=1, known=21)


async def test_a_line_fails_alone(client: Client, database_url: str) -> None:
    """A line that is invalid has the problem of a single request, and the lines around it are done."""
    long = b'{"email": "%s"}' % (b"x" * 70_000)
    wrong = [b"{", {"email": 1}, {}, b"\xff", b'{"email": "x", "n": NaN}', {"email": "null", "phoneNumber": "000000"}]
    found = await answers(client, [{"email": "a"}, *wrong, long, {"email": "b"}])

    *lines, last = found
    assert [each["status"] for each in lines] == [200, 400, 400, 400, 400, 400, 422, 413, 200]
    for line, each in zip([*wrong, long], lines[1:-1], strict=True):
        single = await client.post("/identify", data=body([line])[:-1], headers={"Content-Type": "application/json"})
        assert each["problem"] == await single.json(content_type=None)
    assert last == summary(lines=9, ok=2, failed=7, created=2)
    assert [row["email"] for row in await fetch(database_url, "SELECT email FROM contact ORDER BY id")] == ["a", "b"]


async def test_blank_lines_and_ends_of_lines(client: Client) -> None:
    """Blank lines have a number and no answer; CR LF ends a line, too; the last line needs no end."""
    response = await posted(client, b'\n \t\r\n{"email": "a"}\r\n\n{"email": "b"}')

    found = [json.loads(line) for line in (await response.text()).splitlines()]
    assert [each.get("line") for each in found] == [3, 5, None]
    assert found[-1] == summary(lines=2, ok=2, created=2)
    empty = await posted(client, b"")
    assert json.loads(await empty.text()) == summary()


async def test_errors_only(client: Client) -> None:
    """errorsOnly=true leaves out the lines that succeeded."""
    lines = [{"email": "a"}, {"email": 1}, {"email": "a"}]

    assert [each.get("line") for each in await answers(client, lines, "?errorsOnly=true")] == [2, None]
    assert await answers(client, lines[:1], "?errorsOnly=true") == [summary(lines=1, ok=1, known=1)]
    assert len(await answers(client, lines, "?errorsOnly=false")) == 4
    for query in ("?errorsOnly=1", "?errorsOnly=true&errorsOnly=true", "?errors=true"):
        assert (await posted(client, b"", query)).status == 400


@pytest.mark.parametrize("kind", ["application/x-ndjson; charset=utf-8", "application/ndjson", "application/jsonl"])
async def test_the_types_of_a_body(kind: str, client: Client) -> None:
    """The names of the format that are in use are all accepted."""
    assert (await posted(client, b'{"email": "a"}', headers={"Content-Type": kind})).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-ndjson; charset=latin-1"},
        {"Content-Encoding": "br"},
    ],
)
async def test_other_types(headers: dict[str, str], client: Client) -> None:
    """Any other type or encoding is a 415 that says what to send."""
    response = await posted(client, b'{"email": "a"}', headers=headers)

    assert response.status == 415
    detail = (await response.json(content_type=None))["detail"]
    assert ("application/x-ndjson" if "Content-Type" in headers else "gzip") in detail


async def test_a_compressed_body(client: Client) -> None:
    """gzip is decoded as it arrives."""
    import gzip

    lines = body([{"email": f"{number}"} for number in range(5_000)])
    response = await posted(client, gzip.compress(lines), headers={"Content-Encoding": "gzip"})

    *_, last = (await response.text()).splitlines()
    assert json.loads(last) == summary(lines=5_000, ok=5_000, created=5_000)


async def test_a_batch_goes_through_the_guards(database_url: str, make_client: MakeClient) -> None:
    """What is withheld is named beside `contact` and counted, for keys that may read with its holder."""
    await execute(database_url, "UPDATE setting SET max_phones = 1")
    keys = {name: new_key(name, its) for name, its in {"shop": ["identify"], "desk": ["identify", "read"]}.items()}
    client = await make_client(api_keys=" ".join(line for _, line in keys.values()))
    lines = [
        {"email": "a", "phoneNumber": "1"},
        {"email": "b", "phoneNumber": "2"},
        {"email": "a", "phoneNumber": "2"},
        {"email": "a", "phoneNumber": "null"},
        {"phoneNumber": "null"},
    ]
    for name, (secret, _) in keys.items():
        *found, last = await answers(client, lines, headers={"Authorization": f"Bearer {secret}"})

        shown = {"primaryContactId": 2} if name == "desk" else {}
        nobody = {"primaryContactId": None} if name == "desk" else {}
        assert [each.get("withheld") for each in found] == [
            None,
            None,
            [{"identifier": "phoneNumber", "reason": "limit"} | shown],
            [{"identifier": "phoneNumber", "reason": "blocked"} | nobody],
            None,
        ]
        assert (found[-1]["status"], found[-1]["problem"]["type"]) == (422, "urn:recon:blocked")
        made = {"created": 2, "known": 2} if name == "shop" else {"known": 4}
        assert last == summary(lines=5, ok=4, failed=1, withheld=2, **made)
    sources = await fetch(database_url, "SELECT source FROM contact UNION ALL SELECT source FROM event")
    assert [row["source"] for row in sources] == ["shop"] * 3
    assert (await posted(client, b"", headers={"Authorization": "Bearer wrong"})).status == 401
