-- 20261121012000_health_check.sql
-- What the health endpoints ask: is the database there, and which schema does it have.
-- Each later migration replaces private.schema_version; a test compares it with the newest file.
-- Safe to run again. Locks no table. Undo: drop both functions.
create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012000'::text $$;
comment on function private.schema_version is 'Version of the newest migration in place.';

create or replace function public.health_check(p jsonb default '{}') returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object('ok', true, 'migrations', private.schema_version())
$$;
comment on function public.health_check is 'RPC: {ok, migrations}.';

revoke execute on function private.schema_version(), public.health_check(jsonb) from public, anon, authenticated;
grant execute on function private.schema_version(), public.health_check(jsonb) to service_role;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
