"""The command `mtl-jax`, `python -m mtl_jax` and `python launch.py` start here."""

from mtl_jax.runtime import huge_pages, terminal


def main() -> None:
    """Restarts Python where its environment has to change, then runs the command line."""
    terminal.restart_in_utf8_mode()
    huge_pages.restart_with_huge_pages()
    from mtl_jax import command_line  # after the restarts, so that nothing is imported twice

    command_line.run()


if __name__ == "__main__":
    main()
