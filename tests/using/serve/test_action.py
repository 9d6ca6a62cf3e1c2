"""The port is taken before anything is loaded, by a socket that sends at once."""

import socket

import pytest

from hatemtl.errors import UserError
from hatemtl.using.serve.action import bound


def test_the_socket_says_that_it_is_of_tcp() -> None:
    with bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # by which asyncio knows that it must not wait


def test_a_port_in_use_and_a_host_of_elsewhere_are_told() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"serve.port={port}: Address already in use; type serve.port=0"):
            bound("127.0.0.1", port)
    with pytest.raises(UserError, match=r"serve.host=192.0.2.1 serve.port=0: Cannot assign requested address"):
        bound("192.0.2.1", 0)
