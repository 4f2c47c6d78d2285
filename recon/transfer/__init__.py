"""Import of files, from text to records, requests and chunks of them; exports of identities, and their restore."""
