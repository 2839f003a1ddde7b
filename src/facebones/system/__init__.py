"""What stands below everything: files, devices, signals, processes."""
