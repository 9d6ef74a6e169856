"""Settings of every program: a TOML file, environment variables and flags over one described model.

A program declares a pydantic model whose fields carry descriptions; `load` merges, from weakest to strongest, the
defaults, the file named by `--config`, the environment (`PREFIX_FIELD`) and the command line (`--field`). A value
that does not fit is reported with where it came from and what would fit, and ends the program with status 2.
Lists and tables are given in flags and variables as JSON.
"""

import argparse
import json
import os
import tomllib
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sled_controller.printable import complain

Model = TypeVar("Model", bound="Settings")

PeerSilence = Annotated[
    int,
    Field(
        ge=6, le=32767,
        description="seconds without a sign of life after which a connection ends whose peer has vanished (power lost, "
        "cable cut); an idle peer that is up stays connected",
    ),
]  # fmt: skip


KatoMax = Annotated[
    int,
    Field(
        ge=5, le=3600,
        description="the longest NVMe keep-alive timer, in seconds, that a host may ask for; a host that asks for none "
        "is given up after as long a silence",
    ),
]  # fmt: skip


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clock_faults: Path | None = Field(
        default=None, description="for tests only: a file that makes the clocks of this process wrong (docs/testing.md)"
    )


class SettingsError(Exception):
    """A setting is missing or wrong; the text names its source, its key and the remedy."""


def load(
    model: type[Model], prog: str, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ,
    *, command: str = "",
) -> Model:  # fmt: skip
    """Return the settings of program `prog`, or of a command of it, or print what is wrong and exit with status 2."""
    parser = build_parser(model, prog, command)
    arguments = vars(parser.parse_args(argv))
    try:
        return merge(model, prog, arguments, environ)
    except SettingsError as error:
        _fail(prog, str(error))


def prefix_of(prog: str) -> str:
    """The prefix of `prog`'s environment variables: `sled-controller` reads `SLED_CONTROLLER_*`."""
    return prog.upper().replace("-", "_") + "_"


def build_parser(model: type[Settings], prog: str, command: str = "") -> argparse.ArgumentParser:
    """A parser with one flag per field and the variable that stands for it in the help."""
    parser = argparse.ArgumentParser(
        prog=f"{prog} {command}".strip(), description=(model.__doc__ or "").strip(), argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file of settings [{prefix_of(prog)}CONFIG]")
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)}"
        text = f"{field.description or name} [{prefix_of(prog)}{name.upper()}; {default}]".replace("%", "%%")
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, dest=name, metavar="VALUE", help=text)
    return parser


def merge(model: type[Model], prog: str, arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Model:
    """Merge all sources into a `model`; raises SettingsError."""
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    config = arguments.get("config") or environ.get(prefix_of(prog) + "CONFIG")
    if config:
        for name, value in _read_file(Path(config)).items():
            values[name], origin[name] = value, str(config)
    for name in model.model_fields:
        variable = prefix_of(prog) + name.upper()
        if variable in environ:
            origin[name] = f"environment variable {variable}"
            values[name] = _from_text(model, name, environ[variable], origin[name])
        if name in arguments:
            origin[name] = f"flag --{name.replace('_', '-')}"
            values[name] = _from_text(model, name, arguments[name], origin[name])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(model, prog, error, origin, config)) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; name a readable file with --config") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}; correct that line") from None


def _from_text(model: type[Settings], name: str, text: object, source: str) -> object:
    if not isinstance(text, str) or not _is_structured(model.model_fields[name].annotation):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: {name}: is not JSON: {error}; write a list or table as JSON") from None


def _is_structured(annotation: Any) -> bool:
    """Whether the type, or a member of a union, is a list or a table, which text can only give as JSON."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_structured(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return any(_is_structured(member) for member in get_args(annotation))
    kind = origin if origin is not None else annotation
    return (
        isinstance(kind, type)
        and issubclass(kind, Collection | BaseModel)
        and not issubclass(kind, str | bytes | bytearray)
    )


def _explain(
    model: type[Settings], prog: str, error: ValidationError, origin: Mapping[str, str], config: str | None
) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "settings"
        name = str(problem["loc"][0]) if problem["loc"] else ""
        where = origin.get(name, config or "settings")
        if problem["type"] == "missing" and name not in origin:
            remedy = f"set it in a --config file, as {prefix_of(prog)}{name.upper()} or as --{name.replace('_', '-')}"
        elif problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            remedy = "remove it, or use one of: " + ", ".join(sorted(model.model_fields))
        else:
            field = model.model_fields.get(name)
            remedy = f"it is: {field.description}" if field and field.description else "see --help"
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        lines.append(f"{where}: {key}: {message[:1].lower()}{message[1:]} ({remedy})")
    return "\n".join(lines)


def _fail(prog: str, text: str) -> NoReturn:
    for line in text.splitlines():
        complain(prog, line)
    raise SystemExit(2)
