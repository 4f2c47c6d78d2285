"""An erasure by HTTP is complete: nothing of the person is in the database, a dump of it, the log or the metrics."""

import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from recon.rules.digests import digest
from tests.harness.processes import Process, StartRecon
from tests.harness.remains import copied, dump, found, in_text

KEY = "the key of the digests, of a test"
GEORGE = "george.mcfly@hillvalley.edu"
LORRAINE = "lorräine@hillvalley.edu"
HOME, WORK, NEW = "+1 (919) 191-5550", "31415926535 ext. 5", "2718-281-828"
# Her identifiers by kind and match key, each with the texts that could give it away.
PERSON = {
    ("email", GEORGE): [GEORGE],
    ("email", LORRAINE): [LORRAINE],
    ("phoneNumber", "19191915550"): [HOME, "19191915550"],
    ("phoneNumber", WORK): [WORK, "31415926535", "314159265355"],
    ("phoneNumber", "2718281828"): [NEW, "2718281828"],
}
TEXTS = [text for texts in PERSON.values() for text in texts]
DIGESTS = [digest(KEY.encode(), value) for value in PERSON]
BIFF, DOC = "biff@hillvalley.edu", "doc@hillvalley.edu"


class Desk:
    """A steward who says too much: notes and Idempotency-Keys quote the person."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._sent = 0

    async def send(self, path: str, *, method: str = "POST", status: int = 200, **body: Any) -> Any:
        """The answer to a request that must have this status."""
        self._sent += 1
        quoted = (GEORGE, "19191915550", "31415926535", "314159265355")[self._sent % 4]
        headers = {"Idempotency-Key": f"{self._sent}-{quoted}"}
        async with self._session.request(method, self._url + path, json=body or None, headers=headers) as response:
            assert response.status == status, await response.text()
            return await response.json(content_type=None)

    async def get(self, path: str, status: int = 200) -> str:
        """The answer to a question, as text."""
        async with self._session.get(self._url + path) as response:
            assert response.status == status, await response.text()
            return await response.text()

    async def correct(self, path: str, **body: Any) -> Any:
        """A correction, first as a dry run."""
        noted = {"note": f"{TEXTS[self._sent % len(TEXTS)].upper()}, she says"} | body
        await self.send(path, **noted, dryRun=True)
        return await self.send(path, **noted)

    async def identify(self, email: str, phone: str) -> Any:
        """A request of the shop."""
        return await self.send("/identify", email=email, phoneNumber=phone)


@pytest.fixture(params=[False, True], ids=["plain", "suppressed"])
def suppresses(request: pytest.FixtureRequest) -> bool:
    """Whether the erasure keeps digests."""
    return bool(request.param)


@pytest.fixture
def process(database_url: str, start_recon: StartRecon) -> Process:
    """A recon that logs every request into a file."""
    environment = os.environ | {"RECON_SUPPRESS_KEY": KEY}
    return start_recon("--database-url", database_url, "--log-level", "debug", env=environment)


@pytest.fixture
async def desk(process: Process) -> AsyncIterator[Desk]:
    """A steward of that recon, by whose story the person got into every place that recon has for her."""
    async with aiohttp.ClientSession() as session:
        desk = Desk(session, process.url)
        await _live(desk)
        yield desk


async def _live(desk: Desk) -> None:
    """She is identified, merged, linked, split, kept apart, withheld, blocked, unblocked, and looked up."""
    for email, phone in ((GEORGE.title(), HOME), (LORRAINE.upper(), WORK), (BIFF, "717171"), (DOC, "55555")):
        await desk.identify(email, phone)
    await desk.identify(GEORGE, WORK)  # merges 2 into 1
    await desk.correct("/identities/1/link", contactId=3)
    await desk.correct("/identities/1/split", parts=[[{"email": BIFF}, {"phoneNumber": "717171"}]])
    await desk.correct("/identities/1/split", parts=[[{"email": LORRAINE}], [{"phoneNumber": HOME}]], keepApart=False)
    for other in ({"email": LORRAINE}, {"phoneNumber": HOME}):
        [contact] = (await desk.send("/lookup", **other))["contacts"]
        await desk.correct("/identities/1/link", contactId=contact["primaryContactId"])
    await desk.correct("/identities/4/keep-apart", contactId=1)
    withheld = await desk.identify(GEORGE, "55555")
    assert [each["reason"] for each in withheld["withheld"]] == ["kept-apart"]
    await desk.send("/guards", method="PATCH", maxPhones=2, note=f"of {GEORGE}")
    withheld = await desk.identify(LORRAINE, NEW)
    assert [each["reason"] for each in withheld["withheld"]] == ["limit"]
    await desk.correct("/blocked", phoneNumber=WORK)
    await desk.correct("/blocked/release", phoneNumber=WORK)
    await desk.identify(LORRAINE, WORK)
    await _ask(desk)
    review = (await desk.send("/withheld", method="GET"))["withheld"]
    await desk.correct(f"/withheld/{review[-1]['eventId']}/dismiss")


async def _ask(desk: Desk) -> None:
    """Questions about her, and requests that are refused."""
    for question in ("", "/links", "/history", "?asOf=5"):
        await desk.get(f"/identities/1{question}")
    await desk.send("/why", **{"from": {"email": GEORGE}, "to": {"phoneNumber": HOME}})
    await desk.send("/why", **{"from": {"email": GEORGE}, "to": {"email": BIFF}})
    await desk.send("/identify", status=400, email=GEORGE, phoneNumber=True)
    await desk.send("/identities/1/link", status=400, contactId=3, **{GEORGE: HOME})
    await desk.send("/identities/1/link", status=409, contactId=3, note=GEORGE)
    await desk.send("/identities/1/split", status=422, parts=[[{"email": GEORGE}, {"email": GEORGE}]])
    await desk.send("/identities/1/split", status=422, links=[GEORGE])


async def test_nothing_is_left(suppresses: bool, desk: Desk, process: Process, database_url: str) -> None:
    """Before the erasure, she is in the database and in dumps of it; afterwards, at most the digests of her are."""
    [contact] = (await desk.send("/lookup", email=GEORGE))["contacts"]
    [other] = (await desk.send("/lookup", email=LORRAINE))["contacts"]
    assert contact == other
    before = await found(database_url, [*TEXTS, *DIGESTS])
    assert before.keys() == set(TEXTS), "the search does not find what is there"
    assert {"contact.email", "event.email", "event.note", "correction.key", "correction.answer"} <= before[GEORGE]
    for written in (await dump(database_url), await copied(database_url)):
        assert in_text(written, [*TEXTS, *DIGESTS]) == TEXTS

    erased = await desk.correct("/identities/1/erase", suppress=suppresses)

    # The number that was withheld has never been in a contact.
    left = {text: {"blocked.key"} for text in DIGESTS[:-1]} if suppresses else {}
    assert await found(database_url, [*TEXTS, *DIGESTS]) == left
    for written in (await dump(database_url), await copied(database_url)):
        assert in_text(written, [*TEXTS, *DIGESTS]) == list(left)
        assert in_text(written, [BIFF, DOC, "717171"]) == [BIFF, DOC, "717171"]
    for path in ("/metrics", "/withheld", "/blocked", "/identities/3/history", "/identities/4/links"):
        assert in_text(await desk.get(path), [*TEXTS, *DIGESTS]) == []
    for contact_id in erased["contactIds"]:
        for question in ("", "/links", "/history", "?asOf=5"):
            assert '"urn:recon:erased"' in await desk.get(f"/identities/{contact_id}{question}", 410)
    assert set(erased["contactIds"]) >= {contact["primaryContactId"], *contact["secondaryContactIds"]}
    assert process.log.count("POST /identities/{contactId}/erase") == 2
    assert in_text(process.log, [*TEXTS, *DIGESTS, KEY, BIFF]) == []
