"""A Proxmox VE cluster for the lab: the HTTPS API of three nodes, with real Linux guests behind it."""
