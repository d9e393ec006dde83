"""Reasons for a person when no response came: one table from exceptions of Python and its libraries to text."""

import socket
import ssl
from http.client import HTTPException, RemoteDisconnected

import requests
import urllib3

_UNREACHED = "ODP could not be reached: "
# The first match counts: RemoteDisconnected is also a ConnectionResetError and an HTTPException.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (
        socket.gaierror,
        _UNREACHED + "its host name could not be resolved. Check the ODP host and the DNS of this server",
    ),
    (ssl.SSLCertVerificationError, _UNREACHED + "its certificate is not trusted"),
    (ssl.SSLError, _UNREACHED + "the encrypted connection (TLS) failed"),
    (ConnectionRefusedError, _UNREACHED + "the host refuses connections"),
    (RemoteDisconnected, _UNREACHED + "it closed the connection without a response"),
    (ConnectionError, _UNREACHED + "the connection broke off"),
    (TimeoutError, _UNREACHED + "it did not respond in time"),
    (urllib3.exceptions.TimeoutError, _UNREACHED + "it did not respond in time"),
    (urllib3.exceptions.IncompleteRead, _UNREACHED + "its response ended early"),
    (HTTPException, _UNREACHED + "its response is not HTTP"),
    (urllib3.exceptions.ProtocolError, _UNREACHED + "its response ended early"),
    (OSError, _UNREACHED + "the network has no route to its host"),
    (requests.RequestException, _UNREACHED + "the ODP host of this install is not a valid address"),
    (ValueError, _UNREACHED + "the ODP host of this install is not a valid address"),
)


def elsewhere(words: str) -> str:
    """``words_for`` an error of a server other than ODP, to put behind the server's name."""
    words = words.removeprefix(_UNREACHED).partition(". ")[0]
    return "its address is not valid" if "ODP host" in words else words.replace("ODP", "it")


def words_for(error: BaseException) -> str:
    """The reason for an exception: that of its innermost cause, which urllib3 wraps in several layers."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, requests.RequestException):  # also an OSError, so before the table
        return _UNREACHED + "the ODP host of this install is not a valid address"
    return next(
        (words for kind, words in _WORDS if isinstance(error, kind)), _UNREACHED + "its response is not readable"
    )
