"""Many runs from one command: `python -m hybrid.sweep`. `plan` names and checks them, `jobs` does the work."""
