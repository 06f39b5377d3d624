"""What can be measured on a compiled model or known about it before it runs."""
