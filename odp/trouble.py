"""What it means for a person when no answer came: one table from the errors of Python and its libraries to words."""

import socket
import ssl
from http.client import HTTPException, RemoteDisconnected

import requests
import urllib3

_UNREACHED = "ODP could not be reached: "
# The first kind that fits; RemoteDisconnected is also a ConnectionResetError and an HTTPException.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, _UNREACHED + "the name of its host is not known. Look at the ODP host and at this server's DNS"),
    (ssl.SSLCertVerificationError, _UNREACHED + "its certificate is not trusted"),
    (ssl.SSLError, _UNREACHED + "no encrypted connection (TLS) came about"),
    (ConnectionRefusedError, _UNREACHED + "the host refuses connections"),
    (RemoteDisconnected, _UNREACHED + "it closed the connection without an answer"),
    (ConnectionError, _UNREACHED + "the connection broke off"),
    (TimeoutError, _UNREACHED + "it did not answer in time"),
    (urllib3.exceptions.TimeoutError, _UNREACHED + "it did not answer in time"),
    (urllib3.exceptions.IncompleteRead, _UNREACHED + "its answer broke off"),
    (HTTPException, _UNREACHED + "what came back is not HTTP"),
    (urllib3.exceptions.ProtocolError, _UNREACHED + "its answer broke off"),
    (OSError, _UNREACHED + "the network has no way to its host"),
    (requests.RequestException, _UNREACHED + "the ODP host of this install is no address"),
    (ValueError, _UNREACHED + "the ODP host of this install is no address"),
)


def elsewhere(words: str) -> str:
    """What was said of ODP, of a server other than ODP."""
    words = words.removeprefix(_UNREACHED).partition(". ")[0]
    return "its address is none" if "ODP host" in words else words.replace("ODP", "it")


def words_for(error: BaseException) -> str:
    """The words for the innermost cause: urllib3 wraps it in several layers."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, requests.RequestException):  # all of them are an OSError too
        return _UNREACHED + "the ODP host of this install is no address"
    return next(
        (words for kind, words in _WORDS if isinstance(error, kind)), _UNREACHED + "what came back is no answer"
    )
