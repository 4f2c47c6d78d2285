"""How files are read: formats, delimiters, encodings, columns, and the requests of a record."""

import gzip
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recon.errors import ReconError
from recon.transfer.pieces import Piece, pieces
from recon.transfer.records import Asked, format_of
from recon.transfer.requests import Maker
from recon.transfer.text import Text

Requests = list[tuple[str | None, str | None]]


def read(path: Path, asked: Asked | None = None, encoding: str | None = None, **options: Any) -> list[Piece]:
    """Return all pieces of a file."""
    with closing(Text(str(path), encoding)) as text:
        form = format_of(text, asked or Asked())
        maker = Maker("import", options.get("region"), strict=options.get("strict", False))
        return list(pieces(text, form, maker, form.line(), 2))


def requests_of(found: list[Piece]) -> Requests:
    """Return the requests of pieces."""
    return [(request.email, request.phone) for piece in found for request in piece.requests]


def reasons_of(found: list[Piece]) -> list[tuple[int, str]]:
    """Return the lines of records that make no request, and why."""
    return [(line, reason) for piece in found for line, _, reason in piece.invalid]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(delimiter: str, encoding: str, end: str, tmp_path: Path) -> None:
    """The delimiter is found, also beside others in a quoted name; a field may have line breaks; lines are counted."""
    rows = [
        ("id", '"a,b;c|d"', "E-Mail", "Telefon"),
        ("1", f'"two{end}lines ""quoted"""', " A@x.de ", "+49 1"),
        ("2", "", "", "2"),
    ]
    path = tmp_path / "shop.csv"
    path.write_bytes(end.join(delimiter.join(row) for row in rows).encode(encoding))

    found = read(path)

    assert requests_of(found) == [("a@x.de", "+49 1"), (None, "2")]
    assert [line for piece in found for line, _ in piece.origins] == [2, 4]
    assert sum(piece.unlinked for piece in found) == 1


@pytest.mark.parametrize("name", ["shop.csv.gz", "shop.csv"])
def test_gzip(name: str, tmp_path: Path) -> None:
    """A gzipped file is known by its first bytes; one that is cut off is an error."""
    packed = gzip.compress(b"email\n" + b"".join(b"c%d@x\n" % number for number in range(1000)))
    path = tmp_path / name
    path.write_bytes(packed)

    assert len(requests_of(read(path))) == 1000

    path.write_bytes(packed[:-100])
    with pytest.raises(ReconError, match="not a complete gzip file"):
        read(path)


def test_other_encodings(tmp_path: Path) -> None:
    """What is no text in the encoding is a reject; with its own encoding the file is read."""
    path = tmp_path / "shop.csv"
    path.write_bytes("email;phone\nmüller@x;1\nok@x;2\n".encode("latin-1"))

    found = read(path)

    assert requests_of(found) == [("ok@x", "2")]
    assert reasons_of(found) == [(2, "email has bytes that are no text in this encoding")]
    assert requests_of(read(path, encoding="latin-1")) == [("müller@x", "1"), ("ok@x", "2")]


@pytest.mark.parametrize(
    ("emails", "phones"),
    [
        (["email", "E-Mail 2", "customer_email", "Mail", "Email Address"], ["phone", "Tel.", "mobile", "Phone Number"]),
        (["billing e-mail"], ["Telefonnummer", "cell_phone", "Handy", "telephone2"]),
    ],
)
def test_columns_are_found_by_name(emails: list[str], phones: list[str], tmp_path: Path) -> None:
    """Names of columns are compared without case, spaces and signs."""
    path = tmp_path / "shop.csv"
    path.write_text(",".join(["id", *emails, "telemetry", "emailed at", *phones]))
    with closing(Text(str(path))) as text:
        assert format_of(text, Asked()).columns == (emails, phones)


def test_members_are_found_by_name(tmp_path: Path) -> None:
    """Those of the first lines count; what they lack has its name in the API. No line is lost or read twice."""
    path = tmp_path / "shop.ndjson"
    path.write_text(
        '{"id": 1}\n[]\n{"E-Mail": "a", "mail": ["b"]}\n' + '{"E-Mail": "c"}\n' * 200 + '{"phoneNumber": 5}'
    )

    found = read(path)

    assert requests_of(found) == [("a", None), ("b", None), *[("c", None)] * 200, (None, "5")]
    assert [line for piece in found for line, _ in piece.origins] == [3, 3, *range(4, 205)]
    assert found[-1].characters == len(path.read_text())
    for text, listed in (('{"id": 1, "name": ""}', "id, name"), ("", "no columns")):
        path.write_text(text)
        with pytest.raises(ReconError, match=f"It has {listed}"):
            read(path)


@pytest.mark.parametrize("name", ["shop.csv", "shop.ndjson"])
def test_what_is_done_is_skipped(name: str, tmp_path: Path) -> None:
    """A file is read on from any piece, also where lines were looked at before; the digests are the same."""
    path = tmp_path / name
    lines = ['{"mail": "%s"}', "%s"][name == "shop.csv"]
    path.write_text("mail\n" + "".join(f"{lines % number}\n" for number in range(300)))
    every = read(path)
    for piece in every[:: len(every) // 5]:
        with closing(Text(str(path))) as text:
            form = format_of(text, Asked())
            text.mark()

            assert text.skip(piece.characters) == piece.digest

            rest = [*pieces(text, form, Maker("import", None, strict=False), piece.line, 2)]
            assert rest == every[every.index(piece) + 1 :] or [each.digest for each in rest] == [piece.digest]


def test_columns_that_are_given(tmp_path: Path) -> None:
    """Only the given columns are read; an unknown one, and no column at all, are errors that list the columns."""
    path = tmp_path / "shop.csv"
    path.write_text("a,b,email\nx@x,1,no@x\n")

    assert requests_of(read(path, Asked(emails=["a"], phones=["b"]))) == [("x@x", "1")]
    with pytest.raises(ReconError, match="has no column c; it has a, b, email"):
        read(path, Asked(emails=["c"]))
    path.write_text("a,b\n")
    with pytest.raises(ReconError, match="give --email or --phone. It has a, b"):
        read(path)
    path.write_text("")
    with pytest.raises(ReconError, match="It has no columns"):
        read(path)


@pytest.mark.parametrize(
    ("emails", "phones", "expected", "unlinked"),
    [
        (["a", "b"], ["1", "2"], [("a", "1"), ("a", "2"), ("b", "1")], 0),
        (["a", "A ", "b"], [], [("a", None), ("b", None)], 2),
        ([], ["1", "+1", 2], [(None, "1"), (None, "2")], 2),
        (["a"], [], [("a", None)], 1),
    ],
)
def test_several_values(emails: Any, phones: Any, expected: Requests, unlinked: int, tmp_path: Path) -> None:
    """The first email comes with each phone number, and each further email with the first phone number."""
    path = tmp_path / "shop.jsonl"
    path.write_text(json.dumps({"email": emails, "phoneNumber": phones}))  # as POST /identify takes them

    (piece,) = read(path)[:1]

    assert requests_of([piece]) == expected
    assert piece.unlinked == unlinked


def test_what_makes_no_request(tmp_path: Path) -> None:
    """Each invalid record has its line and a reason, which quotes nothing of it."""
    path = tmp_path / "shop.ndjson"
    lines = [
        '{"email": "a", "phoneNumber": 1}',
        "{",
        "[1]",
        '{"email": 1}',
        '{"phoneNumber": true}',
        "",
        '{"email": " ", "phoneNumber": null}',
        '{"email": "a\\u0001"}',
        '{"phoneNumber": "%s"}' % ("1" * 65),
        '{"email": "\\ud800"}',
    ]
    path.write_text("\n".join(lines))

    found = read(path)

    assert requests_of(found) == [("a", "1")]
    assert reasons_of(found) == [
        (2, "is not JSON"),
        (3, "is not a JSON object"),
        (4, "email is not a string, a list of strings or null"),
        (5, "phoneNumber is not a string, a whole number, a list of them or null"),
        (7, "has neither an email nor a phone number"),
        (8, "email contains control characters"),
        (9, "phone number is longer than 64 characters"),
        (10, "email has bytes that are no text in this encoding"),
    ]


def test_strict_and_region(tmp_path: Path) -> None:
    """Strict refuses what is no address or number; a region gives phone numbers their match keys."""
    path = tmp_path / "shop.csv"
    path.write_text("email,phone\na,(201) 555-0123\na@example.com,(201) 555-0123\na@example.com,x1\n")

    found = read(path, strict=True, region="US")

    assert [request.phone_key for piece in found for request in piece.requests] == ["12015550123"]
    assert reasons_of(found) == [
        (2, "email is not a valid email address"),
        (4, "phone number is not a valid phone number"),
    ]


def test_rows_of_other_lengths(tmp_path: Path) -> None:
    """A short row lacks values; a long one is rejected, since its values may be those of other columns."""
    path = tmp_path / "shop.csv"
    path.write_text("email,phone\na\n\nb,1,2\n")

    found = read(path)

    assert requests_of(found) == [("a", None)]
    assert reasons_of(found) == [(4, "has 3 fields, but the header has 2")]


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    """The error names the line on which the record begins."""
    path = tmp_path / "shop.csv"
    path.write_text('email\na\n"b\n' + "c\n" * 100_000)
    with pytest.raises(ReconError, match="line 3 begins a record that does not end"):
        read(path)


def test_a_name_without_a_format(tmp_path: Path) -> None:
    """The format is asked for."""
    path = tmp_path / "shop.data"
    path.write_text("email\na\n")
    with pytest.raises(ReconError, match="give --format csv or --format ndjson"):
        read(path)
    assert requests_of(read(path, Asked("csv"))) == [("a", None)]
