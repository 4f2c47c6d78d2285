"""An independent model of the rules: union-find over identifiers, with none of recon's code.

For each request, it computes the right answer and the rows that the table must then have.
"""

from dataclasses import dataclass, field

Request = tuple[str | None, str | None]  # an email and a phone, in normal form; phones of digits only


@dataclass
class Model:
    """People as sets of identifiers, and rows as (id, email, phone) in order of creation.

    `merges` has (id, email, phone) of each request that made two people one. Rows and merges share one sequence of ids.
    """

    parent: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    rows: list[tuple[int, str | None, str | None]] = field(default_factory=list)
    merges: list[tuple[int, str | None, str | None]] = field(default_factory=list)

    def identify(self, request: Request) -> dict[str, object]:
        """Apply a request and return the right answer."""
        named = [(kind, value) for kind, value in zip(("email", "phone"), request, strict=True) if value is not None]
        people = {self._find(name) for name in named if name in self.parent}
        has_new = any(name not in self.parent for name in named)
        if has_new or len(people) > 1:
            position = 1 + len(self.rows) + len(self.merges)
            (self.rows if has_new else self.merges).append((position, *request))
        for name in named:
            self.parent.setdefault(name, name)
        for name in named:
            self.parent[self._find(name)] = self._find(named[0])
        assert len(people) <= 2 - has_new, "only a request without new identifiers can merge two people"
        return self.answer(named[0])

    def answer(self, name: tuple[str, str]) -> dict[str, object]:
        """Return the identity that an identifier belongs to."""
        person = self._find(name)
        rows = [row for row in self.rows if self._person_of(row) == person]
        return {
            "primaryContactId": rows[0][0],
            "primaryContatctId": rows[0][0],
            "emails": list(dict.fromkeys(email for _, email, _ in rows if email is not None)),
            "phoneNumbers": list(dict.fromkeys(phone for _, _, phone in rows if phone is not None)),
            "secondaryContactIds": [row[0] for row in rows[1:]],
        }

    def table(self) -> list[tuple[int, str | None, str | None, int | None]]:
        """Return (id, email, phone, linked_id) of every row."""
        oldest: dict[tuple[str, str], int] = {}
        for row in self.rows:
            oldest.setdefault(self._person_of(row), row[0])
        return [
            (*row, None if oldest[self._person_of(row)] == row[0] else oldest[self._person_of(row)])
            for row in self.rows
        ]

    def _person_of(self, row: tuple[int, str | None, str | None]) -> tuple[str, str]:
        _, email, phone = row
        return self._find(("email", email) if email is not None else ("phone", str(phone)))

    def _find(self, name: tuple[str, str]) -> tuple[str, str]:
        while self.parent[name] != name:
            name = self.parent[name]
        return name
