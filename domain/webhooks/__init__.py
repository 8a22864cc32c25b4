"""Decisions about webhooks: who sent one, what it means, and how many are taken."""
