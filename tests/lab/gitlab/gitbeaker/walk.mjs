// Walks through the API as @gitbeaker/rest sees it and prints what it got as one JSON document.
import { Gitlab } from '@gitbeaker/rest';

const { GITLAB_URL: host, GITLAB_TOKEN: token, HOOK_URL: hookUrl, SIGNING_TOKEN: signingToken } = process.env;
const api = new Gitlab({ host, token });
const seen = {};

const status = async (act) => {
  try {
    await act();
    return 0;
  } catch (error) {
    return error.cause?.response?.status ?? String(error);
  }
};

const [group] = await api.Groups.all({ search: 'storefront' });
const user = await api.Users.showCurrentUser();
seen.user = user.username;

const project = await api.Projects.create({
  name: `beaker-${Date.now()}`,
  namespaceId: group.id,
  initializeWithReadme: true,
});
seen.byPath = (await api.Projects.show(project.path_with_namespace)).id === project.id;
seen.missing = await status(() => api.Projects.show('storefront/none'));

const hook = await api.ProjectHooks.add(project.id, hookUrl, {
  signingToken,
  token: 's3cret',
  pushEvents: true,
  enableSslVerification: false,
});
seen.hook = { signed: hook.signing_token_present, status: hook.alert_status };

const commit = await api.Commits.create(project.id, 'main', 'feat: several files', [
  { action: 'create', filePath: 'deep/er/app.yaml', content: 'name: shop\n' },
  { action: 'update', filePath: 'README.md', content: '# new\n' },
]);
seen.commit = commit.id;
seen.file = await api.RepositoryFiles.showRaw(project.id, 'deep/er/app.yaml', 'main');
seen.tree = (await api.Repositories.allRepositoryTrees(project.id, { recursive: true })).map((each) => each.path);

await api.Branches.create(project.id, 'topic', 'main');
await api.RepositoryFiles.edit(project.id, 'README.md', 'topic', '# topic\n', 'docs: topic');
const request = await api.MergeRequests.create(project.id, 'topic', 'main', 'Docs');
await api.MergeRequestNotes.create(project.id, request.iid, 'Looks good');
seen.notes = (await api.MergeRequestNotes.all(project.id, request.iid)).map((each) => each.body);
seen.diff = (await api.MergeRequests.allDiffs(project.id, request.iid)).map((each) => each.new_path);
seen.merged = (await api.MergeRequests.merge(project.id, request.iid)).state;

await api.ProjectVariables.create(project.id, 'HARBOR_PASSWORD', 'very-secret-value', {
  masked: true,
  protected: true,
  environmentScope: 'production',
});
seen.variable = await api.ProjectVariables.show(project.id, 'HARBOR_PASSWORD', {
  filter: { environment_scope: 'production' },
});
seen.twice = await status(() =>
  api.ProjectVariables.create(project.id, 'HARBOR_PASSWORD', 'very-secret-value', { environmentScope: 'production' }),
);

await api.ProtectedBranches.protect(project.id, 'release/*', { pushAccessLevel: 40, mergeAccessLevel: 30 });
seen.protected = (await api.ProtectedBranches.all(project.id)).map((each) => each.name).sort();
await api.ProtectedTags.create(project.id, 'v*', { createAccessLevel: 40 });
seen.tag = (await api.Tags.create(project.id, 'v1.0.0', 'main', { message: 'first' })).protected;

const deployToken = await api.DeployTokens.create('pull', ['read_repository'], { projectId: project.id });
seen.deployToken = deployToken.token.startsWith('gldt-');

await api.Commits.editStatus(project.id, commit.id, 'success', { name: 'onboarding' });
seen.statuses = (await api.Commits.allStatuses(project.id, commit.id)).map((each) => each.status);
await api.Commits.createComment(project.id, commit.id, '| a |\n|---|\n| 1 |');
seen.comments = (await api.Commits.allComments(project.id, commit.id)).length;

for (let number = 0; number < 24; number += 1) await api.Branches.create(project.id, `b${number}`, 'main');
seen.pages = (await api.Branches.all(project.id, { perPage: 10 })).length;

await api.Projects.edit(project.id, { path: `${project.path}-new` });
seen.moved = (await api.Projects.show(project.path_with_namespace)).id === project.id;
await api.Projects.remove(project.id);
seen.gone = await status(() => api.Projects.show(project.id));

process.stdout.write(JSON.stringify(seen));
