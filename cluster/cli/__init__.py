"""The command line: `miclip VERB`. Verbs import what they need when they run, so that --help answers at once."""


def main() -> None:
    """The entry point of the `miclip` command."""
    from cluster.cli.app import app

    app()
