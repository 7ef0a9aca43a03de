"""Who may ask: a token, and pages of which sites."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastlstm.serving.requests import Kind, RequestError

__all__ = ["TOKEN_VARIABLE", "Access", "is_loopback", "read_token"]

TOKEN_VARIABLE = "FASTLSTM_TOKEN"

LEAST_TOKEN, MOST_TOKEN = 16, 4096  # characters


class Access:
    """What a request must bring.

    Parameters
    ----------
    token : str, optional
        Of ``Authorization: Bearer``. Without one, everybody may ask who reaches the address.
    origins : collection of str
        Sites whose pages may open a stream, as ``https://example.org``, beside the server's own.
    """

    def __init__(self, token: str | None = None, origins: Iterable[str] = ()) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    @property
    def is_open(self) -> bool:
        return self._expected is None

    def check(self, authorization: str | bytes | None) -> None:
        """Refuse what does not bring the token.

        Parameters
        ----------
        authorization : str or bytes
            The header or metadata of that name.
        """
        if self._expected is None:
            return
        given = authorization or b""
        if isinstance(given, str):
            given = given.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            raise RequestError(
                Kind.UNAUTHORISED,
                "the token is missing or wrong; expected 'authorization: Bearer TOKEN'",
            )

    def check_site(self, origin: str | None, host: str | None) -> None:
        """Refuse the page of another site: browsers let any page ask any server.

        Parameters
        ----------
        origin, host : str, optional
            The headers of these names; programs that are no browsers send no origin.
        """
        if origin is None or origin.lower() in self._origins:
            return
        try:
            site = urlsplit(origin)
        except ValueError:
            site = urlsplit("")
        # A site can have its own name resolve to this machine; it cannot know the token.
        known = not self.is_open or _is_literal(site.hostname or "")
        if known and host is not None and site.netloc.lower() == host.lower():
            return
        raise RequestError(
            Kind.UNAUTHORISED,
            f"a page of {origin:.200} may not ask here; start the server with --origin for it",
        )


def read_token(path: str | None) -> str | None:
    """The token of a file, or of the environment, if either is given.

    Raises
    ------
    ValueError
        If it is too short to keep anybody out, or cannot be sent as a header.
    """
    if path is not None:
        with open(path, encoding="utf-8") as file:
            token, where = file.read(MOST_TOKEN + 2).strip(), f"the file {path!r}"
    else:
        token, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if TOKEN_VARIABLE not in os.environ:
            return None
    printable = token.isascii() and token.isprintable() and " " not in token
    if not (LEAST_TOKEN <= len(token) <= MOST_TOKEN and printable):
        raise ValueError(
            f"the token of {where} has {len(token)} characters; expected {LEAST_TOKEN} to "
            f"{MOST_TOKEN} of ASCII without spaces, as: openssl rand -hex 32"
        )
    return token


def _is_literal(host: str) -> bool:
    """Whether a host's name says where it is, so that nobody can have it mean another."""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
