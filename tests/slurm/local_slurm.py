"""A real SLURM on this one machine: munge, one controller, some node daemons; for tests.

    python tests/slurm/local_slurm.py start DIRECTORY [--nodes 2 --cpus 2 --memory-mib 3000]
    python tests/slurm/local_slurm.py stop DIRECTORY

`start` prints the line of shell that points SLURM's commands to it. Needs Debian's packages
slurmctld, slurmd, slurm-client and munge, whose daemons it starts by itself, and no root.
Everything is in DIRECTORY, ports are any that are free, so several of these can run at once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun")
START_SECONDS = 60.0
STOP_SECONDS = 20.0
_SBIN = "/usr/sbin:/sbin"  # not on everybody's path


class LocalSlurm:
    """One such SLURM.

    Parameters
    ----------
    directory
        For its state; short, since names of sockets are at most 107 characters long.
    """

    def __init__(
        self, directory: Path, *, nodes: int = 2, cpus: int = 2, memory_mib: int = 3000
    ) -> None:
        self.directory = directory
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._cpus = cpus
        self._memory_mib = memory_mib

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find it."""
        path = f"{os.environ.get('PATH', '')}:{_SBIN}"
        return {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        """Start all daemons and wait until a job has run."""
        missing = [
            name for name in PROGRAMS if shutil.which(name, path=self.environment["PATH"]) is None
        ]
        if missing:
            sys.exit(
                f"{', '.join(missing)} not found: "
                "apt-get install slurmctld slurmd slurm-client munge"
            )
        self.directory.mkdir(parents=True)
        self.directory.chmod(0o755)  # munge refuses a socket where others may write
        (self.directory / "state").mkdir()
        self._start_munge()
        self._write_configuration()
        self.run("slurmctld")
        for node in self.nodes:
            self.start_node(node)
        # That nodes are idle does not mean that jobs run: one must have run on each.
        everywhere = ["srun", f"--nodes={len(self.nodes)}", "--immediate=20", "true"]
        wait_until(lambda: self._succeeds(*everywhere), START_SECONDS, self._logs)

    def stop(self) -> None:
        """End jobs, then daemons; returns when all are gone."""
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user", str(os.getuid()))
            with suppress(TimeoutError):
                wait_until(lambda: not self.run("squeue", "--noheader"), STOP_SECONDS)
        nodes = [path.stem for path in self.directory.glob("slurmd.*.pid")]
        for name in [*nodes, "slurmctld", "munged"]:
            end_process(self.directory / f"{name}.pid")

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        (self.directory / f"spool.{node}").mkdir(exist_ok=True)
        self.run("slurmd", "-N", node)

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; returns what it prints."""
        environment = os.environ | self.environment
        path = shutil.which(command[0], path=environment["PATH"]) or command[0]
        return subprocess.run(
            [path, *command[1:]],
            env=environment,
            check=True,
            text=True,
            timeout=START_SECONDS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ).stdout

    def _succeeds(self, *command: str) -> bool:
        with suppress(subprocess.CalledProcessError):
            self.run(*command)
            return True
        return False

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key-file": "key", "seed-file": "seed", "socket": "sock", "log-file": "log"}
        options = [f"--{option}={self.directory}/munge.{name}" for option, name in files.items()]
        self.run("munged", "--force", f"--pid-file={self.directory}/munged.pid", *options)

    def _write_configuration(self) -> None:
        user, host = user_name(), socket.gethostname().split(".")[0]
        ports = free_ports(len(self.nodes) + 1)
        lines = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",  # without it, names would have to resolve
            "SlurmctldPort": ports[0],
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.directory}/munge.sock",
            "StateSaveLocation": f"{self.directory}/state",
            "SlurmdSpoolDir": f"{self.directory}/spool.%n",
            "SlurmctldPidFile": f"{self.directory}/slurmctld.pid",
            "SlurmdPidFile": f"{self.directory}/slurmd.%n.pid",
            "SlurmctldLogFile": f"{self.directory}/slurmctld.log",
            "SlurmdLogFile": f"{self.directory}/slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc",  # needs no control groups
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",  # memory is enforced without control groups
            "SlurmdParameters": "config_overrides",  # nodes may claim cores that are not there
            "SchedulerParameters": "sched_interval=2,bf_interval=2",
            "ReturnToService": 1,
            "KillWait": 2,
            "MailProg": "/bin/true",
        }
        text = [f"{name}={setting}" for name, setting in lines.items()]
        text += [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self._cpus} RealMemory={self._memory_mib}"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        text.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        (self.directory / "slurm.conf").write_text("\n".join([*text, ""]))

    def _logs(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in logs)


@contextmanager
def local_slurm(directory: Path, **options: int) -> Iterator[LocalSlurm]:
    """A SLURM that ends with the block."""
    slurm = LocalSlurm(directory, **options)
    with ExitStack() as stack:
        stack.callback(slurm.stop)
        slurm.start()
        yield slurm


def wait_until(
    condition: Callable[[], object], seconds: float, explain: Callable[[], str] = str
) -> None:
    """Return when a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            msg = f"not within {seconds} s\n{explain()}"
            raise TimeoutError(msg)
        time.sleep(0.1)


def end_process(pid_file: Path) -> None:
    """End a daemon by its file, and wait for it; one that is gone already does no harm."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            os.kill(pid, 0)  # raises when it is gone
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens to.

    They are none that the system gives to whoever asks for any: until they are used, others may.
    """
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one, suppress(OSError):
            port = random.randrange(20_000, 32_000)
            one.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


def user_name() -> str:
    """Name of the user that runs this."""
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("directory", type=lambda text: Path(text).absolute())
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=3000)
    options = vars(parser.parse_args())
    command = options.pop("command")
    slurm = LocalSlurm(options.pop("directory"), **options)
    if command == "stop":
        slurm.stop()
        return
    try:
        slurm.start()
    except BaseException:
        slurm.stop()
        raise
    for name, text in slurm.environment.items():
        print(f'export {name}="{text}"')


if __name__ == "__main__":
    main()
