"""The toolchain names builds by their content and puts them in place in one step."""

import hashlib
import multiprocessing
import multiprocessing.synchronize
import os
import re
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab.toolchain import gobuild, image, paths, rke2
from lab.toolchain.content import content_hash, exclusive, file_parts, link, place, staged
from lab.toolchain.recipes import RECIPES, Recipe


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFRAFLOWS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose module files may be changed."""
    monkeypatch.setattr("lab.toolchain.recipes.MODULES_DIR", tmp_path)
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "go.mod").write_text("module example.internal/sample\n\ngo 1.26\n")
    (folder / "go.sum").write_text("")
    return Recipe(name="sample", programs={"example.internal/sample": "sample"})


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------------------------- hashes


def test_the_same_inputs_give_the_same_name(module: Recipe) -> None:
    assert gobuild.recipe_hash(module, "go1.26.8") == gobuild.recipe_hash(module, "go1.26.8")


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_a_changed_module_file_is_a_new_build(module: Recipe, name: str) -> None:
    before = gobuild.recipe_hash(module, "go1.26.8")
    with (module.module_dir / name).open("a") as file:
        file.write("// changed\n")
    assert gobuild.recipe_hash(module, "go1.26.8") != before


def test_another_go_version_is_a_new_build(module: Recipe) -> None:
    assert gobuild.recipe_hash(module, "go1.26.8") != gobuild.recipe_hash(module, "go1.26.9")


def test_other_linker_flags_are_a_new_build(module: Recipe) -> None:
    changed = replace(module, ldflags="-X main.version=2")
    assert gobuild.recipe_hash(module, "go1.26.8") != gobuild.recipe_hash(changed, "go1.26.8")


def test_moving_bytes_between_parts_changes_the_hash() -> None:
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])


def test_the_executable_bit_is_part_of_a_file(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("x")
    script.chmod(0o644)
    before = content_hash(file_parts(tmp_path, [script]))
    script.chmod(0o755)
    assert content_hash(file_parts(tmp_path, [script])) != before


def test_another_package_in_the_list_is_a_new_image(tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    shutil.copytree(image.GUEST_DIR, guest)
    assert image.image_hash(guest) == image.image_hash()
    with (guest / "packages.txt").open("a") as file:
        file.write("tmux\n")
    assert image.image_hash(guest) != image.image_hash()


# ------------------------------------------------------------------------- the committed pins


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_program_is_pinned_with_checksums(recipe: Recipe) -> None:
    required = (recipe.module_dir / "go.mod").read_text()
    sums = (recipe.module_dir / "go.sum").read_text()
    for package in recipe.programs:
        module = re.split(r"/(?:cmd|weed)(?:/|$)", package)[0]
        version = next(
            line.split()[-1] if "//" not in line else line.split("//")[0].split()[-1]
            for line in required.splitlines()
            if f"{module} v" in line and "=>" not in line
        )
        assert f"{module} {version} h1:" in sums


def test_the_provider_lies_where_opentofu_looks_for_its_pinned_version(cache: Path) -> None:
    pinned = (RECIPES[0].module_dir / "go.mod").read_text()
    assert f"terraform-provider-proxmox v{paths.PROVIDER_VERSION}" in pinned
    assert paths.provider_dir() == (
        cache
        / "providers/registry.opentofu.org/bpg/proxmox"
        / paths.PROVIDER_VERSION
        / "linux_amd64"
    )


# -------------------------------------------------------------------------------------- paths


def test_one_variable_moves_the_whole_cache(cache: Path) -> None:
    assert paths.cache_dir() == cache
    assert paths.provider_mirror().is_relative_to(cache)
    assert paths.rke2_artifacts().is_relative_to(cache)


def test_a_program_that_was_not_built_is_an_error_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(paths.NotBuiltError, match=r"tofu.*build tools"):
        paths.tool("tofu")


def test_a_missing_image_is_an_error_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(paths.NotBuiltError, match="build image"):
        paths.guest_image()


def test_the_image_is_the_tree_that_current_points_at(cache: Path) -> None:
    (cache / "image/bookworm-1").mkdir(parents=True)
    link(cache / "image/current", Path("bookworm-1"))
    assert paths.guest_image() == cache / "image/bookworm-1"


@pytest.mark.parametrize("name", ["bao", "kubectl"])
def test_wheel_programs_are_found_beside_the_interpreter(name: str) -> None:
    assert os.access(paths.tool(name), os.X_OK)


# --------------------------------------------------------------------------- putting in place


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    final = tmp_path / "builds" / "tool-1"

    def fail_half_way() -> None:
        with staged(final) as stage:
            (stage / "half").write_text("x")
            raise RuntimeError("compiler")

    with pytest.raises(RuntimeError, match="compiler"):
        fail_half_way()
    assert list(final.parent.iterdir()) == []


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    final = tmp_path / "tool-1"
    dead = tmp_path / ".staging-tool-1.999999"
    dead.mkdir()
    with staged(final) as stage:
        assert not dead.exists()
        (stage / "tool").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["tool-1"]


def test_a_link_is_changed_once(tmp_path: Path) -> None:
    name = tmp_path / "bin" / "tool"
    assert link(name, Path("one")) is True
    assert link(name, Path("one")) is False
    assert link(name, Path("two")) is True
    assert name.readlink() == Path("two")
    assert [path.name for path in name.parent.iterdir()] == ["tool"]


def test_a_placed_program_is_a_regular_file_and_follows_its_build(tmp_path: Path) -> None:
    build = program(tmp_path / "build")
    name = tmp_path / "mirror" / "program"
    assert place(name, build) is True
    assert place(name, build) is False
    program(build, "#!/bin/sh\n# newer\n")
    assert place(name, build) is True
    assert not name.is_symlink()
    assert os.access(name, os.X_OK)
    assert name.read_text().endswith("newer\n")


def _hold(cache: str, ready: "multiprocessing.synchronize.Event") -> None:
    os.environ["INFRAFLOWS_CACHE"] = cache
    with exclusive("tool"):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_builder_is_free(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(cache), ready))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    holder.join()
    with exclusive("tool"):
        pass


# ------------------------------------------------------------------------------------- builds


def test_a_module_is_built_once_and_again_when_it_changes(
    cache: Path, module: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[str] = []

    def build(module_dir: Path, output: Path, packages: list[str], ldflags: str, what: str) -> None:
        builds.append(what)
        program(output / "sample")

    monkeypatch.setattr(gobuild, "go_build", build)
    first = gobuild.build_recipe(module, print)
    assert gobuild.build_recipe(module, print) == first
    assert builds == ["sample"]
    (module.module_dir / "go.sum").write_text("changed\n")
    second = gobuild.build_recipe(module, print)
    assert builds == ["sample", "sample"]
    assert paths.tool("sample").resolve() == second / "sample"


def test_a_build_that_lost_its_program_is_made_again(
    cache: Path, module: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(module_dir: Path, output: Path, packages: list[str], ldflags: str, what: str) -> None:
        program(output / "sample")

    monkeypatch.setattr(gobuild, "go_build", build)
    folder = gobuild.build_recipe(module, print)
    (folder / "sample").unlink()
    gobuild.build_recipe(module, print)
    assert os.access(paths.tool("sample"), os.X_OK)


def test_the_compiler_s_words_are_in_the_error(cache: Path, module: Recipe) -> None:
    (module.module_dir / "main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(gobuild.BuildError, match="undefined: undefined"):
        gobuild.build_recipe(module, print)
    assert not (cache / "bin" / "sample").exists()


def test_a_real_program_is_built_and_runs(cache: Path, module: Recipe) -> None:
    source = 'package main\n\nvar word = "unset"\n\nfunc main() { print(word) }\n'
    (module.module_dir / "main.go").write_text(source)
    recipe = replace(module, ldflags="-X main.word=pinned")
    gobuild.build_recipe(recipe, print)
    assert _stderr_of(paths.tool("sample")) == "pinned"


def _stderr_of(path: Path) -> str:
    return subprocess.run([str(path)], capture_output=True, text=True, check=True).stderr


# -------------------------------------------------------------------------------------- rke2


@pytest.fixture
def distribution(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution's sources, and every program that goes into it."""
    source = tmp_path / "rke2"
    program(source / "scripts" / "rke2-killall.sh")
    program(source / "systemd" / "rke2-server.service", "[Unit]\n")
    (source / "go.mod").write_text("module example.internal/rke2\n\ngo 1.26\n")
    (source / "go.sum").write_text("")
    (source / "cmd/rke2").mkdir(parents=True)
    (source / "cmd/rke2/main.go").write_text('package main\n\nfunc main() { print("rke2") }\n')
    monkeypatch.setattr(rke2, "SOURCE_DIR", source)
    for part in rke2.PARTS:
        if part != "kubectl":
            link(paths.bin_dir() / part, program(cache / "builds" / f"{part}-1" / part))
    fake_kubectl = program(tmp_path / "kubectl")
    real_tool = rke2.tool
    monkeypatch.setattr(
        rke2, "tool", lambda name: fake_kubectl if name == "kubectl" else real_tool(name)
    )
    return source


def test_the_distribution_is_laid_out_as_the_role_unpacks_it(distribution: Path) -> None:
    folder = rke2.build_rke2(print)
    with tarfile.open(folder / rke2.ARCHIVE) as tar:
        modes = {member.name: member.mode for member in tar}
        owners = {(member.uid, member.gid) for member in tar}
    assert modes == {
        "bin/rke2": 0o755,
        "bin/rke2-killall.sh": 0o755,
        "lib/systemd/system/rke2-server.service": 0o644,
        **{f"libexec/rke2/{part}": 0o755 for part in rke2.PARTS},
    }
    assert owners == {(0, 0)}


def test_the_mirror_s_checksum_is_the_archive_s(distribution: Path, cache: Path) -> None:
    rke2.build_rke2(print)
    served = cache / "rke2" / paths.RKE2_VERSION
    digest, name = (served / rke2.CHECKSUMS).read_text().split()
    assert digest == hashlib.sha256((served / name).read_bytes()).hexdigest()


def test_the_same_sources_pack_the_same_archive(distribution: Path) -> None:
    folder = rke2.build_rke2(print)
    first = (folder / rke2.CHECKSUMS).read_text()
    shutil.rmtree(folder)
    assert (rke2.build_rke2(print) / rke2.CHECKSUMS).read_text() == first


def test_a_new_carried_program_is_a_new_distribution(distribution: Path, cache: Path) -> None:
    first = rke2.build_rke2(print)
    link(paths.bin_dir() / "etcd", program(cache / "builds" / "etcd-2" / "etcd"))
    assert rke2.build_rke2(print) != first


def test_a_test_file_of_the_distribution_does_not_rebuild_it(distribution: Path) -> None:
    before = rke2.distribution_hash("go1.26.8")
    (distribution / "cmd/rke2/main_test.go").write_text("package main\n")
    assert rke2.distribution_hash("go1.26.8") == before


def test_only_the_last_builds_of_the_distribution_are_kept(distribution: Path, cache: Path) -> None:
    for number in range(5):
        (distribution / "go.sum").write_text("\n" * number)
        current = rke2.build_rke2(print)
    kept = list((cache / "builds").glob("rke2-*"))
    assert len(kept) == 3
    assert current in kept
