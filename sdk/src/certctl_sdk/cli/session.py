"""What every command is given: the server, once it is needed, and a place to show what it said."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from certctl_sdk.api import Page
    from certctl_sdk.client import Access, Client

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session:
    """The options that stand before the command."""

    server: str
    api_key: str
    ca_file: str
    form: str
    """``table`` or ``json``."""

    @contextlib.contextmanager
    def access(self) -> Iterator[Access]:
        """Where the server is; what goes wrong with it ends the program with one line and status 1."""
        from certctl_sdk import client  # noqa: PLC0415  # brings httpx: not for those who only want help
        from certctl_sdk.cli.output import inert  # noqa: PLC0415

        try:
            access = client.access(os.environ, server=self.server, api_key=self.api_key, ca_file=self.ca_file)
            if access.in_the_clear:
                click.echo(f"warning: your key crosses the network unencrypted: {access.url} is plain HTTP", err=True)
            yield access
        except client.ClientError as exc:
            click.echo(f"error: {inert(str(exc))}", err=True)
            sys.exit(1)

    @contextlib.contextmanager
    def client(self, *, timeout: float | None = None) -> Iterator[Client]:
        """The server, as ``access`` has it.

        ``timeout`` is how many seconds one call may take, if that is not the usual number.
        """
        from certctl_sdk import client  # noqa: PLC0415

        with self.access() as access, client.Client(access, timeout=timeout or client.TIMEOUT_SECONDS) as found:
            yield found

    @contextlib.contextmanager
    def progress(self, words: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar for people who watch; yields what to call after each of so many steps."""
        if self.form == "json" or not sys.stderr.isatty():
            yield lambda: None
            return
        from rich.console import Console  # noqa: PLC0415  # a third of the time a command takes
        from rich.progress import Progress  # noqa: PLC0415

        # On the way to a file, what is said must not be drawn into by the bar, nor end up beside it.
        console, together = Console(stderr=True), sys.stdout.isatty()
        with Progress(console=console, transient=True, redirect_stdout=together) as bar:
            task = bar.add_task(words, total=total)
            yield lambda: bar.advance(task)

    def show_page(self, page: Page[Any], columns: Sequence[str]) -> None:
        """Show rows of a list."""
        from certctl_sdk.cli import output  # noqa: PLC0415

        if self.form == "json":
            output.write_json({"data": page.data, "total": page.total})
        else:
            output.write_table(page.data, columns)
            if page.total > len(page.data):
                click.echo(f"{len(page.data)} of {page.total}; --page and --per-page show others", err=True)

    def show_rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Show rows of a list without pages."""
        from certctl_sdk.cli import output  # noqa: PLC0415

        if self.form == "json":
            output.write_json(rows)
        else:
            output.write_table(rows, columns)

    def show(self, found: Mapping[str, Any], columns: Sequence[str] = ()) -> None:
        """Show one object: all of it, or in a table only ``columns`` as far as they are there."""
        from certctl_sdk.cli import output  # noqa: PLC0415

        if self.form == "json":
            output.write_json(found)
        else:
            output.write_object({name: found[name] for name in columns if name in found} if columns else found)

    def say(self, found: Mapping[str, Any], sentence: str) -> None:
        """Show what came of an order: a sentence for people, all of it as JSON."""
        from certctl_sdk.cli import output  # noqa: PLC0415

        if self.form == "json":
            output.write_json(found)
        else:
            click.echo(output.inert(sentence))


def wrongly_called(exc: click.UsageError, context: click.Context | None = None) -> NoReturn:
    """Say what is wrong with a call as click does, but end with 1: where 2 says something else."""
    exc.ctx = exc.ctx or context  # one that shows how it is called
    exc.show()
    sys.exit(1)


def with_session(command: F) -> F:
    """Give the command the session as its first argument."""

    def called(*args: Any, **kwargs: Any) -> Any:
        return command(click.get_current_context().find_object(Session), *args, **kwargs)

    return update_wrapper(called, command)  # type: ignore[return-value]  # click looks at no signature
