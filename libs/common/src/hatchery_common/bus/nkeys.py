"""Bus keys out of derived secrets: 32 bytes to an nkey seed and its public key."""

from __future__ import annotations

import nkeys


def seed_of(secret: bytes) -> str:
    """The user seed (`SU…`) made of 32 bytes; the same for ever."""
    return nkeys.encode_seed(secret, nkeys.PREFIX_BYTE_USER).decode()


def public_of(seed: str) -> str:
    """The public key (`U…`) of a seed."""
    pair = nkeys.from_seed(bytearray(seed.encode()))
    try:
        return bytes(pair.public_key).decode()  # pyright: ignore[reportArgumentType] - annotated wrongly there
    finally:
        pair.wipe()
