"""The application's GitLab project: settings, protected default branch, and the managed files.

The project is the team's and is never made or removed here. Promises that what was there before is
written down in the project itself (`.gitlab/infraflows.json`), in the same commit as the files and
before anything else is changed, so that it can be put back; that a file which a person wrote is
never overwritten; and that a managed file which a person changed is seen as drift. Refuses a
project that belongs to another application.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

from blocks.gitlab_repository import ProjectFacts, Protection
from blocks.gitlab_server import GitLabSession, gitlab_server
from blocks.openbao import openbao
from domain.errors import Conflict, NotFound
from domain.onboarding.gitlab_mark import MARK_PATH, ProjectMark, ProtectionBefore, read_mark
from domain.onboarding.pipeline import PIPELINE_PATH, managed_files
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things, digest

MAINTAINERS, DEVELOPERS = 40, 30
PROTECTION = Protection(push_level=MAINTAINERS, merge_level=DEVELOPERS)
PROTECTION_THING = "protection of the default branch"
RELEASE_TAGS = "v*"
TAGS_THING = f"protection of the tags {RELEASE_TAGS}"
ALWAYS: Mapping[str, Any] = {
    "remove_source_branch_after_merge": True,
    "only_allow_merge_if_all_discussions_are_resolved": True,
}
WITH_PIPELINE: Mapping[str, Any] = {
    # Without a pipeline nothing could be merged any more.
    "only_allow_merge_if_pipeline_succeeds": True,
    "auto_cancel_pending_pipelines": "enabled",
    "ci_forward_deployment_enabled": True,
}
SETTINGS = (*ALWAYS, *WITH_PIPELINE)


@contextmanager
def gitlab_of(tenant: Tenant) -> Iterator[GitLabSession]:
    """Open the platform's GitLab with the token that lies in OpenBao."""
    server = gitlab_server(tenant.platform.environment)
    with openbao(tenant.platform.environment).session() as bao:
        token = bao.read(server.credential).get("token", "")
    with server.session(token) as gitlab:
        yield gitlab


class GitLabProject:
    """Converges one project."""

    name: ClassVar[str] = "gitlab-project"
    system: ClassVar[str] = "gitlab"
    # Its commit starts the first pipeline, which needs the variables at once.
    needs: ClassVar[tuple[str, ...]] = ("gitlab-access",)
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return the mark, the managed files, the settings and the protection."""
        files = managed_files(tenant)
        return {
            f"file {MARK_PATH}": digest(tenant.name),
            **{f"file {path}": digest(text) for path, text in files.items()},
            **{f"setting {name}": digest(value) for name, value in _settings(files).items()},
            PROTECTION_THING: digest(asdict(PROTECTION)),
            # Pipelines of tags that are not protected do not see protected variables.
            TAGS_THING: digest(MAINTAINERS),
        }

    def found(self, tenant: Tenant) -> Things:
        """Return what the project's mark says is managed, as it is now."""
        with gitlab_of(tenant) as gitlab:
            try:
                project = gitlab.project(tenant.project_id)
            except NotFound:
                # Its team removed it: nothing of ours is left.
                return {}
            mark = _mark(gitlab, project)
            if mark is None or mark.app != tenant.name:
                return {}
            things = {f"file {MARK_PATH}": digest(mark.app)}
            for path in mark.files:
                text = gitlab.file_or_none(project.project_id, path, project.default_branch)
                if text is not None:
                    things[f"file {path}"] = digest(text)
            kept = [name for name in SETTINGS if name in mark.settings_before]
            now = gitlab.settings(project.project_id, *kept)
            things |= {f"setting {name}": digest(value) for name, value in now.items()}
            protection = gitlab.protections(project.project_id).get(project.default_branch)
            if protection is not None:
                things[PROTECTION_THING] = digest(asdict(protection))
            tags = gitlab.tag_protections(project.project_id)
            if RELEASE_TAGS in tags:
                things[TAGS_THING] = digest(tags[RELEASE_TAGS])
            return things

    def apply(self, tenant: Tenant) -> None:
        """Commit mark and files together, then change settings and protection.

        Raises:
            Conflict: another application's project, or a person's file where one is wanted.
        """
        files = managed_files(tenant)
        with gitlab_of(tenant) as gitlab:
            project, mark = own_project(gitlab, tenant)
            _check_files(gitlab, project, files, mark)
            settings = _settings(files)
            if mark is not None:
                # What an older pipeline wanted and this one does not goes back, before it is
                # forgotten with the new mark.
                dropped = {n: v for n, v in mark.settings_before.items() if n not in settings}
                _restore_settings(gitlab, project, dropped)
                if mark.branch != project.default_branch:
                    _restore_branch(gitlab, project, mark)
            self._commit(gitlab, project, tenant, mark, files)
            present = gitlab.settings(project.project_id, *settings)
            differing = {n: v for n, v in settings.items() if present.get(n) != v}
            if differing:
                gitlab.change_settings(project.project_id, differing)
            gitlab.protect(project.project_id, project.default_branch, PROTECTION)
            gitlab.protect_tags(project.project_id, RELEASE_TAGS, MAINTAINERS)

    def _commit(
        self,
        gitlab: GitLabSession,
        project: ProjectFacts,
        tenant: Tenant,
        mark: ProjectMark | None,
        files: Mapping[str, str],
    ) -> None:
        before = gitlab.settings(project.project_id, *_settings(files))
        if mark is not None:
            before |= {n: v for n, v in mark.settings_before.items() if n in before}
            tags = mark.tags_before
        else:
            tags = gitlab.tag_protections(project.project_id)
        if mark is not None and mark.branch == project.default_branch:
            protection = mark.protection_before
        else:
            protection = _protection_before(gitlab, project)
        new = ProjectMark(
            app=tenant.name,
            files=tuple(files),
            settings_before=before,
            branch=project.default_branch,
            protection_before=protection,
            tags_before={name: level for name, level in tags.items() if name == RELEASE_TAGS},
        )
        gone = set(mark.files if mark else ()) - set(files) - {MARK_PATH}
        gitlab.commit_files(
            project.project_id,
            project.default_branch,
            f"ci: converge the managed files of {tenant.name}",
            {**dict.fromkeys(sorted(gone)), **files, MARK_PATH: new.text()},
        )

    def remove(self, tenant: Tenant) -> None:
        """Put settings and protection back, then take the managed files away; the mark goes last.

        A project without our mark is left alone.
        """
        with gitlab_of(tenant) as gitlab:
            try:
                project = gitlab.project(tenant.project_id)
            except NotFound:
                return
            mark = _mark(gitlab, project)
            if mark is None or mark.app != tenant.name:
                return
            _check_open(tenant, project)
            _restore_settings(gitlab, project, mark.settings_before)
            _restore_protections(gitlab, project, mark)
            gitlab.commit_files(
                project.project_id,
                project.default_branch,
                f"ci: remove the managed files of {tenant.name}",
                dict.fromkeys([*mark.files, MARK_PATH]),
            )


def _settings(files: Mapping[str, str]) -> dict[str, Any]:
    return {**ALWAYS, **(WITH_PIPELINE if PIPELINE_PATH in files else {})}


def _mark(gitlab: GitLabSession, project: ProjectFacts) -> ProjectMark | None:
    return read_mark(gitlab.file_or_none(project.project_id, MARK_PATH, project.default_branch))


def _check_open(tenant: Tenant, project: ProjectFacts) -> None:
    if project.is_archived:
        raise Conflict(
            f"Unable to change the project {project.path} of {tenant.name}: it is archived. "
            "Unarchive it, and run again."
        )


def own_project(gitlab: GitLabSession, tenant: Tenant) -> tuple[ProjectFacts, ProjectMark | None]:
    """Return the application's project with its mark, if it has one yet.

    Raises:
        Conflict: it belongs to another application, or is archived. NotFound: there is none.
    """
    project = gitlab.project(tenant.project_id)
    mark = _mark(gitlab, project)
    if mark is not None and mark.app != tenant.name:
        raise Conflict(
            f"Unable to onboard {tenant.name}: the project {project.path} belongs to the "
            f"application {mark.app}. Use another project, or off-board {mark.app} first."
        )
    _check_open(tenant, project)
    return project, mark


def _check_files(
    gitlab: GitLabSession,
    project: ProjectFacts,
    files: Mapping[str, str],
    mark: ProjectMark | None,
) -> None:
    """See that no person's file would be overwritten; all of them are told at once."""
    foreign = []
    for path in sorted(set(files) - set(mark.files if mark else ())):
        text = gitlab.file_or_none(project.project_id, path, project.default_branch)
        if text is not None and text != files[path]:
            foreign.append(path)
    if not foreign:
        return
    advice = "Move what it holds elsewhere, or delete it, and run again."
    if PIPELINE_PATH in foreign:
        advice = (
            "The managed pipeline takes its place: move what only yours does into the tests and "
            f"the Dockerfile that the managed jobs run, delete {PIPELINE_PATH}, and run again."
        )
    raise Conflict(
        f"Unable to write the managed files of {project.path}: {', '.join(foreign)} "
        f"{'was' if len(foreign) == 1 else 'were'} there before and would be overwritten. {advice}"
    )


def _protection_before(gitlab: GitLabSession, project: ProjectFacts) -> ProtectionBefore | None:
    found = gitlab.protections(project.project_id).get(project.default_branch)
    if found is None:
        return None
    return ProtectionBefore(found.push_level, found.merge_level, found.is_force_push_allowed)


def _restore_settings(
    gitlab: GitLabSession, project: ProjectFacts, before: Mapping[str, Any]
) -> None:
    """Put settings back that are ours; the mark may have been edited by anybody."""
    kept = {name: value for name, value in before.items() if name in SETTINGS}
    present = gitlab.settings(project.project_id, *kept)
    differing = {n: v for n, v in kept.items() if n in present and present[n] != v}
    if differing:
        gitlab.change_settings(project.project_id, differing)


def _restore_protections(gitlab: GitLabSession, project: ProjectFacts, mark: ProjectMark) -> None:
    level = mark.tags_before.get(RELEASE_TAGS)
    if level is None:
        gitlab.unprotect_tags(project.project_id, RELEASE_TAGS)
    else:
        gitlab.protect_tags(project.project_id, RELEASE_TAGS, level)
    _restore_branch(gitlab, project, mark)


def _restore_branch(gitlab: GitLabSession, project: ProjectFacts, mark: ProjectMark) -> None:
    branch, before = mark.branch or project.default_branch, mark.protection_before
    if before is None:
        gitlab.unprotect(project.project_id, branch)
    else:
        wanted = Protection(before.push_level, before.merge_level, before.is_force_push_allowed)
        gitlab.protect(project.project_id, branch, wanted)
