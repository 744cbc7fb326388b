-- 20261121012403_who_chose_when.sql
-- Whoever writes a choice or evidence without saying where it is from and since when: both are there all the same.
-- Safe to run again. Locks profiles and clients for a moment (triggers; two columns without a default).
-- Undo: drop the triggers, the functions and the two columns.
alter table public.clients add column if not exists default_policy_source text;
alter table public.clients add column if not exists default_policy_at timestamptz;
do $$
begin
  perform private.require_columns('public.clients', '{"default_policy_source": "text", "default_policy_at": "timestamp with time zone"}');
end
$$;
comment on column public.clients.default_policy_source is 'Who set default_policy, or how long whatsapp_then_sms waits: operator, or what was written with it; null: as it was made.';
comment on column public.clients.default_policy_at is 'Since when.';

create or replace function private.date_default_policy() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op = 'UPDATE' and (new.default_policy, new.settings -> 'whatsapp_then_sms') is not distinct from (old.default_policy, old.settings -> 'whatsapp_then_sms') then
    return new;
  end if;
  if new.default_policy_at is null or tg_op = 'UPDATE' and new.default_policy_at is not distinct from old.default_policy_at then
    new.default_policy_at := now();
    if new.default_policy_source is null or tg_op = 'UPDATE' and new.default_policy_source is not distinct from old.default_policy_source then
      new.default_policy_source := 'operator';
    end if;
  end if;
  return new;
end
$$;
comment on function private.date_default_policy is 'Trigger: since when a client''s default policy is what it is, and by whom.';
drop trigger if exists clients_date_default_policy on public.clients;
create trigger clients_date_default_policy before insert or update of default_policy, settings on public.clients
  for each row execute function private.date_default_policy();

create or replace function private.with_date(p_new jsonb, p_old jsonb, p_key text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_source text := p_key || '_source';
  v_at text := p_key || '_at';
begin
  if jsonb_typeof(p_new) <> 'object' then
    return p_new;
  end if;
  if not p_new ? p_key then
    return p_new - array[v_source, v_at];
  end if;
  if p_new -> p_key is not distinct from p_old -> p_key then
    -- Written again as it was, by somebody who knows nothing of the date.
    return case when p_new ? v_at then p_new
      else p_new || jsonb_strip_nulls(jsonb_build_object(v_source, p_old -> v_source, v_at, p_old -> v_at)) end;
  end if;
  if p_new -> v_at is not distinct from p_old -> v_at then
    p_new := p_new || jsonb_build_object(v_at, now(),
      v_source, case when p_new -> v_source is distinct from p_old -> v_source then p_new -> v_source else '"preference"' end);
  end if;
  return p_new;
end
$$;
comment on function private.with_date is 'Preferences with _source and _at beside a key that has changed; preference and now where nobody said.';

create or replace function private.date_choices() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_old public.profiles := case when tg_op = 'UPDATE' then old end;
  v_before jsonb := coalesce(v_old.notification_preferences, '{}');
begin
  if new.notification_preferences is distinct from v_before then
    new.notification_preferences := private.with_date(private.with_date(new.notification_preferences, v_before, 'policy'), v_before, 'allows_whatsapp');
  end if;
  -- A new row says nothing as long as it says what every new row says.
  if new.has_whatsapp is distinct from coalesce(v_old.has_whatsapp, false) and new.has_whatsapp_at is not distinct from v_old.has_whatsapp_at then
    new.has_whatsapp_at := now();
    if new.has_whatsapp_source is not distinct from v_old.has_whatsapp_source then
      new.has_whatsapp_source := 'given';
    end if;
  end if;
  if new.allows_sms is distinct from coalesce(v_old.allows_sms, true) and new.allows_sms_at is not distinct from v_old.allows_sms_at then
    new.allows_sms_at := now();
    if new.allows_sms_source is not distinct from v_old.allows_sms_source then
      new.allows_sms_source := 'preference';
    end if;
  end if;
  return new;
end
$$;
comment on function private.date_choices is 'Trigger: no choice of a person and no evidence about them without a source and a date.';
drop trigger if exists profiles_date_choices on public.profiles;
create trigger profiles_date_choices before insert or update of notification_preferences, has_whatsapp, allows_sms on public.profiles
  for each row execute function private.date_choices();
comment on column public.profiles.has_whatsapp_source is
  'Where the evidence is from: inbound (they wrote or called), delivered, not_on_whatsapp, given (written by hand, or by another system). Null with has_whatsapp false: nothing is known.';

revoke execute on function private.date_default_policy(), private.with_date(jsonb, jsonb, text), private.date_choices() from public, anon, authenticated;
grant execute on function private.date_default_policy(), private.with_date(jsonb, jsonb, text), private.date_choices() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012403'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
