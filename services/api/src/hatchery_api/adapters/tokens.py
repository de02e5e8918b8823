"""The website's HS256 tokens, read by PyJWT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jwt
from hatchery_common.errors import InvalidInput

from hatchery_api.domain.errors import Unauthenticated
from hatchery_api.domain.identity import Proof, checked_user_id

_REQUIRED = ["sub", "iss", "aud", "exp"]
_LEEWAY_S = 5


class WebsiteTokens:
    """Accepts tokens of one issuer, audience and environment, signed with the present or the previous secret."""

    def __init__(self, secrets: Sequence[str], *, issuer: str, audience: str, environment: str | None) -> None:
        self._secrets = tuple(secret.encode() for secret in secrets)
        self._issuer = issuer
        self._audience = audience
        self._environment = environment

    def verify(self, token: str) -> Proof:
        """What the token proves; raises Unauthenticated, saying what is wrong with it but nothing that is in it."""
        claims = self._claims(token)
        if self._environment is not None and claims.get("env") != self._environment:
            raise Unauthenticated("the token was issued for another environment")
        pepper = claims.get("pepper")
        if pepper is not None and not isinstance(pepper, str):
            raise Unauthenticated("the token's pepper is no text")
        try:
            return Proof(checked_user_id(claims["sub"]), pepper)
        except InvalidInput as error:
            raise Unauthenticated(f"the token's subject is unusable: {error.message}") from error

    def _claims(self, token: str) -> dict[str, Any]:
        error: jwt.PyJWTError | None = None
        for secret in self._secrets:
            try:
                return jwt.decode(
                    token,
                    secret,
                    algorithms=["HS256"],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=_LEEWAY_S,
                    options={"require": _REQUIRED, "strict_aud": False},
                )
            except jwt.InvalidSignatureError as wrong_key:
                error = wrong_key
            except (jwt.PyJWTError, UnicodeError) as refused:
                raise Unauthenticated(_SAID.get(type(refused), "the token is not valid")) from refused
        raise Unauthenticated("the token's signature is not ours") from error


_SAID: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is from another issuer",
    jwt.InvalidAlgorithmError: "the token's algorithm is not HS256",
    jwt.MissingRequiredClaimError: "the token lacks one of sub, iss, aud, exp",
    jwt.ImmatureSignatureError: "the token is not valid yet",
}
