"""Runs the Jobs of rendered manifests as local processes and restarts them as Kubernetes' Job controller would.

An index is a process: its container's command with `$(VARIABLE)`s filled in, the downward API and the names of
headless Services resolved to this machine, and each volume a folder in place of its mount path.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from servers import free_port

ROOT = Path(__file__).resolve().parents[1]
_POD_IP = "127.0.0.1"
_POLL_SECONDS = 0.05


def kustomize(folder: Path) -> list[dict]:
    """The objects of an overlay, rendered without a cluster."""
    kubectl = Path(sys.executable).with_name("kubectl")
    rendered = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


class JobFailed(Exception):
    """The controller gives the Job up."""


@dataclass
class Fault:
    """A signal to the pods of some indexes, once, when something has happened."""

    indexes: tuple[int, ...]
    when: Callable[[], bool]
    number: int = signal.SIGKILL
    happened: bool = False


@dataclass
class _Index:
    number: int
    process: subprocess.Popen | None = None
    evicted: bool = False
    failures: int = 0
    done: bool = False
    codes: list[int] = field(default_factory=list)


class JobController:
    """A namespace's Jobs, Services and ConfigMaps on this machine; volumes are folders of `folder`."""

    def __init__(self, objects: list[dict], folder: Path) -> None:
        self._objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self.folder = folder
        self.data = folder / "data"
        self._ports: dict[str, int] = {}
        for kind, name in self._objects:
            if kind == "ConfigMap":
                (folder / name).mkdir(parents=True, exist_ok=True)
                for key, text in self._objects[kind, name]["data"].items():
                    (folder / name / key).write_text(text)

    def args(self, name: str) -> list[str]:
        """Arguments of a Job's container, to be changed as a user would in an overlay."""
        return self._objects["Job", name]["spec"]["template"]["spec"]["containers"][0]["args"]

    def run(self, name: str, fault: Fault | None = None, timeout: float = 240) -> dict[int, list[int]]:
        """Run a Job to its end; the exit codes of each index, in order."""
        spec = self._objects["Job", name]["spec"]
        indexes = [_Index(number) for number in range(spec["completions"])]
        until = time.monotonic() + min(timeout, spec["activeDeadlineSeconds"])
        self._ports.clear()
        try:
            while not _succeeded(spec, indexes):
                if time.monotonic() > until:
                    raise JobFailed(f"{name}: DeadlineExceeded; {self._said(name, indexes)}")
                for index in indexes:
                    self._step(name, spec, index, indexes)
                if fault and not fault.happened and all(indexes[i].process for i in fault.indexes) and fault.when():
                    fault.happened = True
                    for number in fault.indexes:
                        indexes[number].evicted = fault.number == signal.SIGTERM
                        _signal(indexes[number].process, fault.number)
                time.sleep(_POLL_SECONDS)
        finally:
            for index in indexes:
                if index.process is not None:
                    _signal(index.process, signal.SIGKILL)
                    index.process.wait()
        assert fault is None or fault.happened, f"{name} ended before the fault"
        return {index.number: index.codes for index in indexes}

    def _step(self, name: str, spec: dict, index: _Index, indexes: list[_Index]) -> None:
        """Start what does not run, and judge what has ended."""
        if index.done:
            return
        if index.process is None:
            index.process, index.evicted = self._start(name, spec["template"]["spec"], index.number), False
            return
        code = index.process.poll()
        if code is None:
            return
        _signal(index.process, signal.SIGKILL)  # a pod ends with all its processes
        index.process = None
        code = 128 - code if code < 0 else code  # as a container reports a signal
        index.codes.append(code)
        if code == 0:
            index.done = True
            return
        action = _action(spec, code, index.evicted)
        if action == "FailJob":
            raise JobFailed(f"{name}: index {index.number} exited {code}; {self._said(name, [index])}")
        if action == "Count":
            index.failures += 1
            if "backoffLimitPerIndex" in spec:
                over = index.failures > spec["backoffLimitPerIndex"]
            else:
                over = sum(each.failures for each in indexes) > spec["backoffLimit"]
            if over:
                raise JobFailed(f"{name}: BackoffLimitExceeded; {self._said(name, indexes)}")

    def _start(self, name: str, pod: dict, number: int) -> subprocess.Popen:
        container = pod["containers"][0]
        volumes = {volume["name"]: self._volume(volume, f"{name}-{number}") for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        told = {"JOB_COMPLETION_INDEX": str(number)}
        for entry in container.get("env", []):
            told[entry["name"]] = (
                entry.get("value") or {"status.podIP": _POD_IP}[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            )
        local = {key: self._here(value, mounts, pod) for key, value in told.items()}
        args = [self._here(_expanded(arg, told), mounts, pod) for arg in container["args"]]
        assert container["command"] == ["unicoord-atlas"]
        command = [sys.executable, "-m", "unicoord_atlas.jobs.cli", *args]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(mounts["/tmp"]), **local}
        with (self.folder / f"{name}-{number}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=mounts["/tmp"])

    def _volume(self, volume: dict, pod: str) -> Path:
        """A claim is shared by all pods, an emptyDir is the pod's own."""
        if "configMap" in volume:
            return self.folder / volume["configMap"]["name"]
        claim = volume.get("persistentVolumeClaim")
        folder = self.folder / (claim["claimName"] if claim else f"{pod}.{volume['name']}")
        folder.mkdir(exist_ok=True)
        return folder

    def _here(self, text: str, mounts: dict[str, Path], pod: dict) -> str:
        """A path or an address of the cluster on this machine; each Service port is a free port here."""
        for path, folder in mounts.items():
            if text == path or text.startswith(path + "/"):
                return str(folder) + text[len(path) :]
        service = pod.get("subdomain")
        if service is None:
            return text
        return re.sub(rf"{service}-0\.{service}:(\d+)", lambda found: f"{_POD_IP}:{self._port(found[0])}", text)

    def _port(self, address: str) -> int:
        if address not in self._ports:
            self._ports[address] = free_port()
        return self._ports[address]

    def _said(self, name: str, indexes: list[_Index]) -> str:
        logs = [f"index {each.number} {each.codes}:\n{self.log(name, each.number)[-1500:]}" for each in indexes]
        return "\n".join(logs)

    def log(self, name: str, number: int) -> str:
        """All that an index has printed."""
        return (self.folder / f"{name}-{number}.log").read_text()


def _expanded(text: str, told: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: told.get(found[1], found[0]), text)


def _action(spec: dict, code: int, evicted: bool) -> str:
    """The first rule that matches, as the controller looks for it."""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
        if evicted and any(each["type"] == "DisruptionTarget" for each in rule.get("onPodConditions", [])):
            return rule["action"]
    return "Count"


def _succeeded(spec: dict, indexes: list[_Index]) -> bool:
    rules = spec.get("successPolicy", {}).get("rules", [])
    if any(all(indexes[int(i)].done for i in rule["succeededIndexes"].split(",")) for rule in rules):
        return True
    return all(index.done for index in indexes)


def _signal(process: subprocess.Popen, number: int) -> None:
    """SIGTERM goes to a pod's first process, SIGKILL to all of them."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in children if number == signal.SIGKILL else []:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.send_signal(number)
