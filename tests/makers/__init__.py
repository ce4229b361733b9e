"""Small data, networks and pages that tests are made of."""
