"""A device's question to a real SuperLink with TLS and registered keys: each fault is one line."""

import sqlite3
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from flower_processes import FlowerHome, free_ports
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL as MIN_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from flwr.supercore.error import ApiErrorCode
from tls_files import CONNECTION_WITH_TLS, superlink_options

from mest_fed.cli import superlink
from mest_fed.cli.certificate_folder import add_node, make_authority
from mest_fed.cli.link_errors import AHEAD, BEHIND, ClockError, PassingError, UnreachableError
from mest_fed.cli.superlink import Link, ask
from mest_fed.errors import RefusedError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_numbers_are_flowers():
    names = "REGISTRATION_DISABLED", "INVALID_HEARTBEAT_INTERVAL", "NODE_ACTIVATION_FAILED"
    codes = superlink.REGISTRATION_DISABLED, superlink.INVALID_INTERVAL, superlink.ACTIVATION_FAILED
    found = {code.name: int(code) for code in ApiErrorCode}
    assert [next(v for k, v in found.items() if k.endswith(name)) for name in names] == [*codes]
    assert MIN_INTERVAL == superlink.SHORTEST_INTERVAL
    assert HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE == superlink.CUT_OFF


def refused(link, kind=RefusedError):
    with pytest.raises(kind) as caught:
        ask(link)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def states_of(database):
    with sqlite3.connect(database) as connection:
        return [row[0] for row in connection.execute("SELECT status FROM node")]


def test_each_fault_is_a_line(tmp_path, monkeypatch):
    folder, database = tmp_path / "tls", tmp_path / "superlink.db"
    make_authority(folder, ["127.0.0.1"], force=False)
    known, stranger = (add_node(folder, name, force=False) for name in ("known", "stranger"))
    (port,) = free_ports(1)
    options = [*superlink_options(folder), "--database", database]
    # A proxy that is not there, for all that is not kept off it.
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    links = {
        node: Link.read(f"127.0.0.1:{port}", False, node / "authority.pem", node / "supernode")
        for node in (known, stranger)
    }
    assert refused(links[known], UnreachableError).endswith("Connection refused")

    with FlowerHome(tmp_path / "home") as home:
        home.environment |= {"NO_PROXY": "127.0.0.1"}
        text = CONNECTION_WITH_TLS.format(port=port, authority=folder / "authority.pem")
        (home.folder / "config.toml").write_text(text, encoding="utf-8")
        server = home.launch_server(port, "flower-superlink", *options)
        register = ["flwr", "supernode", "register", str(known / "supernode.pub"), "home"]
        subprocess.run(register, env=home.environment, check=True, capture_output=True, timeout=60)

        ask(links[known])
        assert states_of(database) == ["offline"]  # as after every sign-off
        assert refused(links[stranger]).startswith("the SuperLink does not know the key in ")
        assert "--auth-key FILE" in refused(
            Link.read(f"127.0.0.1:{port}", False, folder / "authority.pem", None)
        )

        now = datetime.now(UTC)
        for ahead, way in ((AHEAD + 60, "ahead of"), (-BEHIND - 60, "behind")):
            monkeypatch.setattr(superlink, "_now", lambda by=ahead: now + timedelta(seconds=by))
            assert way in refused(links[known], ClockError)
        monkeypatch.undo()

        key = links[known].private_key()
        request = ActivateNodeRequest(
            public_key=superlink._public_bytes(key), heartbeat_interval=MIN_INTERVAL
        )
        body = superlink._post(links[known], key, "activate-node", request)[2]
        line = refused(links[known], PassingError)
        assert line.startswith(f"a device with the key in {known / 'supernode'} is connected")
        assert states_of(database) == ["online"]
        node_id = ActivateNodeResponse.FromString(body).node_id
        goodbye = DeactivateNodeRequest(node_id=node_id)
        assert superlink._post(links[known], key, "deactivate-node", goodbye)[0] == 200

        server.kill()
        server.wait()
        assert refused(links[known], UnreachableError).endswith("Connection refused")
        home.launch_server(port, "flower-superlink", *options)
        ask(links[known])  # the database remembers the key
