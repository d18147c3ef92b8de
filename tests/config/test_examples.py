"""The example files of config/, and what becomes of the claims that their comments make.

default.toml is held against the code's defaults in test_config.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from cas import config
from cas.access.roles import Policy, Principal, Role
from cas.config import Config
from cas.options import TcpAddress
from cas.server.access import anonymous_role, is_local

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "config").glob("*.toml"))


def load(name: str) -> Config:
    return config.load({"config": str(ROOT / "config" / name)}, {})


def role(loaded: Config, principal: str, instance: str, **claims: str) -> Role:
    """What the principal may do in the instance, with these claims in its JWT."""
    who = Principal(principal, claims={name: (text,) for name, text in claims.items()})
    return Policy(loaded.access).rights(who).role(instance)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_loads(path: Path) -> None:
    loaded = config.load({"config": str(path)}, {})
    assert (loaded == config.load({}, {})) == (path.name == "default.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_none_lets_strangers_in(path: Path) -> None:
    loaded = config.load({"config": str(path)}, {})
    for address in (loaded.grpc, loaded.http):
        assert isinstance(address, TcpAddress)
        addresses = [str(address)]
        assert is_local(addresses[0]) or anonymous_role(loaded, addresses) is Role.NONE


def test_an_office_reads_from_ci_and_keeps_what_it_builds() -> None:
    loaded = load("office.toml")
    assert config.is_server(loaded.upstream)
    assert loaded.upstream_writes == "none"
    assert loaded.upstream_token is not None


@pytest.fixture(
    params=["docker/cas.toml", "compose/cas.toml", "fleet/cas.toml", "kubernetes/cas.yaml"]
)
def deployed(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """What a server of deploy/ is configured by."""
    path = ROOT / "deploy" / request.param
    if path.suffix == ".yaml":
        block = path.read_text().partition("  cas.toml: |\n")[2].partition("\n---")[0]
        path = tmp_path / "cas.toml"
        path.write_text(textwrap.dedent(block))
    return config.load({"config": str(path)}, {})


def test_where_other_machines_reach_it_a_deployed_server_lets_no_strangers_in(
    deployed: Config,
) -> None:
    assert deployed.dir == Path("/var/lib/cas")
    assert deployed.grpc == TcpAddress("0.0.0.0", 8980)
    assert deployed.http == TcpAddress("0.0.0.0", 8080)
    assert anonymous_role(deployed, [str(deployed.grpc)]) is Role.NONE


def test_tokens_of_a_deployed_server_do_what_they_are_for(deployed: Config) -> None:
    if deployed.tokens is None:
        assert not deployed.access
        return
    for instance in ("", "main"):
        assert role(deployed, "token:ci", instance) is Role.WRITE
        assert role(deployed, "token:developers", instance) is Role.READ
        assert role(deployed, "token:prometheus", instance) is Role.NONE
    assert role(deployed, "token:prometheus", "metrics") is Role.READ


def test_developers_read_and_ci_writes() -> None:
    loaded = load("ci-read-only-developers.toml")
    for instance in ("", "main", "other"):
        assert role(loaded, "sso:alice", instance) is Role.READ
        assert role(loaded, "token:nightly", instance) is Role.WRITE
        assert role(loaded, "token:other", instance) is Role.NONE
    assert role(loaded, "token:ci", "main") is Role.WRITE
    assert role(loaded, "token:ci", "other") is Role.NONE
    assert role(loaded, "token:prometheus", "main") is Role.NONE
    assert role(loaded, "token:prometheus", "metrics") is Role.READ


def test_on_the_internet_only_reviewed_work_gets_to_main() -> None:
    loaded = load("internet-tls-jwt.toml")
    assert loaded.tls_cert
    main = {"repository": "example/app", "ref": "refs/heads/main"}
    branch = {"repository": "example/app", "ref": "refs/pull/7/merge"}
    fork = {"repository": "stranger/app", "ref": "refs/heads/main"}
    assert role(loaded, "github:x", "main", **main) is Role.WRITE
    assert role(loaded, "github:x", "main", **branch) is Role.NONE
    assert role(loaded, "github:x", "untrusted", **branch) is Role.WRITE
    assert role(loaded, "github:x", "main", **fork) is Role.NONE
    assert role(loaded, "github:x", "untrusted", **fork) is Role.NONE
    assert role(loaded, "people:ann", "main") is Role.READ
    assert role(loaded, "people:ann", "main", groups="cache-operators") is Role.ADMIN
    assert role(loaded, "token:prometheus", "main") is Role.NONE
