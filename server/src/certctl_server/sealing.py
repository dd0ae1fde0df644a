"""Secrets at rest: AES-256-GCM, sealed with one key, opened with any of those given, bound to their place."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from certctl_core.errors import MisconfiguredError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certctl_server import db
from certctl_server.files import create
from certctl_server.settings import Settings

VARIABLE = "CERTCTL_CONFIG_ENCRYPTION_KEY"
KEY_FILE = "encryption-key"
KEY_BYTES, NONCE_BYTES, SALT_BYTES = 32, 12, 16
PASSPHRASE_CHARACTERS = 16
SEALED = re.compile(r"sealed:1:([0-9a-f]{16}):([A-Za-z0-9_-]+={0,2})")
CHECK, SALT = "sealing_check", "sealing_salt"
SETTING = db.Sql("SELECT value FROM setting WHERE name = $1")
REMEMBER = db.Sql("INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")

#: Where sealed text is: table, what names a row in ``place``, column.
PLACES = (
    ("issuer", "id", "config"),
    ("notifier", "id", "config"),
    ("target", "id", "config"),
    ("connector_memory", "connector_id || '/' || name", "value"),
    ("setting", "name", "value"),
)


def place(table: str, key: str, column: str) -> str:
    """Return the name of one column of one row, as which its secret is sealed and must be opened."""
    return f"{table}|{key}|{column}"


def is_sealed(text: str) -> bool:
    """Whether ``text`` is what ``Cipher.seal`` returns."""
    return SEALED.fullmatch(text) is not None


class Cipher:
    """Seals with the first of ``keys`` and opens with any of them. Each is 32 bytes."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a cipher takes keys of {KEY_BYTES} bytes, at least one")
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    def seal(self, text: str, where: str) -> str:
        """Return ``text`` encrypted for the place ``where``: printable, naming its key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        body = nonce + self._keys[self._first].encrypt(nonce, text.encode(), where.encode())
        return f"sealed:1:{self._first}:{base64.urlsafe_b64encode(body).decode()}"

    def open(self, sealed: str, where: str) -> str:
        """Return the text that was sealed for ``where``.

        Raises:
            MisconfiguredError: it was sealed with a key that is not given, for another place, or was changed.
        """
        if not (found := SEALED.fullmatch(sealed)):
            raise MisconfiguredError(f"the secret of {where} cannot be read: it was not sealed by this program")
        key = self._keys.get(found[1])
        if key is None:
            raise MisconfiguredError(f"the secret of {where} was sealed with key {found[1]}, which is not given")
        try:
            body = base64.urlsafe_b64decode(found[2])
            return key.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], where.encode()).decode()
        except (InvalidTag, ValueError) as exc:
            raise MisconfiguredError(f"the secret of {where} was changed, or moved there from elsewhere") from exc

    def is_current(self, sealed: str) -> bool:
        """Whether ``sealed`` was sealed with the first key."""
        found = SEALED.fullmatch(sealed)
        return found is not None and found[1] == self._first

    def renew(self, text: str, where: str) -> str:
        """Return ``text`` with everything sealed in it sealed anew with the first key."""
        return SEALED.sub(
            lambda found: found[0] if self.is_current(found[0]) else self.seal(self.open(found[0], where), where), text
        )


async def load(settings: Settings) -> Cipher:
    """Return the cipher of the open database, making key and check value at the very first start.

    Raises:
        MisconfiguredError: there is no key where one is required, or it is not the one this database was sealed with.
    """
    given = [part.strip() for part in settings.config_encryption_key.get_secret_value().split(",") if part.strip()]
    path = settings.data_dir / KEY_FILE
    if not given and not settings.embedded:
        raise MisconfiguredError(
            f"{VARIABLE} is required with PostgreSQL: every process needs the same key;"
            " make one with `openssl rand -base64 32` and keep a copy apart from the database's backups"
        )
    check = await recall(CHECK)
    if not given and check and not path.exists():
        raise MisconfiguredError(
            f"the secrets in this database are sealed, but {path} is gone and {VARIABLE} is not set: bring one back"
        )
    keys = [_raw(text) or _stretched(text, await _salt()) for text in given]
    if path.exists() or not given:
        keys.append(key_file(path))
    cipher = Cipher(keys)
    where = place("setting", CHECK, "value")
    check = check or await remember(CHECK, cipher.seal("certctl", where))
    try:
        cipher.open(check, where)
    except MisconfiguredError as exc:
        raise MisconfiguredError(f"the key in {VARIABLE if given else path} is not the one of this database") from exc
    return cipher


async def reseal(cipher: Cipher) -> int:
    """Seal everything anew with the first key, so that the others are no longer needed; return how many rows changed.

    A row that changes meanwhile is left to those who change it: they seal with the first key as well.

    Raises:
        MisconfiguredError: a secret cannot be opened with any key; nothing is changed then.
    """
    changed = 0
    async with db.transaction():
        for table, key, column in PLACES:
            look = f"SELECT {key} AS place, {column} AS text FROM {table}"  # noqa: S608  # the names above
            put = f"UPDATE {table} SET {column} = $3 WHERE {key} = $1 AND {column} = $2 RETURNING 1"  # noqa: S608  # ours
            for row in await db.fetch(db.Sql(look)):
                renewed = cipher.renew(row["text"], place(table, row["place"], column))
                if renewed != row["text"]:
                    changed += len(await db.fetch(db.Sql(put), row["place"], row["text"], renewed))
    return changed


async def recall(name: str) -> str:
    """Return what the installation remembers under ``name``, empty if nothing."""
    rows = await db.fetch(SETTING, name)
    return str(rows[0]["value"]) if rows else ""


async def remember(name: str, value: str) -> str:
    """Keep ``value`` under ``name`` unless something is kept there; return what is kept."""
    await db.fetch(REMEMBER, name, value)
    return await recall(name)


async def _salt() -> bytes:
    return bytes.fromhex(await recall(SALT) or await remember(SALT, secrets.token_hex(SALT_BYTES)))


def key_file(path: Path) -> bytes:
    """Return the key in ``path``, made now if there is no such file.

    Raises:
        MisconfiguredError: the file holds something else, or others may read it.
    """
    if not path.exists():
        # All of it at once: half a key would lose every secret.
        create(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() + "\n", mode=0o600)
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        raise MisconfiguredError(f"{path} may be read by others (mode {mode:o}): chmod 600 it")
    if (key := _raw(path.read_text(encoding="utf-8").strip())) is None:
        raise MisconfiguredError(f"{path} holds no key of {KEY_BYTES} bytes")
    return key


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"certctl key id\0" + key).hexdigest()[:16]


def _raw(text: str) -> bytes | None:
    """The 32 bytes that ``text`` writes in hex or base64, None if it is anything else."""
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    if not re.fullmatch(r"[A-Za-z0-9+/_-]{43}=?", text):
        return None
    try:
        key = base64.b64decode(text.rstrip("=") + "=", altchars=b"-_" if set(text) & set("-_") else None, validate=True)
    except binascii.Error:
        return None
    return key if len(key) == KEY_BYTES else None


def _stretched(passphrase: str, salt: bytes) -> bytes:
    """RFC 7914; the salt is the installation's, so that replicas come to the same key."""
    if len(passphrase) < PASSPHRASE_CHARACTERS:
        raise MisconfiguredError(
            f"{VARIABLE} is too short: give 32 random bytes in base64 or hex,"
            f" or a passphrase of {PASSPHRASE_CHARACTERS} characters or more"
        )
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=2**15, r=8, p=1, maxmem=2**26, dklen=KEY_BYTES)
