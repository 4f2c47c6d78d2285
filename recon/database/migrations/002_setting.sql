-- Schema 2: the table `setting` with the default region of the database. `recon schema --apply` has locked the table contact
-- against writers, and records the region in the same transaction.

-- Databases that earlier versions created have this function with earlier rules.
--
-- Rows that do not come from recon (INSERT ... SELECT from an older system, say) need no phone_key:
-- without one they get the match key that recon derives when it has no default region.
CREATE OR REPLACE FUNCTION contact_phone_key() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp  -- whoever inserts, these functions are meant
AS $$
DECLARE
    -- The blanks at the ends are those that NFKC does not turn into spaces already.
    form text := btrim(normalize(NEW.phone_number, NFKC), E' \t\n\x0b\f\r\u1680\u2028\u2029');
    digits text := translate(form, '+-.()/ ', '');
    unicode_rules text;
BEGIN
    IF digits ~ '^[0-9]+$' THEN
        NEW.phone_key := digits;
    ELSE
        -- recon lower-cases by Unicode's rules alone. The database's own locale may have others (C knows ASCII only,
        -- Turkish maps I to another letter), so use a collation with those rules: PostgreSQL 18's, or that of ICU.
        SELECT collname INTO unicode_rules FROM pg_collation
        WHERE collname IN ('pg_unicode_fast', 'und-x-icu') AND collnamespace = 'pg_catalog'::regnamespace
        ORDER BY collname LIMIT 1;
        EXECUTE format('SELECT normalize(lower($1 COLLATE %I), NFKC)', coalesce(unicode_rules, 'default'))
        INTO NEW.phone_key USING form;
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER contact_phone_key BEFORE INSERT ON contact FOR EACH ROW
    WHEN (new.phone_key IS NULL AND new.phone_number IS NOT NULL) EXECUTE FUNCTION contact_phone_key();

-- A process of another version names its sessions after the schema that it serves, the first version's `recon` alone. What
-- it would write may lack what this schema needs, so it is refused, with an error that it answers with 503.
CREATE OR REPLACE FUNCTION contact_refuse_version() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE object_not_in_prerequisite_state
        USING MESSAGE = 'the database has another schema than the one that this version of recon serves';
END
$$;
CREATE OR REPLACE TRIGGER contact_refuse_version BEFORE INSERT OR UPDATE ON contact FOR EACH STATEMENT
    WHEN (split_part(current_setting('application_name'::text), ' '::text, 1) = 'recon'::text AND current_setting('application_name'::text) <> 'recon schema 2'::text)
    EXECUTE FUNCTION contact_refuse_version();

-- The settings of the database, which hold for every process that serves it: exactly one row.
CREATE TABLE IF NOT EXISTS setting (
    only_row       boolean PRIMARY KEY DEFAULT true CONSTRAINT setting_only_row CHECK (only_row),
    -- The country of phone numbers without a country code, such as US; NULL stands for none.
    default_region text CONSTRAINT setting_default_region CHECK (default_region ~ '^[A-Z]{2}$')
);
INSERT INTO setting (only_row, default_region) VALUES (true, NULL) ON CONFLICT DO NOTHING;
CREATE OR REPLACE FUNCTION setting_keep_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE restrict_violation USING MESSAGE = 'the table setting has exactly one row, which stays';
END
$$;
CREATE OR REPLACE TRIGGER setting_keep_row BEFORE DELETE OR TRUNCATE ON setting EXECUTE FUNCTION setting_keep_row();

COMMENT ON TABLE contact IS 'recon schema 2';
