"""A Proxmox VE cluster for the lab: three nodes' HTTPS API, with real Linux guests behind."""
