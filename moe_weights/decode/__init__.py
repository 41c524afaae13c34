"""On-disk encodings and the numbers they stand for, one file each."""
