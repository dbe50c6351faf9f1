"""Other engines, measured with the same work on the same server. Their adapters run in an environment of their own."""
