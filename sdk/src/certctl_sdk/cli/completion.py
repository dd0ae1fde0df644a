"""Completion in shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Write what makes a shell complete these commands.

    \b
    bash: eval "$(certctl completion bash)"            in ~/.bashrc
    zsh:  eval "$(certctl completion zsh)"             in ~/.zshrc
    fish: certctl completion fish | source             in ~/.config/fish/config.fish
    """  # noqa: D301  # click's sign for lines that stay as they are
    root = context.find_root()
    name = root.info_name or "certctl"
    kind = get_completion_class(shell)
    if kind is None:  # only if click were to drop one of them
        raise click.UsageError(f"nothing is known of {shell}")
    click.echo(kind(root.command, {}, name, f"_{name}_COMPLETE".replace("-", "_").upper()).source())
