"""A cluster of two nodes on this machine: munged, slurmctld and two slurmd, without accounting."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

NODES = ("n1", "n2")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
KillWait=2
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=6000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=6000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """Daemons of Slurm, in a folder of their own.

    Args:
        folder: for all that they write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self.conf),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start everything, and wait until jobs may come."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{name}={self.folder}/munge.{end}" for name, end in names.items()]
        self.tell("munged", "--force", f"--key-file={key}", *files)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        user = self.tell("id", "-un").strip()
        self.conf.write_text(
            CONF.format(
                host=socket.gethostname().partition(".")[0],
                user=user,
                ports=_free_ports(3),
                folder=self.folder,
            )
        )
        self.start_controller("-c")
        for node in NODES:
            self.tell("slurmd", "-N", node)
        self.wait(lambda: self.tell("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])

    def start_controller(self, *options: str) -> None:
        """Start the controller; it goes on with what it knew, but with "-c"."""
        self.tell("slurmctld", "-i", *options)

    def stop(self) -> None:
        """End everything."""
        for name in ("slurmctld", *NODES, "munge"):
            self.kill(name)

    def kill(self, name: str) -> None:
        """End a daemon by SIGTERM and wait for its end."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            self.wait(lambda: not Path(f"/proc/{pid}").exists())

    def tell(self, *command: str, check: bool = True) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> Mapping[str, str]:
        """States of all jobs that are known, by number."""
        lines = self.tell("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T").splitlines()
        return dict(line.split("|") for line in lines)

    def hurry(self, job: str, mark: object) -> None:
        """Start a job that was requeued at once; Slurm lets such jobs wait for two minutes.

        Args:
            job: its number.
            mark: that the command lines of its processes hold, which must be gone.
        """

        def gone() -> bool:
            return self.jobs()[job] == "PENDING" and not self.tell(
                "pgrep", "-f", f"submitit.* {mark}", check=False
            )

        def started() -> bool:
            self.tell("scontrol", "update", f"jobid={job}", "starttime=now", check=False)
            return self.jobs()[job] != "PENDING"

        self.wait(gone)
        self.wait(started)

    def wait(self, happened: Callable[[], object], timeout_s: float = 180) -> None:
        """Wait until something has happened."""
        end = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < end, f"it did not happen within {timeout_s} s"
            time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of this test session."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if absent := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        pytest.skip(f"no {', '.join(absent)} here: apt-get install slurm-wlm munge")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(daemons: Cluster) -> Iterator[Cluster]:
    """The cluster, without jobs and with both nodes up."""
    yield daemons
    if (daemons.folder / "slurmctld.pid").exists():
        daemons.tell("scancel", "--full", *daemons.jobs(), check=False)
        daemons.wait(lambda: not _busy(daemons))
        daemons.tell("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)


def _busy(cluster: Cluster) -> set[str]:
    return {"RUNNING", "PENDING", "COMPLETING", "CONFIGURING"} & {*cluster.jobs().values()}
