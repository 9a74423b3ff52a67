"""The manifests render, fit the API's schemas, and are what the README of k8s promises."""

import copy
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from job_controller import ROOT, kustomize
from manifests import (
    NAME,
    OVERLAYS,
    amount,
    faults_of_job,
    faults_of_pod,
    job_specs,
    of_kind,
    pod_specs,
    rendered,
    steps_of_readme,
    unknown_words,
)

from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs.launch import LaunchOptions, _launch_config

CUSTOM = {
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes.yaml",
}
STEPS = {
    "ingest",
    "build-graph",
    "select-gene-sets",
    "train",
    "export-latents",
    "export-reference",
    "map-query",
}
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


def test_all_overlays_are_looked_at():
    names = {path.name for path in OVERLAYS}
    assert names == {"local", "gpu", "jobset", "kueue", "kubeflow-trainer", "dask-operator"}


@pytest.mark.parametrize("version", ["1.31", "1.33", "1.37"])
@each_overlay
def test_an_overlay_fits_the_schemas_of_kubernetes(overlay, version):
    import kubernetes_validate

    plain = [yaml.safe_load((ROOT / "k8s" / name).read_text()) for name in ("namespace.yaml", "files.yaml")]
    for each in [*rendered(overlay), *plain]:
        if each["kind"] == "DaskCluster":  # its definition takes everything; these are what the operator makes of it
            scheduler, worker = each["spec"]["scheduler"], each["spec"]["worker"]
            for kind, spec in (("Service", scheduler["service"]), ("Pod", scheduler["spec"]), ("Pod", worker["spec"])):
                made = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "made"}, "spec": spec}
                kubernetes_validate.validate(made, version, strict=True)
        elif each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_a_bucket_fits_the_schemas(tmp_path, version):
    import kubernetes_validate

    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "gpu"
    text = (overlay / "kustomization.yaml").read_text()
    (overlay / "kustomization.yaml").write_text(
        text.replace("  - ../../components/pvc\n", "  - ../../components/pvc\n  - ../../components/object-store\n")
    )
    objects = kustomize(overlay)
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)
    containers = {name: pod["containers"][0] for name, pod in pod_specs(objects)}
    for name, path in (("ingest", "/sources"), ("map-query", "/sources/query.h5ad")):
        assert containers[name]["args"][1] == path
        assert {"name": "sources", "mountPath": "/sources", "readOnly": True} in containers[name]["volumeMounts"]
    assert [fault for name, pod in pod_specs(objects) for fault in faults_of_pod(name, pod)] == []


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_resource_fits_its_definition(kind):
    """UNICOORD_CRDS names a folder with the CustomResourceDefinitions of JobSet and Kubeflow Trainer."""
    jsonschema = pytest.importorskip("jsonschema")
    path = Path(os.environ.get("UNICOORD_CRDS", "crds")) / CUSTOM[kind]
    if not path.exists():
        pytest.skip(f"no {CUSTOM[kind]} at hand (UNICOORD_CRDS)")
    found = [each for overlay in OVERLAYS for each in of_kind(rendered(overlay), kind)]
    assert found
    for definition in yaml.safe_load_all(path.read_text()):
        versions = {each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]}
        for each in found:
            jsonschema.validate(each, _closed(versions[each["apiVersion"].split("/")[1]]))


def _closed(schema: dict) -> dict:
    """A structural schema with unknown fields refused, as `kubectl apply` refuses them; metadata is the server's."""
    schema = copy.deepcopy(schema)
    waiting = [value for key, value in schema["properties"].items() if key != "metadata"]
    while waiting:
        node = waiting.pop()
        waiting += [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    return schema


@each_overlay
def test_pods_are_hardened_and_jobs_are_boring(overlay):
    objects = rendered(overlay)
    faults = [fault for name, pod in pod_specs(objects) for fault in faults_of_pod(name, pod)]
    faults += [fault for name, spec in job_specs(objects) for fault in faults_of_job(name, spec)]
    faults += unknown_words(objects)
    assert faults == []
    assert {name for name, _ in job_specs(objects)} == STEPS


def test_a_pod_that_is_not_hardened_is_found():
    """Each rule finds what it is there for."""
    (_, good), *_ = pod_specs(rendered(OVERLAYS[0]))
    for change, word in (
        (lambda pod: pod["securityContext"].pop("seccompProfile"), "seccomp"),
        (lambda pod: pod["securityContext"].update(runAsUser=0), "user"),
        (lambda pod: pod.pop("automountServiceAccountToken"), "token"),
        (lambda pod: pod.update(hostNetwork=True), "host"),
        (lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"), "capabilities"),
        (lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False), "root file system"),
        (lambda pod: pod["containers"][0]["resources"].pop("limits"), "resources"),
        (lambda pod: pod["containers"][0].update(image="unicoord-atlas:latest"), "image"),
        (lambda pod: pod["volumes"].pop(), "mounts"),
        (lambda pod: pod["containers"][0].update(lifecycle={"preStop": {}}), "lifecycle"),
    ):
        pod = copy.deepcopy(good)
        change(pod)
        assert unknown_words(pod) == []
        assert any(word in fault for fault in faults_of_pod("x", pod)), word
    assert unknown_words([{"rules": [{"action": "FailPod"}]}]) == ["action: FailPod"]


def test_a_job_that_would_be_refused_or_surprise_is_found():
    good = dict(job_specs(rendered(OVERLAYS[0])))["export-latents"]
    for change, word in (
        (lambda spec: spec.update(parallelism=1), "indexes"),
        (lambda spec: spec.update(completionMode="NonIndexed"), "indexes"),
        (lambda spec: spec["template"]["spec"].update(restartPolicy="OnFailure"), "restart"),
        (lambda spec: spec.update(podReplacementPolicy="TerminatingOrFailed"), "restart"),
        (lambda spec: spec.update(backoffLimit=6), "backoff"),
        (lambda spec: spec.update(maxFailedIndexes=1000), "maxFailedIndexes"),
        (lambda spec: spec["template"]["spec"].update(terminationGracePeriodSeconds=30), "grace"),
        (lambda spec: spec["podFailurePolicy"]["rules"].pop(), "failures"),
    ):
        spec = copy.deepcopy(good)
        change(spec)
        assert any(word in fault for fault in faults_of_job("x", spec)), word
    assert faults_of_job("a" * 56, good) == [f"{'a' * 56}: name"]


@each_overlay
def test_every_name_that_is_referred_to_is_there(overlay):
    objects = rendered(overlay)
    names = {kind: {each["metadata"]["name"] for each in of_kind(objects, kind)} for kind in ("ConfigMap",)}
    names["PersistentVolumeClaim"] = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    for each in objects:
        assert NAME.fullmatch(each["metadata"]["name"])
        assert each["metadata"]["namespace"] == "unicoord-atlas"
        assert each["metadata"]["labels"]["unicoord-atlas/step"] in {"shared", *STEPS}
    for _, pod in pod_specs(objects):
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names["ConfigMap"]
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names["PersistentVolumeClaim"]


@each_overlay
def test_services_find_the_pods_that_meet_through_them(overlay):
    """Name, selector, subdomain, port and the address in the pod's own environment agree."""
    objects = rendered(overlay)
    jobs = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in of_kind(objects, "Job")}
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service")}
    assert {pod["subdomain"] for pod in jobs.values() if "subdomain" in pod} == set(services)
    for name, service in services.items():
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
        assert service["selector"] == {"batch.kubernetes.io/job-name": name}
        (port,), (exposed,) = service["ports"], jobs[name]["containers"][0]["ports"]
        assert jobs[name]["subdomain"] == name
        assert (port["name"], port["port"]) == (exposed["name"], exposed["containerPort"])
        told = [entry.get("value", "") for entry in jobs[name]["containers"][0]["env"]]
        assert any(value.removeprefix("tcp://") == f"{name}-0.{name}:{port['port']}" for value in told)


@each_overlay
def test_the_command_line_parses_what_containers_say(overlay):
    import typer

    from unicoord_atlas.jobs import cli

    commands = typer.main.get_command(cli.app)
    for name, spec in job_specs(rendered(overlay)):
        container = spec["template"]["spec"]["containers"][0]
        told = {entry["name"]: entry.get("value", "10.0.0.7") for entry in container.get("env", [])}
        told["JOB_COMPLETION_INDEX"] = str(spec["completions"] - 1)
        args = container["args"]
        for key, value in told.items():
            args = [arg.replace(f"$({key})", value) for arg in args]
        assert not any("$(" in arg for arg in args), args
        while args:
            assert args[0] == name or (name == "train" and args[0] == "launch")
            command = commands.commands[args[0]]
            context = command.make_context(args[0], args[1:])
            if args[0] != "launch":
                break
            LaunchOptions(context.args, **context.params)
            assert context.params["nnodes"] == spec["completions"]
            args = context.args
        if "part" in context.params:
            assert context.params["part"] == f"{spec['completions'] - 1}/{spec['completions']}"


@each_overlay
def test_a_cluster_of_pods_is_done_when_its_driver_is(overlay):
    for name, spec in job_specs(rendered(overlay)):
        by_dask = spec["template"]["spec"]["containers"][0]["args"][-2:] == ["--dask", "k8s"]
        assert spec.get("successPolicy") == ({"rules": [{"succeededIndexes": "0"}]} if by_dask else None), name
        assert not by_dask or spec["completions"] > 1


@each_overlay
def test_training_has_time_to_save_and_memory_to_share(overlay):
    spec = dict(job_specs(rendered(overlay)))["train"]
    pod = spec["template"]["spec"]
    patience = _launch_config(LaunchOptions(["train"])).shutdown_timeout
    assert pod["terminationGracePeriodSeconds"] > patience >= 300
    (shm,) = [mount["name"] for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == shm]
    assert volume["medium"] == "Memory"
    # what lies in /dev/shm counts as the container's memory
    assert amount(volume["sizeLimit"]) < amount(pod["containers"][0]["resources"]["limits"]["memory"]) / 2


@each_overlay
def test_the_config_map_is_a_run_and_its_name_has_its_hash(overlay, tmp_path):
    (each,) = of_kind(rendered(overlay), "ConfigMap")
    assert each["metadata"]["name"].startswith("run-config-")
    assert set(each["data"]) == {"run.toml"}
    (tmp_path / "run.toml").write_text(each["data"]["run.toml"])
    assert "cell_type" in RunConfig.load(tmp_path / "run.toml", []).latent.discrete


def test_the_pod_for_files_is_hardened_too():
    pod = yaml.safe_load((ROOT / "k8s" / "files.yaml").read_text())["spec"]
    assert faults_of_pod("files", pod) == []


def test_the_readme_names_what_is_there():
    """Its paths exist, its steps are Jobs, and each overlay is in its table."""
    text = (ROOT / "k8s" / "README.md").read_text()
    assert set(steps_of_readme()) | {"select-gene-sets"} == STEPS
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.M)) == {path.name for path in OVERLAYS}
    for path in re.findall(r"k8s/[\w./-]+", text):
        assert (ROOT / path).exists(), path
    shared = [each["kind"] for each in rendered(OVERLAYS[0]) if each["kind"] != "Job"]
    assert "PersistentVolumeClaim" in shared and "ConfigMap" in shared


def test_kueue_lets_jobs_go():
    for each in of_kind(rendered(ROOT / "k8s" / "overlays" / "kueue"), "Job"):
        assert each["spec"]["suspend"] is True
        assert each["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "unicoord-atlas"


@each_overlay
def test_pods_are_shut_off_but_from_each_other(overlay):
    objects = rendered(overlay)
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "NetworkPolicy")}
    ours = {"app.kubernetes.io/part-of": "unicoord-atlas"}
    assert policies["only-each-other"]["podSelector"] == {"matchLabels": ours}
    assert policies["only-each-other"]["policyTypes"] == ["Ingress", "Egress"]
    for name, spec in job_specs(objects):
        assert spec["template"]["metadata"]["labels"].items() >= ours.items(), name
