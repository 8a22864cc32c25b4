variable "cluster" {
  description = "Name of the cluster."
  type        = string
}

variable "environment" {
  description = "Site that the cluster belongs to."
  type        = string
}

variable "pool" {
  description = "Resource pool that holds the machines; exists before this module runs."
  type        = string
}

variable "storage" {
  description = "Storage of the machines' disks and cloud-init drives."
  type        = string
}

variable "template" {
  description = "Template to clone: where it is and what its VMID is."
  type = object({
    vm_id = number
    node  = string
  })
}

variable "network" {
  description = "Network card and address settings that all machines share."
  type = object({
    bridge      = string
    vlan        = number
    gateway     = string
    dns_servers = list(string)
    domain      = string
  })
}

variable "ssh_user" {
  description = "Account that Ansible logs in to."
  type        = string
}

variable "ssh_keys" {
  description = "Lines of that account's authorized_keys: the SSH certificate authority."
  type        = list(string)
}

variable "machines" {
  description = "Machines by name, all derived from the cluster's spec."
  type = map(object({
    vm_id         = number
    node          = string
    tags          = list(string)
    address       = string
    prefix_length = number
    mac_address   = string
    cores         = number
    memory_mib    = number
    disk_gib      = number
  }))
}
