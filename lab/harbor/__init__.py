"""The lab's Harbor: its API simulated, the OCI registry behind it real."""
