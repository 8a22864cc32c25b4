"""The files that the platform keeps in an application's GitLab project.

Exists because a team should not have to write what is the same for all: build, test, scan, image
tags, and the gate before production. Promises the same text for the same tenant, image tags by
commit and by `vX.Y.Z-branch`, and that no job gets a credential which could change a cluster.
Applications with a ready-made image have no pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from domain.onboarding import pipeline_texts as texts
from domain.onboarding.app_spec import AppSpec, BuildKind, Stage
from domain.onboarding.tenant import Tenant

PIPELINE_PATH = ".gitlab-ci.yml"
SCHEMA_PATH = ".gitlab/app.schema.json"
STAGES_BEFORE = ("validate", "test", "build", "scan", "release")


_FIELD = re.compile(r"@\{([a-z]+)\}")
"""Not `$`, which belongs to GitLab and to shells."""


def _filled(text: str, **values: str) -> str:
    return _FIELD.sub(lambda match: values[match[1]], text)


def managed_files(tenant: Tenant) -> Mapping[str, str]:
    """Return the text of every file that the platform keeps in the project, by path."""
    kind = tenant.app.kind
    if kind is None:
        return {}
    files = {
        PIPELINE_PATH: pipeline(tenant, kind),
        SCHEMA_PATH: app_schema(),
        ".releaserc.yaml": texts.SEMANTIC_RELEASE,
    }
    if kind is BuildKind.NODE:
        files["commitlint.config.cjs"] = texts.COMMITLINT
        files[".husky/commit-msg"] = texts.HUSKY
    return files


def pipeline(tenant: Tenant, kind: BuildKind) -> str:
    """Return the text of `.gitlab-ci.yml`."""
    stages = [*STAGES_BEFORE, *(stage.value for stage in tenant.app.stages)]
    parts = [
        texts.HEADER,
        texts.HEAD,
        texts.VALIDATE,
        texts.MESSAGES if kind is BuildKind.NODE else "",
        texts.TESTS[kind],
        texts.BUILD,
        texts.SCAN,
        texts.RELEASE,
    ]
    text = _filled(
        "".join(parts), stages=f"[{', '.join(stages)}]", name=tenant.name, schema=SCHEMA_PATH
    )
    return text + "".join(_deploy_job(tenant, stage) for stage in tenant.app.stages)


def _deploy_job(tenant: Tenant, stage: Stage) -> str:
    is_gated = stage is Stage.PRODUCTION
    return _filled(
        texts.DEPLOY,
        stage=stage.value,
        host=tenant.hostnames(stage)[0],
        rules=texts.BY_HAND if is_gated else texts.AUTOMATIC,
    )


def app_schema() -> str:
    """Return the JSON schema of `app.yaml`, for the pipeline and for editors."""
    schema = AppSpec.model_json_schema()
    # The gateway fills it in from the project that the file lies in.
    schema["required"] = [name for name in schema["required"] if name != "repository"]
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
