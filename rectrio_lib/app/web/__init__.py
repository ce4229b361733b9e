"""Between HTTP and the service: who may ask, what passes, how errors are said, what is counted."""
