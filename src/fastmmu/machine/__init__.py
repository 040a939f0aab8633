"""The machine: configuration, VM entry and exit, policy, results."""
