"""PostgreSQL itself: sessions, transactions, schema. Nothing here knows contacts."""
