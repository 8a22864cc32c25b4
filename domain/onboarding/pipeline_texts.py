"""The texts of which a pipeline consists; `@{name}` is filled in, `$NAME` is GitLab's own."""

from __future__ import annotations

from collections.abc import Mapping

from domain.onboarding.app_spec import BuildKind

HEADER = """\
# Written by infraflows from app.yaml. Changes by hand are undone.
# No job holds a credential of the cluster or of the GitOps repository: when a deploy job has ended,
# GitLab's deployment event tells the platform, which commits the image tag.
"""

HEAD = """\
stages: @{stages}

variables:
  # Where images of tools come from: a site without internet names proxies here.
  HUB: docker.io
  QUAY: quay.io
  IMAGE: $HARBOR_HOST/$HARBOR_PROJECT/@{name}
  GIT_DEPTH: "20"

workflow:
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
    - if: $CI_COMMIT_TAG =~ /^v\\d+\\.\\d+\\.\\d+$/
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH

default:
  interruptible: true
  retry:
    max: 2
    when: [runner_system_failure, stuck_or_timeout_failure]

.on changes:
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH

.on the default branch:
  rules:
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
"""

VALIDATE = """
validate app.yaml:
  extends: .on changes
  stage: validate
  image: $HUB/library/python:3.13-slim
  script:
    - python -m pip install --quiet --disable-pip-version-check check-jsonschema
    - check-jsonschema --schemafile @{schema} app.yaml

validate Dockerfile:
  extends: .on changes
  stage: validate
  image: $HUB/hadolint/hadolint:v2.12.0-alpine
  script:
    - hadolint --failure-threshold error Dockerfile
"""

MESSAGES = """
validate commit messages:
  stage: validate
  image: $HUB/library/node:22-slim
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
  variables:
    GIT_DEPTH: "0"
  script:
    - npm install --global --silent @commitlint/cli@19 @commitlint/config-conventional@19
    - commitlint --from "$CI_MERGE_REQUEST_DIFF_BASE_SHA" --to "$CI_COMMIT_SHA" --verbose
"""

TESTS: Mapping[BuildKind, str] = {
    BuildKind.PYTHON: """
test:
  extends: .on changes
  stage: test
  image: $HUB/library/python:3.13-slim
  variables:
    PIP_CACHE_DIR: $CI_PROJECT_DIR/.cache/pip
  cache:
    key: pip
    paths: [.cache/pip]
  script:
    - python -m pip install --quiet --disable-pip-version-check pytest ruff
    - if [ -f requirements.txt ]; then python -m pip install --quiet -r requirements.txt; fi
    - if [ -f pyproject.toml ]; then python -m pip install --quiet .; fi
    - ruff check .
    - python -m pytest --junitxml=test-results.xml
  artifacts:
    when: always
    reports:
      junit: test-results.xml
""",
    BuildKind.NODE: """
test:
  extends: .on changes
  stage: test
  image: $HUB/library/node:22-slim
  cache:
    key:
      files: [package-lock.json]
    paths: [.npm]
  script:
    - npm ci --cache .npm --prefer-offline --no-audit
    - npm run lint --if-present
    - npm test --if-present
    - npm run build --if-present
""",
    BuildKind.STATIC: """
test:
  extends: .on changes
  stage: test
  image: $HUB/library/python:3.13-slim
  script:
    - |
      found=$(find . -name index.html -not -path './.git/*' | head -n 1)
      if [ -z "$found" ]; then
        echo "There is no index.html. Add one, or choose another kind in app.yaml."
        exit 1
      fi
""",
    BuildKind.JAVA: """
test:
  extends: .on changes
  stage: test
  image: $HUB/library/maven:3.9-eclipse-temurin-21
  variables:
    MAVEN_OPTS: -Dmaven.repo.local=$CI_PROJECT_DIR/.m2/repository
  cache:
    key: maven
    paths: [.m2/repository]
  script:
    - mvn --batch-mode --no-transfer-progress verify
  artifacts:
    when: always
    reports:
      junit: "**/target/surefire-reports/TEST-*.xml"
""",
    BuildKind.GO: """
test:
  extends: .on changes
  stage: test
  image: $HUB/library/golang:1.25
  variables:
    GOMODCACHE: $CI_PROJECT_DIR/.go/mod
  cache:
    key: go
    paths: [.go/mod]
  script:
    - go vet ./...
    - go test -race ./...
""",
}

BUILD = """
build image:
  extends: .on the default branch
  stage: build
  image: $QUAY/buildah/stable:v1.41
  interruptible: false
  variables:
    BUILDAH_ISOLATION: chroot
    STORAGE_DRIVER: vfs
  before_script:
    - |
      printf '%s' "$HARBOR_PASSWORD" |
        buildah login --username "$HARBOR_USERNAME" --password-stdin "$HARBOR_HOST"
  script:
    - |
      buildah build --pull \\
        --label "org.opencontainers.image.revision=$CI_COMMIT_SHA" \\
        --label "org.opencontainers.image.source=$CI_PROJECT_URL" \\
        --tag "$IMAGE:$CI_COMMIT_SHORT_SHA" .
    - buildah push "$IMAGE:$CI_COMMIT_SHORT_SHA"

# A version is the image that was tested under its commit, by a second name.
name version:
  stage: build
  image: $QUAY/skopeo/stable:v1.20
  interruptible: false
  rules:
    - if: $CI_COMMIT_TAG =~ /^v\\d+\\.\\d+\\.\\d+$/
  before_script:
    - |
      printf '%s' "$HARBOR_PASSWORD" |
        skopeo login --username "$HARBOR_USERNAME" --password-stdin "$HARBOR_HOST"
  script:
    - |
      skopeo copy --retry-times 5 \\
        "docker://$IMAGE:$CI_COMMIT_SHORT_SHA" \\
        "docker://$IMAGE:$CI_COMMIT_TAG-$CI_DEFAULT_BRANCH"
"""

SCAN = """
scan source:
  extends: .on changes
  stage: scan
  needs: []
  image:
    name: $HUB/aquasec/trivy:0.65.0
    entrypoint: [""]
  script:
    - |
      trivy fs --scanners vuln,secret,misconfig --severity HIGH,CRITICAL --ignore-unfixed \\
        --exit-code 1 .

scan image:
  extends: .on the default branch
  stage: scan
  needs: [build image]
  image:
    name: $HUB/aquasec/trivy:0.65.0
    entrypoint: [""]
  script:
    - export TRIVY_USERNAME="$HARBOR_USERNAME" TRIVY_PASSWORD="$HARBOR_PASSWORD"
    - |
      trivy image --severity HIGH,CRITICAL --ignore-unfixed --exit-code 1 \\
        "$IMAGE:$CI_COMMIT_SHORT_SHA"
"""

RELEASE = """
release:
  stage: release
  image: $HUB/library/node:22-slim
  interruptible: false
  rules:
    # Tagging needs a token that may push tags; without one the team tags by hand.
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH && $RELEASE_TOKEN
  variables:
    GIT_DEPTH: "0"
    GITLAB_TOKEN: $RELEASE_TOKEN
  script:
    - apt-get update -qq && apt-get install -qq --no-install-recommends git ca-certificates
    - npx --yes --package semantic-release@24 --package @semantic-release/gitlab@13 semantic-release
"""

DEPLOY = """
deploy to @{stage}:
  stage: @{stage}
  image: $HUB/library/busybox:1.37
  interruptible: false
  resource_group: @{stage}
  environment:
    name: @{stage}
    url: https://@{host}
    deployment_tier: @{stage}
  rules:
@{rules}
  script:
    - echo "The platform makes @{stage} run $CI_COMMIT_SHORT_SHA as soon as this job has ended."
"""

AUTOMATIC = "    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"
BY_HAND = """\
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
      when: manual
      allow_failure: true"""

COMMITLINT = """\
// Written by infraflows from app.yaml. Changes by hand are undone.
module.exports = {extends: ['@commitlint/config-conventional']};
"""

HUSKY = """\
# Written by infraflows from app.yaml. In force once husky is installed: npx husky
npx --no -- commitlint --edit "$1"
"""

SEMANTIC_RELEASE = """\
# Written by infraflows from app.yaml. Changes by hand are undone.
branches: [main, master]
tagFormat: v${version}
plugins:
  - "@semantic-release/commit-analyzer"
  - "@semantic-release/release-notes-generator"
  - "@semantic-release/gitlab"
"""
