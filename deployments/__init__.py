"""The ways in: the command, the deployments and the set-up of a site."""
