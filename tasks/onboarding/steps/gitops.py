"""The application's directory in the GitOps repository, and the image tags in it.

Promises that a whole directory converges in one commit however many applications commit at once,
that a deployment is one line of one file, and that the directory of another writer, which does not
bear this product's header, is never taken over. Ownership is the directory's name with the header.

Needs: read of the platform's `gitops_credential` in OpenBao; push to the GitOps repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import yaml
from prefect.runtime import flow_run

from blocks.git_repository import GitSession, git_repository
from blocks.openbao import openbao
from domain.errors import Conflict, NotFound
from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import UNBUILT_TAG
from domain.onboarding.manifests.kustomize import KUSTOMIZATION, gitops_files, tag_in, with_tag
from domain.onboarding.manifests.workload import image_tag
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things, digest

PUSH_ATTEMPTS = 40
"""Twenty applications may be committed in the same second."""

VERSIONS_READ = 50
HEADER = "# Written by infraflows for the application {name}; its app.yaml is the source.\n"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a difference in Git can be read."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def files_of(tenant: Tenant) -> dict[str, str]:
    """Return the text of every file of the application by its path in the repository."""
    return {path: _file(tenant, path, content) for path, content in gitops_files(tenant).items()}


def _file(tenant: Tenant, path: str, content: Mapping[str, Any]) -> str:
    body = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    text = HEADER.format(name=tenant.name) + body
    if "images" in content:
        stage = Stage(path.split("/")[-2])
        # Written in one form by everyone who sets it, so that equal tags are equal files.
        text = with_tag(text, image_tag(tenant, stage), path)
    return text


@contextmanager
def _work(platform: Platform) -> Iterator[GitSession]:
    repository = git_repository(f"{platform.environment}-gitops")
    with openbao(platform.environment).session() as bao:
        credential = bao.read(platform.gitops_credential)
    with repository.session(credential) as session:
        yield session


def _message(subject: str) -> str:
    """Return a commit message that leads back to the run."""
    return f"{subject}\n\nRun: {flow_run.name or 'none'}\nRun-Id: {flow_run.id or 'none'}\n"


def _directory(app_name: str) -> str:
    return f"apps/{app_name}"


def _is_own(files: Mapping[str, str], app_name: str) -> bool:
    header = HEADER.format(name=app_name)
    return any(text.startswith(header) for text in files.values())


class GitOps:
    """The step of the saga."""

    name: ClassVar[str] = "gitops"
    system: ClassVar[str] = "git"
    needs: ClassVar[tuple[str, ...]] = ("kubernetes-tenancy",)
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return every file with the digest of its text."""
        return {f"file {path}": digest(text) for path, text in files_of(tenant).items()}

    def found(self, tenant: Tenant) -> Things:
        """Return every file below the application's directory, also those that others put there."""
        with _work(tenant.platform) as work:
            files = work.read_files(tenant.gitops_directory)
        if not _is_own(files, tenant.name):
            return {}
        return {f"file {path}": digest(text) for path, text in files.items()}

    def apply(self, tenant: Tenant) -> None:
        """Make the directory hold exactly what is wanted, in one commit or none."""
        with _work(tenant.platform) as work:
            there = work.read_files(tenant.gitops_directory)
            if there and not _is_own(there, tenant.name):
                raise Conflict(
                    f"Unable to write {tenant.gitops_directory} of the GitOps repository: it holds "
                    f"{len(there)} files of somebody else. Move them, or choose another name."
                )
            work.commit_files(
                files_of(tenant),
                _message(f"chore({tenant.name}): as app.yaml says"),
                replaced_directories=[tenant.gitops_directory],
                attempts=PUSH_ATTEMPTS,
            )

    def remove(self, tenant: Tenant) -> None:
        """Take the directory off the branch; its history stays."""
        with _work(tenant.platform) as work:
            there = work.read_files(tenant.gitops_directory)
            if not _is_own(there, tenant.name):
                return
            work.commit_files(
                {},
                _message(f"chore({tenant.name}): taken off"),
                replaced_directories=[tenant.gitops_directory],
                attempts=PUSH_ATTEMPTS,
            )


# --- image tags ------------------------------------------------------------------------------


def _overlay_file(app_name: str, stage: Stage) -> str:
    return f"{_directory(app_name)}/overlays/{stage.value}/{KUSTOMIZATION}"


def set_tag(platform: Platform, app_name: str, stage: Stage, tag: str) -> str:
    """Make one stage run another image tag and return the commit that says so.

    Raises:
        NotFound: the application has no such stage. Conflict: its image is ready-made, or
            somebody else changed the file at the same moment.
    """
    path = _overlay_file(app_name, stage)
    with _work(platform) as work:
        before = work.read_file(path)
        after = with_tag(before, tag, path)
        result = work.commit_files(
            {path: after},
            _message(f"deploy({app_name}): {stage.value} runs {tag}"),
            expected={path: before} if after != before else None,
            attempts=PUSH_ATTEMPTS,
        )
        return result.sha


def current_tags(platform: Platform, app_name: str) -> dict[Stage, str]:
    """Return the image tag of each stage as Git says; empty for what is not there or not built."""
    with _work(platform) as work:
        files = work.read_files(_directory(app_name))
    found = {stage: tag_in(files.get(_overlay_file(app_name, stage), "")) for stage in Stage}
    return {stage: tag for stage, tag in found.items() if tag}


def previous_tag(platform: Platform, app_name: str, stage: Stage) -> str:
    """Return the tag that a stage ran before its present one.

    Raises:
        NotFound: it has only ever run one.
    """
    path = _overlay_file(app_name, stage)
    with _work(platform) as work:
        tags = [tag for text in work.versions(path, VERSIONS_READ) if (tag := tag_in(text))]
    present = tags[0] if tags else ""
    for tag in tags:
        if tag not in (present, UNBUILT_TAG):
            return tag
    raise NotFound(
        f"Unable to roll {app_name} back in {stage.value}: the GitOps repository knows no tag "
        f"before {present or 'the first'}. Deploy another version instead."
    )
