"""Stands for `ReaderProcesses` in tests: threads, through which everything goes pickled, as between processes."""

import pickle
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    def __init__(self, count, threads, run, receive):
        self.run, self.receive = run, receive
        self.pool = ThreadPoolExecutor(count)

    def submit(self, item) -> Future:
        return self.pool.submit(self.result, pickle.dumps(item))

    def result(self, item):
        return self.receive(pickle.loads(pickle.dumps(self.run(pickle.loads(item)))))

    def close(self):
        self.pool.shutdown(cancel_futures=True)
