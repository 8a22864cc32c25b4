resource "proxmox_virtual_environment_vm" "machine" {
  for_each = var.machines

  name        = each.key
  description = "Cluster ${var.cluster}, environment ${var.environment}. Managed by Infraflows."
  tags        = each.value.tags
  vm_id       = each.value.vm_id
  node_name   = each.value.node
  pool_id     = var.pool

  # A change of hypervisor moves the machine instead of destroying it.
  migrate = true
  on_boot = true
  started = true
  # The agent may be silent, and a destroy that was approved must not hang on it.
  stop_on_destroy = true
  # Restarting every server at once would cost etcd its majority: restarts are a flow's business.
  reboot_after_update = false
  scsi_hardware       = "virtio-scsi-single"

  timeout_clone       = 1800
  timeout_create      = 1800
  timeout_start_vm    = 300
  timeout_stop_vm     = 120
  timeout_shutdown_vm = 120

  clone {
    vm_id        = var.template.vm_id
    node_name    = var.template.node
    datastore_id = var.storage
    full         = true
    retries      = 1
  }

  agent {
    enabled = true
    timeout = "10s"

    # The flow asks the agent itself, with a deadline and a message of its own.
    wait_for_ip {
      disabled = true
    }
  }

  cpu {
    cores = each.value.cores
    type  = "x86-64-v2-AES"
  }

  memory {
    dedicated = each.value.memory_mib
  }

  disk {
    datastore_id = var.storage
    interface    = "scsi0"
    size         = each.value.disk_gib
    discard      = "on"
    iothread     = true
  }

  network_device {
    bridge      = var.network.bridge
    mac_address = each.value.mac_address
    vlan_id     = var.network.vlan
  }

  operating_system {
    type = "l26"
  }

  serial_device {}

  initialization {
    datastore_id = var.storage
    interface    = "ide2"

    dns {
      domain  = var.network.domain
      servers = var.network.dns_servers
    }

    ip_config {
      ipv4 {
        address = "${each.value.address}/${each.value.prefix_length}"
        gateway = var.network.gateway
      }
    }

    user_account {
      username = var.ssh_user
      keys     = var.ssh_keys
    }
  }

  lifecycle {
    # What a machine was cloned from is history: a newer template, or an adopted machine that has
    # no such record, is no reason to destroy it. The upgrade flag may be set by root@pam alone.
    ignore_changes = [clone, initialization[0].upgrade]
  }
}
