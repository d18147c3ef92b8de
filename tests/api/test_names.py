"""Resource names: every form, every way to get one wrong, and the way back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.api import names
from cas.api.names import ResourceName
from cas.digest import FUNCTIONS, MAX_SIZE, Digest
from cas.errors import InvalidArgument
from cas.reapi.instances import KEYWORDS, check_instance

DIGEST = digests.of(b"hello")
HASH = DIGEST.hex
UUID = "3f0b1a9e-8c1d-4f65-9f5a-6a1a1f8f4d2b"

bounded = settings(derandomize=True, max_examples=300, deadline=None)


def characters(*, exclude: str = "") -> st.SearchStrategy[str]:
    """Anything but surrogates, control characters and `exclude`."""
    return st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=exclude)


segments = st.text(characters(exclude="/"), min_size=1, max_size=20).filter(
    lambda s: s not in KEYWORDS and s not in {".", ".."}
)
instances = st.lists(segments, max_size=3).map("/".join)
uuids = st.text(characters(exclude="/"), min_size=1, max_size=30).filter(
    lambda s: s not in {".", ".."}
)


@st.composite
def any_digest(draw: st.DrawFn) -> Digest:
    function = draw(st.sampled_from(FUNCTIONS))
    raw = draw(st.binary(min_size=function.length, max_size=function.length))
    return digests.make(function, raw, draw(st.integers(0, MAX_SIZE)))


resources = st.builds(ResourceName, instances, st.none() | uuids, st.none(), any_digest())


@bounded
@given(resources)
def test_what_is_formatted_is_parsed_back(resource: ResourceName) -> None:
    assert names.parse(names.format(resource)) == resource


@bounded
@given(resources.filter(lambda r: r.upload is not None), st.text(max_size=40))
def test_what_follows_an_uploads_size_is_ignored(resource: ResourceName, metadata: str) -> None:
    assert names.parse(f"{names.format(resource)}/{metadata}") == resource


@bounded
@given(resources.filter(lambda r: r.upload is None), st.text(max_size=40))
def test_nothing_may_follow_a_blobs_size(resource: ResourceName, metadata: str) -> None:
    with pytest.raises(InvalidArgument, match="follows the blob's size"):
        names.parse(f"{names.format(resource)}/{metadata}")


@bounded
@given(st.text(max_size=200) | st.text("/blobsupad-c0123456789ef.", max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        resource = names.parse(text)
        assert names.parse(names.format(resource)) == resource


@bounded
@given(resources, st.data())
def test_one_wrong_character_never_raises_anything_else(
    resource: ResourceName, data: st.DataObject
) -> None:
    name = names.format(resource)
    at = data.draw(st.integers(0, len(name) - 1))
    changed = name[:at] + data.draw(st.characters()) + name[at + 1 :]
    with contextlib.suppress(InvalidArgument):
        names.parse(changed)


@pytest.mark.parametrize(
    ("name", "instance", "upload"),
    [
        (f"blobs/{HASH}/5", "", None),
        (f"main/blobs/{HASH}/5", "main", None),
        (f"a/b/c/blobs/{HASH}/5", "a/b/c", None),
        (f"uploads/{UUID}/blobs/{HASH}/5", "", UUID),
        (f"main/uploads/{UUID}/blobs/{HASH}/5", "main", UUID),
        (f"main/uploads/{UUID}/blobs/{HASH}/5/", "main", UUID),
        (f"main/uploads/{UUID}/blobs/{HASH}/5/name.txt", "main", UUID),
        (f"main/uploads/{UUID}/blobs/{HASH}/5/../blobs/\0", "main", UUID),
        # Everything left of the first keyword is instance, so this uuid is one in its place.
        (f"uploads/blobs/blobs/{HASH}/5", "", "blobs"),
    ],
)
def test_each_form(name: str, instance: str, upload: str | None) -> None:
    assert names.parse(name) == ResourceName(instance, upload, None, DIGEST)


@pytest.mark.parametrize(
    "uuid",
    [
        UUID,
        UUID.upper(),
        UUID.replace("-", ""),
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",  # version 1
        "host-17",
        "ünïcode",
        "x" * 128,
    ],
)
def test_an_upload_may_be_named_by_any_segment(uuid: str) -> None:
    assert names.parse(f"uploads/{uuid}/blobs/{HASH}/5").upload == uuid


@pytest.mark.parametrize(
    "uuid", ["", ".", "..", "a\0b", "a\nb", "a\x7fb", "a\x85b", "x" * 129, "é" * 65]
)
def test_segments_that_name_no_upload(uuid: str) -> None:
    with pytest.raises(InvalidArgument, match="uuid"):
        names.parse(f"uploads/{uuid}/blobs/{HASH}/5")


@pytest.mark.parametrize("size", ["0", "1", "10", "1048576", str(MAX_SIZE)])
def test_sizes(size: str) -> None:
    assert names.parse(f"blobs/{HASH}/{size}").digest.size == int(size)


@pytest.mark.parametrize(
    "size",
    [
        "",
        "-1",
        "+1",
        "00",
        "01",
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "1.0",
        "1e3",
        "0x10",
        "abc",
        "٣",  # ARABIC-INDIC DIGIT THREE: int() takes it
        "１",  # FULLWIDTH DIGIT ONE
        "²",  # isdigit() says yes
        str(MAX_SIZE + 1),
        "9" * 19,
        "9" * 10_000,
    ],
)
@pytest.mark.parametrize("prefix", ["", "main/", f"uploads/{UUID}/", f"a/b/uploads/{UUID}/"])
def test_malformed_sizes(prefix: str, size: str) -> None:
    with pytest.raises(InvalidArgument, match="decimal number from 0 to") as caught:
        names.parse(f"{prefix}blobs/{HASH}/{size}")
    assert size[:40] in str(caught.value) or repr(size)[1:-1][:40] in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "abc",
        HASH[:-1],
        HASH + "0",
        HASH.upper(),
        HASH[:-1] + "g",
        HASH[:-1] + " ",
        " " + HASH[:-2] + " ",
        HASH[:-1] + "٣",
        HASH[:-1] + "ａ",
        HASH[:-1] + "\0",
        "sha256",
        "blake2",
        "z" * 10_000,
    ],
)
@pytest.mark.parametrize("prefix", ["", "main/", f"uploads/{UUID}/", f"a/b/uploads/{UUID}/"])
def test_malformed_hashes(prefix: str, bad: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.parse(f"{prefix}blobs/{bad}/5")
    assert repr(bad)[1:-1][:40] in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_function_that_its_hash_tells_is_left_out() -> None:
    with pytest.raises(InvalidArgument, match="'sha256' is left out of names"):
        names.parse(f"blobs/sha256/{HASH}/5")


def test_a_function_that_is_not_served() -> None:
    with pytest.raises(InvalidArgument, match="'gitsha1' is neither a hash"):
        names.parse(f"blobs/gitsha1/{'a' * 40}/5")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_each_function_in_names(function: digests.Function) -> None:
    digest = digests.of(b"x", function)
    name = names.format(ResourceName("", None, None, digest))
    assert (f"blobs/{function.name}/" in name) == function.in_names
    assert names.parse(name).digest == digest


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "//",
        ".",
        "..",
        "\0",
        "blobs",
        "blobs/",
        "blobs//",
        f"blobs/{HASH}",
        f"blobs/{HASH}/",
        f"blobs/{HASH}/5/",
        f"blobs//{HASH}/5",
        f"/blobs/{HASH}/5",
        f"//blobs/{HASH}/5",
        f"a//blobs/{HASH}/5",
        f"/a/blobs/{HASH}/5",
        f"../blobs/{HASH}/5",
        f"a/../blobs/{HASH}/5",
        f"./blobs/{HASH}/5",
        f"a\0b/blobs/{HASH}/5",
        f"a\nb/blobs/{HASH}/5",
        f"{'a' * 256}/blobs/{HASH}/5",
        f"{'é' * 128}/blobs/{HASH}/5",
        f"{'a/' * 5000}blobs/{HASH}/5",
        f"{HASH}/5",
        f"Blobs/{HASH}/5",
        f"blobs/blobs/{HASH}/5",
        f"blobs/main/blobs/{HASH}/5",
        f"actions/blobs/{HASH}/5",
        f"main/actionResults/{HASH}/5",
        f"main/operations/blobs/{HASH}/5",
        f"capabilities/blobs/{HASH}/5",
        "uploads",
        "uploads/",
        f"uploads/{UUID}",
        f"uploads/{UUID}/blobs",
        f"uploads/{UUID}/blobs/",
        f"uploads/{UUID}/blobs/{HASH}",
        f"uploads/{UUID}/{HASH}/5",
        f"uploads/{UUID}/main/blobs/{HASH}/5",
        f"uploads/{UUID}/uploads/{UUID}/blobs/{HASH}/5",
        f"uploads/blobs/{HASH}/5",
        f"\ud800/blobs/{HASH}/5",
        f"uploads/\ud800/blobs/{HASH}/5",
        "x" * 10_000,
        "/" * 10_000,
        "blobs/" * 2_000,
    ],
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.parse(name)
    assert len(str(caught.value)) < 600
    # The whole name, or only its instance where that is what is wrong with it.
    instance = name.partition("/blobs/")[0]
    assert any(repr(text[:60])[1:-1] in str(caught.value) for text in (name, instance))


@pytest.mark.parametrize("compressor", ["identity", "brotli", "deflate", "ZSTD", "", "x" * 10_000])
@pytest.mark.parametrize("prefix", ["", f"uploads/{UUID}/"])
def test_compressors_that_are_not_served(prefix: str, compressor: str) -> None:
    with pytest.raises(InvalidArgument, match="is not served") as caught:
        names.parse(f"{prefix}compressed-blobs/{compressor}/{HASH}/5")
    assert compressor[:40] in str(caught.value)


def test_a_compressor_that_is_served() -> None:
    read = names.parse_read(f"main/compressed-blobs/zstd/{HASH}/5")
    assert read == ResourceName("main", None, "zstd", DIGEST)
    name = f"main/uploads/{UUID}/compressed-blobs/zstd/{HASH}/5"
    write = names.parse_write(name)
    assert write == ResourceName("main", UUID, "zstd", DIGEST)
    assert names.format(write) == name
    with pytest.raises(InvalidArgument, match="compressed data is written to"):
        names.parse_write(f"main/compressed-blobs/zstd/{HASH}/5")
    with pytest.raises(InvalidArgument, match="'deflate' is not served; expected one of: zstd"):
        names.parse(f"compressed-blobs/deflate/{HASH}/5")
    with pytest.raises(InvalidArgument, match="'identity' is not served"):
        names.parse(f"compressed-blobs/identity/{HASH}/5")


def test_read_takes_no_upload() -> None:
    assert names.parse_read(f"main/blobs/{HASH}/5").upload is None
    with pytest.raises(InvalidArgument, match="an upload cannot be read"):
        names.parse_read(f"main/uploads/{UUID}/blobs/{HASH}/5")


def test_write_takes_uploads_and_blobs() -> None:
    assert names.parse_write(f"main/uploads/{UUID}/blobs/{HASH}/5").upload == UUID
    assert names.parse_write(f"main/blobs/{HASH}/5").upload is None


@pytest.mark.parametrize(
    "instance",
    ["", "main", "a/b/c", "with space", "ünï/cöde", "...", "a.b", "Blobs", "x" * 255, "é" * 127],
)
def test_instance_names(instance: str) -> None:
    assert check_instance(instance) == instance


@pytest.mark.parametrize(
    "instance",
    [
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "a/./b",
        "a\0b",
        "a\rb",
        "a\x7f",
        "a\x9f",
        "x" * 256,
        "é" * 128,
        "x" * 10_000,
        "\udcff",
        *sorted(KEYWORDS),
        *(f"a/{keyword}" for keyword in sorted(KEYWORDS)),
        *(f"{keyword}/b" for keyword in sorted(KEYWORDS)),
    ],
)
def test_malformed_instance_names(instance: str) -> None:
    with pytest.raises(InvalidArgument, match="instance name") as caught:
        check_instance(instance)
    assert repr(instance[:60])[1:20] in str(caught.value)
    assert len(str(caught.value)) < 600
