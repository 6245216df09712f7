"""A device over TCP on the loopback interface: same answers, and a server that outlives its clients."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractrain import main
from host.devices.device import DEFAULT_TIMEOUT, DeviceError, Result
from host.devices.reference import ReferenceDevice
from host.devices.remote import RemoteDevice, RemoteError, Server, parse_address, read_token, write_token
from hw.contract import Error
from hw.design import load_design
from tests.support.malformed import good_program, malformed_programs
from tests.support.random_programs import random_program

DESIGN = load_design("sim-small")
TOKEN = b"a shared token of many characters"


class Slow(ReferenceDevice):
    """Takes its time, and can fail."""

    def __init__(self) -> None:
        super().__init__(DESIGN)
        self.delay, self.fail, self.resets = 0.0, False, 0

    def run_streams(self, words0: Any, words1: Any, timeout: float = DEFAULT_TIMEOUT) -> Result:
        time.sleep(self.delay)
        if self.fail:
            raise DeviceError("the DMA is on holiday")
        return super().run_streams(words0, words1, timeout)

    def reset(self) -> None:
        self.resets += 1


class Serving:
    """A server in a thread."""

    def __init__(self, **options: Any) -> None:
        self.device = Slow()
        self.lines: list[str] = []
        self.server = Server(self.device, TOKEN, port=0, log=self.lines.append, **options)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()
        self.address = "tcp://{}:{}".format(*self.server.address)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server.address, 5)


@pytest.fixture
def serving() -> Iterator[Serving]:
    s = Serving(idle_timeout=5.0)
    yield s
    s.server.stop()
    s.thread.join(5)


def test_remote_answers_are_the_devices(serving: Serving) -> None:
    device = RemoteDevice(serving.address, TOKEN, DESIGN)
    assert device.info.kind == "reference"
    assert device.info.design == DESIGN
    local = ReferenceDevice(DESIGN)
    for seed in range(5):
        words = random_program(DESIGN, seed, packets=6)
        got, expected = device.run(words), local.run(words)
        assert np.array_equal(got.words, expected.words)
        assert got.counters == expected.counters
    for case in malformed_programs(DESIGN):
        if not case.slow:
            result = device.run_streams(case.words0, case.words1)
            assert (result.error, result.position) == (case.error, case.position), case.name
    device.reset()
    device.close()
    assert device.run(good_program(DESIGN)).error is Error.NONE  # connects again
    device.close()


def test_device_failures_arrive_as_such_and_the_connection_lives(serving: Serving) -> None:
    device = RemoteDevice(serving.address, TOKEN)
    serving.device.fail = True
    with pytest.raises(DeviceError, match="the DMA is on holiday"):
        device.run(good_program(DESIGN))
    serving.device.fail = False
    assert device.run(good_program(DESIGN)).error is Error.NONE
    device.close()


def test_strangers_and_other_designs_are_refused(serving: Serving) -> None:
    with pytest.raises(RemoteError, match="another token"):
        RemoteDevice(serving.address, b"some other token of many letters")
    with pytest.raises(RemoteError, match="has design 'sim-small'"):
        RemoteDevice(serving.address, TOKEN, load_design("pynq-z2"))
    with pytest.raises(RemoteError, match="nobody answers"):
        RemoteDevice("tcp://127.0.0.1:1", TOKEN)
    with pytest.raises(RemoteError, match="too short"):
        Server(ReferenceDevice(DESIGN), b"short", port=0)
    with pytest.raises(RemoteError, match="cannot listen"):
        Server(ReferenceDevice(DESIGN), TOKEN, port=serving.server.address[1])
    device = RemoteDevice(serving.address, TOKEN, DESIGN)
    device.close()


def test_broken_clients_do_not_end_the_service(serving: Serving) -> None:
    header = struct.Struct("<4sBQI")
    bad: list[bytes] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64,
        header.pack(b"FTR1", 1, 0, 0xFFFFFFFF),
        header.pack(b"FTR1", 1, 7, 32) + bytes(64),
        header.pack(b"FTR1", 1, 0, 32) + bytes(32) + bytes(32),
        header.pack(b"FTR1", 4, 0, 16) + bytes(48),
        np.random.default_rng(0).bytes(500),
    ]
    for blob in bad:
        with serving.connect() as stranger:
            stranger.settimeout(5)
            with contextlib.suppress(OSError):  # the server may have hung up meanwhile
                stranger.sendall(blob)
                stranger.shutdown(socket.SHUT_WR)
                assert len(stranger.recv(1 << 16)) < 200
        device = RemoteDevice(serving.address, TOKEN, DESIGN)
        assert device.run(good_program(DESIGN)).error is Error.NONE
        device.close()
    assert serving.thread.is_alive()


def test_a_changed_or_repeated_message_is_noticed(serving: Serving) -> None:
    device = RemoteDevice(serving.address, TOKEN, DESIGN)
    channel = device._channel
    assert channel is not None
    channel._key = b"wrong"
    with pytest.raises(RemoteError, match=r"closed by the other side|connection broke|checksum"):
        device.run(good_program(DESIGN))
    assert device.run(good_program(DESIGN)).error is Error.NONE
    channel = device._channel
    assert channel is not None
    channel._sent -= 1
    with pytest.raises(RemoteError):
        device.run(good_program(DESIGN))
    assert any("checksum is wrong" in line for line in serving.lines)
    assert any("instead of" in line for line in serving.lines)
    device.close()


def test_a_client_that_vanishes_during_a_program_is_forgotten(serving: Serving) -> None:
    device = RemoteDevice(serving.address, TOKEN, DESIGN)
    serving.device.delay = 0.5

    def run() -> None:
        with pytest.raises(RemoteError):
            device.run(good_program(DESIGN))

    runner = threading.Thread(target=run)
    runner.start()
    time.sleep(0.1)
    assert device._channel is not None
    device._channel._socket.shutdown(socket.SHUT_RDWR)
    runner.join(5)
    serving.device.delay = 0.0
    other = RemoteDevice(serving.address, TOKEN, DESIGN)
    assert other.run(good_program(DESIGN)).error is Error.NONE
    assert serving.device.resets >= 1
    other.close()


def test_one_client_at_a_time_and_silent_ones_are_sent_away() -> None:
    serving = Serving(idle_timeout=0.5)
    first = RemoteDevice(serving.address, TOKEN)
    with pytest.raises(RemoteError, match="another client may be connected"):
        RemoteDevice(serving.address, TOKEN, connect_timeout=0.2)
    time.sleep(0.8)  # the first says nothing
    second = RemoteDevice(serving.address, TOKEN)
    second.close()
    first.close()
    serving.server.stop()
    serving.thread.join(5)
    assert not serving.thread.is_alive()


def test_the_server_says_that_a_client_has_another_token() -> None:
    log: list[str] = []
    server = Server(ReferenceDevice(load_design("sim-small")), TOKEN, port=0, log=log.append)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with pytest.raises(RemoteError, match="another token"):
            RemoteDevice(f"tcp://127.0.0.1:{server.address[1]}", b"some other token of many letters")
        for _ in range(100):
            if log:
                break
            time.sleep(0.05)
    finally:
        server.stop()
        thread.join()
    assert any("refused" in line and "token" in line for line in log)


def test_addresses_and_token_files(tmp_path: Path) -> None:
    assert parse_address("tcp://board:99") == ("board", 99)
    assert parse_address("board") == ("board", 4711)
    assert parse_address("tcp://[::1]:99") == ("::1", 99)
    for wrong in ("tcp://", "tcp://a:b", "tcp://a:99999", "tcp://a/b:1"):
        with pytest.raises(ValueError, match="is not tcp://HOST:PORT"):
            parse_address(wrong)
    path = tmp_path / "token"
    write_token(path)
    assert len(read_token(path)) > 32
    with pytest.raises(FileExistsError):
        write_token(path)
    path.chmod(0o644)
    with pytest.raises(RemoteError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(RemoteError, match="5 characters"):
        read_token(path)
    with pytest.raises(RemoteError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_the_command_refuses_before_it_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> int:
        return main(["board", *words])

    token = tmp_path / "token"
    assert command("token", str(token)) == 0
    assert command("token", str(token)) == 2
    assert command("serve", "--device", "numpy", "--token", str(token)) == 2
    assert command("serve", "--token", str(tmp_path / "none")) == 2
    assert command("serve", "--token", str(token), "--overlay", "x.bit") == 2
    assert "--overlay is for --device pynq" in capsys.readouterr().err
