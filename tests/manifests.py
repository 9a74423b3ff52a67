"""What the tests of the manifests share: overlays, the pods in them, and what a pod of the pipeline must be."""

import re
from functools import cache
from pathlib import Path

from job_controller import ROOT, kustomize

OVERLAYS = sorted(path.parent for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(\.\d+)?)(m|[KMGTP]i?)?")
_FACTORS = {"m": 1e-3, **{f"{c}i": 1024.0**n for n, c in enumerate("KMGTP", 1)}}
ENUMS = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "action": {"FailIndex", "FailJob", "Ignore", "Count", "FailJobSet"},
    "operator": {"In", "NotIn", "Exists", "Equal"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "medium": {"", "Memory"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "policyTypes": {"Ingress", "Egress"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
}
"""Words that the API server takes, and schemas only describe."""


@cache
def rendered(overlay: Path) -> list[dict]:
    return kustomize(overlay)


def steps_of_readme() -> list[str]:
    """The Jobs that k8s/README.md runs, in its order."""
    text = (ROOT / "k8s" / "README.md").read_text()
    return re.findall(r"^ {4}step ([a-z-]+)", text, re.MULTILINE)


def of_kind(objects: list[dict], kind: str) -> list[dict]:
    return [each for each in objects if each["kind"] == kind]


def job_specs(objects: list[dict]) -> list[tuple[str, dict]]:
    """Each Job, also those inside of a JobSet or a TrainingRuntime."""
    found = [(each["metadata"]["name"], each["spec"]) for each in of_kind(objects, "Job")]
    for each in of_kind(objects, "JobSet"):
        found += [(each["metadata"]["name"], job["template"]["spec"]) for job in each["spec"]["replicatedJobs"]]
    for each in of_kind(objects, "TrainingRuntime"):
        inner = each["spec"]["template"]["spec"]["replicatedJobs"]
        found += [("train", job["template"]["spec"]) for job in inner]
    return found


def pod_specs(objects: list[dict]) -> list[tuple[str, dict]]:
    """Each pod that anything rendered would start."""
    found = [(name, spec["template"]["spec"]) for name, spec in job_specs(objects)]
    for each in of_kind(objects, "DaskCluster"):
        found += [(part, each["spec"][part]["spec"]) for part in ("scheduler", "worker")]
    return found


def amount(text: str) -> float:
    """A quantity as a number."""
    found = QUANTITY.fullmatch(text)
    assert found, f"{text!r} is no quantity"
    return float(found[1]) * _FACTORS.get(found[3] or "", 1.0)


def unknown_words(node: object, key: str = "") -> list[str]:
    """Values that are none of those that their field takes."""
    if isinstance(node, dict):
        return [fault for name, value in node.items() for fault in unknown_words(value, name)]
    if isinstance(node, list):
        return [fault for value in node for fault in unknown_words(value, key)]
    return [f"{key}: {node}"] if key in ENUMS and node not in ENUMS[key] else []


def faults_of_pod(name: str, pod: dict) -> list[str]:
    """What the "restricted" profile and our own rules find wrong with a pod."""
    user, faults = pod.get("securityContext", {}), []
    if not (user.get("runAsNonRoot") and user.get("runAsUser") == user.get("fsGroup") == 10001):
        faults.append("user")
    if user.get("seccompProfile") != {"type": "RuntimeDefault"}:
        faults.append("seccomp")
    if pod.get("automountServiceAccountToken") is not False:
        faults.append("token")
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")) or any(
        "hostPath" in v for v in pod["volumes"]
    ):
        faults.append("host")
    for volume in pod["volumes"]:
        if "emptyDir" in volume and amount(volume["emptyDir"].get("sizeLimit", "0")) <= 0:
            faults.append(f"volume {volume['name']} without limit")
    for container in pod["containers"]:
        faults += [f"{container['name']}: {fault}" for fault in _faults_of_container(container, pod)]
    return [f"{name}: {fault}" for fault in faults]


def _faults_of_container(container: dict, pod: dict) -> list[str]:
    faults, context = [], container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        faults.append("privileges")
    if context.get("capabilities", {}).get("drop") != ["ALL"] or "add" in context.get("capabilities", {}):
        faults.append("capabilities")
    if not context.get("readOnlyRootFilesystem"):
        faults.append("root file system")
    if "lifecycle" in container:
        faults.append("lifecycle")
    if not re.fullmatch(r"[a-z0-9./-]+:[0-9][\w.-]+", container["image"]):
        faults.append(f"image {container['image']}")
    asked, allowed = (container["resources"].get(key, {}) for key in ("requests", "limits"))
    if not {"cpu", "memory"} <= set(asked) or asked != allowed or min(map(amount, asked.values())) <= 0:
        faults.append("resources")
    known = {volume["name"] for volume in pod["volumes"]}
    mounts = container["volumeMounts"]
    if {mount["name"] for mount in mounts} - known or len({mount["mountPath"] for mount in mounts}) < len(mounts):
        faults.append("mounts")
    if not {"/tmp", "/cache"} <= {mount["mountPath"] for mount in mounts}:
        faults.append("nowhere to write")
    return faults


def faults_of_job(name: str, spec: dict) -> list[str]:
    """What the API server, or our own rules, would find wrong with a Job beyond its schema."""
    faults = []
    if spec.get("completionMode") != "Indexed" or spec["parallelism"] != spec["completions"]:
        faults.append("indexes")
    if spec["template"]["spec"]["restartPolicy"] != "Never" or spec.get("podReplacementPolicy") != "Failed":
        faults.append("restart")
    if ("backoffLimitPerIndex" in spec) == ("backoffLimit" in spec):
        faults.append("one backoff limit, of all or per index")
    if "maxFailedIndexes" in spec and not 0 <= spec["maxFailedIndexes"] <= spec["completions"]:
        faults.append("maxFailedIndexes")
    if not spec.get("activeDeadlineSeconds"):
        faults.append("deadline")
    if not 30 < spec["template"]["spec"].get("terminationGracePeriodSeconds", 30) < spec["activeDeadlineSeconds"]:
        faults.append("grace")
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        for code in rule.get("onExitCodes", {"values": ["disruption"]})["values"]:
            actions.setdefault(code, rule["action"])
    if actions != {"disruption": "Ignore", 75: "Ignore", 64: "FailJob", 65: "FailJob", 78: "FailJob"}:
        faults.append(f"failures {actions}")
    # the name of a pod, <job>-<index>-<5 letters>, and of its host
    if not NAME.fullmatch(f"{name}-{spec['completions'] - 1}-abcde"):
        faults.append("name")
    return [f"{name}: {fault}" for fault in faults]
