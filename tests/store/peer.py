"""A second process on a store, driven by a test: ``python peer.py DIRECTORY SOCKET``.

LMDB opens an environment once per process, so what two workers do to each other needs two
processes.  Each request is (method, arguments); the answer is (result, error).
"""

import sys
from multiprocessing.connection import Listener
from pathlib import Path

from cas import digest as digests
from cas.digest import Digest
from cas.store.local import open_store
from cas.store.uploads import LocalUpload


class Peer:
    def __init__(self, directory: str) -> None:
        self.store = open_store(Path(directory))
        self._upload: LocalUpload | None = None

    @property
    def upload(self) -> LocalUpload:
        assert self._upload is not None
        return self._upload

    def put(self, data: bytes) -> Digest:
        return self.put_many([data])[0]

    def put_many(self, blobs: list[bytes]) -> list[Digest]:
        pairs = [(digests.of(data), data) for data in blobs]
        for pending in self.store.put(pairs):
            pending.wait(30)
        return [digest for digest, _ in pairs]

    def read(self, digest: Digest) -> bytes:
        blob = self.store.open(digest)
        view = memoryview(bytearray(blob.size))
        blob.read_into(view, 0)
        blob.close()
        return bytes(view)

    def begin(self, name: str, digest: Digest) -> int:
        self._upload = self.store.upload(name, digest, self.store.committed_size(name) or 0, b"")
        return self.upload.offset

    def append(self, data: bytes) -> None:
        if self.upload.append(data):
            self.upload.flush()

    def flush(self) -> None:
        self.upload.flush()

    def suspend(self) -> int:
        return self.upload.suspend()

    def discard(self) -> None:
        self.upload.discard()

    def finish(self) -> None:
        self.upload.finish().wait(30)

    def committed_size(self, name: str) -> int | None:
        return self.store.committed_size(name)


def main() -> None:
    directory, socket = sys.argv[1:]
    peer = Peer(directory)
    with Listener(socket, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                break
            try:
                connection.send((getattr(peer, method)(*arguments), None))
            except Exception as error:  # noqa: BLE001 - the test is to see it
                connection.send((None, error))
    peer.store.close()


if __name__ == "__main__":
    main()
