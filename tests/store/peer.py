"""A second process on a store, driven by a test: ``python peer.py DIRECTORY SOCKET``.

LMDB opens an environment once per process, so what two workers do to each other needs two
processes.  Each request is (method, arguments); the answer is (result, error).
"""

import sys
from multiprocessing.connection import Listener
from pathlib import Path

from cas import digest as digests
from cas.store.local import open_store


class Peer:
    def __init__(self, directory):
        self.store = open_store(Path(directory))
        self.upload = None

    def put(self, data):
        return self.put_many([data])[0]

    def put_many(self, blobs):
        pairs = [(digests.of(data), data) for data in blobs]
        for pending in self.store.put(pairs):
            pending.wait(30)
        return [digest for digest, _ in pairs]

    def read(self, digest):
        blob = self.store.open(digest)
        view = memoryview(bytearray(blob.size))
        blob.read_into(view, 0)
        blob.close()
        return bytes(view)

    def begin(self, name, digest):
        self.upload = self.store.upload(name, digest)
        return self.upload.offset

    def append(self, data):
        self.upload.append(data)

    def flush(self):
        self.upload.flush()

    def suspend(self):
        return self.upload.suspend()

    def discard(self):
        self.upload.discard()

    def finish(self):
        self.upload.finish().wait(30)

    def committed_size(self, name):
        return self.store.committed_size(name)


def main():
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
