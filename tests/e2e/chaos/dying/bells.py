"""Bells that are lost, doubled and reordered, as a network may do to any of them."""

import random

# ruff: noqa: SLF001  # what it stands in front of is nobody else's affair
# ruff: noqa: PLC0415  # loaded at the start of every Python of the environment, whatever it may import then


def install():
    from certctl_server.doorbell import RedisDoorbell

    put, dice, kept = RedisDoorbell._put, random.Random(), []

    def unreliable(self, where, what):
        fate = dice.random()
        if fate < 0.3:
            return
        if fate < 0.5:
            kept.append((where, what))
            return
        for each in [(where, what), *kept]:
            put(self, *each)
            put(self, *each)
        kept.clear()

    RedisDoorbell._put = unreliable
