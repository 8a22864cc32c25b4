"""The steps: each converges what one system holds of an application."""
