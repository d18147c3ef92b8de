"""Where a value comes from, and what is said of a wrong one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cas import config
from cas.access.roles import Role, Rule
from cas.config import Config
from cas.errors import ConfigError
from cas.options import TcpAddress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cas.toml"


def test_nothing_given_is_the_defaults() -> None:
    loaded = config.load({}, {})
    assert loaded.grpc == TcpAddress("127.0.0.1", 8980)
    assert loaded.durability == "strict"
    assert loaded.dir == Path.home() / ".cache/cas"


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    file: Path,
) -> None:
    file.write_text('workers = 2\nhelper_threads = 2\nmax_blob_size = "2GiB"\n')
    environ = {"CAS_CONFIG": str(file), "CAS_WORKERS": "3", "CAS_HELPER_THREADS": "3"}
    loaded = config.load({"workers": "4"}, environ)
    assert loaded.workers == 4
    assert loaded.helper_threads == 3
    assert loaded.max_blob_size == 2 * 2**30
    assert loaded.max_open_uploads == Config().max_open_uploads


def test_the_file_named_by_a_flag_beats_the_one_in_the_environment(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    file.write_text("workers = 2\n")
    other.write_text("workers = 3\n")
    environ = {"CAS_CONFIG": str(other)}
    assert config.load({}, environ).workers == 3
    assert config.load({"config": str(file)}, environ).workers == 2


def test_every_option_can_be_set_in_each_place(file: Path) -> None:
    texts = {
        "dir": "/srv/cas",
        "grpc": "unix:/run/cas.sock",
        "http": "127.0.0.1:8081",
        "tls_cert": "/etc/cas/cert.pem",
        "tls_key": "/etc/cas/key.pem",
        "tls_client_ca": "/etc/cas/clients.pem",
        "htpasswd": "/etc/cas/htpasswd",
        "tokens": "/etc/cas/tokens",
        "anonymous": "read",
        "denied_writes": "discard",
        "workers": "7",
        "engine": "aio",
        "drain_timeout": "2.5",
        "heartbeat_timeout": "3",
        "durability": "batch",
        "max_size": "2TiB",
        "disk_reserve": "1GiB",
        "high_watermark": "80",
        "low_watermark": "70",
        "min_age": "60",
        "upload_expiry": "3600",
        "digest_functions": "blake3,md5",
        "max_blob_size": "3GiB",
        "max_batch_total_size": "3MiB",
        "max_message_size": "5MiB",
        "max_open_uploads": "8",
        "max_uploads_per_client": "7",
        "max_concurrent_calls": "9",
        "stall_timeout": "60",
        "helper_threads": "10",
        "inline_threshold": "1KiB",
        "direct_threshold": "3MiB",
        "compression": "zstd",
        "chunk_size": "64KiB",
        "fetch_hosts": "example.org,*.example.com:8080",
        "fetch_private": "true",
        "fetch_max_size": "2GiB",
        "fetch_timeout": "30",
        "upstream": "s3://bucket/prefix",
        "upstream_endpoint": "http://garage:3900",
        "upstream_region": "garage",
        "upstream_instance": "team/linux",
        "upstream_ca": "/etc/cas/upstream/ca.pem",
        "upstream_cert": "/etc/cas/upstream/cert.pem",
        "upstream_key": "/etc/cas/upstream/key.pem",
        "upstream_token": "/etc/cas/upstream/token",
        "upstream_login": "/etc/cas/upstream/login",
        "upstream_headers": "/etc/cas/upstream/headers",
        "upstream_helper": "/usr/bin/helper",
        "upstream_timeout": "2",
        "upstream_concurrency": "6",
        "upstream_writes": "back",
        "upstream_queue": "5000",
        "upstream_queue_size": "2GiB",
        "upstream_remember": "60",
        "upstream_remember_absent": "1.5",
        "upstream_remembered": "1000",
        "upstream_renew": "3600",
        "upstream_index": "redis://:secret@redis:6379/1",
        "upstream_index_age": "3600",
        "require_references": "true",
        "verify_reads": "true",
        "scrub_period": "86400",
        "log_format": "json",
        "log_level": "debug",
    }
    kinds = {option.name: option for option in config.options()}
    assert list(texts) == list(kinds)
    file.write_text(
        "".join(
            f"{name} = {text!r}\n" if kinds[name].kind.quoted else f"{name} = {text}\n"
            for name, text in texts.items()
        )
    )
    by_flag = config.load(texts, {})
    by_variable = config.load({}, {kinds[name].variable: text for name, text in texts.items()})
    by_file = config.load({"config": str(file)}, {})
    assert by_flag == by_variable == by_file
    assert config.to_wire(by_flag) == texts


def test_an_empty_variable_is_unset() -> None:
    assert config.load({}, {"CAS_WORKERS": "", "CAS_CONFIG": ""}) == config.load({}, {})


def test_the_directory_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.load({"dir": "here/../there"}, {}).dir == tmp_path / "there"
    assert config.load({"dir": "~/store"}, {}).dir == Path("/home/someone/store")


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        ({"workers": "x"}, {}, "--workers: 'x' is not a whole number from 0 to 1024"),
        ({"workers": "-1"}, {}, "--workers: '-1' is not a whole number from 0 to 1024"),
        ({}, {"CAS_WORKERS": "1_0"}, "CAS_WORKERS: '1_0' is not a whole number from 0 to 1024"),
        ({"max_blob_size": "64GB"}, {}, "--max-blob-size: '64GB' is not a size from 1: bytes, "),
        ({"grpc": "8980"}, {}, "--grpc: '8980' is not an address: host:port, "),
        ({"durability": "safe"}, {}, "--durability: 'safe' is not one of strict, batch, none"),
        ({"http": "8080"}, {}, "--http: '8080' is not an address: host:port, "),
        ({"drain_timeout": "30s"}, {}, "--drain-timeout: '30s' is not seconds from 0 to 86400"),
        ({"heartbeat_timeout": "0"}, {}, "--heartbeat-timeout: '0' is not seconds from 1 to "),
        ({"require_references": "yes"}, {}, "--require-references: 'yes' is not true or false"),
        ({"dir": ""}, {}, "--dir: '' is not a path"),
        ({"grpc": "none", "http": "none"}, {}, "grpc and http are both none: nothing to serve"),
        ({"max_message_size": "4MiB"}, {}, "max_message_size 4194304 is not above "),
        ({}, {"CAS_WORKER": "2"}, "unknown environment variable CAS_WORKER; did you mean CAS_WOR"),
    ],
)
def test_what_is_said_of_a_wrong_value(
    flags: dict[str, str], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(flags, environ)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_kubernetes_sets_beside_a_service_named_cas_is_no_mistake() -> None:
    config.load(
        {},
        {
            "CAS_SERVICE_HOST": "10.0.0.1",
            "CAS_SERVICE_PORT": "8980",
            "CAS_SERVICE_PORT_GRPC": "8980",
            "CAS_SERVICE_PORT_HTTP": "8080",
            "CAS_PORT": "tcp://10.0.0.1:8980",
            "CAS_PORT_8980_TCP": "tcp://10.0.0.1:8980",
            "CAS_PORT_8980_TCP_PROTO": "tcp",
            "CAS_PORT_8980_TCP_PORT": "8980",
            "CAS_PORT_8980_TCP_ADDR": "10.0.0.1",
        },
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker = 2", "unknown key 'worker'; did you mean workers?"),
        ("drain-timeout = 2", "unknown key 'drain-timeout'; did you mean drain_timeout?"),
        ("zebra = 2", "unknown key 'zebra'"),
        ("[limits]\nmax_blob_size = 1", "unknown key 'limits'"),
        ('workers = "2"', "workers: '2' is not a whole number from 0 to 1024"),
        ("workers = true", "workers: True is not a whole number from 0 to 1024"),
        ("workers = 2.0", "workers: 2.0 is not a whole number from 0 to 1024"),
        ("workers = 2000", "workers: 2000 is not a whole number from 0 to 1024"),
        ("drain_timeout = nan", "drain_timeout: nan is not seconds from 0 to 86400"),
        ("drain_timeout = -1", "drain_timeout: -1 is not seconds from 0 to 86400"),
        ("max_blob_size = 0", "max_blob_size: 0 is not a size from 1: bytes, or a number"),
        ("max_blob_size = 1.5", "max_blob_size: 1.5 is not a size from 1: bytes, or a number"),
        ("require_references = 1", "require_references: 1 is not true or false"),
        ("dir = 1", "dir: 1 is not a path"),
        ("grpc = 8980", "grpc: 8980 is not an address: host:port, "),
        ("engine = ['aio']", "engine: ['aio'] is not one of cq, aio"),
        ("workers = ", "is not valid TOML: "),
        ("workers = 1\nworkers = 2", "is not valid TOML: "),
    ],
)
def test_what_is_said_of_a_wrong_file(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load({"config": str(file)}, {})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_size": "31MiB"}, "max_size 32505856 is below 33554432"),
        ({"low_watermark": "95"}, "low_watermark 95 is not below high_watermark 95"),
        ({"high_watermark": "50"}, "low_watermark 90 is not below high_watermark 50"),
    ],
)
def test_room_that_makes_no_sense(flags: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.load(flags, {})


def test_a_file_that_is_not_text_or_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*cas.toml: No such file"):
        config.load({"config": str(file)}, {})
    file.write_bytes(b"dir = '\xff'\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        config.load({"config": str(file)}, {})


def test_upstream_may_be_a_table_of_the_file(file: Path) -> None:
    file.write_text('workers = 3\n[upstream]\nurl = "gs://bucket"\ntimeout = 3\nremembered = 7\n')
    loaded = config.load({"config": str(file)}, {})
    assert (loaded.upstream, loaded.upstream_timeout, loaded.upstream_remembered) == (
        "gs://bucket",
        3.0,
        7,
    )
    file.write_text('[upstream]\nurl = "gs://bucket"\ntimeuot = 3\n')
    with pytest.raises(ConfigError, match="'upstream_timeuot'; did you mean upstream_timeout"):
        config.load({"config": str(file)}, {})


def test_the_default_file_is_the_defaults() -> None:
    path = ROOT / "config/default.toml"
    assert config.read_file(path) == {o.name: o.default for o in config.options()}
    assert list(tomllib.loads(path.read_text())) == [o.name for o in config.options()]


RULES = """
[[access]]
role = "read"

[[access]]
role = "write"
principal = "github:*"
instance = "main"
claims = { ref = ["refs/heads/main", "refs/tags/*"], protected = "true" }

[[jwt]]
name = "github"
issuer = "https://issuer.example"
audience = ["a", "b"]
jwks = "/etc/cas/jwks.json"
leeway = 5

[[jwt]]
issuer = "https://sso.example"
audience = "a"
jwks = "https://sso.example/jwks"
algorithms = ["ES256"]
role_claim = "role"
"""


def test_rules_and_issuers_are_tables_of_the_file(file: Path) -> None:
    file.write_text(RULES)
    loaded = config.load({"config": str(file)}, {})
    reader, writer = loaded.access
    assert reader == Rule(Role.READ)
    assert writer.claims == (("ref", ("refs/heads/main", "refs/tags/*")), ("protected", ("true",)))
    github, sso = loaded.jwt
    assert (github.name, github.audience, github.leeway) == ("github", ("a", "b"), 5.0)
    assert (sso.name, sso.algorithms, sso.role_claim) == ("jwt", ("ES256",), "role")
    assert config.from_wire(config.to_wire(loaded)) == loaded


JWT = '[[jwt]]\nissuer = "i"\naudience = "a"\njwks = "/f"\nrole_claim = "r"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("access = 1", "access is not a list of tables: [[access]]"),
        ("[access]\nrole = 'read'", "access is not a list of tables: [[access]]"),
        ("[[acces]]\nrole = 'read'", "unknown key 'acces'; did you mean access?"),
        ("[[access]]\nrole = 'read'\n[[access]]", "[[access]] number 2: role is missing"),
        (
            "[[access]]\nrole = 'owner'",
            "[[access]] number 1: role: 'owner' is not one of none, read, write, admin",
        ),
        (
            "[[access]]\nrole = 'read'\nprincipals = 'x'",
            "[[access]] number 1: unknown key 'principals'; did you mean principal?",
        ),
        ("[[access]]\nrole = 'read'\ninstance = 1", "number 1: instance: 1 is not text, where *"),
        ("[[access]]\nrole = 'read'\nclaims = 'x'", "claims: 'x' is not a table of claims"),
        ("[[access]]\nrole = 'read'\nclaims = {a = 1}", "claims: {'a': 1} is not a table of"),
        ("[[access]]\nrole = 'read'\nclaims = {a = []}", "claims: {'a': []} is not a table of"),
        ("[[jwt]]\nissuer = 'i'", "[[jwt]] number 1: audience is missing; expected text, or a"),
        (JWT + "leeway = -1", "leeway: -1 is not seconds from 0 to 3600"),
        (JWT + "algorithms = ['HS256']", "algorithms: ['HS256'] is not a list of RS256, ES256, Ed"),
        (JWT + "algorithms = 'none'", "algorithms: 'none' is not a list of RS256, ES256, EdDSA"),
        (JWT + "name = 'a:b'", "name: 'a:b' is not a name"),
    ],
)
def test_what_is_said_of_a_wrong_table(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load({"config": str(file)}, {})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_cert = '/c'", "tls_cert and tls_key go together"),
        ("tls_key = '/k'", "tls_cert and tls_key go together"),
        ("tls_client_ca = '/k'", "tls_client_ca needs TLS"),
        (
            "[[access]]\nrole = 'read'\nprincipal = 'ci-*'",
            r"principal 'ci-\*' fits nobody; expected a pattern of cert:…, token:…, user:…, anon",
        ),
        ("[[access]]\nrole = 'read'\nprincipal = 'anonym*'", "'anonym.' fits nobody"),
        ("[[access]]\nrole = 'read'\nprincipal = 'jwt:*'", "'jwt:.' fits nobody"),
        (JWT + "name = 'user'", r"\[\[jwt\]\] name 'user' is taken"),
        (JWT + JWT.replace("'i'", "'j'"), r"\[\[jwt\]\] name 'jwt' is taken"),
        (JWT + JWT + "name = 'x'", r"\[\[jwt\]\] issuer 'i' is there twice"),
        (JWT.replace("role_claim", "instance_claim"), "nothing says what its principals may do"),
    ],
)
def test_access_that_makes_no_sense(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.load({"config": str(file)}, {})
