"""`python -m cluster.cli` is the `miclip` command."""

from cluster.cli import main

main()
