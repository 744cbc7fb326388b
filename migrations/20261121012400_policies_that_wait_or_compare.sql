-- 20261121012400_policies_that_wait_or_compare.sql
-- whatsapp_then_sms: the SMS stands in the log from the beginning and is settled when WhatsApp has come far enough, or sent
-- when it is due or WhatsApp failed. cheapest: what messages cost, as data.
-- Safe to run again. Locks clients and message_delivery_log for a moment (a check of few rows; a column without a default).
-- Undo: apply create_fallback of 20261121012210, store_deliveries of 20261121012013 and client_json of 20261121010600 again; drop
-- the trigger, the new functions, channel_prices and waits_until.

do $$
begin
  if not exists (select from pg_catalog.pg_constraint k where k.conrelid = 'public.clients'::regclass and k.conname = 'clients_default_policy_is_known'
                  and pg_catalog.pg_get_constraintdef(k.oid) like '%cheapest%') then
    alter table public.clients drop constraint if exists clients_default_policy_is_known;
    alter table public.clients add constraint clients_default_policy_is_known
      check (default_policy in ('both', 'sms_only', 'whatsapp_only', 'whatsapp_then_sms', 'cheapest', 'none'));
  end if;
end
$$;
comment on column public.clients.settings is
  'Rarely used. {sms_provider}: another provider than MTN; {whatsapp_then_sms: {after, until}}: how long that policy waits (seconds, 10 to 43200) and for which status (sent, delivered, read).';
comment on column public.profiles.notification_preferences is
  '{policy: both | sms_only | whatsapp_only | whatsapp_then_sms | cheapest | none, after, until, mirror_replies, allows_whatsapp}, policy and allows_whatsapp with their _source and _at; after (seconds) and until (sent, delivered, read) are of whatsapp_then_sms; a missing key: the client''s default.';
comment on column public.v_channel_choices.policy is 'A policy of notification_preferences: the person''s, else the client''s.';

alter table public.message_delivery_log add column if not exists waits_until text;
do $$
begin
  perform private.require_columns('public.message_delivery_log', '{"waits_until": "text"}');
  -- `not valid`: to look at all rows here would keep everybody waiting, and none has the column yet.
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.message_delivery_log'::regclass and conname = 'message_delivery_log_waits_until_is_known') then
    alter table public.message_delivery_log add constraint message_delivery_log_waits_until_is_known
      check (waits_until in ('sent', 'delivered', 'read')) not valid;
  end if;
end
$$;
comment on column public.message_delivery_log.waits_until is
  'An SMS that is not sent if the same message comes this far on WhatsApp before next_attempt_at; null: it waits for nothing.';

create table if not exists public.channel_prices (
  id uuid constraint channel_prices_pkey primary key default gen_random_uuid(),
  client_id uuid constraint channel_prices_client_id_fkey references public.clients (id) on delete cascade,
  provider text not null,
  kind text not null,
  prefix text not null default '',
  price numeric(12,6) not null,
  currency char(3) not null,
  valid_from timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint channel_prices_once unique nulls not distinct (client_id, provider, kind, prefix, valid_from),
  constraint channel_prices_kind_is_a_word check (kind ~ '^[a-z][a-z_-]{0,39}$'),
  constraint channel_prices_prefix_is_of_numbers check (prefix ~ '^([+][0-9]{1,14})?$'),
  constraint channel_prices_price_is_not_negative check (price >= 0),
  constraint channel_prices_currency_is_a_code check (currency ~ '^[A-Z]{3}$')
);
do $$
begin
  perform private.require_columns('public.channel_prices', '{
    "id": "uuid", "client_id": "uuid", "provider": "text", "kind": "text", "prefix": "text", "price": "numeric(12,6)",
    "currency": "character(3)", "valid_from": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.channel_prices is
  'What one message costs us, for the policy `cheapest`. Operators write it; the newest row in force counts, a client''s own before the general one.';
comment on column public.channel_prices.client_id is 'Whose price it is; null: everybody''s who has none of their own.';
comment on column public.channel_prices.provider is 'mtn, whatsapp.';
comment on column public.channel_prices.kind is
  'segment: one segment of an SMS. Of WhatsApp the category of a template (utility, marketing, authentication), or service: free text in the window, free without a row.';
comment on column public.channel_prices.prefix is 'How the recipients'' numbers begin, such as +250; empty: all. The longest that fits counts.';
comment on column public.channel_prices.price is 'Of one message, or one segment, in currency.';
comment on column public.channel_prices.currency is 'ISO 4217. Prices in two currencies are not compared.';
comment on column public.channel_prices.valid_from is 'A change of price is a new row.';

drop trigger if exists channel_prices_touch on public.channel_prices;
create trigger channel_prices_touch before update on public.channel_prices for each row execute function private.touch_updated_at();
alter table public.channel_prices enable row level security;
drop policy if exists channel_prices_select on public.channel_prices;
create policy channel_prices_select on public.channel_prices for select to authenticated
  using (client_id in (select private.my_client_ids()));
revoke all on public.channel_prices from public, anon, authenticated;
grant select on public.channel_prices to authenticated;
grant select, insert, update, delete on public.channel_prices to service_role;

create or replace function private.prices_in_force(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object('provider', x.provider, 'kind', x.kind, 'prefix', x.prefix, 'price', trim_scale(x.price), 'currency', x.currency)
             order by x.provider, x.kind, x.prefix)
      from (
        select distinct on (r.provider, r.kind, r.prefix) r.provider, r.kind, r.prefix, r.price, r.currency
          from public.channel_prices r
         where (r.client_id = p_client_id or r.client_id is null) and r.valid_from <= now()
         order by r.provider, r.kind, r.prefix, (r.client_id is null), r.valid_from desc limit 500
      ) x), '[]');
end
$$;
comment on function private.prices_in_force is 'The prices that count for a client now, one a provider, kind and prefix.';

create or replace function private.client_json(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', c.id, 'slug', c.slug, 'brand', c.brand, 'sms_sender_id', c.sms_sender_id, 'sms_service_code', c.sms_service_code,
      'contact_number', c.contact_number,
      'default_locale', c.default_locale, 'default_policy', c.default_policy, 'mirror_replies', c.mirror_replies, 'settings', c.settings,
      'prices', private.prices_in_force(c.id))
      from public.clients c where c.id = p_client_id);
end
$$;

-- Waits for the lock of the SMS: whoever holds it claims it or puts it off, and waits for no WhatsApp row meanwhile.
create or replace function private.settle_waiting(p_id uuid) returns void
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_sms record;
begin
  select * into v_row from public.message_delivery_log where id = p_id;
  if v_row.message_id is null or v_row.status not in ('sent', 'delivered', 'read') then
    return;
  end if;
  for v_sms in
    select s.id, s.queued_at, s.correlation_id from public.message_delivery_log s
     where s.message_id = v_row.message_id and s.id <> p_id and s.waits_until is not null
       and private.delivery_status_rank(v_row.status) >= private.delivery_status_rank(s.waits_until)
       -- Not sent yet, or refused and to be tried again.
       and s.status in ('queued', 'sending') and s.lease_token is null and coalesce(s.last_outcome, 'deferred') in ('deferred', 'retryable')
       for no key update
  loop
    perform private.add_own_event(v_sms.id, 'suppressed', greatest(v_row.status_at, v_sms.queued_at), v_sms.correlation_id);
    update public.message_delivery_log set next_attempt_at = null, suppress_reason = 'whatsapp_reached' where id = v_sms.id;
    perform private.refold_delivery(v_sms.id);
  end loop;
end
$$;
comment on function private.settle_waiting is 'A WhatsApp message has come further: the SMS that waits for just that is not sent.';

create or replace function private.settle_waiting_for_row() returns trigger
language plpgsql set search_path = '' as $$
begin
  perform private.settle_waiting(new.id);
  return null;
end
$$;
comment on function private.settle_waiting_for_row is 'Trigger: whichever way the status of a WhatsApp message came by.';
drop trigger if exists message_delivery_log_settle_waiting on public.message_delivery_log;
create trigger message_delivery_log_settle_waiting after update of status on public.message_delivery_log for each row
  when (new.channel = 'whatsapp' and new.direction = 'outbound' and new.message_id is not null
    and new.status in ('sent', 'delivered', 'read') and new.status is distinct from old.status)
  execute function private.settle_waiting_for_row();

create or replace function private.create_fallback(p_id uuid, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_profile public.profiles;
  v_rendition jsonb;
  v_phone text;
  v_other text;
  v_id uuid;
  v_status text;
begin
  select * into v_row from public.message_delivery_log where id = p_id;
  select id, status into v_id, v_status from public.message_delivery_log where fallback_of = p_id;
  if found then
    return case when v_status = 'queued' then jsonb_build_object('id', v_id, 'channel', case v_row.channel when 'sms' then 'whatsapp' else 'sms' end,
      'correlation_id', v_row.correlation_id) end;
  end if;
  -- The SMS that waits for this message is there already: it goes now. Whoever holds its row is sending it.
  if v_row.channel = 'whatsapp' and v_row.message_id is not null then
    select s.id into v_id from public.message_delivery_log s
     where s.message_id = v_row.message_id and s.id <> p_id and s.waits_until is not null and s.status = 'queued' and s.lease_token is null
       for no key update skip locked;
    if found then
      update public.message_delivery_log set next_attempt_at = least(next_attempt_at, p_now) where id = v_id;
      return jsonb_build_object('id', v_id, 'channel', 'sms', 'correlation_id', v_row.correlation_id);
    end if;
  end if;
  v_other := case v_row.channel when 'whatsapp' then 'sms' when 'sms' then 'whatsapp' end;
  if v_other is null or v_row.direction <> 'outbound' or v_row.message_id is null or v_row.purpose = 'keyword'
     or v_row.deadline_at <= p_now then
    return null;
  end if;
  -- The other channel was tried, or something of the same message still carries it.
  if exists (
    select from public.message_delivery_log s
     where s.message_id = v_row.message_id and s.id <> p_id
       and (s.channel = v_other or s.status in ('sent', 'delivered', 'read', 'sending', 'queued', 'unknown'))
       -- It was not sent because this message had gone out, and now this one has failed.
       and (s.status <> 'suppressed' or s.suppress_reason is distinct from 'whatsapp_reached')
  ) then
    return null;
  end if;
  select m.renditions -> v_other into v_rendition from public.conversation_messages m where m.id = v_row.message_id;
  select * into v_profile from public.profiles where id = v_row.profile_id;
  if not found or v_rendition is null or jsonb_typeof(v_rendition) <> 'object' then
    return null;
  end if;
  -- The number this work was for, which need not be the profile's first.
  v_phone := case when private.is_e164(v_row.recipient) then v_row.recipient else v_profile.phone_number end;
  if not private.may_answer(v_row.profile_id, v_other) or v_other = 'sms' and v_phone is null then
    return null;
  end if;
  if v_other = 'whatsapp'
     and private.whatsapp_evidence(v_profile.has_whatsapp, v_profile.has_whatsapp_source, v_profile.has_whatsapp_at, p_now) = 'no' then
    return null;
  end if;
  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider, correlation_id,
     recipient, sender, content, payload, encoding, segments, next_attempt_at, deadline_at, unknown_wait_seconds, fallback_of,
     idempotency_key, queued_at)
  select v_row.client_id, v_row.session_id, v_row.profile_id, v_row.call_id, v_row.message_id, v_row.turn_id, 'outbound', v_other, v_row.purpose,
         'queued', p_now, case v_other when 'sms' then coalesce(c.settings ->> 'sms_provider', 'mtn') else 'whatsapp' end, v_row.correlation_id,
         coalesce(v_phone, v_row.recipient), case v_other when 'sms' then c.sms_sender_id end,
         coalesce(v_rendition ->> 'text', v_row.content), v_rendition, v_rendition ->> 'encoding', (v_rendition ->> 'segments')::smallint,
         p_now, v_row.deadline_at, v_row.unknown_wait_seconds, p_id, 'fallback:' || p_id, p_now
    from public.clients c where c.id = v_row.client_id
  on conflict (idempotency_key) do nothing
  returning id into v_id;
  if v_id is null then
    return null;
  end if;
  perform private.add_own_event(v_id, 'queued', p_now, v_row.correlation_id);
  return jsonb_build_object('id', v_id, 'channel', v_other, 'correlation_id', v_row.correlation_id);
end
$$;
comment on function private.create_fallback is
  'A delivery failed for good: queues the same message on the other channel, due now, if it was not tried and can be, or makes the SMS that waits for it due; {id, channel, correlation_id} or null.';

create or replace function private.store_deliveries(
  p_client_id uuid, p_session_id uuid, p_profile_id uuid, p_call_id uuid, p_turn_id uuid, p_message_id uuid,
  p_deliveries jsonb, p_lease_token uuid, p_correlation_id text, p_key text, p_possible_duplicate boolean, p_unknown_wait_seconds integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_delivery jsonb;
  v_attempt jsonb;
  v_id uuid;
  v_status text;
  v_noted jsonb := '[]';
  v_stored jsonb := '[]';
  v_fallbacks jsonb := '[]';
  v_fallback jsonb;
begin
  p_deliveries := coalesce(nullif(p_deliveries, 'null'), '[]');
  perform private.lock_refs(array(
    select lower(d ->> 'id') from jsonb_array_elements(p_deliveries) d
    union all
    select (d ->> 'provider') || ':' || k
      from jsonb_array_elements(p_deliveries) d, unnest(private.provider_message_keys(d -> 'attempt' ->> 'provider_message_id')) k));
  for v_delivery in select d from jsonb_array_elements(p_deliveries) d order by d ->> 'id' loop
    v_id := private.required(v_delivery, 'id')::uuid;
    v_attempt := v_delivery -> 'attempt';
    insert into public.message_delivery_log as l
      (id, client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider,
       correlation_id, recipient, sender, content, payload, encoding, segments, deadline_at, unknown_wait_seconds, possible_duplicate,
       idempotency_key, queued_at, waits_until)
    values
      (v_id, p_client_id, p_session_id, p_profile_id, p_call_id, p_message_id, p_turn_id, 'outbound', private.required(v_delivery, 'channel'),
       coalesce(v_delivery ->> 'purpose', 'message'), 'queued', p_now, private.required(v_delivery, 'provider'), p_correlation_id,
       v_delivery ->> 'recipient', v_delivery ->> 'sender', v_delivery ->> 'content', nullif(v_delivery -> 'payload', 'null'),
       v_delivery ->> 'encoding', (v_delivery ->> 'segments')::smallint, (v_delivery ->> 'deadline_at')::timestamptz, p_unknown_wait_seconds,
       p_possible_duplicate, p_key || ':' || (v_delivery ->> 'channel'), p_now, v_delivery ->> 'waits_until')
    on conflict (id) do update
      set message_id = coalesce(l.message_id, excluded.message_id),
          recipient = coalesce(l.recipient, excluded.recipient), sender = coalesce(l.sender, excluded.sender),
          content = coalesce(l.content, excluded.content), payload = coalesce(l.payload, excluded.payload),
          encoding = coalesce(l.encoding, excluded.encoding), segments = coalesce(l.segments, excluded.segments),
          deadline_at = coalesce(l.deadline_at, excluded.deadline_at)
      where l.client_id = excluded.client_id and l.channel = excluded.channel and l.turn_id is not distinct from excluded.turn_id;
    if not found then
      raise exception using errcode = 'PT409', message = 'delivery_of_another_claim';
    end if;
    perform private.add_own_event(v_id, 'queued', coalesce((v_attempt ->> 'started_at')::timestamptz, p_now), p_correlation_id);
    if private.apply_attempt(v_id, v_attempt, p_lease_token, p_correlation_id, p_now, p_possible_duplicate) then
      v_noted := v_noted || jsonb_build_object('id', v_id, 'provider', v_delivery ->> 'provider', 'outcome', v_attempt ->> 'outcome',
        'counts', coalesce((v_attempt ->> 'breaker')::boolean, true), 'error_code', v_attempt ->> 'error_code');
    end if;
    perform private.join_orphans(v_id);
    v_status := private.refold_delivery(v_id);
    v_stored := v_stored || jsonb_build_object('id', v_id, 'channel', v_delivery ->> 'channel', 'status', v_status);
  end loop;
  -- A report that was there before its message may have settled already what waits for it.
  for v_delivery in select s from jsonb_array_elements(v_stored) s where s ->> 'channel' = 'whatsapp' loop
    perform private.settle_waiting((v_delivery ->> 'id')::uuid);
  end loop;
  -- When all are written: whether a channel must step in depends on what became of the others.
  for v_delivery in select s from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable', 'expired') loop
    v_fallback := private.create_fallback((v_delivery ->> 'id')::uuid, p_now);
    if v_fallback is not null then
      v_fallbacks := v_fallbacks || v_fallback;
    end if;
  end loop;
  for v_delivery in select s from jsonb_array_elements(v_stored) s
                     where s ->> 'channel' = 'whatsapp' or s ->> 'status' = 'undeliverable' loop
    perform private.apply_evidence((v_delivery ->> 'id')::uuid);
  end loop;
  return jsonb_build_object('deliveries', v_stored, 'fallbacks', v_fallbacks, 'noted', v_noted);
end
$$;

revoke execute on function private.prices_in_force(uuid), private.settle_waiting(uuid), private.settle_waiting_for_row() from public, anon, authenticated;
grant execute on function private.prices_in_force(uuid), private.settle_waiting(uuid), private.settle_waiting_for_row() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012400'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
