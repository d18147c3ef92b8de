"""Checks of a remote, from the address up to throughput, each with advice where it fails.

Rule: one check a function, in the order in which one thing needs the other; the first that
fails ends those that need it.  What is stored by a check is a few random bytes under their
own digest.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from cas.client.client import AsyncClient
from cas.client.credentials import Credentials
from cas.client.errors import PermissionDenied, Unauthenticated, Unavailable, Unsupported
from cas.client.remote import Remote
from cas.client.retry import Retry
from cas.client.source import of_bytes
from cas.digest import KNOWN, SHA256, Function
from cas.errors import CasError, LimitExceeded
from cas.pb import remote_execution_pb2 as pb

Verdict = Literal["ok", "warning", "failed"]

CONNECT_SECONDS = 5.0
ROUND_TRIPS = 10
FAR_SECONDS = 0.1
"""Round trips that make a build wait more for its cache than for itself."""

LATE_SECONDS = 60.0
"""A write that waits longer to be sent upstream is told of."""
CIRCLE_SECONDS = 900.0
"""For which a call that came back to its own node is: those that go on do so every ten minutes."""
SKEW_SECONDS = 60.0
"""Certificates and tokens begin to fail; the newest save is no longer the newest."""

CERTIFICATE_DAYS = 14


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do if it is not well."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


async def examine(
    remote: Remote, credentials: Credentials, size: int = 32 << 20, function: Function = SHA256
) -> AsyncIterator[Finding]:
    """All checks, as they are done, with digests of `function`; `size` bytes go up and down to
    measure throughput."""
    reached = await reach(remote)
    yield reached
    if reached.verdict == "failed":
        return
    if remote.tls:
        trusted = await tls(remote, credentials)
        yield trusted
        if trusted.verdict == "failed":
            return
    client = AsyncClient(remote, credentials, retry=Retry(attempts=2, first=0.1))
    async with client:
        answered = await protocol(client, function)
        yield answered
        if answered.verdict == "failed":
            return
        yield await latency(client, function)
        stored = await round_trip(client, function)
        yield stored
        yield await actions(client, function)
        if stored.verdict == "ok":
            yield await throughput(client, size, function)
        yield await clock(client)
        behind = await upstream(client)
        if behind is not None:
            yield behind


async def reach(remote: Remote) -> Finding:
    """Whether something listens there."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if remote.socket:
                _, writer = await asyncio.open_unix_connection(remote.socket)
            else:
                _, writer = await asyncio.open_connection(remote.host, remote.port)
    except socket.gaierror as error:
        return Finding(
            "address",
            "failed",
            f"{remote.host} has no address: {error.strerror}",
            "check the host's name, and that this machine's resolver knows it",
        )
    except TimeoutError:
        return Finding(
            "address",
            "failed",
            f"no answer within {CONNECT_SECONDS:.0f} s",
            "a firewall may drop packets on the way; check the port and the network",
        )
    except OSError as error:
        return Finding(
            "address",
            "failed",
            os.strerror(error.errno) if error.errno else str(error),
            "nothing listens there: start the server, or check host and port",
        )
    writer.close()
    return Finding("address", "ok", f"reached in {1000 * (time.monotonic() - began):.1f} ms")


async def tls(remote: Remote, credentials: Credentials) -> Finding:
    """Whether the remote's certificate is to be trusted, and for how long."""
    try:
        context = ssl.create_default_context(cafile=credentials.ca)
        if credentials.certificate:
            context.load_cert_chain(credentials.certificate, credentials.key)
        if not remote.http:
            context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(
                remote.host, remote.port, ssl=context, server_hostname=remote.host
            )
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "TLS",
            "failed",
            error.verify_message,
            "give the authority that signed it with --ca, or use the name that the certificate "
            "is for",
        )
    except (ssl.SSLError, OSError) as error:
        advice = "the remote may not speak TLS: try grpc:// or http://"
        if "alert" in str(error).lower():
            advice = "the remote refused the handshake: it may want a certificate, --cert and --key"
        return Finding("TLS", "failed", str(error) or "no answer", advice)
    try:
        certificate = writer.get_extra_info("peercert")
        version = writer.get_extra_info("ssl_object").version()
    finally:
        writer.close()
    until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (until - time.time()) / 86_400
    detail = f"{version}, certificate valid for {days:.0f} days"
    if days < CERTIFICATE_DAYS:
        return Finding("TLS", "warning", detail, "renew the remote's certificate")
    return Finding("TLS", "ok", detail)


async def protocol(client: AsyncClient, function: Function) -> Finding:
    """Whether it speaks the protocol that the URL says, and lets us in."""
    remote = client.remote
    check = "HTTP" if remote.http else "capabilities"
    try:
        offer = await client.offer()
        if remote.http:
            await client.find_missing([of_bytes(os.urandom(16), function).digest])
    except Unauthenticated as error:
        return Finding(
            check,
            "failed",
            str(error),
            "set CAS_REMOTE_TOKEN, --token-file, --user or --credential-helper",
        )
    except PermissionDenied as error:
        return Finding(check, "failed", str(error), "these credentials may not even read")
    except Unsupported as error:
        return Finding(
            check, "failed", str(error), "it answers, but not as a cache: check port and instance"
        )
    except Unavailable as error:
        return Finding(check, "failed", str(error), await _other_protocol(remote))
    except CasError as error:
        return Finding(check, "failed", str(error), "check the instance name in the URL")
    if remote.http:
        return Finding(check, "ok", "answers as Bazel's HTTP cache does")
    functions = ", ".join(KNOWN.by_number[n].name for n in offer.functions if n in KNOWN.by_number)
    detail = (
        f"REAPI {offer.api}; batches of {offer.batch >> 10} KiB; "
        f"zstd {'yes' if offer.zstd else 'no'}; {functions or 'no known digest function'}"
    )
    if function.number not in offer.functions:
        advice = f"the remote does not take {function.name} digests: try another --digest-function"
        return Finding(check, "failed", detail, advice)
    if not offer.writes_actions:
        return Finding(
            check,
            "warning",
            detail,
            "action results are read-only for these credentials: save will not work",
        )
    return Finding(check, "ok", detail)


async def latency(client: AsyncClient, function: Function) -> Finding:
    """How long one question takes."""
    digest = of_bytes(os.urandom(16), function).digest
    times = []
    try:
        for _ in range(ROUND_TRIPS):
            began = time.monotonic()
            await client.has(digest)
            times.append(time.monotonic() - began)
    except CasError as error:
        return Finding("latency", "failed", str(error), "see what the remote logs")
    middle = statistics.median(times)
    detail = f"{1000 * middle:.1f} ms for a round trip (median of {ROUND_TRIPS})"
    if middle > FAR_SECONDS:
        return Finding("latency", "warning", detail, "use a cache that is nearer")
    return Finding("latency", "ok", detail)


async def round_trip(client: AsyncClient, function: Function) -> Finding:
    """Whether a blob comes back."""
    data = os.urandom(1000)
    try:
        digest = await client.put(data, function)
        back = await client.get(digest)
    except (PermissionDenied, Unauthenticated) as error:
        return Finding(
            "round trip",
            "warning",
            f"reading works, writing does not: {error}",
            "use credentials that may write, or only pull, get and restore",
        )
    except LimitExceeded as error:
        return Finding(
            "round trip", "failed", str(error), "the remote has no room: ask its operator"
        )
    except CasError as error:
        return Finding("round trip", "failed", str(error), "see what the remote logs")
    assert back == data
    return Finding("round trip", "ok", "a blob was stored, found and read back")


async def actions(client: AsyncClient, function: Function) -> Finding:
    """Whether action results, which saves are made of, come back."""
    action = of_bytes(os.urandom(16), function).digest
    try:
        await client.put_action(action, pb.ActionResult(stdout_raw=b"cas doctor"))
        found = await client.get_action(action)
    except (PermissionDenied, Unauthenticated) as error:
        return Finding(
            "action results", "warning", str(error), "save needs credentials that may write them"
        )
    except CasError as error:
        return Finding("action results", "failed", str(error), "save and restore will not work")
    if found is None:
        return Finding(
            "action results",
            "failed",
            "one was stored and is not found",
            "the remote may serve from several machines that do not share their state",
        )
    return Finding("action results", "ok", "one was stored and read back")


async def throughput(client: AsyncClient, size: int, function: Function) -> Finding:
    """Bytes that no compression helps with, up and down."""
    data = os.urandom(size)
    try:
        began = time.monotonic()
        digest = await client.put(data, function)
        up = size / (time.monotonic() - began)
        began = time.monotonic()
        await client.get(digest)
        down = size / (time.monotonic() - began)
    except CasError as error:
        return Finding(
            "throughput", "failed", str(error), "small blobs work, large ones do not: a limit?"
        )
    return Finding(
        "throughput",
        "ok",
        f"{up / 2**20:.0f} MiB/s up, {down / 2**20:.0f} MiB/s down, with {size >> 20} MiB",
    )


async def clock(client: AsyncClient) -> Finding:
    """How far the remote's clock is from ours."""
    try:
        theirs = await client.clock()
    except CasError as error:
        return Finding("clock", "warning", str(error), "the time could not be asked for")
    if theirs is None:
        return Finding("clock", "ok", "gRPC tells no time; the http:// URL would")
    skew = theirs - time.time()
    detail = f"the remote's is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) > SKEW_SECONDS:
        return Finding("clock", "warning", detail, "set both clocks by NTP")
    return Finding("clock", "ok", detail)


async def upstream(client: AsyncClient) -> Finding | None:
    """What lies behind the remote, and whether it can be had; None where nobody tells of any."""
    told = (await client.status() or {}).get("upstream")
    if not isinstance(told, dict) or not told.get("url"):
        return None
    where = str(told["url"])
    unsent = told.get("unsent") or {}
    waits, age = unsent.get("entries", 0), unsent.get("oldest_seconds", 0.0)
    waiting = f"; {waits:,} writes wait to be sent, the oldest for {age:.0f} s" if waits else ""
    circle = told.get("circle_seen")
    if circle and time.time() - circle < CIRCLE_SECONDS:
        return Finding(
            "upstream",
            "failed",
            f"{where} leads back to this node: it is asked what it asks, and refuses that{waiting}",
            "nodes are each other's upstream, or one is its own: change `upstream` of one of them",
        )
    if told.get("down"):
        since = told.get("down_since")
        lasted = f", for {max(0.0, time.time() - since):.0f} s" if since else ""
        return Finding(
            "upstream",
            "failed",
            f"{where} cannot be had{lasted}: blobs and action results of this node alone are "
            f"served, and what is written waits or fails{waiting}",
            "the server's log says why, in the line `upstream fails`",
        )
    fetched, asked = told.get("fetched_blobs", 0), told.get("requests", 0)
    detail = f"{where}: {fetched:,} blobs fetched, {asked:,} requests{waiting}"
    if age >= LATE_SECONDS:
        advice = "upstream takes less than is written: the server's log and metrics tell more"
        return Finding("upstream", "warning", detail, advice)
    return Finding("upstream", "ok", detail)


async def _other_protocol(remote: Remote) -> str:
    """What the remote seems to speak instead of what the URL says."""
    if remote.socket or remote.tls:
        return "something listens there that does not answer: check that it is a cache"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(remote.host, remote.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: cas\r\nConnection: close\r\n\r\n")
            said = await reader.read(64)
            writer.close()
    except (OSError, TimeoutError):
        said = b""
    if said.startswith(b"HTTP/1") and not remote.http:
        return f"HTTP/1 answers there: try http://{remote.authority}"
    if said[:1] == b"\x15":
        return f"TLS answers there: try {'https' if remote.http else 'grpcs'}://{remote.authority}"
    if remote.http and said[3:4] == b"\x04":
        return f"HTTP/2 answers there: try grpc://{remote.authority}"
    return "something listens there that does not answer: check that it is a cache"
