"""Onboarding and off-boarding of applications: the steps of the saga, one file per system."""
