-- 20261121012401_waits_until_is_checked.sql
-- The check of 20261121012400, in a transaction of its own: nobody waits while all rows are looked at.
-- Safe to run again. Keeps nobody from reading or writing. Undo: nothing to undo.
alter table public.message_delivery_log validate constraint message_delivery_log_waits_until_is_known;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012401'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
