import random
from math import isqrt

import pytest
from certctl_core.keys import weakness
from cryptography.hazmat.primitives.asymmetric import ec, rsa


def public(modulus, exponent=65537):
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def is_prime(number):
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7))


def prime_from(start, step=2):
    while not is_prime(start):
        start += step
    return start


def primes_up_to(limit):
    return [n for n in range(2, limit + 1) if all(n % d for d in range(2, isqrt(n) + 1))]


def roca_prime(seed):
    """Return a prime as the flawed chips made them: k * M + (65537^a mod M), M the product of the first 39 primes."""
    chosen, product = random.Random(seed), 1
    for prime in primes_up_to(167):
        product *= prime
    start = (chosen.getrandbits(1023 - product.bit_length()) | 3 << 803) * product
    return prime_from(start + pow(65537, chosen.getrandbits(64), product), product)


@pytest.mark.parametrize("key", ["p256", "p384", "p521", "rsa", "ed25519"])
def test_nothing_is_known_against_a_sound_key(keys, key):
    assert weakness(keys[key].public_key()) is None


def test_the_mark_of_a_flawed_chip_is_recognised():
    modulus = roca_prime(1) * roca_prime(2)
    assert modulus.bit_length() >= 2048
    assert "ROCA" in weakness(public(modulus))


def test_factors_that_lie_close_are_found(keys):
    first = keys["rsa"].private_numbers().p
    close = next(n for n in range(first + 2, 2 * first, 2) if all(n % d for d in primes_up_to(2000)))
    assert "so close" in weakness(public(first * close))


@pytest.mark.parametrize("factor", [3, 17, 1999])
def test_a_small_factor_is_found(keys, factor):
    assert "small factor" in weakness(public(factor * keys["rsa"].public_key().public_numbers().n))


@pytest.mark.parametrize(
    ("exponent", "sound"), [(65537, True), (2**200 + 1, True), (2**256 + 1, False), (65536, False), (3, False)]
)
def test_an_exponent_is_odd_and_neither_small_nor_absurd(keys, exponent, sound):
    class Numbers(rsa.RSAPublicKey):
        """The library loads no key with an absurd exponent, so one that only has the numbers."""

        key_size = 2048

        def public_numbers(self):
            return rsa.RSAPublicNumbers(exponent, keys["rsa"].public_key().public_numbers().n)

    Numbers.__abstractmethods__ = frozenset()
    assert (weakness(Numbers()) is None) is sound


def test_too_long_a_key_is_refused():
    assert "8192 bits" in weakness(public((1 << 9000) + 1))


def test_an_unusual_curve_is_refused():
    assert "secp256k1" in weakness(ec.generate_private_key(ec.SECP256K1()).public_key())
