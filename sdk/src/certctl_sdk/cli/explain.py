"""Why a certificate is as it is."""

from __future__ import annotations

import click

from certctl_sdk.cli.session import Session, with_session


@click.command()
@click.argument("id")
@with_session
def explain(session: Session, id: str) -> None:
    """Say why a certificate is as it is, and what comes next."""
    from certctl_sdk.cli.output import inert, write_json  # noqa: PLC0415
    from certctl_sdk.explained.sentences import ago  # noqa: PLC0415  # knows all rules: not for those who want help
    from certctl_sdk.explained.sentences import explain as explained  # noqa: PLC0415
    from certctl_sdk.explained.story import gather  # noqa: PLC0415

    with session.client() as client:
        story = gather(client, id)
    found, row = explained(story), story.certificate
    if session.form == "json":
        steps = [{"at": each.at.isoformat() if each.at else None, "what": each.what} for each in found.next]
        write_json({"id": row["id"], "status": row["status"], "why": list(found.why), "next": steps})
        return
    click.echo(inert(f"{row['id']}  {row['name']}  {row['status']}"))
    for sentence in found.why:
        click.echo(inert(f"  {sentence}"))
    click.echo("next:")
    for each in found.next:
        when = f"{each.at:%Y-%m-%d %H:%M} UTC, {ago(each.at, story.now)}: " if each.at else ""
        click.echo(inert(f"  {when}{each.what}"))
    if not found.next:
        click.echo("  nothing")
