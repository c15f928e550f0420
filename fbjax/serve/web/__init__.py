"""The search as a web service with a page. Needs the extra `serve`."""
