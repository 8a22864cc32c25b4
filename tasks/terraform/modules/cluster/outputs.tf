output "machines" {
  description = "Machines by name, as they were made."
  value = {
    for name, machine in proxmox_virtual_environment_vm.machine : name => {
      vm_id       = machine.vm_id
      node        = machine.node_name
      mac_address = machine.network_device[0].mac_address
      address     = split("/", machine.initialization[0].ip_config[0].ipv4[0].address)[0]
    }
  }
}
