"""`recon import --dry-run`: what the rules make of files, and what they would make of them under other guards."""

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import click

from recon.cli.corrections import value_of
from recon.errors import ReconError
from recon.settings import Settings

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without them
    from recon.rules.guards import Guards
    from recon.transfer.dry_run import DryRun
    from recon.transfer.pieces import Piece
    from recon.transfer.records import Format
    from recon.transfer.text import Text

    File: TypeAlias = tuple[Text, Format, Iterator[Piece]]  # a file, how it is read, and what is read of it

_PLOTS = (".svg", ".png")


class Told(Protocol):
    """The options of the import that matter here."""

    @property
    def encoding(self) -> str | None:
        """Of the files."""

    @property
    def rejects(self) -> Path | None:
        """The file for rejected records."""

    @property
    def as_json(self) -> bool:
        """Whether the report is JSON."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a dry run was told: the export that it begins with, the other guards, and where the plot goes."""

    on: Path | None
    max_emails: int | None
    max_phones: int | None
    block_common: bool | None
    block: Sequence[str]
    plot: Path | None

    def has_other_guards(self) -> bool:
        """Tell whether the records are also decided under other guards."""
        return bool(self.block) or any(
            each is not None for each in (self.max_emails, self.max_phones, self.block_common)
        )

    def guards(self, present: "Guards", region: str | None) -> "Guards":
        """The present guards with the changes that were asked for. Raises ReconError."""
        from recon.rules.guards import Guards

        values = [value_of(text, region) for text in self.block]
        return Guards(
            present.max_emails if self.max_emails is None else self.max_emails,
            present.max_phones if self.max_phones is None else self.max_phones,
            present.block_common if self.block_common is None else self.block_common,
            frozenset(
                ("email", each.email) if each.email is not None else ("phoneNumber", each.phone_key or "")
                for each in values
            ),
        )


_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Store nothing; show what the rules make of the records."),
    click.option(
        "--on",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="EXPORT",
        help="Dry run: begin with the identities of this file, which `recon export` wrote as NDJSON.",
    ),
    click.option(
        "--max-emails",
        type=click.IntRange(0, 2**31 - 1),
        metavar="N",
        help="Dry run: also with this limit for the emails of an identity; 0 for no limit.",
    ),
    click.option(
        "--max-phones",
        type=click.IntRange(0, 2**31 - 1),
        metavar="N",
        help="Dry run: also with this limit for its phone numbers.",
    ),
    click.option(
        "--block",
        multiple=True,
        metavar="VALUE",
        help="Dry run: also with this email or phone number blocked; may be repeated.",
    ),
    click.option(
        "--block-common/--no-block-common",
        default=None,
        help="Dry run: also with recon's own list of values that identify nobody, or without it.",
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Dry run: draw the sizes of the identities, as .svg or .png (needs recon[plot]).",
    ),
)


def records_of(texts: "Sequence[Text]") -> "Sequence[Text]":
    """The files, none of which is a full export. Raises ReconError."""
    from recon.transfer.restoring import is_full_export

    for text in texts:
        if is_full_export(text):
            raise ReconError(f"{text.name} is a full export, which is restored as a whole: it takes no --dry-run")
    return texts


def offered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a dry run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def taken_from(options: dict[str, Any], *, interrupted: bool) -> WhatIf | None:
    """Take the options of a dry run from those of the command; None if it is none. Raises UsageError."""
    is_asked = options.pop("dry_run")
    names = "on", "max_emails", "max_phones", "block_common", "block", "plot"
    found = WhatIf(**{name: options.pop(name) for name in names})
    if not is_asked:
        if found.has_other_guards() or found.on or found.plot:
            raise click.UsageError(
                "--on, --plot and other guards are for --dry-run; `recon guards` and `recon block` change the guards"
            )
        return None
    if interrupted:
        raise click.UsageError(
            "a dry run has nothing to --resume or --restart: it reads the whole file and stores nothing"
        )
    if found.plot and found.plot.suffix.lower() not in _PLOTS:
        raise click.UsageError(f"--plot writes {' or '.join(_PLOTS)} files: {found.plot} is neither")
    if found.plot and not os.access(found.plot.parent, os.W_OK):
        raise click.UsageError(f"--plot: {found.plot.parent} is no folder that can be written to")
    return found


def run(what_if: WhatIf, files: "Sequence[File]", settings: Settings, told: Told) -> None:
    """Decide the records of the files in memory, and print the report. Raises ReconError."""
    from recon.cli import outcome
    from recon.transfer.dry_run import DEFAULTS, DryRun

    if what_if.plot:
        from recon.cli import plot

        plot.require()
    runs = {"present": DryRun(DEFAULTS)}
    if what_if.has_other_guards():
        runs["other"] = DryRun(what_if.guards(DEFAULTS, settings.default_region))
    begun = time.monotonic()
    gc.disable()  # what is kept has no cycles, and a collection would look at millions of objects
    try:
        on = None if what_if.on is None else _begin(what_if.on, [*runs.values()], settings)
        for file in files:
            _decide(file, [*runs.values()], told)
        outcomes = {name: each.outcome() for name, each in runs.items()}
    finally:
        gc.enable()
    report = outcome.encoded([text.name for text, _, _ in files], on, runs, outcomes, time.monotonic() - begun)
    if what_if.plot:
        plot.write(what_if.plot, {name: each.sizes for name, each in outcomes.items()})
        report["plot"] = str(what_if.plot)
    if told.as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    from recon.cli import terminal

    terminal.console().print(*outcome.readable(report), sep="\n")


def _begin(path: Path, runs: "Sequence[DryRun]", settings: Settings) -> dict[str, Any]:
    """Take the identities of an export, and say what it has."""
    from recon.rules.identifiers import phone_key_for
    from recon.transfer.existing import Export
    from recon.transfer.text import Text

    with closing(Text(str(path))) as text:
        export = Export(text, phone_key_for(settings.default_region))
        identities = contacts = 0
        for people in export.people():
            for each in runs:
                each.take(people)
            identities += len(people)
            contacts += sum(len(person.ids) for person in people)
    return {"file": str(path), "position": export.position, "identities": identities, "contacts": contacts}


def _decide(file: "File", runs: "Sequence[DryRun]", told: Told) -> None:
    """Decide the records of a file. The first of the runs gives the rejects that are written."""
    from recon.cli.tally import Display
    from recon.transfer.dry_run import common_values
    from recon.transfer.importing import Progress
    from recon.transfer.rejects import Rejects

    text, form, pieces = file
    rejects = None if told.rejects is None else Rejects(told.rejects, form, told.encoding)
    length = 0
    counts: Counter[str] = Counter()
    with Display(text.name, text.size, 0) as display:
        for piece in pieces:
            common = common_values(piece.requests)
            rejected, *_ = [each.add(piece, common) for each in runs]
            if rejects is not None:
                length = rejects.write(length, rejected)
            counts.update(records=piece.records, rejected=len(rejected))
            display.show(Progress(counts, piece.position))
