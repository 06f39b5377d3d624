"""Files that somebody else wrote, how they are read; and what pccompile writes, all or nothing."""
