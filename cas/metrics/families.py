"""What is counted: every metric family of the server.

Rule: names, labels and help, no values; docs/metrics.md says of each what to do when it moves.
Names follow Prometheus's conventions: base units, ``_total`` for what only grows.  Label sets
are bounded, whatever clients send.

No label is called ``instance``: Prometheus gives each target one of that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper bounds of its buckets, ascending, +Inf left out."""
    latest: bool = False
    """Of a gauge: of several processes' values the largest counts, not their sum."""

    @property
    def width(self) -> int:
        """Numbers that one series takes: of a histogram its buckets, +Inf's, and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


_LATENCIES = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds: a hit takes less than the first, a large blob on a slow line as long as the last."""

_SIZES = tuple(float(1 << power) for power in (10, 14, 17, 20, 24, 28, 32))
"""Bytes: 1 KiB, 16 KiB, 128 KiB, 1 MiB, 16 MiB, 256 MiB, 4 GiB."""

_AGES = (60.0, 600.0, 3600.0, 21600.0, 86400.0, 259200.0, 604800.0, 2592000.0, 7776000.0)
"""Seconds: a minute, ten, an hour, six, a day, three, a week, 30 days, 90."""

# --- requests: every engine and the HTTP front

REQUESTS = Family(
    "cas_requests_total",
    "counter",
    "Requests that have ended, by how.",
    ("protocol", "method", "code", "instance_name"),
)
REQUEST_SECONDS = Family(
    "cas_request_seconds",
    "histogram",
    "From a request's arrival to the end of its answer, streams included.",
    ("protocol", "method"),
    _LATENCIES,
)
RECEIVED_BYTES = Family(
    "cas_request_received_bytes_total",
    "counter",
    "Bytes of request messages.",
    ("protocol", "method"),
)
SENT_BYTES = Family(
    "cas_request_sent_bytes_total",
    "counter",
    "Bytes of response messages.",
    ("protocol", "method"),
)
TOOL_REQUESTS = Family(
    "cas_tool_requests_total",
    "counter",
    "Requests by the tool that sent them, from a sample.",
    ("tool",),
)

# --- the store

ACTION_LOOKUPS = Family(
    "cas_action_cache_lookups_total",
    "counter",
    "Action results asked for: hit, or miss (absent, or lacking a blob).",
    ("result",),
)
VALUE_LOOKUPS = Family(
    "cas_value_lookups_total",
    "counter",
    "Values of ccache, Gradle and their like asked for: hit or miss.",
    ("result",),
)
READ_SIZES = Family(
    "cas_blob_read_bytes",
    "histogram",
    "Size of the blobs read one by one, parts counted as the whole blob.",
    bounds=_SIZES,
)
BATCH_READS = Family(
    "cas_batch_read_blobs_total", "counter", "Blobs in the index that batches have read."
)
WRITTEN_SIZES = Family(
    "cas_blob_written_bytes",
    "histogram",
    "Size of the blobs committed one by one.",
    bounds=_SIZES,
)
BATCH_WRITES = Family(
    "cas_batch_written_blobs_total", "counter", "Blobs that came in batches and were committed."
)
UPLOADS_OPEN = Family("cas_uploads_open", "gauge", "Uploads that are being received.")
UPLOADS = Family(
    "cas_uploads_total",
    "counter",
    "Uploads begun: new, resumed, or taken over from a stream that still lived.",
    ("how",),
)
UPLOADS_EXPIRED = Family(
    "cas_uploads_expired_total", "counter", "Unfinished uploads that were given up and removed."
)
COMMIT_WRITES = Family(
    "cas_commit_writes",
    "histogram",
    "Writes that one commit acknowledged together.",
    bounds=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
)
COMMIT_SECONDS = Family(
    "cas_commit_seconds",
    "histogram",
    "Time of a commit: naming and syncing its files, then its transaction in the index.",
    ("step",),
    _LATENCIES,
)
COMMIT_FAILURES = Family(
    "cas_commit_failures_total",
    "counter",
    "Writes that could not be committed: no_space, or error.",
    ("reason",),
)
COMMIT_FAILED_AT = Family(
    "cas_commit_last_failure_timestamp_seconds",
    "gauge",
    "When a write could last not be committed; 0 for never.",
    latest=True,
)
COMMIT_DONE_AT = Family(
    "cas_commit_last_success_timestamp_seconds",
    "gauge",
    "When a write was last committed; 0 for never.",
    latest=True,
)

# --- chunks

SPLITS = Family(
    "cas_blob_splits_total",
    "counter",
    "Blobs whose chunks were asked for: their list was kept, or they were cut.",
    ("how",),
)
SPLICES = Family(
    "cas_blob_splices_total",
    "counter",
    "Blobs of which clients have sent the chunks: joined, or known already.",
    ("how",),
)
CHUNK_BYTES = Family(
    "cas_chunk_bytes_total",
    "counter",
    "Bytes of the chunks of blobs that were cut: shared with what was here, or new.",
    ("kind",),
)

# --- space: the janitor

STORE_USED_BYTES = Family(
    "cas_store_used_bytes", "gauge", "Bytes that the store takes on disk.", latest=True
)
STORE_LIMIT_BYTES = Family(
    "cas_store_limit_bytes", "gauge", "Bytes that the store may take on disk.", latest=True
)
STORE_ENTRIES = Family(
    "cas_store_entries", "gauge", "Blobs and action results that are kept.", latest=True
)
DISK_FREE_BYTES = Family(
    "cas_disk_free_bytes", "gauge", "Bytes free on the store's disk.", latest=True
)
STORE_FULL = Family(
    "cas_store_full", "gauge", "1 while writes are refused for want of room.", latest=True
)
EVICTED = Family(
    "cas_evicted_entries_total", "counter", "Entries evicted: blob, or action.", ("kind",)
)
EVICTED_BYTES = Family("cas_evicted_bytes_total", "counter", "Bytes that eviction has freed.")
EVICTED_AGE = Family(
    "cas_evicted_age_seconds",
    "histogram",
    "Time since its last use of what was evicted.",
    bounds=_AGES,
)
ORPHANS = Family(
    "cas_orphans_removed_total", "counter", "Files of blobs that no record named, removed."
)

# --- scrub

SCRUBBED = Family(
    "cas_scrub_checked_entries_total", "counter", "Entries that the scrub has read again."
)
SCRUBBED_BYTES = Family(
    "cas_scrub_checked_bytes_total", "counter", "Bytes that the scrub has read and hashed."
)
SCRUB_BAD = Family(
    "cas_scrub_bad_entries_total", "counter", "Entries that the scrub found damaged, and dropped."
)
SCRUBBED_AT = Family(
    "cas_scrub_completed_timestamp_seconds",
    "gauge",
    "When the scrub last came to the end of the store; 0 for never.",
    latest=True,
)

# --- upstream

UPSTREAM_REQUESTS = Family(
    "cas_upstream_requests_total",
    "counter",
    "Requests upstream, retries included: ok, absent, failed, refused, or late.",
    ("operation", "outcome"),
)
UPSTREAM_SECONDS = Family(
    "cas_upstream_request_seconds",
    "histogram",
    "From a request to the object store to the head of its answer, or its end.",
    ("operation",),
    _LATENCIES,
)
UPSTREAM_RETRIES = Family(
    "cas_upstream_retries_total", "counter", "Requests to the object store that were made again."
)
UPSTREAM_REMEMBERED = Family(
    "cas_upstream_remembered_blobs_total",
    "counter",
    "Blobs asked for whose presence upstream was known from a short while ago.",
)
UPSTREAM_INDEX = Family(
    "cas_upstream_index_requests_total",
    "counter",
    "Round trips to the index that nodes share: ok, or failed.",
    ("outcome",),
)
UPSTREAM_BYTES = Family(
    "cas_upstream_bytes_total",
    "counter",
    "Bytes of objects: received from the object store, or sent to it.",
    ("direction",),
)
UPSTREAM_FETCHED = Family(
    "cas_upstream_fetched_blobs_total", "counter", "Blobs that were brought here and found right."
)
UPSTREAM_ACTIONS = Family(
    "cas_upstream_action_hits_total",
    "counter",
    "Action results that were a miss here, and were served with what upstream has.",
)
UPSTREAM_BAD = Family(
    "cas_upstream_bad_objects_total",
    "counter",
    "Objects that were found damaged, and moved to quarantine.",
)
UPSTREAM_DOWN = Family(
    "cas_upstream_down",
    "gauge",
    "1 while a process leaves the object store alone because it fails.",
    latest=True,
)
UPSTREAM_DOWN_SINCE = Family(
    "cas_upstream_down_since_timestamp_seconds",
    "gauge",
    "Since when a process has left it alone; 0 while it does not.",
    latest=True,
)
UPSTREAM_CIRCLE = Family(
    "cas_upstream_circle_timestamp_seconds",
    "gauge",
    "When a call of this node's own came back to it by its upstream last; 0 for never.",
    latest=True,
)

UNSENT = Family(
    "cas_upstream_unsent_entries",
    "gauge",
    "Blobs and action results that were acknowledged and are to be sent upstream.",
    latest=True,
)
UNSENT_BYTES = Family(
    "cas_upstream_unsent_bytes", "gauge", "Bytes that are to be sent upstream.", latest=True
)
UNSENT_AGE = Family(
    "cas_upstream_unsent_age_seconds",
    "gauge",
    "For how long the oldest of what is to be sent upstream has waited.",
    latest=True,
)
UNSENT_ENDED = Family(
    "cas_upstream_unsent_ended_total",
    "counter",
    "What waited to be sent upstream and does no more: sent, or lost (removed or damaged here).",
    ("how",),
)

# --- processes

LOGGED = Family(
    "cas_log_messages_total",
    "counter",
    "Log messages from warning upwards, by level and logger.",
    ("level", "logger"),
)
WORKERS = Family("cas_workers", "gauge", "Processes that are up and ready.", ("role",))
WORKERS_WANTED = Family("cas_workers_wanted", "gauge", "Processes that there should be.", ("role",))
WORKER_ENDS = Family(
    "cas_worker_ends_total",
    "counter",
    "Processes that ended while serving: left (asked to), died, or hung.",
    ("role", "how"),
)
STARTED_AT = Family(
    "cas_start_timestamp_seconds", "gauge", "When the server was started.", latest=True
)

COUNTED: tuple[Family, ...] = (
    REQUESTS, REQUEST_SECONDS, RECEIVED_BYTES, SENT_BYTES, TOOL_REQUESTS,
    ACTION_LOOKUPS, VALUE_LOOKUPS, READ_SIZES, BATCH_READS, WRITTEN_SIZES, BATCH_WRITES,
    UPLOADS_OPEN, UPLOADS, UPLOADS_EXPIRED,
    COMMIT_WRITES, COMMIT_SECONDS, COMMIT_FAILURES, COMMIT_FAILED_AT, COMMIT_DONE_AT,
    SPLITS, SPLICES, CHUNK_BYTES,
    STORE_USED_BYTES, STORE_LIMIT_BYTES, STORE_ENTRIES, DISK_FREE_BYTES, STORE_FULL,
    EVICTED, EVICTED_BYTES, EVICTED_AGE, ORPHANS,
    SCRUBBED, SCRUBBED_BYTES, SCRUB_BAD, SCRUBBED_AT,
    UPSTREAM_REQUESTS, UPSTREAM_SECONDS, UPSTREAM_RETRIES, UPSTREAM_REMEMBERED, UPSTREAM_INDEX,
    UPSTREAM_BYTES, UPSTREAM_FETCHED, UPSTREAM_ACTIONS, UPSTREAM_BAD, UPSTREAM_DOWN,
    UPSTREAM_DOWN_SINCE, UPSTREAM_CIRCLE,
    UNSENT, UNSENT_BYTES, UNSENT_AGE, UNSENT_ENDED,
    LOGGED, WORKERS, WORKERS_WANTED, WORKER_ENDS, STARTED_AT,
)  # fmt: skip
"""What the processes count, in the order in which it is shown."""

# --- what is read of the system when somebody asks

CPU_SECONDS = Family(
    "cas_process_cpu_seconds_total",
    "counter",
    "CPU time of each process, user and system.",
    ("role", "worker"),
)
RESIDENT_BYTES = Family(
    "cas_process_resident_memory_bytes",
    "gauge",
    "Resident memory of each process.",
    ("role", "worker"),
)
OPEN_FDS = Family(
    "cas_process_open_fds", "gauge", "Open file descriptors of each process.", ("role", "worker")
)
READY = Family("cas_ready", "gauge", "1 while the server can write.")
BUILD = Family(
    "cas_build_info",
    "gauge",
    "Always 1: the versions that run.",
    ("version", "python", "grpcio", "lmdb"),
)

OBSERVED: tuple[Family, ...] = (CPU_SECONDS, RESIDENT_BYTES, OPEN_FDS, READY, BUILD)

ALL: tuple[Family, ...] = COUNTED + OBSERVED
