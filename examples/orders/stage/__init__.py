"""What the demo needs around the example: processes, customers, mishaps, and an audit of what came of it."""
