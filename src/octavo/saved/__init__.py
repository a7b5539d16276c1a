"""Networks as files, and files as data: what is written, and what is checked before it is a network again."""
