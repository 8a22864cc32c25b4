"""The files of an application in the GitOps repository, as data by path.

Promises a base that all stages share and one overlay for each, and that the image tag of a stage is
one line of its kustomization: a deployment is a commit of that line and a roll-back the one before.
"""

from __future__ import annotations

import re

from domain.errors import Conflict
from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import Object
from domain.onboarding.manifests.sizing import size_of
from domain.onboarding.manifests.workload import (
    base_objects,
    deployment_patch,
    image_name,
    image_tag,
    stage_objects,
)
from domain.onboarding.tenant import STAGE_LABEL, Tenant

KUSTOMIZATION = "kustomization.yaml"
PATCH = "deployment-patch.yaml"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TAG_LINE = re.compile(r"^(\s*(?:- )?newTag: ).*$", re.MULTILINE)
_HEAD = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def gitops_files(tenant: Tenant) -> dict[str, Object]:
    """Return the content of every file below the application's directory, by path."""
    base = base_objects(tenant)
    root = tenant.gitops_directory
    files: dict[str, Object] = {f"{root}/base/{name}": content for name, content in base.items()}
    files[f"{root}/base/{KUSTOMIZATION}"] = {**_HEAD, "resources": sorted(base)}
    for stage in tenant.app.stages:
        directory = tenant.overlay_directory(stage)
        objects = stage_objects(tenant, stage)
        files |= {f"{directory}/{name}": content for name, content in objects.items()}
        files[f"{directory}/{PATCH}"] = deployment_patch(tenant, stage)
        files[f"{directory}/{KUSTOMIZATION}"] = _overlay(tenant, stage, sorted(objects))
    return files


def _overlay(tenant: Tenant, stage: Stage, names: list[str]) -> Object:
    content: Object = {
        **_HEAD,
        "namespace": tenant.scoped(stage),
        "resources": ["../../base", *names],
        "labels": [{"pairs": {STAGE_LABEL: stage.value}, "includeTemplates": True}],
        "patches": [{"path": PATCH}],
    }
    size = size_of(tenant, stage)
    if not size.is_scaled:
        # Where an autoscaler counts, Git must not.
        content["replicas"] = [{"name": tenant.name, "count": size.replicas}]
    if not tenant.app.image:
        content["images"] = [{"name": image_name(tenant), "newTag": image_tag(tenant, stage)}]
    return content


def tag_in(kustomization: str) -> str | None:
    """Return the tag that an overlay's kustomization names; None where the image is ready-made."""
    match = _TAG_LINE.search(kustomization)
    if match is None:
        return None
    return match[0][len(match[1]) :].strip().strip("'\"")


def with_tag(kustomization: str, tag: str, path: str) -> str:
    """Return the kustomization with another tag in its one line.

    Raises:
        Conflict: there is no such line, so the image is ready-made, or the tag is none.
    """
    if not TAG.fullmatch(tag):
        raise Conflict(f"Unable to deploy {tag!r}: it is no image tag. Give the tag of an image.")
    if len(_TAG_LINE.findall(kustomization)) != 1:
        raise Conflict(
            f"Unable to set the image tag in {path}: the application is not built here, its "
            "app.yaml names a ready-made image. Change the image there."
        )
    return _TAG_LINE.sub(lambda match: f"{match[1]}'{tag}'", kustomization)
