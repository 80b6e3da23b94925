"""Where and how it runs: stores, ledger, executors, catalog, SQL and the command line."""
