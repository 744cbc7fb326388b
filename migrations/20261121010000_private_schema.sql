-- 20261121010000_private_schema.sql
-- The schema `private`: helpers that no request may call over HTTP (PostgREST exposes `public` only).
-- Most are PL/pgSQL even where one expression would do: a function with a search_path of its own is never inlined, and only
-- PL/pgSQL keeps its plan from call to call (a third of the time of a turn).
-- Safe to run again. Locks no table. Undo: drop schema private cascade (after everything that uses it).
create schema if not exists private;
comment on schema private is 'Helpers of the functions in public. Not exposed by PostgREST.';
revoke all on schema private from public;
grant usage on schema private to authenticated, service_role;

create or replace function private.touch_updated_at() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.updated_at := now();
  return new;
end
$$;
comment on function private.touch_updated_at is 'Trigger: updated_at is the time of the last change.';

create or replace function private.refuse_change() returns trigger
language plpgsql set search_path = '' as $$
begin
  raise exception using errcode = 'PT409', message = format('%s is append-only', tg_table_name);
end
$$;
comment on function private.refuse_change is 'Trigger of append-only tables: refuses the change.';

create or replace function private.required(p jsonb, p_field text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  if nullif(p ->> p_field, '') is null then
    raise exception using errcode = 'PT400', message = format('field %s is missing', p_field);
  end if;
  return p ->> p_field;
end
$$;
comment on function private.required is 'The text of a field of an RPC argument; HTTP 400 naming the field when it is absent or empty.';

create or replace function private.uuid_or_null(p_text text) returns uuid
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case when p_text ~* '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$' then p_text::uuid end;
end
$$;
comment on function private.uuid_or_null is 'The uuid that a text spells, or null: never an error.';

create or replace function private.is_e164(p_text text) returns boolean
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return p_text ~ '^\+[1-9][0-9]{6,14}$';
end
$$;
comment on function private.is_e164 is 'Form only (ITU-T E.164: a plus, at most 15 digits, no leading zero); numbering plans are judged before the database.';

create or replace function private.now_of(p jsonb) returns timestamptz
language plpgsql volatile set search_path = '' as $$
begin
  return coalesce((p ->> 'now')::timestamptz, clock_timestamp());
end
$$;
comment on function private.now_of is
  'The time an RPC works with: its argument `now` (tests turn the clock), else the clock. Not now(): a transaction may have waited for a lock.';

create or replace function private.require_columns(p_table regclass, p_columns jsonb) returns void
language plpgsql set search_path = '' as $$
declare
  v_bad text;
begin
  select string_agg(format('%s is %s, expected %s', wanted.key, coalesce(format_type(a.atttypid, a.atttypmod), 'absent'), wanted.value), '; ')
    into v_bad
    from jsonb_each_text(p_columns) wanted
    left join pg_catalog.pg_attribute a
      on a.attrelid = p_table and a.attname = wanted.key and not a.attisdropped
   where format_type(a.atttypid, a.atttypmod) is distinct from wanted.value;
  if v_bad is not null then
    raise exception '% has another shape than this migration needs: %', p_table, v_bad
      using hint = 'The table was here before. Rename or convert these columns, then apply the migration again.';
  end if;
end
$$;
comment on function private.require_columns is
  'Fails loudly when a table that existed before has columns of other types: create table if not exists would accept it silently.';

create or replace function private.require_insertable(p_table regclass, p_columns text[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_bad text;
begin
  select string_agg(a.attname, ', ' order by a.attnum) into v_bad
    from pg_catalog.pg_attribute a
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
     and a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attname <> all (p_columns);
  if v_bad is not null then
    raise exception '% demands a value that we do not have: %', p_table, v_bad
      using hint = 'The table was here before. Give these columns a default or let them be null, then apply the migration again.';
  end if;
end
$$;
comment on function private.require_insertable is 'Fails loudly when a table that existed before would refuse the rows that we insert.';

create or replace function private.validate_where_kept(p_table regclass, p_constraints text[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_name name;
begin
  for v_name in
    select c.conname from pg_catalog.pg_constraint c where c.conrelid = p_table and c.conname = any (p_constraints) and not c.convalidated
  loop
    begin
      execute format('alter table %s validate constraint %I', p_table, v_name);
    exception when check_violation or foreign_key_violation then
      raise warning '% holds rows that break %: they are left as they are, new and changed rows may not', p_table, v_name;
    end;
  end loop;
end
$$;
comment on function private.validate_where_kept is
  'Validates constraints that were added as not valid, since the table may have been here before with rows that break them; those keep theirs not valid.';

revoke execute on function private.touch_updated_at(), private.refuse_change(), private.required(jsonb, text), private.uuid_or_null(text),
  private.is_e164(text), private.now_of(jsonb), private.require_columns(regclass, jsonb), private.require_insertable(regclass, text[]),
  private.validate_where_kept(regclass, text[]) from public, anon, authenticated;
grant execute on function private.touch_updated_at(), private.refuse_change(), private.required(jsonb, text), private.uuid_or_null(text),
  private.is_e164(text), private.now_of(jsonb), private.require_columns(regclass, jsonb), private.require_insertable(regclass, text[]),
  private.validate_where_kept(regclass, text[]) to service_role;
