"""Where a value comes from, and what is said of a wrong one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cas import config
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


def test_the_default_file_is_the_defaults() -> None:
    path = ROOT / "config/default.toml"
    assert config.read_file(path) == {o.name: o.default for o in config.options()}
    assert list(tomllib.loads(path.read_text())) == [o.name for o in config.options()]
