"""What real KVM did, exit for exit, against this machine: `python -m tests.agreement`, or `make kvm-agreement`."""
