"""A simulated GitLab: API v4, real Git repositories, signed webhooks, pipelines (see README.md)."""
