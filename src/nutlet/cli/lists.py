"""Commands that list what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from nutlet.cli.common import AsJson, app, loading, reported, show

__all__ = ["attacks", "methods"]

AsSchema = Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the YAML file that lists them.")]


@app.command()
@reported
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its documentation.")] = None,
    as_json: AsJson = False,
    as_schema: AsSchema = False,
) -> None:
    """List every method, its options, and when to pick it."""
    with loading():
        from nutlet.methods import known_methods

    shared = ("include", "exclude")
    _list("method", known_methods(), name, as_json=as_json, schema_of="steps" if as_schema else None, shared=shared)


@app.command()
@reported
def attacks(
    name: Annotated[str | None, typer.Argument(help="One attack, with its documentation.")] = None,
    as_json: AsJson = False,
    as_schema: AsSchema = False,
) -> None:
    """List every attack, what it needs, and when an attacker would pick it."""
    with loading():
        from nutlet.attacks import known_attacks

    _list("attack", known_attacks(), name, as_json=as_json, schema_of="attacks" if as_schema else None)


def _list(
    what: str,
    known: dict[str, type[Any]],
    name: str | None,
    *,
    as_json: bool,
    schema_of: str | None,
    shared: tuple[str, ...] = (),
) -> None:
    import inspect

    from nutlet.catalogue import file_schema, listed, listing, options_table

    chosen = listed(what, known, name)
    if schema_of is not None:
        typer.echo(json.dumps(file_schema(schema_of, {kind["name"]: known[kind["name"]] for kind in chosen}), indent=1))
    elif as_json:
        typer.echo(json.dumps(chosen, indent=1))
    else:
        show(listing(what, chosen, shared))
        if name is not None:
            show(options_table(chosen[0]))
            typer.echo(inspect.getdoc(known[name]))
