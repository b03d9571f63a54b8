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
        from nutlet.catalogue import file_schema
        from nutlet.methods import known_methods

    if as_schema:
        typer.echo(json.dumps(file_schema("steps", known_methods()), indent=1))
        return
    _list("method", known_methods(), name, as_json=as_json, shared=("include", "exclude"))


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
        from nutlet.catalogue import file_schema

    if as_schema:
        typer.echo(json.dumps(file_schema("attacks", known_attacks()), indent=1))
        return
    _list("attack", known_attacks(), name, as_json=as_json)


def _list(
    what: str, known: dict[str, type[Any]], name: str | None, *, as_json: bool, shared: tuple[str, ...] = ()
) -> None:
    import inspect

    from nutlet.catalogue import listed, listing, options_table

    chosen = listed(what, known, name)
    if as_json:
        typer.echo(json.dumps(chosen, indent=1))
        return
    show(listing(what, chosen, shared))
    if name is not None:
        show(options_table(chosen[0]))
        typer.echo(inspect.getdoc(known[name]))
