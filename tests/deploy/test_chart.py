"""The Helm chart, as Helm renders it: in deploy/helm/rendered.yaml, and here anew wherever there is a Helm."""

from __future__ import annotations

import shutil
from typing import Any

import yaml

from app.config import Settings
from tools import render_chart

TEXT = render_chart.RENDERED.read_text()
DOCUMENTS: list[dict[str, Any]] = [document for document in yaml.safe_load_all(TEXT) if document]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for document in DOCUMENTS if document["kind"] == kind]
    return found


def pods() -> list[dict[str, Any]]:
    cron = of_kind("CronJob")["spec"]["jobTemplate"]
    return [each["spec"]["template"]["spec"] for each in (of_kind("Deployment"), of_kind("Job"), cron)]


def test_what_is_read_here_was_rendered_from_the_chart_as_it_is() -> None:
    assert render_chart.fingerprint() in TEXT.splitlines()[0], "run: python tools/render_chart.py"
    helm = shutil.which("helm")
    if helm is not None:
        assert render_chart.render(helm) == TEXT


def test_everything_that_was_promised_is_there() -> None:
    assert sorted(document["kind"] for document in DOCUMENTS) == [
        *("ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "Ingress", "Job"),
        *("PodDisruptionBudget", "Service", "ServiceMonitor"),
    ]


def test_every_container_is_confined() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            guarded = container["securityContext"]
            assert guarded["runAsNonRoot"] is True
            assert guarded["readOnlyRootFilesystem"] is True
            assert guarded["allowPrivilegeEscalation"] is False
            assert guarded["capabilities"] == {"drop": ["ALL"]}


def test_replicas_are_replaced_without_turning_anybody_away() -> None:
    deployment = of_kind("Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    settings = of_kind("ConfigMap")["data"]
    patience = float(settings["SHUTDOWN_GRACE_SECONDS"]) + float(settings["SHUTDOWN_DELAY_SECONDS"])
    pod = deployment["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= patience + 10
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["resources"]["limits"]["memory"]
    assert "replicas" not in deployment, "the autoscaler decides"
    assert (
        of_kind("PodDisruptionBudget")["spec"]["minAvailable"]
        < of_kind("HorizontalPodAutoscaler")["spec"]["minReplicas"]
    )


def test_a_replica_keeps_its_journal_where_a_restart_of_its_container_finds_it() -> None:
    """Everything else is read-only. With `journal.persistent` the same pod is a StatefulSet's, and its disk outlives it."""
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {"/var/lib/antigravity": "journal", "/tmp": "tmp"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert "medium" not in volumes["journal"], "on the node's disk, not in its memory"
    assert volumes["tmp"]["medium"] == "Memory"
    templates = render_chart.CHART / "templates"
    for kind in ("deployment", "statefulset"):
        assert 'template: {{- include "antigravity.pod" . | nindent 4 }}' in (templates / f"{kind}.yaml").read_text()


def test_with_a_journal_that_persists_replicas_are_a_stateful_set() -> None:
    helm = shutil.which("helm")
    templates = render_chart.CHART / "templates"
    text = (templates / "statefulset.yaml").read_text()
    assert "persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Retain}" in text
    assert (
        "{{ if .Values.journal.persistent }}StatefulSet{{ else }}Deployment{{ end }}"
        in (templates / "hpa.yaml").read_text()
    )
    if helm is None:
        return
    rendered = list(yaml.safe_load_all(render_chart.render(helm, "journal.persistent=true")))
    (stateful,) = [each for each in rendered if each and each["kind"] == "StatefulSet"]
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    mounts = stateful["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert claim["metadata"]["name"] in {mount["name"] for mount in mounts}
    assert stateful["spec"]["serviceName"] in {
        each["metadata"]["name"] for each in rendered if each["kind"] == "Service"
    }
    assert not [each for each in rendered if each["kind"] == "Deployment"]


def test_the_database_is_migrated_before_replicas_are_replaced() -> None:
    job = of_kind("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert "python -m app migrate" in job["spec"]["template"]["spec"]["containers"][0]["args"][0]


def test_no_secret_stands_in_the_chart_and_every_setting_of_it_exists() -> None:
    known = {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}
    assert set(of_kind("ConfigMap")["data"]) <= known
    assert not [document for document in DOCUMENTS if document["kind"] == "Secret"]


def test_selectors_find_the_gateways_and_nothing_of_the_jobs() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        of_kind("Service")["spec"]["selector"],
        of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind("Deployment")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        job = of_kind("Job")["spec"]["template"]["metadata"]["labels"]
        assert not selector.items() <= job.items()


def test_metrics_and_the_roots_of_what_is_internal_are_not_published() -> None:
    (rule,) = of_kind("Ingress")["spec"]["rules"]
    paths = [each["path"] for each in rule["http"]["paths"]]
    assert "/metrics" not in paths
    assert "/" not in paths
    assert "/v1" in paths
