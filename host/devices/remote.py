"""A device on another computer: the same programs over one TCP connection.

Every message is a frame (:mod:`host.devices.frames`).  The two sides share a token and prove it in the greeting, each
over the other's nonce, so neither a stranger nor a recorded session gets through.  The contents are not encrypted: for
use beyond a trusted network put the connection into a tunnel, as the default of listening on the loopback interface
suggests.

The server serves one client at a time.  A client that vanishes, stalls or sends nonsense loses its connection and
nothing else: the device is reset and the next client is served.  Standard library and NumPy only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import (
    DEFAULT_TIMEOUT,
    Device,
    DeviceError,
    DeviceInfo,
    HasWords,
    Result,
    program_words,
    split_streams,
)
from host.devices.frames import GREETING_TIMEOUT, Channel, RemoteError
from hw.contract import VERSION, Error
from hw.design import Design, DesignError

DEFAULT_PORT = 4711
MAX_TIMEOUT = 24 * 3600.0
MIN_TOKEN = 16  #: characters
_HELLO, _PROOF, _INFO, _RUN, _RESULT, _RESET, _DONE, _FAILED, _ALIVE = range(1, 10)
_RUN_HEAD = struct.Struct("<dII")
_ALIVE_PERIOD = 2.0  #: seconds between signs of life while a program runs


class TokenError(RemoteError, ValueError):
    """A token that cannot be used; it is what the user gave, no failure of a connection."""


def read_token(path: Path) -> bytes:
    """The shared token from a file that only its owner may read.

    Raises:
        TokenError: no such file, too short a token, or a file that others may read.
    """
    try:
        status = path.stat()
        token = path.read_text(encoding="utf-8").strip().encode()
    except (OSError, UnicodeDecodeError) as e:
        raise TokenError(f"token file {path} cannot be read ({e}); make one with: fractrain board token {path}") from e
    if status.st_mode & 0o077:
        raise TokenError(f"token file {path} may be read by others; run: chmod 600 {path}")
    if len(token) < MIN_TOKEN:
        raise TokenError(f"the token in {path} has {len(token)} characters, fewer than {MIN_TOKEN}; make another one")
    return token


def write_token(path: Path) -> None:
    """A fresh token in a new file that only its owner may read.

    Raises:
        FileExistsError: there is a file already.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_urlsafe(32) + "\n")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``tcp://HOST:PORT`` or ``HOST:PORT``; the port may be left out.

    Raises:
        ValueError: not of that form.
    """
    rest = text.removeprefix("tcp://")
    host, found, port = rest.rpartition(":")
    if not found or rest.endswith("]"):
        host, port = rest, str(DEFAULT_PORT)
    host = host.strip("[]")
    if not host or "/" in rest or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"address {text!r} is not tcp://HOST:PORT with a port of 1..65535")
    return host, int(port)


def _proof(token: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.new(token, role + nonces, hashlib.sha256).digest()


def _json(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as e:
        raise RemoteError(f"a message is not valid JSON ({e})") from e
    if not isinstance(value, dict):
        raise RemoteError("a message is not a JSON object")
    return value


def _words(payload: bytes, offset: int, count: int) -> U64:
    return np.frombuffer(payload, dtype="<u8", offset=offset, count=count).astype(np.uint64)


# -- server ---------------------------------------------------------------------------------------------------------


class Server:
    """Offers a device to one client at a time.

    Args:
        device: anything that runs programs.
        token: shared with the clients, see :func:`read_token`.
        host: interface to listen on; the loopback one by default.
        port: 0 takes a free one.
        idle_timeout: seconds after which a silent client is disconnected.
        log: called with a line of text for every connection and refusal.

    Raises:
        RemoteError: too short a token, or the address cannot be listened on.
    """

    def __init__(
        self,
        device: Device,
        token: bytes,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        idle_timeout: float = 600.0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if len(token) < MIN_TOKEN:
            raise RemoteError(f"a token of {len(token)} characters is too short; use at least {MIN_TOKEN}")
        self._device, self._token, self._idle = device, token, idle_timeout
        self._log = log or (lambda line: None)
        self._stopping = threading.Event()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=4)
        except OSError as e:
            raise RemoteError(f"cannot listen on {host}:{port} ({e}); choose another --bind or --port") from e
        self._listener.settimeout(0.2)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def serve(self) -> None:
        """Serve clients until :meth:`stop`; whatever a client does, the next one is served."""
        try:
            while not self._stopping.is_set():
                try:
                    connection, peer = self._listener.accept()
                except socket.timeout:  # noqa: UP041
                    continue
                except OSError as e:
                    if self._stopping.is_set():
                        break
                    self._log(f"accepting failed: {e}")
                    time.sleep(0.1)
                    continue
                self._serve_one(connection, f"{peer[0]}:{peer[1]}")
        finally:
            self._listener.close()

    def stop(self) -> None:
        """Make :meth:`serve` return after the present message."""
        self._stopping.set()

    def _serve_one(self, connection: socket.socket, peer: str) -> None:
        channel = Channel(connection)
        greeted = False
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greet(channel)
            greeted = True
            self._log(f"{peer} connected")
            while not self._stopping.is_set():
                kind, payload = channel.receive(self._idle)
                self._answer(channel, kind, payload)
        except RemoteError as e:
            self._log(f"{peer}: {e}")
        except Exception as e:  # a bug or a dying device must not end the service
            self._log(f"{peer}: {type(e).__name__}: {e}")
        finally:
            channel.close()
            if greeted:  # the next client finds an idle device, whatever this one left behind
                try:
                    self._device.reset()
                except Exception as e:
                    self._log(f"the device cannot be reset: {e}")

    def _greet(self, channel: Channel) -> None:
        kind, payload = channel.receive(GREETING_TIMEOUT)
        if kind != _HELLO or len(payload) != 32:
            raise RemoteError("the greeting is not one")
        nonces = payload + secrets.token_bytes(32)
        channel.send(_HELLO, nonces[32:] + _proof(self._token, b"server", nonces))
        try:
            kind, payload = channel.receive(GREETING_TIMEOUT)
        except RemoteError as e:  # a client with another token leaves as soon as it sees this server's proof
            raise RemoteError(f"refused: the client did not prove that it has the same token ({e})") from e
        if kind != _PROOF or not hmac.compare_digest(payload, _proof(self._token, b"client", nonces)):
            raise RemoteError("refused: the client has another token")
        channel.secure(self._token, nonces, server=True)
        info = self._device.info
        text = {"kind": info.kind, "design": asdict(info.design), "hash64": f"{info.hash64:016x}", "contract": VERSION}
        channel.send(_INFO, json.dumps(text).encode())

    def _answer(self, channel: Channel, kind: int, payload: bytes) -> None:
        if kind == _RESET:
            self._device.reset()
            channel.send(_DONE)
            return
        if kind != _RUN or len(payload) < _RUN_HEAD.size:
            raise RemoteError(f"message kind {kind} of {len(payload)} bytes is not a request")
        timeout, n0, n1 = _RUN_HEAD.unpack_from(payload)
        if n0 < 1 or n1 < 1 or len(payload) != _RUN_HEAD.size + 8 * (n0 + n1) or not 0 <= timeout <= MAX_TIMEOUT:
            raise RemoteError(f"a program of {n0} and {n1} words in {len(payload)} bytes, {timeout} s, is not one")
        words0 = _words(payload, _RUN_HEAD.size, n0)
        words1 = _words(payload, _RUN_HEAD.size + 8 * n0, n1)
        outcome: list[Result | Exception] = []

        def work() -> None:
            try:
                if n0 == n1:  # a whole program may be run in parts
                    words = np.empty(2 * n0, np.uint64)
                    words[0::2], words[1::2] = words0, words1
                    outcome.append(self._device.run(words, timeout))
                else:
                    outcome.append(self._device.run_streams(words0, words1, timeout))
            except Exception as e:  # sent to the client
                outcome.append(e)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        lost: RemoteError | None = None
        while True:
            worker.join(_ALIVE_PERIOD)
            if not worker.is_alive():
                break
            if lost is None:
                try:
                    channel.send(_ALIVE)
                except RemoteError as e:
                    lost = e  # the program ends by itself or at its deadline; only then is the device free
        if lost is not None:
            raise lost
        found = outcome[0]
        if isinstance(found, Exception):
            channel.send(_FAILED, f"{type(found).__name__}: {found}".encode()[: 1 << 16])
            return
        head = {"error": int(found.error), "position": found.position, "counters": found.counters}
        text = json.dumps(head).encode()
        channel.send(_RESULT, struct.pack("<I", len(text)) + text + found.words.astype("<u8").tobytes())


# -- client ---------------------------------------------------------------------------------------------------------


class RemoteDevice:
    """A device behind a :class:`Server`.  Implements :class:`host.devices.device.Device`.

    A broken connection ends in an error; the next program connects again.

    Args:
        address: ``tcp://HOST:PORT``.
        token: shared with the server.
        design: that the server's device must have; None takes whatever it has.
        connect_timeout: seconds.

    Raises:
        RemoteError: nobody answers, another token, or another design.
    """

    def __init__(self, address: str, token: bytes, design: Design | None = None, connect_timeout: float = 10.0) -> None:
        self._host, self._port = parse_address(address)
        self._token, self._timeout = token, connect_timeout
        self._channel: Channel | None = None
        self._info: DeviceInfo | None = None
        self._connect()
        if design is not None and self.info.hash64 != design.hash64:
            found = self.info
            self.close()
            raise RemoteError(
                f"{address} has design {found.design.name!r} ({found.hash64:016x}), wanted is {design.name!r} "
                f"({design.hash64:016x}); name the right design or serve another overlay"
            )

    @property
    def info(self) -> DeviceInfo:
        assert self._info is not None
        return self._info

    def _connect(self) -> Channel:
        if self._channel is not None:
            return self._channel
        where = f"{self._host}:{self._port}"
        try:
            connection = socket.create_connection((self._host, self._port), self._timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            raise RemoteError(f"nobody answers at {where} ({e}); run fractrain board serve there") from e
        channel = Channel(connection)
        try:
            mine = secrets.token_bytes(32)
            channel.send(_HELLO, mine)
            kind, payload = channel.receive(self._timeout)
            nonces = mine + payload[:32]
            if kind != _HELLO or len(payload) != 64:
                raise RemoteError("the greeting is not one")
            if not hmac.compare_digest(payload[32:], _proof(self._token, b"server", nonces)):
                raise RemoteError("the server has another token; use the same token file on both sides")
            channel.send(_PROOF, _proof(self._token, b"client", nonces))
            channel.secure(self._token, nonces, server=False)
            kind, payload = channel.receive(self._timeout)
            if kind != _INFO:
                raise RemoteError("the server does not say what it is")
            info = self._parse_info(_json(payload))
            if self._info is not None and info != self._info:
                raise RemoteError(f"{where} has become another device; open it again")
            self._info, self._channel = info, channel
        except RemoteError as e:
            channel.close()
            busy = "; another client may be connected, or the token differs" if "no message" in str(e) else ""
            raise RemoteError(f"{where}: {e}{busy}") from e
        return channel

    @staticmethod
    def _parse_info(raw: dict[str, Any]) -> DeviceInfo:
        try:
            if raw["contract"] != VERSION:
                raise RemoteError(f"the server speaks contract version {raw['contract']}, this program {VERSION}")
            info = DeviceInfo(str(raw["kind"]), Design(**raw["design"]), int(raw["hash64"], 16))
        except (KeyError, TypeError, ValueError, DesignError) as e:
            raise RemoteError(f"the server's description of its device is not one ({e})") from e
        return info

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run a program; see :class:`host.devices.device.Device`."""
        return self.run_streams(*split_streams(program_words(program)), timeout)

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run from two streams.

        Raises:
            DeviceError: the device failed, or the connection did (:class:`RemoteError`).
            ValueError: an empty stream.
        """
        if words0.size == 0 or words1.size == 0:
            raise ValueError("a stream needs at least one word, which carries TLAST")
        timeout = min(max(0.0, timeout), MAX_TIMEOUT)
        head = _RUN_HEAD.pack(timeout, words0.size, words1.size)
        payload = head + words0.astype("<u8").tobytes() + words1.astype("<u8").tobytes()
        kind, answer = self._ask(_RUN, payload, timeout)
        if kind == _FAILED:
            raise DeviceError(f"{self._host}:{self._port}: {answer.decode(errors='replace')}")
        try:
            (size,) = struct.unpack_from("<I", answer)
            text = _json(answer[4 : 4 + size])
            words = _words(answer, 4 + size, (len(answer) - 4 - size) // 8)
            counters = {str(k): int(v) for k, v in text["counters"].items()}
            return Result(words, counters, Error(text["error"]), int(text["position"]))
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
            self.close()
            raise RemoteError(f"{self._host}:{self._port}: the answer is not one ({e})") from e

    def _ask(self, kind: int, payload: bytes, timeout: float) -> tuple[int, bytes]:
        channel = self._connect()
        deadline = time.monotonic() + timeout + GREETING_TIMEOUT
        try:
            channel.send(kind, payload)
            while True:
                found, answer = channel.receive(3 * _ALIVE_PERIOD + self._timeout)
                if found in (_RESULT, _FAILED, _DONE):
                    return found, answer
                if found != _ALIVE:
                    raise RemoteError(f"message kind {found} is no answer")
                if time.monotonic() > deadline:
                    raise RemoteError(f"no answer within {timeout:g} s")
        except RemoteError as e:
            self.close()
            raise RemoteError(f"{self._host}:{self._port}: {e}") from e

    def reset(self) -> None:
        """Back to idle; see :class:`host.devices.device.Device`."""
        kind, answer = self._ask(_RESET, b"", self._timeout)
        if kind == _FAILED:
            raise DeviceError(f"{self._host}:{self._port}: {answer.decode(errors='replace')}")

    def close(self) -> None:
        """End the connection; the next program connects again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
