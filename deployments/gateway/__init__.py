"""The webhook gateway: verified, stored, acknowledged; then acted on by starting deployments.

Two halves that meet in the store only. The intake believes nothing that is not proved, and answers
2xx only for what is on disk. The dispatcher reads the truth from GitLab, decides, and starts flows
by their deployments' names; it never imports them.
"""
