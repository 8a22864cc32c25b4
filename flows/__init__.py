"""Runbooks: one flow per life-cycle verb."""
