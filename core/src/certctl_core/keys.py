"""What kind of key a public key is, and whether it can be trusted with anything."""

from __future__ import annotations

from math import gcd, isqrt, prod
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

RSA_MIN_BITS = 2048
RSA_MAX_BITS = 8192
"""Verifying with a longer one costs more than anybody gains by it."""
RSA_MIN_EXPONENT = 65537
RSA_MAX_EXPONENT_BITS = 256
"""As FIPS 186-5 section 5.1 bounds it."""
CURVES = {"secp256r1": 256, "secp384r1": 384, "secp521r1": 521}
"""The curves accepted, by the name cryptography gives them, with the size in bits."""
_FERMAT_ROUNDS = 100
_SQUARES_MOD_16 = frozenset({0, 1, 4, 9})


class KeyKind(NamedTuple):
    """An algorithm and a size, as the API spells them."""

    algorithm: str
    """``RSA``, ``ECDSA`` or ``Ed25519``; for others that were only read, whatever names them best."""
    size: int
    """Bits of the modulus or the curve; Ed25519: 256; 0: not known."""

    def __str__(self) -> str:
        return self.algorithm if self.algorithm == "Ed25519" or not self.size else f"{self.algorithm} {self.size}"


def kind_of_key(key: object) -> KeyKind:
    """Return the kind of a public key that cryptography could load; ``size`` 0 and the class name if it is unusual."""
    match key:
        case rsa.RSAPublicKey():
            return KeyKind("RSA", key.key_size)
        case ec.EllipticCurvePublicKey():
            return KeyKind("ECDSA", key.curve.key_size)
        case ed25519.Ed25519PublicKey():
            return KeyKind("Ed25519", 256)
        case ed448.Ed448PublicKey():
            return KeyKind("Ed448", 456)
        case dsa.DSAPublicKey():
            return KeyKind("DSA", key.key_size)
        case _:
            return KeyKind(type(key).__name__.removesuffix("PublicKey"), 0)


def weakness(key: object) -> str | None:
    """Return why no certificate may be issued for this public key, None if nothing is known against it."""
    match key:
        case rsa.RSAPublicKey():
            numbers = key.public_numbers()
            return _rsa_weakness(numbers.n, numbers.e)
        case ec.EllipticCurvePublicKey():
            # The point is on its curve: cryptography loads no other.
            return None if key.curve.name in CURVES else f"the curve {key.curve.name} is not P-256, P-384 or P-521"
        case ed25519.Ed25519PublicKey():
            return None
        case _:
            return f"{kind_of_key(key).algorithm} keys are not accepted: RSA, ECDSA and Ed25519 are"


def _rsa_weakness(modulus: int, exponent: int) -> str | None:
    bits = modulus.bit_length()
    if not RSA_MIN_BITS <= bits <= RSA_MAX_BITS:
        return f"an RSA key has {RSA_MIN_BITS} to {RSA_MAX_BITS} bits, this one {bits}"
    if exponent % 2 == 0 or exponent < RSA_MIN_EXPONENT or exponent.bit_length() > RSA_MAX_EXPONENT_BITS:
        return f"its RSA exponent is not an odd number from {RSA_MIN_EXPONENT} to 2^{RSA_MAX_EXPONENT_BITS}"
    if modulus % 2 == 0 or gcd(modulus, _SMALL_PRIMES_PRODUCT) != 1:
        return "its RSA modulus has a small factor"
    if all(modulus % prime in powers for prime, powers in _ROCA):
        return "it bears the mark of keys made by a flawed chip (ROCA, CVE-2017-15361) and can be broken"
    if _has_close_factors(modulus):
        return "the two factors of its RSA modulus are so close that they can be found (CVE-2022-26320)"
    return None


def _has_close_factors(modulus: int) -> bool:
    """Fermat's method, as far as CA/B Forum BR 6.1.1.3 asks for it."""
    root = isqrt(modulus)
    root += root * root < modulus
    for candidate in range(root, root + _FERMAT_ROUNDS):
        rest = candidate * candidate - modulus
        # A root is dear to take; three of four numbers show in their last bits that they are no square.
        if rest % 16 in _SQUARES_MOD_16 and isqrt(rest) ** 2 == rest:
            return True
    return False


def _primes(below: int) -> list[int]:
    return [n for n in range(3, below) if all(n % d for d in range(2, isqrt(n) + 1))]


def _powers_of_65537(prime: int) -> frozenset[int]:
    powers, power = {1}, 65537 % prime
    while power not in powers:
        powers.add(power)
        power = power * 65537 % prime
    return frozenset(powers)


_SMALL_PRIMES_PRODUCT = prod(_primes(below=2000))
# Both factors of a ROCA key are powers of 65537 modulo the primes up to 167, and so is their product
# (Nemec et al. 2017, section 2.2); a sound key passes for one about once in 2^27.
_ROCA = tuple((prime, _powers_of_65537(prime)) for prime in _primes(below=168))
