"""Real Linux guests for the simulated hypervisor (see README.md in this directory)."""
