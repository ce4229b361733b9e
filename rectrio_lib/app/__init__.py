"""The service: search, upload and filter a collection over HTTP, and one page that does so in a browser."""
