"""The operating-system user that the embedded PostgreSQL runs as, and that user's access to files."""

import logging
import os
import pwd
import stat
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

SERVER_USER = "pgserver"  # PostgreSQL refuses to run as root


class Account(NamedTuple):
    """A user of the operating system; `is_other` unless recon itself runs as that user."""

    uid: int
    gid: int
    is_other: bool

    def as_user(self) -> dict[str, Any]:
        """Arguments of subprocess.Popen that make a program run as this user, without recon's groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}

    def own(self, created: Path | int) -> None:
        """Make this user the owner of a file or folder that recon has created, given as a path or descriptor."""
        if self.is_other:
            os.chown(created, self.uid, self.gid)


def own_name() -> str:
    """Name of the user that recon runs as, as peer authentication sees it. Raises OSError if the user has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise OSError(
            f"the user id {os.geteuid()} has no name (in /etc/passwd), and the embedded PostgreSQL needs one: "
            "add the user, or set DATABASE_URL"
        ) from None


def server_account() -> Account:
    """The user that the embedded PostgreSQL runs as: recon's own, or `pgserver`, created if necessary, for root."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_other=False)
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        entry = _created_user()
    return Account(entry.pw_uid, entry.pw_gid, is_other=True)


def _created_user() -> pwd.struct_passwd:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_USER]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)  # noqa: S603 (constants)
        entry = pwd.getpwnam(SERVER_USER)
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise OSError(
            f"PostgreSQL refuses to run as root, and the user {SERVER_USER} could not be created for it (by useradd): "
            "create that user, or run recon as an ordinary user"
        ) from None
    log.warning("created the user %s, because PostgreSQL refuses to run as root", SERVER_USER)
    return entry


def let_reach(account: Account, path: Path) -> None:
    """Let another user reach `path`: make the folders above it searchable for all users, but not listable."""
    if account.is_other:
        for folder in reversed(path.parents):
            _open(account, folder, stat.S_IXOTH)


def let_read(account: Account, tree: Path) -> None:
    """Let another user read all files in `tree`, and run the programs among them."""
    if not account.is_other:
        return
    let_reach(account, tree)
    opened = _open(account, tree, stat.S_IROTH | stat.S_IXOTH, quiet=True)
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            is_program = path.stat().st_mode & stat.S_IXUSR
            opened |= _open(account, path, stat.S_IROTH | (stat.S_IXOTH if is_program else 0), quiet=True)
    if opened:
        log.warning("opened %s, with the programs of PostgreSQL, for reading by all users", tree)


def _open(account: Account, path: Path, bits: int, *, quiet: bool = False) -> bool:
    """Give all users these permissions, unless `account` owns `path`; return whether any was missing."""
    status = path.stat()
    before = stat.S_IMODE(status.st_mode)
    if status.st_uid == account.uid or before & bits == bits:
        return False
    path.chmod(before | bits)
    if not quiet:
        log.warning(
            "opened %s (mode %04o, now %04o), so that the user %s gets to its files",
            path,
            before,
            before | bits,
            SERVER_USER,
        )
    return True
