-- Schema 3: the journal of identities, and the source of each contact. What happened before the journal existed has no events: links that
-- only it would explain are shown as unexplained.

ALTER TABLE contact ADD COLUMN source text;

-- The journal: every change to identities except a new contact. Its ids come from the sequence of contact.id, so that
-- contacts and events have one order. Rows are added, never changed.
CREATE TABLE event (
    id           bigint NOT NULL,
    at           timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    kind         text NOT NULL,
    primary_id   bigint,     -- the primary of the identity that the event is about
    other_id     bigint,     -- merged, mended: the primary that it absorbed or replaced; deleted, edited: the contact
    email        text,       -- merged: the request's; mended: the identifier that two identities shared
    phone_number text,
    phone_key    text,
    source       text,       -- the name of the API key
    note         text,
    detail       jsonb,      -- edited, deleted: the values before; mended: the contacts of the absorbed identity
    undone_by    bigint      -- the event that took this one back
);

ALTER TABLE event ADD PRIMARY KEY (id);
ALTER TABLE event ADD CONSTRAINT event_kind CHECK ((kind = ANY (ARRAY['merged'::text, 'mended'::text, 'linked'::text, 'split'::text, 'kept_apart'::text, 'released'::text, 'withheld'::text, 'dismissed'::text, 'blocked'::text, 'unblocked'::text, 'guards'::text, 'rekeyed'::text, 'edited'::text, 'deleted'::text, 'erased'::text])));
CREATE INDEX ON event USING btree (primary_id) WHERE (primary_id IS NOT NULL);
CREATE INDEX ON event USING btree (other_id) WHERE (other_id IS NOT NULL);

-- What other programs do to contacts is in the journal too. recon itself never updates these columns on the path of a
-- request. The owner's rights, because those programs need none on the journal.
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
    WHEN (old.email IS DISTINCT FROM new.email OR old.phone_number IS DISTINCT FROM new.phone_number OR old.phone_key IS DISTINCT FROM new.phone_key OR old.deleted_at IS DISTINCT FROM new.deleted_at)
    EXECUTE FUNCTION contact_record_edit();

-- Without its contacts the journal would tell of others, which get the same ids.
CREATE OR REPLACE FUNCTION contact_truncate_journal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_TABLE_NAME = 'contact' THEN
        EXECUTE format('TRUNCATE %I.event', TG_TABLE_SCHEMA);
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
    WHEN (split_part(current_setting('application_name'::text), ' '::text, 1) = 'recon'::text AND current_setting('application_name'::text) <> 'recon schema 3'::text)
    EXECUTE FUNCTION contact_refuse_version();

COMMENT ON TABLE contact IS 'recon schema 3';
