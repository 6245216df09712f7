"""Frames over a socket: magic, kind, sequence number, length, payload, and an HMAC-SHA256 over all of that and the
session's nonces, so that frames cannot be changed, repeated or reordered unnoticed; standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import struct
import time

from host.devices.device import DeviceError

FRAME_MAGIC = b"FTR1"
MAX_FRAME = 1 << 29  #: bytes of a payload after the greeting
MAX_GREETING = 1 << 12
GREETING_TIMEOUT = 10.0  #: seconds for each message of the greeting, and for any frame once it has begun
_HEADER = struct.Struct("<4sBQI")
_TAG = 32


class RemoteError(DeviceError):
    """The connection or the other side failed; the message says which."""


class Channel:
    """Frames over a socket, authenticated once :meth:`secure` was called."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._key = b""
        self._mine, self._theirs = b"", b""
        self._sent = self._received = 0
        self.limit = MAX_GREETING

    def secure(self, token: bytes, nonces: bytes, server: bool) -> None:
        """Authenticate all further frames with keys of this session, one per direction."""
        self._key = hmac.new(token, b"session" + nonces, hashlib.sha256).digest()
        self._mine, self._theirs = (b"S", b"C") if server else (b"C", b"S")
        self.limit = MAX_FRAME

    def _tag(self, side: bytes, header: bytes, payload: bytes) -> bytes:
        mac = hmac.new(self._key, side + header, hashlib.sha256)
        mac.update(payload)
        return mac.digest()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one frame."""
        if len(payload) > self.limit:
            raise RemoteError(f"a message of {len(payload)} bytes exceeds {self.limit}; split the program")
        header = _HEADER.pack(FRAME_MAGIC, kind, self._sent, len(payload))
        self._sent += 1
        self._socket.settimeout(max(GREETING_TIMEOUT, len(payload) / 1e5))
        try:
            self._socket.sendall(header + payload + self._tag(self._mine, header, payload))
        except OSError as e:
            raise RemoteError(f"the connection broke while sending ({e})") from e

    def receive(self, timeout: float | None) -> tuple[int, bytes]:
        """One frame; ``timeout`` seconds until it begins, a fixed time per amount of data once it has.

        Raises:
            RemoteError: the connection ended, or the frame is not a good one.
        """
        header = self._exactly(_HEADER.size, timeout)
        magic, kind, sequence, length = _HEADER.unpack(header)
        if magic != FRAME_MAGIC:
            raise RemoteError(f"the other side does not speak this protocol (got {magic!r})")
        if length > self.limit:
            raise RemoteError(f"a message of {length} bytes exceeds {self.limit}")
        if sequence != self._received:
            raise RemoteError(f"message {sequence} came instead of {self._received}")
        self._received += 1
        payload = self._exactly(length, GREETING_TIMEOUT)
        if not hmac.compare_digest(self._exactly(_TAG, GREETING_TIMEOUT), self._tag(self._theirs, header, payload)):
            raise RemoteError("a message's checksum is wrong: another token, or data changed on the way")
        return kind, payload

    def _exactly(self, count: int, timeout: float | None) -> bytes:
        parts: list[bytes] = []
        missing = count
        # a peer that drips single bytes must not hold the server for ever
        deadline = None if timeout is None else time.monotonic() + timeout + count / 1e5
        while missing:
            if deadline is not None and time.monotonic() > deadline:
                raise RemoteError("the other side is too slow")
            self._socket.settimeout(None if deadline is None else max(0.01, deadline - time.monotonic()))
            try:
                part = self._socket.recv(min(missing, 1 << 20))
            except socket.timeout as e:  # noqa: UP041  (another class before Python 3.10)
                raise RemoteError(f"no message within {timeout:g} s" if timeout is not None else "no message") from e
            except OSError as e:
                raise RemoteError(f"the connection broke ({e})") from e
            if not part:
                raise RemoteError("the connection was closed by the other side")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()
