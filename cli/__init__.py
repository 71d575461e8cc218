"""The `rewright` command: parsing and printing only."""
