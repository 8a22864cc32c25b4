"""Starting, stopping, freezing and resetting machines: what changes a guest's state.

Why: these acts reach a real guest, take real time and hold the machine's lock while they do, so a
second act on the same machine meets the lock as it would on a real node.
"""

from __future__ import annotations

from lab.hypervisor.exceptions import ApiError, NotSimulated
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.models_vm import VirtualMachine, drive_volume, guest_config

DEFAULT_SHUTDOWN_SECONDS = 60


async def boot(hypervisor: Hypervisor, vm: VirtualMachine) -> None:
    """Start the guest; the caller holds the machine's lock."""
    if vm.is_template:
        raise ApiError("you can't start a vm if it's a template")
    vm.apply_pending()
    hypervisor.save(vm)
    drive = vm.boot_drive()
    volume = hypervisor.storage.find(drive_volume(str(vm.config[drive]))) if drive else None
    if volume is None or volume.disk_id is None:
        raise NotSimulated(f"Starting VM {vm.vmid} without a disk")
    await hypervisor.runtime.start(guest_config(vm, volume.disk_id))


async def start(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmstart."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        if await hypervisor.state(vm) != "stopped":
            raise ApiError(f"VM {vm.vmid} already running")
        log.line("generating cloud-init ISO")
        await log.halfway()
        await boot(hypervisor, vm)


async def stop(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmstop: pull the plug."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        await log.halfway()
        await hypervisor.runtime.stop(vm.vmid, graceful_timeout_seconds=None)
        vm.apply_pending()
        hypervisor.save(vm)


async def shutdown(
    hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog, *, timeout: int | None, force: bool
) -> None:
    """qmshutdown: ask the guest, wait, and pull the plug only when forced."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        await log.halfway()
        if await hypervisor.state(vm) == "paused":
            await hypervisor.runtime.resume(vm.vmid)
        seconds = DEFAULT_SHUTDOWN_SECONDS if timeout is None else timeout
        try:
            await hypervisor.runtime.stop(vm.vmid, graceful_timeout_seconds=seconds)
        except TimeoutError:
            log.line("VM quit/powerdown failed - got timeout")
            if not force:
                raise ApiError("VM quit/powerdown failed - got timeout") from None
            log.line("VM quit/powerdown failed - terminating now with SIGTERM")
            await hypervisor.runtime.stop(vm.vmid, graceful_timeout_seconds=None)
        vm.apply_pending()
        hypervisor.save(vm)


async def reboot(
    hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog, *, timeout: int | None
) -> None:
    """qmreboot: shut down and start again, with what was pending."""
    await shutdown(hypervisor, vm, log, timeout=timeout, force=False)
    await start(hypervisor, vm, log)


async def reset(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmreset: the reset button; pending changes keep waiting."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        await _require_running(hypervisor, vm)
        await log.halfway()
        await hypervisor.runtime.reset(vm.vmid)


async def suspend(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmsuspend: freeze in memory."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        await _require_running(hypervisor, vm)
        await log.halfway()
        await hypervisor.runtime.suspend(vm.vmid)


async def resume(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmresume: go on."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        await _require_running(hypervisor, vm)
        await log.halfway()
        await hypervisor.runtime.resume(vm.vmid)


async def start_all(hypervisor: Hypervisor, node: str, log: TaskLog) -> None:
    """startall: a node that came back boots its machines that are marked `onboot`."""
    for vm in hypervisor.machines:
        if vm.node != node or vm.is_template or not vm.config.get("onboot"):
            continue
        if await hypervisor.state(vm) == "stopped":
            log.line(f"Starting VM {vm.vmid}")
            try:
                await start(hypervisor, vm, log)
            except (ApiError, GuestRuntimeError) as error:
                log.line(f"Starting VM {vm.vmid} failed: {error}")


async def _require_running(hypervisor: Hypervisor, vm: VirtualMachine) -> None:
    if await hypervisor.state(vm) == "stopped":
        raise ApiError(f"VM {vm.vmid} not running")
