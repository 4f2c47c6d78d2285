"""The formats of files that are imported: records, the columns with identifiers, and rejected records."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

from recon.errors import ReconError
from recon.transfer.text import STDIN, Text

# The names of columns that are found without being told, in lower case and without anything but letters and digits.
_WHOSE = (
    "(?:customer|client|user|contact|primary|secondary|alternate|other|billing|shipping|work|home|private|business)?"
)
_EMAIL = re.compile(rf"{_WHOSE}e?mail(?:address|adresse|id)?s?\d*")
_PHONE = re.compile(
    rf"{_WHOSE}(?:(?:tele|cell|mobile)?phone|telefon|tel|mobile?|cell|handy|msisdn)(?:number|nummer|no|nr)?s?\d*"
)
_DELIMITERS = ",;\t|"
# Of a quoted field. One that is longer is a quote that is not closed.
_LONGEST_FIELD = 131_072
# Lines of NDJSON whose members are its columns. Without one for emails (or phone numbers), these have the API's name.
_LOOKED_AT = 100
_API_EMAIL, _API_PHONE = "email", "phoneNumber"
# What a file of rejects has besides the records.
LINE, REASON = "recon_line", "recon_reason"

csv.field_size_limit(_LONGEST_FIELD)

Raw: TypeAlias = Any  # a record as its format keeps it: a row, or a line of text
Values: TypeAlias = tuple[list[Any], list[Any]]  # emails and phone numbers as they were given


class Columns(NamedTuple):
    """The names of the columns with emails and with phone numbers."""

    emails: list[str]
    phones: list[str]


class Invalid(ValueError):
    """A record cannot be used. The message is its reason, and quotes nothing of it."""


class Format(Protocol):
    """How the records of a file are read, and how its rejects are written."""

    name: str
    columns: Columns
    suffix: str

    def records(self, first_line: int) -> Iterator[tuple[int, Raw]]:
        """Read the records that follow, each with the number of its first line."""

    def values(self, raw: Raw) -> Values:
        """Return what a record has in the columns. Raises Invalid."""

    def header(self) -> str:
        """Return the beginning of a file of rejects."""

    def reject(self, line: int, raw: Raw, reason: str) -> str:
        """Return a rejected record with its line and the reason."""

    def line(self) -> int:
        """Return how many lines have been read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said of a file: its format, and the names of its columns."""

    format: str | None = None
    emails: Sequence[str] = ()
    phones: Sequence[str] = ()


def format_of(text: Text, asked: Asked) -> Format:
    """The format of a file, of which the header has been read. Raises ReconError if it is not known."""
    suffix = text.name.lower().removesuffix(".gz").rpartition(".")[2]
    name = asked.format or {"csv": "csv", "tsv": "csv", "txt": "csv", "ndjson": "ndjson", "jsonl": "ndjson"}.get(suffix)
    if name is None:
        what = "standard input" if text.name == STDIN else text.name
        raise ReconError(f"the name of {what} does not tell its format: give --format csv or --format ndjson")
    return Csv(text, asked) if name == "csv" else Ndjson(text, asked)


class Csv:
    """Rows with a header. The delimiter is the one that the header has most."""

    name = "csv"
    suffix = ".csv"

    def __init__(self, text: Text, asked: Asked) -> None:
        self._lines = iter(text)
        self._file = text.name
        self._line = 0
        first = next(self._lines, "")
        self._delimiter = max(_DELIMITERS, key=re.sub('"[^"]*"', "", first).count)
        reader = csv.reader(chain([first], self._lines), delimiter=self._delimiter)
        self._header = [name.strip() for name in self._next(reader) or []]
        self._line = reader.line_num
        self.columns = _columns(text.name, self._header, asked)
        self._emails, self._phones = ([*self._places(names)] for names in self.columns)
        self._last = max(self._emails + self._phones)

    def _places(self, names: Iterable[str]) -> Iterator[int]:
        """The places of the columns with these names; several may have the same."""
        for name in names:
            yield from (place for place, each in enumerate(self._header) if each == name)

    def _next(self, reader: Any) -> list[str] | None:
        try:
            row: list[str] | None = next(reader, None)
        except csv.Error as error:
            raise ReconError(
                f"{self._file} is not CSV: line {self._line + 1} begins a record that does not end ({error}); "
                "is a quote not closed?"
            ) from None
        return row

    def records(self, first_line: int) -> Iterator[tuple[int, Raw]]:
        """Read the rows that follow; empty lines are none."""
        self._line = first_line
        reader = csv.reader(self._lines, delimiter=self._delimiter)
        while (row := self._next(reader)) is not None:
            line, self._line = self._line + 1, first_line + reader.line_num
            if row:
                yield line, row

    def line(self) -> int:
        """Return how many lines have been read."""
        return self._line

    def values(self, raw: Raw) -> Values:
        """Return what a row has in the columns."""
        if len(raw) > len(self._header):
            raise Invalid(f"has {len(raw)} fields, but the header has {len(self._header)}")
        if len(raw) <= self._last:
            raw = raw + [""] * (1 + self._last - len(raw))
        return [raw[place] for place in self._emails], [raw[place] for place in self._phones]

    def header(self) -> str:
        """Return the header of a file of rejects."""
        return self._written([*self._header, LINE, REASON])

    def reject(self, line: int, raw: Raw, reason: str) -> str:
        """Return the row with two more columns."""
        missing = [""] * (len(self._header) - len(raw))
        return self._written([*raw, *missing, str(line), reason])

    def _written(self, row: list[str]) -> str:
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=self._delimiter, lineterminator="\n").writerow(row)
        return written.getvalue()


class Ndjson:
    """A JSON object in each line."""

    name = "ndjson"
    suffix = ".ndjson"

    def __init__(self, text: Text, asked: Asked) -> None:
        self._lines = iter(text)
        self._line = 0
        if asked.emails or asked.phones:
            self.columns = Columns(list(asked.emails), list(asked.phones))
        else:
            found = _columns(text.name, _members(text.peek(_LOOKED_AT)), asked)
            self.columns = Columns(found.emails or [_API_EMAIL], found.phones or [_API_PHONE])

    def records(self, first_line: int) -> Iterator[tuple[int, Raw]]:
        """Read the lines that follow; blank ones are no records."""
        self._line = first_line
        for line in self._lines:
            self._line += 1
            if line.strip():
                yield self._line, line

    def line(self) -> int:
        """Return how many lines have been read."""
        return self._line

    def values(self, raw: Raw) -> Values:
        """Return what an object has in the members: a value, or a list of them."""
        record = _object(raw)
        emails, phones = ([*_flat(record, names)] for names in self.columns)
        if not all(isinstance(email, str) for email in emails):
            raise Invalid(f"{' or '.join(self.columns.emails)} is not a string, a list of strings or null")
        if not all(isinstance(each, str) or (type(each) is int and each >= 0) for each in phones):
            raise Invalid(f"{' or '.join(self.columns.phones)} is not a string, a whole number, a list of them or null")
        return emails, phones

    def header(self) -> str:
        """Return the beginning of a file of rejects."""
        return ""

    def reject(self, line: int, raw: Raw, reason: str) -> str:
        """Return the object with two more members; what is no object is its text."""
        try:
            record = _object(raw)
        except Invalid:
            record = {"recon_text": raw.rstrip("\r\n")}
        return json.dumps(record | {LINE: line, REASON: reason}) + "\n"


def _members(lines: Iterable[str]) -> list[str]:
    """The names of the members that the objects of these lines have."""
    names: dict[str, None] = {}
    for line in lines:
        with suppress(Invalid):
            names |= dict.fromkeys(_object(line))
    return [*names]


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise Invalid("is not JSON") from None
    if not isinstance(record, dict):
        raise Invalid("is not a JSON object")
    return record


def _flat(record: dict[str, Any], names: Iterable[str]) -> Iterator[Any]:
    for name in names:
        value = record.get(name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                yield each


def _columns(file: str, header: list[str], asked: Asked) -> Columns:
    """The columns that were asked for, or those whose names tell what they have."""
    if asked.emails or asked.phones:
        for name in (*asked.emails, *asked.phones):
            if name not in header:
                raise ReconError(f"{file} has no column {name}; it has {_listed(header)}")
        return Columns(list(asked.emails), list(asked.phones))
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in header}
    found = Columns(
        [name for name in plain if _EMAIL.fullmatch(plain[name])],
        [name for name in plain if _PHONE.fullmatch(plain[name])],
    )
    if not found.emails and not found.phones:
        raise ReconError(
            f"{file} has no column whose name says that it has emails or phone numbers: give --email or --phone. "
            f"It has {_listed(header)}"
        )
    return found


def _listed(header: list[str]) -> str:
    return ", ".join(header) or "no columns"
