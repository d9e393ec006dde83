"""Reasons for a person when there is no response: one table from exceptions of Python and its libraries to text."""

import socket
import ssl
from http.client import HTTPException, IncompleteRead, RemoteDisconnected

import requests
import urllib3

# ``{server}`` is the server's name, and ``{address}`` the setting or field that holds its address.
_UNREACHED = "{server} could not be reached: "
# The first match counts: RemoteDisconnected is also a ConnectionResetError and an HTTPException.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "its host name could not be resolved. Check {address} and the DNS of this server"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (ssl.SSLError, "the encrypted connection (TLS) failed"),
    (ConnectionRefusedError, "the host refuses connections"),
    (RemoteDisconnected, "it closed the connection without a response"),
    (ConnectionError, "the connection broke off"),
    (TimeoutError, "it did not respond in time"),
    (urllib3.exceptions.TimeoutError, "it did not respond in time"),
    (IncompleteRead, "its response ended early"),
    (HTTPException, "its response is not HTTP"),
    (urllib3.exceptions.ProtocolError, "its response ended early"),
    (OSError, "the network has no route to its host"),
)
_NO_ADDRESS = "{address} is not a valid address"
_ADDRESS_ERRORS = (requests.RequestException, urllib3.exceptions.LocationValueError, UnicodeError)
# These say whether the response or the address is at fault. Their cause doesn't: a ValueError about a number.
_COMPLETE = (HTTPException, urllib3.exceptions.LocationValueError)


def words_for(error: BaseException, *, server: str = "ODP", address: str = "the ODP host of this install") -> str:
    """The reason for an exception: that of its innermost cause, which urllib3 wraps in several layers."""
    return (_UNREACHED + _cause(error)).format(server=server, address=address)


def elsewhere(words: str) -> str:
    """The reason for an error of a server other than ODP, to be written after the server's name."""
    words = words.removeprefix(_UNREACHED.format(server="ODP")).partition(". ")[0]
    return "its address is not valid" if "ODP host" in words else words.replace("ODP", "it")


def _cause(error: BaseException) -> str:
    while not isinstance(error, _COMPLETE) and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, _ADDRESS_ERRORS):  # some are also an OSError, so before the table
        return _NO_ADDRESS
    return next((words for kind, words in _WORDS if isinstance(error, kind)), "its response is not readable")
