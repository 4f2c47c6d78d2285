"""The settings on the command line: their options, their help, and messages about wrong values."""

import os
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from recon.settings import GROUPS, VARIABLE_ONLY, Settings


def variables(name: str) -> list[str]:
    """Return the environment variables of a setting; the first one that is set wins."""
    alias = Settings.model_fields[name].validation_alias
    return [str(choice) for choice in alias.choices] if alias else [f"RECON_{name.upper()}"]  # type: ignore[union-attr]


def is_option(name: str) -> bool:
    """Whether a setting can be given as an option, and not only as a variable."""
    return Settings.model_fields[name].json_schema_extra != VARIABLE_ONLY


def settings_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for each of the named settings, all of them by default."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names or tuple(filter(is_option, Settings.model_fields))):
            command = _option(name, Settings.model_fields[name])(command)
        return command

    return decorate


class GroupedCommand(click.Command):
    """A command whose help lists the options in the groups of their settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group, and one for the options that are no settings."""
        group_of, title = {}, ""
        for name in Settings.model_fields:
            group_of[name] = title = GROUPS.get(name, title)
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(group_of.get(parameter.name or "", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def variables_alone() -> str:
    """Return a line of help about the settings that are not options."""
    fields = [(name, field) for name, field in Settings.model_fields.items() if not is_option(name)]
    return "By variable alone: " + " ".join(f"{variables(name)[0]} ({field.description})" for name, field in fields)


def shown_default(field: FieldInfo) -> str:
    """A setting's default, as help and README show it."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else str(default)


def load_settings(options: dict[str, Any]) -> Settings:
    """Read the settings from options and variables. Each invalid one is named in a line; then the command exits."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            name = next(name for name in Settings.model_fields if item["loc"][0] in {name, *variables(name)})
            source = _flag(name) if name in given else _variable(name)
            # The value is not shown: it may be a URL with a password.
            click.echo(f"recon: {source}: {_complaint(name, item)}", err=True)
        sys.exit(2)


def _option(name: str, field: FieldInfo) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    is_switch = field.annotation is bool
    choices = "|".join(_choices(field))
    values = f"[{choices}]" if choices else "VALUE"
    return click.option(
        f"{_flag(name)}/--no-{_flag(name)[2:]}" if is_switch else _flag(name),
        name,
        default=None,
        metavar=None if is_switch else values,
        help=f"{field.description} [{', '.join(variables(name))}; default: {shown_default(field)}]",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    """Return the variable that a setting was read from. Names are case-insensitive; empty variables do not count."""
    found = {variable.upper() for variable, value in os.environ.items() if value}
    return next(variable for variable in variables(name) if variable in found)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _complaint(name: str, item: ErrorDetails) -> str:
    """Say what is wrong with a setting's value, in recon's words instead of pydantic's.

    All invalid values of a number, a switch or a choice have one message, which says what is valid.
    """
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    field = Settings.model_fields[name]
    if choices := _choices(field):
        return f"must be {', '.join(choices[:-1])} or {choices[-1]}"
    if field.annotation is bool:
        return "must be on or off (also true or false, yes or no, 1 or 0)"
    if field.annotation is int:
        return f"must be a whole number {_range(field)}"
    if field.annotation is float:
        return f"must be a number of seconds {_range(field)}"
    return "is not valid"


def _range(field: FieldInfo) -> str:
    lowest, highest = (
        next((getattr(each, limit) for each in field.metadata if hasattr(each, limit)), None) for limit in ("ge", "le")
    )
    return f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
