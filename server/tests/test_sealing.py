from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_server import db, sealing
from certctl_server.sealing import Cipher, is_sealed, key_file, load, place
from certctl_server.settings import Settings

A, B = b"a" * 32, b"b" * 32
HERE = place("issuer", "iss-1", "config")


def settings(directory: Path, key: str = "", url: str = "") -> Settings:
    return Settings(data_dir=directory, config_encryption_key=key, database={"url": url})


def test_what_is_sealed_opens_at_its_own_place_and_shows_nothing():
    sealed = Cipher([A]).seal("påssword", HERE)
    assert is_sealed(sealed)
    assert "ssword" not in sealed
    assert Cipher([A]).open(sealed, HERE) == "påssword"
    assert Cipher([A]).seal("påssword", HERE) != sealed


@pytest.mark.parametrize("where", [place("issuer", "iss-2", "config"), place("target", "iss-1", "config"), ""])
def test_a_secret_moved_to_another_row_does_not_open(where):
    sealed = Cipher([A]).seal("secret", HERE)
    with pytest.raises(MisconfiguredError, match="moved there from elsewhere"):
        Cipher([A]).open(sealed, where)


def test_a_changed_secret_does_not_open():
    sealed = Cipher([A]).seal("secret", HERE)
    changed = sealed[:-6] + ("A" if sealed[-6] != "A" else "B") + sealed[-5:]
    with pytest.raises(MisconfiguredError, match="was changed"):
        Cipher([A]).open(changed, HERE)


@pytest.mark.parametrize("text", ["", "secret", "sealed:1:short:AAAA"], ids=["empty", "plain", "bad key id"])
def test_text_that_was_never_sealed_is_refused_as_such(text):
    assert not is_sealed(text)
    with pytest.raises(MisconfiguredError, match="not sealed by this program"):
        Cipher([A]).open(text, HERE)


def test_the_first_key_seals_and_every_key_opens():
    old = Cipher([A]).seal("secret", HERE)
    both = Cipher([B, A])
    assert both.open(old, HERE) == "secret"
    assert not both.is_current(old)
    new = both.renew(f'{{"token": "{old}", "url": "x"}}', HERE)
    assert old not in new
    assert Cipher([B]).open(new.split('"')[3], HERE) == "secret"
    with pytest.raises(MisconfiguredError, match="which is not given"):
        Cipher([B]).open(old, HERE)


def test_the_key_file_is_made_once_and_is_for_its_owner_only(tmp_path):
    path = tmp_path / "encryption-key"
    key = key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_file(path) == key
    assert [each.name for each in tmp_path.iterdir()] == ["encryption-key"]


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "encryption-key"
    key_file(path)
    path.chmod(0o640)
    with pytest.raises(MisconfiguredError, match="mode 640"):
        key_file(path)


def test_a_key_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "encryption-key"
    key_file(path)
    path.write_text(path.read_text()[:20])
    with pytest.raises(MisconfiguredError, match="holds no key"):
        key_file(path)


@pytest.mark.parametrize(
    "text",
    [A.hex(), base64.b64encode(A).decode(), base64.urlsafe_b64encode(b"\xff" * 32).decode(), "correct horse battery"],
    ids=["hex", "base64", "urlsafe base64", "passphrase"],
)
async def test_a_key_in_the_variable_opens_what_it_sealed_before_the_restart(database, tmp_path, text):
    sealed = (await load(settings(tmp_path, text))).seal("secret", HERE)
    assert (await load(settings(tmp_path, text))).open(sealed, HERE) == "secret"
    assert not (tmp_path / sealing.KEY_FILE).exists()


async def test_another_key_than_the_one_of_the_database_is_refused(database, tmp_path):
    await load(settings(tmp_path, A.hex()))
    with pytest.raises(MisconfiguredError, match="CERTCTL_CONFIG_ENCRYPTION_KEY is not the one of this database"):
        await load(settings(tmp_path, B.hex()))


async def test_a_key_is_exchanged_by_giving_both(database, tmp_path):
    await load(settings(tmp_path, A.hex()))
    sealed = (await load(settings(tmp_path, f"{B.hex()}, {A.hex()}"))).seal("secret", HERE)
    assert Cipher([B]).open(sealed, HERE) == "secret"


async def test_everything_is_sealed_anew_before_an_old_key_goes(database, tmp_path):
    old = await load(settings(tmp_path, A.hex()))
    memory, config = place("connector_memory", "issuer:i/account", "value"), place("issuer", "i", "config")
    await db.fetch(
        db.Sql("INSERT INTO connector_memory (connector_id, name, value) VALUES ('issuer:i', 'account', $1)"),
        old.seal("remembered", memory),
    )
    await db.fetch(
        db.Sql(
            "INSERT INTO issuer (id, name, type, config, created_at, updated_at) VALUES ('i', 'i', 'x', $1, $2, $2)"
        ),
        json.dumps({"token": old.seal("token", config), "url": "plain"}),
        datetime.now(UTC),
    )
    assert await sealing.reseal(await load(settings(tmp_path, f"{B.hex()},{A.hex()}"))) == 3
    new = await load(settings(tmp_path, B.hex()))
    assert await sealing.reseal(new) == 0
    [kept] = await db.fetch(db.Sql("SELECT value FROM connector_memory"))
    assert new.open(kept["value"], memory) == "remembered"
    [row] = await db.fetch(db.Sql("SELECT config FROM issuer"))
    found = json.loads(row["config"])
    assert (new.open(found["token"], config), found["url"]) == ("token", "plain")


async def test_the_variable_takes_over_from_the_key_file(database, tmp_path):
    sealed = (await load(settings(tmp_path))).seal("secret", HERE)
    cipher = await load(settings(tmp_path, A.hex()))
    assert cipher.open(sealed, HERE) == "secret"
    assert Cipher([A]).open(cipher.seal("new", HERE), HERE) == "new"


async def test_a_lost_key_file_is_not_replaced_by_a_new_one(database, tmp_path):
    await load(settings(tmp_path))
    (tmp_path / sealing.KEY_FILE).unlink()
    with pytest.raises(MisconfiguredError, match="is gone"):
        await load(settings(tmp_path))
    assert not (tmp_path / sealing.KEY_FILE).exists()


async def test_without_the_variable_a_shared_database_does_not_start(database, tmp_path):
    with pytest.raises(MisconfiguredError, match="required with PostgreSQL"):
        await load(settings(tmp_path, url="postgres://db/certctl"))


async def test_a_short_passphrase_is_refused_without_being_repeated(database, tmp_path):
    with pytest.raises(MisconfiguredError, match="too short") as caught:
        await load(settings(tmp_path, "hunter2"))
    assert "hunter2" not in str(caught.value)
