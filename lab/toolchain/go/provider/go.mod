// Pins what the lab builds; the packages to build are in lab/toolchain/recipes.py.
module infraflows.internal/lab/toolchain/provider

go 1.26.0

require github.com/bpg/terraform-provider-proxmox v0.111.1
