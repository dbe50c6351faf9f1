"""What kedge costs on this machine, measured by hand: `make bench` and `make bench-growth`. Never a test."""
