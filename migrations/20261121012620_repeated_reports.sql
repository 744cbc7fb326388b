-- 20261121012620_repeated_reports.sql
-- A report that comes again, or says nothing new, writes no row: carriers repeat what they were not thanked for, and each repeat was a
-- new version of the message's row and a later updated_at.
-- Safe to run again. Locks no table. Undo: apply private.refold_delivery of 20261121012300 and public.record_delivery_events of
-- 20261121012310 again.

create or replace function private.refold_delivery(p_id uuid) returns text
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_new public.message_delivery_log;
  v_fold record;
  v_error record;
begin
  -- The lock first, in a statement of its own: the next one then sees every event of whoever held it before.
  select * into v_row from public.message_delivery_log where id = p_id for no key update;
  if not found then
    return null;
  end if;
  select
    (array_agg(e.status order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.status))[1] as status,
    (array_agg(e.occurred_at order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.status))[1] as status_at,
    (array_agg(e.error_code order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.error_code)
      filter (where e.error_code is not null))[1] as error_code,
    (array_agg(e.error_class order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.error_code)
      filter (where e.error_code is not null))[1] as error_class,
    (array_agg(e.pricing order by e.occurred_at, e.id) filter (where e.pricing is not null))[1] as pricing,
    -- The newest word on the price: a carrier may correct it, and some name none until the day after.
    (array_agg(e.pricing order by e.occurred_at desc, e.pricing::text)
      filter (where e.pricing ->> 'amount' ~ '^[0-9]{1,6}([.][0-9]{1,12})?$' and e.pricing ->> 'currency' ~ '^[A-Z]{3}$'))[1] as price,
    min(e.occurred_at) filter (where e.status = 'queued') as queued_at,
    min(e.occurred_at) filter (where e.status = 'sending') as sending_at,
    min(e.occurred_at) filter (where e.status = 'unknown') as unknown_at,
    min(e.occurred_at) filter (where e.status = 'sent') as sent_at,
    min(e.occurred_at) filter (where e.status = 'delivered') as delivered_at,
    min(e.occurred_at) filter (where e.status = 'read') as read_at,
    min(e.occurred_at) filter (where e.status in ('failed', 'undeliverable')) as failed_at,
    min(e.occurred_at) filter (where e.status = 'expired') as expired_at
    into v_fold
    from public.message_status_events e
   where e.delivery_id = p_id;
  if v_fold.status is null then
    return v_row.status;
  end if;
  if v_fold.error_code is null then
    select a.error_code, a.error_class into v_error
      from public.message_delivery_attempts a
     where a.delivery_id = p_id and a.error_class is not null
     order by a.attempt desc limit 1;
  else
    select v_fold.error_code as error_code, v_fold.error_class as error_class into v_error;
  end if;
  v_new := v_row;
  v_new.status := v_fold.status;
  v_new.status_at := v_fold.status_at;
  v_new.queued_at := coalesce(v_fold.queued_at, v_row.queued_at);
  v_new.sending_at := coalesce(v_fold.sending_at, v_row.sending_at);
  v_new.unknown_at := coalesce(v_fold.unknown_at, v_row.unknown_at);
  v_new.sent_at := coalesce(v_fold.sent_at, v_row.sent_at);
  v_new.delivered_at := coalesce(v_fold.delivered_at, v_row.delivered_at);
  v_new.read_at := coalesce(v_fold.read_at, v_row.read_at);
  v_new.failed_at := coalesce(v_fold.failed_at, v_row.failed_at);
  v_new.expired_at := coalesce(v_fold.expired_at, v_row.expired_at);
  v_new.error_code := coalesce(v_error.error_code, v_row.error_code);
  v_new.error_class := coalesce(v_error.error_class, v_row.error_class);
  v_new.pricing := coalesce(v_fold.pricing, v_row.pricing);
  v_new.cost := coalesce(trunc((v_fold.price ->> 'amount')::numeric, 6), v_row.cost);
  v_new.cost_currency := coalesce(v_fold.price ->> 'currency', v_row.cost_currency);
  -- Sent, failed or beyond: nobody needs to look again.
  v_new.next_attempt_at := case when private.delivery_status_rank(v_fold.status) < 3 then v_row.next_attempt_at end;
  -- What says nothing new writes nothing: no version of the row, no updated_at. A row of this very transaction is written all the
  -- same: by that its permit is settled (private.settle_permit).
  if v_new is not distinct from v_row and v_row.created_at < now() then
    return v_row.status;
  end if;
  update public.message_delivery_log
     set status = v_new.status,
         status_at = v_new.status_at,
         queued_at = v_new.queued_at,
         sending_at = v_new.sending_at,
         unknown_at = v_new.unknown_at,
         sent_at = v_new.sent_at,
         delivered_at = v_new.delivered_at,
         read_at = v_new.read_at,
         failed_at = v_new.failed_at,
         expired_at = v_new.expired_at,
         error_code = v_new.error_code,
         error_class = v_new.error_class,
         pricing = v_new.pricing,
         cost = v_new.cost,
         cost_currency = v_new.cost_currency,
         next_attempt_at = v_new.next_attempt_at
   where id = p_id;
  return v_fold.status;
end
$$;

create or replace function public.record_delivery_events(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_source text := coalesce(p ->> 'source', 'provider');
  v_events jsonb := coalesce(nullif(p -> 'events', 'null'), '[]');
  v_event record;
  v_id uuid;
  v_ids uuid[] := '{}';
  v_told uuid[] := '{}';
  v_refs text[] := '{}';
  v_applied integer := 0;
  v_orphaned integer := 0;
  v_duplicate integer := 0;
  v_ignored integer := 0;
  v_status text;
  v_fallback jsonb;
  v_fallbacks jsonb := '[]';
begin
  perform private.lock_refs(array(
    select lower(e ->> 'delivery_ref') from jsonb_array_elements(v_events) e
    union all
    select (e ->> 'provider') || ':' || k from jsonb_array_elements(v_events) e, unnest(private.provider_message_keys(e ->> 'provider_message_id')) k));
  for v_event in
    select nullif(lower(e ->> 'delivery_ref'), '') as delivery_ref, private.required(e, 'provider') as provider,
           nullif(e ->> 'provider_message_id', '') as provider_message_id, e ->> 'status' as status, e ->> 'raw_status' as raw_status,
           (e ->> 'occurred_at')::timestamptz as occurred_at,
           (e ->> 'reported_at')::timestamptz as reported_at, coalesce((e ->> 'by_arrival')::boolean, false) as by_arrival, e ->> 'error_code' as error_code, e ->> 'error_class' as error_class,
           e ->> 'evidence' as evidence, nullif(e -> 'pricing', 'null') as pricing
      from jsonb_array_elements(v_events) e
  loop
    if private.delivery_status_rank(v_event.status) is null or (v_event.delivery_ref is null and v_event.provider_message_id is null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    v_id := private.delivery_of_report(v_event.delivery_ref, v_event.provider, v_event.provider_message_id);
    if exists (select from public.message_delivery_log l where l.id = v_id and l.erased_at is not null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    insert into public.message_status_events
      (delivery_id, delivery_ref, source, provider, provider_message_id, status, raw_status, occurred_at, reported_at, error_code, error_class,
       evidence, pricing, correlation_id, dedupe_key)
    values
      (v_id, v_event.delivery_ref, v_source, v_event.provider, v_event.provider_message_id, v_event.status, v_event.raw_status,
       coalesce(v_event.occurred_at, v_now), v_event.reported_at, v_event.error_code, v_event.error_class, v_event.evidence, v_event.pricing, p ->> 'correlation_id',
       -- A provider that is asked may say the same status again, with the price that it did not have before.
       concat_ws('|', case when v_source = 'reconciliation' then 'reconciliation:' || md5(coalesce(v_event.pricing::text, '')) end,
         v_event.provider, coalesce(v_event.delivery_ref, ''), coalesce(private.provider_message_key(v_event.provider_message_id), ''),
         v_event.status, coalesce(v_event.raw_status, ''), coalesce(v_event.error_code, ''),
         -- The time of arrival tells no report from its repeat.
         case when v_event.by_arrival then '' else coalesce(extract(epoch from coalesce(v_event.reported_at, v_event.occurred_at))::text, '') end))
    on conflict (dedupe_key) do nothing;
    if not found then
      v_duplicate := v_duplicate + 1;
    elsif v_id is null then
      v_orphaned := v_orphaned + 1;
      if v_event.delivery_ref is not null and v_event.status in ('sent', 'delivered', 'read') then
        v_refs := v_refs || v_event.delivery_ref;
      end if;
    else
      v_applied := v_applied + 1;
      v_told := v_told || v_id;
    end if;
    if v_id is not null then
      v_ids := v_ids || v_id;
    end if;
  end loop;

  for v_id in select distinct i from unnest(v_ids) i order by 1 loop
    -- A report may name the provider's id before the answer to our request does; others that named only that one have waited.
    if exists (select from public.message_delivery_log l where l.id = v_id and l.provider_message_id is null) then
      perform private.join_orphans(v_id);
      v_told := v_told || v_id;
    end if;
    -- Of a repetition nothing is folded and no row locked; but whoever asks again, because the answer was lost, hears of the fallback.
    if v_id = any (v_told) then
      v_status := private.refold_delivery(v_id);
    else
      select l.status into v_status from public.message_delivery_log l where l.id = v_id;
    end if;
    if v_status in ('failed', 'undeliverable', 'expired') then
      v_fallback := private.create_fallback(v_id, v_now);
      if v_fallback is not null then
        v_fallbacks := v_fallbacks || v_fallback;
      end if;
    end if;
  end loop;
  for v_event in select distinct r from unnest(v_refs) r order by 1 loop
    perform private.adopt_late_report(v_event.r, v_now);
  end loop;
  for v_id in select distinct i from unnest(v_told) i order by 1 loop
    perform private.apply_evidence(v_id);
  end loop;
  return jsonb_build_object('applied', v_applied, 'orphaned', v_orphaned, 'duplicate', v_duplicate, 'ignored', v_ignored, 'fallbacks', v_fallbacks,
    -- Under which correlation id each message went out, so that the log can tell of its report under the same one.
    'deliveries', coalesce((
      select jsonb_agg(jsonb_build_object('id', l.id, 'channel', l.channel, 'status', l.status, 'correlation_id', l.correlation_id) order by l.id)
        from public.message_delivery_log l where l.id = any (v_ids)), '[]'));
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012620'::text $$;

notify pgrst, 'reload schema';
