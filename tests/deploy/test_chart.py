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
