"""The command line: ``weft list | check | demo | fit | validate | test | predict``, one file per subcommand."""
