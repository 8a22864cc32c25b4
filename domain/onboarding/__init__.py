"""Decisions of onboarding and off-boarding applications: specs, names, plans and the saga."""
