"""The settings on the command line: valid values, invalid values and their messages, the help."""

import os
import re
from typing import Any

import pytest

from recon.cli.options import is_option, load_settings, variables
from recon.settings import GROUPS, DatabaseSettings, Settings, database_settings
from tests.harness.processes import recon

NUMBERS = ["", "x", "1e999999", "0x10", "1,5", "\uff11\u00bd", "nan", "inf", "-inf", "-1", "9" * 5000, "null", "[1]"]
SWITCHES = ["perhaps", "2", "onn", "-1", "\udcff"]
SECONDS = "must be a number of seconds from 0.001 to 86400"
SWITCH = "must be on or off (also true or false, yes or no, 1 or 0)"
NO_URL = "must start with postgresql://"
NO_HOST = "must be host names such as shop.example, without a port or a path"
NO_ORIGIN = "must be origins such as https://shop.example, without a path"
NO_REGION = "must be a two-letter country code, such as US"

# For each setting: the message about invalid values, and such values; for a number, those just outside its range.
WRONG: dict[str, tuple[str, list[str]]] = {
    "host": ("", []),
    "port": ("must be a whole number from 0 to 65535", [*NUMBERS, "65536", "80.5"]),
    "workers": ("must be a whole number from 1 to 64", [*NUMBERS, "0", "65"]),
    "database_url": (NO_URL, ["mysql://shop:hunter2@db/shop", "hunter2"]),
    "data_dir": ("", []),
    "api_keys": ("", []),
    "api_keys_file": ("", []),
    "allow_anonymous": (SWITCH, SWITCHES),
    "allowed_hosts": (NO_HOST, ["https://shop.example", "shop.example:8000", "shop.example/"]),
    "tls_cert": ("", []),
    "tls_key": ("", []),
    "cors_origins": (NO_ORIGIN, ["*", "https://a.example https://b.example/", "a.example"]),
    "default_region": (NO_REGION, ["Atlantis", "XX", "+1"]),
    "strict": (SWITCH, SWITCHES),
    "suppress_key": ("must have at least 32 characters", ["hunter2", "k" * 31]),
    "pool_size": ("must be a whole number from 2 to 1000", [*NUMBERS, "1", "1001"]),
    "pgbouncer": (SWITCH, SWITCHES),
    "queue_limit": ("must be a whole number of at least 1", [*NUMBERS, "0"]),
    "request_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "retry_limit": ("must be a whole number of at least 1", [*NUMBERS, "0"]),
    "statement_timeout": (SECONDS, [*NUMBERS, "0", "0.0004", "0.0009", "86400.1"]),
    "correction_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "coalesce": (SWITCH, SWITCHES),
    "writer_lane": (SWITCH, SWITCHES),
    "max_connections": ("must be a whole number from 1 to 1000000", [*NUMBERS, "0", "1000001"]),
    "head_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "body_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "send_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "keepalive_timeout": (SECONDS, [*NUMBERS, "0", "0.0009", "86400.1"]),
    "max_head": ("must be a whole number from 1024 to 1048576", [*NUMBERS, "1023", "1048577"]),
    "max_body": ("must be a whole number of at least 1024", [*NUMBERS, "1023"]),
    "max_unsent": ("must be a whole number of at least 1048576", [*NUMBERS, "1048575"]),
    "shutdown_timeout": ("must be a number of seconds from 0 to 86400", [*NUMBERS, "-0.1", "86400.1"]),
    "log_level": ("must be debug, info, warning or error", ["loud", "INFO", ""]),
    "log_format": ("must be auto, text or json", ["xml", ""]),
}
SWITCH_NAMES = [name for name, field in Settings.model_fields.items() if field.annotation is bool]


def complaints(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the error messages of the command for these options."""
    with pytest.raises(SystemExit) as ended:
        load_settings(options)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


def flag(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def test_every_setting_is_tried() -> None:
    """The table above has every setting."""
    assert list(WRONG) == list(Settings.model_fields)


@pytest.mark.parametrize("name", [name for name in WRONG if is_option(name) and name not in SWITCH_NAMES])
def test_a_wrong_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid option is an error in one line that names the option and the valid values, and quotes no value."""
    message, values = WRONG[name]

    for value in values:
        assert complaints({name: value}, capsys) == [f"recon: {flag(name)}: {message}"], value


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variable(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid variable is an error with the same line, which names the variable as it was written."""
    message, values = WRONG[name]

    for variable in variables(name):
        for spelt in (variable, variable.lower()):
            for value in filter(None, values):  # an empty variable counts as missing
                with monkeypatch.context() as environment:
                    environment.setenv(spelt, value)
                    assert complaints({}, capsys) == [f"recon: {variable}: {message}"], value


def test_the_variable_that_counts_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """If a setting has two variables, the line names the one that was read, not an empty one."""
    monkeypatch.setenv("PORT", "http")
    message = WRONG["port"][0]

    monkeypatch.setenv("RECON_PORT", "")
    assert complaints({}, capsys) == [f"recon: PORT: {message}"]
    monkeypatch.setenv("RECON_PORT", "https")
    assert complaints({}, capsys) == [f"recon: RECON_PORT: {message}"]
    assert complaints({"port": "tcp"}, capsys) == [f"recon: --port: {message}"]
    monkeypatch.setenv("RECON_PORT", "8000")
    assert load_settings({}).port == 8000
    assert load_settings({"port": "8001"}).port == 8001


def test_every_wrong_setting_is_named() -> None:
    """The command exits with 2 and a line for each invalid setting."""
    done = recon("serve", "--workers", "0", "--log-level", "loud", env=os.environ | {"PORT": "http"})

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "recon: PORT: must be a whole number from 0 to 65535",
        "recon: --workers: must be a whole number from 1 to 64",
        "recon: --log-level: must be debug, info, warning or error",
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("statement_timeout", {"0.001": 0.001, "86400": 86_400.0, " 1e1 ": 10.0}),
        ("shutdown_timeout", {"0": 0.0}),
        ("port", {"0": 0, "65535": 65_535, " 80 ": 80}),
        ("coalesce", {"off": False, "TRUE": True, "0": False, "no": False, "y": True}),
        ("default_region", {"us": "US"}),
    ],
)
def test_right_values(name: str, values: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of a range are valid, blanks around a number are ignored, and a switch accepts the usual words."""
    for value, meant in values.items():
        monkeypatch.setenv(variables(name)[0], value)

        assert getattr(load_settings({}), name) == meant


def test_the_help_has_groups_and_choices() -> None:
    """`recon serve --help` lists every option once, under its group, with its choices."""
    sections = re.split(r"^([A-Z][a-z ]+):$", recon("serve", "--help").stdout, flags=re.MULTILINE)[1:]
    options = {
        title: re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }

    assert list(options) == [*GROUPS.values(), "Options"]
    assert [each for listed in options.values() for each in listed] == [
        flag(name) for name in Settings.model_fields if is_option(name)
    ]
    assert options["Access"][0] == "--api-keys-file"
    assert "--log-level [debug|info|warning|error]" in "".join(sections)
    assert "--log-format [auto|text|json]" in "".join(sections)


def test_the_database_is_used_as_the_settings_say() -> None:
    """Each setting of the database reaches it, and has one default."""
    chosen: dict[str, Any] = {
        "pool_size": 7,
        "retry_limit": 8,
        "statement_timeout": 9,
        "writer_lane": False,
        "pgbouncer": True,
    }

    assert database_settings(Settings()) == DatabaseSettings()
    assert database_settings(Settings(request_timeout=10, **chosen)) == DatabaseSettings(
        transaction_timeout=10, **chosen
    )
