"""The schema of a database as PostgreSQL's catalogs describe it, to compare two databases."""

from tests.harness.databases import fetch

# Without the names of indexes and constraints: PostgreSQL chooses some of them, and recon compares definitions.
_CATALOG = """
WITH relation AS (SELECT * FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
SELECT 'table or sequence' AS kind, concat_ws(' | ', relname, relkind, relpersistence, relowner::regrole, relacl,
    reloptions, relrowsecurity, obj_description(oid, 'pg_class')) AS definition
FROM relation WHERE relkind <> 'i'
UNION ALL
SELECT 'column', concat_ws(' | ', relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
    attgenerated, pg_get_expr(adbin, adrelid), attcollation::regcollation, attacl, attstorage,
    col_description(relation.oid, attnum))
FROM relation JOIN pg_attribute ON attrelid = relation.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relkind = 'r' AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', concat_ws(' | ', relname, contype, pg_get_constraintdef(pg_constraint.oid), convalidated,
    condeferrable, obj_description(pg_constraint.oid, 'pg_constraint'))
FROM relation JOIN pg_constraint ON conrelid = relation.oid
UNION ALL
SELECT 'index', concat_ws(' | ', relname, split_part(pg_get_indexdef(indexrelid), ' USING ', 2), indisunique,
    indisprimary, indisvalid, indisready, obj_description(indexrelid, 'pg_class'))
FROM relation JOIN pg_index ON indrelid = relation.oid
UNION ALL
SELECT 'trigger', concat_ws(' | ', pg_get_triggerdef(pg_trigger.oid), tgenabled,
    obj_description(pg_trigger.oid, 'pg_trigger'))
FROM relation JOIN pg_trigger ON tgrelid = relation.oid WHERE NOT tgisinternal
UNION ALL
SELECT 'function', concat_ws(' | ', pg_get_functiondef(oid), proowner::regrole, proacl, obj_description(oid, 'pg_proc'))
FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
UNION ALL
SELECT 'sequence', concat_ws(' | ', relname, seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache,
    seqcycle, pg_get_serial_sequence('contact', 'id'))
FROM relation JOIN pg_sequence ON seqrelid = relation.oid
"""


async def catalog(url: str) -> list[tuple[str, str]]:
    """Return columns, constraints, indexes, triggers, functions, sequences, comments and privileges, sorted."""
    return sorted((row["kind"], row["definition"]) for row in await fetch(url, _CATALOG))
