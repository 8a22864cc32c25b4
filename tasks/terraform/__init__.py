"""Steps on OpenTofu, and the module that they apply."""
