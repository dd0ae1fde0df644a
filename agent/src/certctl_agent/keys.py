"""Private keys: made here, kept here, and handed to target connectors on this machine only.

    keys/<certificate id>.key               of the certificate that is served
    keys/<certificate id>.key.previous      the one before it
    keys/pending/<job id>.key, .order       made for a job whose certificate is not served yet

A key is on the disk before its CSR leaves, and the CSR as well: the same job always sends the same one.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from certctl_core.errors import MisconfiguredError, RejectedError
from certctl_core.keys import kind_of_key
from certctl_core.target import Bundle
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from certctl_agent import private
from certctl_agent.csr import Key, Order, asks_for, names_of, sign

CURVES: dict[int, type[ec.EllipticCurve]] = {256: ec.SECP256R1, 384: ec.SECP384R1, 521: ec.SECP521R1}
RSA_BITS = range(2048, 8193)
ABANDONED = timedelta(days=30)
"""How old a key is whose order is not expected to be tried again, once another one of its certificate is served."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def safe(name: str) -> str:
    """Return ``name`` if it may become a file name, else raise RejectedError."""
    if not SAFE.fullmatch(name) or ".." in name:
        raise RejectedError(f"{name!r} is no id of this server: it cannot become a file name")
    return name


class KeyRing:
    """The keys of one agent. Its methods block; none of them gives a key to anything that sends."""

    def __init__(self, directory: Path) -> None:
        self._served = directory
        self._pending = directory / "pending"
        for each in (self._served, self._pending):
            private.make_directory(each)
            private.sweep(each)

    def csr(self, order: Order) -> str:
        """Return the CSR of ``order``, made with a key of its own that is safely on the disk.

        Raises:
            RejectedError: no key of that kind, or no CSR with these names, can be made.
        """
        key_file, order_file = self._files(safe(order.job_id))
        names = names_of(order)
        kept = private.read_object(order_file).get("csr_pem")
        key_pem = private.read(key_file)
        if key_pem and isinstance(kept, str) and asks_for(kept, names):
            return kept
        if not key_pem or not _is_of(_load(key_pem), order):
            # The order goes first: a crash must not leave it beside a key that it was not made with.
            private.remove(order_file)
            key_pem = _new_key_pem(order)
            private.write(key_file, key_pem)
        csr_pem = sign(names, _load(key_pem))
        private.write(order_file, json.dumps({"certificate_id": order.certificate_id, "csr_pem": csr_pem}))
        return csr_pem

    def bundle(self, certificate_id: str, certificate_pem: str) -> Bundle:
        """Return the certificate, leaf first in ``certificate_pem``, with the key of ours that fits it.

        Raises:
            MisconfiguredError: none does, or what the server sent is no certificate.
            DeploymentError: the chain does not join up.
        """
        try:
            leaf, *chain = x509.load_pem_x509_certificates(certificate_pem.encode())
            wanted = _spki(leaf.public_key())
        except ValueError as exc:
            raise MisconfiguredError("what the server sent for this certificate cannot be read") from exc
        for path in self._candidates(safe(certificate_id)):
            if key_pem := _fitting(path, wanted):
                return Bundle(_pem(leaf), "".join(map(_pem, chain)), key_pem)
        raise MisconfiguredError(
            f"no private key on this machine fits certificate {certificate_id} (serial {leaf.serial_number:x}):"
            " renew it, so that this agent makes a key for it"
        )

    def promote(self, certificate_id: str, bundle: Bundle) -> None:
        """Make the key of ``bundle``, now served, the one of its certificate; the old one is kept once."""
        live = self._served / f"{safe(certificate_id)}.key"
        if private.read(live) != bundle.key_pem:
            private.keep_as(live, live.with_suffix(".key.previous"))
            private.write(live, bundle.key_pem)
        self._forget(certificate_id, _spki(_load(bundle.key_pem).public_key()))

    def _forget(self, certificate_id: str, served: bytes) -> None:
        """Remove the pending key that is served now, and those of orders that came to nothing long ago.

        An order that failed may be tried again after a newer one was served, with the CSR that the server has.
        """
        abandoned = time.time() - ABANDONED.total_seconds()
        for path in self._pending.glob("*.key"):
            order = private.read_object(path.with_suffix(".order"))
            if order.get("certificate_id") != certificate_id:
                continue
            csr = x509.load_pem_x509_csr(str(order["csr_pem"]).encode())
            if _spki(csr.public_key()) == served or _age(path) < abandoned:
                private.remove(path.with_suffix(".order"), path)

    def _candidates(self, certificate_id: str) -> Iterator[Path]:
        """Files that may hold the key of a certificate, the likely ones first."""
        live = self._served / f"{certificate_id}.key"
        yield live
        yield from sorted(self._pending.glob("*.key"), key=_age, reverse=True)
        yield live.with_suffix(".key.previous")

    def _files(self, job_id: str) -> tuple[Path, Path]:
        return self._pending / f"{job_id}.key", self._pending / f"{job_id}.order"


def _new_key_pem(order: Order) -> str:
    key = _generate(order.key_algorithm.upper(), order.key_size)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _generate(algorithm: str, size: int) -> Key:
    match kind := _kind(algorithm, size):
        case "RSA", bits if bits:
            return rsa.generate_private_key(public_exponent=65537, key_size=bits)
        case "ECDSA", bits if bits:
            return ec.generate_private_key(CURVES[bits]())
        case "ED25519", _:
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            raise RejectedError(f"this agent makes no {kind[0]} keys of {size} bits")


def _kind(algorithm: str, size: int) -> tuple[str, int]:
    """The kind of key to make; the size is what an order asks for at least, and 0 where there is none that large."""
    match name := algorithm.upper():
        case "RSA":
            return name, max(size, RSA_BITS.start) if size < RSA_BITS.stop else 0
        case "ECDSA":
            return name, next((bits for bits in CURVES if bits >= size), 0)
        case _:
            return name, 256


def _is_of(key: Key, order: Order) -> bool:
    """Whether a pending key is of the kind that the order asks for; orders may change while their job waits."""
    kind = kind_of_key(key.public_key())
    return (kind.algorithm.upper(), kind.size) == _kind(order.key_algorithm, order.key_size)


def _load(key_pem: str) -> Key:
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError) as exc:
        raise MisconfiguredError("a file in the key directory holds no readable private key") from exc
    if not isinstance(key, Key):
        raise MisconfiguredError("a file in the key directory holds a key of a kind that serves no certificate")
    return key


def _fitting(path: Path, public_key: bytes) -> str | None:
    """What ``path`` holds, if that is the key wanted; a file that holds no key is somebody else's trouble."""
    key_pem = private.read(path)
    with contextlib.suppress(MisconfiguredError):
        if key_pem and _spki(_load(key_pem).public_key()) == public_key:
            return key_pem
    return None


def _age(path: Path) -> float:
    """When it was written; 0 if another job removed it meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _spki(key: object) -> bytes:
    """The public key in the one form in which equal keys are equal bytes."""
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(Encoding.PEM).decode()
