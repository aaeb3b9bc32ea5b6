"""Two hosts on one machine: two network namespaces with a cable between them, each with processes of its own.

`python tests/workbench/hosts.py` (as root, with `ip` of iproute2, where distributed is installed) has a Dask scheduler
and a worker on one and a worker on the other, compares networks on them, and looks whether the run folder has the
numbers of one process; once more, and in the middle the cable is pulled. Then torchrun trains one model on both, and it
is compared with one process that has the double batch.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from test_jobs import content

from anyrnn.workbench import open_run

SCHEDULER = "tcp://10.77.0.1:8786"
DATA = ["steps.csv", "--id", "s", "--time", "t", "--target", "y", "--hidden", "32"]
COMPARE = ["-m", "anyrnn", "compare", *DATA, "--cells", "gru,lstm", "--seeds", "2", "--epochs", "60"]
FIT = ["-m", "anyrnn", "fit", *DATA, "--epochs", "5"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "wire"}


class Hosts:
    """Two hosts, 0 and 1, with a folder that both see."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, [f"anyrnn-{k}-{os.getpid()}" for k in (0, 1)]
        for name in self.names:
            ip("netns", "add", name)
        ip("-n", self.names[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", self.names[1])
        for k, name in enumerate(self.names):
            ip("-n", name, "address", "add", f"10.77.0.{k + 1}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")

    def start(self, host: int, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start Python there."""
        output = subprocess.DEVNULL if quiet else None
        command = ["ip", "netns", "exec", self.names[host], sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=ENVIRONMENT, stdout=output, stderr=output)

    def cable(self, state: str) -> None:
        """Pull it ("down") or plug it in again ("up")."""
        ip("-n", self.names[1], "link", "set", "wire", state)

    def end(self) -> None:
        for name in self.names:
            ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def cluster(hosts: Hosts) -> Iterator[None]:
    """A scheduler on host 0, a worker on each."""
    worker = ["-m", "distributed.cli.dask_worker", SCHEDULER, "--nthreads", "1", "--no-dashboard"]
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", "10.77.0.1", "--no-dashboard"]
    started = [hosts.start(0, *scheduler, quiet=True), *(hosts.start(host, *worker, quiet=True) for host in (0, 1))]
    try:
        time.sleep(8)  # until all are there
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def write_data(path: Path) -> None:
    """Is the mean of a noisy wave's second half above that of its first?"""
    draw = torch.Generator().manual_seed(1)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["s", "t", "u", "v", "y"])
        for s in range(240):
            x = torch.randn(30 + s % 31, 2, generator=draw).cumsum(0)
            half = len(x) // 2
            y = "up" if x[half:, 0].mean() > x[:half, 0].mean() else "down"
            lines.writerows([s, t, f"{u:.4f}", f"{v:.4f}", y] for t, (u, v) in enumerate(x.tolist()))


def epochs(folder: Path) -> int:
    """How many have been told of a run."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def compared(hosts: Hosts, name: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a comparison, and see that its numbers are those of one process."""
    start = time.monotonic()
    status = process.wait()
    one, found = (content(hosts.folder / each) for each in ("one", name))
    parts = zip(("results", "metrics", "weights"), one, found, strict=True)
    different = [what for what, here, there in parts if here != there]
    said = f"{', '.join(different)} DIFFER" if different else "the same bits as one process"
    print(f"== {name}: status {status}, {said}, {time.monotonic() - start:.0f} s\n")


def apart(here: Any, there: Any) -> float:
    """The largest difference between the losses, scores and weights of two runs of one network."""
    runs = [open_run(folder) for folder in (here, there)]
    weights = [run.model().module.state_dict() for run in runs]
    largest = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    curves = [run.results["models"][0]["runs"][0]["history"] for run in runs]
    for one, two in zip(*curves, strict=True):
        largest = max(largest, *(abs(one[key] - two[key]) for key in one if one[key] is not None))
    return largest


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(Path(folder))
        try:
            write_data(hosts.folder / "steps.csv")
            hosts.start(0, *COMPARE, "--out", "one").wait()
            with cluster(hosts):
                compared(hosts, "two", hosts.start(0, *COMPARE, "--scheduler", SCHEDULER, "--out", "two"))
            with cluster(hosts):
                process = hosts.start(0, *COMPARE, "--scheduler", SCHEDULER, "--out", "cut")
                while epochs(hosts.folder / "cut") < 40 and process.poll() is None:
                    time.sleep(0.1)
                hosts.cable("down")
                print(f"== the cable is pulled after {epochs(hosts.folder / 'cut')} of 240 epochs")
                compared(hosts, "cut", process)
                hosts.cable("up")
            meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29500"]
            both = [
                hosts.start(rank, "-m", "torch.distributed.run", *meeting, "--node-rank", f"{rank}", *FIT,
                            "--batch-size", "16", "--out", "ranks")
                for rank in (0, 1)
            ]  # fmt: skip
            hosts.start(0, *FIT, "--batch-size", "32", "--out", "alone").wait()
            status = [each.wait() for each in both]
            print(f"== torchrun on two hosts: statuses {status}, "
                  f"{apart(hosts.folder / 'ranks', hosts.folder / 'alone'):.1e} from one process at most")  # fmt: skip
        finally:
            hosts.end()


if __name__ == "__main__":
    main()
