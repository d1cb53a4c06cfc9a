"""Which servers a fleet is made of."""

import socket
import sys
from pathlib import Path

import pytest

from envs.errors import ConfigError
from rl.inference.sglang.launch import attached, launched

PYTHON = Path(sys.executable)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_several_servers_have_ports_of_their_own(model: Path) -> None:
    fleet = launched(PYTHON, model, model / "logs", servers=3)
    assert len(set(fleet.urls)) == 3 and all(url.startswith("http://127.0.0.1:") for url in fleet.urls)
    assert [server.name for server in fleet.servers] == ["server 0", "server 1", "server 2"]
    assert not any(map(fleet.is_serving, fleet.urls)) and not (model / "logs").exists()  # nothing was started yet


def test_ports_follow_the_given_one_and_are_free(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is taken"):
            launched(PYTHON, model, model, servers=2, port=port - 1)
    assert launched(PYTHON, model, model, port=port).urls == (f"http://127.0.0.1:{port}",)


def test_what_makes_no_sense_is_said_before_anything_is_started(model: Path) -> None:
    with pytest.raises(ConfigError, match="servers is 0; expected 1 or more"):
        launched(PYTHON, model, model, servers=0)
    with pytest.raises(ConfigError, match=r"SGLang cannot serve .*/none: there is no such folder"):
        launched(PYTHON, model / "none", model)


def test_servers_of_others() -> None:
    fleet = attached(["http://node1:30000/", "https://node2:30000"])
    assert fleet.urls == ("http://node1:30000", "https://node2:30000")
    with pytest.raises(ConfigError, match="'node1:30000' is no URL of a server; expected http://HOST:PORT"):
        attached(["node1:30000"])
    for urls in ([], ["http://a:1", "http://a:1/"]):
        with pytest.raises(ConfigError, match="expected the URL of each server once"):
            attached(urls)
