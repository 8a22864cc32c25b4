"""Steps on Proxmox VE."""
