"""Ports for the servers of this machine."""

import contextlib
import errno
import socket

from envs.errors import ConfigError


def take_ports(count: int, first: int, host: str) -> list[int]:
    """Ports that nobody listens at.

    Args:
        count: how many.
        first: these many from here on; 0: any that are free.
        host: the network interface.

    Raises:
        ConfigError: when one is taken, or cannot be used.
    """
    if first == 0:
        with contextlib.ExitStack() as held:  # all held at once, or the same one might come twice
            return [held.enter_context(_bound(host, 0)).getsockname()[1] for _ in range(count)]
    if not 1 <= first <= 65536 - count:
        raise ConfigError(f"port is {first}; expected 0 (any), or room for {count} from it to 65535")
    for port in range(first, first + count):
        check_free(host, port)
    return list(range(first, first + count))


def check_free(host: str, port: int) -> None:
    """Says that a port is taken before a server finds out half a minute later.

    Raises:
        ConfigError: when it is, or the address is none of this machine's.
    """
    try:
        _bound(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken, an SGLang server was to listen there; "
                "end what has it, name another one, or give port 0 for any free one"
            ) from error
        raise ConfigError(f"no SGLang server can listen at {host}, port {port}: {error}") from error


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
