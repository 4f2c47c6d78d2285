"""Import of files: from text to records, requests and chunks of them."""
