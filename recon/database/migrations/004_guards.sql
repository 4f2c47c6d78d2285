-- Schema 4: guards and corrections. The guards are off: the contacts may have values that recon's own list blocks.

ALTER TABLE contact ADD COLUMN apart bigint[];
ALTER TABLE contact ADD CONSTRAINT contact_apart_has_rows CHECK (((apart IS NULL) OR (((array_ndims(apart) = 2) AND (array_length(apart, 2) = 3) AND (0 <= ALL (apart))) IS TRUE)));
CREATE INDEX ON contact USING btree (id) WHERE (apart IS NOT NULL);

ALTER TABLE setting
    ADD COLUMN max_emails integer NOT NULL DEFAULT 0 CONSTRAINT setting_max_emails CHECK (max_emails >= 0),
    ADD COLUMN max_phones integer NOT NULL DEFAULT 0 CONSTRAINT setting_max_phones CHECK (max_phones >= 0),
    ADD COLUMN block_common boolean NOT NULL DEFAULT false;

-- The review list: the withheld links that are open. Is this one recorded? Which ones have this phone number? Which come
-- next? Each names its own column in its condition, for the reason given above.
CREATE INDEX ON event USING btree (email, phone_key) WHERE ((kind = 'withheld'::text) AND (undone_by IS NULL) AND (email IS NOT NULL));
CREATE INDEX ON event USING btree (phone_key) WHERE ((kind = 'withheld'::text) AND (undone_by IS NULL) AND (phone_key IS NOT NULL));
CREATE INDEX ON event USING btree (id) WHERE ((kind = 'withheld'::text) AND (undone_by IS NULL) AND (primary_id IS NOT NULL));

-- The primaries that a correction left behind, for the corrections that concern more than two identities.
CREATE TABLE event_contact (
    contact_id bigint NOT NULL,
    event_id   bigint NOT NULL
);

ALTER TABLE event_contact ADD PRIMARY KEY (contact_id, event_id);

-- The values that identify nobody.
CREATE TABLE blocked (
    -- What `key` is: an email, a phone number's match key, the digest of either, or the digest that tells which key made
    -- the others (see recon/rules/digests.py).
    kind         text NOT NULL,
    key          text NOT NULL,
    phone_number text,          -- as the steward gave it
    event_id     bigint NOT NULL
);

ALTER TABLE blocked ADD PRIMARY KEY (key, kind);
ALTER TABLE blocked ADD CONSTRAINT blocked_kind CHECK ((kind = ANY (ARRAY['email'::text, 'phoneNumber'::text, 'emailDigest'::text, 'phoneNumberDigest'::text, 'digestCheck'::text])));

-- The contacts of erased identities. Their ids are never used again.
CREATE TABLE erased (
    contact_id bigint NOT NULL,
    event_id   bigint NOT NULL
);

ALTER TABLE erased ADD PRIMARY KEY (contact_id);

-- The first results of corrections that came with an Idempotency-Key.
CREATE TABLE correction (
    key      text NOT NULL,
    source   text NOT NULL,   -- the name of the API key; empty without API keys
    request  bytea NOT NULL,  -- the SHA-256 of the request
    event_id bigint,
    answer   jsonb NOT NULL
);

ALTER TABLE correction ADD PRIMARY KEY (key, source);
CREATE INDEX ON correction USING btree (event_id) WHERE (event_id IS NOT NULL);

-- Where each import of a file stands: what is before the cursor is committed.
CREATE TABLE import (
    file       text NOT NULL,    -- its absolute path
    form       jsonb NOT NULL,   -- how it is read: format, columns, source
    characters bigint NOT NULL,  -- the cursor: so many characters of the file's text are done
    line       bigint NOT NULL,  -- and so many lines
    digest     bytea NOT NULL,   -- the SHA-256 of that text
    rejects    bigint NOT NULL,  -- the length of the file of rejects, in bytes
    counts     jsonb NOT NULL,   -- what the records came to
    finished   boolean NOT NULL
);

ALTER TABLE import ADD PRIMARY KEY (file);

-- What other programs do to contacts is in the journal too. recon's own changes have their own events. The owner's
-- rights, because those programs need none on the journal.
CREATE OR REPLACE FUNCTION contact_record_edit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_deleted boolean := OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL;
    before jsonb;
BEGIN
    IF TG_TABLE_NAME <> 'contact' THEN  -- an older table, which was renamed
        RETURN NULL;
    END IF;
    SELECT jsonb_object_agg(name, was) INTO before
    FROM (VALUES
        ('email', to_jsonb(OLD.email), to_jsonb(NEW.email)),
        ('phoneNumber', to_jsonb(OLD.phone_number), to_jsonb(NEW.phone_number)),
        ('phoneKey', to_jsonb(OLD.phone_key), to_jsonb(NEW.phone_key)),
        ('deletedAt', to_jsonb(OLD.deleted_at), to_jsonb(NEW.deleted_at))
    ) AS change (name, was, is_now)
    WHERE was IS DISTINCT FROM is_now AND NOT (is_deleted AND name = 'deletedAt');
    EXECUTE format(
        'INSERT INTO %I.event (id, kind, primary_id, other_id, detail) '
        'VALUES (nextval(pg_get_serial_sequence($1, ''id'')::regclass), $2, $3, $4, $5)', TG_TABLE_SCHEMA
    ) USING format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME), CASE WHEN is_deleted THEN 'deleted' ELSE 'edited' END,
        coalesce(OLD.linked_id, OLD.id), OLD.id, before;
    RETURN NULL;
END
$$;
-- Otherwise any role could make this function a trigger of a table of its own, and run it with the owner's rights.
REVOKE EXECUTE ON FUNCTION contact_record_edit() FROM PUBLIC;
CREATE OR REPLACE TRIGGER contact_record_edit AFTER UPDATE OF email, phone_number, phone_key, deleted_at ON contact FOR EACH ROW
    WHEN ((old.email IS DISTINCT FROM new.email OR old.phone_number IS DISTINCT FROM new.phone_number OR old.phone_key IS DISTINCT FROM new.phone_key OR old.deleted_at IS DISTINCT FROM new.deleted_at) AND current_setting('application_name'::text) <> 'recon schema 4'::text)
    EXECUTE FUNCTION contact_record_edit();

-- Without its contacts the journal would tell of others, which get the same ids.
CREATE OR REPLACE FUNCTION contact_truncate_journal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_TABLE_NAME = 'contact' THEN
        EXECUTE format('TRUNCATE %1$I.event, %1$I.event_contact, %1$I.erased, %1$I.correction, %1$I.import', TG_TABLE_SCHEMA);
    END IF;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION contact_truncate_journal() FROM PUBLIC;  -- for the same reason
CREATE OR REPLACE TRIGGER contact_truncate_journal AFTER TRUNCATE ON contact FOR EACH STATEMENT
    EXECUTE FUNCTION contact_truncate_journal();

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
    WHEN (split_part(current_setting('application_name'::text), ' '::text, 1) = 'recon'::text AND current_setting('application_name'::text) <> 'recon schema 4'::text)
    EXECUTE FUNCTION contact_refuse_version();

COMMENT ON TABLE contact IS 'recon schema 4';
