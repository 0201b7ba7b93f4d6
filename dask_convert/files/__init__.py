"""Sources, scratch and targets: everything that reads or writes the disk."""
