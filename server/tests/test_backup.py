"""An embedded installation is saved while it runs, and comes back whole or not at all."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_server import db, start
from certctl_server.audit import witness
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.backup import backup, declare, key_beside, restore
from certctl_server.main import main
from certctl_server.settings import Settings
from click.testing import CliRunner

OWNERS = db.Sql("SELECT count(*) AS n FROM audit_event WHERE action = 'written'")
CRASH = """
import asyncio, os, sys
from pathlib import Path
from certctl_server import db, start
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.settings import Settings

async def main():
    async with start.ground(Settings(data_dir=Path(sys.argv[1]))):
        await record([Event(SYSTEM, "written_last", "owner", "o")])
        os._exit(9)

asyncio.run(main())
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
async def installed(settings):
    """A data directory in which a server has been."""
    async with start.ground(settings):
        await start.hand_over(settings, "", terminal=False)
    return settings


async def write(n=1):
    await record(Event(SYSTEM, "written", "owner", f"o-{i}") for i in range(n))


async def owners():
    return (await db.fetch(OWNERS))[0]["n"]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def there(settings, pattern):
    return sorted(path.name for path in settings.data_dir.glob(pattern))


async def test_what_is_saved_while_the_server_writes_is_one_moment(installed, tmp_path):
    async with start.ground(installed):
        writing = asyncio.create_task(_write_on())
        await asyncio.sleep(0.2)
        made = await asyncio.get_running_loop().run_in_executor(
            None, lambda: backup(installed, tmp_path / "saved", with_key=False)
        )
        await asyncio.sleep(0.1)
        writing.cancel()
        after = await owners()
    with closing(sqlite3.connect(tmp_path / "saved")) as copy:
        [[count]] = copy.execute(OWNERS.sqlite)
        [[last]] = copy.execute("SELECT max(number) FROM audit_event")
    assert 0 < count < after
    assert made.figures["audit rows"] == last
    assert mode(tmp_path / "saved") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "saved"]


async def _write_on():
    while True:
        await write()


async def test_a_key_is_saved_only_when_asked_for(installed, tmp_path):
    backup(installed, tmp_path / "without", with_key=False)
    assert not key_beside(tmp_path / "without").exists()
    backup(installed, tmp_path / "with", with_key=True)
    key = key_beside(tmp_path / "with")
    assert (mode(key), key.read_text()) == (0o600, (installed.data_dir / "encryption-key").read_text())
    assert key.read_text().strip().encode() not in (tmp_path / "with").read_bytes()


async def test_nothing_is_overwritten_and_nothing_half_done_is_left(installed, tmp_path):
    (tmp_path / "there").write_text("precious")
    with pytest.raises(MisconfiguredError, match="nothing is overwritten"):
        backup(installed, tmp_path / "there", with_key=False)
    assert (tmp_path / "there").read_text() == "precious"
    (tmp_path / "saved.key").write_text("precious")
    with pytest.raises(MisconfiguredError, match="nothing is overwritten"):
        backup(installed, tmp_path / "saved", with_key=True)
    assert not (tmp_path / "saved").exists()
    with pytest.raises(MisconfiguredError, match="nothing can be written"):
        backup(installed, tmp_path / "no" / "where", with_key=False)
    keyed = installed.model_copy(
        update={"config_encryption_key": Settings(config_encryption_key="a" * 64).config_encryption_key}
    )
    with pytest.raises(MisconfiguredError, match="CERTCTL_CONFIG_ENCRYPTION_KEY"):
        backup(keyed, tmp_path / "saved2", with_key=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "saved.key", "there"]


async def test_a_restore_brings_back_what_was_saved_and_keeps_what_was_there(installed, tmp_path):
    async with start.ground(installed):
        await write(3)
    backup(installed, tmp_path / "saved", with_key=False)
    async with start.ground(installed):
        await write(4)
    done = await restore(installed, tmp_path / "saved")
    assert (done.epoch, mode(installed.data_dir / "certctl.db")) == (2, 0o600)
    async with start.ground(installed):
        assert (await owners(), await witness.epoch()) == (3, 2)
        assert await start.hand_over(installed, "", terminal=False) is None
    with closing(sqlite3.connect(done.replaced)) as kept:
        assert kept.execute(OWNERS.sqlite).fetchone() == (7,)
    assert (tmp_path / "saved").exists()
    assert there(installed, ".*") == []


async def test_what_a_crash_left_in_the_log_stays_with_the_database_that_it_belongs_to(installed, tmp_path):
    backup(installed, tmp_path / "saved", with_key=False)
    died = subprocess.run([sys.executable, "-c", CRASH, installed.data_dir], check=False)
    assert died.returncode == 9
    assert there(installed, "certctl.db-wal") == ["certctl.db-wal"]
    done = await restore(installed, tmp_path / "saved")
    written = "SELECT count(*) FROM audit_event WHERE action = 'written_last'"
    with closing(sqlite3.connect(done.replaced)) as kept:
        assert kept.execute(written).fetchone() == (1,)
    async with start.ground(installed):
        assert (await db.fetch(db.Sql(written)))[0] == {"count(*)": 0}


async def test_a_database_that_is_damaged_is_replaced_and_its_log_kept(installed, tmp_path):
    backup(installed, tmp_path / "saved", with_key=False)
    subprocess.run([sys.executable, "-c", CRASH, installed.data_dir], check=False)
    (installed.data_dir / "certctl.db").write_bytes(b"not a database" * 1000)
    done = await restore(installed, tmp_path / "saved")
    assert done.replaced.read_bytes().startswith(b"not a database")
    assert there(installed, "*-wal") == [f"{done.replaced.name}-wal"]
    async with start.ground(installed):
        assert await owners() == 0


async def test_no_database_is_replaced_under_a_server(installed, tmp_path):
    backup(installed, tmp_path / "saved", with_key=False)
    async with start.ground(installed):
        with pytest.raises(MisconfiguredError, match=f"process {os.getpid()}"):
            await restore(installed, tmp_path / "saved")
        with pytest.raises(MisconfiguredError, match=f"process {os.getpid()}"):
            await declare(installed)
    assert there(installed, "*replaced*") == []


def _cut(path):
    path.write_bytes(path.read_bytes()[:40_000])


def _torn(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 8192] = os.urandom(8192)
    path.write_bytes(whole)


def _empty(path):
    path.write_bytes(b"")


def _newer(path):
    with closing(sqlite3.connect(path)) as copy, copy:
        copy.execute("INSERT INTO migration VALUES ('m9999_later', '2030-01-01')")


def _foreign(path):
    with closing(sqlite3.connect(path)) as copy, copy:
        sealed = "sealed:1:" + "0" * 16 + ":" + "A" * 64
        copy.execute("UPDATE setting SET value = ? WHERE name = 'sealing_check'", (sealed,))


DAMAGE = {
    "cut": (_cut, "damaged|no sound database"),
    "torn": (_torn, "damaged|no sound database"),
    "empty": (_empty, "no sound database"),
    "newer": (_newer, "newer version, which knows m9999_later"),
    "other key": (_foreign, "not the one of this database"),
    "gone": (os.unlink, "cannot be read"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
async def test_a_backup_that_is_no_good_changes_nothing(installed, tmp_path, damage, said):
    backup(installed, tmp_path / "saved", with_key=False)
    damage(tmp_path / "saved")
    before = {path: path.read_bytes() for path in installed.data_dir.iterdir() if path.suffix != ".lock"}
    with pytest.raises(MisconfiguredError, match=said):
        await restore(installed, tmp_path / "saved")
    assert {path: path.read_bytes() for path in installed.data_dir.iterdir() if path.suffix != ".lock"} == before


async def test_a_new_machine_takes_the_key_that_lies_beside_the_backup(installed, tmp_path):
    async with start.ground(installed):
        await write(2)
    backup(installed, tmp_path / "saved", with_key=True)
    elsewhere = Settings(data_dir=tmp_path / "elsewhere")
    await restore(elsewhere, tmp_path / "saved")
    async with start.ground(elsewhere):
        assert (await owners(), await witness.epoch()) == (2, 2)
    assert mode(elsewhere.data_dir / "encryption-key") == 0o600


async def test_without_its_key_a_backup_is_refused_on_a_new_machine(installed, tmp_path):
    backup(installed, tmp_path / "saved", with_key=False)
    elsewhere = Settings(data_dir=tmp_path / "elsewhere")
    with pytest.raises(MisconfiguredError, match="bring one back"):
        await restore(elsewhere, tmp_path / "saved")
    assert there(elsewhere, "certctl.db*") == ["certctl.db.lock"]


async def test_a_file_that_was_just_copied_back_is_noticed_at_the_start(installed, tmp_path):
    backup(installed, tmp_path / "saved", with_key=False)
    program = [sys.executable, "-c", CRASH.replace("os._exit(9)", SEALED), installed.data_dir]
    assert subprocess.run(program, check=False).returncode == 9
    for part in ("-wal", "-shm"):
        (installed.data_dir / f"certctl.db{part}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "saved", installed.data_dir / "certctl.db")
    async with start.ground(installed):
        assert await witness.epoch() == 2
        assert await start.hand_over(installed, "", terminal=False) is None


SEALED = """
        from types import SimpleNamespace
        from datetime import UTC, datetime, timedelta
        from certctl_server import sealing
        from certctl_server.audit.sealer import seal_pass
        from certctl_server.leader import Leadership
        settings = Settings(data_dir=Path(sys.argv[1]))
        leadership = Leadership("test", timedelta(seconds=30), alone=True)
        await leadership.campaign()
        ctx = SimpleNamespace(settings=settings, cipher=await sealing.load(settings), clock=lambda: datetime.now(UTC))
        await seal_pass(ctx, leadership)
        os._exit(9)
""".strip()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_postgresql_has_tools_of_its_own(database_url, tmp_path):
    settings = Settings(data_dir=tmp_path, database={"url": database_url}, config_encryption_key="ab" * 32)
    with pytest.raises(MisconfiguredError, match=r"docs/backup\.md"):
        backup(settings, tmp_path / "saved", with_key=False)
    with pytest.raises(MisconfiguredError, match=r"docs/backup\.md"):
        await restore(settings, tmp_path / "saved")
    assert await declare(settings) == 2


def test_the_commands_say_what_they_did(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path / "data"))
    call = lambda *words: CliRunner().invoke(main, [*map(str, words)])  # noqa: E731
    assert "there is no database" in call("backup", tmp_path / "saved").output
    assert call("migrate").exit_code == 0
    assert call("audit", "verify").exit_code == 0
    made = call("backup", tmp_path / "saved")
    assert (made.exit_code, "keep a copy of that apart" in made.output) == (0, True), made.output
    assert "whoever has both has everything" in call("backup", "--with-key", tmp_path / "keyed").output
    done = call("restore", tmp_path / "saved")
    assert (done.exit_code, "this is epoch 2" in done.output, "replaced-" in done.output) == (0, True, True)
    assert "this is epoch 3" in call("restored").output
