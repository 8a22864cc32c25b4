"""Prefect tasks, one package per system, and the files that they apply."""
