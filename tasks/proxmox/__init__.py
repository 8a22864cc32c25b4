"""Tasks on Proxmox VE: facts, guests, and the machines that a run left behind."""
