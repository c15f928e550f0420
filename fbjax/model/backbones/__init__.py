"""The patch networks themselves and the files of their weights; patches and geometry are not known here."""
