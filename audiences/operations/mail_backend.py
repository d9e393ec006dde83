"""Send e-mail with one deadline for the whole conversation with the mail server.

``EMAIL_TIMEOUT`` limits each socket operation, so a server that drips would hold a worker for hours.
"""

import smtplib
import socket
import threading
from contextlib import suppress
from typing import Any

from django.core.mail.backends import smtp

# Seconds until the connection is shut down. Below the claim of a message, or another worker would send it meanwhile.
SECONDS = 30.0


class PartlyRefusedError(smtplib.SMTPException):
    """The mail server accepted the mail for some of its addresses only. ``refused`` is the number of the others."""

    def __init__(self, refused: int) -> None:
        super().__init__(f"{refused} addresses were rejected")
        self.refused = refused


class _Limited(smtplib.SMTP):
    _timer: threading.Timer | None = None
    _is_over = False

    def connect(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        self._timer = threading.Timer(SECONDS, self._cut)
        self._timer.daemon = True
        self._timer.start()
        return super().connect(*args, **kwargs)

    def getreply(self) -> tuple[int, bytes]:
        self._end_if_over()  # during a connect or a TLS handshake, there is no connection to shut down
        try:
            reply = super().getreply()
        except smtplib.SMTPException:
            if not self._is_over:
                raise
        self._end_if_over()  # the reply ends where the connection was shut down
        return reply

    def _end_if_over(self) -> None:
        if self._is_over:
            self.close()
            raise TimeoutError

    def sendmail(self, *args: Any, **kwargs: Any) -> dict[str, tuple[int, bytes]]:
        """Raises ``PartlyRefusedError``; Django would ignore the addresses that the server rejects beside others."""
        if refused := super().sendmail(*args, **kwargs):
            raise PartlyRefusedError(len(refused))
        return refused

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _cut(self) -> None:
        self._is_over = True
        if (sock := self.sock) is not None:
            # On the plain socket, because the worker may be reading through the TLS layer. An OSError means that the
            # connection has just ended.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _LimitedWithTLS(_Limited, smtplib.SMTP_SSL):
    pass


class EmailBackend(smtp.EmailBackend):
    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _LimitedWithTLS if self.use_ssl else _Limited
