"""`forwardpass keys`: make API keys, list and remove them. A key is shown once, as it is made, and nowhere kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_output import FAILED, MISUSED, fail
from server.security.roles import Role

if TYPE_CHECKING:
    from server.security.keys import KeyFile

key_commands = typer.Typer(help="Make, list and remove the API keys of a file (--auth-keys).", no_args_is_help=True)

KeyFilePath = Annotated[Path, typer.Option(help="The file of keys, which is made if it is not there.")]


@key_commands.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is: in logs, in limits, and as its tenant.")],
    file: KeyFilePath = Path("keys.yaml"),
    role: Annotated[
        list[Role] | None, typer.Option(help="What it may do; may be repeated.  [default: predict, read]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may use, with * for anything; all without it.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="For whom it asks; * for whom it says by X-Tenant.")] = "",
    rate: Annotated[float, typer.Option(min=0, help="Requests a second; 0: no limit.")] = 0,
    burst: Annotated[float, typer.Option(min=0, help="Requests at once after a pause; 0: those of a second.")] = 0,
    max_concurrent: Annotated[int, typer.Option(min=0, help="Requests under way at a time; 0: no limit.")] = 0,
    expires_days: Annotated[float, typer.Option(min=0, help="Days until it expires; 0: never.")] = 0,
) -> None:
    """Make a key and print it, alone, on standard output; the file has a hash of it.

    To rotate a key make another of the same name, hand it out, and remove the old one.
    """
    from server.security.keys import BadKeys, KeyFile, new_key, write_file

    now = datetime.now(UTC).replace(microsecond=0)
    known = _read(file)
    try:
        key, record = new_key(
            name=name,
            roles=tuple(role or (Role.PREDICT, Role.READ)),
            models=tuple(model or ()),
            tenant=tenant,
            rate_per_s=rate,
            burst=burst,
            max_concurrent=max_concurrent,
            created=now,
            expires=now + timedelta(days=expires_days) if expires_days else None,
        )
        write_file(file, KeyFile(keys=(*known.keys, record)))
    except BadKeys as error:
        fail(MISUSED, str(error))
    except OSError as error:
        fail(FAILED, f"{file}: {error.strerror}")
    typer.echo(key)


@key_commands.command("list")
def list_keys(file: KeyFilePath = Path("keys.yaml")) -> None:
    """Print what is kept of each key."""
    now = datetime.now(UTC)
    for record in _read(file).keys:
        state = "expired" if record.expires and record.expires <= now else "valid"
        until = f" until {record.expires:%Y-%m-%d %H:%M}" if record.expires else ""
        models = ",".join(record.models) or "all models"
        typer.echo(f"{record.id}  {record.name}  {','.join(record.roles)}  {models}  {state}{until}")


@key_commands.command()
def remove(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `forwardpass keys list` shows it.")],
    file: KeyFilePath = Path("keys.yaml"),
) -> None:
    """Take a key out of the file: servers that follow it refuse the key some seconds later."""
    from server.security.keys import KeyFile, write_file

    known = _read(file)
    left = tuple(record for record in known.keys if record.id != key_id)
    if len(left) == len(known.keys):
        fail(FAILED, f"{file}: there is no key {key_id}")
    write_file(file, KeyFile(keys=left))


def sign(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="MODEL...", help="Folders of models, with their manifest.json.")
    ] = None,
    key: Annotated[Path, typer.Option(help="PEM file of the private key (Ed25519).")] = Path("signing.pem"),
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key, and its public one beside it.")] = False,
) -> None:
    """Sign models for servers that load none but signed ones (--require-signed, --trusted-keys).

    What is signed is the manifest, which has the sha256 of every file. A change of the model needs a new signature.
    """
    from server.security.signing import BadKey, new_pair
    from server.security.signing import sign as sign_model

    if not models and not new_key:
        fail(MISUSED, "name a model's folder, or --new-key")
    try:
        if new_key:
            typer.echo(f"{new_pair(key)}: for --trusted-keys")
        for model in models or ():
            typer.echo(f"{model}: signed by {sign_model(model, key)}")
    except BadKey as error:
        fail(MISUSED, str(error))
    except OSError as error:
        fail(FAILED, f"{error.filename}: {error.strerror}")


def _read(file: Path) -> KeyFile:
    from server.security.keys import BadKeys, KeyFile, read_file

    try:
        return read_file(file) if file.exists() else KeyFile()
    except BadKeys as error:
        fail(MISUSED, str(error))
    except OSError as error:
        fail(FAILED, f"{file}: {error.strerror}")
