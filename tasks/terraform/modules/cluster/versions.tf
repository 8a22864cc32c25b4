# Only what was tried: the provider's behaviour on clones changes between minor versions.
terraform {
  required_version = ">= 1.10.0"

  required_providers {
    proxmox = {
      source  = "bpg/proxmox"
      version = "0.111.1"
    }
  }
}

# Address, token and CA come from the environment; nothing secret is written in files.
provider "proxmox" {}
