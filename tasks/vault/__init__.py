"""Tasks on OpenBao: a cluster's own secrets, facts for the preflight, and the signed ledger."""
