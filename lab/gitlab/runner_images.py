"""What a job does with images: which ones its script names, pushed or given a second name for real.

Promises that an image carries the repository's files at the commit and its labels, so that the same
commit is the same image. Refuses to run the script: it is read for the images that it names.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from lab.gitlab.instance import GitLab
from lab.gitlab.oci_image import Login, RegistryRefused, copy_image, push_image
from lab.hypervisor.store import Document

_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_TOOLS = re.compile(r"HARBOR_|\b(buildah|kaniko|buildctl|docker|podman|crane|skopeo|buildx)\b")
_PUSHED = re.compile(r"""(?:--destination[= ]|\bpush\s+(?:-\S+\s+)*)["']?([^\s"']+)""")
_COPIED = re.compile(
    r"""\bskopeo\s+copy\b.*?["']?docker://([^\s"']+)["']?.*?docker://([^\s"']+)""", re.DOTALL
)
_NEEDED = ("HARBOR_HOST", "HARBOR_PROJECT", "HARBOR_USERNAME", "HARBOR_PASSWORD")


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A text with its variables; those of variables too."""
    for _ in range(3):
        text = _VARIABLE.sub(lambda found: variables.get(found[1], ""), text)
    return text


def handles_images(job: Document) -> bool:
    """True for jobs of the stage `build` whose script speaks of images."""
    return job["stage"] == "build" and bool(_TOOLS.search("\n".join(job["script"])))


async def handle_images(
    gitlab: GitLab, project: Document, job: Document, variables: Mapping[str, str]
) -> AsyncIterator[str]:
    """Copy and push what the script names; tells each in a line.

    Raises:
        RegistryRefused: the registry did not take it, or the job has no login.
    """
    if absent := [name for name in _NEEDED if not variables.get(name)]:
        raise RegistryRefused(
            f"Unable to push the image: {', '.join(absent)} not set for this job.\n"
            "Set the CI variables of the project; protected ones reach protected refs only."
        )
    login = Login(
        variables["HARBOR_USERNAME"], variables["HARBOR_PASSWORD"], gitlab.settings.ca_file
    )
    script = "\n".join(job["script"])
    copies = [
        (expanded(source, variables), expanded(target, variables))
        for source, target in _COPIED.findall(script)
    ]
    for source, target in copies:
        yield f"Copied {source} to {target}@{await copy_image(source, target, login)}"
    pushed = destinations(script, variables)
    if not pushed and not copies:
        pushed = [conventional(variables)]
    for image in pushed:
        digest = await push_image(
            image,
            login,
            content=gitlab.repository(project).run(
                "archive", "--format=tar", variables["CI_COMMIT_SHA"]
            ),
            labels={
                "org.opencontainers.image.revision": variables["CI_COMMIT_SHA"],
                "org.opencontainers.image.source": variables["CI_PROJECT_URL"],
                "org.opencontainers.image.created": variables["CI_COMMIT_TIMESTAMP"],
            },
        )
        yield f"Pushed {image}@{digest}"


def conventional(variables: Mapping[str, str]) -> str:
    """The image of a commit where the script names none."""
    place = f"{variables['HARBOR_HOST']}/{variables['HARBOR_PROJECT']}"
    return f"{place}/{variables['CI_PROJECT_NAME']}:{variables['CI_COMMIT_SHORT_SHA']}"


def destinations(script: str, variables: Mapping[str, str]) -> list[str]:
    """The images on the project's registry that a script pushes."""
    host = variables["HARBOR_HOST"]
    named = [expanded(found, variables) for found in _PUSHED.findall(script)]
    images = [
        image for image in named if image.startswith(f"{host}/") and ":" in image[len(host) :]
    ]
    return list(dict.fromkeys(images))
