"""The keys of clients at rest: the file that holds their hashes, and the command that writes it."""
