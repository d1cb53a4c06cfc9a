"""Ports are free when they are handed out, and a taken one is named."""

import socket

import pytest

from envs.errors import ConfigError
from rl.inference.sglang.ports import take_ports


def test_any_free_ports_are_different() -> None:
    assert len(set(take_ports(8, 0, "127.0.0.1"))) == 8


def test_consecutive_ports_and_one_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is taken, an SGLang server was to listen"):
            take_ports(2, port - 1, "127.0.0.1")
    assert take_ports(1, port, "127.0.0.1") == [port]


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (65535, 2), (70000, 1)])
def test_ports_there_are_none_of(first: int, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"port is {first}; expected 0 \(any\), or room for {count}"):
        take_ports(count, first, "127.0.0.1")


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(ConfigError, match=r"no SGLang server can listen at 192.0.2.1, port 30000"):
        take_ports(1, 30000, "192.0.2.1")
